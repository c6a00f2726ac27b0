//! Layered images from everywhere they lie, beside skopeo: layouts, archives of both kinds, a real
//! registry, tarballs.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../support/mod.rs"]
mod support;

mod local;
mod made;
mod registry;
