//! Disks as a program sees them, against what `qemu-img convert` makes of the same image.

#[path = "../support/mod.rs"]
mod support;

mod compare;
mod faults;
mod formats;
mod generated;
mod policy;
