//! Reading, and telling where there are holes.

use std::sync::atomic::Ordering;

use super::super::compression;
use super::Overlay;
use super::entry::{self, Place};
use super::map::{Loaded, Slice};
use crate::block::Extent;
use crate::error::{Error, Kind, Result};

impl Overlay {
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let _using = self.gate.read();
        let end = offset + buf.len() as u64;
        let mut rest = buf;
        let mut at = offset;
        while at < end {
            let (place, mut len) = self.place(at, end)?;
            // A run may go on in the next slice.
            while at + len < end && self.geometry.slice_of(at + len) != self.geometry.slice_of(at) {
                match (place, self.place(at + len, end)?) {
                    (Place::Absent, (Place::Absent, more)) | (Place::Zero, (Place::Zero, more)) => {
                        len += more;
                    }
                    _ => break,
                }
            }
            let (piece, tail) = rest.split_at_mut(len as usize);
            self.fill(place, at, piece)?;
            rest = tail;
            at += len;
        }
        Ok(())
    }

    /// Where the byte at `at` is, and how far before `end` that goes on.
    pub(super) fn place(&self, at: u64, end: u64) -> Result<(Place, u64)> {
        let table = self.geometry.table_of(at);
        if self.map.is_absent(table) {
            let table_end = (table as u64 + 1).saturating_mul(self.geometry.table_span());
            return Ok((Place::Absent, table_end.min(end) - at));
        }
        let slice = self.map.slice(self.geometry.slice_of(at));
        let end = self.slice_end(at, end);
        self.look(&slice, |loaded| {
            let (place, len) = entry::run(&loaded.entries, at, end, false, self.geometry);
            let (first, last) = (self.geometry.entry_of(at), self.geometry.entry_of(at + len - 1));
            loaded.check(first, last).map(|()| (place, len))
        })?
    }

    /// Looks at the entries of a slice.
    pub(super) fn look<R>(&self, slice: &Slice, look: impl FnOnce(&Loaded) -> R) -> Result<R> {
        let end = || self.file_end.load(Ordering::Acquire);
        self.map.look(slice, &*self.storage, end, look)
    }

    fn fill(&self, place: Place, at: u64, buf: &mut [u8]) -> Result<()> {
        match place {
            Place::Zero => buf.fill(0),
            Place::Absent => self.read_below(at, buf)?,
            Place::Host(host) => self.read_host(host, buf)?,
            Place::Encoded { unit, within } => {
                let mut decoded = vec![0; unit.decoded as usize];
                compression::decode(&*self.as_opened, self.compression, unit, &mut decoded)?;
                let from = within as usize;
                match decoded.get(from..from + buf.len()) {
                    Some(bytes) => buf.copy_from_slice(bytes),
                    None => return Err(Error::new(Kind::Corrupt, "a short compressed cluster")),
                }
            }
        }
        Ok(())
    }

    /// Reads what lies at `host` of the file; past its end there are zeros.
    pub(super) fn read_host(&self, host: u64, buf: &mut [u8]) -> Result<()> {
        let there = self.storage.read_at(host, buf)?;
        buf[there..].fill(0);
        Ok(())
    }

    /// Reads what lies below at `at`; past its end there are zeros.
    pub(super) fn read_below(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let Some(below) = &self.below else {
            buf.fill(0);
            return Ok(());
        };
        let there = below.len().saturating_sub(at).min(buf.len() as u64) as usize;
        let (piece, past) = buf.split_at_mut(there);
        past.fill(0);
        if piece.is_empty() { Ok(()) } else { below.read_at(at, piece) }
    }

    /// How many bytes from `at` on surely read as zeros below, before `end`.
    pub(super) fn hole_below(&self, at: u64, end: u64) -> Result<u64> {
        let mut hole = at;
        if let Some(below) = &self.below {
            while hole < end.min(below.len()) {
                let extent = below.extent_at(hole)?;
                if !extent.hole {
                    return Ok(hole.min(end) - at);
                }
                hole += extent.len;
            }
        }
        Ok(end - at)
    }

    pub(super) fn extent(&self, at: u64) -> Result<Extent> {
        let _using = self.gate.read();
        let (place, len) = self.place(at, self.size)?;
        Ok(match place {
            Place::Zero => Extent { len, hole: true },
            Place::Host(_) | Place::Encoded { .. } => Extent { len, hole: false },
            Place::Absent => match &self.below {
                Some(below) if at < below.len() => {
                    let extent = below.extent_at(at)?;
                    Extent { len: extent.len.min(len), ..extent }
                }
                _ => Extent { len, hole: true },
            },
        })
    }
}
