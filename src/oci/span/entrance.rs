//! Where a deflate stream is entered: the choice of restart points.
//!
//! Any symbol will do, so a cheap one is taken: the place that the fewest later matches reach
//! across, for the length of the span that ends there. What they need of the 32 KiB before it is
//! all that is kept of them, compressed: in a tar some 500 bytes rather than 32 KiB.

use std::cell::RefCell;

use zstd::bulk::Decompressor;

use super::gzip::Entrance;
use super::inflate::{Observer, WINDOW};
use super::spool::Lag;
use crate::error::{Error, Result};

/// Uncompressed bytes at most in which the place is looked for.
const ZONE: u64 = 384 << 10;

/// Windows in all from which on spans become longer: a MiB, and this part of the compressed bytes.
/// A stream can be made in which each window is needed whole.
const WINDOWS: u64 = 1 << 20;
const WINDOWS_PART: u64 = 64;
const LONG_SPAN: u64 = 4 << 20;

/// Bytes of a zone whose costs are added up together.
const BUCKET: u64 = 32;

/// What a restart point costs besides the bytes of its window, in such bytes: its record, and the
/// time of whoever enters there.
const POINT: u64 = 200;

/// Level that windows are compressed with. The highest make them a twentieth smaller and take
/// longer than the whole pass.
const WINDOW_LEVEL: i32 = 6;

/// A match, or with a length of 0 a place between two calls of the decoder.
#[derive(Debug, Clone, Copy)]
struct Match {
    /// Where it begins, uncompressed.
    at: u64,
    entrance: Entrance,
    distance: u32,
    len: u32,
}

/// A place to take up decoding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chosen {
    /// The offset of its first byte, uncompressed.
    pub(super) at: u64,
    pub(super) entrance: Entrance,
    /// What is needed of the bytes before, packed; empty for nothing.
    pub(super) window: Vec<u8>,
}

/// What was seen of the stream since the zone began in which the next place is looked for.
pub(super) struct Chooser {
    span: u64,
    /// Where the last span begins.
    last: u64,
    zone: (u64, u64),
    seen: Vec<Match>,
    /// The offset of the decoder's output buffer.
    pub(super) base: u64,
    /// Bytes of all windows so far.
    windows: u64,
    compressor: zstd::bulk::Compressor<'static>,
}

impl std::fmt::Debug for Chooser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chooser").field("zone", &self.zone).finish_non_exhaustive()
    }
}

impl Observer for Chooser {
    #[inline(always)]
    fn matched(&mut self, header: u64, bit: u64, at: usize, distance: usize, len: usize) {
        let at = self.base + at as u64;
        if at >= self.zone.0 {
            let (distance, len) = (distance as u32, len as u32);
            self.seen.push(Match { at, entrance: Entrance { header, bit }, distance, len });
        }
    }
}

impl Chooser {
    /// Places about every `span` bytes, the first of which is at 0.
    pub(super) fn new(span: u64) -> Result<Self> {
        let compressor = zstd::bulk::Compressor::new(WINDOW_LEVEL).map_err(Error::io)?;
        let zone = zone(0, span);
        Ok(Self { span, last: 0, zone, seen: vec![], base: 0, windows: 0, compressor })
    }

    /// The first place where a span may begin that is not chosen yet.
    pub(super) fn frontier(&self) -> u64 {
        self.zone.0
    }

    /// Notes a place between two calls of the decoder, which is at `at`.
    pub(super) fn paused(&mut self, at: u64, entrance: Entrance) {
        if at >= self.zone.0 {
            self.seen.push(Match { at, entrance, distance: 0, len: 0 });
        }
    }

    /// Chooses the next place, if enough has been seen: a window beyond the zone, or the `end`.
    /// `compressed` bytes were read so far; uncompressed ones wait in `lag`.
    pub(super) fn choose(
        &mut self,
        lag: &Lag,
        end: bool,
        compressed: u64,
    ) -> Result<Option<Chosen>> {
        let (from, to) = self.zone;
        let Some(first) = self.seen.first().copied() else { return Ok(None) };
        // Where there was none in the zone, the next one has to do.
        let to = to.max(first.at);
        if lag.len() < to + WINDOW as u64 && !end || first.at >= lag.len() {
            return Ok(None);
        }
        let candidates = self.seen.partition_point(|seen| seen.at <= to && seen.at < lag.len());
        let costs = self.costs(from, to);
        let cost = |seen: &Match| {
            let bytes = costs.get(((seen.at - from) / BUCKET) as usize).copied().unwrap_or(0);
            // For each byte of the span, with 20 bits behind the point.
            ((bytes + POINT) << 20) / (seen.at - self.last).max(1)
        };
        // Of several the last: spans are as long as they may be.
        let best =
            self.seen[..candidates].iter().enumerate().rev().min_by_key(|(_, seen)| cost(seen));
        let Some((index, &Match { at, entrance, .. })) = best else { return Ok(None) };
        let window = self.window(index, at, lag)?;
        self.windows += window.len() as u64;
        let generous = self.windows <= WINDOWS + compressed / WINDOWS_PART;
        self.last = at;
        self.zone = zone(at, if generous { self.span } else { self.span.max(LONG_SPAN) });
        let keep = self.seen.partition_point(|seen| seen.at < self.zone.0.max(at + 1));
        self.seen.drain(..keep);
        Ok(Some(Chosen { at, entrance, window }))
    }

    /// About how many bytes before each bucket of the zone are referred to from behind it.
    fn costs(&self, from: u64, to: u64) -> Vec<u64> {
        let mut costs = vec![0_i64; ((to - from) / BUCKET) as usize + 2];
        let last = costs.len() - 1;
        let bucket = |at: u64| ((at.saturating_sub(from) / BUCKET) as usize).min(last);
        for seen in &self.seen {
            let source = (seen.at + u64::from(seen.len)).saturating_sub(u64::from(seen.distance));
            // Needed by what begins behind the source and up to the match itself.
            let (begin, end) = (bucket(source.min(seen.at)), bucket(seen.at) + 1);
            costs[begin] += i64::from(seen.len);
            if let Some(cost) = costs.get_mut(end) {
                *cost -= i64::from(seen.len);
            }
        }
        let mut sum = 0;
        let sums = costs.into_iter().map(|cost| {
            sum += cost;
            sum.max(0).unsigned_abs()
        });
        sums.collect()
    }

    /// The bytes before `at` that the matches from `index` on refer to, packed.
    fn window(&mut self, index: usize, at: u64, lag: &Lag) -> Result<Vec<u8>> {
        let mut needed = vec![false; WINDOW];
        // The oldest byte of the window.
        let oldest = at.saturating_sub(WINDOW as u64);
        for seen in &self.seen[index..] {
            if seen.at >= at + WINDOW as u64 {
                break;
            }
            let source = seen.at.saturating_sub(u64::from(seen.distance));
            let end = (source + u64::from(seen.len)).min(at);
            if seen.len > 0 && source < end && source >= oldest {
                needed[(source - oldest) as usize..(end - oldest) as usize].fill(true);
            }
        }
        pack(&needed, &mut self.compressor, |from, len, into| {
            lag.copy(oldest + from as u64, len, into)
        })
    }
}

/// Where after a place at `at` the next is looked for.
fn zone(at: u64, span: u64) -> (u64, u64) {
    (at + (span - (span / 4 * 3).min(ZONE)).max(1), at + span)
}

/// The needed bytes as runs: `distance from the last run, length` of each, then the bytes.
fn pack(
    needed: &[bool],
    compressor: &mut zstd::bulk::Compressor<'_>,
    copy: impl Fn(usize, usize, &mut Vec<u8>),
) -> Result<Vec<u8>> {
    let (mut runs, mut bytes, mut end) = (vec![], vec![], 0);
    let mut at = 0;
    for run in needed.chunk_by(|a, b| a == b) {
        if run.first() == Some(&true) {
            put(&mut runs, at - end);
            put(&mut runs, run.len());
            copy(at, run.len(), &mut bytes);
            end = at + run.len();
        }
        at += run.len();
    }
    if runs.is_empty() {
        return Ok(vec![]);
    }
    // No run has no length: what ends the list.
    runs.extend([0, 0]);
    runs.extend(bytes);
    compressor.compress(&runs).map_err(Error::io)
}

fn put(into: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        into.push(number as u8 | 0x80);
        number >>= 7;
    }
    into.push(number as u8);
}

fn take(bytes: &mut &[u8]) -> Option<usize> {
    let mut number = 0;
    for shift in [0, 7, 14] {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= usize::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

/// Fills `window` with the bytes that `packed` keeps of it, and leaves the rest; `None` if they are
/// not of a window.
pub(super) fn unpack(packed: &[u8], window: &mut [u8]) -> Option<()> {
    if packed.is_empty() {
        return Some(());
    }
    thread_local! {
        static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = RefCell::new(Decompressor::new().ok());
    }
    // At worst every other byte, with two bytes for each.
    let runs =
        DECOMPRESSOR.with_borrow_mut(|it| it.as_mut()?.decompress(packed, 3 * WINDOW).ok())?;
    let mut list = runs.as_slice();
    let mut bytes = list;
    while take(&mut bytes)? + take(&mut bytes)? > 0 {}
    let mut at = 0_usize;
    loop {
        let (skip, len) = (take(&mut list)?, take(&mut list)?);
        if len == 0 {
            return Some(());
        }
        at = at.checked_add(skip)?;
        let (run, rest) = bytes.split_at_checked(len)?;
        window.get_mut(at..at.checked_add(len)?)?.copy_from_slice(run);
        (at, bytes) = (at + len, rest);
    }
}
