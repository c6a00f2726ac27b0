//! Mount any disk image, snapshot chain or layered image, without extracting it first.
#![cfg_attr(not(test), warn(clippy::print_stdout))]

// Lets unit tests share what the integration tests use, which names the crate.
#[cfg(test)]
extern crate self as stratafs;

pub mod block;
pub mod chain;
pub mod cli;
pub mod error;
pub mod fs;
pub mod image;
pub mod mount;
pub mod open;
pub mod policy;
pub mod tree;
pub mod volume;
pub mod wire;
