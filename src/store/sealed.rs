//! Small objects: a header, a payload, and the hash of both (`docs/store-format.md`, "Sealed object").

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::VERSION;
use super::cause::Cause;
use super::id::{ID, Id};
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
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U16,
    kind: u8,
    encoding: u8,
    zero: U32,
    payload: U64,
    zero_too: U64,
}

/// Bytes before the payload.
pub(super) const HEADER: usize = size_of::<Header>();
const _: () = assert!(HEADER == 32);

/// Bytes of all but the payload.
pub(super) const AROUND: usize = HEADER + ID;

/// The header of an object with a payload of `len` bytes.
pub(super) fn header(kind: Sealed, len: u64) -> [u8; HEADER] {
    let header = Header {
        magic: MAGIC,
        version: VERSION.into(),
        kind: kind as u8,
        encoding: 0,
        zero: 0.into(),
        payload: len.into(),
        zero_too: 0.into(),
    };
    zerocopy::transmute!(header)
}

/// The object that holds `payload`.
pub(super) fn seal(kind: Sealed, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(payload.len() + AROUND);
    bytes.extend_from_slice(&header(kind, payload.len() as u64));
    bytes.extend_from_slice(payload);
    let seal = Id::of_object(&bytes);
    bytes.extend_from_slice(&seal.0);
    bytes
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
    if header.encoding != 0 {
        return Err(Cause::Encoding(header.encoding));
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

/// The payload of an object.
pub(super) fn unseal(kind: Sealed, bytes: &[u8]) -> Result<&[u8], Cause> {
    // First, so that damage is told as such.
    let (sealed, seal) = bytes.split_last_chunk::<ID>().ok_or(Cause::Magic)?;
    if !bytes.starts_with(&MAGIC) {
        return Err(Cause::Magic);
    }
    if Id::of_object(sealed) != Id(*seal) {
        return Err(Cause::Seal);
    }
    payload_len(kind, bytes, bytes.len() as u64)?;
    Ok(sealed.get(HEADER..).unwrap_or_default())
}
