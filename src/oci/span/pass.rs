//! One streaming pass over a blob.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bzip2::bufread::BzDecoder;
use lzma_rust2::XzReader;

use super::Compression;
use super::cause::Cause;
use super::entrance::Chooser;
use super::gzip::Gzip;
use super::inflate::{MIN_OUTPUT, WINDOW};
use super::input::{Input, READ};
use super::spans::{MAX_ENCODED, MAX_SPAN, Parts, Spans, Start};
use super::spool::{Lag, told};
use super::zstd::{Turn, Zstd};
use crate::error::{Error, Kind, Result};

/// Bytes of the output buffer besides the window that is kept in it.
const OUTPUT: usize = 192 << 10;

/// Kibibytes that the xz decoder may take: `xz -9` needs 65 MiB.
const XZ_MEMORY: u32 = 192 << 10;

/// Where spans are kept that cannot be decoded from the blob itself.
#[derive(Debug)]
pub struct Side {
    /// An empty file, open for writing.
    pub file: File,
    /// Bytes that may be written to it.
    pub max_len: u64,
}

/// How a pass is made.
#[derive(Debug)]
pub struct Options {
    /// Uncompressed bytes between restart points, at most and about.
    pub span: u64,
    /// Uncompressed bytes of the whole at most: beyond it is a bomb.
    pub max_len: u64,
    /// Without it, blobs that need one are refused: xz, bzip2, and zstd with large frames.
    pub side: Option<Side>,
    /// Once it is set, the pass fails soon.
    pub stop: Arc<AtomicBool>,
}

impl Default for Options {
    fn default() -> Self {
        Self { span: Self::SPAN, max_len: Self::MAX_LEN, side: None, stop: Arc::default() }
    }
}

impl Options {
    /// What is a good distance of restart points: `docs/layer-index.md` has the measurements.
    pub const SPAN: u64 = 448 << 10;
    /// Larger than any layer that was met.
    pub const MAX_LEN: u64 = 256 << 30;
    /// What a blob may inflate to however small it is: a minute of work.
    const SMALL_LEN: u64 = 32 << 30;
    /// How often a larger blob may hold its own length. Files compress 20 times at most, those that are
    /// mostly zeros 1,000 times.
    const RATIO: u64 = 256;

    /// What a blob of `len` bytes may inflate to.
    pub fn max_len_of(how: Compression, len: u64) -> u64 {
        match how {
            Compression::None => Self::MAX_LEN,
            _ => len.saturating_mul(Self::RATIO).clamp(Self::SMALL_LEN, Self::MAX_LEN),
        }
    }

    fn span(&self) -> u64 {
        self.span.clamp(1 << 10, MAX_SPAN / 4)
    }

    /// Bytes of a span that are verified together.
    fn piece(&self) -> u32 {
        (self.span() / 8).next_power_of_two().clamp(256, 32 << 10) as u32
    }
}

/// What is known of a blob after a pass over all of it.
#[derive(Debug)]
pub struct Passed {
    /// Restart points and hashes.
    pub spans: Spans,
    /// SHA-256 of the compressed bytes, all of them.
    pub blob: [u8; 32],
    /// SHA-256 of the uncompressed bytes.
    pub diff_id: [u8; 32],
    /// Bytes of the blob.
    pub blob_len: u64,
    /// Uncompressed bytes.
    pub len: u64,
    /// Bytes behind the compressed data that are none of it and were ignored, as gzip(1) and
    /// bzip2(1) do.
    pub trailing: u64,
}

/// A pass over a blob: read the uncompressed bytes from it, then [`Pass::finish`] it.
pub struct Pass<R: Read> {
    coder: Coder<R>,
    lag: Lag,
    parts: Parts,
    span: u64,
    max_len: u64,
    stop: Arc<AtomicBool>,
    output: Box<[u8]>,
    /// What is decoded and not yet consumed.
    ready: std::ops::Range<usize>,
    ended: bool,
    failed: Option<Error>,
}

impl<R: Read> std::fmt::Debug for Pass<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pass").field("at", &self.lag.len()).finish_non_exhaustive()
    }
}

enum Coder<R: Read> {
    Plain(Input<R>),
    Gzip {
        gzip: Box<Gzip>,
        chooser: Box<Chooser>,
        floor: usize,
        input: Input<R>,
    },
    Zstd {
        zstd: Zstd,
        frames: Frames,
        input: Input<R>,
    },
    Xz(Box<XzReader<Input<R>>>),
    /// `None` only while a stream is replaced by the next.
    Bzip2(Option<BzDecoder<Input<R>>>),
}

/// The frame under way and those before it that are in one span with it.
#[derive(Debug, Default)]
struct Frames {
    /// The frame that is being decoded: where it begins, uncompressed and in the blob.
    frame: Option<(u64, u64)>,
    /// The frame is kept in the side file, and up to where it is cut into spans.
    kept: Option<u64>,
    /// Where the span begins, uncompressed and in the blob, and where in the blob it ends.
    open: Option<(u64, u64, u64)>,
}

impl<R: Read> Pass<R> {
    /// Begins a pass over `compressed`, which is compressed in this way.
    ///
    /// # Errors
    /// Those of starting threads.
    pub fn new(compressed: R, how: Compression, options: Options) -> Result<Self> {
        let (span, piece, max_len) = (options.span(), options.piece(), options.max_len);
        let stop = options.stop;
        let needs_side = matches!(how, Compression::Zstd | Compression::Xz | Compression::Bzip2);
        let side = options.side.filter(|_| needs_side).map(|side| (side.file, side.max_len));
        let lag = Lag::new(piece as usize, how == Compression::None, side)?;
        let input = Input::new(compressed, 0, READ, Some(lag.spool()));
        let coder = match how {
            Compression::None => Coder::Plain(input),
            Compression::Gzip => {
                let (gzip, chooser) = (Box::new(Gzip::new()), Box::new(Chooser::new(span)?));
                Coder::Gzip { gzip, chooser, floor: 0, input }
            }
            Compression::Zstd => {
                Coder::Zstd { zstd: Zstd::new()?, frames: Frames::default(), input }
            }
            Compression::Xz => Coder::Xz(Box::new(XzReader::new_mem_limit(input, true, XZ_MEMORY))),
            Compression::Bzip2 => Coder::Bzip2(Some(BzDecoder::new(input))),
        };
        let parts = Parts {
            compression: how,
            piece,
            blob_len: 0,
            len: 0,
            side_len: 0,
            spans: vec![],
            hashes: vec![],
        };
        let output = vec![0; WINDOW + OUTPUT].into_boxed_slice();
        let (ready, ended, failed) = (0..0, false, None);
        Ok(Self { coder, lag, parts, span, max_len, stop, output, ready, ended, failed })
    }

    /// Reads the blob to its end, whatever has been read so far, and says what is in it.
    ///
    /// # Errors
    /// Corrupt: the stream is damaged or cut off, or a checksum does not match. Refused: it
    /// inflates to more than it may. Those of reading.
    pub fn finish(mut self) -> Result<Passed> {
        if let Some(failed) = self.failed {
            return Err(failed);
        }
        while !self.ended {
            self.ready.start = self.ready.end;
            self.produce()?;
        }
        let mut input = match self.coder {
            Coder::Plain(input) | Coder::Gzip { input, .. } | Coder::Zstd { input, .. } => input,
            Coder::Xz(xz) => xz.into_inner(),
            Coder::Bzip2(bzip2) => bzip2.ok_or(Cause::BadRestart)?.into_inner(),
        };
        let trailing = input.drain()?;
        let blob_len = input.offset();
        drop(input);
        let (mut parts, len) = (self.parts, self.lag.len());
        let (digests, kept) = self.lag.finish()?;
        if len == 0 {
            parts.spans.clear();
        }
        let mut kept = kept.into_iter();
        for (_, start, _) in &mut parts.spans {
            if let Start::Side(at, size) = start
                && let Some(kept) = kept.next()
            {
                (*at, *size) = kept;
                parts.side_len = kept.0 + kept.1;
            }
        }
        (parts.blob_len, parts.len, parts.hashes) = (blob_len, len, digests.hashes);
        let spans = parts.spans()?;
        Ok(Passed {
            spans,
            blob: digests.compressed,
            diff_id: digests.plain,
            blob_len,
            len,
            trailing,
        })
    }

    /// Makes bytes ready, when there are none: still none at the end.
    fn produce(&mut self) -> Result<()> {
        while self.ready.is_empty() && !self.ended {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::new(Kind::Io, "interrupted"));
            }
            self.turn()?;
            if self.lag.len() > self.max_len {
                return Err(Cause::TooLong { limit: self.max_len }.into());
            }
        }
        Ok(())
    }

    fn turn(&mut self) -> Result<()> {
        let Self { coder, lag, parts, span, output, .. } = self;
        let mut begin = 0;
        let mut end = 0;
        match coder {
            Coder::Plain(input) => {
                let ready = input.ready()?;
                end = ready.len().min(output.len());
                output[..end].copy_from_slice(&ready[..end]);
                input.used(end);
                self.ended = end == 0;
                lag.push(&output[..end]);
                parts.cut(lag, *span, Start::Plain)?;
            }
            Coder::Gzip { gzip, chooser, floor, input } => {
                begin = self.ready.end;
                if output.len() - begin < OUTPUT / 2 {
                    let keep = begin.min(WINDOW);
                    output.copy_within(begin - keep..begin, 0);
                    *floor = floor.saturating_sub(begin - keep);
                    chooser.base += (begin - keep) as u64;
                    begin = keep;
                }
                end = begin;
                let more = gzip.run(input, output, &mut end, floor, &mut **chooser)?;
                lag.push(&output[begin..end]);
                if let Some(place) = gzip.place(input) {
                    if parts.spans.is_empty() {
                        parts.spans.push((0, Start::Deflate(place), vec![]));
                    }
                    chooser.paused(lag.len(), place);
                }
                while let Some(chosen) = chooser.choose(lag, !more, input.offset())? {
                    lag.cut(chosen.at, false)?;
                    parts.add(chosen);
                }
                lag.release(chooser.frontier().saturating_sub(WINDOW as u64))?;
                self.ended = !more;
            }
            Coder::Zstd { zstd, frames, input } => {
                let turn = zstd.run(input, output, &mut end)?;
                lag.push(&output[..end]);
                frames.after(turn, input.offset(), lag, parts, *span)?;
                self.ended = turn == Turn::Done;
            }
            Coder::Xz(xz) => {
                end = decoded("xz", xz.read(output), xz.inner().offset())?;
                self.ended = end == 0;
                lag.push(&output[..end]);
                parts.cut(lag, *span, |_| Start::Side(0, 0))?;
            }
            Coder::Bzip2(bzip2) => {
                let Some(reader) = bzip2 else { return Err(Cause::BadRestart.into()) };
                end = decoded("bzip2", reader.read(output), reader.get_ref().offset())?;
                if end == 0 {
                    let next = reader.get_mut().peek::<3>()?;
                    self.ended = next != Some(*b"BZh");
                    if !self.ended {
                        *bzip2 = bzip2.take().map(|reader| BzDecoder::new(reader.into_inner()));
                    }
                }
                lag.push(&output[..end]);
                parts.cut(lag, *span, |_| Start::Side(0, 0))?;
            }
        }
        self.ready = begin..end;
        Ok(())
    }
}

/// What another's decoder says, which had read up to `offset`.
fn decoded(format: &'static str, result: io::Result<usize>, offset: u64) -> Result<usize> {
    result.map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Cause::Cut { offset }.into(),
        // What the input itself said.
        io::ErrorKind::Other if error.get_ref().is_some_and(|inner| inner.is::<Error>()) => {
            told(error)
        }
        _ => Cause::Stream { format, message: error.to_string() }.into(),
    })
}

impl Parts {
    /// Cuts what came into equal spans.
    fn cut(&mut self, lag: &mut Lag, span: u64, start: impl Fn(u64) -> Start) -> Result<()> {
        loop {
            let at = self.spans.last().map_or(0, |(at, ..)| at + span);
            if at >= lag.len() {
                return lag.release(lag.len());
            }
            let start = start(at);
            let keep = matches!(start, Start::Side(..));
            if keep && !lag.keeps() {
                return Err(Cause::NoSide.into());
            }
            lag.cut(at, keep)?;
            self.spans.push((at, start, vec![]));
        }
    }
}

impl Frames {
    /// Notes what a turn did, after which the input is at `offset`.
    fn after(
        &mut self,
        turn: Turn,
        offset: u64,
        lag: &mut Lag,
        parts: &mut Parts,
        span: u64,
    ) -> Result<()> {
        if let Turn::Begin(at) = turn {
            self.frame = Some((lag.len(), at));
        }
        if let Some((start, at)) = self.frame {
            // Without a side file frames may be as large as a reader can bear.
            let limit = if lag.keeps() { span } else { MAX_SPAN / 2 };
            let is_large = lag.len() - start > limit || offset - at > MAX_ENCODED / 2;
            if self.kept.is_none() && is_large && lag.len() > start {
                if !lag.keeps() {
                    return Err(Cause::NoSide.into());
                }
                self.close(parts);
                self.kept = Some(start);
            }
            if let Some(cut) = &mut self.kept {
                while *cut < lag.len() {
                    lag.cut(*cut, true)?;
                    parts.spans.push((*cut, Start::Side(0, 0), vec![]));
                    *cut += span;
                }
                lag.release(lag.len())?;
            }
            if turn == Turn::End {
                self.frame = None;
                if self.kept.take().is_none() && lag.len() > start {
                    self.add(start, at, offset, lag, parts, span)?;
                }
                lag.release(lag.len())?;
            }
        }
        if turn == Turn::Done {
            self.close(parts);
        }
        Ok(())
    }

    /// Adds a frame that has ended to the open span, or opens one with it.
    fn add(
        &mut self,
        start: u64,
        at: u64,
        end: u64,
        lag: &mut Lag,
        parts: &mut Parts,
        span: u64,
    ) -> Result<()> {
        match &mut self.open {
            Some((first, from, to))
                if lag.len() - *first <= span.max(lag.len() - start)
                    && end - *from <= MAX_ENCODED / 2 =>
            {
                *to = end;
            }
            _ => {
                self.close(parts);
                lag.cut(start, false)?;
                self.open = Some((start, at, end));
            }
        }
        Ok(())
    }

    fn close(&mut self, parts: &mut Parts) {
        if let Some((start, at, end)) = self.open.take() {
            parts.spans.push((start, Start::Frames(at, end - at), vec![]));
        }
    }
}

impl<R: Read> Read for Pass<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let ready = self.fill_buf()?;
        let len = ready.len().min(buf.len());
        buf[..len].copy_from_slice(&ready[..len]);
        self.consume(len);
        Ok(len)
    }
}

impl<R: Read> BufRead for Pass<R> {
    /// The next uncompressed bytes. An error carries one of ours, and comes again.
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if let Some(failed) = &self.failed {
            return Err(io::Error::other(failed.again()));
        }
        if let Err(error) = self.produce() {
            let again = error.again();
            self.failed = Some(error);
            return Err(io::Error::other(again));
        }
        Ok(&self.output[self.ready.clone()])
    }

    fn consume(&mut self, count: usize) {
        self.ready.start = (self.ready.start + count).min(self.ready.end);
    }
}

const _: () = assert!(OUTPUT / 2 > MIN_OUTPUT);
