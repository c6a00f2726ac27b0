//! Packs: blocks and map pages, one behind the other (`docs/store-format.md`, "Pack").

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::VERSION;
use super::cause::Cause;
use super::id::{BlobKind, Id};
use super::keys::{Keys, PackKeys, Salt};
use crate::error::Result;
use crate::wire;

const MAGIC: [u8; 8] = *b"STRATAPK";
const BLOB: [u8; 4] = *b"SBLB";

/// The flag of a pack whose blobs are encrypted.
const ENCRYPTED: u16 = 1;

/// Bytes from which on a pack is full.
pub(super) const FULL: usize = 32 << 20;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct PackHeader {
    magic: [u8; 8],
    version: U16,
    flags: U16,
    crc: U32,
    store: [u8; 16],
    salt: Salt,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct BlobHeader {
    magic: [u8; 4],
    kind: u8,
    encoding: u8,
    zero: U16,
    stored: U32,
    plain: U32,
    id: Id,
    stored_crc: U32,
    header_crc: U32,
}

pub(super) const PACK_HEADER: usize = size_of::<PackHeader>();
const BLOB_HEADER: usize = size_of::<BlobHeader>();
const _: () = assert!(PACK_HEADER == 48 && BLOB_HEADER == 56);

/// How the bytes of a blob are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Plain,
    Zstd,
}

/// A blob of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Blob {
    pub(super) id: Id,
    pub(super) kind: BlobKind,
    /// Where its stored bytes begin in the pack.
    pub(super) at: u32,
    pub(super) stored: u32,
    pub(super) plain: u32,
    pub(super) encoding: Encoding,
}

impl Blob {
    /// Its header but for the checksums.
    fn header(&self) -> BlobHeader {
        BlobHeader {
            magic: BLOB,
            kind: match self.kind {
                BlobKind::Block => 1,
                BlobKind::Page => 2,
            },
            encoding: match self.encoding {
                Encoding::Plain => 0,
                Encoding::Zstd => 1,
            },
            zero: 0.into(),
            stored: self.stored.into(),
            plain: self.plain.into(),
            id: self.id,
            stored_crc: 0.into(),
            header_crc: 0.into(),
        }
    }

    /// Decrypts its stored bytes in place; how many are left. `None` if they are not those that were stored as it in a
    /// pack with these keys.
    pub(super) fn decrypt(&self, keys: &PackKeys, stored: &mut [u8]) -> Option<usize> {
        keys.decrypt(&self.id, self.at, self.header().said(), stored)
    }
}

impl BlobHeader {
    /// What of it is encrypted with the blob: all but magic and checksums.
    fn said(&self) -> &[u8] {
        self.as_bytes().get(4..48).unwrap_or_default()
    }
}

/// A pack that is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pack {
    pub(super) id: Id,
    pub(super) len: u64,
    pub(super) salt: Salt,
}

/// A pack being filled.
#[derive(Debug)]
pub(super) struct Filling {
    keys: PackKeys,
    bytes: Vec<u8>,
    blobs: Vec<Blob>,
}

impl Filling {
    pub(super) fn new(store: [u8; 16], keys: PackKeys) -> Self {
        let mut header = PackHeader {
            magic: MAGIC,
            version: VERSION.into(),
            flags: u16::from(keys.are_there()).into(),
            crc: 0.into(),
            store,
            salt: keys.salt,
        };
        header.crc = crc32c::crc32c(header.as_bytes()).into();
        // As much as it will take: growing would copy it all, again and again.
        let mut bytes = Vec::with_capacity(FULL + (1 << 20));
        bytes.extend_from_slice(header.as_bytes());
        Self { keys, bytes, blobs: Vec::new() }
    }

    /// Adds a blob of at most 4 MiB, stored and plain, and encrypts it if the store is encrypted.
    ///
    /// # Errors
    /// As [`PackKeys::encrypt`].
    pub(super) fn add(
        &mut self,
        kind: BlobKind,
        id: Id,
        encoding: Encoding,
        plain: u32,
        stored: &[u8],
    ) -> Result<()> {
        // A pack is closed long before it has 4 GiB.
        let at = (self.bytes.len() + BLOB_HEADER) as u32;
        let len = stored.len() as u32 + self.keys.overhead();
        let blob = Blob { id, kind, at, stored: len, plain, encoding };
        let mut header = blob.header();
        let start = self.bytes.len();
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(stored);
        // Where it lies, so that it is not copied once more.
        let (before, stored) = self.bytes.split_at_mut(start + BLOB_HEADER);
        let tag = self.keys.encrypt(&id, at, header.said(), stored)?;
        let tag = tag.as_ref().map_or(&[][..], |tag| tag);
        header.stored_crc = crc32c::crc32c_append(crc32c::crc32c(stored), tag).into();
        header.header_crc = crc32c::crc32c(header.as_bytes()).into();
        if let Some(place) = before.last_chunk_mut::<BLOB_HEADER>() {
            *place = zerocopy::transmute!(header);
        }
        self.bytes.extend_from_slice(tag);
        self.blobs.push(blob);
        Ok(())
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes.len() >= FULL
    }

    pub(super) fn is_empty(&self) -> bool {
        self.blobs.is_empty()
    }

    /// What it is to be stored as, its bytes, and what is in it.
    pub(super) fn finish(self) -> (Pack, Vec<u8>, Vec<Blob>) {
        let Self { keys, bytes, blobs } = self;
        let pack = Pack { id: Id::of_object(&bytes), len: bytes.len() as u64, salt: keys.salt };
        (pack, bytes, blobs)
    }
}

/// Bytes that a blob takes of a pack.
pub(super) fn room(blob: &Blob) -> u64 {
    BLOB_HEADER as u64 + u64::from(blob.stored)
}

/// The salt of a pack, and what is in it by the headers of its blobs; the pack of another store is refused.
pub(super) fn scan(bytes: &[u8], store: [u8; 16], keys: &Keys) -> Result<(Salt, Vec<Blob>), Cause> {
    let header: &PackHeader = wire::record(bytes, 0).ok_or(Cause::Magic)?;
    if header.magic != MAGIC || header.store != store {
        return Err(Cause::Magic);
    }
    if header.version.get() != VERSION {
        return Err(Cause::Version(header.version.get()));
    }
    let summed = PackHeader { crc: 0.into(), ..*header };
    if crc32c::crc32c(summed.as_bytes()) != header.crc.get() {
        return Err(Cause::Seal);
    }
    match (header.flags.get(), keys.are_there()) {
        (0, false) | (ENCRYPTED, true) => {}
        (0, true) => return Err(Cause::Unprotected),
        (ENCRYPTED, false) => return Err(Cause::Protected),
        (unknown, _) => return Err(Cause::Flags(unknown)),
    }
    let salt = header.salt;
    let mut blobs = Vec::new();
    let mut at = PACK_HEADER;
    while at < bytes.len() {
        let blob = blob_at(bytes, at).map_err(|what| Cause::PackBlob { at: at as u64, what })?;
        at += BLOB_HEADER + blob.stored as usize;
        blobs.push(blob);
    }
    Ok((salt, blobs))
}

/// What is whole of a damaged pack by the headers of its blobs, wherever they begin.
pub(super) fn salvage(bytes: &[u8]) -> Vec<Blob> {
    let mut blobs = Vec::new();
    let mut at = 0;
    while let Some(rest) = bytes.get(at..) {
        let Some(next) = rest.windows(BLOB.len()).position(|window| window == BLOB) else { break };
        at += next;
        match blob_at(bytes, at) {
            Ok(blob) => {
                at += BLOB_HEADER + blob.stored as usize;
                blobs.push(blob);
            }
            Err(_) => at += 1,
        }
    }
    blobs
}

/// The salt of a pack that is there only in part, if its header is whole.
pub(super) fn salt(bytes: &[u8]) -> Option<Salt> {
    let header: &PackHeader = wire::record(bytes, 0)?;
    let summed = PackHeader { crc: 0.into(), ..*header };
    (crc32c::crc32c(summed.as_bytes()) == header.crc.get()).then_some(header.salt)
}

/// The blob whose header is at `at`.
fn blob_at(bytes: &[u8], at: usize) -> Result<Blob, &'static str> {
    let header: &BlobHeader = wire::record(bytes, at).ok_or("is cut short")?;
    if header.magic != BLOB {
        return Err("does not begin as one");
    }
    let summed = BlobHeader { header_crc: 0.into(), ..*header };
    if crc32c::crc32c(summed.as_bytes()) != header.header_crc.get() {
        return Err("its header does not match its checksum");
    }
    if header.zero.get() != 0 {
        return Err("a field that should be zero is not");
    }
    let kind = match header.kind {
        1 => BlobKind::Block,
        2 => BlobKind::Page,
        _ => return Err("is of no known kind"),
    };
    let encoding = match header.encoding {
        0 => Encoding::Plain,
        1 => Encoding::Zstd,
        _ => return Err("is in no known encoding"),
    };
    let start = at + BLOB_HEADER;
    let stored = bytes.get(start..).and_then(|rest| rest.get(..header.stored.get() as usize));
    let stored = stored.ok_or("is cut short")?;
    if crc32c::crc32c(stored) != header.stored_crc.get() {
        return Err("does not match its checksum");
    }
    Ok(Blob {
        id: header.id,
        kind,
        at: u32::try_from(start).map_err(|_| "lies beyond 4 GiB")?,
        stored: header.stored.get(),
        plain: header.plain.get(),
        encoding,
    })
}
