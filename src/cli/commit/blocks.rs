//! Copying a disk, or what some of its layers hold, into an image that is being made.
//!
//! One thread says what there is to copy, in order; what it says is read on all processors, a batch
//! at a time, while the batch before is written. So the image is written from its beginning to its
//! end, and memory is bounded by two batches.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

use rayon::iter::{IntoParallelIterator, ParallelIterator};

use crate::block::{BlockSink, BlockSource, is_zero};
use crate::chain::{Chain, Held};
use crate::error::{Error, Kind, Result, ResultExt};

/// Bytes that are zeros together or stored together: what a hole in a file is made of.
const GRAIN: u64 = 4096;
/// Bytes read at once, and pieces of as many that are read beside each other.
const PIECE: u64 = 1 << 20;
const BATCH: usize = 16;

/// How far a copy has come, for whoever watches.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Bytes of the disk dealt with, holes counted.
    pub(super) bytes: AtomicU64,
    /// Bytes written.
    pub(super) written: AtomicU64,
}

/// What to copy of a disk.
#[derive(Debug, Clone, Copy)]
pub(super) enum What<'a> {
    /// All of it; what is zeros need not be told.
    Everything,
    /// What the top layers of this chain, so many, hold by themselves.
    Above(&'a Chain, usize),
}

/// A run to copy, or to make zeros.
struct Piece {
    range: Range<u64>,
    zeros: bool,
    bytes: Vec<u8>,
}

/// Copies what `what` says of `disk` to `sink`, which holds nothing yet.
///
/// # Errors
/// Those of both, and [`Kind::Io`] if `stop` says so.
pub(super) fn copy(
    disk: &dyn BlockSource,
    what: What<'_>,
    sink: &dyn BlockSink,
    progress: &Progress,
    stop: &AtomicBool,
) -> Result<()> {
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(1);
        let reading = scope.spawn(move || {
            let mut plan = Plan { disk, sender, batch: Vec::with_capacity(BATCH), open: None };
            match what {
                What::Everything => plan.everything()?,
                What::Above(chain, layers) => {
                    chain.held(layers, &mut |range, held| plan.add(range, held))?;
                }
            }
            plan.finish()
        });
        let hide_below = matches!(what, What::Above(..));
        let mut written = Ok(());
        for batch in receiver {
            written = batch.into_iter().try_for_each(|piece: Piece| {
                if stop.load(Ordering::Relaxed) {
                    return Err(Error::new(Kind::Io, "interrupted"));
                }
                progress.bytes.store(piece.range.start, Ordering::Relaxed);
                write(&piece, hide_below, sink, progress)
            });
            if written.is_err() {
                // The reader stops when nobody takes what it read.
                break;
            }
        }
        let read = match reading.join() {
            Ok(read) => read,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        written.and(read)
    })?;
    progress.bytes.store(disk.len(), Ordering::Relaxed);
    Ok(())
}

/// What is to be copied, on its way to the reader.
struct Plan<'a> {
    disk: &'a dyn BlockSource,
    sender: SyncSender<Vec<Piece>>,
    batch: Vec<Piece>,
    /// The run that may still go on.
    open: Option<(Range<u64>, Held)>,
}

impl Plan<'_> {
    fn everything(&mut self) -> Result<()> {
        let mut at = 0;
        while at < self.disk.len() {
            let extent = self.disk.extent_at(at)?;
            let end = at.saturating_add(extent.len.max(1));
            if !extent.hole {
                self.add(at..end, Held::Data)?;
            }
            at = end;
        }
        Ok(())
    }

    /// Adds a run, rounded out to whole grains: what else is in its first and last grain is read
    /// from the disk too, and so is right. Runs come in order.
    fn add(&mut self, range: Range<u64>, held: Held) -> Result<()> {
        let from = range.start / GRAIN * GRAIN;
        let to = range.end.div_ceil(GRAIN).saturating_mul(GRAIN).min(self.disk.len());
        // Only whole grains of zeros are known to be that without a look.
        let whole = range.start == from && (range.end == to);
        let held = if whole { held } else { Held::Data };
        let Some((last, kind)) = &mut self.open else {
            self.open = Some((from..to, held));
            return Ok(());
        };
        if from <= last.end && *kind == held {
            last.end = last.end.max(to);
            return Ok(());
        }
        let mut from = from;
        if from < last.end {
            // Both are in one grain, which so is data.
            match *kind {
                Held::Data => from = last.end,
                Held::Zeros => last.end = from,
            }
        }
        let done = self.open.replace((from..to.max(from), held));
        done.map_or(Ok(()), |(range, held)| self.cut(range, held))
    }

    /// Cuts a run into pieces that begin at multiples of their size.
    fn cut(&mut self, range: Range<u64>, held: Held) -> Result<()> {
        let zeros = held == Held::Zeros;
        let mut at = range.start;
        while at < range.end {
            let end = if zeros { range.end } else { ((at / PIECE + 1) * PIECE).min(range.end) };
            self.batch.push(Piece { range: at..end, zeros, bytes: Vec::new() });
            at = end;
            if self.batch.len() == BATCH {
                self.read()?;
            }
        }
        Ok(())
    }

    fn read(&mut self) -> Result<()> {
        let disk = self.disk;
        let batch = std::mem::replace(&mut self.batch, Vec::with_capacity(BATCH));
        let batch: Vec<Piece> = batch
            .into_par_iter()
            .map(|mut piece| {
                if !piece.zeros {
                    // At most `PIECE`.
                    piece.bytes = vec![0; (piece.range.end - piece.range.start) as usize];
                    disk.read_at(piece.range.start, &mut piece.bytes)
                        .within(|| format!("at byte {}", piece.range.start))?;
                }
                Ok(piece)
            })
            .collect::<Result<_>>()?;
        let stopped = |_| Error::new(Kind::Io, "the image is not written any more");
        self.sender.send(batch).map_err(stopped)
    }

    fn finish(mut self) -> Result<()> {
        if let Some((range, held)) = self.open.take() {
            self.cut(range, held)?;
        }
        self.read()
    }
}

/// Writes a piece, its zeros as such: they take no room.
fn write(piece: &Piece, hide_below: bool, sink: &dyn BlockSink, progress: &Progress) -> Result<()> {
    let Piece { range, zeros, bytes } = piece;
    if *zeros {
        return sink.write_zeroes(range.start, range.end - range.start);
    }
    let mut at = range.start;
    let grains: Vec<(&[u8], bool)> =
        bytes.chunks(GRAIN as usize).map(|grain| (grain, is_zero(grain))).collect();
    let mut rest = bytes.as_slice();
    for run in grains.chunk_by(|(_, a), (_, b)| a == b) {
        let len: usize = run.iter().map(|(grain, _)| grain.len()).sum();
        let (part, tail) = rest.split_at_checked(len).unwrap_or((rest, &[]));
        rest = tail;
        if run.first().is_some_and(|(_, zeros)| *zeros) {
            if hide_below {
                sink.write_zeroes(at, len as u64)?;
            }
        } else {
            sink.write_at(at, part)?;
            progress.written.fetch_add(len as u64, Ordering::Relaxed);
        }
        at += len as u64;
    }
    Ok(())
}
