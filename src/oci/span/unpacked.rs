//! The uncompressed bytes of a blob, at any place.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use zstd::zstd_safe::{DCtx, get_error_name};

use super::cause::Cause;
use super::entrance::unpack;
use super::gzip::{Entrance, Gzip};
use super::inflate::{Inflate, LOOKAHEAD, MIN_OUTPUT, WINDOW};
use super::input::Input;
use super::spans::{Span, Spans, Start};
use super::spool::hash;
use crate::block::{
    BlockSource, Cache, Extent, Home, Key, MemorySource, Origin, Owner, Weigh, check_range,
};
use crate::error::Result;

/// Compressed bytes read at once.
const READ: usize = 24 << 10;

/// Spans in one read from which on they are shared out among the processors.
const SHARED_OUT: usize = 2;

/// A source of the uncompressed bytes of a blob.
///
/// A span is decoded from its start only as far as was asked for, once, and goes on from there
/// when more is wanted. What was decoded is verified and in the cache.
#[derive(Debug)]
pub struct Unpacked {
    blob: Arc<dyn BlockSource>,
    side: Option<Arc<dyn BlockSource>>,
    spans: Spans,
    cache: Arc<Cache>,
    owner: Owner,
}

/// One span as far as it is decoded.
#[derive(Debug)]
struct Decoded {
    pieces: Box<[OnceLock<Box<[u8]>>]>,
    /// What decodes the next piece; `None` before the first and after the last. Whoever holds the
    /// lock decodes, others who want the same span wait: it would be theirs to decode, too.
    decoder: Mutex<Option<Box<Inflating>>>,
    weight: usize,
}

impl Weigh for Decoded {
    fn weight(&self) -> usize {
        self.weight
    }
}

impl Unpacked {
    /// The bytes of `blob`, whose restart points are `spans`. Spans that the pass kept are in
    /// `side`; decoded ones go to `cache`.
    ///
    /// # Errors
    /// Corrupt if the blob or the side file is not as long as it was; usage if there is none.
    pub fn new(
        blob: Arc<dyn BlockSource>,
        side: Option<Arc<dyn BlockSource>>,
        spans: Spans,
        cache: Arc<Cache>,
    ) -> Result<Self> {
        if blob.len() != spans.blob_len() {
            let (found, expected) = (blob.len(), spans.blob_len());
            return Err(Cause::BlobLength { found, expected }.into());
        }
        let (found, expected) = (side.as_ref().map_or(0, |side| side.len()), spans.side_len());
        if found < expected {
            return Err(Cause::SideLength { found, expected }.into());
        }
        let owner = cache.owner();
        Ok(Self { blob, side, spans, cache, owner })
    }

    /// The restart points.
    pub fn spans(&self) -> &Spans {
        &self.spans
    }

    /// Fills `buf` from a span, from `within` it on.
    fn read_span(&self, index: usize, within: u64, buf: &mut [u8]) -> Result<()> {
        let span = self.spans.span(index)?;
        let decoded = self.cache.get_or_load(Key(self.owner, index as u64), || {
            let pieces = span.hashes.iter().map(|_| OnceLock::new()).collect();
            let decoder = match span.start {
                Start::Deflate(_) => {
                    size_of::<Inflating>() + READ + 4096 + WINDOW + OUTPUT + 19_000
                }
                _ => 0,
            };
            let weight = (span.range.end - span.range.start) as usize + decoder;
            Ok(Decoded { pieces, decoder: Mutex::new(None), weight })
        })?;
        let piece = self.spans.piece();
        let mut at = within as usize;
        let mut rest = buf;
        while !rest.is_empty() {
            let bytes = self.piece(&span, &decoded, at / piece)?;
            let bytes = bytes.get(at % piece..).unwrap_or_default();
            let (now, others) = rest.split_at_mut(bytes.len().min(rest.len()));
            if now.is_empty() {
                return Err(Cause::BadSpan(index).into());
            }
            now.copy_from_slice(&bytes[..now.len()]);
            at += now.len();
            rest = others;
        }
        Ok(())
    }

    /// The piece of this number, decoded if it is not yet.
    fn piece<'a>(&self, span: &Span<'_>, decoded: &'a Decoded, number: usize) -> Result<&'a [u8]> {
        let slot = decoded.pieces.get(number).ok_or(Cause::BadSpan(span.index))?;
        if let Some(bytes) = slot.get() {
            return Ok(bytes);
        }
        let mut decoder = decoded.decoder.lock();
        if slot.get().is_none() {
            // Were it to fail, the next one who asks begins anew.
            let inflating = decoder.take();
            *decoder = self.decode(span, decoded, number, inflating)?;
        }
        slot.get().map(|bytes| &**bytes).ok_or_else(|| Cause::BadSpan(span.index).into())
    }

    /// Decodes pieces up to `number`, and gives back what decodes the ones behind it.
    fn decode(
        &self,
        span: &Span<'_>,
        decoded: &Decoded,
        number: usize,
        inflating: Option<Box<Inflating>>,
    ) -> Result<Option<Box<Inflating>>> {
        let piece = self.spans.piece() as u64;
        let len = span.range.end - span.range.start;
        let size = |number: usize| (len - number as u64 * piece).min(piece) as usize;
        match span.start {
            Start::Plain(at) => {
                let mut bytes = vec![0; size(number)].into_boxed_slice();
                self.blob.read_at(at + number as u64 * piece, &mut bytes)?;
                verify(span, decoded, piece, number, bytes)?;
                Ok(None)
            }
            Start::Deflate(entrance) => {
                let first = decoded.pieces.iter().take_while(|slot| slot.get().is_some()).count();
                let (mut inflating, begin) = match inflating {
                    Some(inflating) => (inflating, first),
                    // After a failure: from the start, though the first pieces are there.
                    None => (Box::new(Inflating::enter(&self.blob, entrance, span)?), 0),
                };
                for next in begin..=number {
                    let bytes = inflating.take(size(next))?;
                    verify(span, decoded, piece, next, bytes)?;
                }
                Ok(Some(inflating).filter(|_| number + 1 < decoded.pieces.len()))
            }
            Start::Frames(at, size) => {
                self.decode_frames(&*self.blob, at, size, span, decoded)?;
                Ok(None)
            }
            Start::Side(at, size) => {
                let side = self.side.as_ref().ok_or(Cause::NoSide)?;
                self.decode_frames(&**side, at, size, span, decoded)?;
                Ok(None)
            }
        }
    }

    /// Decodes all of a span, which is zstd frames.
    fn decode_frames(
        &self,
        source: &dyn BlockSource,
        at: u64,
        size: u64,
        span: &Span<'_>,
        decoded: &Decoded,
    ) -> Result<()> {
        thread_local! {
            static CONTEXT: RefCell<DCtx<'static>> = RefCell::new(DCtx::create());
        }
        let mut encoded = vec![0; size as usize];
        source.read_at(at, &mut encoded)?;
        let mut bytes = vec![0; (span.range.end - span.range.start) as usize];
        let result =
            CONTEXT.with_borrow_mut(|context| context.decompress(&mut bytes[..], &encoded));
        match result {
            Ok(len) if len == bytes.len() => {}
            Ok(_) => return Err(Cause::Hash { offset: span.range.start }.into()),
            Err(code) => {
                return Err(Cause::Zstd { offset: at, message: get_error_name(code) }.into());
            }
        }
        let piece = self.spans.piece();
        for (number, bytes) in bytes.chunks(piece).enumerate() {
            verify(span, decoded, piece as u64, number, bytes.into())?;
        }
        Ok(())
    }
}

/// Puts a piece in its place, if it is the one that was indexed.
fn verify(
    span: &Span<'_>,
    decoded: &Decoded,
    piece: u64,
    number: usize,
    bytes: Box<[u8]>,
) -> Result<()> {
    if span.hashes.get(number) != Some(&hash(&bytes)) {
        return Err(Cause::Hash { offset: span.range.start + number as u64 * piece }.into());
    }
    if let Some(slot) = decoded.pieces.get(number) {
        // It may be there already: after a failure.
        let _ = slot.set(bytes);
    }
    Ok(())
}

/// Room for what is decoded at once, behind the window.
const OUTPUT: usize = 64 << 10;

/// A deflate span under way.
#[derive(Debug)]
struct Inflating {
    gzip: Gzip,
    input: Input<At>,
    output: Box<[u8]>,
    /// What is decoded and not yet taken.
    ready: std::ops::Range<usize>,
    floor: usize,
}

/// A source, read on from an offset.
#[derive(Debug)]
struct At {
    source: Arc<dyn BlockSource>,
    at: u64,
}

impl Read for At {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.source.len().saturating_sub(self.at);
        let len = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.source.read_at(self.at, &mut buf[..len]).map_err(io::Error::other)?;
        self.at += len as u64;
        Ok(len)
    }
}

/// The `len` bytes of a gzip stream that begin at the bit `bit` of `packed`, where a block of deflate
/// begins; `window` are those before them. Another block begins where they end, unless `packed` goes on to the end of
/// the stream: the last `next` bits are its, or what would follow if there are none. Checksums of members are not verified.
///
/// # Errors
/// Corrupt if it is no such stream, or ends before.
pub(in crate::oci) fn inflate(
    mut packed: Vec<u8>,
    bit: u8,
    next: Option<u8>,
    window: &[u8; WINDOW],
    len: usize,
) -> Result<Box<[u8]>> {
    if let Some(next) = next {
        // The decoder looks ahead: what it finds there is the end, a last block of nothing.
        const END: u16 = 0b011;
        let keep = u32::from(8 - next.min(7)) % 8;
        if keep == 0 {
            packed.push(0);
        }
        if let Some(last) = packed.last_mut() {
            *last = *last & ((1 << keep) - 1) | (END << keep) as u8;
        }
        packed.extend_from_slice(&[((END << keep) >> 8) as u8, 0, 0]);
    }
    let source = Arc::new(MemorySource::new(packed));
    let mut input = Input::new(At { source, at: 0 }, 0, READ, None);
    let byte = if bit > 0 { input.byte()? } else { 0 };
    let mut inflate = Inflate::new();
    inflate.enter(&[], bit.into(), bit.into(), byte)?;
    let mut output = vec![0; WINDOW + OUTPUT].into_boxed_slice();
    output[..WINDOW].copy_from_slice(window);
    let (gzip, ready) = (Gzip::resume(inflate), WINDOW..WINDOW);
    Inflating { gzip, input, output, ready, floor: 0 }.take(len)
}

impl Inflating {
    fn enter(blob: &Arc<dyn BlockSource>, entrance: Entrance, span: &Span<'_>) -> Result<Self> {
        let Entrance { header, bit } = entrance;
        // The byte that `bit` is in is read first: what is left of it, or all.
        let mut input =
            Input::new(At { source: Arc::clone(blob), at: bit / 8 }, bit / 8, READ, None);
        let mut byte = 0;
        if !bit.is_multiple_of(8) {
            byte = input.byte()?;
        }
        let mut head = vec![];
        if header != bit {
            let at = header / 8;
            head.resize(blob.len().saturating_sub(at).min(LOOKAHEAD as u64) as usize, 0);
            blob.read_at(at, &mut head)?;
        }
        let mut inflate = Inflate::new();
        inflate.enter(&head, header, bit, byte)?;
        let mut output = vec![0; WINDOW + OUTPUT].into_boxed_slice();
        // A window is shorter only at the start of the stream.
        let oldest = WINDOW - span.range.start.min(WINDOW as u64) as usize;
        unpack(span.window, &mut output[oldest..WINDOW]).ok_or(Cause::BadSpan(span.index))?;
        let (gzip, ready) = (Gzip::resume(inflate), WINDOW..WINDOW);
        Ok(Self { gzip, input, output, ready, floor: 0 })
    }

    /// The next `len` bytes.
    fn take(&mut self, len: usize) -> Result<Box<[u8]>> {
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            if self.ready.is_empty() {
                let mut end = self.ready.end;
                if self.output.len() - end < 2 * MIN_OUTPUT {
                    self.output.copy_within(end - WINDOW..end, 0);
                    self.floor = self.floor.saturating_sub(end - WINDOW);
                    end = WINDOW;
                }
                let begin = end;
                // Little more than is wanted, for nobody may want the rest.
                let room = (begin + (len - bytes.len()) + MIN_OUTPUT).min(self.output.len());
                let output = &mut self.output[..room];
                if !self.gzip.run(&mut self.input, output, &mut end, &mut self.floor, &mut ())? {
                    return Err(Cause::Cut { offset: self.input.offset() }.into());
                }
                self.ready = begin..end;
            }
            let now = self.ready.len().min(len - bytes.len());
            bytes.extend_from_slice(&self.output[self.ready.start..self.ready.start + now]);
            self.ready.start += now;
        }
        Ok(bytes.into())
    }
}

impl BlockSource for Unpacked {
    fn len(&self) -> u64 {
        self.spans.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(offset, buf.len(), self.len())?;
        let mut reads = vec![];
        let (mut at, mut rest) = (offset, buf);
        let mut index = self.spans.find(offset);
        while !rest.is_empty() {
            let range = self.spans.span(index)?.range;
            let len = rest.len().min(usize::try_from(range.end - at).unwrap_or(usize::MAX));
            let (now, others) = rest.split_at_mut(len);
            reads.push((index, at - range.start, now));
            (at, rest, index) = (range.end, others, index + 1);
        }
        if reads.len() >= SHARED_OUT {
            let read = |(index, within, buf)| self.read_span(index, within, buf);
            return reads.into_par_iter().try_for_each(read);
        }
        reads.into_iter().try_for_each(|(index, within, buf)| self.read_span(index, within, buf))
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        // What is a hole only decoding would tell.
        Ok(Extent { len: self.len().saturating_sub(offset).max(1), hole: false })
    }

    fn origin_at(&self, offset: u64) -> Result<Origin> {
        let range = self.spans.span(self.spans.find(offset))?.range;
        let len = range.end.saturating_sub(offset).max(1);
        let within = u32::try_from(offset.saturating_sub(range.start)).ok();
        // The same restart point of the same file.
        Ok(match (self.blob.origin_at(0)?.home, within) {
            (Home::Stored { file, offset: 0 }, Some(within)) => {
                Origin { len, home: Home::Encoded { file, unit: range.start, within } }
            }
            _ => Origin::unknown(len),
        })
    }

    fn whole_file(&self) -> Option<&File> {
        None
    }
}
