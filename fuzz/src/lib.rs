//! What the fuzz targets share: reading a disk and walking a tree, both within a budget, so that
//! what takes long is the parser's doing and not the harness's.

pub mod store;

use std::io::Read;
use std::sync::Arc;

use stratafs::block::{BlockSource, Cache, MemorySource};
use stratafs::oci::span::{Compression, Options, Pass, Unpacked};
use stratafs::tree::{FileKind, FileTree, NodeId};

/// Files visited of one tree.
const FILES: usize = 500;
/// Entries taken of one folder.
const ENTRIES: usize = 2_000;
/// Extents asked for of one source or file.
const EXTENTS: usize = 200;

/// A cache too small to hold much: entries leave while they are in use.
pub fn cache() -> Arc<Cache> {
    Cache::new(4 << 20)
}

/// Reads at the start, the end, and between; asks for extents from the start on.
pub fn read_disk(disk: &dyn BlockSource) {
    let len = disk.len();
    let mut buf = vec![0; 96 * 1024];
    for part in 0..16_u64 {
        // 96 KiB that cross cluster borders, spread evenly.
        let at = (len / 16).saturating_mul(part).saturating_add(part * 1_000);
        read(disk, at, &mut buf);
    }
    read(disk, len.saturating_sub(buf.len() as u64), &mut buf);
    // Whole, if that is little.
    if len <= 4 << 20 {
        let mut at = 0;
        while at < len {
            read(disk, at, &mut buf);
            at += buf.len() as u64;
        }
    }
    let mut at = 0;
    for _ in 0..EXTENTS {
        if at >= len {
            break;
        }
        let Ok(extent) = disk.extent_at(at) else { break };
        assert!(extent.len > 0, "an empty extent at {at}");
        assert!(extent.len <= len - at, "an extent past the end at {at}");
        at += extent.len;
    }
}

/// Passes over `data`, which is compressed so; if there is nothing wrong with it, every read gives
/// what came out of the pass.
pub fn pass_and_read(data: &[u8], how: Compression) {
    let options = Options { span: 2_000, max_len: 4 << 20, ..Options::default() };
    let Ok(mut pass) = Pass::new(data, how, options) else { return };
    let mut plain = vec![];
    if pass.read_to_end(&mut plain).is_err() {
        assert!(pass.finish().is_err(), "a pass that failed cannot be finished");
        return;
    }
    let Ok(passed) = pass.finish() else { return };
    assert_eq!(passed.len, plain.len() as u64);
    let blob = Arc::new(MemorySource::new(data.to_vec()));
    let source = Unpacked::new(blob, None, passed.spans, cache()).expect("a source");
    let mut buf = vec![0; 5_000];
    for part in (0..16).rev() {
        let at = plain.len() / 16 * part;
        let len = buf.len().min(plain.len() - at);
        source.read_at(at as u64, &mut buf[..len]).expect("what was indexed is read");
        assert!(buf[..len] == plain[at..at + len], "other bytes at {at}");
    }
}

fn read(disk: &dyn BlockSource, at: u64, buf: &mut [u8]) {
    let len = disk.len();
    if at >= len {
        return;
    }
    let want = usize::try_from(len - at).unwrap_or(usize::MAX).min(buf.len());
    // An error is an answer; a panic or a hang is none.
    let _ = disk.read_at(at, &mut buf[..want]);
}

/// Visits the files of `tree`, breadth first, and asks everything there is to ask about each.
pub fn walk(tree: &dyn FileTree) {
    let mut queue = vec![tree.root()];
    let mut seen = 0;
    let _ = tree.statfs();
    while let Some(node) = queue.pop() {
        seen += 1;
        if seen > FILES {
            break;
        }
        let Ok(attr) = tree.attr(node) else { continue };
        visit_xattrs(tree, node);
        match attr.kind {
            FileKind::Directory => visit_dir(tree, node, &mut queue),
            FileKind::Symlink => {
                let _ = tree.read_link(node);
            }
            FileKind::Regular => visit_file(tree, node, attr.size),
            FileKind::Fifo
            | FileKind::Socket
            | FileKind::CharDevice(_)
            | FileKind::BlockDevice(_) => {}
        }
    }
}

fn visit_dir(tree: &dyn FileTree, dir: NodeId, queue: &mut Vec<NodeId>) {
    let mut names = vec![];
    let mut taken = 0;
    let _ = tree.read_dir(dir, 0, &mut |entry| {
        assert_ne!(entry.next, 0, "a position that means the start");
        assert!(entry.name != b"." && entry.name != b"..", "a folder listed itself");
        if names.len() < 16 {
            names.push(entry.name.to_vec());
        }
        // Cycles cost the budget, nothing else.
        if queue.len() < FILES {
            queue.push(entry.node);
        }
        taken += 1;
        taken < ENTRIES
    });
    names.push(b"lost+found".to_vec());
    names.push(b"not there".to_vec());
    for name in names {
        let _ = tree.lookup(dir, &name);
    }
}

fn visit_file(tree: &dyn FileTree, node: NodeId, size: u64) {
    let mut buf = vec![0; 20_000];
    for at in [0, 4_096, size / 2, size.saturating_sub(10_000), size] {
        if let Ok(read) = tree.read_at(node, at, &mut buf) {
            assert!(read as u64 <= size.saturating_sub(at), "bytes past the end of a file");
        }
    }
    let mut at = 0;
    for _ in 0..EXTENTS {
        if at >= size {
            break;
        }
        let Ok(extent) = tree.extent_at(node, at) else { break };
        assert!(extent.len > 0, "an empty extent at {at}");
        at = at.saturating_add(extent.len);
    }
}

fn visit_xattrs(tree: &dyn FileTree, node: NodeId) {
    if let Ok(names) = tree.xattr_names(node) {
        for name in names.iter().take(50) {
            let _ = tree.xattr(node, name);
        }
    }
}
