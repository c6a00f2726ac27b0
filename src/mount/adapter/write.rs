//! A tree that can be changed, as the kernel asks about it.
//!
//! Everything changes through this one mount, so that the kernel's caches stay right by
//! themselves: it knows what each of its own requests changes.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents,
    PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::asked::{caller, how_to_allocate, how_to_rename, how_to_set, writes};
use super::known::Known;
use super::opened::Opened;
use super::{Adapter, LIFETIME, Listed, MAX_BACKGROUND, MAX_REQUEST};
use crate::mount::inode::{blank_attr, file_kind, permissions, set_time};
use crate::tree::{Changes, FileKind, NewFile, Rename, WritableTree};

/// The FUSE side of a tree that can be changed. What only reads is left to [`Adapter`].
#[derive(Debug)]
pub(in crate::mount) struct WritableAdapter {
    pub(super) read: Adapter,
    pub(super) tree: Arc<dyn WritableTree>,
    pub(super) known: Known,
    pub(super) opened: Opened,
    /// How long the kernel may believe what we say of attributes.
    pub(super) lifetime: Duration,
    /// Files have bytes in common; see [`WritableTree::shares_bytes`].
    pub(super) shares_bytes: bool,
    /// Whether there are extended attributes. The kernel asks for one before each write.
    pub(super) xattrs: bool,
}

impl Filesystem for WritableAdapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let mut wanted = InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_NO_OPENDIR_SUPPORT
            // A folder's default ACL takes the place of the umask: whoever makes the file decides.
            | InitFlags::FUSE_DONT_MASK;
        if self.read.permissions {
            // It also turns on the kernel's permission checks, wanted or not.
            wanted |= InitFlags::FUSE_POSIX_ACL;
        }
        let offered = config.capabilities();
        if offered.contains(InitFlags::FUSE_PASSTHROUGH) && !self.shares_bytes {
            wanted |= InitFlags::FUSE_PASSTHROUGH;
            let _ = config.set_max_stack_depth(1);
            *self.opened.passes_through.get_mut() = true;
        }
        let _ = config.add_capabilities(wanted & offered);
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_max_write(MAX_REQUEST);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _request = self.read.linger.begin();
        if name.len() > self.read.name_max {
            return reply.error(Errno::ENAMETOOLONG);
        }
        let dir = self.node(parent);
        let asking = self.known.ask();
        let found = self.read.answer("look-up in", dir, || {
            match self.tree.lookup(dir, name.as_bytes())? {
                Some(node) => self.tell(&asking, node, dir).map(Some),
                None => Ok(None),
            }
        });
        match found {
            Ok(Some(attr)) => reply.entry(&self.lifetime, &attr, Generation(0)),
            // Number 0: there is no such name, and the kernel may remember that.
            Ok(None) => reply.entry(&LIFETIME, &blank_attr(INodeNo(0)), Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        let node = self.node(ino);
        let forgotten = self.read.answer("forgetting", node, || {
            if self.known.give_back(node, nlookup) {
                self.read.parents.lock().remove(&node);
            }
            Ok(())
        });
        // Nobody waits for an answer; a panic was told.
        let _ = forgotten;
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let _request = self.read.linger.begin();
        let node = self.node(ino);
        match self.read.answer("attributes", node, || self.read.stat(node)) {
            Ok(attr) => reply.attr(&self.lifetime, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let _request = self.read.linger.begin();
        let node = self.node(ino);
        let changes = Changes {
            mode: mode.map(permissions),
            uid,
            gid,
            size,
            accessed: atime.map(set_time),
            modified: mtime.map(set_time),
        };
        let changed = self.change("attributes", node, || {
            self.tree.set_attr(node, &changes)?;
            self.read.stat(node)
        });
        match changed {
            Ok(attr) => reply.attr(&self.lifetime, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        self.read.readlink(req, ino, reply);
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let Some(kind) = file_kind(mode, rdev) else { return reply.error(Errno::EINVAL) };
        let new = NewFile { kind, mode: permissions(mode), target: b"" };
        self.make(req, parent, name, umask, &new, reply);
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let new = NewFile { kind: FileKind::Directory, mode: permissions(mode), target: b"" };
        self.make(req, parent, name, umask, &new, reply);
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let target = target.as_os_str().as_bytes();
        let new = NewFile { kind: FileKind::Symlink, mode: 0o777, target };
        self.make(req, parent, name, 0, &new, reply);
    }

    fn link(&self, _req: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let _request = self.read.linger.begin();
        let (node, dir) = (self.node(ino), self.node(parent));
        let asking = self.known.ask();
        let linked = self.change("link to", node, || {
            self.tree.link(node, dir, name.as_bytes())?;
            self.tell(&asking, node, dir)
        });
        match linked {
            Ok(attr) => reply.entry(&self.lifetime, &attr, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let dir = self.node(parent);
        self.act("removal from", dir, reply, || self.tree.unlink(dir, name.as_bytes()));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let dir = self.node(parent);
        self.act("removal from", dir, reply, || self.tree.remove_dir(dir, name.as_bytes()));
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let from = (self.node(parent), name.as_bytes());
        let to = (self.node(newparent), newname.as_bytes());
        self.act("rename in", from.0, reply, || {
            let how = how_to_rename(flags)?;
            self.tree.rename(from, to, how)?;
            if from.0 != to.0 {
                // It is done: a failure here would only tell of a stale `..`.
                let _ = self.moved(to.0, to.1);
                if how == Rename::Exchange {
                    let _ = self.moved(from.0, from.1);
                }
            }
            Ok(())
        });
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let _request = self.read.linger.begin();
        let node = self.node(ino);
        let write = writes(flags);
        let opened = self.change("opening", node, || {
            self.tree.hold(node, write)?;
            Ok(self.opened.open(node, || self.backing(node, |file| reply.open_backing(file))))
        });
        match opened {
            Ok(Some(id)) => reply.opened_passthrough(FileHandle(0), FopenFlags::empty(), &id),
            Ok(None) => reply.opened(FileHandle(0), self.cached(node, write)),
            Err(errno) => reply.error(errno),
        }
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let _request = self.read.linger.begin();
        let dir = self.node(parent);
        let write = writes(OpenFlags(flags));
        let new = NewFile { kind: FileKind::Regular, mode: permissions(mode), target: b"" };
        let asking = self.known.ask();
        let created = self.change("making a file in", dir, || {
            let node = self.tree.create(dir, name.as_bytes(), &new, &caller(req, umask))?;
            self.tree.hold(node, write)?;
            let attr = self.tell(&asking, node, dir).inspect_err(|_| self.tree.release(node))?;
            let backing =
                self.opened.open(node, || self.backing(node, |file| reply.open_backing(file)));
            Ok((node, attr, backing))
        });
        let (ttl, generation, fh) = (&self.lifetime, Generation(0), FileHandle(0));
        match created {
            Ok((_, attr, Some(id))) => {
                reply.created_passthrough(ttl, &attr, generation, fh, FopenFlags::empty(), &id);
            }
            Ok((node, attr, None)) => {
                reply.created(ttl, &attr, generation, fh, self.cached(node, write));
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let node = self.node(ino);
        self.act("closing", node, reply, || {
            self.opened.release(node);
            self.tree.release(node);
            Ok(())
        });
    }

    fn opendir(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.read.opendir(req, ino, flags, reply);
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.read.read(req, ino, fh, offset, size, flags, lock_owner, reply);
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let _request = self.read.linger.begin();
        let node = self.node(ino);
        let written = self.change("write", node, || {
            let written = self.tree.write_at(node, offset, data);
            if self.shares_bytes {
                self.opened.written(node);
            }
            written
        });
        match written {
            // A request is never that large.
            Ok(()) => reply.written(u32::try_from(data.len()).unwrap_or(u32::MAX)),
            Err(errno) => reply.error(errno),
        }
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let node = self.node(ino);
        self.act("fallocate", node, reply, || {
            let allocated = self.tree.allocate(node, offset, length, how_to_allocate(mode)?);
            if self.shares_bytes {
                self.opened.written(node);
            }
            allocated
        });
    }

    fn fsync(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let node = self.node(ino);
        self.act("fsync", node, reply, || self.tree.sync(node));
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let node = self.node(ino);
        self.act("fsync", node, reply, || self.tree.sync(node));
    }

    fn readdir(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        self.read.readdir(req, ino, fh, offset, reply);
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let _request = self.read.linger.begin();
        let asking = self.known.ask();
        let listed = self.read.list(self.node(ino), offset, &mut |entry| {
            let Listed { name, next, attr, lifetime } = entry;
            let lifetime = lifetime.min(self.lifetime);
            let shown = OsStr::from_bytes(name);
            let full = reply.add(attr.ino, next, shown, &lifetime, &attr, Generation(0));
            // These two are not counted: the kernel knows them already.
            if !full && !matches!(name, b"." | b"..") {
                asking.tell(self.node(attr.ino));
            }
            full
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.read.statfs(req, ino, reply);
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let node = self.node(ino);
        self.act("attribute", node, reply, || {
            self.tree.set_xattr(node, name.as_bytes(), value, how_to_set(flags)?)
        });
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if self.xattrs {
            self.read.getxattr(req, ino, name, size, reply);
        } else {
            // Once and for all.
            reply.error(Errno::ENOSYS);
        }
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.read.listxattr(req, ino, size, reply);
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let node = self.node(ino);
        self.act("attribute", node, reply, || self.tree.remove_xattr(node, name.as_bytes()));
    }

    fn lseek(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.read.lseek(req, ino, fh, offset, whence, reply);
    }

    // What the kernel does by itself once it has asked. It writes out a file that is closed before
    // it would tell us of that.

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

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn copy_file_range(
        &self,
        _req: &Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn poll(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        notifier: PollNotifier,
        events: PollEvents,
        flags: PollFlags,
        reply: ReplyPoll,
    ) {
        self.read.poll(req, ino, fh, notifier, events, flags, reply);
    }

    fn ioctl(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        flags: IoctlFlags,
        command: u32,
        input: &[u8],
        output_size: u32,
        reply: ReplyIoctl,
    ) {
        self.read.ioctl(req, ino, fh, flags, command, input, output_size, reply);
    }
}
