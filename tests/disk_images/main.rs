//! Disks as a program sees them, against what `qemu-img convert` makes of the same image.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a failed step of a test is a failed test"
)]

#[path = "../support/mod.rs"]
mod support;

mod compare;
mod faults;
mod formats;
mod generated;
mod policy;
