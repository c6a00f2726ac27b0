//! Why a compressed stream was refused.

use thiserror::Error;

use super::inflate::Bad;
use crate::error::{Error, Kind};

/// What is wrong with a stream, or with what was remembered about it.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum Cause {
    // ---- deflate
    #[error("a deflate block of type 3")]
    BlockType,
    #[error("a stored block's length {len:#06x} does not match its complement {inverse:#06x}")]
    StoredLength { len: u16, inverse: u16 },
    #[error("a deflate block has more codes than there are symbols")]
    TooManyCodes,
    #[error("a deflate block repeats a code length before the first")]
    RepeatOfNothing,
    #[error("a deflate block has no code for its end")]
    NoEndOfBlock,
    #[error("a deflate block's {what} have more codes than fit")]
    Oversubscribed { what: &'static str },
    #[error("a deflate block's {what} leave codes without a symbol")]
    Incomplete { what: &'static str },
    #[error("a deflate block uses a code that its {0} do not have")]
    InvalidCode(&'static str),
    #[error("a deflate match reaches {distance} bytes back, before the start of the data")]
    DistanceTooFar { distance: usize },

    // ---- gzip
    #[error("the gzip header at {offset:#x} has the wrong magic")]
    GzipMagic { offset: u64 },
    #[error("the gzip header at {offset:#x} names compression method {method}")]
    GzipMethod { offset: u64, method: u8 },
    #[error("the gzip header at {offset:#x} sets reserved flags {flags:#04x}")]
    GzipFlags { offset: u64, flags: u8 },
    #[error("the gzip header at {offset:#x} does not match its CRC")]
    GzipHeaderCrc { offset: u64 },
    #[error(
        "the gzip member that ends at {offset:#x} has CRC {found:#010x}, its trailer says {expected:#010x}"
    )]
    GzipCrc { offset: u64, found: u32, expected: u32 },
    #[error(
        "the gzip member that ends at {offset:#x} has {found:#x} bytes modulo 2^32, its trailer says {expected:#x}"
    )]
    GzipLength { offset: u64, found: u32, expected: u32 },

    // ---- zstd
    #[error("no zstd frame begins at {offset:#x}")]
    ZstdMagic { offset: u64 },
    #[error("the frame at {offset:#x} is of zstd {version}")]
    ZstdLegacy { offset: u64, version: &'static str },
    #[error("the zstd frame at {offset:#x} wants a window of more than {limit} bytes")]
    ZstdWindow { offset: u64, limit: u64 },
    #[error("the zstd frame at {offset:#x} needs dictionary {id}")]
    ZstdDictionary { offset: u64, id: u32 },
    #[error("the zstd frame at {offset:#x}: {message}")]
    Zstd { offset: u64, message: &'static str },

    // ---- what the others say
    #[error("{format}: {message}")]
    Stream { format: &'static str, message: String },

    // ---- any
    #[error("the compressed stream is cut off at {offset:#x}")]
    Cut { offset: u64 },
    #[error("the data inflates to more than {limit} bytes, which is no honest layer")]
    TooLong { limit: u64 },
    #[error("the data cannot be entered in the middle, and there is no side file to keep it in")]
    NoSide,
    #[error("the data that has to be kept in the side file takes more than {limit} bytes")]
    SideFull { limit: u64 },

    // ---- restart points
    #[error("not an index of restart points")]
    SpansMagic,
    #[error("restart points of version {0}")]
    SpansVersion(u16),
    #[error("the restart points do not match their checksum")]
    SpansChecksum,
    #[error("restart point {0} makes no sense")]
    BadSpan(usize),
    #[error("the index of restart points is {found} bytes long and should be {expected}")]
    SpansLength { found: u64, expected: u64 },
    #[error("the compressed data is {found} bytes long and was {expected} when it was indexed")]
    BlobLength { found: u64, expected: u64 },
    #[error("the side file is {found} bytes long and should be {expected}")]
    SideLength { found: u64, expected: u64 },
    #[error("a restart point leads into nothing")]
    BadRestart,
    #[error("the bytes at {offset:#x} are not what they were when they were indexed")]
    Hash { offset: u64 },
}

impl From<Cause> for Error {
    fn from(cause: Cause) -> Self {
        let hint = cause.hint();
        let error = Error::caused_by(cause.kind(), cause);
        match hint {
            Some(hint) => error.with_hint(hint),
            None => error,
        }
    }
}

impl Cause {
    fn kind(&self) -> Kind {
        match self {
            Self::ZstdLegacy { .. }
            | Self::ZstdDictionary { .. }
            | Self::NoSide
            | Self::SpansVersion(_)
            | Self::GzipMethod { .. } => Kind::Unsupported,
            Self::ZstdWindow { .. } | Self::TooLong { .. } | Self::SideFull { .. } => Kind::Refused,
            _ => Kind::Corrupt,
        }
    }

    /// What to do about it.
    fn hint(&self) -> Option<&'static str> {
        match self {
            Self::TooLong { .. } => Some("if it is meant to be so large, decompress it first"),
            Self::SideFull { .. } => Some("--layer-cache-size sets how much may be kept"),
            _ => None,
        }
    }

    /// A code of a deflate block that is none.
    pub(super) fn code(what: &'static str, bad: Bad) -> Self {
        match bad {
            Bad::Oversubscribed => Self::Oversubscribed { what },
            Bad::Incomplete => Self::Incomplete { what },
        }
    }
}
