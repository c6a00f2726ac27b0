//! Mount any disk image, snapshot chain or layered image, without extracting it first.
#![cfg_attr(not(test), warn(clippy::print_stdout))]

pub mod block;
pub mod chain;
pub mod error;
pub mod fs;
pub mod image;
pub mod open;
pub mod policy;
pub mod tree;
pub mod volume;
pub mod wire;
