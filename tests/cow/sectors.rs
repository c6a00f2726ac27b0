//! A disk whose every sector says which of the versions written to it it is.
//!
//! Sector `n` of version `v` has contents that nothing else has; version 0 is the base image's. The
//! ledger knows for each sector the newest version handed to a server and the newest that a flush
//! has made safe: what is read must lie between them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use super::Rng;

pub(crate) const SECTOR: usize = 512;
/// Length of the disk, most of which nobody touches.
pub(crate) const DISK: u64 = 2 << 30;
/// What is written: pieces of the disk at its ends and across the borders of the ranges that
/// common qcow2 L2 tables map.
const ISLANDS: [u64; 6] =
    [0, (300 << 20) + (32 << 10), (511 << 20), (1023 << 20), (1535 << 20), DISK - ISLAND];
const ISLAND: u64 = 2 << 20;
const SECTORS_OF_ISLAND: usize = ISLAND as usize / SECTOR;
/// Sectors that are written.
pub(crate) const SECTORS: usize = ISLANDS.len() * SECTORS_OF_ISLAND;

/// Where a sector lies on the disk.
pub(crate) fn offset(sector: usize) -> u64 {
    ISLANDS[sector / SECTORS_OF_ISLAND] + (sector % SECTORS_OF_ISLAND * SECTOR) as u64
}

/// The stripe a sector lies in: the first sector and how many there are. A stripe is written by
/// one thread only. They are of 4 KiB, 32 KiB and 256 KiB, so that threads meet in a cluster.
pub(crate) fn stripe(sector: usize) -> (usize, usize) {
    let len = match sector % SECTORS_OF_ISLAND {
        ..1024 => 8,
        1024..2048 => 64,
        _ => 512,
    };
    (sector / len * len, len)
}

/// What a sector holds in a version that is not zeros.
fn contents(seed: u64, sector: usize, version: u32) -> [u8; SECTOR] {
    let mut rng = Rng(seed ^ ((sector as u64) << 32) ^ u64::from(version));
    let mut bytes = [0; SECTOR];
    for word in bytes.chunks_exact_mut(8) {
        word.copy_from_slice(&rng.next().to_le_bytes());
    }
    bytes[..4].copy_from_slice(&version.to_le_bytes());
    bytes[4..8].copy_from_slice(&u32::try_from(sector).expect("few sectors").to_le_bytes());
    bytes
}

/// A quarter of the base image's pages are holes.
fn is_hole(seed: u64, sector: usize) -> bool {
    Rng(seed ^ (sector as u64 / 8)).one_in(4)
}

/// What was written to each sector.
#[derive(Debug)]
pub(crate) struct Ledger {
    seed: u64,
    /// The newest version handed over.
    issued: Vec<AtomicU32>,
    /// The newest version that must not be lost.
    floor: Vec<AtomicU32>,
    /// The newest version handed over before the last check: unless it was found then, it is gone.
    settled: Vec<AtomicU32>,
    /// The versions that are zeros.
    zeros: Mutex<BTreeMap<usize, Vec<u32>>>,
    /// Writes that came back, and have not been flushed since.
    unflushed: Mutex<Vec<(usize, u32)>>,
}

impl Ledger {
    pub(crate) fn new(seed: u64) -> Self {
        let versions = || (0..SECTORS).map(|_| AtomicU32::new(0)).collect();
        Self {
            seed,
            issued: versions(),
            floor: versions(),
            settled: versions(),
            zeros: Mutex::new(
                (0..SECTORS).filter(|&at| is_hole(seed, at)).map(|at| (at, vec![0])).collect(),
            ),
            unflushed: Mutex::default(),
        }
    }

    /// Writes the base image.
    pub(crate) fn write_base(&self, file: &File) -> io::Result<()> {
        file.set_len(DISK)?;
        for sector in (0..SECTORS).filter(|&at| !is_hole(self.seed, at)) {
            file.write_all_at(&contents(self.seed, sector, 0), offset(sector))?;
        }
        Ok(())
    }

    /// New versions of `len` sectors, to be written at once. Whoever calls owns their stripe.
    pub(crate) fn issue(&self, sector: usize, len: usize) -> Vec<u8> {
        let one = |at| contents(self.seed, at, self.issued[at].fetch_add(1, SeqCst) + 1);
        (sector..sector + len).flat_map(one).collect()
    }

    /// New versions that are zeros.
    pub(crate) fn issue_zeros(&self, sector: usize, len: usize) {
        let mut zeros = self.zeros.lock().unwrap();
        for at in sector..sector + len {
            zeros.entry(at).or_default().push(self.issued[at].fetch_add(1, SeqCst) + 1);
        }
    }

    /// The write of what was issued last came back.
    pub(crate) fn completed(&self, sector: usize, len: usize) {
        let mut unflushed = self.unflushed.lock().unwrap();
        unflushed.extend((sector..sector + len).map(|at| (at, self.issued[at].load(SeqCst))));
    }

    /// What a flush that begins now makes safe.
    pub(crate) fn flush_begins(&self) -> Vec<(usize, u32)> {
        std::mem::take(&mut *self.unflushed.lock().unwrap())
    }

    /// That flush came back.
    pub(crate) fn flushed(&self, writes: &[(usize, u32)]) {
        for &(sector, version) in writes {
            self.floor[sector].fetch_max(version, SeqCst);
        }
    }

    /// Reads all sectors. What is found is what must be found from now on.
    ///
    /// # Errors
    /// Each sector that is what it must not be, in words.
    pub(crate) fn check(&self, file: &File) -> Result<(), String> {
        let mut wrong = Vec::new();
        let mut zeros = self.zeros.lock().unwrap();
        let mut piece = vec![0; 64 * SECTOR];
        for first in (0..SECTORS).step_by(64) {
            if let Err(error) = file.read_exact_at(&mut piece, offset(first)) {
                wrong.push(format!("reading at {}: {error}", offset(first)));
                continue;
            }
            for (sector, bytes) in (first..).zip(piece.chunks_exact(SECTOR)) {
                let [floor, settled, issued] = [&self.floor, &self.settled, &self.issued]
                    .map(|versions| versions[sector].load(SeqCst));
                let is_zero = zeros.entry(sector).or_default();
                is_zero.retain(|&version| version >= floor);
                match self.version(sector, bytes, is_zero, issued) {
                    Some(found) if found == floor || found > floor.max(settled) => {
                        self.floor[sector].store(found, SeqCst);
                        self.settled[sector].store(issued, SeqCst);
                        is_zero.retain(|&version| version == found);
                    }
                    found => wrong.push(format!(
                        "sector {sector} at {}: {}, expected {floor} or one of {} to {issued}",
                        offset(sector),
                        found.map_or_else(
                            || format!("no version of it ({:02x?}...)", &bytes[..16]),
                            |found| format!("version {found}")
                        ),
                        floor.max(settled) + 1
                    )),
                }
            }
        }
        self.unflushed.lock().unwrap().clear();
        if wrong.is_empty() {
            return Ok(());
        }
        Err(format!("{} wrong sectors:\n{}", wrong.len(), wrong[..wrong.len().min(20)].join("\n")))
    }

    /// What the version of a sector is, by its contents; the newest one if it is zeros.
    fn version(&self, sector: usize, bytes: &[u8], zeros: &[u32], issued: u32) -> Option<u32> {
        if bytes.iter().all(|&byte| byte == 0) {
            return zeros.last().copied();
        }
        let version = u32::from_le_bytes(bytes[..4].try_into().ok()?);
        let is_hole = version == 0 && is_hole(self.seed, sector);
        (version <= issued && !is_hole && bytes == contents(self.seed, sector, version))
            .then_some(version)
    }

    /// Whether `bytes` are the newest version of a sector. Whoever calls owns its stripe.
    pub(crate) fn is_newest(&self, sector: usize, bytes: &[u8]) -> bool {
        let [floor, settled, issued] = [&self.floor, &self.settled, &self.issued]
            .map(|versions| versions[sector].load(SeqCst));
        // What was handed over before the last check may have been lost then.
        let newest = if issued == settled { floor } else { issued };
        let zeros = self.zeros.lock().unwrap();
        let zeros = zeros.get(&sector).map_or(&[][..], Vec::as_slice);
        self.version(sector, bytes, zeros, issued) == Some(newest)
    }
}
