//! Plain disks: what snapshots are compared with.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::fs::File;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use stratafs::block::{BlockSource, Extent, Origin};
use stratafs::chain::{EncodedUnit, Layer, ParentLocator, Place};
use stratafs::error::{Error, Kind, Result};

use crate::rng::Rng;

/// Bytes that a seed stands for.
pub const PIECE: usize = 16 << 10;

/// How many different pieces there are; that of seed 0 is zeros.
const SEEDS: usize = 60;

/// The bytes of a seed: what compresses, what does not, and what does in part.
fn piece(seed: u8) -> &'static [u8] {
    static PIECES: [OnceLock<Vec<u8>>; SEEDS] = [const { OnceLock::new() }; SEEDS];
    PIECES[seed as usize].get_or_init(|| {
        let mut bytes = Rng(seed.into()).bytes(PIECE);
        match seed {
            0 => bytes.fill(0),
            _ if seed % 3 == 1 => bytes.iter_mut().enumerate().for_each(|(at, byte)| {
                *byte = (at / 100) as u8 ^ seed;
            }),
            _ if seed % 3 == 2 => bytes[PIECE / 3..].fill(seed),
            _ => {}
        }
        bytes
    })
}

/// A disk, as the seeds of its pieces; the last one may be cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plain {
    pub seeds: Vec<u8>,
    pub len: u64,
}

impl Plain {
    pub fn new(len: u64) -> Self {
        Self { seeds: vec![0; len.div_ceil(PIECE as u64) as usize], len }
    }

    /// Cuts it off, or lets zeros follow.
    pub fn resize(&mut self, len: u64) {
        // What was behind the end is no more.
        if len > self.len && !self.len.is_multiple_of(PIECE as u64) {
            let last = self.seeds.len() - 1;
            self.seeds[last] = 0;
        }
        self.seeds.resize(len.div_ceil(PIECE as u64) as usize, 0);
        self.len = len;
    }

    /// Writes a few pieces.
    pub fn change(&mut self, rng: &mut Rng) {
        if self.seeds.is_empty() {
            return;
        }
        for _ in 0..rng.below(6) {
            let at = rng.below(self.seeds.len() as u64) as usize;
            self.seeds[at] = if rng.one_in(5) { 0 } else { rng.below(SEEDS as u64) as u8 };
        }
    }

    /// The bytes of a range within it.
    pub fn read(&self, range: Range<u64>) -> Vec<u8> {
        let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
        let mut at = range.start;
        while at < range.end {
            let within = (at % PIECE as u64) as usize;
            let len = (PIECE - within).min((range.end - at) as usize);
            let seed = self.seeds[(at / PIECE as u64) as usize];
            bytes.extend_from_slice(&piece(seed)[within..within + len]);
            at += len as u64;
        }
        bytes
    }

    /// What is told of each block of `size` bytes: the seeds in it, and how much of it there is.
    pub fn blocks(&self, size: u64) -> impl Iterator<Item = (&[u8], Range<u64>)> {
        let blocks = self.seeds.chunks(size as usize / PIECE).zip(0_u64..);
        blocks
            .map(move |(seeds, number)| (seeds, number * size..((number + 1) * size).min(self.len)))
    }
}

/// Fails unless `source` holds what `plain` does in `range`.
#[track_caller]
pub fn same(source: &dyn BlockSource, plain: &Plain, range: Range<u64>) {
    let mut found = vec![0xa5; (range.end - range.start) as usize];
    source.read_at(range.start, &mut found).unwrap();
    assert!(found == plain.read(range.clone()), "{range:?} of {} differs", plain.len);
}

/// The whole of it, a little at a time.
#[track_caller]
pub fn same_all(source: &dyn BlockSource, plain: &Plain) {
    assert_eq!(source.len(), plain.len);
    for start in (0..plain.len).step_by(1 << 20) {
        same(source, plain, start..(start + (1 << 20)).min(plain.len));
    }
}

/// A disk to be read; holes are told as such, or not.
#[derive(Debug)]
pub struct PlainSource {
    pub plain: Plain,
    pub tells_holes: bool,
}

impl BlockSource for PlainSource {
    fn len(&self) -> u64 {
        self.plain.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let end = offset + buf.len() as u64;
        if end > self.plain.len {
            return Err(Error::new(Kind::OutOfBounds, "beyond the end"));
        }
        buf.copy_from_slice(&self.plain.read(offset..end));
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let piece = offset / PIECE as u64;
        let end = ((piece + 1) * PIECE as u64).min(self.plain.len);
        let hole = self.tells_holes && self.plain.seeds[piece as usize] == 0;
        Ok(Extent { len: end - offset, hole })
    }

    fn origin_at(&self, offset: u64) -> Result<Origin> {
        Ok(Origin::unknown(self.plain.len - offset))
    }

    fn whole_file(&self) -> Option<&File> {
        None
    }
}

/// The top of a chain: it holds the pieces in which `new` differs from what lies below.
#[derive(Debug)]
pub struct Patch {
    sources: Vec<Arc<dyn BlockSource>>,
    below: Plain,
    new: Plain,
}

impl Patch {
    pub fn new(below: &Plain, new: &Plain) -> Self {
        let source = PlainSource { plain: new.clone(), tells_holes: false };
        Self { sources: vec![Arc::new(source)], below: below.clone(), new: new.clone() }
    }
}

impl Layer for Patch {
    fn virtual_size(&self) -> u64 {
        self.new.len
    }

    fn parent(&self) -> Option<&ParentLocator> {
        None
    }

    fn sources(&self) -> &[Arc<dyn BlockSource>] {
        &self.sources
    }

    fn map(&self, guest: Range<u64>, emit: &mut dyn FnMut(u64, Place)) -> Result<()> {
        let mut at = guest.start;
        while at < guest.end {
            let piece = (at / PIECE as u64) as usize;
            let end = ((piece as u64 + 1) * PIECE as u64).min(guest.end);
            let place = match (self.below.seeds.get(piece), self.new.seeds[piece]) {
                (Some(&old), new) if old == new && end <= self.below.len => Place::Absent,
                (None, 0) => Place::Absent,
                (_, 0) => Place::Zero,
                _ => Place::Raw { source: 0, offset: at },
            };
            emit(end - at, place);
            at = end;
        }
        Ok(())
    }

    fn decode(&self, _unit: EncodedUnit, _out: &mut [u8]) -> Result<()> {
        Err(Error::new(Kind::Corrupt, "nothing is encoded here"))
    }
}
