//! One worker's way through a disk that can be read anywhere.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::writer::Writer;
use crate::block::{BlockSource, Extent, Home, Origin, is_zero};
use crate::error::{Error, Kind, Result};
use crate::store::Store;
use crate::store::id::{BlobKind, Id};
use crate::store::map::{FANOUT, Shape};
use crate::store::record::DiskRecord;
use crate::store::source::{LayerState, Unchanged};

/// What a disk is compared with.
pub(super) struct Before<'a> {
    pub(super) disk: Option<&'a DiskRecord>,
    /// Whether the state of files counts.
    pub(super) hints: bool,
    /// Whether the names of blocks do.
    pub(super) names: bool,
    /// Whether nothing in the store is known to be damaged; else what the parent has may have to be stored anew.
    pub(super) is_sound: bool,
}

impl Before<'_> {
    pub(super) fn unchanged(&self, now: &[Option<LayerState>]) -> Option<Unchanged> {
        let before = self.disk.filter(|_| self.hints)?.made_of.as_deref()?;
        Unchanged::new(before, now)
    }
}

/// What is known of a disk before it is read.
pub(super) struct Known {
    pub(super) parent: Option<(Id, Shape)>,
    pub(super) parent_size: u64,
    pub(super) unchanged: Option<Unchanged>,
    pub(super) names: bool,
    pub(super) is_sound: bool,
}

/// Up to where a disk is known to be data, or a hole.
struct Run {
    end: u64,
    hole: bool,
}

/// One worker's way through a disk.
pub(super) struct Stretch<'a> {
    store: &'a Store,
    source: &'a dyn BlockSource,
    known: &'a Known,
    writer: &'a Writer<'a>,
    buf: Vec<u8>,
}

impl<'a> Stretch<'a> {
    pub(super) fn new(
        store: &'a Store,
        source: &'a dyn BlockSource,
        known: &'a Known,
        writer: &'a Writer<'a>,
    ) -> Self {
        Self { store, source, known, writer, buf: vec![0; store.block_size() as usize] }
    }

    /// Stores what one map page covers. Its id, and how many blocks are not zeros.
    pub(super) fn page(&mut self, leaf: u64) -> Result<(Id, u64)> {
        let block_size = u64::from(self.store.block_size());
        let start = leaf * FANOUT * block_size;
        let end = start.saturating_add(FANOUT * block_size).min(self.source.len());
        let before = match self.known.parent {
            Some((root, shape)) => {
                let page =
                    self.store.leaf(root, shape, leaf).and_then(|id| self.store.map_page(id));
                match page {
                    Ok(page) => Some(page),
                    // It is under quarantine, and is stored anew.
                    Err(error) if error.kind() == Kind::Corrupt && !self.known.is_sound => None,
                    Err(error) if error.kind() == Kind::Corrupt => {
                        let name = self.store.name();
                        let hint = format!(
                            "strata store repair --read-data {name} lets it be stored anew"
                        );
                        return Err(error.with_hint(hint));
                    }
                    Err(error) => return Err(error),
                }
            }
            None => None,
        };
        let mut ids = Vec::with_capacity(FANOUT as usize);
        let mut extent = Run { end: start, hole: false };
        let mut at = start;
        while at < end {
            if self.writer.progress.stop.load(Ordering::Relaxed) {
                return Err(Error::new(Kind::Io, "stopped"));
            }
            let len = block_size.min(end - at);
            let old = before.as_ref().map(|page| page.get(ids.len() as u64));
            let id = if self.is_hole(at..at + len, &mut extent)? {
                Id::ZERO
            } else if let Some(known) = self.unread(at, len, old)? {
                known
            } else {
                self.block(at, len as usize, old)?
            };
            ids.push(id);
            at += len;
            self.writer.progress.done.fetch_add(len, Ordering::Relaxed);
        }
        let count = ids.iter().filter(|id| !id.is_zero()).count() as u64;
        Ok((self.writer.map_page(&ids)?, count))
    }

    /// Whether the source has nothing but holes in `range`. `run` is what is known from before, and what is known
    /// then: asking takes longer than one thinks.
    fn is_hole(&self, range: Range<u64>, run: &mut Run) -> Result<bool> {
        let mut at = range.start;
        while at < range.end {
            if run.end <= at {
                let Extent { len, hole } = self.source.extent_at(at)?;
                *run = Run { end: at.saturating_add(len), hole };
            }
            if !run.hole {
                return Ok(false);
            }
            at = run.end;
        }
        Ok(true)
    }

    /// The id of the block at `at`, if it is known without reading it.
    fn unread(&self, at: u64, len: u64, old: Option<Id>) -> Result<Option<Id>> {
        if let Some(old) = old
            && at + len <= self.known.parent_size
            && let Some(unchanged) = &self.known.unchanged
            && unchanged.covers(self.source, at, len)?
            && self.is_kept(&old)?
        {
            return Ok(Some(old));
        }
        if !self.known.names || len != u64::from(self.store.block_size()) {
            return Ok(None);
        }
        let Origin { len: run, home } = self.source.origin_at(at)?;
        let Home::Named { name, within: 0 } = home else { return Ok(None) };
        let id = Id(name);
        if run < len {
            return Ok(None);
        }
        // What the parent has stays.
        let is_kept = old == Some(id) && self.known.is_sound;
        Ok((is_kept || self.store.has(BlobKind::Block, &id)?).then_some(id))
    }

    /// Whether the store surely has the block `old` of the parent: else it is read and stored anew, which heals the parent.
    fn is_kept(&self, old: &Id) -> Result<bool> {
        Ok(self.known.is_sound || old.is_zero() || self.store.has(BlobKind::Block, old)?)
    }

    /// The id of the block at `at`, which is stored unless it is that of `old`.
    fn block(&mut self, at: u64, len: usize, old: Option<Id>) -> Result<Id> {
        let (bytes, rest) = self.buf.split_at_mut(len);
        self.source.read_at(at, bytes)?;
        rest.fill(0);
        self.writer.progress.read.fetch_add(len as u64, Ordering::Relaxed);
        if is_zero(&self.buf) {
            return Ok(Id::ZERO);
        }
        let id = self.store.keys.id(BlobKind::Block, &self.buf);
        if old != Some(id) || !self.known.is_sound {
            self.writer.add(BlobKind::Block, id, &self.buf)?;
        }
        Ok(id)
    }
}
