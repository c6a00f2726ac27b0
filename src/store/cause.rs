//! What can be wrong with the objects of a store.

use thiserror::Error;

use super::id::Id;
use super::objects::Object;
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
    #[error("encoding {0}")]
    Encoding(u8),
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

impl From<Cause> for Error {
    fn from(cause: Cause) -> Self {
        let kind = match cause {
            Cause::Version(_) | Cause::Feature(_) => Kind::Unsupported,
            Cause::Id(_) | Cause::BlockSize(_) => Kind::Usage,
            _ => Kind::Corrupt,
        };
        Self::caused_by(kind, cause)
    }
}
