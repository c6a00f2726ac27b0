//! The resolved map of one region of the disk: final places, coalesced, in guest order.

use std::ops::Range;
use std::sync::Arc;

use super::{EncodedUnit, Layer, Place};
use crate::block::Weigh;
use crate::error::{Error, Kind, Result};

/// Where a segment's bytes finally are. `Absent` is gone: it was resolved through the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// At `host` of the chain's source of that index.
    Raw {
        source: u32,
        host: u64,
    },
    /// In `unit` of that layer, from `within` on.
    Encoded {
        layer: u16,
        unit: EncodedUnit,
        within: u32,
    },
    Zero,
    /// Lost; the index is into [`Region::damage`].
    Damaged(u32),
}

/// A run of the region that lies in one place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Segment {
    /// Where it begins and ends, relative to the region's start.
    pub start: u32,
    pub end: u32,
    pub target: Target,
}

/// The resolved map of one region. Its segments cover it without a gap, unless it was resolved
/// within some of the layers only.
#[derive(Debug)]
pub(super) struct Region {
    pub segments: Box<[Segment]>,
    pub damage: Box<[Error]>,
}

impl Weigh for Region {
    fn weight(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.segments) + self.damage.len() * 256
    }
}

/// A layer with the index of its first source in the chain's list.
#[derive(Debug)]
pub(super) struct Placed {
    pub layer: Arc<dyn Layer>,
    pub first_source: u32,
}

/// Walks one region down the layers: what one layer says is absent is asked of the next.
struct Walk {
    start: u64,
    segments: Vec<Segment>,
    damage: Vec<Error>,
    absent: Vec<Range<u64>>,
}

impl Region {
    /// How many distinct errors one region remembers; more damage than that repeats the last.
    const MAX_DAMAGE: usize = 64;

    /// Resolves `guest` through `layers`, top first.
    ///
    /// # Errors
    /// The host's, from reading a layer's tables.
    pub(super) fn resolve(layers: &[Placed], guest: Range<u64>) -> Result<Self> {
        let mut walk = Walk::down(layers, guest)?;
        for range in std::mem::take(&mut walk.absent) {
            walk.push(range, Target::Zero);
        }
        Ok(walk.finish())
    }

    /// The same, but what is in none of `layers` is in no segment either.
    pub(super) fn resolve_within(layers: &[Placed], guest: Range<u64>) -> Result<Self> {
        Ok(Walk::down(layers, guest)?.finish())
    }

    /// Index of the segment that holds `offset`, relative to the region's start.
    pub(super) fn find(&self, offset: u32) -> usize {
        self.segments.partition_point(|segment| segment.end <= offset)
    }
}

impl Walk {
    /// Asks `layers`, top first, until nothing is absent any more or there is no layer left.
    fn down(layers: &[Placed], guest: Range<u64>) -> Result<Self> {
        let mut walk = Walk {
            start: guest.start,
            segments: Vec::new(),
            damage: Vec::new(),
            absent: vec![guest],
        };
        for (number, placed) in layers.iter().enumerate() {
            if walk.absent.is_empty() {
                break;
            }
            let absent = std::mem::take(&mut walk.absent);
            walk.ask(number as u16, placed, &absent)?;
        }
        Ok(walk)
    }

    /// Asks one layer for the ranges that are `absent` in all above it.
    ///
    /// They are asked for at once, with what lies between them: a region whose upper layers are
    /// scattered would else cost a read of the layer's tables per fragment. If that fails, each
    /// is asked for by itself, so that an unreadable table in between spoils nothing.
    fn ask(&mut self, number: u16, placed: &Placed, absent: &[Range<u64>]) -> Result<()> {
        let (segments, damage) = (self.segments.len(), self.damage.len());
        let result = self.ask_at_once(number, placed, absent);
        if result.is_ok() || absent.len() < 2 {
            return result;
        }
        self.segments.truncate(segments);
        self.damage.truncate(damage);
        self.absent.clear();
        absent.chunks(1).try_for_each(|range| self.ask_at_once(number, placed, range))
    }

    fn ask_at_once(&mut self, number: u16, placed: &Placed, absent: &[Range<u64>]) -> Result<()> {
        let layer = &*placed.layer;
        // Past its end a layer reads as zeros, and hides what deeper layers have there: an
        // overlay larger than its backing file never sees through it.
        let size = layer.virtual_size();
        for range in absent {
            let start = range.start.max(size);
            if start < range.end {
                self.push(start..range.end, Target::Zero);
            }
        }
        let (Some(first), Some(last)) = (absent.first(), absent.last()) else { return Ok(()) };
        let (mut at, end) = (first.start, last.end.min(size));
        if at >= end {
            return Ok(());
        }
        // The ranges that the pieces have not passed yet.
        let mut wanted = absent;
        let mut overrun = false;
        layer.map(at..end, &mut |len, mut place| {
            if len > end - at {
                overrun = true;
                return;
            }
            let piece = at..at + len;
            at = piece.end;
            // Index of this piece's error, once it is remembered.
            let mut error = None;
            while let Some(range) = wanted.first().filter(|range| range.start < piece.end) {
                let part = range.start.max(piece.start)..range.end.min(piece.end);
                if part.start < part.end {
                    let skip = part.start - piece.start;
                    self.place(number, placed, part, skip, &mut place, &mut error);
                }
                if range.end > piece.end {
                    break;
                }
                wanted = &wanted[1..];
            }
        })?;
        if overrun || at != end {
            let message = format!("layer {number} does not say where {at:#x}..{end:#x} is");
            return Err(Error::new(Kind::Corrupt, message));
        }
        Ok(())
    }

    /// Puts `part`, which begins `skip` bytes into the piece a layer said is at `place`.
    fn place(
        &mut self,
        number: u16,
        placed: &Placed,
        part: Range<u64>,
        skip: u64,
        place: &mut Place,
        error: &mut Option<u32>,
    ) {
        match place {
            Place::Raw { source, offset } => {
                let source = placed.first_source + *source as u32;
                self.push(part, Target::Raw { source, host: *offset + skip });
            }
            Place::Encoded { unit, within } => {
                let within = *within + skip as u32;
                self.push(part, Target::Encoded { layer: number, unit: *unit, within });
            }
            Place::Zero => self.push(part, Target::Zero),
            Place::Absent => match self.absent.last_mut() {
                Some(last) if last.end == part.start => last.end = part.end,
                _ => self.absent.push(part),
            },
            Place::Damaged(cause) => {
                let index = *error.get_or_insert_with(|| {
                    if self.damage.len() < Region::MAX_DAMAGE {
                        log::warn!("{cause}");
                        // The place is not looked at again but for its index.
                        let cause = std::mem::replace(cause, Error::new(Kind::Corrupt, ""));
                        self.damage.push(cause);
                    }
                    self.damage.len() as u32 - 1
                });
                self.push(part, Target::Damaged(index));
            }
        }
    }

    fn push(&mut self, range: Range<u64>, target: Target) {
        // A region is at most 4 GiB long, so relative offsets fit.
        let start = (range.start - self.start) as u32;
        let end = (range.end - self.start) as u32;
        self.segments.push(Segment { start, end, target });
    }

    fn finish(mut self) -> Region {
        self.segments.sort_unstable_by_key(|segment| segment.start);
        let mut merged: Vec<Segment> = Vec::with_capacity(self.segments.len());
        for next in self.segments {
            match merged.last_mut() {
                Some(last) if last.end == next.start && continues(last, &next) => {
                    last.end = next.end
                }
                _ => merged.push(next),
            }
        }
        Region { segments: merged.into_boxed_slice(), damage: self.damage.into_boxed_slice() }
    }
}

/// Whether `next` lies right behind `last` in the same place too.
fn continues(last: &Segment, next: &Segment) -> bool {
    let len = last.end - last.start;
    match (last.target, next.target) {
        (Target::Raw { source: a, host: x }, Target::Raw { source: b, host: y }) => {
            a == b && x.checked_add(u64::from(len)) == Some(y)
        }
        (
            Target::Encoded { layer: a, unit: x, within: from },
            Target::Encoded { layer: b, unit: y, within: to },
        ) => a == b && x == y && from.checked_add(len) == Some(to),
        (Target::Zero, Target::Zero) => true,
        (Target::Damaged(a), Target::Damaged(b)) => a == b,
        _ => false,
    }
}
