//! Writing. Bytes go over those they replace, or where nothing refers to yet; only when they are
//! written does the map in memory say where they are.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::super::compression;
use super::Overlay;
use super::entry::{self, Entry, Place};
use super::map::{DIRTY_AT_MOST, Slice};
use super::refcounts::Allocated;
use crate::error::{Error, Result};

thread_local! {
    /// Room for a subcluster, or for a cluster that is copied.
    static BOUNCE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Calls `with` with `len` zeros. What lies below may come here again in the same thread.
fn bounce<R>(len: u64, with: impl FnOnce(&mut [u8]) -> R) -> R {
    let mut buf = BOUNCE.take();
    buf.clear();
    buf.resize(len as usize, 0);
    let result = with(&mut buf);
    BOUNCE.set(buf);
    result
}

/// How the next bytes of a write get to their place.
enum Step {
    /// Over the bytes they replace.
    Over { host: u64, len: u64 },
    /// Into clusters that are there and nobody else's.
    Into { host: u64, len: u64 },
    /// Into new clusters, of which nothing is stored so far.
    New { len: u64 },
    /// With the whole cluster into a new one: it is compressed, or others refer to it.
    Move { entry: Entry, len: u64 },
}

impl Overlay {
    /// Parts given up from which on a flush comes before the next change.
    const GIVEN_UP_AT_MOST: usize = 1 << 18;

    pub(super) fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.check_writable()?;
        self.bound_dirty()?;
        let _using = self.gate.read();
        // Closing waits at the gate until nobody is past this.
        self.check_writable()?;
        let written = self.write_inside(offset, data);
        self.written.store(true, Ordering::Release);
        written
    }

    /// Writes the map if much of it is in memory only.
    pub(super) fn bound_dirty(&self) -> Result<()> {
        let many = self.map.dirty_slices() > DIRTY_AT_MOST;
        if many || self.given_up.lock().len() > Self::GIVEN_UP_AT_MOST {
            self.flush()?;
        }
        Ok(())
    }

    /// A write by who holds the gate.
    pub(super) fn write_inside(&self, offset: u64, data: &[u8]) -> Result<()> {
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let end = self.slice_end(at, at + rest.len() as u64);
            let (piece, tail) = rest.split_at((end - at) as usize);
            self.write_slice(at, piece)?;
            at = end;
            rest = tail;
        }
        Ok(())
    }

    fn write_slice(&self, at: u64, data: &[u8]) -> Result<()> {
        let geometry = self.geometry;
        let end = at + data.len() as u64;
        let slice = self.map.slice_to_change(geometry.slice_of(at));
        let mut at = at;
        let mut rest = data;
        // What is only replaced needs no lock: the gate keeps its place from being used again.
        while !rest.is_empty() {
            let (place, len) = self.look(&slice, |loaded| {
                let run = entry::run(&loaded.entries, at, end, true, geometry);
                let (first, last) =
                    (geometry.entry_of(at), geometry.entry_of(at + run.1.max(1) - 1));
                loaded.check(first, last).map(|()| run)
            })??;
            let Place::Host(host) = place else { break };
            let (piece, tail) = rest.split_at(len as usize);
            if piece.is_empty() {
                break;
            }
            self.storage.write_at(host, piece)?;
            at += len;
            rest = tail;
        }
        if rest.is_empty() {
            return Ok(());
        }
        let _changing = slice.changing.claim(geometry.entry_of(at), geometry.entry_of(end - 1));
        while !rest.is_empty() {
            let len = self.write_step(&slice, at, end, rest)? as usize;
            at += len as u64;
            rest = &rest[len..];
        }
        Ok(())
    }

    /// Writes some of `data`, which goes from `at` to `end`; how much. Its entries are
    /// claimed.
    fn write_step(&self, slice: &Arc<Slice>, at: u64, end: u64, data: &[u8]) -> Result<u64> {
        let geometry = self.geometry;
        let (step, first, last) = self.look(slice, |loaded| {
            let step = self.step(&loaded.entries, at, end);
            let (Step::Over { len, .. }
            | Step::Into { len, .. }
            | Step::New { len }
            | Step::Move { len, .. }) = step;
            let (from, to) = (geometry.entry_of(at), geometry.entry_of(at + len - 1));
            loaded.check(from, to)?;
            let entry = |index| loaded.entries.get(index).copied().unwrap_or_default();
            Ok::<_, Error>((step, entry(from), entry(to)))
        })??;
        match step {
            Step::Over { host, len } => {
                self.storage.write_at(host, &data[..len as usize])?;
                Ok(len)
            }
            Step::Into { host, len } => {
                self.put(at, &data[..len as usize], host, first, last)?;
                self.publish(slice, at, at + len, host);
                Ok(len)
            }
            Step::New { len } => {
                let clusters = (geometry.within(at) + len).div_ceil(geometry.cluster());
                let taken = self.take(clusters)?;
                let host = taken.host + geometry.within(at);
                let len = len.min(taken.clusters * geometry.cluster() - geometry.within(at));
                if let Err(error) = self.put(at, &data[..len as usize], host, first, last) {
                    self.give_back(taken);
                    return Err(error);
                }
                self.publish(slice, at, at + len, host);
                Ok(len)
            }
            Step::Move { entry, len } => {
                self.move_cluster(slice, entry, at, &data[..len as usize])?;
                Ok(len)
            }
        }
    }

    /// What to do for the bytes at `at`, and for how many of those before `end`.
    fn step(&self, entries: &[Entry], at: u64, end: u64) -> Step {
        let geometry = self.geometry;
        if let (Place::Host(host), len @ 1..) = entry::run(entries, at, end, true, geometry) {
            return Step::Over { host, len };
        }
        let entry = |at| entries.get(geometry.entry_of(at)).copied().unwrap_or_default();
        // How far `goes_on` holds for whole clusters.
        let extent = |goes_on: &dyn Fn(u64) -> bool| {
            let mut to = geometry.cluster_end(at).min(end);
            while to < end && goes_on(to) {
                to = geometry.cluster_end(to).min(end);
            }
            to - at
        };
        let first = entry(at);
        if let Some(host) = first.own_host() {
            let start = at - geometry.within(at);
            let beside = |to| entry(to).own_host() == Some(host + (to - start));
            return Step::Into { host: host + geometry.within(at), len: extent(&beside) };
        }
        if first.is_empty() && first.host().is_none() {
            let unplaced = |to| entry(to).is_empty() && entry(to).host().is_none();
            return Step::New { len: extent(&unplaced) };
        }
        Step::Move { entry: first, len: extent(&|_| false) }
    }

    /// Takes up to `clusters` free clusters, side by side.
    pub(super) fn take(&self, clusters: u64) -> Result<Allocated> {
        let mut refcounts = self.refcounts.lock();
        let taken = refcounts.allocate(clusters, &*self.storage)?;
        self.file_end.fetch_max(refcounts.end(), Ordering::Release);
        Ok(taken)
    }

    /// Gives back clusters that nothing has referred to.
    pub(super) fn give_back(&self, taken: Allocated) {
        let first = taken.host >> self.geometry.cluster_bits;
        let clusters = first..first + taken.clusters;
        // They were counted a moment ago, so that there is nothing to read, and nothing can fail.
        let _ = self.refcounts.lock().release(clusters, &*self.storage);
    }

    /// Writes `data`, whose place is `host`, and with it what is missing of the first and the last
    /// subcluster to be whole. `first` and `last` are the entries of the clusters it begins and
    /// ends in, as they are.
    fn put(&self, at: u64, data: &[u8], host: u64, first: Entry, last: Entry) -> Result<()> {
        let geometry = self.geometry;
        let subcluster = geometry.subcluster();
        let end = at + data.len() as u64;
        let stored =
            |entry: Entry, guest| entry.allocated >> geometry.subcluster_of(guest) & 1 == 1;
        let (mut at, mut host, mut rest) = (at, host, data);
        if !at.is_multiple_of(subcluster) && !stored(first, at) {
            let len = rest.len().min((subcluster - at % subcluster) as usize);
            self.put_whole(at, &rest[..len], host, first)?;
            rest = &rest[len..];
            at += len as u64;
            host += len as u64;
        }
        let mut tail = 0;
        if !rest.is_empty() && !end.is_multiple_of(subcluster) && !stored(last, end - 1) {
            tail = rest.len().min((end % subcluster) as usize);
        }
        let (middle, tail) = rest.split_at(rest.len() - tail);
        if !middle.is_empty() {
            self.storage.write_at(host, middle)?;
        }
        if !tail.is_empty() {
            let skip = middle.len() as u64;
            self.put_whole(at + skip, tail, host + skip, last)?;
        }
        Ok(())
    }

    /// Writes a whole subcluster, of which `data` is new and the rest is what is read there now.
    fn put_whole(&self, at: u64, data: &[u8], host: u64, entry: Entry) -> Result<()> {
        let subcluster = self.geometry.subcluster();
        let head = at % subcluster;
        bounce(subcluster, |buf| {
            let (before, rest) = buf.split_at_mut(head as usize);
            let (here, after) = rest.split_at_mut(data.len());
            self.fill_unstored(entry, at - head, before)?;
            here.copy_from_slice(data);
            self.fill_unstored(entry, at + data.len() as u64, after)?;
            self.storage.write_at(host - head, buf)
        })
    }

    /// Fills `buf` with what is read at `at`, which lies in a subcluster that is not stored.
    fn fill_unstored(&self, entry: Entry, at: u64, buf: &mut [u8]) -> Result<()> {
        if buf.is_empty() {
            Ok(())
        } else if entry.zero >> self.geometry.subcluster_of(at) & 1 == 1 {
            buf.fill(0);
            Ok(())
        } else {
            self.read_below(at, buf)
        }
    }

    /// Makes the map say that `at..end` is at `host` from its first byte on.
    fn publish(&self, slice: &Arc<Slice>, at: u64, end: u64, host: u64) {
        let geometry = self.geometry;
        self.map.change(slice, |entries| {
            let mut from = at;
            while from < end {
                let to = geometry.cluster_end(from).min(end);
                let mask = geometry.mask(from, to);
                if let Some(entry) = entries.get_mut(geometry.entry_of(from)) {
                    let cluster = host + (from - at) - geometry.within(from);
                    let (allocated, zero) = (entry.allocated | mask, entry.zero & !mask);
                    *entry = Entry::new(cluster, allocated, zero);
                }
                from = to;
            }
        });
    }

    /// Writes `data` and all that is stored of its cluster to a new one.
    fn move_cluster(&self, slice: &Arc<Slice>, entry: Entry, at: u64, data: &[u8]) -> Result<()> {
        let geometry = self.geometry;
        let within = geometry.within(at);
        let start = at - within;
        let written = geometry.mask(at, at + data.len() as u64);
        let kept = if entry.is_compressed() { geometry.all_subclusters() } else { entry.allocated };
        let taken = self.take(1)?;
        let moved = bounce(geometry.cluster(), |buf| -> Result<()> {
            if entry.is_compressed() {
                let unit = entry.unit(geometry);
                compression::decode(&*self.as_opened, self.compression, unit, buf)?;
            } else {
                let subcluster = geometry.subcluster();
                for (nth, piece) in buf.chunks_mut(subcluster as usize).enumerate() {
                    let offset = nth as u64 * subcluster;
                    match entry.host() {
                        Some(host) if kept >> nth & 1 == 1 => {
                            self.read_host(host + offset, piece)?
                        }
                        _ if written >> nth & 1 == 1 => {
                            self.fill_unstored(entry, start + offset, piece)?;
                        }
                        _ => {}
                    }
                }
            }
            if let Some(here) = buf.get_mut(within as usize..within as usize + data.len()) {
                here.copy_from_slice(data);
            }
            self.put_subclusters(taken.host, kept | written, buf)
        });
        if let Err(error) = moved {
            self.give_back(taken);
            return Err(error);
        }
        self.map.change(slice, |entries| {
            if let Some(slot) = entries.get_mut(geometry.entry_of(at)) {
                let stored = kept | written;
                *slot = Entry::new(taken.host, stored, entry.zero & !stored);
            }
        });
        self.give_up(entry);
        Ok(())
    }

    /// Writes those subclusters of `cluster` that `mask` names, each run of them at once.
    fn put_subclusters(&self, host: u64, mask: u32, cluster: &[u8]) -> Result<()> {
        let subcluster = self.geometry.subcluster() as usize;
        let mut first = 0;
        while first < 32 && mask >> first != 0 {
            first += (mask >> first).trailing_zeros();
            let count = (mask >> first).trailing_ones();
            let (from, to) = (first as usize * subcluster, (first + count) as usize * subcluster);
            if let Some(piece) = cluster.get(from..to) {
                self.storage.write_at(host + from as u64, piece)?;
            }
            first += count;
        }
        Ok(())
    }

    /// Notes that the map in memory does not refer any more to what `entry` referred to.
    pub(super) fn give_up(&self, entry: Entry) {
        let Some((host, len)) = entry.reference(self.geometry) else { return };
        let mut given_up = self.given_up.lock();
        match given_up.last_mut() {
            // Whole clusters only: of two compressed ones in one cluster, both count.
            Some(last)
                if !entry.is_compressed()
                    && last.0 + last.1 == host
                    && self.geometry.within(last.0 | last.1) == 0 =>
            {
                last.1 += len
            }
            _ => given_up.push((host, len)),
        }
    }
}
