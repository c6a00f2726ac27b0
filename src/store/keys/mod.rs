//! What keeps a store's objects from being read or made by others (`docs/store-format.md`, "Keys").
//!
//! All else of the store asks [`Keys`], whether or not the store is encrypted.

mod ring;

use std::borrow::Cow;

use super::cause::Cause;
use super::id::{BlobKind, Id};
use super::sealed::{self, Sealed};
use crate::error::Result;

pub use ring::Keyring;

/// What tells the keys of one pack from those of all others; zeros where nothing is encrypted.
pub(super) type Salt = [u8; 16];

/// The context that map pages are hashed in, so that none has the id of a block.
const PAGES: &str = "stratafs store 2026-11-22 map page";

/// The keys of a store; those of one that is not encrypted do nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct Keys;

impl Keys {
    /// The id of what `kind` says, of these bytes.
    pub(super) fn id(&self, kind: BlobKind, plain: &[u8]) -> Id {
        match kind {
            BlobKind::Block => Id(blake3::hash(plain).into()),
            BlobKind::Page => Id(blake3::derive_key(PAGES, plain)),
        }
    }

    /// The object that holds `payload`.
    ///
    /// # Errors
    /// The host's, if it has no random numbers.
    pub(super) fn seal(&self, what: Sealed, payload: &[u8]) -> Result<Vec<u8>> {
        Ok(sealed::seal(what, payload))
    }

    /// The payload of an object, of which every byte is verified.
    pub(super) fn unseal<'a>(&self, what: Sealed, bytes: &'a [u8]) -> Result<Cow<'a, [u8]>, Cause> {
        sealed::unseal(what, bytes).map(Cow::Borrowed)
    }

    /// Bytes of the payload of an object of `len` bytes that begins with `bytes`. Its seal is not looked at.
    pub(super) fn payload_len(&self, what: Sealed, bytes: &[u8], len: u64) -> Result<u64, Cause> {
        sealed::payload_len(what, bytes, len)
    }

    /// What the blobs of a new pack are encrypted with.
    ///
    /// # Errors
    /// The host's, if it has no random numbers.
    pub(super) fn new_pack(&self) -> Result<PackKeys> {
        Ok(self.pack([0; 16]))
    }

    /// What the blobs of the pack with this salt are encrypted with.
    pub(super) fn pack(&self, salt: Salt) -> PackKeys {
        PackKeys { salt }
    }
}

/// The keys of the blobs of one pack.
#[derive(Debug)]
pub(super) struct PackKeys {
    pub(super) salt: Salt,
}
