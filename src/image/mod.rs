//! Disk image formats: each turns a source into a layer of a chain.

mod probe;
pub mod qcow2;
mod raw;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::error::{Error, Kind};

pub use probe::{Probed, examine, probe};
pub use raw::Raw;

/// A disk image format that can be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The disk as it is, byte for byte.
    Raw,
    /// QEMU's qcow2, versions 2 and 3.
    Qcow2,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        })
    }
}

impl FromStr for Format {
    type Err = Error;

    /// A format by its name.
    fn from_str(name: &str) -> Result<Self, Error> {
        match name {
            "raw" => Ok(Format::Raw),
            "qcow2" => Ok(Format::Qcow2),
            _ => Err(Error::new(Kind::Unsupported, format!("image format \"{name}\""))
                .with_hint("formats that can be opened: raw, qcow2")),
        }
    }
}

/// What is known of one image file of a chain.
#[derive(Debug, Clone, Serialize)]
pub struct ImageInfo {
    /// The file.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// Size of the disk it describes, in bytes.
    pub virtual_size: u64,
    /// Bytes the host stores for the file, holes left out.
    pub allocated: u64,
    /// The image below it, as it names it.
    pub backing: Option<String>,
    /// The format it says the image below has.
    pub backing_format: Option<String>,
    /// What only its format has.
    pub details: Details,
}

/// What only one format has.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Details {
    /// Nothing.
    Raw,
    /// The header of a qcow2 image.
    Qcow2(Qcow2Info),
}

/// What the header of a qcow2 image says.
#[derive(Debug, Clone, Serialize)]
pub struct Qcow2Info {
    /// 2 or 3.
    pub version: u32,
    /// Bytes of a cluster.
    pub cluster_size: u64,
    /// How compressed clusters are compressed: `zlib` or `zstd`.
    pub compression: &'static str,
    /// Whether clusters have subclusters.
    pub extended_l2: bool,
    /// Width of a reference count, in bits.
    pub refcount_bits: u32,
    /// Whether reference counts are brought up to date lazily.
    pub lazy_refcounts: bool,
    /// Whether it is in use or was not closed.
    pub dirty: bool,
    /// Whether QEMU found it damaged once.
    pub corrupt: bool,
    /// The external data file, as the image names it.
    pub data_file: Option<String>,
    /// Whether the data file is a raw image by itself.
    pub data_file_raw: bool,
    /// The dirty bitmaps it carries.
    pub bitmaps: Vec<BitmapInfo>,
}

/// A dirty bitmap stored in an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BitmapInfo {
    /// Its name.
    pub name: String,
    /// Bytes of disk one bit stands for.
    pub granularity: u64,
    /// Whether writes to the disk are recorded in it.
    pub enabled: bool,
    /// Whether it was saved properly.
    pub consistent: bool,
}

/// An internal snapshot of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnapshotInfo {
    /// Its id, unique in the image.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was taken: seconds since the epoch, and nanoseconds.
    pub created: (u64, u32),
    /// Size of its disk, in bytes.
    pub virtual_size: u64,
    /// Bytes of machine state saved with it; 0 for a snapshot of the disk alone.
    pub vm_state_size: u64,
}

/// A path as text: one that is not UTF-8 must not make the rest unprintable.
fn lossy<S: Serializer>(path: &std::path::Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

#[cfg(test)]
mod tests;
