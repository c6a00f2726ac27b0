//! A source that fails when told to, for tests of everything above it.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{BlockSource, Extent, Origin};
use crate::error::{Error, Result};

/// What goes wrong with one read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The host answers with this errno.
    Errno(i32),
    /// All bytes come back with every bit turned over.
    Garbage,
}

type Plan = dyn Fn(u64, u64, usize) -> Option<Fault> + Send + Sync;

/// A source over another that asks a plan before each read.
pub struct FaultSource {
    source: Arc<dyn BlockSource>,
    plan: Box<Plan>,
    reads: AtomicU64,
}

impl FaultSource {
    /// `plan` is asked with the number of the read (from 0), its offset and its length.
    pub fn new(
        source: Arc<dyn BlockSource>,
        plan: impl Fn(u64, u64, usize) -> Option<Fault> + Send + Sync + 'static,
    ) -> Self {
        Self { source, plan: Box::new(plan), reads: AtomicU64::new(0) }
    }

    /// How many reads there were so far.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for FaultSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultSource").field("source", &self.source).finish_non_exhaustive()
    }
}

impl BlockSource for FaultSource {
    fn len(&self) -> u64 {
        self.source.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let number = self.reads.fetch_add(1, Ordering::Relaxed);
        match (self.plan)(number, offset, buf.len()) {
            None => self.source.read_at(offset, buf),
            Some(Fault::Errno(errno)) => Err(Error::io(io::Error::from_raw_os_error(errno))),
            Some(Fault::Garbage) => {
                self.source.read_at(offset, buf)?;
                buf.iter_mut().for_each(|byte| *byte = !*byte);
                Ok(())
            }
        }
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        self.source.extent_at(offset)
    }

    fn origin_at(&self, offset: u64) -> Result<Origin> {
        self.source.origin_at(offset)
    }

    fn whole_file(&self) -> Option<&File> {
        None
    }
}
