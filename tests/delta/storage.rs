//! A storage in memory that remembers what was done to it and fails on demand; and a source with
//! holes.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Mutex;

use stratafs::block::{BlockSource, Extent, Origin, Storage};
use stratafs::error::{Error, Kind, Result};

/// One change of the storage.
#[derive(Debug, Clone)]
pub enum Change {
    Write { at: u64, data: Vec<u8> },
    Punch { at: u64, len: u64 },
    Length(u64),
    Sync,
}

type Plan = Box<dyn Fn(u64, Call) -> Option<i32> + Send>;

/// What is about to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Read,
    Write,
    Punch,
    Length,
    Sync,
}

#[derive(Default)]
pub struct State {
    pub bytes: Vec<u8>,
    /// Everything that was done, if it is to be remembered.
    pub log: Option<Vec<Change>>,
    /// How many calls there were, and what is asked whether the next one fails, and how.
    pub calls: u64,
    pub plan: Option<Plan>,
}

pub struct Memory(pub Mutex<State>);

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Memory")
    }
}

impl Memory {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Mutex::new(State { bytes, ..State::default() }))
    }

    pub fn save(&self, path: &Path) {
        std::fs::write(path, &self.0.lock().unwrap().bytes).unwrap();
    }

    pub fn log_len(&self) -> usize {
        self.0.lock().unwrap().log.as_ref().map_or(0, Vec::len)
    }

    fn change(&self, call: Call, change: impl FnOnce() -> Change) -> Result<()> {
        let mut state = self.0.lock().unwrap();
        state.calls += 1;
        let fault = state.plan.as_ref().and_then(|plan| plan(state.calls, call));
        if let Some(errno) = fault {
            return Err(Error::io(io::Error::from_raw_os_error(errno)));
        }
        let change = change();
        apply(&mut state.bytes, &change);
        if let Some(log) = &mut state.log {
            log.push(change);
        }
        Ok(())
    }
}

pub fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write { at, data } => {
            let at = *at as usize;
            if bytes.len() < at + data.len() {
                bytes.resize(at + data.len(), 0);
            }
            bytes[at..at + data.len()].copy_from_slice(data);
        }
        Change::Punch { at, len } => {
            let end = (*at + *len).min(bytes.len() as u64) as usize;
            if let Some(hole) = bytes.get_mut(*at as usize..end) {
                hole.fill(0);
            }
        }
        Change::Length(len) => bytes.resize(*len as usize, 0),
        Change::Sync => {}
    }
}

impl Storage for Memory {
    fn len(&self) -> Result<u64> {
        Ok(self.0.lock().unwrap().bytes.len() as u64)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let mut state = self.0.lock().unwrap();
        state.calls += 1;
        if let Some(errno) = state.plan.as_ref().and_then(|plan| plan(state.calls, Call::Read)) {
            return Err(Error::io(io::Error::from_raw_os_error(errno)));
        }
        let there = state.bytes.get(offset as usize..).unwrap_or(&[]);
        let len = there.len().min(buf.len());
        buf[..len].copy_from_slice(&there[..len]);
        Ok(len)
    }

    fn write_at(&self, at: u64, data: &[u8]) -> Result<()> {
        self.change(Call::Write, || Change::Write { at, data: data.to_vec() })
    }

    fn punch(&self, at: u64, len: u64) -> Result<()> {
        self.change(Call::Punch, || Change::Punch { at, len })
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.change(Call::Length, || Change::Length(len))
    }

    fn sync(&self) -> Result<()> {
        self.change(Call::Sync, || Change::Sync)
    }
}

/// A source that tells its blocks of zeros as holes.
#[derive(Debug)]
pub struct Below(pub Vec<u8>);

impl BlockSource for Below {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let range = offset as usize..offset as usize + buf.len();
        let bytes = self.0.get(range).ok_or_else(|| Error::new(Kind::OutOfBounds, "below"))?;
        buf.copy_from_slice(bytes);
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let end = (offset / 4096 * 4096 + 4096).min(self.len());
        let hole = self.0[offset as usize..end as usize].iter().all(|&byte| byte == 0);
        Ok(Extent { len: end - offset, hole })
    }

    fn origin_at(&self, offset: u64) -> Result<Origin> {
        Ok(Origin::unknown(self.len() - offset))
    }

    fn whole_file(&self) -> Option<&File> {
        None
    }
}
