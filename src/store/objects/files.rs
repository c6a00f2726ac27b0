//! What a folder of objects does to the host's files. Their order is what a power cut must find right, so tests stand
//! between the two.

use std::fmt::Debug;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

/// Changes of files and of the names in folders. Errors are the host's.
#[expect(clippy::missing_errors_doc, reason = "said above")]
pub trait Files: Send + Sync + Debug {
    /// Makes a folder.
    fn make_dir(&self, dir: &Path) -> io::Result<()>;

    /// Makes a file that is not there yet, to be written.
    fn create(&self, path: &Path) -> io::Result<File>;

    /// Writes some of `parts` behind what `file` holds: how many bytes. It was made at `path`.
    fn write(&self, path: &Path, file: &File, parts: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Puts the contents of `file` on stable storage. It was made at `path`.
    fn sync(&self, path: &Path, file: &File) -> io::Result<()>;

    /// Gives a file another name in its folder, in the place of what has it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Puts what was done to the names in a folder on stable storage.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// Those of the host.
#[derive(Debug, Clone, Copy)]
pub struct Host;

impl Files for Host {
    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(dir)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
    }

    fn write(&self, _path: &Path, mut file: &File, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        file.write_vectored(parts)
    }

    fn sync(&self, _path: &Path, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }
}
