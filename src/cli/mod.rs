//! The command line.

pub mod restore;
