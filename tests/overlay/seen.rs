//! A whole tree as a map of paths, to be compared with another.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use stratafs::tree::{FileKind, FileTree, NodeId};

/// What there is to say of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    kind: char,
    device: (u32, u32),
    pub mode: u32,
    owner: (u32, u32),
    pub links: u64,
    contents: Vec<u8>,
    xattrs: BTreeMap<String, Vec<u8>>,
    /// The first path of the same file.
    pub same_as: String,
    modified: i64,
}

pub type Tree = BTreeMap<String, File>;

/// All of a tree of ours.
pub fn of_tree(tree: &dyn FileTree) -> Tree {
    let mut seen = Tree::new();
    let mut first = HashMap::new();
    let mut todo = vec![(tree.root(), String::new())];
    // In order of paths, so that the first path of a file is the same on both sides.
    while let Some((node, path)) = todo.pop() {
        let attr = tree.attr(node).unwrap_or_else(|error| panic!("{path}: {error}"));
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
                let mut bytes = vec![0; attr.size as usize + 10];
                let count = tree.read_at(node, 0, &mut bytes).unwrap();
                assert_eq!(count as u64, attr.size, "{path}");
                bytes.truncate(count);
                bytes
            }
            FileKind::Symlink => tree.read_link(node).unwrap(),
            _ => vec![],
        };
        let xattrs = tree
            .xattr_names(node)
            .unwrap()
            .into_iter()
            .map(|name| {
                let value = tree.xattr(node, &name).unwrap().unwrap();
                (String::from_utf8(name).unwrap(), value)
            })
            .collect();
        if attr.kind == FileKind::Directory {
            let mut names: Vec<(String, NodeId)> = vec![];
            tree.read_dir(node, 0, &mut |entry| {
                names.push((String::from_utf8(entry.name.to_vec()).unwrap(), entry.node));
                true
            })
            .unwrap();
            names.sort();
            for (name, child) in names.into_iter().rev() {
                assert_eq!(
                    tree.lookup(node, name.as_bytes()).unwrap(),
                    Some(child),
                    "{path}/{name}"
                );
                todo.push((child, format!("{path}/{name}")));
            }
        }
        let same_as = first.entry(node).or_insert_with(|| path.clone()).clone();
        seen.insert(
            path,
            File {
                kind,
                device,
                mode: attr.mode.into(),
                owner: (attr.uid, attr.gid),
                links: attr.links.into(),
                contents,
                xattrs,
                same_as,
                modified: attr.modified.seconds,
            },
        );
    }
    seen
}

/// All of a folder of the host.
pub fn of_folder(root: &Path) -> Tree {
    let mut seen = Tree::new();
    let mut first = HashMap::new();
    let mut todo = vec![String::new()];
    while let Some(path) = todo.pop() {
        let at = root.join(path.trim_start_matches('/'));
        let stat = fs::symlink_metadata(&at).unwrap_or_else(|error| panic!("{path}: {error}"));
        let kind = stat.file_type();
        let is_device = kind.is_char_device() || kind.is_block_device();
        let letter = match kind {
            _ if kind.is_dir() => 'd',
            _ if kind.is_symlink() => 'l',
            _ if kind.is_fifo() => 'p',
            _ if kind.is_socket() => 's',
            _ if kind.is_char_device() => 'c',
            _ if kind.is_block_device() => 'b',
            _ => 'f',
        };
        let contents = match letter {
            'f' => fs::read(&at).unwrap_or_else(|error| panic!("{path}: {error}")),
            'l' => fs::read_link(&at).unwrap().into_os_string().into_vec(),
            _ => vec![],
        };
        if letter == 'd' {
            let mut names: Vec<String> = fs::read_dir(&at)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            todo.extend(names.iter().rev().map(|name| format!("{path}/{name}")));
        }
        let same_as = first.entry((stat.dev(), stat.ino())).or_insert_with(|| path.clone()).clone();
        let device = if is_device {
            (rustix::fs::major(stat.rdev()), rustix::fs::minor(stat.rdev()))
        } else {
            (0, 0)
        };
        seen.insert(
            path,
            File {
                kind: letter,
                device,
                mode: stat.mode() & 0o7777,
                owner: (stat.uid(), stat.gid()),
                links: stat.nlink(),
                contents,
                xattrs: xattrs(&at),
                same_as,
                modified: stat.mtime(),
            },
        );
    }
    seen
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut list = vec![0; 65536];
    let len = rustix::fs::llistxattr(path, &mut list[..]).unwrap();
    list[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 65536];
            let len = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
            value.truncate(len);
            (String::from_utf8(name.to_vec()).unwrap(), value)
        })
        .collect()
}

/// Takes out what only looks different: attributes that are marks to one side.
pub fn without_marks(mut tree: Tree) -> Tree {
    for file in tree.values_mut() {
        file.xattrs.retain(|name, _| !name.starts_with("trusted.overlay."));
    }
    tree
}

/// Takes out what the kernel's overlayfs does not keep: counts of names, and which names are of one
/// file.
pub fn without_links(mut tree: Tree) -> Tree {
    for file in tree.values_mut() {
        file.links = 0;
        file.same_as.clear();
    }
    tree
}

/// Takes out who links belong to.
pub fn without_link_owners(mut tree: Tree) -> Tree {
    for file in tree.values_mut().filter(|file| file.kind == 'l') {
        file.owner = (0, 0);
    }
    tree
}

/// Fails with the first differences. Times that were not set are only about the same.
#[track_caller]
pub fn same(ours: &Tree, theirs: &Tree, what: &str) {
    let mut differences = vec![];
    for path in ours.keys().chain(theirs.keys().filter(|path| !ours.contains_key(*path))) {
        match (ours.get(path), theirs.get(path)) {
            (Some(our), Some(their)) => {
                let near = (our.modified - their.modified).abs() < 1000;
                let timeless = File { modified: their.modified, ..our.clone() };
                if timeless != *their || !near {
                    differences.push(format!("{path}:\n   {}\n   {}", short(our), short(their)));
                }
            }
            (Some(our), None) => differences.push(format!("{path}: only ours: {}", short(our))),
            (None, Some(their)) => {
                differences.push(format!("{path}: only theirs: {}", short(their)))
            }
            (None, None) => {}
        }
    }
    assert!(differences.is_empty(), "{what}: ours, then theirs\n{}", differences.join("\n"));
}

fn short(file: &File) -> String {
    let sum = file
        .contents
        .iter()
        .fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(*byte)));
    let File { kind, device, mode, owner, links, contents, xattrs, same_as, modified } = file;
    format!(
        "{kind}{mode:o} {device:?} {owner:?} links {links} len {} sum {sum:x} {xattrs:?} is {same_as} at {modified}",
        contents.len()
    )
}
