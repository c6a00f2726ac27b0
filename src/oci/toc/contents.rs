//! The contents of files, fetched chunk by chunk.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::GzDecoder;
use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::cause::Cause;
use super::table::{Packing, Table, Unit};
use super::{Ranges, WINDOW_LOG, hash};
use crate::block::{self, BlockSource, Cache, Extent, Key, Origin, Owner, check_range};
use crate::error::{Error, Result};
use crate::oci::Digest;

/// Bytes of a blob fetched by one request at most, for units that lie beside each other.
const REQUEST: u64 = 8 << 20;
/// Bytes between two units that are rather fetched than left out: about what a round trip costs.
const GAP: u64 = 64 << 10;
/// Bytes that are fetched beyond what is wanted, if something is read in order: chunks may be small, and round trips
/// long.
const AHEAD: u64 = 2 << 20;

/// A source of the chunks of a layer, one behind the other.
///
/// Each is held against its digest before a byte of it is given out, and kept in the cache. What
/// lies together is fetched by one request.
#[derive(Debug)]
pub(super) struct Contents {
    blob: Arc<dyn BlockSource>,
    table: Table,
    cache: Arc<Cache>,
    owner: Owner,
    /// Where the last read ended.
    ended: AtomicU64,
}

type Decoded = Arc<block::Unit>;

impl Contents {
    pub(super) fn new(blob: Arc<dyn BlockSource>, table: Table, cache: Arc<Cache>) -> Self {
        let owner = cache.owner();
        Self { blob, table, cache, owner, ended: AtomicU64::new(u64::MAX) }
    }

    fn key(&self, index: usize) -> Key {
        Key(self.owner, index as u64)
    }

    /// The units `range`, which are not in the cache, by one request. Each fails by itself: what is
    /// wrong with a unit fetched ahead is no matter of whoever reads the one before it.
    fn fetch(&self, range: Range<usize>) -> Result<Vec<Result<Decoded>>> {
        let first = self.table.unit(range.start)?;
        if range.len() == 1 {
            // Who wants the same one waits for it.
            let decoded = self.cache.get_or_load(self.key(range.start), || {
                let stored = first.stored.clone();
                let size = (stored.end - stored.start).min(1 << 20) as usize;
                let packed = Ranges::new(&self.blob, stored);
                self.decode(&first, BufReader::with_capacity(size.max(1), packed))
            });
            return Ok(vec![decoded]);
        }
        let last = self.table.unit(range.end - 1)?;
        let start = first.stored.start;
        // No more than a request, as whoever asks sees to.
        let mut packed = vec![0; last.stored.end.saturating_sub(start) as usize];
        self.blob.read_at(start, &mut packed)?;
        let decode = |index| {
            let unit = self.table.unit(index)?;
            let range = (unit.stored.start - start) as usize..(unit.stored.end - start) as usize;
            let packed = packed.get(range).unwrap_or_default();
            self.cache.get_or_load(self.key(index), || self.decode(&unit, packed))
        };
        Ok(range.into_par_iter().map(decode).collect())
    }

    /// Decompresses a unit, and holds its chunks against their digests.
    fn decode(&self, unit: &Unit<'_>, packed: impl BufRead) -> Result<block::Unit> {
        let at = unit.stored.start;
        let failed = |error: io::Error| match error.get_ref().is_some_and(|it| it.is::<Error>()) {
            true => Error::io(error),
            false => Cause::Chunk { at, why: error.to_string() }.into(),
        };
        let mut bytes = vec![0; unit.len()];
        match self.table.packing() {
            Packing::Gzip => unpack(unit, &mut GzDecoder::new(packed), &mut bytes),
            Packing::Zstd => zstd::stream::read::Decoder::with_buffer(packed).and_then(|mut it| {
                it.window_log_max(WINDOW_LOG)?;
                unpack(unit, &mut it, &mut bytes)
            }),
        }
        .map_err(failed)?;
        let mut rest = &*bytes;
        for chunk in unit.chunks() {
            let (now, others) = rest.split_at(rest.len().min(chunk.len as usize));
            let found = hash(now);
            if found != chunk.digest {
                let (named, found) = (Digest::of_sha256(&chunk.digest), Digest::of_sha256(&found));
                return Err(Cause::Contents { at, named, found }.into());
            }
            rest = others;
        }
        Ok(block::Unit(bytes.into()))
    }
}

/// Fills `bytes` with the chunks of a unit that `plain` begins.
fn unpack(unit: &Unit<'_>, plain: &mut dyn Read, bytes: &mut [u8]) -> io::Result<()> {
    let pass =
        |plain: &mut dyn Read, len: u64| match io::copy(&mut plain.take(len), &mut io::sink()) {
            Ok(passed) if passed < len => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            other => other.map(drop),
        };
    pass(plain, unit.skip)?;
    let (mut at, mut rest) = (0, bytes);
    for chunk in unit.chunks() {
        pass(plain, chunk.inner - at)?;
        let (now, others) = rest.split_at_mut(rest.len().min(chunk.len as usize));
        plain.read_exact(now)?;
        (at, rest) = (chunk.inner + chunk.len, others);
    }
    Ok(())
}

impl BlockSource for Contents {
    fn len(&self) -> u64 {
        self.table.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(offset, buf.len(), self.len())?;
        let end = offset + buf.len() as u64;
        let ahead = match self.ended.swap(end, Ordering::Relaxed) == offset {
            true => AHEAD,
            false => 0,
        };
        let (mut at, mut rest) = (offset, buf);
        let mut index = self.table.find(offset);
        let copy = |place: u64, decoded: &Decoded, at: &mut u64, rest: &mut &mut [u8]| {
            let bytes = decoded.0.get((*at - place) as usize..).unwrap_or_default();
            let len = bytes.len().min(rest.len());
            let (now, others) = std::mem::take(rest).split_at_mut(len);
            now.copy_from_slice(bytes.get(..now.len()).unwrap_or_default());
            *at += now.len() as u64;
            *rest = others;
        };
        while !rest.is_empty() {
            let unit = self.table.unit(index)?;
            if let Some(decoded) = self.cache.get::<block::Unit>(self.key(index)) {
                copy(unit.places.start, &decoded, &mut at, &mut rest);
                index += 1;
                continue;
            }
            let run = index..self.missing(index, (end + ahead).min(self.len()))?;
            for (nth, decoded) in run.clone().zip(self.fetch(run)?) {
                if rest.is_empty() {
                    break;
                }
                copy(self.table.unit(nth)?.places.start, &decoded?, &mut at, &mut rest);
                index = nth + 1;
            }
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        Ok(Extent { len: self.len().saturating_sub(offset).max(1), hole: false })
    }

    fn origin_at(&self, offset: u64) -> Result<Origin> {
        Ok(Origin::unknown(self.len().saturating_sub(offset).max(1)))
    }

    fn whole_file(&self) -> Option<&File> {
        None
    }
}

impl Contents {
    /// Where the units end that are fetched together with `first`: those that hold places before
    /// `end`, lie beside each other and are not in the cache.
    fn missing(&self, first: usize, end: u64) -> Result<usize> {
        let mut unit = self.table.unit(first)?;
        let (mut next, start) = (first + 1, unit.stored.start);
        while unit.places.end < end {
            let after = self.table.unit(next)?;
            let beside = (unit.stored.end..=unit.stored.end + GAP).contains(&after.stored.start);
            // What lies beside it begins no earlier.
            let small = |after: &Unit<'_>| after.stored.end - start <= REQUEST;
            if !beside || !small(&after) || self.cache.get::<block::Unit>(self.key(next)).is_some()
            {
                break;
            }
            (unit, next) = (after, next + 1);
        }
        Ok(next)
    }
}
