//! A tree that can be changed: changes go to a folder of the host, the *upper*, and the tree beneath,
//! the *lower*, stays as it is.
//!
//! The upper is in the form of the kernel's overlayfs (Documentation/filesystems/overlayfs.rst), so
//! the kernel can mount it, too: `marks` has its attributes, `work` what lies beside it. A file
//! comes into the upper when it is first changed (`copy_up`): its metadata at once, its data when
//! they are written.
//!
//! Names move only under the lock `names`, taken for writing by whatever makes, removes, renames or
//! copies up. It is held for a few short calls of the host and never while data are copied. What
//! finds a file by its place in the upper holds it for reading.
//!
//! Where we may not set owners (an ordinary user), what a file has is kept in an attribute
//! (`owner`), and the host's own mode always lets us in.

mod acl;
mod change;
mod copy_up;
mod cover;
mod data;
mod find;
mod host;
mod list;
mod marks;
mod meta;
mod node;
mod owner;
mod rename;
mod work;

use std::collections::hash_map::RandomState;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use rustix::fs::{self, FlockOperation, OFlags};
use rustix::io::Errno;

use super::{
    Allocate, Attr, Caller, Changes, DirEntry, FileTree, NewFile, NodeId, Rename, SetXattr, StatFs,
    WritableTree,
};
use crate::block::{Extent, Origin};
use crate::error::{Error, Kind, Result, ResultExt};
use host::Host;
use marks::Marks;
use node::{Form, Node, Place, Table};
use work::Work;

pub(crate) use marks::OVERRIDE;
pub(crate) use owner::Owner;

/// Handles on files of the upper that are kept for a next time, at most.
const MOST_HANDLES: u64 = 8192;

/// Names of listed folders that are kept for going on.
const MOST_LISTED: u64 = 1 << 20;

/// A lower tree with the changes of an upper folder.
pub struct Overlay {
    lower: Arc<dyn FileTree>,
    /// The folder, locked for as long as we live.
    upper: File,
    work: Option<Work>,
    writable: bool,
    marks: &'static Marks,
    table: Table,
    names: RwLock<()>,
    handles: quick_cache::sync::Cache<NodeId, Arc<File>>,
    listings: quick_cache::sync::Cache<NodeId, Arc<list::Listing>, list::Weigh>,
    hash: RandomState,
    told_of_lost_names: AtomicBool,
}

/// Proof that no name moves.
trait Still {}
impl Still for RwLockReadGuard<'_, ()> {}
impl Still for RwLockWriteGuard<'_, ()> {}

/// Proof that nobody else moves a name.
type Alone<'a> = RwLockWriteGuard<'a, ()>;

impl Overlay {
    /// Opens `upper` above `lower`; `work` is a folder of the same filesystem, by default beside it
    /// and named `.NAME.work`. If `writable`, folders that are missing are made; else nothing is
    /// written.
    ///
    /// # Errors
    /// [`Kind::Refused`] if the upper is in use, [`Kind::Usage`] if the two are not on one
    /// filesystem, [`Kind::Unsupported`] if it cannot hold an upper, and the host's.
    pub fn open(
        lower: Arc<dyn FileTree>,
        upper: &Path,
        work: Option<&Path>,
        writable: bool,
    ) -> Result<Self> {
        let shown = || upper.display().to_string();
        let folder = open_folder(upper, writable).within(shown)?;
        lock(&folder, writable).within(shown)?;
        let work_path = match work {
            Some(work) => work.to_owned(),
            None => beside(upper)?,
        };
        let work_shown = || work_path.display().to_string();
        let work = match open_folder(&work_path, writable) {
            Err(error) if !writable && error.kind() == Kind::NotFound => None,
            opened => {
                let opened = opened.within(work_shown)?;
                let (ours, theirs) = (fs::fstat(&folder).host()?, fs::fstat(&opened).host()?);
                if ours.st_dev != theirs.st_dev {
                    let message = format!("is not on the filesystem of {}", shown());
                    return Err(Error::new(Kind::Usage, message).within(work_shown()));
                }
                Work::open(&opened, writable).within(work_shown)?
            }
        };
        let marks = flavour(&folder, writable).within(shown)?;
        let root = lower.root();
        if root.0 >= node::ABOVE {
            return Err(too_high(root));
        }
        let handles = rustix::process::getrlimit(rustix::process::Resource::Nofile)
            .current
            .map_or(MOST_HANDLES, |most| (most / 2).clamp(16, MOST_HANDLES));
        let overlay = Self {
            lower,
            upper: folder,
            work,
            writable,
            marks,
            table: Table::default(),
            names: RwLock::new(()),
            handles: quick_cache::sync::Cache::new(usize::try_from(handles).unwrap_or(64)),
            listings: quick_cache::sync::Cache::with_weighter(256, MOST_LISTED, list::Weigh),
            hash: RandomState::new(),
            told_of_lost_names: AtomicBool::new(false),
        };
        overlay.adopt_root(root).within(shown)?;
        Ok(overlay)
    }

    /// Makes the root known. A new upper takes on what the lower's root has.
    fn adopt_root(&self, root: NodeId) -> Result<()> {
        let handle = Arc::new(host::open_dir(&self.upper, b".").host()?);
        let stat = fs::fstat(&*handle).host()?;
        let mut seen = self.marks.read(&handle)?;
        if self.writable && seen.node.is_none() {
            let mut entries = 0;
            host::list(&handle, &mut |_, _, _| entries += 1)?;
            if entries == 0 {
                self.dress(&handle, &self.lower.attr(root)?, Some(root))?;
            } else {
                // Another's upper: its root has what it should have.
                self.marks.set(&handle, self.marks.node, root.0.to_string().as_bytes())?;
            }
            seen.impure = true;
        }
        let below = (!seen.opaque).then_some(root);
        let node = Node::new(root, below, Form::Folder, Place::Root);
        let mut state = node.state.lock();
        state.known = true;
        state.above = Some(stat.st_ino);
        state.impure = seen.impure;
        state.pinned = Some(handle);
        drop(state);
        self.table.get_or(root, || node);
        Ok(())
    }

    /// The node of that number.
    fn node(&self, id: NodeId) -> Result<Arc<Node>> {
        self.table
            .get(id)
            .ok_or_else(|| Error::new(Kind::NotFound, format!("there is no node {:#x}", id.0)))
    }

    /// The folder of that number.
    fn folder(&self, id: NodeId) -> Result<Arc<Node>> {
        let node = self.node(id)?;
        match node.form {
            Form::Folder => Ok(node),
            _ => Err(Error::new(Kind::NotADirectory, "not a folder")),
        }
    }

    /// The right to move names, and where to work.
    fn change(&self) -> Result<(&Work, Alone<'_>)> {
        let work = self.work.as_ref().filter(|_| self.writable).ok_or_else(read_only)?;
        Ok((work, self.names.write()))
    }
}

fn read_only() -> Error {
    Error::new(Kind::ReadOnly, "opened to be read")
}

fn too_high(node: NodeId) -> Error {
    Error::new(Kind::Unsupported, format!("node {:#x} beneath an upper", node.0))
}

/// The work folder of `upper` if none is named.
fn beside(upper: &Path) -> Result<PathBuf> {
    let upper = std::fs::canonicalize(upper).within(|| upper.display().to_string())?;
    match (upper.parent(), upper.file_name()) {
        (Some(parent), Some(name)) => {
            let mut work = std::ffi::OsString::from(".");
            work.push(name);
            work.push(".work");
            Ok(parent.join(work))
        }
        _ => Err(Error::new(Kind::Usage, "the root folder cannot be an upper")),
    }
}

/// Opens a folder, which is made if it may be.
fn open_folder(path: &Path, make: bool) -> Result<File> {
    if make {
        match fs::mkdir(path, fs::Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(host::errno(error)),
        }
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    fs::open(path, flags, fs::Mode::empty()).map(File::from).host()
}

fn lock(folder: &File, alone: bool) -> Result<()> {
    let how = if alone {
        FlockOperation::NonBlockingLockExclusive
    } else {
        FlockOperation::NonBlockingLockShared
    };
    match fs::flock(folder, how) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(Error::new(Kind::Refused, "is in use as an upper")
            .with_hint("unmount the mount that writes to it first")),
        Err(error) => Err(host::errno(error)),
    }
}

/// Which marks the upper has, or is to have.
fn flavour(folder: &File, writable: bool) -> Result<&'static Marks> {
    const CANNOT: &str = "its filesystem keeps no extended attributes, which an upper needs";
    let begun =
        |marks: &Marks| host::get_xattr(folder, marks.node.as_bytes()).map(|value| value.is_some());
    if begun(&marks::USER)? {
        return Ok(&marks::USER);
    }
    if begun(&marks::TRUSTED)? || !writable {
        return Ok(&marks::TRUSTED);
    }
    let any = fs::XattrFlags::empty();
    for marks in [&marks::TRUSTED, &marks::USER] {
        let trial = format!("{}strata.trial", marks.prefix);
        match host::set_xattr(folder, trial.as_bytes(), b"y", any) {
            Ok(()) => {
                host::remove_xattr(folder, trial.as_bytes()).host()?;
                return Ok(marks);
            }
            Err(Errno::PERM | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(host::errno(error)),
        }
    }
    Err(Error::new(Kind::Unsupported, CANNOT))
}

impl std::fmt::Debug for Overlay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Overlay")
            .field("lower", &self.lower)
            .field("upper", &self.upper)
            .field("writable", &self.writable)
            .finish_non_exhaustive()
    }
}

impl FileTree for Overlay {
    fn root(&self) -> NodeId {
        self.lower.root()
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>> {
        let dir = self.folder(dir)?;
        let still = self.names.read();
        let found = self.find(&dir, name, &still)?;
        Ok(found.map(|node| {
            node.state.lock().known = true;
            node.id
        }))
    }

    fn attr(&self, node: NodeId) -> Result<Attr> {
        self.attributes(&self.node(node)?)
    }

    fn read_dir(
        &self,
        dir: NodeId,
        after: u64,
        emit: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<()> {
        self.list(&self.folder(dir)?, after, emit)
    }

    fn read_link(&self, node: NodeId) -> Result<Vec<u8>> {
        self.target(&self.node(node)?)
    }

    fn read_at(&self, node: NodeId, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.read(&self.node(node)?, offset, buf)
    }

    fn extent_at(&self, node: NodeId, offset: u64) -> Result<Extent> {
        self.extent(&self.node(node)?, offset)
    }

    fn origin_at(&self, node: NodeId, offset: u64) -> Result<Origin> {
        self.origin(&self.node(node)?, offset)
    }

    fn xattr_names(&self, node: NodeId) -> Result<Vec<Vec<u8>>> {
        self.list_xattrs(&self.node(node)?)
    }

    fn xattr(&self, node: NodeId, name: &[u8]) -> Result<Option<Vec<u8>>> {
        self.get_xattr(&self.node(node)?, name)
    }

    fn statfs(&self) -> Result<StatFs> {
        let stat = fs::fstatvfs(&self.upper).host()?;
        Ok(StatFs {
            block_size: u32::try_from(stat.f_frsize).unwrap_or(4096),
            blocks: stat.f_blocks,
            free: stat.f_bfree,
            available: stat.f_bavail,
            files: stat.f_files,
            files_free: stat.f_ffree,
            name_max: u32::try_from(stat.f_namemax).unwrap_or(255),
        })
    }

    fn whole_file(&self, node: NodeId) -> Option<&File> {
        let node = self.table.get(node)?;
        // Not of a file that may be written some day: its data would be elsewhere then.
        if self.writable || node.is_above() {
            return None;
        }
        self.lower.whole_file(node.lower?)
    }
}

impl WritableTree for Overlay {
    fn create(
        &self,
        dir: NodeId,
        name: &[u8],
        new: &NewFile<'_>,
        caller: &Caller,
    ) -> Result<NodeId> {
        let node = self.make(&self.folder(dir)?, name, new, caller)?;
        Ok(node.id)
    }

    fn link(&self, node: NodeId, dir: NodeId, name: &[u8]) -> Result<()> {
        self.add_name(&self.node(node)?, &self.folder(dir)?, name)
    }

    fn rename(&self, from: (NodeId, &[u8]), to: (NodeId, &[u8]), how: Rename) -> Result<()> {
        let (from_dir, to_dir) = (self.folder(from.0)?, self.folder(to.0)?);
        self.move_name((&from_dir, from.1), (&to_dir, to.1), how)
    }

    fn unlink(&self, dir: NodeId, name: &[u8]) -> Result<()> {
        self.remove_name(&self.folder(dir)?, name)
    }

    fn remove_dir(&self, dir: NodeId, name: &[u8]) -> Result<()> {
        self.remove_folder(&self.folder(dir)?, name)
    }

    fn set_attr(&self, node: NodeId, changes: &Changes) -> Result<()> {
        self.change_attributes(&self.node(node)?, changes)
    }

    fn write_at(&self, node: NodeId, offset: u64, data: &[u8]) -> Result<()> {
        self.write(&self.node(node)?, offset, data)
    }

    fn allocate(&self, node: NodeId, offset: u64, len: u64, how: Allocate) -> Result<()> {
        self.reserve(&self.node(node)?, offset, len, how)
    }

    fn set_xattr(&self, node: NodeId, name: &[u8], value: &[u8], how: SetXattr) -> Result<()> {
        self.put_xattr(&self.node(node)?, name, value, how)
    }

    fn remove_xattr(&self, node: NodeId, name: &[u8]) -> Result<()> {
        self.drop_xattr(&self.node(node)?, name)
    }

    fn sync(&self, node: NodeId) -> Result<()> {
        self.flush(&self.node(node)?)
    }

    fn sync_all(&self) -> Result<()> {
        if !self.writable {
            return Ok(());
        }
        self.cover()?;
        fs::syncfs(&self.upper).host()
    }

    fn hold(&self, node: NodeId, write: bool) -> Result<()> {
        let node = self.node(node)?;
        if write && !self.writable {
            return Err(read_only());
        }
        node.state.lock().holds += 1;
        Ok(())
    }

    fn release(&self, node: NodeId) {
        let Some(node) = self.table.get(node) else { return };
        let mut state = node.state.lock();
        state.holds = state.holds.saturating_sub(1);
        let closed = if state.holds == 0 { state.open.take() } else { None };
        drop(state);
        drop(closed);
        self.settle(node);
    }

    fn forget(&self, node: NodeId) {
        let Some(node) = self.table.get(node) else { return };
        node.state.lock().known = false;
        self.settle(node);
    }

    fn backing_file(&self, node: NodeId) -> Option<Arc<File>> {
        let node = self.table.get(node)?;
        let state = node.state.lock();
        let is_held = state.holds > 0 && state.above.is_some() && !state.data_below;
        drop(state);
        if !is_held || node.form != Form::Regular || !self.writable {
            return None;
        }
        self.opened(&node).ok()
    }
}

impl Overlay {
    /// Lets go of what nobody needs to remember of `node`.
    fn settle(&self, node: Arc<Node>) {
        let state = node.state.lock();
        if state.known || state.holds > 0 {
            return;
        }
        drop(state);
        self.handles.remove(&node.id);
        self.listings.remove(&node.id);
        self.table.reap(node);
    }
}

#[cfg(test)]
mod tests;
