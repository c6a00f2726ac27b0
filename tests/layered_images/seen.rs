//! A whole tree as a map of its paths, to be compared with another.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use stratafs::oci::{Algorithm, Digest};
use stratafs::tree::{FileKind, FileTree, NodeId};

/// What there is to say of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) kind: char,
    pub(crate) mode: u32,
    owner: (u32, u32),
    pub(crate) modified: (i64, i64),
    /// Names of it; 0 for folders.
    pub(crate) links: u64,
    /// The first path of the same file.
    pub(crate) same_as: String,
    size: u64,
    device: (u32, u32),
    /// A digest, or where a symbolic link leads.
    contents: String,
    xattrs: BTreeMap<String, String>,
}

/// Names are escaped: not all are UTF-8.
pub(crate) type Tree = BTreeMap<String, Seen>;

fn shown(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

fn digest(bytes: &[u8]) -> String {
    Digest::of(Algorithm::Sha256, bytes).to_string()
}

/// All of a tree of ours.
pub(crate) fn of_tree(tree: &dyn FileTree) -> Tree {
    let mut found = vec![];
    let mut todo = vec![(tree.root(), vec![])];
    while let Some((node, path)) = todo.pop() {
        if tree.attr(node).unwrap().kind == FileKind::Directory {
            tree.read_dir(node, 0, &mut |entry| {
                todo.push((entry.node, [&*path, b"/", entry.name].concat()));
                true
            })
            .unwrap();
        }
        found.push((path, node));
    }
    found.sort();
    let mut first = HashMap::new();
    found
        .into_iter()
        .map(|(path, node)| {
            let path = shown(&path);
            let same_as = first.entry(node).or_insert_with(|| path.clone()).clone();
            let seen = one(tree, node, &path, same_as);
            (path, seen)
        })
        .collect()
}

fn one(tree: &dyn FileTree, node: NodeId, path: &str, same_as: String) -> Seen {
    let attr = tree.attr(node).unwrap();
    let (kind, device) = match attr.kind {
        FileKind::Regular => ('f', (0, 0)),
        FileKind::Directory => ('d', (0, 0)),
        FileKind::Symlink => ('l', (0, 0)),
        FileKind::Fifo => ('p', (0, 0)),
        FileKind::Socket => ('s', (0, 0)),
        FileKind::CharDevice(device) => ('c', (device.major, device.minor)),
        FileKind::BlockDevice(device) => ('b', (device.major, device.minor)),
    };
    let contents = match attr.kind {
        FileKind::Regular => {
            let mut bytes = vec![0; attr.size as usize + 1];
            let count = tree.read_at(node, 0, &mut bytes);
            let count = count.unwrap_or_else(|error| panic!("{path}: {error}"));
            digest(&bytes[..count])
        }
        FileKind::Symlink => shown(&tree.read_link(node).unwrap()),
        _ => String::new(),
    };
    let names = tree.xattr_names(node).unwrap().into_iter();
    let xattrs = names.map(|name| {
        let value = tree.xattr(node, &name).unwrap().unwrap();
        (shown(&name), shown(&value))
    });
    Seen {
        kind,
        mode: attr.mode.into(),
        owner: (attr.uid, attr.gid),
        modified: (attr.modified.seconds, attr.modified.nanos.into()),
        links: if kind == 'd' { 0 } else { attr.links.into() },
        same_as,
        size: if kind == 'd' { 0 } else { attr.size },
        device,
        contents,
        xattrs: xattrs.collect(),
    }
}

/// All of a folder of the host.
pub(crate) fn of_folder(root: &Path) -> Tree {
    let mut found = vec![];
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let relative = path.strip_prefix(root).unwrap().as_os_str().as_bytes();
        let name = if relative.is_empty() { vec![] } else { [b"/", relative].concat() };
        found.push((name, path, meta));
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    let mut first = HashMap::new();
    let seen = found.into_iter().map(|(name, path, meta)| {
        let name = shown(&name);
        let id = (meta.dev(), meta.ino());
        let same_as = first.entry(id).or_insert_with(|| name.clone()).clone();
        let kind = match meta.file_type() {
            kind if kind.is_dir() => 'd',
            kind if kind.is_symlink() => 'l',
            kind if kind.is_fifo() => 'p',
            kind if kind.is_socket() => 's',
            kind if kind.is_char_device() => 'c',
            kind if kind.is_block_device() => 'b',
            _ => 'f',
        };
        let contents = match kind {
            'f' => {
                let mut bytes = vec![];
                let read = File::open(&path).and_then(|mut file| file.read_to_end(&mut bytes));
                read.unwrap_or_else(|error| panic!("{name}: {error}"));
                digest(&bytes)
            }
            'l' => shown(&fs::read_link(&path).unwrap().into_os_string().into_vec()),
            _ => String::new(),
        };
        let device = match kind {
            'c' | 'b' => (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev())),
            _ => (0, 0),
        };
        let seen = Seen {
            kind,
            mode: meta.mode() & 0o7777,
            owner: (meta.uid(), meta.gid()),
            modified: (meta.mtime(), meta.mtime_nsec()),
            links: if kind == 'd' { 0 } else { meta.nlink() },
            same_as,
            size: if kind == 'd' { 0 } else { meta.len() },
            device,
            contents,
            xattrs: xattrs(&path),
        };
        (name, seen)
    });
    seen.collect()
}

fn xattrs(path: &Path) -> BTreeMap<String, String> {
    let mut list = vec![0; 65536];
    let len = rustix::fs::llistxattr(path, &mut list[..]).unwrap();
    let names = list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 65536];
            let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            (shown(name), shown(&value[..len]))
        })
        .collect()
}

/// Later than all times in the layers that umoci can tell: what has such a time was not given one by them.
pub(crate) const CLOCK: i64 = 1_790_000_000;

/// What umoci should have unpacked, but for what it does otherwise than the specification, as ours:
///
/// - It gives a folder the time of its entry, but leaves it as the clock has it where a later entry, a
///   whiteout say, changes what is in it, and where no entry tells of it. Those times are nobody's.
/// - It counts time in nanoseconds of 64 bits, which end in 2262.
/// - A record without a value means none for Go's archive/tar, and so does an attribute without one.
pub(crate) fn beside_umoci(mut ours: Tree, theirs: &Tree) -> Tree {
    for (path, seen) in &mut ours {
        let Some(theirs) = theirs.get(path) else { continue };
        let by_clock = seen.kind == 'd' && theirs.modified.0 > CLOCK;
        if by_clock || seen.modified.0 > i64::MAX / 1_000_000_000 {
            seen.modified = theirs.modified;
        }
        seen.xattrs.retain(|name, value| !value.is_empty() || theirs.xattrs.contains_key(name));
    }
    ours
}

/// Fails with the first differences.
#[track_caller]
pub(crate) fn same(ours: &Tree, theirs: &Tree, what: &str) {
    let paths = ours.keys().chain(theirs.keys().filter(|path| !ours.contains_key(*path)));
    let differences: Vec<_> = paths
        .filter(|path| ours.get(*path) != theirs.get(*path))
        .map(|path| format!("{path}:\n   {:?}\n   {:?}", ours.get(path), theirs.get(path)))
        .collect();
    let first = differences.iter().take(10).cloned().collect::<Vec<_>>().join("\n");
    let count = differences.len();
    assert!(count == 0, "{what}: {count} differ; ours, then theirs\n{first}");
}
