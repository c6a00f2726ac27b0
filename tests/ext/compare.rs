//! Our tree against the kernel's mount, in everything that can be asked of a file.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Statx, StatxFlags, StatxTimestamp};
use stratafs::tree::{Attr, Device, FileKind, FileTree, NodeId, Time};

use super::Rng;

/// What was compared.
#[derive(Debug, Default)]
pub struct Compared {
    pub entries: usize,
    pub bytes: u64,
    pub attributes: usize,
    pub holes: u64,
    pub linked: usize,
}

/// Compares every entry below `root` with `tree`; the first difference panics.
pub fn compare(root: &Path, tree: &dyn FileTree) -> Compared {
    let mut compared = Compared::default();
    let mut links: HashMap<u64, NodeId> = HashMap::new();
    let mut todo = vec![(root.to_owned(), tree.root())];
    while let Some((path, node)) = todo.pop() {
        let stat = statx(&path);
        let attr = tree.attr(node).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        same_attributes(&path, &stat, &attr);
        compared.entries += 1;
        if stat.stx_nlink > 1 && attr.kind != FileKind::Directory {
            let first = *links.entry(stat.stx_ino).or_insert(node);
            assert_eq!(first, node, "{}: one file, two nodes", path.display());
            compared.linked += 1;
        }
        same_xattrs(&path, tree, node, &mut compared);
        match attr.kind {
            FileKind::Directory => {
                for (name, child) in same_names(&path, tree, node) {
                    todo.push((path.join(OsStr::from_bytes(&name)), child));
                }
            }
            FileKind::Symlink => {
                let target = fs::read_link(&path).unwrap().into_os_string().into_vec();
                assert_eq!(tree.read_link(node).unwrap(), target, "{}", path.display());
            }
            FileKind::Regular => same_contents(&path, tree, node, attr.size, &mut compared),
            FileKind::Fifo
            | FileKind::Socket
            | FileKind::CharDevice(_)
            | FileKind::BlockDevice(_) => {}
        }
    }
    compared
}

fn statx(path: &Path) -> Statx {
    let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, mask).unwrap()
}

fn time(time: StatxTimestamp) -> Time {
    Time { seconds: time.tv_sec, nanos: time.tv_nsec }
}

fn same_attributes(path: &Path, stat: &Statx, attr: &Attr) {
    let device = Device { major: stat.stx_rdev_major, minor: stat.stx_rdev_minor };
    let kind = match u32::from(stat.stx_mode) & libc::S_IFMT {
        libc::S_IFREG => FileKind::Regular,
        libc::S_IFDIR => FileKind::Directory,
        libc::S_IFLNK => FileKind::Symlink,
        libc::S_IFIFO => FileKind::Fifo,
        libc::S_IFSOCK => FileKind::Socket,
        libc::S_IFCHR => FileKind::CharDevice(device),
        libc::S_IFBLK => FileKind::BlockDevice(device),
        other => panic!("{}: type {other:o}", path.display()),
    };
    let created = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
    let expected = Attr {
        node: NodeId(stat.stx_ino),
        kind,
        mode: stat.stx_mode & 0o7777,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        links: stat.stx_nlink,
        size: stat.stx_size,
        blocks: stat.stx_blocks,
        accessed: time(stat.stx_atime),
        modified: time(stat.stx_mtime),
        changed: time(stat.stx_ctime),
        created: created.then(|| time(stat.stx_btime)),
    };
    assert_eq!(*attr, expected, "{}", path.display());
}

fn same_xattrs(path: &Path, tree: &dyn FileTree, node: NodeId, compared: &mut Compared) {
    let mut list = vec![0; 64 << 10];
    let len = rustix::fs::llistxattr(path, &mut list[..]).unwrap();
    let names = list[..len].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    let mut expected = BTreeMap::new();
    for name in names {
        let mut value = vec![0; 64 << 10];
        let len = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
        value.truncate(len);
        expected.insert(name.to_vec(), value);
    }
    let ours: BTreeMap<Vec<u8>, Vec<u8>> = tree
        .xattr_names(node)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        .into_iter()
        .map(|name| {
            let value = tree.xattr(node, &name).unwrap().expect("a listed attribute");
            (name, value)
        })
        .collect();
    assert_eq!(ours, expected, "{}", path.display());
    assert_eq!(tree.xattr(node, b"user.no-such").unwrap(), None);
    compared.attributes += ours.len();
}

/// Compares the listing, and each name looked up; returns the entries.
fn same_names(path: &Path, tree: &dyn FileTree, node: NodeId) -> Vec<(Vec<u8>, NodeId)> {
    let mut expected: Vec<OsString> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    expected.sort();
    let mut ours = Vec::new();
    // A few at a time, each time going on from the last one taken.
    let mut after = 0;
    loop {
        let before = ours.len();
        tree.read_dir(node, after, &mut |entry| {
            if ours.len() - before == 37 {
                return false;
            }
            ours.push((entry.name.to_vec(), entry.node));
            after = entry.next;
            true
        })
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        if ours.len() == before {
            break;
        }
    }
    let mut whole = Vec::new();
    tree.read_dir(node, 0, &mut |entry| {
        whole.push((entry.name.to_vec(), entry.node));
        true
    })
    .unwrap();
    assert_eq!(ours, whole, "{}", path.display());
    let mut names: Vec<OsString> =
        ours.iter().map(|(name, _)| OsString::from_vec(name.clone())).collect();
    names.sort();
    assert_eq!(names, expected, "{}", path.display());
    for (name, child) in &ours {
        let found = tree.lookup(node, name).unwrap();
        assert_eq!(found, Some(*child), "{}/{}", path.display(), name.escape_ascii());
    }
    assert_eq!(tree.lookup(node, b"no such name").unwrap(), None);
    ours
}

fn same_contents(
    path: &PathBuf,
    tree: &dyn FileTree,
    node: NodeId,
    size: u64,
    compared: &mut Compared,
) {
    let file = File::open(path).unwrap();
    let mut at = 0;
    let mut theirs = vec![0; 1 << 20];
    let mut ours = vec![0xaa; 1 << 20];
    while at < size {
        let extent = tree.extent_at(node, at).unwrap();
        assert!(extent.len > 0 && at + extent.len <= size, "{}: {extent:?}", path.display());
        let end = at + extent.len;
        compared.holes += if extent.hole { extent.len } else { 0 };
        // The inside of a large hole is asked of the kernel, not read.
        if extent.hole && extent.len > 16 << 20 {
            let data = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at));
            let data = data.unwrap_or_else(|error| {
                assert_eq!(error, rustix::io::Errno::NXIO);
                size
            });
            assert!(data >= end, "{}: data at {data} in our hole {at}..{end}", path.display());
            at = end;
            continue;
        }
        while at < end {
            let len = (end - at).min(1 << 20) as usize;
            file.read_exact_at(&mut theirs[..len], at).unwrap();
            if extent.hole {
                assert!(theirs[..len].iter().all(|&byte| byte == 0), "{} at {at}", path.display());
            }
            let count = tree
                .read_at(node, at, &mut ours[..len])
                .unwrap_or_else(|error| panic!("{} at {at}: {error}", path.display()));
            assert_eq!(count, len);
            assert!(ours[..len] == theirs[..len], "{}: contents at {at}", path.display());
            compared.bytes += len as u64;
            at += len as u64;
        }
    }
    // Anywhere, in pieces of any size, also across the end.
    let mut rng = Rng(size ^ node.0);
    for _ in 0..20 {
        let offset = rng.below(size + 100);
        let len = rng.below(200_000) as usize;
        let expected = file.read_at(&mut theirs[..len], offset).unwrap();
        let count = tree.read_at(node, offset, &mut ours[..len]).unwrap();
        assert_eq!(count, (size.saturating_sub(offset)).min(len as u64) as usize);
        let count = count.min(expected);
        assert!(ours[..count] == theirs[..count], "{}: {len} at {offset}", path.display());
    }
}
