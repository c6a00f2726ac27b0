//! A regular file or block device that is written where it is: a raw disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use super::{BlockSink, BlockSource, Extent, FileSource, FileStorage, Origin, check_range, lock};
use crate::error::{Error, Kind, Result, ResultExt};

/// A host file or block device opened for writing. Its holes are those of the host.
#[derive(Debug)]
pub struct FileSink {
    source: FileSource,
    file: File,
}

impl FileSink {
    /// Zeros that are written at once where the host knows no better way to make them.
    const ZEROS: &[u8] = &[0; 1 << 16];

    /// Opens the file or device at `path`, for us alone: a file is locked as a running QEMU locks it, a device
    /// must not be mounted or otherwise held.
    ///
    /// # Errors
    /// The host's, [`Kind::Refused`] for what is in use, [`Kind::Usage`] for what is neither file nor device.
    pub fn open(path: &Path) -> Result<Self> {
        let named = || path.display().to_string();
        // O_NONBLOCK: opening a fifo by mistake must fail below, not wait.
        let mut flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let metadata = std::fs::metadata(path).within(named)?;
        if !metadata.is_file() {
            // Of a device: fails if it is mounted, or part of another.
            flags |= OFlags::EXCL;
        }
        let file = match rustix::fs::open(path, flags, Mode::empty()) {
            Err(Errno::BUSY) => {
                let error = Error::new(Kind::Refused, "is mounted or otherwise in use");
                return Err(error.within(named()).with_hint("unmount it first; lsblk tells where"));
            }
            opened => File::from(opened.map_err(io::Error::from).within(named)?),
        };
        let source = FileSource::new(file.try_clone().within(named)?, path.to_owned())?;
        if !source.is_device() {
            lock::lock_for_writing(&file).map_err(|error| error.within(named()))?;
        }
        Ok(Self { source, file })
    }

    /// The same file with another length; what is new of it is a hole.
    ///
    /// # Errors
    /// The host's, which changes the length of no device.
    pub fn resized(self, len: u64) -> Result<Self> {
        let path = self.source.path().to_owned();
        self.file.set_len(len).within(|| path.display().to_string())?;
        let source = FileSource::new(self.file.try_clone().within(|| "a file")?, path)?;
        Ok(Self { source, ..self })
    }

    /// What it is as a source.
    pub fn source(&self) -> &FileSource {
        &self.source
    }

    fn told(&self, error: io::Error, what: &str, len: u64, offset: u64) -> Error {
        Error::io(error)
            .within(format!("{what} {len} bytes at {offset:#x}"))
            .within(self.source.path().display().to_string())
    }
}

impl BlockSource for FileSink {
    fn len(&self) -> u64 {
        self.source.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.source.read_at(offset, buf)
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        self.source.extent_at(offset)
    }

    fn origin_at(&self, offset: u64) -> Result<Origin> {
        self.source.origin_at(offset)
    }

    fn whole_file(&self) -> Option<&File> {
        self.source.whole_file()
    }
}

impl BlockSink for FileSink {
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        check_range(offset, data.len(), self.len())?;
        let mut at = offset;
        for piece in data.chunks(FileStorage::PIECE) {
            self.file
                .write_all_at(piece, at)
                .map_err(|error| self.told(error, "writing", piece.len() as u64, at))?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        let end = offset.checked_add(len).filter(|&end| end <= self.len());
        let Some(end) = end else {
            let message = format!("{len} bytes at {offset:#x} pass the end");
            return Err(Error::new(Kind::OutOfBounds, message));
        };
        if offset == end {
            return Ok(());
        }
        for how in [FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE] {
            match rustix::fs::fallocate(&self.file, how | FallocateFlags::KEEP_SIZE, offset, len) {
                Ok(()) => return Ok(()),
                // A device wants whole sectors, and not every one can.
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
                Err(error) => return Err(self.told(error.into(), "emptying", len, offset)),
            }
        }
        let mut at = offset;
        while at < end {
            let len = (end - at).min(Self::ZEROS.len() as u64);
            self.write_at(at, Self::ZEROS.get(..len as usize).unwrap_or_default())?;
            at += len;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.file.sync_all().within(|| format!("{}: flushing", self.source.path().display()))
    }
}
