//! Zeros: bits in the map instead of bytes, and clusters given back.

use std::sync::atomic::Ordering;

use super::Overlay;
use super::entry::{Entry, Place};
use crate::error::Result;

/// Zeros to write where bits do not reach.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

impl Overlay {
    /// Makes `at..end` zeros.
    pub(super) fn zero(&self, offset: u64, end: u64) -> Result<()> {
        let mut at = offset;
        while at < end {
            // Anew for each slice: a large range may take more of the map than is held in memory.
            self.check_writable()?;
            self.bound_dirty()?;
            let _using = self.gate.read();
            self.check_writable()?;
            let table = self.geometry.table_of(at);
            if self.map.is_absent(table) {
                let table_end = (table as u64 + 1).saturating_mul(self.geometry.table_span());
                let hole = self.hole_below(at, table_end.min(end))?;
                if hole > 0 {
                    at += hole;
                    continue;
                }
            }
            let to = self.slice_end(at, end);
            self.zero_slice(at, to)?;
            self.written.store(true, Ordering::Release);
            at = to;
        }
        Ok(())
    }

    /// Makes the end of a disk that grows read as zeros, whatever lies there below or was left in
    /// its last cluster. Nobody else has the delta yet.
    pub(super) fn zero_grown(&self, old: u64) -> Result<()> {
        let below = self.below.as_ref().map_or(0, |below| below.len());
        let end = old.next_multiple_of(self.geometry.cluster()).max(below).min(self.size);
        self.zero(old, end)?;
        self.flush()
    }

    /// Makes `at..end`, which lies in one slice, zeros.
    fn zero_slice(&self, at: u64, end: u64) -> Result<()> {
        let subcluster = self.geometry.subcluster();
        let first = at.next_multiple_of(subcluster);
        // Behind the end of the disk there is nothing to keep.
        let last = if end == self.size {
            end.next_multiple_of(subcluster)
        } else {
            end - end % subcluster
        };
        if first > last {
            return self.zero_bytes(at, end);
        }
        self.zero_bytes(at, first.min(end))?;
        if first < last {
            self.zero_subclusters(first, last)?;
        }
        if last < end { self.zero_bytes(last, end) } else { Ok(()) }
    }

    /// Writes zeros where something else is read.
    fn zero_bytes(&self, at: u64, end: u64) -> Result<()> {
        let mut at = at;
        while at < end {
            let (place, len) = self.place(at, end)?;
            let len = match place {
                Place::Zero => len,
                Place::Absent if self.hole_below(at, at + len)? == len => len,
                _ => {
                    // Not across a sector, which a crash must not leave half zeros.
                    let len = len.min(ZEROS.len() as u64 - at % 512);
                    self.write_inside(at, &ZEROS[..len as usize])?;
                    len
                }
            };
            at += len;
        }
        Ok(())
    }

    fn zero_subclusters(&self, start: u64, end: u64) -> Result<()> {
        let geometry = self.geometry;
        let slice = self.map.slice_to_change(geometry.slice_of(start));
        // Parts of compressed clusters: those are written out, with their zeros.
        let mut compressed = Vec::new();
        {
            let last = geometry.entry_of(end - 1);
            let _changing = slice.changing.claim(geometry.entry_of(start), last);
            let mut changes: Vec<(usize, Entry, Entry)> = Vec::new();
            let mut at = start;
            // How far what lies below was looked at, and whether it is a hole up to there.
            let (mut looked, mut hole) = (start, false);
            while at < end {
                let to = geometry.cluster_end(at).min(end);
                let index = geometry.entry_of(at);
                let entry = self.look(&slice, |loaded| {
                    let entry = loaded.entries.get(index).copied().unwrap_or_default();
                    loaded.check(index, index).map(|()| entry)
                })??;
                let mask = geometry.mask(at, to);
                let whole = mask == geometry.all_subclusters();
                let (from, cluster_end) = (at - geometry.within(at), geometry.cluster_end(at));
                let piece = (at, to);
                at = to;
                if entry.is_compressed() && !whole {
                    compressed.push(piece);
                    continue;
                }
                let given = !whole || entry.reference(geometry).is_none();
                let settled = entry.allocated & mask == 0 && given;
                if settled && mask & !entry.zero == 0 {
                    continue;
                }
                if looked < cluster_end {
                    let len = self.hole_below(from, end.max(cluster_end))?;
                    hole = len > 0;
                    looked = if hole { from + len } else { cluster_end };
                }
                let hole = hole && looked >= cluster_end;
                if settled && hole {
                    continue;
                }
                let zero = if hole { entry.zero & !mask } else { entry.zero | mask };
                let mut new = Entry { allocated: entry.allocated & !mask, zero, ..entry };
                if new.allocated == 0 {
                    new.descriptor = 0;
                }
                if new != entry {
                    changes.push((index, entry, new));
                }
            }
            if !changes.is_empty() {
                self.map.change(&slice, |entries| {
                    for &(index, _, new) in &changes {
                        if let Some(slot) = entries.get_mut(index) {
                            *slot = new;
                        }
                    }
                });
                for (_, old, new) in changes {
                    if new.descriptor != old.descriptor {
                        self.give_up(old);
                    }
                }
            }
        }
        for (at, end) in compressed {
            self.zero_bytes(at, end)?;
        }
        Ok(())
    }
}
