//! Random operations on one file beside a copy in memory: what "fsx" does for filesystems.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, SeekFrom};

#[path = "../support/mapped.rs"]
pub mod mapped;

use mapped::Mapped;

/// What may be done to the file.
#[derive(Debug, Clone, Copy)]
pub struct Fsx {
    /// Bytes it may have.
    pub max: u64,
    /// Whether its size may change; it is `max` otherwise.
    pub resizes: bool,
    /// Whether it is also written and read through a mapping.
    pub maps: bool,
    pub seed: u64,
}

/// How many operations to do, if not `default`.
pub fn operations(default: u64) -> u64 {
    let set = std::env::var("STRATA_FSX_OPERATIONS").ok();
    set.map_or(default, |set| set.parse().expect("STRATA_FSX_OPERATIONS is a number"))
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// An offset and a length in `0..end`; often aligned, mostly short.
    fn range(&mut self, end: u64) -> (u64, usize) {
        let mut offset = self.below(end);
        let mut len = 1 + match self.below(8) {
            0 => self.below(1 << 20),
            1..=3 => self.below(64 << 10),
            _ => self.below(6000),
        };
        if self.below(3) == 0 {
            offset &= !4095;
            len = len.next_multiple_of(4096);
        }
        (offset, len.min(end - offset) as usize)
    }
}

struct Run<'a> {
    path: &'a Path,
    file: File,
    direct: File,
    map: Option<Mapped>,
    model: Vec<u8>,
    random: Random,
    what: Fsx,
    log: Vec<String>,
}

impl Fsx {
    /// Does `operations` of them to the file at `path`, which holds `model`.
    #[track_caller]
    pub fn run(self, path: &Path, model: Vec<u8>, operations: u64) -> Vec<u8> {
        let (file, direct) = open(path);
        let random = Random(self.seed | 1);
        let mut run =
            Run { path, file, direct, map: None, model, random, what: self, log: Vec::new() };
        run.map();
        for _ in 0..operations {
            run.step();
        }
        run.compare("the end");
        run.model
    }
}

fn open(path: &Path) -> (File, File) {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let file = options.open(path).unwrap();
    (file, options.custom_flags(libc::O_DIRECT).open(path).unwrap())
}

impl Run<'_> {
    fn map(&mut self) {
        self.map = None;
        if self.what.maps && !self.model.is_empty() {
            self.map = Some(Mapped::new(&self.file, self.model.len()));
        }
    }

    fn step(&mut self) {
        let size = self.model.len() as u64;
        let room = if self.what.resizes { self.what.max } else { size };
        match self.random.below(if self.what.resizes { 100 } else { 90 }) {
            0..=24 => {
                let (offset, len) = self.random.range(room);
                self.write(offset, len);
            }
            25..=34 if self.map.is_some() => {
                let (offset, len) = self.random.range(size);
                let data = self.data(len);
                self.note("map write", offset, len);
                self.map.as_ref().unwrap().write(offset as usize, &data);
                self.model[offset as usize..][..len].copy_from_slice(&data);
            }
            35..=44 => {
                let (offset, len) = self.random.range(size & !4095);
                let (offset, len) = (offset & !4095, len & !4095);
                if len > 0 {
                    self.direct_write(offset, len);
                }
            }
            45..=54 if size > 0 => {
                let (offset, len) = self.random.range(size);
                self.note("punch", offset, len);
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&self.file, flags, offset, len as u64).unwrap();
                self.model[offset as usize..][..len].fill(0);
            }
            55..=59 if size > 0 => {
                let (offset, len) = self.random.range(size);
                self.note("zero", offset, len);
                let flags = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
                rustix::fs::fallocate(&self.file, flags, offset, len as u64).unwrap();
                self.model[offset as usize..][..len].fill(0);
            }
            60..=63 => self.file.sync_data().unwrap(),
            64..=66 => {
                self.note("reopen", 0, 0);
                self.map = None;
                (self.file, self.direct) = open(self.path);
                self.map();
            }
            67..=69 if size > 0 => {
                // The kernel asks us without writing out a mapping first.
                self.map.iter().for_each(Mapped::sync);
                let offset = self.random.below(size);
                let data = rustix::fs::seek(&self.file, SeekFrom::Data(offset)).unwrap_or(size);
                let skipped = &self.model[offset as usize..data as usize];
                assert!(skipped.iter().all(|&byte| byte == 0), "a hole hides data at {offset:#x}");
            }
            90.. => {
                let to = self.random.below(room + 1);
                self.note("truncate", to, 0);
                self.map = None;
                self.file.set_len(to).unwrap();
                self.model.resize(to as usize, 0);
                self.map();
            }
            _ => {
                let (offset, len) = self.random.range(size.max(1));
                self.read(offset, len);
            }
        }
        assert_eq!(self.file.metadata().unwrap().len(), self.model.len() as u64, "{}", self.told());
    }

    fn data(&mut self, len: usize) -> Vec<u8> {
        let first = self.random.next();
        (0..len as u64).map(|at| (first.wrapping_add(at * 251) >> 3) as u8 | 1).collect()
    }

    fn write(&mut self, offset: u64, len: usize) {
        let data = self.data(len);
        self.note("write", offset, len);
        self.file.write_all_at(&data, offset).unwrap();
        let end = offset as usize + len;
        let grows = end > self.model.len();
        if grows {
            self.model.resize(end, 0);
        }
        self.model[offset as usize..end].copy_from_slice(&data);
        if grows {
            self.map();
        }
    }

    fn direct_write(&mut self, offset: u64, len: usize) {
        let data = self.data(len);
        self.note("direct write", offset, len);
        let mut room = vec![0; len + 4096];
        let at = room.as_ptr().align_offset(4096);
        room[at..at + len].copy_from_slice(&data);
        self.direct.write_all_at(&room[at..at + len], offset).unwrap();
        self.model[offset as usize..][..len].copy_from_slice(&data);
    }

    fn read(&mut self, offset: u64, len: usize) {
        let len = len.min(self.model.len().saturating_sub(offset as usize));
        let mut data = vec![0; len];
        let mapped = self.map.as_ref().filter(|_| len > 0 && offset.is_multiple_of(3));
        match mapped {
            Some(map) => map.read(offset as usize, &mut data),
            None => self.file.read_exact_at(&mut data, offset).unwrap(),
        }
        self.check(&data, offset as usize, "read");
    }

    fn check(&self, data: &[u8], offset: usize, what: &str) {
        let wanted = &self.model[offset..offset + data.len()];
        if let Some(at) = data.iter().zip(wanted).position(|(have, want)| have != want) {
            let (have, want) = (data[at], wanted[at]);
            let at = offset + at;
            panic!("{what}: byte {at:#x} is {have:#x}, not {want:#x}\n{}", self.told());
        }
    }

    fn compare(&self, what: &str) {
        let mut data = vec![0; self.model.len()];
        self.file.read_exact_at(&mut data, 0).unwrap();
        self.check(&data, 0, what);
    }

    fn note(&mut self, what: &str, offset: u64, len: usize) {
        self.log.push(format!("{what} {offset:#x}+{len:#x} of {:#x}", self.model.len()));
        if self.log.len() > 40 {
            self.log.remove(0);
        }
    }

    fn told(&self) -> String {
        format!("seed {:#x}, last:\n{}", self.what.seed, self.log.join("\n"))
    }
}

/// A file of `contents` for an exerciser.
pub fn file(dir: &Path, name: &str, contents: &[u8]) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, contents).unwrap();
    path
}
