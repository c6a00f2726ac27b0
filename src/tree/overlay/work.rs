//! The work folder: what is not finished yet, and the index of files with several names.
//!
//! Ours lies in its folder `strata`, so that the kernel's overlayfs can use the same work folder:
//!
//! - `tmp/N`: a file on its way into the upper. Cleared whenever the upper is opened.
//! - `index/H`: one more name of each copied-up file that has several names in the lower, where `H`
//!   is its node number in hexadecimal digits. Names that are still only in the lower find the file
//!   by it.

use std::collections::HashSet;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::host::{self, Host};
use super::marks::Marks;
use crate::error::{Result, ResultExt};
use crate::tree::NodeId;

/// The work folder of an upper that may be written.
#[derive(Debug)]
pub(super) struct Work {
    tmp: File,
    index: File,
    next: AtomicU64,
    indexed: Mutex<HashSet<u64>>,
    /// The whiteout that all whiteouts are further names of, and whether it is a marked file.
    whiteout: Mutex<Option<(Box<[u8]>, bool)>>,
}

impl Work {
    /// Opens the work folder `dir`, and clears what was not finished.
    pub(super) fn open(dir: &File, writable: bool) -> Result<Option<Self>> {
        if writable {
            for name in [b"strata".as_slice(), b"strata/tmp", b"strata/index"] {
                match fs::mkdirat(dir, name, Mode::RWXU) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(host::errno(error)),
                }
            }
        }
        let own = match host::open_dir(dir, b"strata") {
            Err(Errno::NOENT) if !writable => return Ok(None),
            own => own.host()?,
        };
        let tmp = host::open_dir(&own, b"tmp").host()?;
        let index = host::open_dir(&own, b"index").host()?;
        if writable {
            let mut leftovers = Vec::new();
            host::list(&tmp, &mut |name, _, _| leftovers.push(name.to_vec()))?;
            for name in leftovers {
                host::remove_all(&tmp, &name).within(|| "clearing the work folder")?;
            }
        }
        let mut indexed = HashSet::new();
        host::list(&index, &mut |name, _, _| {
            let number =
                str::from_utf8(name).ok().and_then(|name| u64::from_str_radix(name, 16).ok());
            indexed.extend(number);
        })?;
        Ok(Some(Self {
            tmp,
            index,
            next: AtomicU64::new(0),
            indexed: Mutex::new(indexed),
            whiteout: Mutex::new(None),
        }))
    }

    /// The folder of unfinished files.
    pub(super) fn tmp(&self) -> &File {
        &self.tmp
    }

    /// A name in it that is not in use.
    pub(super) fn name(&self) -> Box<[u8]> {
        self.next.fetch_add(1, Ordering::Relaxed).to_string().into_bytes().into()
    }

    /// The copied-up file that was `node` in the lower, if it is in the index.
    pub(super) fn indexed(&self, node: NodeId) -> Result<Option<File>> {
        if !self.indexed.lock().contains(&node.0) {
            return Ok(None);
        }
        host::open_path(&self.index, &entry(node)).map(Some).host()
    }

    /// The files of the index.
    pub(super) fn all_indexed(&self) -> Vec<NodeId> {
        self.indexed.lock().iter().copied().map(NodeId).collect()
    }

    /// Whether a file of the lower is in the index.
    pub(super) fn has(&self, node: Option<NodeId>) -> bool {
        node.is_some_and(|node| self.indexed.lock().contains(&node.0))
    }

    /// Gives the unfinished file `name` its name in the index.
    pub(super) fn add_to_index(&self, name: &[u8], node: NodeId) -> Result<()> {
        fs::linkat(&self.tmp, name, &self.index, entry(node).as_slice(), AtFlags::empty())
            .host()?;
        self.indexed.lock().insert(node.0);
        Ok(())
    }

    /// Gives the file of the index a name in `dir`.
    pub(super) fn link_from_index(&self, node: NodeId, dir: &File, name: &[u8]) -> Result<()> {
        fs::linkat(&self.index, entry(node).as_slice(), dir, name, AtFlags::empty()).host()
    }

    /// Takes a file out of the index.
    pub(super) fn remove_from_index(&self, node: NodeId) -> Result<()> {
        self.indexed.lock().remove(&node.0);
        match fs::unlinkat(&self.index, entry(node).as_slice(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(host::errno(error)),
        }
    }

    /// Makes a whiteout named `name` in `dir`, where nothing is; tells whether it is a marked file.
    pub(super) fn make_whiteout(&self, dir: &File, name: &[u8], marks: &Marks) -> Result<bool> {
        let mut shared = self.whiteout.lock();
        if let Some((whiteout, marked)) = &*shared {
            let linked = fs::linkat(&self.tmp, &**whiteout, dir, name, AtFlags::empty());
            match linked {
                Ok(()) => return Ok(*marked),
                // As many names as it can have, or a filesystem that knows no further names.
                Err(Errno::MLINK | Errno::PERM | Errno::OPNOTSUPP | Errno::XDEV) => {}
                Err(error) => return Err(host::errno(error)),
            }
        }
        let fresh = self.name();
        let marked = match fs::mknodat(
            &self.tmp,
            &*fresh,
            FileType::CharacterDevice,
            Mode::empty(),
            fs::makedev(0, 0),
        ) {
            Ok(()) => false,
            // Where devices may not be made, an empty file with a mark stands for one.
            Err(Errno::PERM) => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                let mode = Mode::RUSR | Mode::WUSR;
                let file = fs::openat(&self.tmp, &*fresh, flags, mode).map(File::from).host()?;
                marks.set(&file, marks.whiteout, b"y")?;
                true
            }
            Err(error) => return Err(host::errno(error)),
        };
        match fs::linkat(&self.tmp, &*fresh, dir, name, AtFlags::empty()) {
            Ok(()) => *shared = Some((fresh, marked)),
            Err(Errno::PERM | Errno::OPNOTSUPP) => {
                fs::renameat(&self.tmp, &*fresh, dir, name).host()?;
            }
            Err(error) => {
                let _ = fs::unlinkat(&self.tmp, &*fresh, AtFlags::empty());
                return Err(host::errno(error));
            }
        }
        Ok(marked)
    }

    /// Moves the unfinished file `from` to `name` in `dir`, over what is there.
    pub(super) fn finish(&self, from: &[u8], dir: &File, name: &[u8]) -> Result<()> {
        fs::renameat(&self.tmp, from, dir, name).host()
    }

    /// Swaps the unfinished file `from` with `name` in `dir`.
    pub(super) fn swap(&self, from: &[u8], dir: &File, name: &[u8]) -> Result<()> {
        fs::renameat_with(&self.tmp, from, dir, name, RenameFlags::EXCHANGE).host()
    }

    /// Removes an unfinished file, or what was taken out of the upper. What cannot be removed is
    /// removed when the upper is opened next.
    pub(super) fn discard(&self, name: &[u8]) {
        if let Err(error) = host::remove_all(&self.tmp, name) {
            log::debug!("left in the work folder: {error}");
        }
    }
}

fn entry(node: NodeId) -> Vec<u8> {
    format!("{:016x}", node.0).into_bytes()
}
