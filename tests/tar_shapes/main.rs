//! Tars as real programs make them, beside what GNU tar and bsdtar unpack them to.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

#[path = "../support/mod.rs"]
mod support;

mod compare;
mod files;
mod foreign;
mod shapes;
