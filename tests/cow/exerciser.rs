//! One file and what it should hold.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate, fdatasync, fsync};
use rustix::io::Errno;

use super::Rng;

/// No file grows beyond this.
const LONGEST: usize = 512 << 10;
const LONGEST_PIECE: u64 = 64 << 10;
/// What direct I/O, and the memory for it, are aligned to.
const ALIGNED: usize = 4096;

/// How a file is exercised.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Way {
    /// The file may be cut and may grow.
    pub resize: bool,
    /// Some reads and writes go through a mapping.
    pub mapped: bool,
    /// Reads and writes go past the page cache.
    pub direct: bool,
}

pub(crate) struct Exerciser {
    expected: Vec<u8>,
    way: Way,
    seed: u64,
    rng: Rng,
    done: u64,
    /// The last operations, for whoever looks for what went wrong.
    last: VecDeque<String>,
}

impl Exerciser {
    pub(crate) fn new(expected: Vec<u8>, way: Way, seed: u64) -> Self {
        Self { expected, way, seed, rng: Rng(seed), done: 0, last: VecDeque::new() }
    }

    /// Does `count` operations on the file, which stays open but for now and then.
    pub(crate) fn run(&mut self, path: &Path, count: u64) {
        let mut file = self.open(path);
        for _ in 0..count {
            if self.rng.one_in(500) {
                self.note(|| "close, open".into());
                file = self.open(path);
            }
            let len = file.metadata().unwrap().len();
            self.assert(len == self.expected.len() as u64, || format!("the size is {len}"));
            if let Err(error) = self.operation(&file) {
                self.assert(false, || error.to_string());
            }
            self.done += 1;
        }
        fsync(&file).unwrap();
        self.compare(path);
    }

    /// What was done so far, in words.
    pub(crate) fn done(&self) -> String {
        format!("{} operations from seed {}", self.done, self.seed)
    }

    /// Reads the whole file.
    #[track_caller]
    pub(crate) fn compare(&self, path: &Path) {
        let found = std::fs::read(path).unwrap();
        self.assert_same(&found, 0);
        self.assert(found.len() == self.expected.len(), || format!("the size is {}", found.len()));
    }

    fn open(&self, path: &Path) -> File {
        let direct = if self.way.direct { libc::O_DIRECT } else { 0 };
        OpenOptions::new().read(true).write(true).custom_flags(direct).open(path).unwrap()
    }

    fn note(&mut self, what: impl FnOnce() -> String) {
        if self.last.len() == 40 {
            self.last.pop_front();
        }
        self.last.push_back(format!("{}: {}", self.done, what()));
    }

    #[track_caller]
    fn assert(&self, holds: bool, wrong: impl FnOnce() -> String) {
        if !holds {
            let last: Vec<_> = self.last.iter().map(String::as_str).collect();
            let (seed, way, size) = (self.seed, self.way, self.expected.len());
            panic!("{} (seed {seed}, {way:?}, size {size}), after\n{}", wrong(), last.join("\n"));
        }
    }

    #[track_caller]
    fn assert_same(&self, found: &[u8], offset: usize) {
        let expected = &self.expected[offset..];
        if let Some(at) = found.iter().zip(expected).position(|(found, expected)| found != expected)
        {
            let (found, expected) = (found[at], expected[at]);
            self.assert(false, || {
                format!("differs at {}: {found:#04x}, not {expected:#04x}", offset + at)
            });
        }
    }

    /// A range of the file; beyond its end by at most `beyond` bytes.
    fn range(&mut self, beyond: usize) -> (usize, usize) {
        let longest = if self.way.resize { LONGEST } else { self.expected.len() };
        let end = (self.expected.len() + beyond).min(longest) as u64;
        let offset = self.rng.below(end);
        let piece = LONGEST_PIECE >> (2 * self.rng.below(8));
        let len = self.rng.below(piece.min(end - offset)) + 1;
        let unit = if self.way.direct { if self.way.resize { ALIGNED } else { 512 } } else { 1 };
        let (offset, len) = (offset as usize / unit * unit, (len as usize).next_multiple_of(unit));
        (offset, len.min((end as usize).saturating_sub(offset) / unit * unit))
    }

    fn grow(&mut self, len: usize) {
        if len > self.expected.len() {
            self.expected.resize(len, 0);
        }
    }

    fn operation(&mut self, file: &File) -> io::Result<()> {
        let beyond = if self.way.resize && self.rng.one_in(2) { 40_000 } else { 0 };
        match self.rng.below(16) {
            0..5 => {
                let (offset, len) = self.range(0);
                self.note(|| format!("read {len} at {offset}"));
                let mut memory = vec![0; len + ALIGNED];
                let from = memory.as_ptr().align_offset(ALIGNED);
                let found = &mut memory[from..from + len];
                file.read_exact_at(found, offset as u64)?;
                self.assert_same(found, offset);
            }
            5..10 => {
                let (offset, len) = self.range(beyond);
                self.note(|| format!("write {len} at {offset}"));
                let mut memory = vec![0; len + ALIGNED];
                let from = memory.as_ptr().align_offset(ALIGNED);
                let data = &mut memory[from..from + len];
                data.fill_with(|| self.rng.next() as u8);
                file.write_all_at(data, offset as u64)?;
                if len > 0 {
                    self.grow(offset + len);
                    self.expected[offset..offset + len].copy_from_slice(data);
                }
            }
            10 | 11 if self.way.mapped => self.through_a_mapping(file)?,
            12 if self.way.resize => {
                let unit = if self.way.direct { ALIGNED } else { 1 };
                let len = self.rng.below(LONGEST as u64) as usize / unit * unit;
                self.note(|| format!("cut or grow to {len}"));
                file.set_len(len as u64)?;
                self.expected.resize(len, 0);
            }
            13 => {
                let (offset, len) = self.range(0);
                if len > 0 {
                    self.note(|| format!("punch {len} at {offset}"));
                    let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    fallocate(file, how, offset as u64, len as u64)?;
                    self.expected[offset..offset + len].fill(0);
                }
            }
            14 => {
                let (offset, len) = self.range(beyond);
                if len > 0 {
                    self.note(|| format!("zero {len} at {offset}"));
                    let grows = offset + len > self.expected.len();
                    let how =
                        if grows { FallocateFlags::empty() } else { FallocateFlags::KEEP_SIZE };
                    let how = how | FallocateFlags::ZERO_RANGE;
                    fallocate(file, how, offset as u64, len as u64)?;
                    self.grow(offset + len);
                    self.expected[offset..offset + len].fill(0);
                }
            }
            _ if self.rng.one_in(2) => {
                self.note(|| "fdatasync, forget the page cache".into());
                fdatasync(file)?;
                fadvise(file, 0, None, Advice::DontNeed)?;
            }
            _ => {
                let (offset, len) = self.range(0);
                self.note(|| format!("reserve {len} at {offset}"));
                if len > 0 {
                    match fallocate(file, FallocateFlags::KEEP_SIZE, offset as u64, len as u64) {
                        // A disk has no room of its own to reserve.
                        Err(Errno::OPNOTSUPP) if !self.way.resize => {}
                        result => result?,
                    }
                }
            }
        }
        Ok(())
    }

    #[expect(unsafe_code, reason = "the standard library maps no files")]
    fn through_a_mapping(&mut self, file: &File) -> io::Result<()> {
        let (offset, len) = self.range(0);
        if len == 0 {
            return Ok(());
        }
        let write = self.rng.one_in(2);
        self.note(|| format!("map, {} {len} at {offset}", if write { "write" } else { "read" }));
        let data: Vec<u8> = (0..len).map(|_| self.rng.next() as u8).collect();
        let mut found = vec![0; len];
        let from = offset / ALIGNED * ALIGNED;
        let within = offset - from;
        let sync = self.rng.one_in(4);
        // SAFETY: a new mapping at a place of the kernel's choice.
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                within + len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                libc::off_t::try_from(from).unwrap(),
            )
        };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `within + len` bytes are mapped, and nobody else uses or cuts the file meanwhile.
        unsafe {
            let bytes = map.cast::<u8>().add(within);
            if write {
                std::ptr::copy_nonoverlapping(data.as_ptr(), bytes, len);
                if sync && libc::msync(map, within + len, libc::MS_SYNC) != 0 {
                    return Err(io::Error::last_os_error());
                }
            } else {
                std::ptr::copy_nonoverlapping(bytes, found.as_mut_ptr(), len);
            }
            libc::munmap(map, within + len);
        }
        if write {
            self.expected[offset..offset + len].copy_from_slice(&data);
        } else {
            self.assert_same(&found, offset);
        }
        Ok(())
    }
}
