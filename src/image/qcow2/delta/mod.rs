//! The delta: a qcow2 overlay, version 3, that takes the writes of a disk whose other bytes lie
//! below.
//!
//! `docs/delta.md` argues why nothing flushed is lost whenever the power goes. In short: bytes are
//! written where nothing in the file refers to yet, or over the bytes they replace; the map (L1 and
//! L2 tables) is changed in memory, and follows in a flush when the bytes it names are on stable
//! storage; what the map no longer names is used again only when the file says so too. Refcounts
//! stay in memory until the delta is closed; a file that was not closed is marked dirty and is
//! counted anew.
//!
//! Files, by noun: `geometry` (sizes), `entry` (an L2 entry), `map` (L1 and L2 tables in memory),
//! `refcounts`, `head` (the header as it is rewritten); by verb: `create`, `open`, `recount` (the
//! repair), `read`, `write`, `zero`, `flush` (the order of everything).

mod claims;
mod create;
mod entry;
mod flush;
mod geometry;
mod head;
mod map;
mod open;
mod read;
mod recount;
mod refcounts;
mod write;
mod zero;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, RwLock};

use super::header::Compression;
use crate::block::{BlockSink, BlockSource, Extent, FileStorage, Origin, Storage, check_range};
use crate::chain::ParentLocator;
use crate::error::{Error, Kind, Result, ResultExt};

pub use create::{Backing, NewDelta, Shape};

use flush::Flushes;
use geometry::Geometry;
use head::Head;
use map::Map;
use refcounts::Refcounts;

/// A qcow2 overlay open for writing.
///
/// Dropping it closes it; [`Delta::close`] says how that went.
#[derive(Debug)]
pub struct Delta {
    overlay: Arc<Overlay>,
    /// Flushes the map now and then, so that a kill loses seconds of it and not minutes.
    ticker: Option<(Arc<Stop>, JoinHandle<()>)>,
}

/// Tells the ticker to end.
type Stop = (Mutex<bool>, Condvar);

impl Delta {
    /// How long a change of the map stays in memory at most when nobody flushes.
    const TICK: Duration = Duration::from_secs(3);

    /// Makes a new, empty delta; it is on stable storage on return.
    ///
    /// # Errors
    /// [`Kind::Exists`] if something of that name is there, [`Kind::Usage`] for a size or a name
    /// that does not fit, or the host's.
    pub fn create(path: &Path, new: &NewDelta<'_>) -> Result<()> {
        create::create(path, new)
    }

    /// As [`Delta::create`], into an empty storage and in a shape of choice.
    ///
    /// # Errors
    /// As [`Delta::create`].
    pub fn create_on(storage: &dyn Storage, new: &NewDelta<'_>, shape: Shape) -> Result<()> {
        create::lay_out(storage, new, shape)
    }

    /// Opens the delta at `path` for writing, above `below` (zeros, if `None`), and repairs it if it
    /// was not closed. `size` makes the disk larger, in bytes.
    ///
    /// Nobody else can open it for writing as long as this one lives.
    ///
    /// # Errors
    /// [`Kind::Refused`] if somebody has it open, [`Kind::Unsupported`], [`Kind::Corrupt`] and
    /// [`Kind::Encrypted`] by what the file says, [`Kind::Usage`] if `size` is less than it is now,
    /// or the host's.
    pub fn open(
        path: &Path,
        below: Option<Arc<dyn BlockSource>>,
        size: Option<u64>,
    ) -> Result<Self> {
        let storage = Arc::new(FileStorage::open(path)?);
        let mut delta = Self::open_on(storage, path.display().to_string(), below, size)?;
        let stop = Arc::new(Stop::default());
        let (overlay, told) = (Arc::clone(&delta.overlay), Arc::clone(&stop));
        let ticker = std::thread::Builder::new().name("delta".into()).spawn(move || {
            let mut stopped = told.0.lock();
            while !*stopped {
                let ticked = told.1.wait_for(&mut stopped, Self::TICK).timed_out();
                if ticked && !*stopped && overlay.map.dirty_slices() > 0 {
                    // Whoever flushes next hears of a failure; it has been logged.
                    let _ = overlay.flush();
                }
            }
        });
        delta.ticker = Some((stop, ticker.within(|| "starting a thread")?));
        Ok(delta)
    }

    /// As [`Delta::open`], in any storage; `name` is what messages call it. Nothing is locked, and
    /// nothing is flushed but when it is asked for.
    ///
    /// # Errors
    /// As [`Delta::open`].
    pub fn open_on(
        storage: Arc<dyn Storage>,
        name: impl Into<String>,
        below: Option<Arc<dyn BlockSource>>,
        size: Option<u64>,
    ) -> Result<Self> {
        let name = name.into();
        let overlay =
            open::open(storage, name.clone(), below, size).map_err(|error| error.within(name))?;
        Ok(Self { overlay: Arc::new(overlay), ticker: None })
    }

    /// What lies below, as the delta names it.
    pub fn backing(&self) -> Option<&ParentLocator> {
        self.overlay.parent.as_ref()
    }

    /// Bytes of a cluster.
    pub fn cluster_size(&self) -> u64 {
        self.overlay.geometry.cluster()
    }

    /// Why it has turned read-only, if it has: a flush failed, and what was not flushed by then may
    /// be lost.
    pub fn failed(&self) -> Option<&Error> {
        self.overlay.failed.get()
    }

    /// Flushes, writes the refcounts, and marks the file as closed. It can be read from then on.
    ///
    /// # Errors
    /// The host's. The delta is sound then, too: the next open repairs it. After [`Kind::NoSpace`]
    /// it may be open still, and can be closed when there is room.
    pub fn close(&self) -> Result<()> {
        self.overlay.close().map_err(|error| error.within(self.overlay.name.clone()))
    }
}

impl Drop for Delta {
    fn drop(&mut self) {
        if let Some((stop, ticker)) = self.ticker.take() {
            *stop.0.lock() = true;
            stop.1.notify_all();
            // It cannot have panicked, and if it has there is nothing to add.
            let _ = ticker.join();
        }
        if let Err(error) = self.close() {
            log::error!("{error}; it will be repaired when it is opened again");
        }
    }
}

/// Everything of a delta that threads share.
#[derive(Debug)]
struct Overlay {
    name: String,
    storage: Arc<dyn Storage>,
    below: Option<Arc<dyn BlockSource>>,
    geometry: Geometry,
    size: u64,
    parent: Option<ParentLocator>,
    compression: Compression,
    /// The file as it was when it was opened, which has all its compressed clusters.
    as_opened: Arc<dyn BlockSource>,
    map: Map,
    refcounts: Mutex<Refcounts>,
    /// Where the file ends by the refcounts, in bytes.
    file_end: AtomicU64,
    head: Mutex<Head>,
    /// Held for reading by everything that finds a place in the map and then uses it. Whoever has
    /// held it for writing knows that places given up before are not in use any more.
    gate: RwLock<()>,
    /// Parts of the file (offset, length) that the map in memory no longer refers to, in the order
    /// of the changes. The map in the file may still.
    given_up: Mutex<Vec<(u64, u64)>>,
    flushes: Flushes,
    /// Whether bytes were written that no sync has covered. Set after the write.
    written: AtomicBool,
    failed: OnceLock<Error>,
    closed: AtomicBool,
}

impl Overlay {
    /// Fails if nothing may be written any more.
    fn check_writable(&self) -> Result<()> {
        if let Some(error) = self.failed.get() {
            let message = format!("read-only since a flush failed: {error}");
            return Err(Error::new(Kind::ReadOnly, message));
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(Kind::ReadOnly, "closed"));
        }
        Ok(())
    }

    /// Turns read-only for good.
    fn fail(&self, error: Error) -> Error {
        log::error!("{}: {error}: read-only from now on", self.name);
        // The first failure is the one to tell of.
        let _ = self.failed.set(error.again());
        error
    }

    fn named<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| error.within(self.name.clone()))
    }

    /// Where the slice that holds `guest` ends, or `end` if that comes first.
    fn slice_end(&self, guest: u64, end: u64) -> u64 {
        self.geometry.slice_end(guest).min(end)
    }
}

impl BlockSource for Delta {
    fn len(&self) -> u64 {
        self.overlay.size
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(offset, buf.len(), self.overlay.size)?;
        self.overlay.named(self.overlay.read(offset, buf))
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        self.overlay.named(self.overlay.extent(offset))
    }

    fn origin_at(&self, offset: u64) -> Result<Origin> {
        // What is written may move.
        Ok(Origin::unknown(self.overlay.size.saturating_sub(offset).max(1)))
    }

    fn whole_file(&self) -> Option<&File> {
        None
    }
}

impl BlockSink for Delta {
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        check_range(offset, data.len(), self.overlay.size)?;
        self.overlay.named(self.overlay.write(offset, data))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        let end = offset.checked_add(len).filter(|&end| end <= self.overlay.size);
        let Some(end) = end else {
            let message = format!("{len} bytes at {offset:#x} pass the end");
            return Err(Error::new(Kind::OutOfBounds, message).within(self.overlay.name.clone()));
        };
        self.overlay.named(self.overlay.zero(offset, end))
    }

    fn flush(&self) -> Result<()> {
        self.overlay.named(self.overlay.flush())
    }
}
