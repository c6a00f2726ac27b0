//! Layered images: from what a person types to a manifest, a config and the layers' bytes.
//!
//! [`Reference`] takes the words apart, [`open`] reads what they name. Nothing is unpacked: a layer
//! is a [`Blob`], a file, a window of an archive, or what a registry serves by ranges. Everything
//! read here is a claim of whoever made the image: documents are held against their digests, sizes
//! and counts against budgets, and names never leave the folder or archive that they stand in.
//!
//! Specifications: OCI image specification 1.1 (`image-layout.md`, `image-index.md`, `manifest.md`,
//! `config.md`), OCI distribution specification 1.1, Docker image manifest version 2 schema 2.

pub mod archive;
mod blob;
pub mod cache;
mod cause;
pub mod compression;
pub mod config;
mod digest;
pub mod docker;
mod image;
pub mod layer;
mod layout;
pub mod manifest;
pub mod merge;
pub mod platform;
pub mod prepare;
pub mod reference;
pub mod registry;
pub mod span;
pub mod tar;
pub mod toc;
pub mod write;

pub use blob::Blob;
pub use compression::Compression;
pub use config::Config;
pub use digest::{Algorithm, Digest, Hasher};
pub use image::{Documents, Image, LayerBlob, Options, open};
pub use platform::Platform;
pub use reference::Reference;
