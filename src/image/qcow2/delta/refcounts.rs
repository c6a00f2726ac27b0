//! Reference counts and what follows from them: which clusters are free.
//!
//! They are kept in memory, 2 bytes a cluster, for those parts of the file that were looked at, and
//! written when the delta is closed: until then the file is marked dirty. A *chunk* is what one
//! refcount block of the file counts.

use std::ops::Range;

use super::super::cause::{Cause, Fault};
use super::super::header::{Header, MAX_REFCOUNT_TABLE_BYTES};
use super::super::layer::OFFSET_MASK;
use crate::block::Storage;
use crate::error::{Error, Kind, Result};

#[derive(Debug)]
enum Counts {
    /// As the block in the file says, or nothing if there is none.
    InFile,
    Held(Box<[u16]>),
}

#[derive(Debug)]
struct Chunk {
    counts: Counts,
    /// How many of the held counts are 0.
    free: usize,
    /// Where its block is in the file; 0: it has none.
    block: u64,
    /// Whether the file does not have these counts.
    dirty: bool,
}

impl Chunk {
    fn new() -> Self {
        Self { counts: Counts::InFile, free: 0, block: 0, dirty: false }
    }
}

/// Clusters that were free and are no longer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allocated {
    pub host: u64,
    pub clusters: u64,
    /// Whether nothing was ever written there: it reads as zeros.
    pub fresh: bool,
}

#[derive(Debug)]
pub(super) struct Refcounts {
    cluster_bits: u32,
    order: u32,
    table_offset: u64,
    table_clusters: u64,
    table_dirty: bool,
    chunks: Vec<Chunk>,
    /// The cluster behind the last that is in use or was.
    end: u64,
    /// From this cluster on the file has never been written.
    fresh: u64,
    /// No cluster before this one is free, unless its chunk was not looked at.
    cursor: u64,
}

impl Refcounts {
    /// Chunks that one allocation reads from the file before it takes room at the end instead.
    const READS: usize = 4;

    /// Counts that are all 0, for a file of `len` bytes.
    pub(super) fn zero(header: &Header, len: u64) -> Self {
        let mut refcounts = Self {
            cluster_bits: header.cluster_bits,
            order: header.refcount_order,
            table_offset: header.refcount_table_offset,
            table_clusters: u64::from(header.refcount_table_clusters),
            table_dirty: true,
            chunks: Vec::new(),
            end: len.div_ceil(header.cluster_size()),
            fresh: len.div_ceil(header.cluster_size()),
            cursor: 0,
        };
        let chunks = refcounts.end.div_ceil(refcounts.per_chunk()).min(Self::most_chunks());
        refcounts.chunks.resize_with(chunks as usize, || Chunk { dirty: true, ..Chunk::new() });
        refcounts
    }

    /// The counts the file has, of which only the table is read here.
    pub(super) fn read(header: &Header, storage: &dyn Storage) -> Result<Self> {
        let mut refcounts = Self::zero(header, storage.len()?);
        refcounts.table_dirty = false;
        refcounts.chunks.clear();
        for (index, block) in refcounts.read_table(storage)?.into_iter().enumerate() {
            if block & (header.cluster_size() - 1) != 0 {
                return Err(Cause::Table("refcount block", Fault::Misaligned(block)).into());
            }
            refcounts.put_block(index, block)?;
        }
        Ok(refcounts)
    }

    /// The offsets of the refcount blocks, without the unused end of the table.
    pub(super) fn read_table(&self, storage: &dyn Storage) -> Result<Vec<u64>> {
        let mut bytes = vec![0; (self.table_clusters << self.cluster_bits) as usize];
        storage.read_at(self.table_offset, &mut bytes)?;
        let mut blocks: Vec<u64> = bytes
            .chunks_exact(8)
            .map(|entry| entry.iter().fold(0, |value, &byte| value << 8 | u64::from(byte)))
            .map(|entry| entry & OFFSET_MASK)
            .collect();
        blocks.truncate(blocks.iter().rposition(|&block| block != 0).map_or(0, |last| last + 1));
        Ok(blocks)
    }

    /// The blocks of the file that hold counts.
    pub(super) fn blocks(&self) -> impl Iterator<Item = u64> {
        self.chunks.iter().map(|chunk| chunk.block).filter(|&block| block != 0)
    }

    /// Says that the block at `host` holds the counts of a chunk.
    pub(super) fn put_block(&mut self, index: usize, host: u64) -> Result<()> {
        self.chunk(index)?.block = host;
        Ok(())
    }

    fn per_chunk(&self) -> u64 {
        1 << (self.cluster_bits + 3 - self.order)
    }

    const fn most_chunks() -> u64 {
        MAX_REFCOUNT_TABLE_BYTES / 8
    }

    /// Where the file ends, in bytes, by the clusters that are or were in use.
    pub(super) fn end(&self) -> u64 {
        self.end << self.cluster_bits
    }

    /// The chunk of that number, which is made if there is none yet.
    fn chunk(&mut self, index: usize) -> Result<&mut Chunk> {
        if index as u64 >= Self::most_chunks() {
            let message = "the file cannot grow: its refcount table is as large as it may be";
            return Err(Error::new(Kind::NoSpace, message));
        }
        if self.chunks.len() <= index {
            self.chunks.resize_with(index + 1, Chunk::new);
        }
        self.chunks.get_mut(index).ok_or_else(|| Error::new(Kind::NoSpace, "no such chunk"))
    }

    /// The counts of a chunk, in memory from now on.
    fn hold(&mut self, index: usize, storage: &dyn Storage) -> Result<(&mut [u16], &mut usize)> {
        let (per_chunk, order, cluster) =
            (self.per_chunk() as usize, self.order, self.cluster_bits);
        let chunk = self.chunk(index)?;
        if matches!(chunk.counts, Counts::InFile) {
            let mut counts = vec![0; per_chunk].into_boxed_slice();
            if chunk.block != 0 && !chunk.dirty {
                let mut bytes = vec![0; 1 << cluster];
                if storage.read_at(chunk.block, &mut bytes)? < bytes.len() {
                    let fault = Fault::BeyondEnd(chunk.block, storage.len()?);
                    return Err(Cause::Table("refcount block", fault).into());
                }
                for (at, count) in counts.iter_mut().enumerate() {
                    let wide = width::get(&bytes, at, order);
                    *count = u16::try_from(wide).map_err(|_| Cause::RefcountLarge(wide))?;
                }
            }
            chunk.free = counts.iter().filter(|&&count| count == 0).count();
            chunk.counts = Counts::Held(counts);
        }
        match &mut chunk.counts {
            Counts::Held(counts) => Ok((counts, &mut chunk.free)),
            Counts::InFile => Err(Error::new(Kind::Io, "refcounts that were not read")),
        }
    }

    fn split(&self, cluster: u64) -> (usize, usize) {
        let per_chunk = self.per_chunk();
        ((cluster / per_chunk) as usize, (cluster % per_chunk) as usize)
    }

    /// How often `cluster` is referred to.
    pub(super) fn get(&mut self, cluster: u64, storage: &dyn Storage) -> Result<u16> {
        let (index, at) = self.split(cluster);
        let (counts, _) = self.hold(index, storage)?;
        Ok(counts.get(at).copied().unwrap_or(0))
    }

    fn set(&mut self, cluster: u64, count: u16, storage: &dyn Storage) -> Result<()> {
        let (index, at) = self.split(cluster);
        let (counts, free) = self.hold(index, storage)?;
        if let Some(slot) = counts.get_mut(at) {
            *free = *free + usize::from(count == 0) - usize::from(*slot == 0);
            *slot = count;
        }
        self.chunk(index)?.dirty = true;
        if count == 0 {
            self.cursor = self.cursor.min(cluster);
        } else {
            self.end = self.end.max(cluster + 1);
        }
        Ok(())
    }

    /// Counts one reference to each cluster that `len` bytes at `host` touch; the highest count.
    pub(super) fn count(&mut self, host: u64, len: u64, storage: &dyn Storage) -> Result<u16> {
        let most = if self.order < 4 { (1 << (1 << self.order)) - 1 } else { u16::MAX };
        let mut highest = 0;
        for cluster in self.clusters(host, len) {
            let count = self.get(cluster, storage)?;
            if count >= most {
                return Err(Cause::RefcountLarge(u64::from(count) + 1).into());
            }
            self.set(cluster, count + 1, storage)?;
            highest = highest.max(count + 1);
        }
        Ok(highest)
    }

    fn clusters(&self, host: u64, len: u64) -> Range<u64> {
        host >> self.cluster_bits..((host + len.max(1) - 1) >> self.cluster_bits) + 1
    }

    /// Takes up to `wanted` free clusters that lie side by side.
    pub(super) fn allocate(&mut self, wanted: u64, storage: &dyn Storage) -> Result<Allocated> {
        let per_chunk = self.per_chunk();
        let mut reads = 0;
        let mut at = self.cursor;
        loop {
            let (index, within) = self.split(at);
            let held = matches!(
                self.chunks.get(index),
                Some(Chunk { counts: Counts::Held(_), .. }) | None
            );
            if !held && at < self.end {
                if reads == Self::READS {
                    self.cursor = at;
                    at = self.end;
                    continue;
                }
                reads += 1;
            }
            let (counts, free) = self.hold(index, storage)?;
            let first = if *free == 0 {
                None
            } else {
                counts.iter().skip(within).position(|&count| count == 0).map(|skip| within + skip)
            };
            let Some(first) = first else {
                at = (index as u64 + 1) * per_chunk;
                continue;
            };
            let room = counts[first..].iter().take(wanted as usize);
            let clusters = room.take_while(|&&count| count == 0).count();
            counts[first..first + clusters].fill(1);
            *free -= clusters;
            let (first, clusters) = (index as u64 * per_chunk + first as u64, clusters as u64);
            self.chunk(index)?.dirty = true;
            if reads < Self::READS {
                self.cursor = first + clusters;
            }
            return self.taken(first, clusters);
        }
    }

    /// Takes `clusters` side by side, at the end of the file.
    pub(super) fn allocate_run(&mut self, clusters: u64, storage: &dyn Storage) -> Result<u64> {
        let mut first = self.end;
        let mut at = first;
        while at < first + clusters {
            at += 1;
            if self.get(at - 1, storage)? != 0 {
                first = at;
            }
        }
        for cluster in first..first + clusters {
            self.set(cluster, 1, storage)?;
        }
        Ok(self.taken(first, clusters)?.host)
    }

    fn taken(&mut self, first: u64, clusters: u64) -> Result<Allocated> {
        let end = first + clusters;
        if end << self.cluster_bits > OFFSET_MASK {
            return Err(Error::new(Kind::NoSpace, "the file is as large as its format allows"));
        }
        self.end = self.end.max(end);
        let fresh = first >= self.fresh;
        self.fresh = self.fresh.max(end);
        Ok(Allocated { host: first << self.cluster_bits, clusters, fresh })
    }

    /// Gives up one reference to each cluster that the ranges (host offset, length) touch. Those
    /// that nobody refers to any more are told, and stay taken until [`Refcounts::release`].
    pub(super) fn give_up(
        &mut self,
        references: &[(u64, u64)],
        storage: &dyn Storage,
    ) -> Result<Vec<Range<u64>>> {
        let mut last: Vec<u64> = Vec::new();
        for &(host, len) in references {
            for cluster in self.clusters(host, len) {
                match self.get(cluster, storage)? {
                    // What the file said was wrong: nothing is known of this cluster.
                    0 => log::warn!("cluster {cluster:#x} is in use and was counted as free"),
                    1 => last.push(cluster),
                    count => self.set(cluster, count - 1, storage)?,
                }
            }
        }
        last.sort_unstable();
        last.dedup();
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for cluster in last {
            match ranges.last_mut() {
                Some(range) if range.end == cluster => range.end += 1,
                _ => ranges.push(cluster..cluster + 1),
            }
        }
        Ok(ranges)
    }

    /// Makes clusters free.
    pub(super) fn release(&mut self, clusters: Range<u64>, storage: &dyn Storage) -> Result<()> {
        clusters.into_iter().try_for_each(|cluster| self.set(cluster, 0, storage))
    }

    /// Writes the counts, in blocks and with a table that are counted too. The table's offset and
    /// its clusters, which the header must name when all this is on stable storage.
    pub(super) fn write(&mut self, storage: &dyn Storage) -> Result<(u64, u64)> {
        // Each block or table made may ask for another, further on: this ends as one block counts
        // many clusters.
        loop {
            let mut placed = false;
            let mut index = 0;
            while let Some(chunk) = self.chunks.get(index) {
                if chunk.dirty && chunk.block == 0 && self.is_used(index) {
                    let block = self.allocate(1, storage)?.host;
                    self.put_block(index, block)?;
                    self.table_dirty = true;
                    placed = true;
                }
                index += 1;
            }
            let blocks = self.chunks.iter().rposition(|chunk| chunk.block != 0);
            let needed = blocks.map_or(0, |last| last as u64 + 1) * 8;
            if needed > self.table_clusters << self.cluster_bits {
                // Half as much again, so that the next growth is far off.
                let clusters = (needed + needed / 2).min(MAX_REFCOUNT_TABLE_BYTES).max(needed);
                let clusters = clusters.div_ceil(1 << self.cluster_bits);
                let moved = self.allocate_run(clusters, storage)?;
                let old = self.table_offset >> self.cluster_bits;
                self.release(old..old + self.table_clusters, storage)?;
                (self.table_offset, self.table_clusters) = (moved, clusters);
                self.table_dirty = true;
                placed = true;
            }
            if !placed {
                break;
            }
        }
        let mut bytes = Vec::with_capacity(1 << self.cluster_bits);
        for chunk in &mut self.chunks {
            if chunk.dirty && chunk.block != 0 {
                bytes.clear();
                bytes.resize(1 << self.cluster_bits, 0);
                if let Counts::Held(counts) = &chunk.counts {
                    for (at, &count) in counts.iter().enumerate() {
                        width::put(&mut bytes, at, self.order, count);
                    }
                }
                storage.write_at(chunk.block, &bytes)?;
            }
            chunk.dirty = false;
        }
        if std::mem::take(&mut self.table_dirty) {
            let mut bytes = Vec::new();
            self.chunks.iter().for_each(|chunk| bytes.extend(chunk.block.to_be_bytes()));
            bytes.resize((self.table_clusters << self.cluster_bits) as usize, 0);
            storage.write_at(self.table_offset, &bytes)?;
        }
        Ok((self.table_offset, self.table_clusters))
    }

    fn is_used(&self, index: usize) -> bool {
        match self.chunks.get(index) {
            Some(Chunk { counts: Counts::Held(counts), free, .. }) => *free < counts.len(),
            _ => false,
        }
    }

    /// Leaves out the free clusters at the end: the bytes the file needs.
    pub(super) fn trim(&mut self, storage: &dyn Storage) -> Result<u64> {
        while self.end > 0 {
            let (index, within) = self.split(self.end - 1);
            let (counts, free) = self.hold(index, storage)?;
            let used = if *free == counts.len() {
                None
            } else {
                counts.iter().take(within + 1).rposition(|&count| count != 0)
            };
            let start = index as u64 * self.per_chunk();
            match used {
                Some(last) => {
                    self.end = start + last as u64 + 1;
                    break;
                }
                None => self.end = start,
            }
        }
        Ok(self.end())
    }
}

/// Counts as a block stores them: 2^order bits each.
mod width {
    pub(super) fn get(block: &[u8], at: usize, order: u32) -> u64 {
        if order < 3 {
            let (per_byte, bits) = (8 >> order, 1 << order);
            let byte = block.get(at / per_byte).copied().unwrap_or(0);
            let mask = (1_u16 << bits) - 1;
            return u64::from(u16::from(byte) >> (at % per_byte * bits) & mask);
        }
        let bytes = 1 << (order - 3);
        let stored = block.get(at * bytes..(at + 1) * bytes).unwrap_or(&[]);
        stored.iter().fold(0, |value, &byte| value << 8 | u64::from(byte))
    }

    pub(super) fn put(block: &mut [u8], at: usize, order: u32, count: u16) {
        if order < 3 {
            let (per_byte, bits) = (8 >> order, 1 << order);
            if let Some(byte) = block.get_mut(at / per_byte) {
                *byte |= (count << (at % per_byte * bits)) as u8;
            }
            return;
        }
        let bytes = 1 << (order - 3);
        if let Some(stored) = block.get_mut(at * bytes..(at + 1) * bytes) {
            let wide = u64::from(count).to_be_bytes();
            stored.copy_from_slice(&wide[8 - bytes..]);
        }
    }
}
