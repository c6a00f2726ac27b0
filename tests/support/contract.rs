//! What every `FileTree` keeps, whatever it is a tree of. An implementation joins by one line:
//! `contract::check(&tree)`.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by it")]

use std::collections::{BTreeMap, HashSet};

use stratafs::block::Home;
use stratafs::error::Kind;
use stratafs::tree::{Attr, FileKind, FileTree, NodeId};

/// Bytes of a file that are compared; of a longer one, its beginning and its end.
const SAMPLE: u64 = 1 << 20;

/// Folder positions at which reading is taken up again.
const CURSORS: usize = 48;

/// Checks all of `tree`: every folder, every file.
#[track_caller]
pub fn check(tree: &dyn FileTree) {
    let nodes = walk(tree);
    for (node, path) in &nodes {
        let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| file(tree, *node)));
        if let Err(panic) = seen {
            eprintln!("contract broken at {path} (node {:#x})", node.0);
            std::panic::resume_unwind(panic);
        }
    }
    unknown_nodes(tree, &nodes);
    concurrency(tree, &nodes);
}

/// All nodes with one path of each.
fn walk(tree: &dyn FileTree) -> BTreeMap<NodeId, String> {
    let root = tree.root();
    assert_eq!(tree.attr(root).unwrap().kind, FileKind::Directory, "the root is a folder");
    let mut nodes = BTreeMap::from([(root, "/".to_owned())]);
    let mut folders = vec![(root, String::new())];
    while let Some((folder, path)) = folders.pop() {
        for (name, node, _) in entries(tree, folder) {
            let path = format!("{path}/{}", name.escape_ascii());
            let is_folder = tree.attr(node).unwrap().kind == FileKind::Directory;
            if is_folder {
                assert!(!nodes.contains_key(&node), "{path}: a folder has one name");
                folders.push((node, path.clone()));
            }
            nodes.entry(node).or_insert(path);
        }
    }
    nodes
}

fn file(tree: &dyn FileTree, node: NodeId) {
    let attr = tree.attr(node).unwrap();
    assert_eq!(attr.node, node, "attributes name their node");
    assert_eq!(attr, tree.attr(node).unwrap(), "attributes stay the same");
    assert_eq!(attr.mode & !0o7777, 0);
    assert!(attr.links > 0);
    for time in [Some(attr.accessed), Some(attr.modified), Some(attr.changed), attr.created] {
        assert!(time.is_none_or(|time| time.nanos < 1_000_000_000));
    }
    xattrs(tree, node);
    match attr.kind {
        FileKind::Directory => folder(tree, node),
        FileKind::Regular => regular(tree, &attr),
        FileKind::Symlink => {
            let target = tree.read_link(node).unwrap();
            assert_eq!(target.len() as u64, attr.size, "a link is as long as its target");
        }
        _ => {}
    }
    if attr.kind != FileKind::Directory {
        assert_eq!(tree.lookup(node, b"x").unwrap_err().kind(), Kind::NotADirectory);
        let listed = tree.read_dir(node, 0, &mut |_| true);
        assert_eq!(listed.unwrap_err().kind(), Kind::NotADirectory);
    }
    if attr.kind != FileKind::Symlink {
        assert!(tree.read_link(node).is_err(), "only links have a target");
    }
    if attr.kind != FileKind::Regular {
        assert!(tree.read_at(node, 0, &mut [0; 16]).is_err(), "only files have contents");
        assert!(tree.whole_file(node).is_none());
    }
}

type Entry = (Vec<u8>, NodeId, u64);

/// All entries of a folder in one go.
fn entries(tree: &dyn FileTree, folder: NodeId) -> Vec<Entry> {
    resumed(tree, folder, 0, usize::MAX)
}

/// The entries after position `after`, read `step` at a time.
fn resumed(tree: &dyn FileTree, folder: NodeId, after: u64, step: usize) -> Vec<Entry> {
    let mut all: Vec<Entry> = Vec::new();
    let mut position = after;
    // An implementation that goes round in circles must fail here, not fill the memory.
    let mut passed = HashSet::from([0, after]);
    loop {
        let before = all.len();
        let mut refused = false;
        tree.read_dir(folder, position, &mut |entry| {
            assert!(!refused, "nothing comes after the entry that was refused");
            refused = all.len() - before == step;
            if !refused {
                position = entry.next;
                assert!(passed.insert(position), "position {position} comes again");
                all.push((entry.name.to_vec(), entry.node, entry.next));
            }
            !refused
        })
        .unwrap();
        if !refused {
            return all;
        }
    }
}

fn folder(tree: &dyn FileTree, node: NodeId) {
    let all = entries(tree, node);
    let mut names = HashSet::new();
    let mut positions = HashSet::new();
    for (name, child, next) in &all {
        assert!(!matches!(name.as_slice(), b"" | b"." | b".."), "{}", name.escape_ascii());
        assert!(!name.iter().any(|byte| matches!(byte, 0 | b'/')), "{}", name.escape_ascii());
        assert!(names.insert(name), "{} is there twice", name.escape_ascii());
        assert!(*next != 0 && positions.insert(next), "position {next} is there twice");
        let found = tree.lookup(node, name).unwrap();
        assert_eq!(found, Some(*child), "{} is found by its name", name.escape_ascii());
    }
    for name in [b"no such name".as_slice(), &[0xff; 255], &[b'a'; 256], b"\n"] {
        if !names.contains(&name.to_vec()) {
            assert_eq!(tree.lookup(node, name).unwrap(), None);
        }
    }
    for step in [1, 2, 7, 100] {
        if all.len() / step <= 4096 {
            assert_eq!(resumed(tree, node, 0, step), all, "read {step} at a time");
        }
    }
    let stride = all.len().div_ceil(CURSORS).max(1);
    for (index, (_, _, next)) in all.iter().enumerate().step_by(stride) {
        let rest = resumed(tree, node, *next, if stride == 1 { 3 } else { usize::MAX });
        assert_eq!(rest, all[index + 1..], "taken up after entry {index}");
    }
    assert_eq!(tree.read_at(node, 0, &mut [0]).unwrap_err().kind(), Kind::IsADirectory);
}

/// What one read gives, which must be all there is.
fn read(tree: &dyn FileTree, attr: &Attr, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0xa5; len];
    let got = tree.read_at(attr.node, offset, &mut buf).unwrap();
    let expected = attr.size.saturating_sub(offset).min(len as u64);
    assert_eq!(got as u64, expected, "{len} bytes at {offset} of {}", attr.size);
    buf.truncate(got);
    buf
}

fn regular(tree: &dyn FileTree, attr: &Attr) {
    let size = attr.size;
    for (start, end) in [(0, size.min(SAMPLE)), (size.saturating_sub(SAMPLE), size)] {
        let whole = read(tree, attr, start, (end - start) as usize);
        // Pieces of odd lengths, each from an odd place.
        let mut at = 0;
        for piece in [1, 511, 4097, 13, 65537, 300_000].iter().cycle() {
            let end = (at + piece).min(whole.len());
            assert_eq!(read(tree, attr, start + at as u64, end - at), whole[at..end]);
            at = end;
            if at == whole.len() {
                break;
            }
        }
    }
    for past in [size, size + 1, size.saturating_add(1 << 40), u64::MAX - 5, u64::MAX] {
        assert_eq!(read(tree, attr, past, 10), b"");
    }
    read(tree, attr, size.saturating_sub(3), 100);
    read(tree, attr, 0, 0);
    extents(tree, attr);
    if let Some(file) = tree.whole_file(attr.node) {
        use std::os::unix::fs::FileExt;
        let mut theirs = vec![0; size.min(SAMPLE) as usize];
        file.read_exact_at(&mut theirs, 0).unwrap();
        assert_eq!(theirs, read(tree, attr, 0, theirs.len()), "the host's file is this file");
    }
}

/// The extents lie in the file, follow each other to its end, and holes are zeros.
fn extents(tree: &dyn FileTree, attr: &Attr) {
    let mut at = 0;
    let mut left = 10_000;
    while at < attr.size && left > 0 {
        let extent = tree.extent_at(attr.node, at).unwrap();
        let end = at.checked_add(extent.len).unwrap();
        assert!(extent.len > 0 && end <= attr.size, "{extent:?} at {at} of {}", attr.size);
        if extent.hole {
            for offset in [at, end - extent.len.min(SAMPLE)] {
                let bytes = read(tree, attr, offset, extent.len.min(SAMPLE) as usize);
                assert!(bytes.iter().all(|&byte| byte == 0), "a hole at {at} is zeros");
            }
        }
        let origin = tree.origin_at(attr.node, at).unwrap();
        assert!(origin.len > 0 && at + origin.len <= attr.size, "{origin:?} at {at}");
        if origin.home == Home::Zeros {
            let bytes = read(tree, attr, at, origin.len.min(SAMPLE) as usize);
            assert!(bytes.iter().all(|&byte| byte == 0), "what lies nowhere at {at} is zeros");
        }
        let middle = at + extent.len / 2;
        let inner = tree.extent_at(attr.node, middle).unwrap();
        assert!(!extent.hole || inner.hole, "the middle of a hole at {at} is a hole");
        assert!(middle + inner.len <= attr.size);
        at = end;
        left -= 1;
    }
}

fn xattrs(tree: &dyn FileTree, node: NodeId) {
    let names = tree.xattr_names(node).unwrap();
    assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len(), "no name comes twice");
    for name in &names {
        assert!(name.contains(&b'.') && !name.contains(&0), "{}", name.escape_ascii());
        assert!(tree.xattr(node, name).unwrap().is_some(), "{} is there", name.escape_ascii());
    }
    for name in [b"user.no such name".as_slice(), b"", b"user", b"user.", b"bogus.x"] {
        if !names.contains(&name.to_vec()) {
            assert_eq!(tree.xattr(node, name).unwrap(), None);
        }
    }
}

/// A node that does not exist is an error, whatever is asked.
fn unknown_nodes(tree: &dyn FileTree, nodes: &BTreeMap<NodeId, String>) {
    for node in [0, u64::from(u32::MAX), 1 << 40, (1 << 48) - 1, u64::MAX].map(NodeId) {
        if nodes.contains_key(&node) {
            continue;
        }
        assert!(tree.attr(node).is_err(), "node {:#x} does not exist", node.0);
        assert!(tree.lookup(node, b"x").is_err());
        assert!(tree.read_dir(node, 0, &mut |_| true).is_err());
        assert!(tree.read_at(node, 0, &mut [0]).is_err());
        assert!(tree.whole_file(node).is_none());
    }
}

/// Many threads at once see what one sees.
fn concurrency(tree: &dyn FileTree, nodes: &BTreeMap<NodeId, String>) {
    let look = |node: NodeId| {
        let attr = tree.attr(node).unwrap();
        let seen = match attr.kind {
            FileKind::Regular => read(tree, &attr, 0, attr.size.min(100_000) as usize),
            FileKind::Symlink => tree.read_link(node).unwrap(),
            FileKind::Directory => {
                entries(tree, node).into_iter().flat_map(|(name, ..)| name).collect()
            }
            _ => Vec::new(),
        };
        (attr, seen)
    };
    let sample: Vec<_> = nodes.keys().step_by(nodes.len().div_ceil(200)).copied().collect();
    let expected: Vec<_> = sample.iter().map(|&node| look(node)).collect();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (sample, expected, look) = (&sample, &expected, &look);
            scope.spawn(move || {
                // Each begins somewhere else.
                for step in 0..sample.len() {
                    let index = (step + thread * sample.len() / 8) % sample.len();
                    assert_eq!(look(sample[index]), expected[index]);
                }
            });
        }
    });
}
