//! Mounting: a tree of every kind of file, seen through the kernel.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod access;
mod contents;
#[path = "../support/mod.rs"]
mod support;

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use stratafs::block::{Extent, Origin};
use stratafs::error::{Error, Kind, Result};
use stratafs::mount::{Mounted, Options, Unmount, mount, unmount};
use stratafs::tree::{
    Attr, Device, DirEntry, FileKind, FileTree, NodeId, Served, StatFs as TreeStatFs, Time,
};

use support::{as_nobody, run, tool};

const MANY: usize = 20_000;
const HOLE: u64 = 64 << 20;
const ACL: &str = "system.posix_acl_access";

/// A file of the model.
#[derive(Debug)]
struct Node {
    kind: FileKind,
    mode: u16,
    uid: u32,
    time: Time,
    contents: Contents,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    links: u32,
}

#[derive(Debug)]
enum Contents {
    None,
    Folder(Vec<(Vec<u8>, u64)>),
    Link(Vec<u8>),
    /// Bytes that follow from their offset, but for a hole before the given offset.
    Pattern {
        size: u64,
        data_from: u64,
    },
    Failing,
    Panicking,
    Host(File),
}

/// A tree held in memory that counts what it is asked.
#[derive(Debug)]
struct Model {
    nodes: BTreeMap<u64, Node>,
    root: u64,
    broken: AtomicBool,
    reads: AtomicU64,
    links_read: AtomicU64,
    lookups: AtomicU64,
    attrs: AtomicU64,
}

/// The byte of file `node` at `offset`.
fn byte(node: u64, offset: u64) -> u8 {
    (offset.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(node * 31) >> 32) as u8
}

fn pattern(node: u64, data_from: u64, offset: u64, buf: &mut [u8]) {
    for (at, slot) in (offset..).zip(buf) {
        *slot = if at < data_from { 0 } else { byte(node, at) };
    }
}

impl Model {
    fn new(root: u64) -> Self {
        let mut model = Self {
            nodes: BTreeMap::new(),
            root,
            broken: AtomicBool::new(true),
            reads: AtomicU64::new(0),
            links_read: AtomicU64::new(0),
            lookups: AtomicU64::new(0),
            attrs: AtomicU64::new(0),
        };
        model.put(root, FileKind::Directory, Contents::Folder(Vec::new()));
        model
    }

    fn put(&mut self, number: u64, kind: FileKind, contents: Contents) -> &mut Node {
        let node = Node {
            kind,
            mode: if kind == FileKind::Directory { 0o755 } else { 0o644 },
            uid: 0,
            time: Time { seconds: 1_000_000_000, nanos: 1 },
            contents,
            xattrs: BTreeMap::new(),
            links: 1,
        };
        self.nodes.insert(number, node);
        self.nodes.get_mut(&number).unwrap()
    }

    fn link(&mut self, dir: u64, name: &[u8], number: u64) {
        let Contents::Folder(entries) = &mut self.nodes.get_mut(&dir).unwrap().contents else {
            panic!("{dir} is no folder")
        };
        entries.push((name.to_vec(), number));
    }

    fn add(&mut self, name: &[u8], number: u64, kind: FileKind, contents: Contents) -> &mut Node {
        self.link(self.root, name, number);
        self.put(number, kind, contents)
    }

    fn file(&mut self, name: &[u8], number: u64, size: u64) -> &mut Node {
        self.add(name, number, FileKind::Regular, Contents::Pattern { size, data_from: 0 })
    }

    fn node(&self, node: NodeId) -> Result<&Node> {
        self.nodes.get(&node.0).ok_or_else(|| Error::new(Kind::NotFound, "no such node"))
    }

    fn entries(&self, dir: NodeId) -> Result<&[(Vec<u8>, u64)]> {
        match &self.node(dir)?.contents {
            Contents::Folder(entries) => Ok(entries),
            _ => Err(Error::new(Kind::NotADirectory, "not a folder")),
        }
    }

    fn size(&self, node: &Node) -> u64 {
        match &node.contents {
            Contents::None => 0,
            Contents::Folder(_) => 4096,
            Contents::Link(target) => target.len() as u64,
            Contents::Pattern { size, .. } => *size,
            Contents::Failing | Contents::Panicking => 100_000,
            Contents::Host(file) => file.metadata().unwrap().len(),
        }
    }
}

impl FileTree for Model {
    fn root(&self) -> NodeId {
        NodeId(self.root)
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>> {
        assert!(name != b"." && name != b"..");
        self.lookups.fetch_add(1, Ordering::Relaxed);
        let found = self.entries(dir)?.iter().find(|(known, _)| known == name);
        Ok(found.map(|&(_, number)| NodeId(number)))
    }

    fn attr(&self, node: NodeId) -> Result<Attr> {
        self.attrs.fetch_add(1, Ordering::Relaxed);
        let number = node;
        let node = self.node(node)?;
        let later = |seconds| Time { seconds: node.time.seconds + seconds, ..node.time };
        Ok(Attr {
            node: number,
            kind: node.kind,
            mode: node.mode,
            uid: node.uid,
            gid: node.uid + 1,
            links: node.links,
            size: self.size(node),
            blocks: self.size(node).div_ceil(512),
            accessed: node.time,
            modified: later(1),
            changed: later(2),
            created: None,
        })
    }

    fn read_dir(
        &self,
        dir: NodeId,
        after: u64,
        emit: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<()> {
        // Positions with gaps, as hashes are.
        let entries = self.entries(dir)?.iter().zip(1..).skip((after / 7) as usize);
        for ((name, number), position) in entries {
            if !emit(DirEntry { name, node: NodeId(*number), next: position * 7 }) {
                break;
            }
        }
        Ok(())
    }

    fn read_link(&self, node: NodeId) -> Result<Vec<u8>> {
        self.links_read.fetch_add(1, Ordering::Relaxed);
        match &self.node(node)?.contents {
            Contents::Link(target) => Ok(target.clone()),
            _ => Err(Error::new(Kind::Usage, "not a link")),
        }
    }

    fn read_at(&self, node: NodeId, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let number = node.0;
        let node = self.node(node)?;
        let len = self.size(node).saturating_sub(offset).min(buf.len() as u64) as usize;
        let buf = &mut buf[..len];
        let broken = self.broken.load(Ordering::Relaxed);
        match &node.contents {
            Contents::Pattern { data_from, .. } => pattern(number, *data_from, offset, buf),
            Contents::Failing if broken => {
                return Err(Error::new(Kind::Corrupt, format!("bad cluster at {offset:#x}")));
            }
            Contents::Panicking if broken => panic!("a bug in the tree"),
            Contents::Failing | Contents::Panicking => pattern(number, 0, offset, buf),
            Contents::Host(file) => file.read_exact_at(buf, offset).unwrap(),
            _ => return Err(Error::new(Kind::IsADirectory, "not a file")),
        }
        Ok(len)
    }

    fn extent_at(&self, node: NodeId, offset: u64) -> Result<Extent> {
        let node = self.node(node)?;
        let size = self.size(node);
        match node.contents {
            Contents::Pattern { data_from, .. } if offset < data_from => {
                // In pieces, as a chain tells them.
                Ok(Extent { len: (data_from - offset).min(1 << 20), hole: true })
            }
            _ => Ok(Extent { len: size - offset, hole: false }),
        }
    }

    fn origin_at(&self, node: NodeId, offset: u64) -> Result<Origin> {
        let size = self.attr(node)?.size;
        Ok(Origin::unknown(size.saturating_sub(offset).max(1)))
    }

    fn xattr_names(&self, node: NodeId) -> Result<Vec<Vec<u8>>> {
        Ok(self.node(node)?.xattrs.keys().cloned().collect())
    }

    fn xattr(&self, node: NodeId, name: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.node(node)?.xattrs.get(name).cloned())
    }

    fn statfs(&self) -> Result<TreeStatFs> {
        Ok(TreeStatFs {
            block_size: 1024,
            blocks: 1_000_003,
            free: 500_001,
            available: 400_001,
            files: 77_777,
            files_free: 55_555,
            name_max: 255,
        })
    }

    fn whole_file(&self, node: NodeId) -> Option<&File> {
        match &self.nodes.get(&node.0)?.contents {
            Contents::Host(file) => Some(file),
            _ => None,
        }
    }
}

/// The version 2 ACL `user::rw-,user:33:r--,group::---,mask::r--,other::---`.
fn acl() -> Vec<u8> {
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (1u16, 6u16, u32::MAX),
        (2, 4, 33),
        (4, 0, u32::MAX),
        (0x10, 4, u32::MAX),
        (0x20, 0, u32::MAX),
    ] {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    acl
}

/// One of everything. The root is node 2, and nodes 0 and 1 are ordinary files.
fn model() -> Model {
    let mut model = Model::new(2);
    model.file(b"zero", 0, 10);
    model.file(b"one", 1, 10);
    model.file(b"large", 10, 3 << 20).links = 2;
    model.link(2, b"large too", 10);
    model.add(
        b"sparse",
        11,
        FileKind::Regular,
        Contents::Pattern { size: HOLE + 8192, data_from: HOLE },
    );
    model.add(b"link", 12, FileKind::Symlink, Contents::Link(b"no\xffwhere".to_vec()));
    model.add(b"fifo", 13, FileKind::Fifo, Contents::None);
    model.add(b"socket", 14, FileKind::Socket, Contents::None);
    let device = Device { major: 259, minor: 0x1_2345 };
    model.add(b"character", 15, FileKind::CharDevice(device), Contents::None);
    model.add(b"block", 16, FileKind::BlockDevice(device), Contents::None);
    let odd = model.file(b"odd", 17, 0);
    odd.mode = 0o6711;
    odd.uid = 4_000_000_000;
    odd.time = Time { seconds: -86_400 * 365 * 10, nanos: 123_456_789 };
    model.file(b"late", 18, 0).time = Time { seconds: 10_000_000_000, nanos: 999_999_999 };
    model.file(b"new\nline", 19, 1);
    model.file(b"caf\xe9", 20, 1);
    model.file(&[b'x'; 255], 21, 1);
    let attributed = model.file(b"attributed", 22, 1);
    attributed.mode = 0o640;
    attributed.xattrs.insert(b"user.comment".to_vec(), b"a\0b".to_vec());
    attributed.xattrs.insert(b"user.empty".to_vec(), Vec::new());
    attributed.xattrs.insert(b"user.large".to_vec(), vec![7; 3000]);
    attributed.xattrs.insert(ACL.as_bytes().to_vec(), acl());
    model.add(b"failing", 23, FileKind::Regular, Contents::Failing);
    model.add(b"panicking", 24, FileKind::Regular, Contents::Panicking);
    model.add(b"many", 25, FileKind::Directory, Contents::Folder(Vec::new()));
    for n in 0..MANY {
        let number = 1000 + n as u64;
        model.put(number, FileKind::Regular, Contents::Pattern { size: number * 3, data_from: 0 });
        model.link(25, format!("entry-{n:05}").as_bytes(), number);
    }
    // A name whose node cannot be read.
    model.add(b"damaged", 26, FileKind::Directory, Contents::Folder(Vec::new()));
    model.link(26, b"before", 17);
    model.link(26, b"lost", 999);
    model.link(26, b"after", 18);
    model
}

/// A model mounted in a temporary folder.
struct Fixture {
    model: Arc<Model>,
    // In this order: unmounted before the folder goes.
    mounted: Option<Mounted>,
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new(model: Model, options: &Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let model = Arc::new(model);
        let mounted =
            mount(Served::ReadOnly(Arc::clone(&model) as Arc<dyn FileTree>), dir.path(), options)
                .unwrap_or_else(|error| panic!("{error}\n{:?}", error.hint()));
        Self { model, mounted: Some(mounted), dir }
    }

    fn path(&self, name: impl AsRef<[u8]>) -> PathBuf {
        self.dir.path().join(OsStr::from_bytes(name.as_ref()))
    }

    fn mountinfo(&self) -> String {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let point = self.dir.path().canonicalize().unwrap();
        let line = table.lines().find(|line| line.split(' ').nth(4) == point.to_str());
        line.expect("the mount in the table").to_owned()
    }
}

fn options() -> Options {
    Options { name: "model".to_owned(), ..Options::default() }
}

fn seconds(metadata: &fs::Metadata) -> [(i64, i64); 3] {
    [
        (metadata.atime(), metadata.atime_nsec()),
        (metadata.mtime(), metadata.mtime_nsec()),
        (metadata.ctime(), metadata.ctime_nsec()),
    ]
}
