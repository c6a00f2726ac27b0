//! Everything that is wrong with a table of contents, or with what it leads to, exactly.

use thiserror::Error;

use crate::error::{Error, Kind};
use crate::oci::Digest;

/// Why a layer cannot be read by its table of contents, or a chunk of it not given out.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum Cause {
    #[error("annotation {name} is \"{value}\"")]
    Annotation { name: &'static str, value: String },
    #[error("annotations name both an eStargz and a zstd:chunked table of contents")]
    TwoTables,
    #[error("no eStargz footer at the end of the blob")]
    Footer,
    #[error("table of contents at {at:#x}, {len} bytes long, lies beyond the end at {end:#x}")]
    Place { at: u64, len: u64, end: u64 },
    #[error("table of contents of {len} bytes, more than {most}")]
    TooLong { len: u64, most: u64 },
    #[error("table of contents cannot be decompressed: {0}")]
    Decompress(String),
    #[error("table of contents is {found} bytes long, not {named}")]
    Length { named: u64, found: u64 },
    #[error("no tar header of stargz.index.json where the table of contents begins")]
    Member,
    #[error("table of contents has digest {found}, the manifest says {named}")]
    Digest { named: Digest, found: Digest },
    #[error("table of contents is not the JSON it should be: {0}")]
    Json(String),
    #[error("table of contents of version {0}")]
    Version(u64),
    #[error("an entry of the table of contents takes more than {0} bytes")]
    Entry(u64),
    #[error("type \"{0}\"")]
    Type(String),
    #[error("{field} {value}")]
    Number { field: &'static str, value: i64 },
    #[error("time \"{0}\"")]
    Time(String),
    #[error("attribute \"{0}\" is not in base64")]
    Attribute(String),
    #[error("a name that is not UTF-8, which the table of contents cannot tell")]
    Name,
    #[error("\"{0}\" is no SHA-256")]
    ChunkDigest(String),
    #[error("chunk of no file")]
    Stray,
    #[error("chunk at {found:#x} of the file where {wanted:#x} should follow")]
    Order { wanted: u64, found: u64 },
    #[error("chunks end at {filled:#x} of {size:#x} bytes")]
    Gap { filled: u64, size: u64 },
    #[error("chunk at {at:#x} of the blob, which the one before goes on to {before:#x}")]
    Overlap { at: u64, before: u64 },
    #[error("chunk from {at:#x} to {end:#x} of the blob, whose files end at {limit:#x}")]
    Outside { at: u64, end: u64, limit: u64 },
    #[error("chunk of {len} bytes, more than {most}")]
    ChunkLength { len: u64, most: u64 },
    #[error("more than {0} {1}")]
    Budget(u64, &'static str),
    #[error("ztoc: nothing that could be there at {0:#x}")]
    FlatBuffer(usize),
    #[error("ztoc: {0} bytes are no list of checkpoints")]
    Checkpoints(usize),
    #[error("ztoc: checkpoint {0} is out of order or lies outside")]
    Checkpoint(usize),
    #[error("ztoc: {digests} digests of spans between {checkpoints} checkpoints")]
    SpanCount { digests: usize, checkpoints: usize },
    #[error("a sparse file, whose pieces a ztoc does not tell")]
    Sparse,
    #[error("the tar has no header at {at:#x} of the file that its ztoc tells of")]
    Headers { at: u64 },
    #[error("table of chunks is damaged at {0}")]
    Table(usize),
    #[error("chunk at {at:#x} of the blob cannot be decompressed: {why}")]
    Chunk { at: u64, why: String },
    #[error("chunk at {at:#x} of the blob has digest {found}, its table of contents says {named}")]
    Contents { at: u64, named: Digest, found: Digest },
}

impl From<Cause> for Error {
    fn from(cause: Cause) -> Self {
        let kind = match cause {
            Cause::Version(_)
            | Cause::Name
            | Cause::Sparse
            | Cause::Budget(..)
            | Cause::ChunkLength { .. }
            | Cause::TooLong { .. } => Kind::Unsupported,
            _ => Kind::Corrupt,
        };
        Error::caused_by(kind, cause)
    }
}
