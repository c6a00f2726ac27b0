//! Mounting: a tree of every kind of file, seen through the kernel.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

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

#[test]
fn every_attribute_of_every_file_is_shown() {
    let fixture = Fixture::new(model(), &options());
    let model = &fixture.model;
    let mut listed = 0;
    for entry in fs::read_dir(fixture.dir.path()).unwrap() {
        use std::os::unix::fs::DirEntryExt;
        let entry = entry.unwrap();
        listed += 1;
        let name = entry.file_name();
        let number = model.lookup(NodeId(2), name.as_bytes()).unwrap().unwrap();
        let attr = model.attr(number).unwrap();
        let metadata = fs::symlink_metadata(entry.path()).unwrap();
        assert_eq!(entry.ino(), metadata.ino(), "{name:?}");
        if number.0 > 1 {
            assert_eq!(metadata.ino(), number.0, "{name:?}");
        }
        assert_eq!(entry.file_type().unwrap(), metadata.file_type());
        let kind = metadata.file_type();
        assert!(
            match attr.kind {
                FileKind::Regular => kind.is_file(),
                FileKind::Directory => kind.is_dir(),
                FileKind::Symlink => kind.is_symlink(),
                FileKind::Fifo => kind.is_fifo(),
                FileKind::Socket => kind.is_socket(),
                FileKind::CharDevice(_) => kind.is_char_device(),
                FileKind::BlockDevice(_) => kind.is_block_device(),
            },
            "{name:?}: {kind:?}"
        );
        assert_eq!(metadata.mode() & 0o7777, u32::from(attr.mode), "{name:?}");
        assert_eq!((metadata.uid(), metadata.gid()), (attr.uid, attr.gid), "{name:?}");
        assert_eq!(metadata.nlink(), u64::from(attr.links), "{name:?}");
        assert_eq!((metadata.size(), metadata.blocks()), (attr.size, attr.blocks), "{name:?}");
        let times = [attr.accessed, attr.modified, attr.changed]
            .map(|time| (time.seconds, i64::from(time.nanos)));
        assert_eq!(seconds(&metadata), times, "{name:?}");
        if let FileKind::CharDevice(device) | FileKind::BlockDevice(device) = attr.kind {
            let shown = metadata.rdev();
            let shown = (rustix::fs::major(shown), rustix::fs::minor(shown));
            assert_eq!(shown, (device.major, device.minor));
        }
    }
    assert_eq!(listed, model.entries(NodeId(2)).unwrap().len());
    let inos = ["zero", "one", "large"].map(|name| fs::metadata(fixture.path(name)).unwrap().ino());
    assert_eq!(inos.iter().collect::<HashSet<_>>().len(), 3);
    assert_eq!(inos[2], fs::metadata(fixture.path("large too")).unwrap().ino());
    assert_eq!(fs::metadata(fixture.dir.path()).unwrap().ino(), 2);
    assert_eq!(fs::read_link(fixture.path("link")).unwrap().as_os_str().as_bytes(), b"no\xffwhere");
    let missing = fs::metadata(fixture.path("missing")).unwrap_err();
    assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
}

#[test]
fn the_kernel_asks_for_what_it_knows_only_once() {
    let fixture = Fixture::new(model(), &options());
    let counts = || {
        [
            &fixture.model.lookups,
            &fixture.model.attrs,
            &fixture.model.links_read,
            &fixture.model.reads,
        ]
        .map(|count| count.load(Ordering::Relaxed))
    };
    let look = || {
        for entry in fs::read_dir(fixture.path("many")).unwrap() {
            fs::symlink_metadata(entry.unwrap().path()).unwrap();
        }
        assert!(fs::metadata(fixture.path("many/missing")).is_err());
        fs::read_link(fixture.path("link")).unwrap();
        fs::read(fixture.path("large")).unwrap();
    };
    look();
    let first = counts();
    assert!(first[0] < 10, "listing brings the attributes along: {} look-ups", first[0]);
    look();
    assert_eq!(counts(), first);
}

/// Name, number and position of the entries of an open folder from here to its end.
fn entries(dir: &rustix::fd::OwnedFd) -> Vec<(Vec<u8>, u64, u64)> {
    let mut buffer = Vec::with_capacity(32 << 10);
    let mut raw = rustix::fs::RawDir::new(dir, buffer.spare_capacity_mut());
    let mut all = Vec::new();
    while let Some(entry) = raw.next() {
        let entry = entry.unwrap();
        let cookie = entry.next_entry_cookie();
        all.push((entry.file_name().to_bytes().to_vec(), entry.ino(), cookie));
    }
    all
}

#[test]
fn a_large_folder_lists_whole_and_from_any_position() {
    let fixture = Fixture::new(model(), &options());
    let dir = File::open(fixture.path("many")).unwrap().into();
    let all = entries(&dir);
    assert_eq!(all.len(), MANY + 2);
    assert_eq!((all[0].0.as_slice(), all[0].1), (&b"."[..], 25));
    assert_eq!((all[1].0.as_slice(), all[1].1), (&b".."[..], 2));
    for (n, (name, ino, _)) in all[2..].iter().enumerate() {
        assert_eq!(*name, format!("entry-{n:05}").into_bytes());
        assert_eq!(*ino, 1000 + n as u64);
    }
    for at in [0, 1, 2, 3, 77, 9_999, MANY, MANY + 1] {
        rustix::fs::seek(&dir, SeekFrom::Start(all[at].2)).unwrap();
        assert_eq!(entries(&dir), all[at + 1..], "after entry {at}");
    }
}

#[test]
fn an_unreadable_entry_leaves_the_others_in_sight() {
    let fixture = Fixture::new(model(), &options());
    let names: Vec<_> = fs::read_dir(fixture.path("damaged"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names, ["before", "lost", "after"]);
    fs::metadata(fixture.path("damaged/after")).unwrap();
    assert!(fs::metadata(fixture.path("damaged/lost")).is_err());
}

#[test]
fn reads_give_the_right_bytes_at_any_offset() {
    let fixture = Fixture::new(model(), &options());
    let size = 3 << 20;
    let mut expected = vec![0; size];
    pattern(10, 0, 0, &mut expected);
    assert_eq!(fs::read(fixture.path("large")).unwrap(), expected);
    let direct = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(fixture.path("large"))
        .unwrap();
    for file in [File::open(fixture.path("large")).unwrap(), direct] {
        for (offset, len) in
            [(0, 1), (1, 4095), (4095, 2), (131_071, 131_073), (1 << 20, 1 << 20), (7, size)]
        {
            let mut buf = vec![0; len];
            let read = file.read_at(&mut buf, offset as u64).unwrap();
            assert_eq!(read, len.min(size - offset));
            assert_eq!(buf[..read], expected[offset..offset + read], "{len} at {offset}");
        }
        assert_eq!(file.read_at(&mut [0; 10], size as u64).unwrap(), 0);
    }
    // cmp maps nothing; grep does not either: the loader of a shared library does, and so do we.
    let mut mapped = run(tool("python3", "python3").args([
        "-c",
        "import mmap,sys; f=open(sys.argv[1],'rb'); m=mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ); \
         sys.stdout.buffer.write(m[5000:2000000])",
    ])
    .arg(fixture.path("large")));
    assert!(std::mem::take(&mut mapped.stdout) == expected[5000..2_000_000]);
}

#[test]
fn a_thousand_readers_at_once_get_their_own_bytes() {
    let fixture = Fixture::new(model(), &options());
    let start = Barrier::new(1000);
    std::thread::scope(|scope| {
        for reader in 0..1000u64 {
            let (fixture, start) = (&fixture, &start);
            scope.spawn(move || {
                let number = 1000 + reader * 17;
                let path = fixture.path(format!("many/entry-{:05}", reader * 17));
                start.wait();
                let got = fs::read(path).unwrap();
                let mut expected = vec![0; number as usize * 3];
                pattern(number, 0, 0, &mut expected);
                assert!(got == expected, "reader {reader}");
            });
        }
    });
}

#[test]
fn holes_are_seen_by_seeking() {
    let fixture = Fixture::new(model(), &options());
    let file = File::open(fixture.path("sparse")).unwrap();
    let seek = |from| rustix::fs::seek(&file, from);
    assert_eq!(seek(SeekFrom::Data(0)), Ok(HOLE));
    assert_eq!(seek(SeekFrom::Hole(0)), Ok(0));
    assert_eq!(seek(SeekFrom::Hole(HOLE)), Ok(HOLE + 8192));
    assert_eq!(seek(SeekFrom::Data(HOLE + 5)), Ok(HOLE + 5));
    assert_eq!(seek(SeekFrom::Data(HOLE + 8192)), Err(Errno::NXIO));
    assert_eq!(seek(SeekFrom::Hole(HOLE + 8192)), Err(Errno::NXIO));
    let mut tail = Vec::new();
    (&file).seek(std::io::SeekFrom::Start(HOLE - 1)).unwrap();
    (&file).read_to_end(&mut tail).unwrap();
    let mut expected = vec![0; 8193];
    pattern(11, HOLE, HOLE - 1, &mut expected);
    assert_eq!(tail, expected);
}

#[test]
fn extended_attributes_come_whole_or_with_their_size() {
    let fixture = Fixture::new(model(), &options());
    let path = fixture.path("attributed");
    let get = |name: &str, room: usize| {
        let mut value = vec![0; room];
        rustix::fs::getxattr(&path, name, &mut value).map(|len| {
            value.truncate(len);
            value
        })
    };
    assert_eq!(get("user.comment", 100).unwrap(), b"a\0b");
    assert_eq!(get("user.comment", 3).unwrap(), b"a\0b");
    assert_eq!(get("user.comment", 2), Err(Errno::RANGE));
    assert_eq!(get("user.empty", 10).unwrap(), b"");
    assert_eq!(get("user.missing", 10), Err(Errno::NODATA));
    assert_eq!(get("user.large", 4096).unwrap(), [7; 3000]);
    assert_eq!(rustix::fs::getxattr_query(&path, "user.large"), Ok(3000));
    assert_eq!(get(ACL, 100).unwrap(), acl());
    let mut names = vec![0; 1000];
    let len = rustix::fs::listxattr(&path, &mut names).unwrap();
    let names: HashSet<_> = names[..len].split(|&byte| byte == 0).collect();
    let expected = [ACL, "user.comment", "user.empty", "user.large", ""].map(str::as_bytes);
    assert_eq!(names, expected.into_iter().collect());
    assert_eq!(rustix::fs::listxattr(&path, &mut [0u8; 3]), Err(Errno::RANGE));
    assert_eq!(rustix::fs::listxattr_query(&path), Ok(len));
    assert_eq!(rustix::fs::listxattr(fixture.path("one"), &mut [0u8; 3]), Ok(0));
}

#[test]
fn a_failure_or_a_panic_is_eio_and_passes() {
    let fixture = Fixture::new(model(), &options());
    for (name, number) in [("failing", 23), ("panicking", 24)] {
        for _ in 0..2 {
            let error = fs::read(fixture.path(name)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EIO), "{name}");
        }
        assert_eq!(fs::read(fixture.path("one")).unwrap().len(), 10);
        let _ = number;
    }
    fixture.model.broken.store(false, Ordering::Relaxed);
    for (name, number) in [("failing", 23), ("panicking", 24)] {
        let mut expected = vec![0; 100_000];
        pattern(number, 0, 0, &mut expected);
        assert!(fs::read(fixture.path(name)).unwrap() == expected, "{name}");
    }
}

#[test]
fn sizes_of_the_filesystem_are_its_own() {
    let fixture = Fixture::new(model(), &options());
    let fs = rustix::fs::statvfs(fixture.dir.path()).unwrap();
    assert_eq!((fs.f_bsize, fs.f_frsize, fs.f_blocks), (1024, 1024, 1_000_003));
    assert_eq!((fs.f_bfree, fs.f_bavail), (500_001, 400_001));
    assert_eq!((fs.f_files, fs.f_ffree, fs.f_namemax), (77_777, 55_555, 255));
}

#[test]
fn a_mount_is_read_only_owner_only_and_without_devices_by_default() {
    support::require_root();
    let fixture = Fixture::new(model(), &options());
    let line = fixture.mountinfo();
    let fields: Vec<_> = line.split(' ').collect();
    let flags: HashSet<_> = fields[5].split(',').collect();
    for flag in ["ro", "nosuid", "nodev"] {
        assert!(flags.contains(flag), "{line}");
    }
    assert!(!line.contains("allow_other"), "{line}");
    assert!(line.contains(" - fuse.strata model "), "{line}");
    let errno = |result: std::io::Result<()>| result.unwrap_err().raw_os_error();
    assert_eq!(errno(File::create(fixture.path("new")).map(drop)), Some(libc::EROFS));
    assert_eq!(errno(fs::remove_file(fixture.path("one"))), Some(libc::EROFS));
    assert_eq!(
        rustix::fs::setxattr(fixture.path("one"), "user.x", b"1", rustix::fs::XattrFlags::empty()),
        Err(Errno::ROFS)
    );
    let other = as_nobody(["cat".as_ref(), fixture.path("one").as_os_str()]).output().unwrap();
    assert!(String::from_utf8_lossy(&other.stderr).contains("Permission denied"), "{other:?}");
}

#[test]
fn others_come_in_when_asked_and_meet_the_permissions_of_each_file() {
    support::require_root();
    let shared = Options { allow_other: true, suid: true, dev: true, ..options() };
    let fixture = Fixture::new(model(), &shared);
    // The folder the temporary folder stands for is hidden: its own mode is the root's.
    let line = fixture.mountinfo();
    assert!(line.contains("allow_other") && line.contains("default_permissions"), "{line}");
    assert!(!line.contains("nosuid") && !line.contains("nodev"), "{line}");
    let cat = |uid: &str, name: &str| {
        let path = fixture.path(name);
        tool("setpriv", "util-linux")
            .args(["--reuid", uid, "--regid", uid, "--clear-groups", "cat"])
            .arg(path)
            .output()
            .unwrap()
    };
    assert!(cat("65534", "large").status.success());
    assert!(!cat("65534", "attributed").status.success());
    // The access control list lets user 33 in.
    assert!(cat("33", "attributed").status.success());
}

#[test]
fn a_whole_file_is_read_by_the_kernel_itself_as_root() {
    support::require_root();
    let host = tempfile::tempdir().unwrap();
    let image = host.path().join("image.raw");
    let bytes: Vec<u8> = (0..3_000_000).map(|at| byte(99, at)).collect();
    fs::write(&image, &bytes).unwrap();
    let mut model = Model::new(1);
    model.add(b"disk.img", 2, FileKind::Regular, Contents::Host(File::open(&image).unwrap()));
    model.file(b"p1.img", 3, 100_000);
    let fixture = Fixture::new(model, &options());
    let first = File::open(fixture.path("disk.img")).unwrap();
    for _ in 0..3 {
        assert!(fs::read(fixture.path("disk.img")).unwrap() == bytes);
    }
    let mut buf = [0; 1000];
    first.read_exact_at(&mut buf, 2_000_001).unwrap();
    assert_eq!(buf, bytes[2_000_001..2_001_001]);
    assert_eq!(fixture.model.reads.load(Ordering::Relaxed), 0, "passed through");
    let mut expected = vec![0; 100_000];
    pattern(3, 0, 0, &mut expected);
    assert!(fs::read(fixture.path("p1.img")).unwrap() == expected);
    assert_ne!(fixture.model.reads.load(Ordering::Relaxed), 0);
}

#[test]
fn a_second_mount_on_the_folder_is_refused_by_name() {
    let fixture = Fixture::new(model(), &options());
    let error = mount(Served::ReadOnly(Arc::new(Model::new(1))), fixture.dir.path(), &options())
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Exists);
    assert!(error.to_string().ends_with("already shows model"), "{error}");
    assert!(error.hint().unwrap().starts_with("strata unmount"), "{:?}", error.hint());
}

#[test]
fn what_cannot_be_mounted_on_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let error = mount(Served::ReadOnly(Arc::new(Model::new(1))), &file, &options()).unwrap_err();
    assert_eq!(error.kind(), Kind::NotADirectory);
    let error =
        mount(Served::ReadOnly(Arc::new(Model::new(1))), &dir.path().join("no"), &options())
            .unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
}

#[test]
fn unmounting_ends_the_wait_and_a_busy_mount_names_its_user() {
    let mut fixture = Fixture::new(model(), &options());
    let waiting = fixture.mounted.take().unwrap();
    let waiting = std::thread::spawn(|| waiting.wait());
    let mut user =
        Command::new("sleep").arg("1000").current_dir(fixture.dir.path()).spawn().unwrap();
    let busy = unmount(fixture.dir.path(), Unmount::default()).unwrap_err();
    let text = busy.to_string();
    assert!(text.contains(&format!("sleep (process {})", user.id())), "{text}");
    assert!(busy.hint().unwrap().contains("--lazy"));
    user.kill().unwrap();
    user.wait().unwrap();
    // The server is this very process: its end cannot be waited for, so it is told not to.
    unmount(fixture.dir.path(), Unmount { lazy: true, ..Unmount::default() }).unwrap();
    waiting.join().unwrap().unwrap();
    assert_eq!(fs::read_dir(fixture.dir.path()).unwrap().count(), 0);
}
