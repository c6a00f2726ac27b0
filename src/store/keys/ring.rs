//! The secrets that somebody gave, and what they have opened.

/// What opens encrypted stores.
#[derive(Debug, Default)]
pub struct Keyring {}
