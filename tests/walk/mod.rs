//! Walking a tree that may be damaged or made to harm: everything is asked once, and nothing is
//! taken on trust but the promises of `FileTree`.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::collections::HashSet;

use stratafs::error::Result;
use stratafs::tree::{FileKind, FileTree, NodeId};

/// What a walk came by.
#[derive(Debug, Default)]
pub struct Walked {
    pub nodes: usize,
    pub names: usize,
    pub bytes: u64,
    pub errors: Vec<String>,
}

/// Bounds on what a walk does: a damaged image may claim any size.
const MAX_NAMES: usize = 100_000;
const MAX_BYTES: u64 = 64 << 20;

/// Visits every node that can be reached from the root once, and asks everything about it.
pub fn walk(tree: &dyn FileTree) -> Walked {
    let mut walked = Walked::default();
    let mut seen = HashSet::from([tree.root()]);
    let mut todo = vec![tree.root()];
    while let Some(node) = todo.pop() {
        walked.nodes += 1;
        let visited = visit(tree, node, &mut walked, &mut |child| {
            if seen.insert(child) {
                todo.push(child);
            }
        });
        if let Err(error) = visited {
            let line = error.to_string();
            assert!(!line.contains('\n'), "{line}");
            walked.errors.push(line);
        }
    }
    walked
}

fn visit(
    tree: &dyn FileTree,
    node: NodeId,
    walked: &mut Walked,
    found: &mut dyn FnMut(NodeId),
) -> Result<()> {
    let attr = tree.attr(node)?;
    assert_eq!(attr.node, node);
    for time in [attr.accessed, attr.modified, attr.changed] {
        assert!(time.nanos < 1_000_000_000);
    }
    if let Err(error) = attributes(tree, node) {
        walked.errors.push(error.to_string());
    }
    match attr.kind {
        FileKind::Directory => {
            let mut names = Vec::new();
            let listed = tree.read_dir(node, 0, &mut |entry| {
                assert!(entry.next > 0);
                assert!(!entry.name.is_empty() && entry.name.len() <= 255);
                assert!(!entry.name.contains(&b'/') && !entry.name.contains(&0));
                names.push((entry.name.to_vec(), entry.node));
                found(entry.node);
                names.len() + walked.names < MAX_NAMES
            });
            walked.names += names.len();
            for (name, child) in names.iter().take(1000) {
                match tree.lookup(node, name) {
                    Ok(Some(other)) if other == *child => {}
                    // The same name twice, or an index that disagrees: damage, but no harm.
                    Ok(other) => walked.errors.push(format!("lookup: {child:?}, {other:?}")),
                    Err(error) => walked.errors.push(error.to_string()),
                }
            }
            assert!(!matches!(tree.lookup(node, b"no such name there"), Ok(Some(_))));
            listed?;
        }
        FileKind::Symlink => {
            tree.read_link(node)?;
        }
        FileKind::Regular => read(tree, node, attr.size, walked)?,
        FileKind::Fifo | FileKind::Socket | FileKind::CharDevice(_) | FileKind::BlockDevice(_) => {}
    }
    Ok(())
}

fn attributes(tree: &dyn FileTree, node: NodeId) -> Result<()> {
    for name in tree.xattr_names(node)? {
        tree.xattr(node, &name)?;
    }
    Ok(())
}

fn read(tree: &dyn FileTree, node: NodeId, size: u64, walked: &mut Walked) -> Result<()> {
    let mut buf = vec![0; 128 << 10];
    let mut at = 0;
    let mut first = None;
    for _ in 0..2000 {
        if at >= size || walked.bytes > MAX_BYTES {
            break;
        }
        let extent = match tree.extent_at(node, at) {
            Ok(extent) => extent,
            Err(error) => {
                first.get_or_insert(error);
                at += 1 << 16;
                continue;
            }
        };
        assert!(extent.len > 0 && at + extent.len <= size, "{extent:?} at {at} of {size}");
        let len = extent.len.min(buf.len() as u64) as usize;
        match tree.read_at(node, at, &mut buf[..len]) {
            Ok(count) => assert_eq!(count, len),
            Err(error) => {
                first.get_or_insert(error);
            }
        }
        walked.bytes += len as u64;
        if extent.hole {
            at += extent.len;
        } else {
            at += len as u64;
        }
    }
    first.map_or(Ok(()), Err)
}
