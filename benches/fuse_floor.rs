//! What writing many small files through FUSE costs by the questions and answers alone: a tree in
//! memory, every request answered at once and nothing kept on any disk. The same load on it says how
//! near to the kernel's own overlayfs a server can come that does not save requests.
//!
//! `fuse_floor DIR` serves until DIR is unmounted.
#![allow(clippy::print_stderr, missing_docs, reason = "a measuring program")]

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite,
    ReplyXattr, Request, Session, TimeOrNow, WriteFlags,
};

const TTL: Duration = Duration::from_secs(1 << 20);

struct Node {
    attr: FileAttr,
    data: Vec<u8>,
    entries: BTreeMap<OsString, INodeNo>,
}

struct Floor(Mutex<Vec<Node>>);

impl Floor {
    fn new() -> Self {
        Self(Mutex::new(vec![
            node(INodeNo(0), FileType::Directory, 0o755),
            node(INodeNo::ROOT, FileType::Directory, 0o755),
        ]))
    }

    fn nodes(&self) -> MutexGuard<'_, Vec<Node>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, dir: INodeNo, name: &OsStr, kind: FileType, mode: u32, data: &[u8]) -> FileAttr {
        let mut nodes = self.nodes();
        let ino = INodeNo(nodes.len() as u64);
        let mut new = node(ino, kind, mode as u16 & 0o7777);
        new.attr.size = data.len() as u64;
        new.data = data.to_vec();
        let attr = new.attr;
        nodes.push(new);
        if let Some(dir) = nodes.get_mut(dir.0 as usize) {
            dir.entries.insert(name.to_owned(), ino);
        }
        attr
    }

    fn remove(&self, dir: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if let Some(dir) = self.nodes().get_mut(dir.0 as usize) {
            dir.entries.remove(name);
        }
        reply.ok();
    }

    fn attr(&self, ino: INodeNo) -> FileAttr {
        self.nodes().get(ino.0 as usize).map_or(node(ino, FileType::Directory, 0).attr, |n| n.attr)
    }
}

fn node(ino: INodeNo, kind: FileType, perm: u16) -> Node {
    let now = UNIX_EPOCH;
    let attr = FileAttr {
        ino,
        size: 0,
        blocks: 8,
        atime: now,
        mtime: now,
        ctime: now,
        crtime: now,
        kind,
        perm,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    };
    Node { attr, data: Vec::new(), entries: BTreeMap::new() }
}

impl Filesystem for Floor {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_NO_OPENDIR_SUPPORT
            | InitFlags::FUSE_CACHE_SYMLINKS;
        let _ = config.add_capabilities(wanted & config.capabilities());
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let nodes = self.nodes();
        let found = nodes.get(parent.0 as usize).and_then(|dir| dir.entries.get(name));
        match found.and_then(|ino| nodes.get(ino.0 as usize)) {
            Some(node) => reply.entry(&TTL, &node.attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(ino));
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut nodes = self.nodes();
        let Some(node) = nodes.get_mut(ino.0 as usize) else { return reply.error(Errno::ENOENT) };
        if let Some(mode) = mode {
            node.attr.perm = mode as u16 & 0o7777;
        }
        if let Some(size) = size {
            node.data.resize(size as usize, 0);
            node.attr.size = size;
        }
        if let Some(TimeOrNow::SpecificTime(time)) = mtime {
            node.attr.mtime = time;
        }
        node.attr.uid = uid.unwrap_or(node.attr.uid);
        node.attr.gid = gid.unwrap_or(node.attr.gid);
        reply.attr(&TTL, &node.attr);
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        reply.data(self.nodes().get(ino.0 as usize).map_or(&[], |node| &node.data));
    }

    fn mkdir(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let attr = self.add(parent, name, FileType::Directory, mode, &[]);
        reply.entry(&TTL, &attr, Generation(0));
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(parent, name, reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.remove(parent, name, reply);
    }

    fn symlink(
        &self,
        _req: &Request,
        parent: INodeNo,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let target = target.as_os_str().as_bytes();
        let attr = self.add(parent, link_name, FileType::Symlink, 0o777, target);
        reply.entry(&TTL, &attr, Generation(0));
    }

    fn link(
        &self,
        _req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        if let Some(dir) = self.nodes().get_mut(newparent.0 as usize) {
            dir.entries.insert(newname.to_owned(), ino);
        }
        reply.entry(&TTL, &self.attr(ino), Generation(0));
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
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
        let nodes = self.nodes();
        let data = nodes.get(ino.0 as usize).map_or(&[][..], |node| &node.data);
        let from = (offset as usize).min(data.len());
        reply.data(&data[from..(from + size as usize).min(data.len())]);
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
        let mut nodes = self.nodes();
        let Some(node) = nodes.get_mut(ino.0 as usize) else { return reply.error(Errno::ENOENT) };
        let (from, to) = (offset as usize, offset as usize + data.len());
        if node.data.len() < to {
            node.data.resize(to, 0);
            node.attr.size = to as u64;
        }
        node.data[from..to].copy_from_slice(data);
        reply.written(data.len() as u32);
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

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let nodes = self.nodes();
        let Some(dir) = nodes.get(ino.0 as usize) else { return reply.error(Errno::ENOENT) };
        for (nth, (name, child)) in dir.entries.iter().enumerate().skip(offset as usize) {
            let kind = nodes.get(child.0 as usize).map_or(FileType::RegularFile, |n| n.attr.kind);
            if reply.add(*child, nth as u64 + 1, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn getxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _size: u32,
        reply: ReplyXattr,
    ) {
        // Not ENOSYS, which would say that no file has any: an overlay's files may.
        reply.error(Errno::ENODATA);
    }

    fn create(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let attr = self.add(parent, name, FileType::RegularFile, mode, &[]);
        let flags = FopenFlags::FOPEN_KEEP_CACHE;
        reply.created(&TTL, &attr, Generation(0), FileHandle(0), flags);
    }
}

fn serve(dir: &str) -> io::Result<()> {
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("fuse_floor".to_owned())];
    config.n_threads = Some(2);
    config.clone_fd = true;
    Session::new(Floor::new(), dir, &config)?.run()
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let served = match args.as_slice() {
        [dir] => serve(dir),
        // `cargo bench` runs every bench without arguments: nothing to measure then.
        [] => return ExitCode::SUCCESS,
        _ => {
            eprintln!("usage: fuse_floor DIR");
            return ExitCode::from(2);
        }
    };
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fuse_floor: {error}");
            ExitCode::FAILURE
        }
    }
}
