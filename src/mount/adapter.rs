//! A tree as the kernel asks about it. Thin on purpose: each request is one question to the tree.

mod asked;
mod change;
mod known;
mod opened;
mod write;

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fuser::{
    AccessFlags, BackingId, Errno, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags,
    PollNotifier, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyXattr, Request,
};
use parking_lot::Mutex;

use super::errno::errno;
use super::inode::{Numbering, blank_attr, file_attr};
use super::linger::Linger;
use super::report::Report;
use super::watch::Watch;
use crate::block::seek_extent;
use crate::error::Result;
use crate::tree::{Attr, FileKind, FileTree, NodeId};

pub(super) use write::WritableAdapter;

/// How long the kernel may believe what we say of names and attributes where nothing ever changes.
const LIFETIME: Duration = Duration::from_secs(1 << 30);
const FOR_ONCE: Duration = Duration::ZERO;

/// Requests the kernel may have under way besides those somebody waits for, such as readahead.
const MAX_BACKGROUND: u16 = 64;

/// The largest request. We take no writes: it counts because the kernel sizes reads by it.
const MAX_REQUEST: u32 = 1 << 20;

/// Entries of the root folder that are looked at for files the kernel could read itself.
const PROBED_ENTRIES: usize = 64;

thread_local! {
    /// What a read is answered from: as large as the largest request this thread has seen.
    static REPLY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The FUSE side of a tree.
#[derive(Debug)]
pub(super) struct Adapter {
    tree: Arc<dyn FileTree>,
    numbering: Numbering,
    /// Whether the kernel checks permissions and ACLs.
    permissions: bool,
    /// Whether folders of the tree change by themselves.
    changes: bool,
    /// Whether `open` has something to say. Once it answers ENOSYS it is never asked again.
    opens: AtomicBool,
    /// What each file opened so far is read through, if not through us: the kernel wants the same
    /// answer for every open of an inode.
    backing: Mutex<HashMap<NodeId, Option<Arc<BackingId>>>>,
    /// The folder each folder the kernel knows lies in, for `..`.
    parents: Mutex<HashMap<NodeId, NodeId>>,
    /// Bytes of the longest name. Whether a longer one is there is no question for the tree.
    name_max: usize,
    /// Over what the kernel reads past us.
    watch: Watch,
    report: Report,
    linger: Linger,
}

impl Adapter {
    /// The adapter of `tree`, which is mounted at `point`.
    pub(super) fn new(
        tree: Arc<dyn FileTree>,
        permissions: bool,
        linger: Linger,
        point: &Path,
    ) -> Self {
        let opens = has_whole_file(tree.as_ref());
        let name_max = tree.statfs().map_or(255, |fs| fs.name_max as usize);
        Self {
            numbering: Numbering::new(tree.root()),
            changes: tree.lifetime(tree.root()).is_some(),
            watch: Watch::new(Arc::clone(&tree), point.to_owned()),
            tree,
            permissions,
            opens: AtomicBool::new(opens),
            backing: Mutex::default(),
            parents: Mutex::default(),
            name_max,
            report: Report::default(),
            linger,
        }
    }

    /// Does the work of one request: any failure becomes an errno, and so does a panic, which
    /// must not take the mount with it.
    fn answer<T>(
        &self,
        operation: &'static str,
        node: NodeId,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T, Errno> {
        match catch_unwind(AssertUnwindSafe(work)) {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                self.report.failed(operation, node, &error);
                Err(errno(error.kind()))
            }
            Err(panic) => {
                self.report.panicked(operation, node, panic_text(panic.as_ref()));
                Err(Errno::EIO)
            }
        }
    }

    /// What stat says of a node.
    fn stat(&self, node: NodeId) -> Result<fuser::FileAttr> {
        Ok(file_attr(self.numbering.shown(node), &self.tree.attr(node)?))
    }

    /// How long the kernel may believe what we say of `node`, and of names in it.
    fn lifetime(&self, node: NodeId) -> Duration {
        self.tree.lifetime(node).unwrap_or(LIFETIME)
    }

    /// Remembers that the folder `child` lies in `dir`.
    fn note_parent(&self, child: NodeId, attr: &Attr, dir: NodeId) {
        if attr.kind == FileKind::Directory {
            self.parents.lock().insert(child, dir);
        }
    }

    /// Lists a folder from `offset` on: `.`, `..` and the tree's entries, whose positions come
    /// after theirs. `add` answers whether the entry found no room.
    fn list(
        &self,
        dir: NodeId,
        offset: u64,
        add: &mut dyn FnMut(Listed<'_>) -> bool,
    ) -> Result<(), Errno> {
        const DOTS: u64 = 2;
        let parent = if dir == self.tree.root() { Some(dir) } else { self.parent_of(dir) };
        let dots = [(&b"."[..], dir), (&b".."[..], parent.unwrap_or(dir))];
        for (position, (name, node)) in (0..DOTS).zip(dots) {
            if position < offset {
                continue;
            }
            let mut attr = blank_attr(self.numbering.shown(node));
            attr.kind = FileType::Directory;
            if add(Listed { name, next: position + 1, attr, lifetime: FOR_ONCE }) {
                return Ok(());
            }
        }
        let mut taken = offset < DOTS;
        let listed = self.answer("listing", dir, || {
            self.tree.read_dir(dir, offset.saturating_sub(DOTS), &mut |entry| {
                // The kernel's positions are signed.
                let Some(next) =
                    entry.next.checked_add(DOTS).filter(|&next| i64::try_from(next).is_ok())
                else {
                    return false;
                };
                // A file that cannot be read is still there: whoever looks closer gets the error.
                let read = self.answer("attributes", entry.node, || self.tree.attr(entry.node));
                let (attr, lifetime) = match &read {
                    Ok(attr) => {
                        let lifetime = self.lifetime(dir).min(self.lifetime(entry.node));
                        (file_attr(self.numbering.shown(entry.node), attr), lifetime)
                    }
                    Err(_) => (blank_attr(self.numbering.shown(entry.node)), FOR_ONCE),
                };
                if add(Listed { name: entry.name, next, attr, lifetime }) {
                    return false;
                }
                if let Ok(attr) = &read {
                    self.note_parent(entry.node, attr, dir);
                }
                taken = true;
                true
            })
        });
        // What was listed before a failure is good; the next request meets the failure again.
        if taken { Ok(()) } else { listed }
    }

    fn parent_of(&self, dir: NodeId) -> Option<NodeId> {
        self.parents.lock().get(&dir).copied()
    }

    /// What the kernel may read `node` through by itself, if anything.
    fn backing(&self, node: NodeId, reply: &ReplyOpen) -> Option<Arc<BackingId>> {
        let mut backing = self.backing.lock();
        if let Some(known) = backing.get(&node) {
            return known.clone();
        }
        let past_us = |file| self.watch.over(node, file).and_then(|()| reply.open_backing(file));
        let id = self.tree.whole_file(node).and_then(|file| match past_us(file) {
            Ok(id) => Some(Arc::new(id)),
            Err(error) => {
                // Ordinary users and user namespaces are refused, and that for good.
                if error.raw_os_error() == Some(libc::EPERM) {
                    self.opens.store(false, Ordering::Relaxed);
                }
                log::debug!("inode {} is read through us: {error}", node.0);
                None
            }
        });
        backing.insert(node, id.clone());
        id
    }
}

/// One entry of a listing.
struct Listed<'a> {
    name: &'a [u8],
    next: u64,
    attr: fuser::FileAttr,
    lifetime: Duration,
}

/// Whether the root folder holds a file the kernel could read without us. Views show such files
/// there and nowhere else; a guest's own files never lie in one piece at equal offsets.
fn has_whole_file(tree: &dyn FileTree) -> bool {
    let mut found = false;
    let mut left = PROBED_ENTRIES;
    // A root that cannot be listed will say so when somebody looks.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        tree.read_dir(tree.root(), 0, &mut |entry| {
            found = tree.whole_file(entry.node).is_some();
            left -= 1;
            !found && left > 0
        })
    }));
    found
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (None, Some(text)) => text,
        (None, None) => "panic",
    }
}

/// Answers with a value of varying size, or with its size if `room` is 0.
fn reply_sized(reply: ReplyXattr, room: u32, value: &[u8]) {
    match u32::try_from(value.len()) {
        Ok(size) if room == 0 => reply.size(size),
        Ok(size) if size <= room => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let mut wanted = InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_NO_OPEN_SUPPORT;
        if !self.changes {
            wanted |= InitFlags::FUSE_NO_OPENDIR_SUPPORT;
        }
        if self.permissions {
            // It also turns on the kernel's permission checks, wanted or not.
            wanted |= InitFlags::FUSE_POSIX_ACL;
        }
        if config.capabilities().contains(InitFlags::FUSE_PASSTHROUGH) {
            if *self.opens.get_mut() {
                wanted |= InitFlags::FUSE_PASSTHROUGH;
                let _ = config.set_max_stack_depth(1);
            }
        } else {
            *self.opens.get_mut() = false;
        }
        let _ = config.add_capabilities(wanted & config.capabilities());
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_max_write(MAX_REQUEST);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _request = self.linger.begin();
        if name.len() > self.name_max {
            return reply.error(Errno::ENAMETOOLONG);
        }
        let dir = self.numbering.node(parent);
        let found = self.answer("look-up in", dir, || {
            let Some(node) = self.tree.lookup(dir, name.as_bytes())? else { return Ok(None) };
            let attr = self.tree.attr(node)?;
            self.note_parent(node, &attr, dir);
            let lifetime = self.lifetime(dir).min(self.lifetime(node));
            Ok(Some((file_attr(self.numbering.ino(node), &attr), lifetime)))
        });
        match found {
            Ok(Some((attr, lifetime))) => reply.entry(&lifetime, &attr, Generation(0)),
            // Number 0: there is no such name, and the kernel may remember that.
            Ok(None) => {
                reply.entry(&self.lifetime(dir), &blank_attr(INodeNo(0)), Generation(0));
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, _nlookup: u64) {
        self.parents.lock().remove(&self.numbering.node(ino));
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let _request = self.linger.begin();
        let node = self.numbering.node(ino);
        match self.answer("attributes", node, || self.stat(node)) {
            Ok(mut attr) if self.watch.is_cut(node) => {
                attr.kind = FileType::Directory;
                reply.attr(&FOR_ONCE, &attr);
            }
            Ok(attr) => reply.attr(&self.lifetime(node), &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let _request = self.linger.begin();
        let node = self.numbering.node(ino);
        match self.answer("link target", node, || self.tree.read_link(node)) {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let _request = self.linger.begin();
        // Nothing of a file changes, and no state belongs to an open one: the kernel need not
        // tell us of it. It keeps what it has cached then.
        if !self.opens.load(Ordering::Relaxed) {
            return reply.error(Errno::ENOSYS);
        }
        match self.backing(self.numbering.node(ino), &reply) {
            Some(id) => reply.opened_passthrough(FileHandle(0), FopenFlags::empty(), &id),
            None => {
                let flags = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH;
                reply.opened(FileHandle(0), flags);
            }
        }
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        if !self.changes {
            return reply.error(Errno::ENOSYS);
        }
        // Without an answer the kernel would keep every listing, as it may where nothing changes.
        let flags = match self.tree.lifetime(self.numbering.node(ino)) {
            Some(_) => FopenFlags::empty(),
            None => FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR,
        };
        reply.opened(FileHandle(0), flags);
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let _request = self.linger.begin();
        let node = self.numbering.node(ino);
        let size = size as usize;
        REPLY.with_borrow_mut(|buffer| {
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            let room = &mut buffer[..size];
            match self.answer("read", node, || self.tree.read_at(node, offset, room)) {
                Ok(len) => reply.data(&buffer[..len.min(size)]),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let _request = self.linger.begin();
        let listed = self.list(self.numbering.node(ino), offset, &mut |entry| {
            let Listed { name, next, attr, .. } = entry;
            reply.add(attr.ino, next, attr.kind, OsStr::from_bytes(name))
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let _request = self.linger.begin();
        let listed = self.list(self.numbering.node(ino), offset, &mut |entry| {
            let Listed { name, next, attr, lifetime } = entry;
            let name = OsStr::from_bytes(name);
            reply.add(attr.ino, next, name, &lifetime, &attr, Generation(0))
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.answer("statfs", self.tree.root(), || self.tree.statfs()) {
            Ok(fs) => reply.statfs(
                fs.blocks,
                fs.free,
                fs.available,
                fs.files,
                fs.files_free,
                fs.block_size,
                fs.name_max,
                fs.block_size,
            ),
            Err(errno) => reply.error(errno),
        }
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let _request = self.linger.begin();
        let node = self.numbering.node(ino);
        match self.answer("attribute", node, || self.tree.xattr(node, name.as_bytes())) {
            Ok(Some(value)) => reply_sized(reply, size, &value),
            Ok(None) => reply.error(Errno::ENODATA),
            Err(errno) => reply.error(errno),
        }
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let _request = self.linger.begin();
        let node = self.numbering.node(ino);
        let list = self.answer("attribute names", node, || {
            let mut list = Vec::new();
            for name in self.tree.xattr_names(node)? {
                list.extend_from_slice(&name);
                list.push(0);
            }
            Ok(list)
        });
        match list {
            Ok(list) => reply_sized(reply, size, &list),
            Err(errno) => reply.error(errno),
        }
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let hole = match whence {
            libc::SEEK_DATA => false,
            libc::SEEK_HOLE => true,
            _ => return reply.error(Errno::EINVAL),
        };
        let node = self.numbering.node(ino);
        let found = self.answer("seek", node, || {
            let size = self.tree.attr(node)?.size;
            let Some(offset) = u64::try_from(offset).ok().filter(|&offset| offset < size) else {
                return Ok(None);
            };
            let found = seek_extent(size, offset, hole, |at| self.tree.extent_at(node, at))?;
            // A file ends in a hole that takes no room.
            Ok(if hole { Some(found.unwrap_or(size)) } else { found })
        });
        match found.map(|at| at.and_then(|at| i64::try_from(at).ok())) {
            Ok(Some(at)) => reply.offset(at),
            Ok(None) => reply.error(Errno::ENXIO),
            Err(errno) => reply.error(errno),
        }
    }

    // What we have nothing to say to: the kernel asks once and does it by itself from then on.

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _notifier: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _input: &[u8],
        _output_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }
}
