//! Layered images: the tar that a layer is, and reading it while it is compressed.

pub mod span;
pub mod tar;
