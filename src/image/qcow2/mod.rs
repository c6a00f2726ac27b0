//! qcow2: versions 2 and 3 to read; `delta` and `standalone`, version 3 to write.
//!
//! Specification: `docs/interop/qcow2.rst` in QEMU; limits are QEMU's. Each structure of it has a
//! file here: `header`, `extension`, `snapshot` (the snapshot table), `bitmap` (the bitmap
//! directory), `layer` (L1 and L2 tables), `compression`; `cause` lists what can be wrong.
//!
//! Nothing is opened here but the source that is handed in: the names of the backing file and of
//! the external data file are given back, for the caller to open or to refuse.

mod bitmap;
mod cause;
mod compression;
mod delta;
mod extension;
mod header;
mod layer;
mod snapshot;
mod standalone;

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use cause::Cause;
use extension::Extensions;
use header::{Header, incompatible};
use layer::View;
use snapshot::Snapshot;

use super::{BitmapInfo, Qcow2Info, SnapshotInfo};
use crate::block::BlockSource;
use crate::chain::ParentLocator;
use crate::error::{Error, Kind, Result};

pub use compression::compress;
pub use delta::{Backing, Delta, NewDelta, Shape};
pub use header::Compression;
pub use layer::Qcow2;
pub use standalone::{CLUSTER, Standalone};

/// Whether `head`, the first bytes of a file, are those of a qcow2 image.
pub(super) fn probe(head: &[u8]) -> bool {
    head.starts_with(&header::MAGIC)
}

/// A qcow2 image whose header has been read and checked.
#[derive(Debug)]
pub struct Image {
    name: String,
    source: Arc<dyn BlockSource>,
    header: Header,
    extensions: Extensions,
    parent: Option<ParentLocator>,
}

/// Reads and checks the header of `source`; `name` is what messages call it.
///
/// # Errors
/// [`Kind::Corrupt`], [`Kind::Unsupported`] and [`Kind::Encrypted`] by what the header says, or the
/// host's.
pub fn open(source: Arc<dyn BlockSource>, name: impl Into<String>) -> Result<Image> {
    let name = name.into();
    Image::read(source, name.clone()).map_err(|error| error.within(name))
}

impl Image {
    fn read(source: Arc<dyn BlockSource>, name: String) -> Result<Self> {
        let header = Header::read(&*source)?;
        let (extensions, extensions_read) = Extensions::read(&*source, &header);
        header.check_features(|bit| extensions.feature_name(bit))?;
        extensions_read?;
        header.check_tables(source.len())?;
        let mut parent = None;
        if let Some((offset, len)) = header.backing_name()? {
            let mut bytes = vec![0; len];
            let end = offset + len as u64;
            if end > source.len() {
                return Err(Cause::HeaderCut { needed: end, len: source.len() }.into());
            }
            source.read_at(offset, &mut bytes)?;
            parent = Some(ParentLocator {
                name: OsString::from_vec(bytes),
                format: extensions.backing_format.clone(),
            });
        }
        Ok(Self { name, source, header, extensions, parent })
    }

    /// The backing file, as the image names it.
    pub fn parent(&self) -> Option<&ParentLocator> {
        self.parent.as_ref()
    }

    /// The name of the external data file, for an image that has one.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if it has one and does not name it.
    pub fn data_file(&self) -> Result<Option<OsString>> {
        if !self.header.has_data_file() {
            return Ok(None);
        }
        match &self.extensions.data_file {
            Some(name) if !name.is_empty() => Ok(Some(OsString::from_vec(name.clone()))),
            _ => Err(self.told(Cause::DataFileName)),
        }
    }

    /// Size of the disk as it is now, in bytes.
    pub fn virtual_size(&self) -> u64 {
        self.header.size
    }

    /// What an operator should know before trusting the disk.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.header.incompatible & incompatible::CORRUPT != 0 {
            warnings.push(format!("{}: marked corrupt; what can be read is shown", self.name));
        }
        if self.header.incompatible & incompatible::DIRTY != 0 {
            warnings.push(format!(
                "{}: marked dirty: it is in use or was not closed (its data is read as it stands)",
                self.name
            ));
        }
        warnings
    }

    /// The internal snapshots, in the order of the table.
    ///
    /// # Errors
    /// [`Kind::Corrupt`], or the host's.
    pub fn snapshots(&self) -> Result<Vec<SnapshotInfo>> {
        Ok(self.snapshot_table()?.into_iter().map(|snapshot| snapshot.info).collect())
    }

    fn snapshot_table(&self) -> Result<Vec<Snapshot>> {
        snapshot::read_table(&*self.source, &self.header)
            .map(|(snapshots, _)| snapshots)
            .map_err(|error| error.within(self.name.clone()))
    }

    /// The bitmaps the image carries; their contents are not read.
    ///
    /// # Errors
    /// [`Kind::Corrupt`], [`Kind::Unsupported`] for a directory too large to list, or the host's.
    pub fn bitmaps(&self) -> Result<Vec<BitmapInfo>> {
        let Some(extension) = &self.extensions.bitmaps else { return Ok(Vec::new()) };
        let consistent = self.header.autoclear & header::BITMAPS != 0;
        let cluster_size = self.header.cluster_size();
        bitmap::read_directory(&*self.source, extension, cluster_size, consistent)
            .map_err(|error| error.within(self.name.clone()))
    }

    /// What the header says, for a person; without the bitmaps.
    pub fn info(&self) -> Qcow2Info {
        let header = &self.header;
        let set = |bits: u64, bit: u64| bits & bit != 0;
        Qcow2Info {
            version: header.version,
            cluster_size: header.cluster_size(),
            compression: match header.compression() {
                Ok(Compression::Zstd) => "zstd",
                Ok(Compression::Deflate) | Err(_) => "zlib",
            },
            extended_l2: header.extended_l2(),
            refcount_bits: 1 << header.refcount_order,
            lazy_refcounts: set(header.compatible, header::LAZY_REFCOUNTS),
            dirty: set(header.incompatible, incompatible::DIRTY),
            corrupt: set(header.incompatible, incompatible::CORRUPT),
            data_file: self
                .extensions
                .data_file
                .as_deref()
                .filter(|_| header.has_data_file())
                .map(|name| std::ffi::OsStr::from_bytes(name).to_string_lossy().into_owned()),
            data_file_raw: header.has_data_file() && set(header.autoclear, header::DATA_FILE_RAW),
            bitmaps: Vec::new(),
        }
    }

    /// The disk as a layer: as it is now, or as `snapshot` keeps it (an id or, if none has it, a
    /// name, as `qemu-img` looks it up). `data_file` is what [`Image::data_file`] names.
    ///
    /// # Errors
    /// [`Kind::NotFound`] for a snapshot that is not there, [`Kind::Corrupt`], or the host's.
    pub fn layer(
        &self,
        snapshot: Option<&str>,
        data_file: Option<Arc<dyn BlockSource>>,
    ) -> Result<Qcow2> {
        if self.header.has_data_file() != data_file.is_some() {
            return Err(self.told(Cause::DataFileName));
        }
        let header = &self.header;
        let view = match snapshot {
            None => View {
                l1_offset: header.l1_table_offset,
                l1_entries: header.l1_entries_for(header.size),
                size: header.size,
            },
            Some(wanted) => self.snapshot_view(wanted)?,
        };
        Qcow2::new(
            self.name.clone(),
            header,
            &view,
            self.parent.clone(),
            Arc::clone(&self.source),
            data_file,
        )
        .map_err(|error| error.within(self.name.clone()))
    }

    fn snapshot_view(&self, wanted: &str) -> Result<View> {
        let table = self.snapshot_table()?;
        let found = (table.iter().find(|snapshot| snapshot.info.id == wanted))
            .or_else(|| table.iter().find(|snapshot| snapshot.info.name == wanted));
        let Some(snapshot) = found else {
            let names: Vec<&str> =
                table.iter().take(20).map(|snapshot| snapshot.info.name.as_str()).collect();
            let error = Error::new(Kind::NotFound, format!("no snapshot \"{wanted}\""))
                .within(self.name.clone());
            return Err(if names.is_empty() {
                error.with_hint("the image has no internal snapshots")
            } else {
                error.with_hint(format!("it has: {}", names.join(", ")))
            });
        };
        let size = snapshot.info.virtual_size;
        let entries = self.header.l1_entries_for(size);
        // An entry that does not say its disk's size gets the size of now, which may have grown:
        // what its table does not reach was not allocated then.
        let needed = if snapshot.sized { entries } else { entries.min(snapshot.l1_size.into()) };
        let (offset, len) = (snapshot.l1_table_offset, self.source.len());
        self.header
            .check_l1("L1 table of the snapshot", offset, snapshot.l1_size, needed, len)
            .map_err(|error| error.within(self.name.clone()))?;
        Ok(View { l1_offset: offset, l1_entries: needed, size })
    }

    fn told(&self, cause: Cause) -> Error {
        Error::from(cause).within(self.name.clone())
    }
}

#[cfg(test)]
mod tests;
