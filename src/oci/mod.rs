//! Layered images: for now, the tar that a layer is.

pub mod tar;
