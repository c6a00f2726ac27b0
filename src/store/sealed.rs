//! Small objects: a header, a payload, and a hash of both, which may be keyed (`docs/store-format.md`, "Sealed object").

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::VERSION;
use super::cause::Cause;
use super::id::ID;
use crate::wire;

const MAGIC: [u8; 8] = *b"STRATAST";

/// What a sealed object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Sealed {
    Config = 1,
    Index = 2,
    Record = 3,
    Lease = 4,
    Condemned = 5,
    Slot = 6,
    Signature = 7,
    Draft = 8,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U16,
    kind: u8,
    protection: u8,
    zero: U32,
    payload: U64,
    zero_too: U64,
}

/// Bytes before the payload.
pub(super) const HEADER: usize = size_of::<Header>();
const _: () = assert!(HEADER == 32);

/// Bytes of all but the payload.
pub(super) const AROUND: usize = HEADER + ID;

/// How an object is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Protection {
    /// Its seal is a hash that anybody can compute.
    None = 0,
    /// Its seal needs the store's keys.
    Authenticated = 1,
    /// The same, and its payload is encrypted.
    Encrypted = 2,
}

/// The header of an object with a payload of `len` bytes.
pub(super) fn header(kind: Sealed, protection: Protection, len: u64) -> [u8; HEADER] {
    let header = Header {
        magic: MAGIC,
        version: VERSION.into(),
        kind: kind as u8,
        protection: protection as u8,
        zero: 0.into(),
        payload: len.into(),
        zero_too: 0.into(),
    };
    zerocopy::transmute!(header)
}

/// An object, of which nothing is verified but that it begins as one.
pub(super) struct Parts<'a> {
    pub(super) header: &'a [u8],
    /// As it is stored.
    pub(super) payload: &'a [u8],
    pub(super) seal: [u8; ID],
}

/// The parts of an object.
pub(super) fn parts(bytes: &[u8]) -> Result<Parts<'_>, Cause> {
    let (sealed, seal) = bytes.split_last_chunk::<ID>().ok_or(Cause::Magic)?;
    let (header, payload) = sealed.split_at_checked(HEADER).ok_or(Cause::Magic)?;
    if !header.starts_with(&MAGIC) {
        return Err(Cause::Magic);
    }
    Ok(Parts { header, payload, seal: *seal })
}

/// How an object that begins with `bytes` says that it is protected.
pub(super) fn protection(bytes: &[u8]) -> Result<Protection, Cause> {
    let header: &Header = wire::record(bytes, 0).ok_or(Cause::Magic)?;
    match header.protection {
        0 => Ok(Protection::None),
        1 => Ok(Protection::Authenticated),
        2 => Ok(Protection::Encrypted),
        unknown => Err(Cause::Protection(unknown)),
    }
}

/// Bytes of the payload of an object of `len` bytes that begins with `bytes`. Its seal is not looked at.
pub(super) fn payload_len(kind: Sealed, bytes: &[u8], len: u64) -> Result<u64, Cause> {
    let header: &Header = wire::record(bytes, 0).ok_or(Cause::Magic)?;
    if header.magic != MAGIC {
        return Err(Cause::Magic);
    }
    if header.version.get() != VERSION {
        return Err(Cause::Version(header.version.get()));
    }
    if header.kind != kind as u8 {
        return Err(Cause::ObjectKind { found: header.kind, expected: kind as u8 });
    }
    if header.zero.get() != 0 || header.zero_too.get() != 0 {
        return Err(Cause::NotZero(12));
    }
    let said = header.payload.get().saturating_add(AROUND as u64);
    if said != len {
        return Err(Cause::Length { found: len, said });
    }
    Ok(header.payload.get())
}
