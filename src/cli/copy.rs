//! Copying a disk, or what some of its layers hold, into something that is being made.
//!
//! One thread says what there is to copy, in order; what it says is read and prepared on all processors, a
//! batch at a time, while the batch before is put where it belongs, in order. So memory is bounded by a few
//! batches.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

use rayon::iter::{IntoParallelIterator, ParallelIterator};

use crate::block::{BlockSink, BlockSource, is_zero};
use crate::chain::{Chain, Held};
use crate::error::{Error, Kind, Result, ResultExt};

/// Bytes that are zeros together or stored together: what a hole in a file is made of.
pub(super) const GRAIN: u64 = 4096;
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
    /// All of it but what is known to be zeros.
    Data,
    /// All of it.
    Everything,
    /// What the top layers of this chain, so many, hold by themselves.
    Above(&'a Chain, usize),
}

/// A run to copy, or to make zeros.
#[derive(Debug)]
pub(super) struct Piece {
    /// Where it is on the disk: at most a megabyte, unless it is zeros.
    pub(super) range: Range<u64>,
    /// Whether it is known to be zeros.
    pub(super) zeros: bool,
    /// Its bytes, if not.
    pub(super) bytes: Vec<u8>,
}

/// A copy to be made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Copy<'a> {
    /// What is read.
    pub(super) disk: &'a dyn BlockSource,
    /// What of it.
    pub(super) what: What<'a>,
    /// Pieces begin and end at multiples of so many bytes, which divide a megabyte; the last ends with the disk.
    pub(super) grain: u64,
    /// Where to tell how far it has come.
    pub(super) progress: &'a Progress,
    /// Set to stop: copying then fails soon.
    pub(super) stop: &'a AtomicBool,
}

impl Copy<'_> {
    /// Calls `prepare` with each piece, on all processors and in no order, and `put` with what came of it,
    /// in the order of the disk.
    ///
    /// # Errors
    /// Those of reading the disk and of both, and [`Kind::Io`] if told to stop.
    pub(super) fn run<T: Send>(
        &self,
        prepare: impl Fn(Piece) -> Result<T> + Sync + Send,
        mut put: impl FnMut(T) -> Result<()>,
    ) -> Result<()> {
        let Self { disk, what, progress, .. } = *self;
        std::thread::scope(|scope| {
            let (sender, receiver) = sync_channel(1);
            let reading = scope.spawn(move || {
                let batch = Vec::with_capacity(BATCH);
                let mut plan = Plan { copy: *self, prepare, sender, batch, open: None };
                match what {
                    What::Data | What::Everything => plan.walk(matches!(what, What::Everything))?,
                    What::Above(chain, layers) => {
                        chain.held(layers, &mut |range, held| plan.add(range, held))?;
                    }
                }
                plan.finish()
            });
            let mut done = Ok(());
            for batch in receiver {
                done = batch.into_iter().try_for_each(|(at, prepared)| {
                    progress.bytes.store(at, Ordering::Relaxed);
                    put(prepared)
                });
                if done.is_err() {
                    // The reader stops when nobody takes what it read.
                    break;
                }
            }
            let read = match reading.join() {
                Ok(read) => read,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            done.and(read)
        })?;
        progress.bytes.store(disk.len(), Ordering::Relaxed);
        Ok(())
    }
}

/// What is to be copied, on its way to the reader.
struct Plan<'a, T, F> {
    copy: Copy<'a>,
    prepare: F,
    sender: SyncSender<Vec<(u64, T)>>,
    batch: Vec<Piece>,
    /// The run that may still go on.
    open: Option<(Range<u64>, Held)>,
}

impl<T: Send, F: Fn(Piece) -> Result<T> + Sync> Plan<'_, T, F> {
    fn walk(&mut self, holes: bool) -> Result<()> {
        let disk = self.copy.disk;
        let mut at = 0;
        while at < disk.len() {
            let extent = disk.extent_at(at)?;
            let end = at.saturating_add(extent.len.max(1));
            match (extent.hole, holes) {
                (false, _) => self.add(at..end, Held::Data)?,
                (true, true) => self.add(at..end, Held::Zeros)?,
                (true, false) => {}
            }
            at = end;
        }
        Ok(())
    }

    /// Adds a run. Only whole grains of zeros are known to be that without a look.
    fn add(&mut self, range: Range<u64>, held: Held) -> Result<()> {
        let (grain, len) = (self.copy.grain, self.copy.disk.len());
        if held == Held::Data {
            return self.add_grains(range, held);
        }
        let from = range.start.next_multiple_of(grain);
        let to = if range.end == len { len } else { range.end / grain * grain };
        if from >= to {
            return self.add_grains(range, Held::Data);
        }
        if range.start < from {
            self.add_grains(range.start..from, Held::Data)?;
        }
        self.add_grains(from..to, Held::Zeros)?;
        if to < range.end {
            self.add_grains(to..range.end, Held::Data)?;
        }
        Ok(())
    }

    /// Adds a run, rounded out to whole grains: what else is in its first and last grain is read
    /// from the disk too, and so is right. Runs come in order.
    fn add_grains(&mut self, range: Range<u64>, held: Held) -> Result<()> {
        let grain = self.copy.grain;
        let from = range.start / grain * grain;
        let to = range.end.div_ceil(grain).saturating_mul(grain).min(self.copy.disk.len());
        let Some((last, kind)) = &mut self.open else {
            self.open = Some((from..to, held));
            return Ok(());
        };
        if from <= last.end && *kind == held {
            last.end = last.end.max(to);
            return Ok(());
        }
        // Data that ends in the grain that this run begins in; zeros end with their grain.
        let from = from.max(last.end);
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
        let Self { copy: Copy { disk, stop, .. }, prepare, .. } = self;
        if stop.load(Ordering::Relaxed) {
            return Err(Error::new(Kind::Io, "interrupted"));
        }
        let batch = std::mem::replace(&mut self.batch, Vec::with_capacity(BATCH));
        let batch: Vec<(u64, T)> = batch
            .into_par_iter()
            .map(|mut piece| {
                let at = piece.range.start;
                if !piece.zeros {
                    // At most `PIECE`.
                    piece.bytes = vec![0; (piece.range.end - at) as usize];
                    disk.read_at(at, &mut piece.bytes).within(|| format!("at byte {at}"))?;
                }
                Ok((at, prepare(piece)?))
            })
            .collect::<Result<_>>()?;
        let stopped = |_| Error::new(Kind::Io, "what was read is not taken any more");
        self.sender.send(batch).map_err(stopped)
    }

    fn finish(mut self) -> Result<()> {
        if let Some((range, held)) = self.open.take() {
            self.cut(range, held)?;
        }
        self.read()
    }
}

/// Writes a piece; of its bytes, zeros as such, or not at all if they are `there` already.
pub(super) fn write(
    piece: &Piece,
    there: bool,
    sink: &dyn BlockSink,
    progress: &Progress,
) -> Result<()> {
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
            if !there {
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
