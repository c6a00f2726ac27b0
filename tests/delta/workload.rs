//! Random operations on a disk.

use stratafs::block::{BlockSink, BlockSource};
use stratafs::image::qcow2::{NewDelta, Shape};

use crate::rng::Rng;
use crate::storage::{Below, Memory};

pub const SECTOR: u64 = 512;

#[derive(Debug, Clone)]
pub enum Operation {
    Write { at: u64, data: Vec<u8> },
    Zero { at: u64, len: u64 },
    Read { at: u64, len: u64 },
    Flush,
    Reopen,
}

/// A range of a disk of `size` bytes: mostly small, often aligned, sometimes all of it.
pub fn range(rng: &mut Rng, size: u64) -> (u64, u64) {
    let len = match rng.below(20) {
        0 => rng.below(size),
        1..=4 => rng.below(size / 4),
        5..=9 => 4096,
        10..=12 => rng.below(65536),
        _ => rng.below(9000),
    };
    let align = [1, 1, 512, 4096, 4096, 65536][rng.below(6) as usize];
    let at = rng.below(size) / align * align;
    let len = if rng.below(2) == 0 { (len / align).max(1) * align } else { len };
    (at, len.min(size - at))
}

impl Operation {
    pub fn random(rng: &mut Rng, size: u64) -> Self {
        let (at, len) = range(rng, size);
        match rng.below(100) {
            0..45 => Self::Write { at, data: rng.bytes(len as usize) },
            45..50 => Self::Write { at, data: vec![0; len as usize] },
            50..68 => Self::Zero { at, len },
            68..85 => Self::Read { at, len },
            85..97 => Self::Flush,
            _ => Self::Reopen,
        }
    }

    /// Does it to the array, and says which range changed.
    pub fn apply(&self, disk: &mut [u8]) -> Option<(u64, u64)> {
        match self {
            Self::Write { at, data } => {
                disk[*at as usize..*at as usize + data.len()].copy_from_slice(data);
                Some((*at, data.len() as u64))
            }
            Self::Zero { at, len } => {
                disk[*at as usize..(*at + *len) as usize].fill(0);
                Some((*at, *len))
            }
            Self::Read { .. } | Self::Flush | Self::Reopen => None,
        }
    }

    /// Does it to the sink; reads are compared with `disk`.
    pub fn run(&self, sink: &dyn BlockSink, disk: &[u8]) -> stratafs::error::Result<()> {
        match self {
            Self::Write { at, data } => sink.write_at(*at, data),
            Self::Zero { at, len } => sink.write_zeroes(*at, *len),
            Self::Read { at, len } => {
                let mut buf = vec![0xa5; *len as usize];
                sink.read_at(*at, &mut buf)?;
                same(&buf, &disk[*at as usize..(*at + *len) as usize], *at);
                Ok(())
            }
            Self::Flush => sink.flush(),
            Self::Reopen => Ok(()),
        }
    }
}

/// Fails unless both are the same; `at` is where they begin.
#[track_caller]
pub fn same(found: &[u8], expected: &[u8], at: u64) {
    assert_eq!(found.len(), expected.len());
    if let Some(first) = found.iter().zip(expected).position(|(a, b)| a != b) {
        let wrong = found.iter().zip(expected).filter(|(a, b)| a != b).count();
        panic!(
            "{wrong} bytes differ, the first at {:#x}: {:02x} instead of {:02x}",
            at + first as u64,
            found[first],
            expected[first]
        );
    }
}

/// Fails unless the whole of `source` is `expected`, and no extent is called a hole that is none.
#[track_caller]
pub fn check_all(source: &dyn BlockSource, expected: &[u8]) {
    assert_eq!(source.len(), expected.len() as u64);
    let mut found = vec![0xa5; expected.len()];
    source.read_at(0, &mut found).unwrap();
    same(&found, expected, 0);
    let mut at = 0;
    while at < source.len() {
        let extent = source.extent_at(at).unwrap();
        assert!(extent.len > 0 && at + extent.len <= source.len());
        let bytes = &expected[at as usize..(at + extent.len) as usize];
        assert!(!extent.hole || bytes.iter().all(|&byte| byte == 0), "no hole at {at:#x}");
        at += extent.len;
    }
}

/// A random shape, a new delta of it, what lies below it, and what the disk is.
pub fn disk(rng: &mut Rng, most: u64) -> (Shape, Memory, Option<Below>, Vec<u8>) {
    let subclusters = rng.below(2) == 0;
    let cluster_bits = if subclusters { 14 + rng.below(4) as u32 } else { 9 + rng.below(9) as u32 };
    let shape = Shape { cluster_bits, subclusters };
    let size = (rng.below(most / SECTOR) + 1) * SECTOR;
    let below = (rng.below(4) > 0).then(|| {
        let len = match rng.below(3) {
            0 => size,
            _ => rng.below(size * 3 / 2) + 1,
        };
        let mut bytes = rng.bytes(len as usize);
        // A third of it are holes.
        for block in bytes.chunks_mut(20_000) {
            if rng.below(3) == 0 {
                block.fill(0);
            }
        }
        Below(bytes)
    });
    let mut expected = vec![0; size as usize];
    if let Some(below) = &below {
        let len = below.0.len().min(expected.len());
        expected[..len].copy_from_slice(&below.0[..len]);
    }
    let storage = Memory::new(Vec::new());
    let new = NewDelta { size, backing: None };
    stratafs::image::qcow2::Delta::create_on(&storage, &new, shape).unwrap();
    (shape, storage, below, expected)
}
