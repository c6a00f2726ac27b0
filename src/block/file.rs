//! A host file or block device, read with `pread`: a file that shrinks under us is an error, where
//! a memory map would kill the process.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;

use super::{BlockSource, Extent, Home, Origin, check_range};
use crate::error::{Error, Kind, Result, ResultExt};

/// A host file or block device opened for reading.
#[derive(Debug)]
pub struct FileSource {
    file: File,
    path: PathBuf,
    len: u64,
    identity: (u64, u64),
}

impl FileSource {
    /// Opens the file at `path`, which the user named.
    ///
    /// # Errors
    /// The host's, or [`Kind::Usage`] for what is neither a regular file nor a block device.
    pub fn open(path: &Path) -> Result<Self> {
        // O_NONBLOCK: opening a fifo by mistake must fail below, not wait for a writer.
        let flags =
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NONBLOCK;
        let fd = rustix::fs::open(path, flags, rustix::fs::Mode::empty())
            .map_err(io::Error::from)
            .within(|| path.display().to_string())?;
        Self::new(File::from(fd), path.to_owned())
    }

    /// A source over an open file; `path` is for messages only.
    ///
    /// # Errors
    /// As [`FileSource::open`].
    pub fn new(file: File, path: PathBuf) -> Result<Self> {
        let named = || path.display().to_string();
        let metadata = file.metadata().within(named)?;
        let kind = metadata.file_type();
        let (len, identity) = if kind.is_file() {
            (metadata.len(), (metadata.dev(), metadata.ino()))
        } else if kind.is_block_device() {
            let len =
                rustix::fs::seek(&file, SeekFrom::End(0)).map_err(io::Error::from).within(named)?;
            // One device has many nodes: it is the device number that identifies it.
            (len, (u64::MAX, metadata.rdev()))
        } else if kind.is_dir() {
            return Err(Error::new(Kind::IsADirectory, "is a folder, not an image").within(named()));
        } else {
            let message = "is neither a regular file nor a block device";
            return Err(Error::new(Kind::Usage, message).within(named()));
        };
        Ok(Self { file, path, len, identity })
    }

    /// The name it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What tells this file from every other of the host, by whatever name: a file's device and
    /// inode number, or a block device's own number.
    pub fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// Whether it is a block device.
    pub fn is_device(&self) -> bool {
        self.identity.0 == u64::MAX
    }

    /// Whether a running QEMU has the file open for writing. It tells others by a lock on one byte
    /// of the file (`docs/system/images.rst` of QEMU, "Image file locking"). No is the answer too
    /// where the host does not say.
    pub fn has_qemu_writer(&self) -> bool {
        /// QEMU locks byte 100 plus the number of the permission it holds: here that to write.
        const WRITER: u64 = 100 + 1;
        let (dev, inode) = self.identity;
        let file = format!("{:02x}:{:02x}:{inode}", rustix::fs::major(dev), rustix::fs::minor(dev));
        // One lock a line: "1: OFDLCK ADVISORY READ -1 fe:01:1234 101 101".
        let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
        locks.lines().any(|lock| {
            let mut words = lock.split_ascii_whitespace().skip_while(|word| *word != file).skip(1);
            let (start, end) = (words.next(), words.next());
            let number = |word: Option<&str>| word.and_then(|word| word.parse::<u64>().ok());
            number(start).is_some_and(|start| start <= WRITER)
                && (end == Some("EOF") || number(end).is_some_and(|end| end >= WRITER))
                && lock.contains("OFDLCK")
        })
    }

    /// The bytes the host stores for it, holes left out; a device's whole length.
    ///
    /// # Errors
    /// The host's.
    pub fn allocated(&self) -> Result<u64> {
        let metadata = self.file.metadata().within(|| self.path.display().to_string())?;
        Ok(if metadata.file_type().is_file() { metadata.blocks() * 512 } else { self.len })
    }
}

impl BlockSource for FileSource {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(offset, buf.len(), self.len).map_err(|error| error.within(self.name()))?;
        match self.file.read_exact_at(buf, offset) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Error::new(
                Kind::Io,
                format!(
                    "cut short since it was opened: {} bytes at {offset:#x} are no longer there",
                    buf.len()
                ),
            )
            .within(self.name())),
            Err(error) => Err(Error::io(error)
                .within(format!("reading {} bytes at {offset:#x}", buf.len()))
                .within(self.name())),
        }
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        let rest = self.len.saturating_sub(offset).max(1);
        // The file position moves, which nobody minds: every read here is positional.
        let data = match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => return Ok(Extent { len: rest, hole: true }),
            Err(_) => return Ok(Extent { len: rest, hole: false }),
        };
        if data > offset {
            return Ok(Extent { len: (data - offset).min(rest), hole: true });
        }
        match rustix::fs::seek(&self.file, SeekFrom::Hole(offset)) {
            Ok(hole) if hole > offset => Ok(Extent { len: (hole - offset).min(rest), hole: false }),
            _ => Ok(Extent { len: rest, hole: false }),
        }
    }

    fn origin_at(&self, offset: u64) -> Result<Origin> {
        let len = self.len.saturating_sub(offset).max(1);
        Ok(Origin { len, home: Home::Stored { file: self.identity, offset } })
    }

    fn whole_file(&self) -> Option<&File> {
        Some(&self.file)
    }
}

impl FileSource {
    fn name(&self) -> String {
        self.path.display().to_string()
    }
}
