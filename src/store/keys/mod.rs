//! What keeps a store's objects from being read or made by others (`docs/store-format.md`, "Encryption").
//!
//! All else of the store asks [`Keys`], whether or not the store is encrypted. What a person gives to open
//! one is a [`Secret`]; it opens a slot (`slot.rs`), and a slot holds the master key.

mod keyring;
mod slot;
mod slots;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, MAX_TAG_LEN, NONCE_LEN, Nonce, UnboundKey};
use zeroize::{ZeroizeOnDrop, Zeroizing};

use super::cause::Cause;
use super::id::{BlobKind, Id};
use super::sealed::{self, Parts, Protection, Sealed};
use crate::error::{Error, Kind, Result};

pub(super) use keyring::Opened;
pub use keyring::{Keyring, Secret};
pub use slot::KeyKind;
pub use slots::KeyInfo;

/// Bytes of a key.
pub(super) const KEY: usize = 32;

/// Bytes of what proves that encrypted bytes are what was encrypted.
pub(super) const TAG: usize = MAX_TAG_LEN;

/// What tells one pack from all others, and where something is encrypted the keys of one object from those of all others.
pub(super) type Salt = [u8; SALT];
const SALT: usize = 16;

/// The code of a part of an index.
pub(super) type Code = [u8; CODE];
const CODE: usize = 16;

/// The context that map pages are hashed in, so that none has the id of a block.
const PAGES: &str = "stratafs store 2026-11-22 map page";

/// The keys of a store; those of one that is not encrypted are none.
#[derive(Debug, Clone, Default)]
pub(super) struct Keys(Option<Arc<Derived>>);

/// The master key, and what is derived of it.
#[derive(ZeroizeOnDrop)]
struct Derived {
    master: [u8; KEY],
    /// Of blocks, and of map pages.
    block_ids: [u8; KEY],
    page_ids: [u8; KEY],
    /// Of the seals of objects.
    seals: [u8; KEY],
    /// Of the payloads of objects.
    payloads: [u8; KEY],
    /// Of the parts of indexes.
    parts: [u8; KEY],
    /// Of the blobs of packs.
    blobs: [u8; KEY],
}

impl fmt::Debug for Derived {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Derived").finish_non_exhaustive()
    }
}

impl Keys {
    /// Those of a new store.
    ///
    /// # Errors
    /// The host's, if it has no random numbers.
    pub(super) fn generate() -> Result<Self> {
        Ok(Self::of_master(&Zeroizing::new(random()?)))
    }

    fn of_master(master: &[u8; KEY]) -> Self {
        Self(Some(Arc::new(Derived {
            master: *master,
            block_ids: blake3::derive_key("stratafs store 2026-11-22 block ids", master),
            page_ids: blake3::derive_key("stratafs store 2026-11-22 page ids", master),
            seals: blake3::derive_key("stratafs store 2026-11-22 seals", master),
            payloads: blake3::derive_key("stratafs store 2026-11-22 payloads", master),
            parts: blake3::derive_key("stratafs store 2026-11-22 index parts", master),
            blobs: blake3::derive_key("stratafs store 2026-11-22 blobs", master),
        })))
    }

    /// Whether there are any.
    pub(super) fn are_there(&self) -> bool {
        self.0.is_some()
    }

    /// Whether they give the same things the same ids.
    pub(super) fn are_like(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (None, None) => true,
            (Some(keys), Some(other)) => keys.master == other.master,
            _ => false,
        }
    }

    /// The id of what `kind` says, of these bytes.
    pub(super) fn id(&self, kind: BlobKind, plain: &[u8]) -> Id {
        match (&self.0, kind) {
            (None, BlobKind::Block) => Id(blake3::hash(plain).into()),
            (None, BlobKind::Page) => Id(blake3::derive_key(PAGES, plain)),
            (Some(keys), BlobKind::Block) => Id(blake3::keyed_hash(&keys.block_ids, plain).into()),
            (Some(keys), BlobKind::Page) => Id(blake3::keyed_hash(&keys.page_ids, plain).into()),
        }
    }

    /// How an object of this kind is to be protected.
    fn protection(&self, what: Sealed) -> Protection {
        match (&self.0, what) {
            (None, _) | (_, Sealed::Slot) => Protection::None,
            (_, Sealed::Config | Sealed::Index) => Protection::Authenticated,
            (
                _,
                Sealed::Record
                | Sealed::Lease
                | Sealed::Condemned
                | Sealed::Signature
                | Sealed::Draft,
            ) => Protection::Encrypted,
        }
    }

    /// What the seal of an object is computed with, from its first byte on.
    fn sealer(&self, protection: Protection) -> blake3::Hasher {
        match &self.0 {
            Some(keys) if protection != Protection::None => blake3::Hasher::new_keyed(&keys.seals),
            _ => blake3::Hasher::new(),
        }
    }

    /// The object that holds `payload`.
    ///
    /// # Errors
    /// The host's, if it has no random numbers.
    pub(super) fn seal(&self, what: Sealed, payload: &[u8]) -> Result<Vec<u8>> {
        let protection = self.protection(what);
        let mut bytes = Vec::with_capacity(payload.len() + sealed::AROUND + SALT + TAG);
        match &self.0 {
            Some(keys) if protection == Protection::Encrypted => {
                let salt: Salt = random()?;
                let len = (SALT + payload.len() + TAG) as u64;
                let header = sealed::header(what, protection, len);
                bytes.extend_from_slice(&header);
                bytes.extend_from_slice(&salt);
                bytes.extend_from_slice(payload);
                let plain = bytes.get_mut(sealed::HEADER + SALT..).unwrap_or_default();
                let tag = encrypt(&keyed(&keys.payloads, &[&salt]), 0, &header, plain)?;
                bytes.extend_from_slice(&tag);
            }
            _ => {
                bytes.extend_from_slice(&sealed::header(what, protection, payload.len() as u64));
                bytes.extend_from_slice(payload);
            }
        }
        let seal = self.sealer(protection).update(&bytes).finalize();
        bytes.extend_from_slice(seal.as_bytes());
        Ok(bytes)
    }

    /// The payload of an object, of which every byte is verified.
    ///
    /// # Errors
    /// One that is protected in another way than the store is, is refused whatever it holds.
    pub(super) fn unseal<'a>(&self, what: Sealed, bytes: &'a [u8]) -> Result<Cow<'a, [u8]>, Cause> {
        let protection = self.protection(what);
        // First the magic and the seal, so that damage is told as such.
        let Parts { header, payload: stored, seal } = sealed::parts(bytes)?;
        if sealed::protection(header)? != protection {
            return Err(self.protected_otherwise());
        }
        // Compared in constant time.
        if self.sealer(protection).update(header).update(stored).finalize() != seal {
            return Err(Cause::Seal);
        }
        sealed::payload_len(what, bytes, bytes.len() as u64)?;
        match &self.0 {
            Some(keys) if protection == Protection::Encrypted => {
                let (salt, stored) = stored.split_first_chunk::<SALT>().ok_or(Cause::Seal)?;
                let mut payload = stored.to_vec();
                let len = decrypt(&keyed(&keys.payloads, &[salt]), 0, header, &mut payload);
                payload.truncate(len.ok_or(Cause::Seal)?);
                Ok(Cow::Owned(payload))
            }
            _ => Ok(Cow::Borrowed(stored)),
        }
    }

    /// Bytes of the payload of an object of `len` bytes that begins with `bytes`. Its seal is not looked at.
    pub(super) fn payload_len(&self, what: Sealed, bytes: &[u8], len: u64) -> Result<u64, Cause> {
        let payload = sealed::payload_len(what, bytes, len)?;
        match sealed::protection(bytes)? == self.protection(what) {
            true => Ok(payload),
            false => Err(self.protected_otherwise()),
        }
    }

    fn protected_otherwise(&self) -> Cause {
        if self.are_there() { Cause::Unprotected } else { Cause::Protected }
    }

    /// What tells a part of an index that is read alone from what anybody else could have written there; zeros if the
    /// store is not encrypted.
    pub(super) fn code(&self, salt: &Salt, part: u64, bytes: &[&[u8]]) -> Code {
        let Some(keys) = &self.0 else { return [0; CODE] };
        let mut hasher = blake3::Hasher::new_keyed(&keys.parts);
        hasher.update(salt).update(&part.to_le_bytes());
        for bytes in bytes {
            hasher.update(bytes);
        }
        hasher.finalize().as_bytes().first_chunk().copied().unwrap_or_default()
    }

    /// What the blobs of a new pack are encrypted with.
    ///
    /// # Errors
    /// The host's, if it has no random numbers.
    pub(super) fn new_pack(&self) -> Result<PackKeys> {
        // Also where nothing is encrypted: a pack that is to go must not come again under its name.
        Ok(self.pack(random()?))
    }

    /// What the blobs of the pack with this salt are encrypted with.
    pub(super) fn pack(&self, salt: Salt) -> PackKeys {
        PackKeys { keys: self.clone(), salt }
    }
}

/// The keys of the blobs of one pack, of which each has its own: that of its salt and of the blob's id. So two
/// blobs that differ never have the same key, even if two packs had the same salt.
#[derive(Debug)]
pub(super) struct PackKeys {
    keys: Keys,
    pub(super) salt: Salt,
}

impl PackKeys {
    /// Whether there are any.
    pub(super) fn are_there(&self) -> bool {
        self.keys.are_there()
    }

    /// Bytes by which a blob is longer than what is encrypted.
    pub(super) fn overhead(&self) -> u32 {
        if self.are_there() { TAG as u32 } else { 0 }
    }

    /// Encrypts in place what is to be stored at `at` as the blob `id`, together with what its header says; the tag
    /// that goes behind it, if the store is encrypted.
    ///
    /// # Errors
    /// None that a blob of at most 4 MiB meets.
    pub(super) fn encrypt(
        &self,
        id: &Id,
        at: u32,
        said: &[u8],
        stored: &mut [u8],
    ) -> Result<Option<[u8; TAG]>> {
        self.key(id).map(|key| encrypt(&key, at, said, stored)).transpose()
    }

    /// Decrypts what lies at `at` in place; how many bytes it is. `None` if it is anything but what was encrypted
    /// there, with that id and header.
    pub(super) fn decrypt(
        &self,
        id: &Id,
        at: u32,
        said: &[u8],
        stored: &mut [u8],
    ) -> Option<usize> {
        match self.key(id) {
            Some(key) => decrypt(&key, at, said, stored),
            None => Some(stored.len()),
        }
    }

    fn key(&self, id: &Id) -> Option<Zeroizing<[u8; KEY]>> {
        let keys = self.keys.0.as_ref()?;
        Some(keyed(&keys.blobs, &[&self.salt, &id.0]))
    }
}

/// The key that follows from another and from what tells its uses apart.
fn keyed(key: &[u8; KEY], parts: &[&[u8]]) -> Zeroizing<[u8; KEY]> {
    let mut hasher = blake3::Hasher::new_keyed(key);
    for part in parts {
        hasher.update(part);
    }
    Zeroizing::new(hasher.finalize().into())
}

/// The nonce of what lies at `at`.
fn nonce(at: u32) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[..4].copy_from_slice(&at.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn cipher(key: &[u8; KEY]) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, key).ok().map(LessSafeKey::new)
}

/// Encrypts `bytes` in place; the tag. No key may be used twice with one `at`.
fn encrypt(key: &[u8; KEY], at: u32, said: &[u8], bytes: &mut [u8]) -> Result<[u8; TAG]> {
    let tag = cipher(key)
        .and_then(|it| it.seal_in_place_separate_tag(nonce(at), Aad::from(said), bytes).ok())
        .and_then(|tag| <[u8; TAG]>::try_from(tag.as_ref()).ok());
    tag.ok_or_else(|| Error::new(Kind::Io, "AES-256-GCM takes no more than 64 GiB at once"))
}

/// Decrypts `bytes`, at whose end is the tag, in place; how many are left.
fn decrypt(key: &[u8; KEY], at: u32, said: &[u8], bytes: &mut [u8]) -> Option<usize> {
    let plain = cipher(key)?.open_in_place(nonce(at), Aad::from(said), bytes).ok()?;
    Some(plain.len())
}

/// Bytes that nobody can foretell.
pub(super) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| Error::io(error.into()))?;
    }
    Ok(bytes)
}
