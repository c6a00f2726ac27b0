//! Small qcow2 images made by hand.

use std::io::Write;
use std::sync::Arc;

use flate2::Compression as Level;
use flate2::write::DeflateEncoder;
use zerocopy::big_endian::U64;
use zerocopy::{FromBytes, IntoBytes};

use super::super::header::{Fixed, Version3};
use super::super::snapshot::Entry;
use super::super::*;
use crate::block::{Cache, MemorySource};
use crate::chain::Chain;

/// What one guest cluster is.
#[derive(Debug, Clone)]
pub(super) enum Content {
    /// Stored as it is, cut or padded to a cluster.
    Data(u8),
    /// Stored as this stream.
    Compressed(Vec<u8>),
    /// This L2 entry, and nothing stored.
    Entry(u64),
    /// Stored as it is, with this bitmap of subclusters.
    Subclusters(u8, u64),
    /// This L2 entry and bitmap.
    Extended(u64, u64),
}

/// An image in the making. Cluster 0 is the header, 1 the refcount table, 2 the L1 table, 3 the L2
/// table, 4 the snapshot table; data follows.
#[derive(Debug, Clone)]
pub(super) struct Builder {
    pub version: u32,
    pub cluster_bits: u32,
    pub size: u64,
    pub incompatible: u64,
    pub autoclear: u64,
    pub compression_type: Option<u8>,
    pub extensions: Vec<(u32, Vec<u8>)>,
    pub backing: Option<Vec<u8>>,
    pub clusters: Vec<(usize, Content)>,
    /// Id, name and whether the entry has extra data: they share the L1 table of the disk.
    pub snapshots: Vec<(&'static str, &'static str, bool)>,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            version: 3,
            cluster_bits: 12,
            size: 16 << 12,
            incompatible: 0,
            autoclear: 0,
            compression_type: None,
            extensions: Vec::new(),
            backing: None,
            clusters: Vec::new(),
            snapshots: Vec::new(),
        }
    }
}

pub(super) const L1: u64 = 2;
pub(super) const L2: u64 = 3;
pub(super) const SNAPSHOTS: u64 = 4;
pub(super) const DATA: u64 = 5;

impl Builder {
    pub(super) fn with(clusters: Vec<(usize, Content)>) -> Self {
        Self { clusters, ..Self::default() }
    }

    pub(super) fn cluster(&self) -> usize {
        1 << self.cluster_bits
    }

    pub(super) fn build(&self) -> Vec<u8> {
        let cluster = self.cluster();
        let mut bytes = vec![0; cluster * DATA as usize];
        let header_length = match (self.version, self.compression_type) {
            (2, _) => 72,
            (_, None) => 104,
            (_, Some(_)) => 112,
        };
        let mut area = Vec::new();
        for (kind, data) in &self.extensions {
            area.extend(kind.to_be_bytes());
            area.extend((data.len() as u32).to_be_bytes());
            area.extend(data);
            area.resize(area.len().next_multiple_of(8), 0);
        }
        area.extend([0; 8]);
        let backing_at = header_length + area.len();
        bytes[header_length..backing_at].copy_from_slice(&area);
        let backing = self.backing.clone().unwrap_or_default();
        bytes[backing_at..backing_at + backing.len()].copy_from_slice(&backing);
        let at = |number: u64| U64::new(number << self.cluster_bits);
        let fixed = Fixed {
            magic: *b"QFI\xfb",
            version: self.version.into(),
            backing_file_offset: if self.backing.is_some() { backing_at as u64 } else { 0 }.into(),
            backing_file_size: (backing.len() as u32).into(),
            cluster_bits: self.cluster_bits.into(),
            size: self.size.into(),
            crypt_method: 0.into(),
            l1_size: 1.into(),
            l1_table_offset: at(L1),
            refcount_table_offset: at(1),
            refcount_table_clusters: 1.into(),
            nb_snapshots: (self.snapshots.len() as u32).into(),
            snapshots_offset: if self.snapshots.is_empty() { 0.into() } else { at(SNAPSHOTS) },
        };
        bytes[..72].copy_from_slice(fixed.as_bytes());
        if self.version == 3 {
            let fields = Version3 {
                incompatible_features: self.incompatible.into(),
                compatible_features: 0.into(),
                autoclear_features: self.autoclear.into(),
                refcount_order: 4.into(),
                header_length: (header_length as u32).into(),
            };
            bytes[72..104].copy_from_slice(fields.as_bytes());
        }
        if let Some(kind) = self.compression_type {
            bytes[104] = kind;
        }
        put(&mut bytes, L1 << self.cluster_bits, L2 << self.cluster_bits | 1 << 63);
        self.put_snapshots(&mut bytes);
        // Standard clusters first: they must be aligned.
        let entry_size = if self.incompatible & 1 << 4 != 0 { 16 } else { 8 };
        let (packed, plain): (Vec<_>, Vec<_>) = self
            .clusters
            .iter()
            .partition(|(_, content)| matches!(content, Content::Compressed(_)));
        for (guest, content) in plain.into_iter().chain(packed) {
            let entry_at = (L2 << self.cluster_bits) + (guest * entry_size) as u64;
            let end = bytes.len() as u64;
            match content {
                Content::Data(byte) => {
                    put(&mut bytes, entry_at, end | 1 << 63);
                    if entry_size == 16 {
                        put(&mut bytes, entry_at + 8, u64::from(u32::MAX));
                    }
                    bytes.resize(bytes.len() + cluster, *byte);
                }
                Content::Compressed(stream) => {
                    let sectors = (end + stream.len() as u64 - 1) / 512 - end / 512;
                    let shift = 62 - (self.cluster_bits - 8);
                    put(&mut bytes, entry_at, 1 << 62 | sectors << shift | end);
                    bytes.extend(stream);
                }
                Content::Entry(entry) => put(&mut bytes, entry_at, *entry),
                Content::Subclusters(byte, bitmap) => {
                    put(&mut bytes, entry_at, end | 1 << 63);
                    put(&mut bytes, entry_at + 8, *bitmap);
                    bytes.resize(bytes.len() + cluster, *byte);
                }
                Content::Extended(entry, bitmap) => {
                    put(&mut bytes, entry_at, *entry);
                    put(&mut bytes, entry_at + 8, *bitmap);
                }
            }
        }
        bytes
    }

    fn put_snapshots(&self, bytes: &mut [u8]) {
        let mut at = (SNAPSHOTS << self.cluster_bits) as usize;
        for (id, name, sized) in &self.snapshots {
            let entry = Entry {
                l1_table_offset: (L1 << self.cluster_bits).into(),
                l1_size: 1.into(),
                id_str_size: (id.len() as u16).into(),
                name_size: (name.len() as u16).into(),
                date_sec: 1_700_000_000.into(),
                date_nsec: 5.into(),
                vm_clock_nsec: 0.into(),
                vm_state_size: 77.into(),
                extra_data_size: if *sized { 16 } else { 0 }.into(),
            };
            let mut record = entry.as_bytes().to_vec();
            if *sized {
                record.extend(99_u64.to_be_bytes());
                record.extend((self.size / 2).to_be_bytes());
            }
            record.extend(id.bytes().chain(name.bytes()));
            record.resize(record.len().next_multiple_of(8), 0);
            bytes[at..at + record.len()].copy_from_slice(&record);
            at += record.len();
        }
    }

    pub(super) fn image(&self) -> Image {
        open_bytes(self.build()).unwrap()
    }
}

pub(super) fn put(bytes: &mut [u8], at: u64, value: u64) {
    bytes[at as usize..at as usize + 8].copy_from_slice(&value.to_be_bytes());
}

/// The header's fields, to be changed in place.
pub(super) fn fixed(bytes: &mut [u8]) -> &mut Fixed {
    Fixed::mut_from_prefix(bytes).unwrap().0
}

/// The fields of version 3, to be changed in place.
pub(super) fn version3(bytes: &mut [u8]) -> &mut Version3 {
    Version3::mut_from_prefix(&mut bytes[72..]).unwrap().0
}

pub(super) fn open_bytes(bytes: Vec<u8>) -> Result<Image> {
    open(Arc::new(MemorySource::new(bytes)), "image")
}

/// The disk of `layer` alone.
pub(super) fn disk(layer: Qcow2) -> Chain {
    Chain::new(vec![Arc::new(layer)], Cache::new(0)).unwrap()
}

/// Reads one cluster's worth of bytes, which must all be the same.
#[track_caller]
pub(super) fn byte_at(disk: &Chain, at: u64, len: usize) -> Result<u8> {
    let mut buf = vec![0x5a; len];
    disk.read_at(at, &mut buf)?;
    assert!(buf.iter().all(|&byte| byte == buf[0]), "mixed bytes at {at:#x}");
    Ok(buf[0])
}

pub(super) fn deflate(data: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Level::default());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}
