//! What a format that is written keeps its bytes in: a host file, or whatever a test puts there.

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, Mode, OFlags};

use super::{BlockSource, Extent, Origin, check_range, lock};
use crate::error::{Error, Kind, Result, ResultExt};

/// Bytes that can be written, and that grow.
///
/// What is written is seen by every later read at once, but is on stable storage only after the
/// next [`Storage::sync`] that succeeds; until then a crash may keep any part of it, in any order.
#[expect(clippy::len_without_is_empty, reason = "its length is asked for, never whether it is 0")]
pub trait Storage: Send + Sync + Debug {
    /// The length now, in bytes.
    ///
    /// # Errors
    /// The host's.
    fn len(&self) -> Result<u64>;

    /// Fills `buf` with what there is at `offset`, and says how much that was: less than all only
    /// at the end.
    ///
    /// # Errors
    /// The host's.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize>;

    /// Writes all of `data`, making the storage longer where it must. A gap reads as zeros.
    ///
    /// # Errors
    /// The host's; then any part may have been written.
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()>;

    /// Gives back the room of a range nobody needs any more. Where the host cannot do that nothing
    /// happens, so that what the range reads as is not known.
    ///
    /// # Errors
    /// The host's.
    fn punch(&self, offset: u64, len: u64) -> Result<()>;

    /// Cuts or extends, with zeros.
    ///
    /// # Errors
    /// The host's.
    fn set_len(&self, len: u64) -> Result<()>;

    /// Returns when everything written before the call is on stable storage.
    ///
    /// # Errors
    /// The host's. What was not on stable storage may be lost then, and asking again may not say so.
    fn sync(&self) -> Result<()>;
}

/// A host file that this process alone writes.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    path: PathBuf,
}

impl FileStorage {
    /// Bytes of the largest write of the host. Its page cache keeps what is written in one call in
    /// folios of up to that size, and ext4 (Linux 6.18) looks at every block of a folio whenever a
    /// part of it is written: after writes of 1 MiB, those of 4 KiB took twice as long.
    pub(super) const PIECE: usize = 128 << 10;

    /// Opens the regular file at `path`, and locks it as a running QEMU does: neither QEMU nor
    /// another `strata` can open it for writing as long as this one lives.
    ///
    /// # Errors
    /// The host's, [`Kind::Usage`] for what is no regular file, [`Kind::Refused`] if somebody has it
    /// open for writing.
    pub fn open(path: &Path) -> Result<Self> {
        let named = || path.display().to_string();
        // O_NONBLOCK: opening a fifo by mistake must fail below, not wait.
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from);
        let file = File::from(fd.within(named)?);
        if !file.metadata().within(named)?.is_file() {
            return Err(Error::new(Kind::Usage, "is not a regular file").within(named()));
        }
        lock::lock_for_writing(&file).map_err(|error| error.within(named()))?;
        Ok(Self { file, path: path.to_owned() })
    }

    fn told(&self, error: io::Error, what: &str, len: u64, offset: u64) -> Error {
        Error::io(error)
            .within(format!("{what} {len} bytes at {offset:#x}"))
            .within(self.path.display().to_string())
    }
}

impl Storage for FileStorage {
    fn len(&self) -> Result<u64> {
        Ok(self.file.metadata().within(|| self.path.display().to_string())?.len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.file.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(len) => done += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(self.told(error, "reading", buf.len() as u64, offset));
                }
            }
        }
        Ok(done)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        let mut at = offset;
        for piece in data.chunks(Self::PIECE) {
            self.file
                .write_all_at(piece, at)
                .map_err(|error| self.told(error, "writing", piece.len() as u64, at))?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, flags, offset, len) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
            Err(error) => Err(self.told(error.into(), "giving back", len, offset)),
        }
    }

    fn set_len(&self, len: u64) -> Result<()> {
        self.file
            .set_len(len)
            .within(|| format!("{}: changing the length to {len:#x}", self.path.display()))
    }

    fn sync(&self) -> Result<()> {
        self.file.sync_data().within(|| format!("{}: flushing", self.path.display()))
    }
}

/// A storage as a source: as long as it was when this was made.
#[derive(Debug)]
pub(crate) struct StorageSource {
    storage: Arc<dyn Storage>,
    len: u64,
}

impl StorageSource {
    pub(crate) fn new(storage: Arc<dyn Storage>) -> Result<Self> {
        let len = storage.len()?;
        Ok(Self { storage, len })
    }
}

impl BlockSource for StorageSource {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(offset, buf.len(), self.len)?;
        let there = self.storage.read_at(offset, buf)?;
        // What was cut off since belongs to nobody.
        buf[there..].fill(0);
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        Ok(Extent { len: self.len.saturating_sub(offset).max(1), hole: false })
    }

    fn origin_at(&self, offset: u64) -> Result<Origin> {
        Ok(Origin::unknown(self.len.saturating_sub(offset).max(1)))
    }

    fn whole_file(&self) -> Option<&File> {
        None
    }
}
