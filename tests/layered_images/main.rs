//! Layered images from a reference to files, beside umoci, GNU tar, the kernel and a real registry.
//!
//! The image is small by default; `STRATA_LAYERED_DEBIAN=1` puts a whole Debian root into its first layer.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "../support/mod.rs"]
mod support;

mod commands;
mod damaged;
mod image;
mod kernel;
mod kinds;
mod seen;
mod tables;
