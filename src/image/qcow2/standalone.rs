//! A whole image, written once from its beginning to its end.
//!
//! Clusters come in the order of the disk. Behind the header and the L1 table lie the clusters of data as
//! they came, each L2 table behind what it refers to, and the refcounts behind all of that. The header is
//! written last: what was not finished is no qcow2.

use zerocopy::IntoBytes;

use super::header::{
    Compression, Fixed, MAGIC, MAX_L1_BYTES, MAX_REFCOUNT_TABLE_BYTES, Version3, incompatible,
};
use crate::block::{Storage, is_zero};
use crate::error::{Error, Kind, Result};

/// log2 of the bytes of a cluster: what `qemu-img` makes where it is not told, and every reader knows.
const CLUSTER_BITS: u32 = 16;
/// Bytes of a cluster.
pub const CLUSTER: u64 = 1 << CLUSTER_BITS;

/// Entries of an L2 table, and of a piece of the refcount table.
const PER_TABLE: u64 = CLUSTER / 8;
/// Counts of a refcount block.
const PER_BLOCK: u64 = CLUSTER / 2;

/// Of a plain cluster, what is zeros is not written in pieces of this size: the host then keeps no room
/// for it.
const GRAIN: usize = 4096;

const HEADER_LENGTH: u32 = 112;

/// Bit 63 of an entry: nothing else refers to the cluster.
const COPIED: u64 = 1 << 63;
/// Bit 62 of an entry: the cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// Where the number of further sectors begins in the entry of a compressed cluster.
const SECTORS_SHIFT: u32 = 62 - (CLUSTER_BITS - 8);

/// An image on its way into an empty storage.
#[derive(Debug)]
pub struct Standalone<'a> {
    storage: &'a dyn Storage,
    size: u64,
    compression: Option<Compression>,
    /// Where each L2 table is.
    l1: Vec<u64>,
    /// The L2 table that is being filled, by its number.
    table: Option<(usize, Box<[u64]>)>,
    /// How often each cluster of the file is referred to.
    counts: Vec<u16>,
    /// Where the next compressed cluster may go: behind the last one, if that does not end its cluster.
    behind: Option<u64>,
}

impl<'a> Standalone<'a> {
    /// Begins an image of a disk of `size` bytes, rounded up to whole sectors, whose clusters may be
    /// compressed as `compression` says.
    ///
    /// # Errors
    /// [`Kind::Usage`] for a disk that is too large.
    pub fn begin(
        storage: &'a dyn Storage,
        size: u64,
        compression: Option<Compression>,
    ) -> Result<Self> {
        let rounded = size.checked_next_multiple_of(512).filter(|&size| size <= i64::MAX as u64);
        let tables = rounded.map(|size| size.div_ceil(CLUSTER * PER_TABLE).max(1));
        let (Some(size), Some(tables)) = (rounded, tables.filter(|&n| n <= MAX_L1_BYTES / 8))
        else {
            return Err(Error::new(Kind::Usage, format!("a disk of {size} bytes is too large")));
        };
        let head = 1 + (tables * 8).div_ceil(CLUSTER);
        Ok(Self {
            storage,
            size,
            compression,
            l1: vec![0; tables as usize],
            table: None,
            counts: vec![1; head as usize],
            behind: None,
        })
    }

    /// Writes whole clusters from `guest` on as they are; only the last one of the disk may be shorter.
    ///
    /// # Errors
    /// The host's, and [`Kind::Usage`] if clusters do not come in order.
    pub fn put(&mut self, guest: u64, bytes: &[u8]) -> Result<()> {
        let clusters = (bytes.len() as u64).div_ceil(CLUSTER);
        let host = self.take(clusters, 1);
        let mut at = host;
        for run in bytes.chunks(GRAIN).collect::<Vec<_>>().chunk_by(|a, b| is_zero(a) == is_zero(b))
        {
            let len: usize = run.iter().map(|grain| grain.len()).sum();
            if run.first().is_some_and(|grain| !is_zero(grain)) {
                let from = (at - host) as usize;
                self.storage.write_at(at, bytes.get(from..from + len).unwrap_or_default())?;
            }
            at += len as u64;
        }
        for nth in 0..clusters {
            self.set(guest / CLUSTER + nth, (host + nth * CLUSTER) | COPIED)?;
        }
        Ok(())
    }

    /// Writes the cluster at `guest`, of which `stream` is the compressed form, shorter than a cluster.
    ///
    /// # Errors
    /// As [`Standalone::put`].
    pub fn put_compressed(&mut self, guest: u64, stream: &[u8]) -> Result<()> {
        let len = stream.len() as u64;
        if len == 0 || len >= CLUSTER || self.compression.is_none() {
            return Err(Error::new(Kind::Usage, "no compressed cluster of this image"));
        }
        let end = self.end();
        let begun = self.behind.filter(|behind| {
            let rest = behind.next_multiple_of(CLUSTER);
            behind + len <= rest || rest == end
        });
        let at = begun.unwrap_or(end);
        let missing = (at + len).saturating_sub(end).div_ceil(CLUSTER);
        self.take(missing, 0);
        let last = at + len - 1;
        for count in
            self.counts.iter_mut().take((last / CLUSTER + 1) as usize).skip((at / CLUSTER) as usize)
        {
            // At most one for each byte of a cluster.
            *count += 1;
        }
        self.storage.write_at(at, stream)?;
        self.behind = Some(at + len).filter(|behind| !behind.is_multiple_of(CLUSTER));
        let sectors = last / 512 - at / 512;
        self.set(guest / CLUSTER, COMPRESSED | sectors << SECTORS_SHIFT | at)
    }

    /// Writes what is left: tables, refcounts, header. The image is on stable storage on return.
    ///
    /// # Errors
    /// The host's, and [`Kind::Unsupported`] if the file has become too large for a qcow2.
    pub fn finish(mut self) -> Result<()> {
        self.put_table()?;
        self.storage.write_at(CLUSTER, &big_endian(&self.l1))?;
        let used = self.counts.len() as u64;
        let (mut blocks, mut table) = (1, 1);
        while PER_BLOCK * blocks < used + blocks + table || PER_TABLE * table < blocks {
            blocks = (used + blocks + table).div_ceil(PER_BLOCK);
            table = blocks.div_ceil(PER_TABLE);
        }
        if table * CLUSTER > MAX_REFCOUNT_TABLE_BYTES {
            return Err(Error::new(Kind::Unsupported, "an image of more than 2 PiB"));
        }
        let refcounts = self.take(table + blocks, 1);
        let first = refcounts + table * CLUSTER;
        let places: Vec<u64> = (0..blocks).map(|nth| first + nth * CLUSTER).collect();
        self.storage.write_at(refcounts, &big_endian(&places))?;
        for (counts, place) in self.counts.chunks(PER_BLOCK as usize).zip(places) {
            let bytes: Vec<u8> = counts.iter().flat_map(|count| count.to_be_bytes()).collect();
            self.storage.write_at(place, &bytes)?;
        }
        self.storage.set_len(self.end())?;
        self.put_header(refcounts, table)?;
        self.storage.sync()
    }

    fn put_header(&self, refcounts: u64, table: u64) -> Result<()> {
        let zstd = self.compression == Some(Compression::Zstd);
        let fixed = Fixed {
            magic: MAGIC,
            version: 3.into(),
            backing_file_offset: 0.into(),
            backing_file_size: 0.into(),
            cluster_bits: CLUSTER_BITS.into(),
            size: self.size.into(),
            crypt_method: 0.into(),
            l1_size: (self.l1.len() as u32).into(),
            l1_table_offset: CLUSTER.into(),
            refcount_table_offset: refcounts.into(),
            refcount_table_clusters: (table as u32).into(),
            nb_snapshots: 0.into(),
            snapshots_offset: 0.into(),
        };
        let version3 = Version3 {
            incompatible_features: if zstd { incompatible::COMPRESSION_TYPE } else { 0 }.into(),
            compatible_features: 0.into(),
            autoclear_features: 0.into(),
            refcount_order: 4.into(),
            header_length: HEADER_LENGTH.into(),
        };
        let mut bytes = fixed.as_bytes().to_vec();
        bytes.extend(version3.as_bytes());
        bytes.push(u8::from(zstd));
        // Padding, and the end of the extensions, of which there is none.
        bytes.resize(HEADER_LENGTH as usize + 8, 0);
        self.storage.write_at(0, &bytes)
    }

    /// Where the file ends, in bytes.
    fn end(&self) -> u64 {
        self.counts.len() as u64 * CLUSTER
    }

    /// Takes clusters at the end of the file, which are referred to so often.
    fn take(&mut self, clusters: u64, count: u16) -> u64 {
        let host = self.end();
        self.counts.resize(self.counts.len() + clusters as usize, count);
        host
    }

    /// Puts the entry of a cluster of the disk into its table.
    fn set(&mut self, cluster: u64, entry: u64) -> Result<()> {
        let number = (cluster / PER_TABLE) as usize;
        if self.table.as_ref().is_none_or(|(current, _)| *current != number) {
            self.put_table()?;
            let free = self.l1.get(number).is_some_and(|&place| place == 0);
            if !free {
                return Err(Error::new(Kind::Usage, "clusters of an image out of order"));
            }
            self.table = Some((number, vec![0; PER_TABLE as usize].into()));
        }
        if let Some((_, table)) = &mut self.table
            && let Some(slot) = table.get_mut((cluster % PER_TABLE) as usize)
        {
            *slot = entry;
        }
        Ok(())
    }

    /// Writes the table that is being filled.
    fn put_table(&mut self) -> Result<()> {
        let Some((number, table)) = self.table.take() else { return Ok(()) };
        let host = self.take(1, 1);
        self.storage.write_at(host, &big_endian(&table))?;
        if let Some(slot) = self.l1.get_mut(number) {
            *slot = host | COPIED;
        }
        Ok(())
    }
}

fn big_endian(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
}

#[cfg(test)]
mod tests;
