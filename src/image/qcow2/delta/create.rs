//! A new, empty overlay: header, refcount table, one refcount block, L1 table.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, RenameFlags};
use zerocopy::IntoBytes;

use super::super::extension::kind;
use super::super::header::{
    Fixed, LAZY_REFCOUNTS, MAGIC, MAX_BACKING_NAME, MAX_L1_BYTES, Version3, incompatible,
};
use super::geometry::Geometry;
use super::head::Head;
use crate::block::{FileStorage, Storage};
use crate::error::{Error, Kind, Result, ResultExt};

/// What a new delta is made for.
#[derive(Debug, Clone, Copy)]
pub struct NewDelta<'a> {
    /// Bytes of the disk, rounded up to whole sectors.
    pub size: u64,
    /// What lies below; `None` for an image that stands alone.
    pub backing: Option<Backing<'a>>,
}

/// How a delta names what lies below it.
#[derive(Debug, Clone, Copy)]
pub struct Backing<'a> {
    /// The file: absolute, or relative to the delta's folder; up to 1,023 bytes.
    pub name: &'a OsStr,
    /// Its format, by QEMU's name for it.
    pub format: &'a str,
}

/// How an image is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// log2 of the bytes of a cluster: 9 to 21, and at least 14 with subclusters.
    pub cluster_bits: u32,
    /// Whether a cluster has 32 subclusters.
    pub subclusters: bool,
}

impl Default for Shape {
    /// Clusters of 128 KiB in subclusters of 4 KiB, the pieces that guests and hosts write in:
    /// nothing of what lies below is ever copied for such a write. See `docs/delta.md`.
    fn default() -> Self {
        Self { cluster_bits: 17, subclusters: true }
    }
}

/// Makes the file at `path`, which must not be there; it is there in full or not at all.
pub(super) fn create(path: &Path, new: &NewDelta<'_>) -> Result<()> {
    let named = || path.display().to_string();
    if path.symlink_metadata().is_ok() {
        return Err(Error::new(Kind::Exists, "is there already").within(named()));
    }
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = path.file_name().ok_or_else(|| Error::new(Kind::Usage, "no file name"))?;
    let mut temporary = OsStr::new(".").to_owned();
    temporary.push(name);
    temporary.push(format!(".{}.new", std::process::id()));
    let temporary = folder.join(temporary);
    // What a process of the same number left behind when it was killed.
    let _ = std::fs::remove_file(&temporary);
    File::create_new(&temporary).within(named)?;
    let made = fill(&temporary, path, folder, new);
    if made.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    made
}

fn fill(temporary: &PathBuf, path: &Path, folder: &Path, new: &NewDelta<'_>) -> Result<()> {
    let storage = FileStorage::open(temporary)?;
    lay_out(&storage, new, Shape::default()).map_err(|e| e.within(path.display().to_string()))?;
    drop(storage);
    let renamed = match rustix::fs::renameat_with(CWD, temporary, CWD, path, RenameFlags::NOREPLACE)
    {
        // Some filesystems cannot: a hard link does not replace either.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            rustix::fs::linkat(CWD, temporary, CWD, path, AtFlags::empty())
                .and_then(|()| rustix::fs::unlink(temporary))
        }
        renamed => renamed,
    };
    renamed.map_err(io::Error::from).within(|| path.display().to_string())?;
    File::open(folder).and_then(|folder| folder.sync_all()).within(|| folder.display().to_string())
}

/// Writes an empty image to an empty `storage`; it is on stable storage on return.
pub(super) fn lay_out(storage: &dyn Storage, new: &NewDelta<'_>, shape: Shape) -> Result<()> {
    let least = if shape.subclusters { 14 } else { 9 };
    if !(least..=21).contains(&shape.cluster_bits) {
        return Err(Error::new(Kind::Usage, format!("clusters of 2^{} bytes", shape.cluster_bits)));
    }
    let geometry = Geometry { cluster_bits: shape.cluster_bits, extended: shape.subclusters };
    let cluster = geometry.cluster();
    let size = new.size.checked_next_multiple_of(512).filter(|&size| size <= i64::MAX as u64);
    let entries = size.map(|size| size.div_ceil(geometry.table_span()).max(1));
    let (Some(size), Some(entries)) = (size, entries.filter(|&n| n <= MAX_L1_BYTES / 8)) else {
        return Err(Error::new(Kind::Usage, format!("a disk of {} bytes is too large", new.size)));
    };
    let l1_clusters = (entries * 8).div_ceil(cluster);
    let clusters = 3 + l1_clusters;
    // As many refcount blocks as count the first clusters, themselves among them.
    let per_block = cluster / 2;
    let blocks = (clusters + clusters.div_ceil(per_block)).div_ceil(per_block);
    let l1 = 2 + blocks;
    let clusters = l1 + l1_clusters;

    let mut area = Vec::new();
    let name = new.backing.map_or(&[][..], |backing| backing.name.as_bytes());
    if let Some(backing) = new.backing {
        area.extend(kind::BACKING_FORMAT.to_be_bytes());
        area.extend((backing.format.len() as u32).to_be_bytes());
        area.extend(backing.format.as_bytes());
        area.resize(area.len().next_multiple_of(8), 0);
    }
    area.extend([0; 8]);
    let name_at = HEADER_LENGTH as usize + area.len();
    let room = cluster.saturating_sub(name_at as u64).min(MAX_BACKING_NAME);
    if name.len() as u64 > room {
        let message = format!("a backing file name of {} bytes; {room} fit", name.len());
        return Err(Error::new(Kind::Usage, message));
    }
    let extended = if shape.subclusters { incompatible::EXTENDED_L2 } else { 0 };
    let head = Head {
        fixed: Fixed {
            magic: MAGIC,
            version: 3.into(),
            backing_file_offset: if name.is_empty() { 0 } else { name_at as u64 }.into(),
            backing_file_size: (name.len() as u32).into(),
            cluster_bits: shape.cluster_bits.into(),
            size: size.into(),
            crypt_method: 0.into(),
            l1_size: (entries as u32).into(),
            l1_table_offset: (l1 * cluster).into(),
            refcount_table_offset: cluster.into(),
            refcount_table_clusters: 1.into(),
            nb_snapshots: 0.into(),
            snapshots_offset: 0.into(),
        },
        version3: Version3 {
            incompatible_features: extended.into(),
            compatible_features: LAZY_REFCOUNTS.into(),
            autoclear_features: 0.into(),
            refcount_order: 4.into(),
            header_length: HEADER_LENGTH.into(),
        },
    };
    storage.set_len(clusters * cluster)?;
    let table: Vec<u8> = (0..blocks).flat_map(|n| ((2 + n) * cluster).to_be_bytes()).collect();
    storage.write_at(cluster, &table)?;
    let counts: Vec<u8> = (0..clusters).flat_map(|_| [0, 1]).collect();
    storage.write_at(2 * cluster, &counts)?;
    let mut bytes = head.as_bytes().to_vec();
    // The compression type, zlib, and its padding.
    bytes.resize(HEADER_LENGTH as usize, 0);
    bytes.extend(area);
    bytes.extend(name);
    storage.write_at(0, &bytes)?;
    storage.sync()
}

const HEADER_LENGTH: u32 = 112;
