//! What can be wrong with the objects of a store.

use thiserror::Error;

use super::id::Id;
use super::keys::KeyKind;
use super::objects::Object;
use super::signatures::PublicKey;
use crate::error::{Error, Kind};

/// Why an object is refused. Numbers are as they were found.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Cause {
    #[error("\"{0}\" is no id: 64 hexadecimal digits")]
    Id(String),
    #[error("begins with none of the marks of a store's objects")]
    Magic,
    #[error("version {0} of the format; this program knows 1")]
    Version(u16),
    #[error("is of kind {found}, not {expected}")]
    ObjectKind { found: u8, expected: u8 },
    #[error("flags {0:#x}, of which some are not known")]
    Flags(u16),
    #[error("is protected in a way that is not known: {0}")]
    Protection(u8),
    #[error(
        "is not protected by the store's keys, though the store is encrypted: it was not written by this store"
    )]
    Unprotected,
    #[error("is encrypted, though the store is not")]
    Protected,
    #[error("is encrypted, and no key was given")]
    NoKey,
    #[error("is not encrypted, though a key was given: another store may have taken its place")]
    NotEncrypted,
    #[error("this {} opens none of its keys ({tried} tried)", match kind { KeyKind::Passphrase => "passphrase", KeyKind::KeyFile => "key file" })]
    WrongKey { kind: KeyKind, tried: usize },
    #[error("has {0} keys: 32 are allowed")]
    Slots(usize),
    #[error(
        "Argon2id with {memory} KiB, {passes} passes and {lanes} lanes is more than is allowed, or nothing"
    )]
    Argon2 { memory: u32, passes: u32, lanes: u32 },
    #[error("is not signed, and only what a trusted key signed is opened")]
    Unsigned,
    #[error("is signed by no trusted key: by {}", list(.0))]
    SignedByOthers(Vec<PublicKey>),
    #[error("is no signature that {0} made of this snapshot of this store")]
    Signature(PublicKey),
    #[error("{what} at {at:#x}: is not what was encrypted there as {id}")]
    BlobSeal { what: Object, at: u64, id: Id },
    #[error("a field that should be zero is not, at {0:#x}")]
    NotZero(u64),
    #[error("has {found} bytes, where it says {said}")]
    Length { found: u64, said: u64 },
    #[error("does not match its checksum: it is not what was written")]
    Seal,
    #[error("is not what its name says: its bytes are those of {0}")]
    Name(Id),
    #[error("is not described as it should be: {0}")]
    Json(String),
    #[error("needs \"{0}\", which this program does not know")]
    Feature(String),
    #[error("blocks of {0} bytes: a power of two from 16 KiB to 4 MiB is allowed")]
    BlockSize(u64),
    #[error("{0} is in no index")]
    Missing(Id),
    #[error("{what} at {at:#x}: {found} does not decode to what {id} is")]
    Blob { what: Object, at: u64, found: &'static str, id: Id },
    #[error("page {page} of the index does not match its checksum")]
    IndexPage { page: u64 },
    #[error("page {page} of the index: {what}")]
    IndexEntry { page: u64, what: &'static str },
    #[error("{entries} entries and {packs} packs do not fit {len} bytes")]
    IndexSize { entries: u64, packs: u64, len: u64 },
    #[error("the blob at {at:#x}: {what}")]
    PackBlob { at: u64, what: &'static str },
    #[error("a map page of {0} bytes: whole ids, 1,024 at most")]
    MapPage(u64),
    #[error("a disk of {0} bytes is larger than any map")]
    DiskSize(u64),
}

fn list(keys: &[PublicKey]) -> String {
    keys.iter().map(PublicKey::to_string).collect::<Vec<_>>().join(", ")
}

impl From<Cause> for Error {
    fn from(cause: Cause) -> Self {
        let kind = match cause {
            Cause::Version(_) | Cause::Feature(_) => Kind::Unsupported,
            Cause::NoKey => Kind::Encrypted,
            Cause::WrongKey { .. } => Kind::Denied,
            Cause::NotEncrypted | Cause::Unsigned | Cause::SignedByOthers(_) => Kind::Refused,
            Cause::Id(_) | Cause::BlockSize(_) => Kind::Usage,
            _ => Kind::Corrupt,
        };
        Self::caused_by(kind, cause)
    }
}
