//! Layered images: the tar that a layer is, and what is kept of layers.

pub mod cache;
pub mod tar;
