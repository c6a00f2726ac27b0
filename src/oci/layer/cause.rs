//! Everything that is wrong with an index, or with an entry that is to go into one, exactly.

use thiserror::Error;

use crate::error::{Error, Kind};

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum Cause {
    #[error("no layer index")]
    Magic,
    #[error("layer index of version {0}, which another strata wrote")]
    Version(u32),
    #[error("header of a layer index is damaged")]
    HeaderChecksum,
    #[error("header of a layer index: {0}")]
    Header(&'static str),
    #[error("{0} of a layer index at {1:#x}, {2} bytes long, lies beyond the end at {3:#x}")]
    Section(&'static str, u64, u64, u64),
    #[error("{0} of a layer index are damaged")]
    SectionChecksum(&'static str),
    #[error("list of entries ends early or cannot be decoded")]
    List,
    #[error("list of entries goes on after the last one")]
    ListLong,
    #[error("number of more than 64 bits in the list of entries")]
    Number,
    #[error("{0} {1} does not fit its field")]
    Field(&'static str, u64),
    #[error("unknown kind of entry {0}")]
    Kind(u8),
    #[error("path shares {0} bytes with one of {1}")]
    Shared(u64, usize),
    #[error("path is not in its plain form")]
    Path,
    #[error("set of attributes {0} was not told before")]
    Attributes(u64),
    #[error("attributes are not in order")]
    AttributeOrder,
    #[error("path of {0} bytes, more than {1}")]
    PathLength(u64, usize),
    #[error("name of {0} bytes, more than 255")]
    NameLength(usize),
    #[error("zero byte in a name")]
    ZeroByte,
    #[error("symbolic link to a target of {0} bytes, not 1 to 4095")]
    Target(u64),
    #[error("contents of {0} bytes in what is no regular file")]
    Contents(u64),
    #[error(
        "piece of {len} bytes at {at:#x}, out of order or past the end of the file at {size:#x}"
    )]
    Run { at: u64, len: u64, size: u64 },
    #[error("piece of {len} bytes at {place:#x} passes the end of the tar at {end:#x}")]
    Place { place: u64, len: u64, end: u64 },
    #[error("{0} nanoseconds")]
    Nanos(u32),
    #[error("more than {0} {1}")]
    Budget(u64, &'static str),
}

impl From<Cause> for Error {
    fn from(cause: Cause) -> Self {
        let kind = match cause {
            Cause::Version(_) | Cause::NameLength(_) | Cause::PathLength(..) => Kind::Unsupported,
            _ => Kind::Corrupt,
        };
        Error::caused_by(kind, cause)
    }
}
