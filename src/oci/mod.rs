//! Layered images: the tars that their layers are, reading them while they are compressed, what a
//! layer's index holds of one, and the tree that layers make together.

pub mod cache;
pub mod layer;
pub mod merge;
pub mod span;
pub mod tar;
