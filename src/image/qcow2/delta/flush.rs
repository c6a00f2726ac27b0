//! Flushing and closing: the order in which things reach the file. `docs/delta.md` draws it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::{Condvar, Mutex};

use super::Overlay;
use super::map::{Dirty, Slice};
use super::refcounts::Allocated;
use crate::error::{Error, Kind, Result};

/// Callers that flush at the same time share a flush: one that has not begun serves all who wait.
#[derive(Debug, Default)]
pub(super) struct Flushes {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Flushes that have begun, and those that have ended.
    begun: u64,
    ended: u64,
    /// How the last one ended.
    last: Option<Error>,
}

/// A table that a flush writes to a new place.
struct Placed {
    table: usize,
    taken: Allocated,
    /// Where others still have it.
    old: Option<u64>,
}

impl Overlay {
    /// Returns when what was written before the call is on stable storage.
    pub(super) fn flush(&self) -> Result<()> {
        let mut state = self.flushes.state.lock();
        // One that has begun may have missed the caller's last write.
        let wanted = state.begun + 1;
        while state.ended < wanted {
            if state.begun > state.ended {
                self.flushes.ended.wait(&mut state);
                continue;
            }
            state.begun += 1;
            drop(state);
            let result = self.flush_alone();
            state = self.flushes.state.lock();
            state.ended = state.begun;
            state.last = result.err();
            self.flushes.ended.notify_all();
        }
        match &state.last {
            None => Ok(()),
            Some(error) => Err(error.again()),
        }
    }

    fn flush_alone(&self) -> Result<()> {
        if let Some(error) = self.failed.get() {
            return Err(error.again());
        }
        // In this order: a part is given up after the map has changed, so that the map taken here
        // does not refer to any part taken here.
        let mut given_up = std::mem::take(&mut *self.given_up.lock());
        let mut dirty = self.map.take_dirty();
        if dirty.is_empty() {
            if self.written.swap(false, Ordering::AcqRel) {
                self.sync()?;
            }
            return self.recycle(&given_up);
        }
        self.written.store(false, Ordering::Release);
        if let Err(error) = self.write_map(&mut dirty, &mut given_up) {
            // All of it is in memory still, so that the next flush may try again: but not where
            // something may have gone to the file that was not meant to be there, or was lost.
            self.map.give_back(dirty);
            self.given_up.lock().extend(given_up);
            self.written.store(true, Ordering::Release);
            let retry = error.kind() == Kind::NoSpace && self.failed.get().is_none();
            return Err(if retry || self.failed.get().is_some() {
                error
            } else {
                self.fail(error)
            });
        }
        self.recycle(&given_up)
    }

    /// Data, then the map that names it, each on stable storage before the next.
    fn write_map(&self, dirty: &mut Dirty, given_up: &mut Vec<(u64, u64)>) -> Result<()> {
        // The refcounts in the file are about to be wrong.
        {
            let mut head = self.head.lock();
            if !head.is_dirty() {
                let mut marked = head.clone();
                marked.set_dirty(true);
                marked.write(&*self.storage)?;
                *head = marked;
            }
        }
        dirty.slices.sort_unstable_by_key(|slice| slice.number);
        let mut placed = Vec::new();
        let written = self.write_tables(&dirty.slices, &mut placed);
        let in_place = match written.and_then(|in_place| self.sync().map(|()| in_place)) {
            Ok(in_place) => in_place,
            Err(error) => {
                // Nothing refers to them.
                placed.into_iter().for_each(|placed| self.give_back(placed.taken));
                return Err(error);
            }
        };
        for Placed { table, taken, old } in placed {
            self.map.put_place(table, taken.host);
            dirty.tables.insert(table);
            given_up.extend(old.map(|host| (host, self.geometry.cluster())));
        }
        for (at, bytes) in in_place {
            self.storage.write_at(at, &bytes)?;
        }
        self.write_l1(dirty)?;
        self.sync()
    }

    /// Writes the tables that have no place of their own yet. The slices of all others come back
    /// as what is to be written where.
    fn write_tables(
        &self,
        slices: &[Arc<Slice>],
        placed: &mut Vec<Placed>,
    ) -> Result<Vec<(u64, Vec<u8>)>> {
        let geometry = self.geometry;
        let per_table = geometry.slices_per_table();
        let mut in_place = Vec::new();
        for group in slices.chunk_by(|a, b| a.number / per_table == b.number / per_table) {
            let Some(first) = group.first() else { continue };
            let table = (first.number / per_table) as usize;
            let pieces = self.pieces(group);
            match self.map.place(table) {
                Some((host, true)) => {
                    in_place.extend(pieces.into_iter().map(|(at, bytes)| (host + at, bytes)));
                }
                old => {
                    let taken = self.take(1)?;
                    let old = old.map(|(host, _)| host);
                    placed.push(Placed { table, taken, old });
                    if taken.fresh && old.is_none() {
                        // It reads as zeros; what makes the file long enough comes first.
                        let end = geometry.cluster() - geometry.slice_bytes();
                        let zeros = vec![0; geometry.slice_bytes() as usize];
                        self.storage.write_at(taken.host + end, &zeros)?;
                        for (at, bytes) in pieces {
                            self.storage.write_at(taken.host + at, &bytes)?;
                        }
                        continue;
                    }
                    let mut whole = vec![0; geometry.cluster() as usize];
                    if let Some(old) = old {
                        self.read_host(old, &mut whole)?;
                    }
                    for (at, bytes) in pieces {
                        let at = at as usize;
                        if let Some(piece) = whole.get_mut(at..at + bytes.len()) {
                            piece.copy_from_slice(&bytes);
                        }
                    }
                    self.storage.write_at(taken.host, &whole)?;
                }
            }
        }
        Ok(in_place)
    }

    /// The slices of one table as bytes, those that follow each other in one piece, each with its
    /// offset in the table.
    fn pieces(&self, group: &[Arc<Slice>]) -> Vec<(u64, Vec<u8>)> {
        let (per_table, size) = (self.geometry.slices_per_table(), self.geometry.slice_bytes());
        let runs = group.chunk_by(|a, b| a.number + 1 == b.number);
        runs.filter_map(|run| {
            let at = run.first()?.number % per_table * size;
            let mut bytes = Vec::with_capacity(run.len() * size as usize);
            run.iter().for_each(|slice| self.map.encode(slice, &mut bytes));
            Some((at, bytes))
        })
        .collect()
    }

    fn write_l1(&self, dirty: &Dirty) -> Result<()> {
        const BLOCK: usize = 512;
        let offset = self.head.lock().fixed.l1_table_offset.get();
        let tables: Vec<usize> = dirty.tables.iter().copied().collect();
        for group in tables.chunk_by(|a, b| a / BLOCK == b / BLOCK) {
            let (Some(&first), Some(&last)) = (group.first(), group.last()) else { continue };
            let bytes = self.map.l1_bytes(first, last - first + 1);
            self.storage.write_at(offset + first as u64 * 8, &bytes)?;
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.storage.sync().map_err(|error| self.fail(error))
    }

    /// Makes free what the map does not refer to any more, now that the file says so.
    fn recycle(&self, given_up: &[(u64, u64)]) -> Result<()> {
        if given_up.is_empty() {
            return Ok(());
        }
        // Whoever has found one of these parts in the map is still in the gate.
        drop(self.gate.write());
        let last = self.refcounts.lock().give_up(given_up, &*self.storage);
        for clusters in last.map_err(|error| self.fail(error))? {
            let bits = self.geometry.cluster_bits;
            let (at, len) = (clusters.start << bits, (clusters.end - clusters.start) << bits);
            // Before they are free: afterwards they may be in use.
            if let Err(error) = self.storage.punch(at, len) {
                log::debug!("{}: {error}", self.name);
            }
            let released = self.refcounts.lock().release(clusters, &*self.storage);
            released.map_err(|error| self.fail(error))?;
        }
        Ok(())
    }

    /// Flushes, writes the refcounts, and then says in the header that they are right.
    pub(super) fn close(&self) -> Result<()> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        drop(self.gate.write());
        if let Err(error) = self.flush() {
            if self.failed.get().is_none() {
                self.closed.store(false, Ordering::Release);
            }
            return Err(error);
        }
        let mut head = self.head.lock();
        if !head.is_dirty() {
            return Ok(());
        }
        let mut refcounts = self.refcounts.lock();
        let mut finish = || {
            let (offset, clusters) = refcounts.write(&*self.storage)?;
            self.storage.sync()?;
            head.fixed.refcount_table_offset = offset.into();
            head.fixed.refcount_table_clusters = (clusters as u32).into();
            head.set_dirty(false);
            head.write(&*self.storage)?;
            self.storage.sync()?;
            // Nothing refers to what is cut off.
            self.storage.set_len(refcounts.trim(&*self.storage)?)
        };
        finish().map_err(|error| self.fail(error))
    }
}
