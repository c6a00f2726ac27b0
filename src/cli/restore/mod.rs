//! `strata restore`.

mod contents;
pub mod engine;
mod folder;
mod metadata;
