//! Everything the reader finds wrong with a tar, exactly.

use thiserror::Error as ThisError;

use crate::error::{Error, Kind};

/// Why a tar cannot be read on.
#[derive(Debug, Clone, PartialEq, Eq, ThisError)]
pub(super) enum Cause {
    #[error("the tar ends at {at:#x}, within {what}")]
    Cut { what: &'static str, at: u64 },
    #[error("the tar ends after a header that belongs to the next member")]
    Dangling,
    #[error("a block of zeros stands alone, and more follows: two of them end a tar")]
    LoneZeros,
    #[error("the checksum is not that of a header")]
    Checksum,
    #[error("{0} is no number that fits")]
    Number(&'static str),
    #[error("{what} of {len} bytes is longer than {limit}")]
    TooLong { what: &'static str, len: u64, limit: u64 },
    #[error("record at byte {0:#x} of the extended header is malformed")]
    Record(u64),
    #[error("record {0} of the extended header has a value that makes no sense")]
    Value(String),
    #[error("a zero byte in {0}")]
    Nul(&'static str),
    #[error("record {0} in a header for all members")]
    Global(String),
    #[error("sparse format {0}.{1}")]
    SparseVersion(u64, u64),
    #[error("the map of a sparse file {0}")]
    Sparse(SparseFault),
    #[error("members of type {:?}, {what}", char::from(*.flag))]
    Type { flag: u8, what: &'static str },
}

/// What is wrong with the map of a sparse file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ThisError)]
pub(super) enum SparseFault {
    #[error("does not tell the size of the file")]
    NoSize,
    #[error("goes back to {0:#x}")]
    Backwards(u64),
    #[error("goes on to {end:#x}, past the end of the file at {size:#x}")]
    BeyondEnd { end: u64, size: u64 },
    #[error("has {mapped:#x} bytes of data, {stored:#x} are stored")]
    Data { mapped: u64, stored: u64 },
    #[error("has more than {0} pieces")]
    Pieces(usize),
    #[error("is no list of numbers")]
    Malformed,
    #[error("is longer than what is stored of the file")]
    Cut,
}

impl From<Cause> for Error {
    fn from(cause: Cause) -> Self {
        let kind = match cause {
            Cause::Global(_) | Cause::SparseVersion(..) | Cause::Type { .. } => Kind::Unsupported,
            Cause::Cut { .. }
            | Cause::Dangling
            | Cause::LoneZeros
            | Cause::Checksum
            | Cause::Number(_)
            | Cause::TooLong { .. }
            | Cause::Record(_)
            | Cause::Value(_)
            | Cause::Nul(_)
            | Cause::Sparse(_) => Kind::Corrupt,
        };
        Error::caused_by(kind, cause)
    }
}

impl From<SparseFault> for Error {
    fn from(fault: SparseFault) -> Self {
        Cause::Sparse(fault).into()
    }
}
