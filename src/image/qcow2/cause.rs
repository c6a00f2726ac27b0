//! Everything this reader finds wrong with a qcow2 image, exactly.

use thiserror::Error;

use crate::error::{Error, Kind};

/// What is wrong with a table the header points at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(super) enum Fault {
    /// It is not there at all.
    #[error("is missing")]
    Missing,
    /// More entries than QEMU itself would open.
    #[error("has {0} entries, more than the limit of {1}")]
    TooLarge(u64, u64),
    /// Fewer entries than the disk needs.
    #[error("has {0} entries, but the disk needs {1}")]
    TooSmall(u64, u64),
    /// It does not begin at a cluster boundary.
    #[error("at {0:#x} is not aligned to a cluster")]
    Misaligned(u64),
    /// It does not lie within the file.
    #[error("at {0:#x} lies beyond the end of the file at {1:#x}")]
    BeyondEnd(u64, u64),
}

/// Why an image, or a part of it, cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum Cause {
    #[error("no qcow2 signature")]
    Signature,
    #[error("header of {needed} bytes is cut short: the file has {len}")]
    HeaderCut { needed: u64, len: u64 },
    #[error("qcow2 version {0}")]
    Version(u32),
    #[error("cluster_bits is {0}, not 9 to 21")]
    ClusterBits(u32),
    #[error("header length is {0:#x}, less than version 3 has")]
    HeaderShort(u32),
    #[error("header length {0:#x} passes the first cluster")]
    HeaderLong(u32),
    #[error("backing file name at {0:#x} passes the first cluster")]
    BackingNameOffset(u64),
    #[error("backing file name of {0} bytes passes its limit of {1}")]
    BackingNameLength(u32, u64),
    #[error("incompatible features: {0}")]
    Features(String),
    #[error("extended L2 entries with cluster_bits {0}, less than 14")]
    SubclusterBits(u32),
    #[error("refcount order is {0}, more than 6")]
    RefcountOrder(u32),
    #[error("{0}")]
    Encryption(&'static str),
    #[error("encryption method {0}")]
    EncryptionMethod(u32),
    #[error("compression type {0}")]
    CompressionType(u8),
    #[error("compression type {0} without the feature bit that announces it")]
    CompressionBit(u8),
    #[error("compression type bit without a compression type")]
    CompressionMissing,
    #[error("virtual size {0:#x} is more than any disk can have")]
    Size(u64),
    #[error("header extension {kind:#x} at {offset:#x} claims {len:#x} bytes, {room:#x} are left")]
    ExtensionLength { kind: u32, offset: u64, len: u32, room: u64 },
    #[error("header extension {kind:#x} has {len} bytes, which is no length of it")]
    ExtensionSize { kind: u32, len: usize },
    #[error("{0} {1}")]
    Table(&'static str, Fault),
    #[error("external data file without a name")]
    DataFileName,
    #[error("snapshot table passes 32 MiB at entry {0}")]
    SnapshotTableSize(u32),
    #[error("entry {0} of the snapshot table is cut short by the end of the file")]
    SnapshotCut(u32),
    #[error("entry {index} of the snapshot table claims {len} bytes of extra data")]
    SnapshotExtra { index: u32, len: u32 },
    #[error("virtual size {size:#x} of snapshot {index} is more than any disk can have")]
    SnapshotSize { index: u32, size: u64 },
    #[error("{0} bitmaps, not 1 to 65535")]
    BitmapCount(u32),
    #[error("bitmap directory of {0} bytes is more than is listed")]
    BitmapDirectorySize(u64),
    #[error("entry {0} of the bitmap directory passes the directory's end")]
    BitmapCut(u32),
    #[error("granularity of bitmap {index} is 2^{bits}")]
    BitmapGranularity { index: u32, bits: u8 },
    #[error("L2 table for {guest:#x} at {host:#x} is not aligned to a cluster")]
    L2Misaligned { guest: u64, host: u64 },
    #[error("L2 table for {guest:#x} at {host:#x} lies beyond the end of the file")]
    L2BeyondEnd { guest: u64, host: u64 },
    #[error("cluster {guest:#x} at host offset {host:#x} is not aligned")]
    ClusterMisaligned { guest: u64, host: u64 },
    #[error("cluster {guest:#x} at host offset {host:#x} lies beyond the end of the file")]
    ClusterBeyondEnd { guest: u64, host: u64 },
    #[error("cluster {guest:#x} at offset {host:#x} of the data file, where it cannot be")]
    ClusterMoved { guest: u64, host: u64 },
    #[error("compressed cluster {guest:#x} in an image with an external data file")]
    CompressedOutside { guest: u64 },
    #[error("zero cluster {guest:#x} in a version 2 image")]
    ZeroInVersion2 { guest: u64 },
    #[error("subcluster bitmap {bitmap:#018x} of cluster {guest:#x} contradicts itself")]
    Subclusters { guest: u64, bitmap: u64 },
    #[error("cluster {guest:#x} at host offset {host:#x}, which is metadata")]
    ClusterOverMetadata { guest: u64, host: u64 },
    #[error("a cluster with {0} references")]
    RefcountLarge(u64),
    #[error("{what} at {host:#x} overlaps other clusters")]
    Overlap { what: &'static str, host: u64 },
    #[error("compressed cluster at host offset {host:#x} does not decompress: {why}")]
    Compressed { host: u64, why: &'static str },
}

impl Cause {
    /// What sort of failure this is to the rest of the program.
    fn kind(&self) -> Kind {
        match self {
            Cause::Encryption(_) => Kind::Encrypted,
            Cause::Version(_)
            | Cause::Features(_)
            | Cause::EncryptionMethod(_)
            | Cause::CompressionType(_)
            | Cause::BitmapDirectorySize(_) => Kind::Unsupported,
            _ => Kind::Corrupt,
        }
    }
}

impl From<Cause> for Error {
    fn from(cause: Cause) -> Self {
        Error::caused_by(cause.kind(), cause)
    }
}
