//! What changed between two states, and keeping it: `strata diff` and `strata commit`.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failed step is a failed test")]
#![allow(unreachable_pub, reason = "shared with other test binaries")]

#[path = "../ext/mod.rs"]
mod ext;
#[path = "../support/mod.rs"]
mod support;

mod cow;
mod diff;
mod disks;
mod uppers;
