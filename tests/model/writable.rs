//! A tree in memory that can be changed, whose files keep their bytes in unnamed host files.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, SeekFrom, Timespec, Timestamps};
use stratafs::block::{Extent, Origin};
use stratafs::error::{Error, Kind, Result};
use stratafs::tree::{
    Allocate, Attr, Caller, Changes, DirEntry, FileKind, FileTree, NewFile, NodeId, Rename,
    SetTime, SetXattr, StatFs, Time, WritableTree,
};

const ROOT: u64 = 1;

#[derive(Debug)]
struct Node {
    attr: Attr,
    /// A regular file's bytes.
    file: Option<Arc<File>>,
    target: Vec<u8>,
    /// With the position each has for ever.
    entries: BTreeMap<Vec<u8>, (u64, u64)>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    held: u64,
}

#[derive(Debug)]
struct State {
    nodes: HashMap<u64, Node>,
    next: u64,
    next_position: u64,
}

/// The tree, and what it was asked.
#[derive(Debug)]
pub struct Writable {
    state: Mutex<State>,
    /// Whether the kernel may use the host files.
    pub passes_through: bool,
    /// Whether files written to from now on may be used by the kernel, which others may not.
    pub only_written: bool,
    pub writes: AtomicU64,
    pub reads: AtomicU64,
    pub syncs: AtomicU64,
    pub forgotten: AtomicU64,
    /// Writes fail with this errno, if it is not 0.
    pub failing: AtomicI32,
}

fn now() -> Time {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Time { seconds: now.as_secs() as i64, nanos: now.subsec_nanos() }
}

fn host<T>(errno: i32) -> Result<T> {
    Err(Error::io(io::Error::from_raw_os_error(errno)))
}

fn gone() -> Error {
    Error::new(Kind::NotFound, "there is no such file")
}

impl State {
    fn node(&mut self, node: NodeId) -> Result<&mut Node> {
        self.nodes.get_mut(&node.0).ok_or_else(gone)
    }

    fn dir(&mut self, node: NodeId) -> Result<&mut Node> {
        let node = self.node(node)?;
        if node.attr.kind == FileKind::Directory {
            Ok(node)
        } else {
            Err(Error::new(Kind::NotADirectory, "no folder"))
        }
    }

    fn file(&mut self, node: NodeId) -> Result<Arc<File>> {
        self.node(node)?.file.clone().ok_or_else(|| Error::new(Kind::IsADirectory, "no file"))
    }

    fn entry(&mut self, dir: NodeId, name: &[u8]) -> Result<NodeId> {
        self.dir(dir)?.entries.get(name).map(|entry| NodeId(entry.0)).ok_or_else(gone)
    }

    fn touch(&mut self, dir: NodeId) {
        let attr = &mut self.nodes.get_mut(&dir.0).unwrap().attr;
        attr.modified = now();
        attr.changed = attr.modified;
    }

    fn name(&mut self, dir: NodeId, name: &[u8], node: NodeId) -> Result<()> {
        self.next_position += 1;
        let position = self.next_position;
        self.dir(dir)?.entries.insert(name.to_vec(), (node.0, position));
        self.touch(dir);
        Ok(())
    }

    fn is_dir(&mut self, node: NodeId) -> Result<bool> {
        Ok(self.node(node)?.attr.kind == FileKind::Directory)
    }

    /// Takes a name away, and with the last one the node unless it is held.
    fn drop_name(&mut self, dir: NodeId, name: &[u8]) -> Result<()> {
        let node = self.entry(dir, name)?;
        self.dir(dir)?.entries.remove(name);
        self.touch(dir);
        let is_dir = self.is_dir(node)?;
        let gone = self.node(node)?;
        gone.attr.links = if is_dir { 0 } else { gone.attr.links - 1 };
        gone.attr.changed = now();
        if is_dir {
            self.dir(dir)?.attr.links -= 1;
        }
        Ok(())
    }
}

impl Writable {
    pub fn new() -> Self {
        let mut state = State { nodes: HashMap::new(), next: ROOT, next_position: 0 };
        let root = Self::blank(FileKind::Directory, 0o777, 0, 0);
        state.nodes.insert(ROOT, root);
        Self {
            state: Mutex::new(state),
            passes_through: false,
            only_written: false,
            writes: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
            forgotten: AtomicU64::new(0),
            failing: AtomicI32::new(0),
        }
    }

    fn blank(kind: FileKind, mode: u16, uid: u32, gid: u32) -> Node {
        let time = now();
        let is_dir = kind == FileKind::Directory;
        let attr = Attr {
            node: NodeId(ROOT),
            kind,
            mode,
            uid,
            gid,
            links: if is_dir { 2 } else { 1 },
            size: 0,
            blocks: 0,
            accessed: time,
            modified: time,
            changed: time,
            created: None,
        };
        let file = (kind == FileKind::Regular).then(|| Arc::new(tempfile::tempfile().unwrap()));
        let (entries, xattrs) = (BTreeMap::new(), BTreeMap::new());
        Node { attr, file, target: Vec::new(), entries, xattrs, held: 0 }
    }

    /// Openings that were not released.
    pub fn held(&self) -> u64 {
        self.state.lock().nodes.values().map(|node| node.held).sum()
    }

    /// Nodes there are.
    pub fn nodes(&self) -> usize {
        self.state.lock().nodes.len()
    }
}

impl FileTree for Writable {
    fn root(&self) -> NodeId {
        NodeId(ROOT)
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>> {
        let mut state = self.state.lock();
        Ok(state.dir(dir)?.entries.get(name).map(|entry| NodeId(entry.0)))
    }

    fn attr(&self, id: NodeId) -> Result<Attr> {
        let mut state = self.state.lock();
        let node = state.node(id)?;
        let mut attr = Attr { node: id, ..node.attr };
        if let Some(file) = &node.file {
            let host = file.metadata().unwrap();
            let nanos = |n| u32::try_from(n).unwrap();
            let changed = Time { seconds: host.ctime(), nanos: nanos(host.ctime_nsec()) };
            attr.size = host.len();
            attr.blocks = host.blocks();
            attr.modified = Time { seconds: host.mtime(), nanos: nanos(host.mtime_nsec()) };
            attr.changed = attr.changed.max(changed);
        }
        if attr.kind == FileKind::Symlink {
            attr.size = node.target.len() as u64;
        }
        Ok(attr)
    }

    fn read_dir(
        &self,
        dir: NodeId,
        after: u64,
        emit: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<()> {
        let mut entries: Vec<_> = self.state.lock().dir(dir)?.entries.clone().into_iter().collect();
        entries.sort_by_key(|(_, (_, position))| *position);
        for (name, (node, position)) in entries {
            if position > after
                && !emit(DirEntry { name: &name, node: NodeId(node), next: position })
            {
                break;
            }
        }
        Ok(())
    }

    fn read_link(&self, node: NodeId) -> Result<Vec<u8>> {
        Ok(self.state.lock().node(node)?.target.clone())
    }

    fn read_at(&self, node: NodeId, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let file = self.state.lock().file(node)?;
        let mut len = 0;
        while len < buf.len() {
            match file.read_at(&mut buf[len..], offset + len as u64).map_err(Error::io)? {
                0 => break,
                more => len += more,
            }
        }
        Ok(len)
    }

    fn extent_at(&self, node: NodeId, offset: u64) -> Result<Extent> {
        let file = self.state.lock().file(node)?;
        let end = file.metadata().unwrap().len();
        let data = rustix::fs::seek(&*file, SeekFrom::Data(offset)).unwrap_or(end);
        if data > offset {
            return Ok(Extent { len: data - offset, hole: true });
        }
        let hole = rustix::fs::seek(&*file, SeekFrom::Hole(offset)).unwrap_or(end);
        Ok(Extent { len: hole - offset, hole: false })
    }

    fn origin_at(&self, node: NodeId, offset: u64) -> Result<Origin> {
        Ok(Origin::unknown(self.attr(node)?.size.saturating_sub(offset).max(1)))
    }

    fn xattr_names(&self, node: NodeId) -> Result<Vec<Vec<u8>>> {
        Ok(self.state.lock().node(node)?.xattrs.keys().cloned().collect())
    }

    fn xattr(&self, node: NodeId, name: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.state.lock().node(node)?.xattrs.get(name).cloned())
    }

    fn statfs(&self) -> Result<StatFs> {
        Ok(StatFs {
            block_size: 4096,
            blocks: 1 << 20,
            free: 1 << 19,
            available: 1 << 18,
            files: 1000,
            files_free: 500,
            name_max: 255,
        })
    }

    fn whole_file(&self, _: NodeId) -> Option<&File> {
        None
    }
}

impl WritableTree for Writable {
    fn create(
        &self,
        dir: NodeId,
        name: &[u8],
        new: &NewFile<'_>,
        caller: &Caller,
    ) -> Result<NodeId> {
        let mut state = self.state.lock();
        let above = state.dir(dir)?.attr;
        if state.entry(dir, name).is_ok() {
            return Err(Error::new(Kind::Exists, "it is there already"));
        }
        let is_dir = new.kind == FileKind::Directory;
        let inherits = above.mode & 0o2000 != 0;
        let gid = if inherits { above.gid } else { caller.gid };
        let mut mode = if new.kind == FileKind::Symlink { 0o777 } else { new.mode & !caller.umask };
        mode |= if inherits && is_dir { 0o2000 } else { 0 };
        let mut node = Self::blank(new.kind, mode, caller.uid, gid);
        node.target = new.target.to_vec();
        state.next += 1;
        let id = NodeId(state.next);
        state.nodes.insert(id.0, node);
        state.name(dir, name, id)?;
        if is_dir {
            state.dir(dir)?.attr.links += 1;
        }
        Ok(id)
    }

    fn link(&self, node: NodeId, dir: NodeId, name: &[u8]) -> Result<()> {
        let mut state = self.state.lock();
        if state.entry(dir, name).is_ok() {
            return Err(Error::new(Kind::Exists, "it is there already"));
        }
        if name == b"too many" {
            return host(libc::EMLINK);
        }
        let attr = &mut state.node(node)?.attr;
        attr.links += 1;
        attr.changed = now();
        state.name(dir, name, node)
    }

    fn rename(&self, from: (NodeId, &[u8]), to: (NodeId, &[u8]), how: Rename) -> Result<()> {
        let mut state = self.state.lock();
        let node = state.entry(from.0, from.1)?;
        let there = state.entry(to.0, to.1).ok();
        if to.1 == b"elsewhere" {
            return host(libc::EXDEV);
        }
        // As hosts that know no whiteouts.
        if how == Rename::Whiteout {
            return host(libc::EINVAL);
        }
        if how == Rename::NoReplace && there.is_some() {
            return Err(Error::new(Kind::Exists, "it is there already"));
        }
        let is_dir = state.is_dir(node)?;
        let mut moved = 0i64;
        if how == Rename::Exchange {
            let there = there.ok_or_else(gone)?;
            state.name(from.0, from.1, there)?;
            state.name(to.0, to.1, node)?;
            moved = i64::from(is_dir) - i64::from(state.is_dir(there)?);
        } else {
            if there == Some(node) {
                return Ok(());
            }
            if let Some(there) = there {
                if state.is_dir(there)? && !state.dir(there)?.entries.is_empty() {
                    return host(libc::ENOTEMPTY);
                }
                state.drop_name(to.0, to.1)?;
            }
            state.dir(from.0)?.entries.remove(from.1);
            state.touch(from.0);
            state.name(to.0, to.1, node)?;
            moved += i64::from(is_dir);
        }
        for (dir, by) in [(from.0, -moved), (to.0, moved)] {
            let links = &mut state.dir(dir)?.attr.links;
            *links = u32::try_from(i64::from(*links) + by).unwrap();
        }
        state.node(node)?.attr.changed = now();
        if let (Rename::Exchange, Some(there)) = (how, there) {
            state.node(there)?.attr.changed = now();
        }
        Ok(())
    }

    fn unlink(&self, dir: NodeId, name: &[u8]) -> Result<()> {
        let mut state = self.state.lock();
        let node = state.entry(dir, name)?;
        if state.is_dir(node)? {
            return Err(Error::new(Kind::IsADirectory, "is a folder"));
        }
        state.drop_name(dir, name)
    }

    fn remove_dir(&self, dir: NodeId, name: &[u8]) -> Result<()> {
        let mut state = self.state.lock();
        let node = state.entry(dir, name)?;
        if !state.dir(node)?.entries.is_empty() {
            return Err(Error::new(Kind::NotEmpty, "has entries"));
        }
        state.drop_name(dir, name)
    }

    fn set_attr(&self, id: NodeId, changes: &Changes) -> Result<()> {
        let mut state = self.state.lock();
        let node = state.node(id)?;
        let time = |set: SetTime| match set {
            SetTime::Now => now(),
            SetTime::To(time) => time,
        };
        if let (Some(size), Some(file)) = (changes.size, &node.file) {
            file.set_len(size).map_err(Error::io)?;
        }
        let attr = &mut node.attr;
        attr.mode = changes.mode.unwrap_or(attr.mode);
        attr.uid = changes.uid.unwrap_or(attr.uid);
        attr.gid = changes.gid.unwrap_or(attr.gid);
        attr.accessed = changes.accessed.map_or(attr.accessed, time);
        if let Some(modified) = changes.modified {
            attr.modified = time(modified);
            if let Some(file) = &node.file {
                let spec =
                    |time: Time| Timespec { tv_sec: time.seconds, tv_nsec: time.nanos.into() };
                let times = Timestamps {
                    last_access: spec(attr.accessed),
                    last_modification: spec(attr.modified),
                };
                rustix::fs::futimens(&**file, &times).unwrap();
            }
        }
        attr.changed = now();
        Ok(())
    }

    fn write_at(&self, node: NodeId, offset: u64, data: &[u8]) -> Result<()> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        let failing = self.failing.load(Ordering::Relaxed);
        if failing != 0 {
            return host(failing);
        }
        let file = self.state.lock().file(node)?;
        file.write_all_at(data, offset).map_err(Error::io)
    }

    fn allocate(&self, node: NodeId, offset: u64, len: u64, how: Allocate) -> Result<()> {
        let file = self.state.lock().file(node)?;
        let keep = FallocateFlags::KEEP_SIZE;
        let flags = match how {
            Allocate::Reserve { grow: true } => FallocateFlags::empty(),
            Allocate::Reserve { grow: false } => keep,
            Allocate::Punch => FallocateFlags::PUNCH_HOLE | keep,
            Allocate::Zero { grow: true } => FallocateFlags::ZERO_RANGE,
            Allocate::Zero { grow: false } => FallocateFlags::ZERO_RANGE | keep,
        };
        rustix::fs::fallocate(&*file, flags, offset, len).map_err(|errno| Error::io(errno.into()))
    }

    fn set_xattr(&self, node: NodeId, name: &[u8], value: &[u8], how: SetXattr) -> Result<()> {
        let mut state = self.state.lock();
        let node = state.node(node)?;
        match (how, node.xattrs.contains_key(name)) {
            (SetXattr::Create, true) => return host(libc::EEXIST),
            (SetXattr::Replace, false) => return host(libc::ENODATA),
            _ => {}
        }
        node.xattrs.insert(name.to_vec(), value.to_vec());
        node.attr.changed = now();
        Ok(())
    }

    fn remove_xattr(&self, node: NodeId, name: &[u8]) -> Result<()> {
        let mut state = self.state.lock();
        let node = state.node(node)?;
        node.attr.changed = now();
        node.xattrs.remove(name).map_or_else(|| host(libc::ENODATA), |_| Ok(()))
    }

    fn sync(&self, _: NodeId) -> Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn sync_all(&self) -> Result<()> {
        self.sync(NodeId(ROOT))
    }

    fn hold(&self, node: NodeId, _write: bool) -> Result<()> {
        self.state.lock().node(node)?.held += 1;
        Ok(())
    }

    fn release(&self, node: NodeId) {
        self.state.lock().node(node).unwrap().held -= 1;
    }

    fn forget(&self, id: NodeId) {
        self.forgotten.fetch_add(1, Ordering::Relaxed);
        let mut state = self.state.lock();
        let node = state.node(id).unwrap();
        if node.attr.links == 0 && node.held == 0 {
            state.nodes.remove(&id.0);
        }
    }

    fn backing_file(&self, node: NodeId) -> Option<Arc<File>> {
        let mut state = self.state.lock();
        let written = state.node(node).ok()?.attr.mode & 0o200 != 0;
        (self.passes_through && (!self.only_written || written))
            .then(|| state.file(node).ok())
            .flatten()
    }
}
