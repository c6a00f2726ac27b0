//! Mount any disk image, snapshot chain or layered image, without extracting it first.
//!
//! The crate is a stack of rooms that import one way, from the top of this list down:
//!
//! - [`cli`]: one file per command of the program `strata`.
//! - [`open`]: a reference on the command line becomes a disk or a tree of files; [`policy`] says
//!   what an image may make us open on the way.
//! - [`mount`]: a tree of files served through FUSE.
//! - [`fs`]: guest filesystems, each turning a source into a tree. [`tree`]: the trait they keep,
//!   and what combines trees.
//! - [`volume`]: what lies on a disk, as windows of it.
//! - [`image`]: disk image formats, each turning a source into a layer. [`store`]: snapshots of disks,
//!   each of them a layer, too. [`chain`]: layers made into one disk.
//! - [`block`]: random access to bytes. [`wire`]: checked reading of on-disk structures. [`mod@error`].
//!
//! Everything is positional, takes `&self`, and may be used from any thread at once:
//!
//! ```
//! use stratafs::block::Cache;
//! use stratafs::open::{Opener, Reference, view};
//! use stratafs::policy::Policy;
//! use stratafs::tree::path::{Follow, resolve};
//!
//! # fn main() -> stratafs::error::Result<()> {
//! # let dir = tempfile::tempdir().unwrap();
//! # let image = dir.path().join("disk.img");
//! # std::fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
//! # let made = std::process::Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&image).status();
//! # assert!(made.expect("mkfs.ext4 is missing: apt-get install e2fsprogs").success());
//! let opener = Opener::new(Policy::default(), Cache::new(256 << 20));
//! let reference = Reference::from(image.as_path());
//! let shown = view::view(&opener.into(), &reference, view::View::Files, None)?;
//! let folder = resolve(&*shown.tree.files(), b"/lost+found", Follow::Always)?;
//! assert_eq!(shown.tree.files().attr(folder)?.mode, 0o700);
//! # Ok(())
//! # }
//! ```
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
pub mod oci;
pub mod open;
pub mod policy;
pub mod store;
pub mod tree;
pub mod volume;
pub mod wire;
