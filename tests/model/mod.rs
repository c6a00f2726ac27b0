//! A tree of files in memory, for tests of what reads trees.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

pub mod sink;
pub mod writable;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use stratafs::block::{Extent, Origin};
use stratafs::error::{Error, Kind, Result};
use stratafs::tree::{Attr, DirEntry, FileKind, FileTree, NodeId, StatFs, Time};

pub const ROOT: NodeId = NodeId(0);
/// Contents are data or holes in whole blocks of this many bytes.
pub const BLOCK: u64 = 4096;

#[derive(Debug, Clone, Default)]
pub struct Body {
    /// Blocks that hold data; the others are holes.
    pub blocks: BTreeMap<u64, Vec<u8>>,
    pub target: Vec<u8>,
    pub entries: Vec<(Vec<u8>, NodeId)>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A tree that tests fill and then read.
#[derive(Debug)]
pub struct Model {
    nodes: Vec<(Attr, Body)>,
    /// Reads fail from this many bytes read on.
    pub fail_after: AtomicI64,
    /// Files that cannot be read.
    pub damaged: HashMap<NodeId, u64>,
    /// How long each read of a file takes.
    pub slow: HashMap<NodeId, Duration>,
}

impl Model {
    pub fn new() -> Self {
        let mut model = Self {
            nodes: vec![],
            fail_after: AtomicI64::new(i64::MAX),
            damaged: HashMap::new(),
            slow: HashMap::new(),
        };
        model.node(FileKind::Directory, 0o755);
        model
    }

    pub fn node(&mut self, kind: FileKind, mode: u16) -> NodeId {
        let node = NodeId(self.nodes.len() as u64);
        let n = i64::try_from(node.0).unwrap();
        let time = |n| Time { seconds: 1_600_000_000 + n, nanos: 123_456_789 };
        let attr = Attr {
            node,
            kind,
            mode,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            links: 0,
            size: 0,
            blocks: 0,
            accessed: time(n + 1000),
            modified: time(n),
            changed: time(n + 2000),
            created: None,
        };
        self.nodes.push((attr, Body::default()));
        node
    }

    pub fn attr_mut(&mut self, node: NodeId) -> &mut Attr {
        &mut self.nodes[node.0 as usize].0
    }

    pub fn body(&self, node: NodeId) -> &Body {
        &self.nodes[node.0 as usize].1
    }

    pub fn body_mut(&mut self, node: NodeId) -> &mut Body {
        &mut self.nodes[node.0 as usize].1
    }

    /// Gives `node` one more name.
    pub fn name(&mut self, dir: NodeId, name: &[u8], node: NodeId) {
        self.body_mut(dir).entries.push((name.to_vec(), node));
        self.attr_mut(node).links += 1;
    }

    pub fn add(&mut self, dir: NodeId, name: &[u8], kind: FileKind, mode: u16) -> NodeId {
        let node = self.node(kind, mode);
        self.name(dir, name, node);
        node
    }

    pub fn dir(&mut self, dir: NodeId, name: &[u8], mode: u16) -> NodeId {
        self.add(dir, name, FileKind::Directory, mode)
    }

    pub fn file(&mut self, dir: NodeId, name: &[u8], mode: u16, contents: &[u8]) -> NodeId {
        let node = self.add(dir, name, FileKind::Regular, mode);
        self.put(node, 0, contents);
        node
    }

    pub fn symlink(&mut self, dir: NodeId, name: &[u8], target: &[u8]) -> NodeId {
        let node = self.add(dir, name, FileKind::Symlink, 0o777);
        self.body_mut(node).target = target.to_vec();
        self.attr_mut(node).size = target.len() as u64;
        node
    }

    /// Puts data at a multiple of the block size.
    pub fn put(&mut self, node: NodeId, offset: u64, contents: &[u8]) {
        assert_eq!(offset % BLOCK, 0);
        for (n, part) in contents.chunks(BLOCK as usize).enumerate() {
            let mut block = part.to_vec();
            block.resize(BLOCK as usize, 0);
            self.body_mut(node).blocks.insert(offset / BLOCK + n as u64, block);
        }
        let blocks = self.body(node).blocks.len() as u64 * (BLOCK / 512);
        let attr = self.attr_mut(node);
        attr.size = attr.size.max(offset + contents.len() as u64);
        attr.blocks = blocks;
    }

    pub fn contents(&self, node: NodeId) -> Vec<u8> {
        let mut all = vec![0; usize::try_from(self.nodes[node.0 as usize].0.size).unwrap()];
        self.fill(node, 0, &mut all);
        all
    }

    fn fill(&self, node: NodeId, offset: u64, buf: &mut [u8]) {
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let within = (at % BLOCK) as usize;
            let (part, tail) = rest.split_at_mut(rest.len().min(BLOCK as usize - within));
            match self.body(node).blocks.get(&(at / BLOCK)) {
                Some(block) => part.copy_from_slice(&block[within..][..part.len()]),
                None => part.fill(0),
            }
            at += part.len() as u64;
            rest = tail;
        }
    }

    /// The node at a path of names.
    pub fn at(&self, path: &[&[u8]]) -> NodeId {
        path.iter().fold(ROOT, |dir, name| self.lookup(dir, name).unwrap().unwrap())
    }
}

impl FileTree for Model {
    fn root(&self) -> NodeId {
        ROOT
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>> {
        if self.attr(dir)?.kind != FileKind::Directory {
            return Err(Error::new(Kind::NotADirectory, "not a folder"));
        }
        let found = self.body(dir).entries.iter().find(|(have, _)| have == name);
        Ok(found.map(|(_, node)| *node))
    }

    fn attr(&self, node: NodeId) -> Result<Attr> {
        Ok(self.nodes[node.0 as usize].0)
    }

    fn read_dir(
        &self,
        dir: NodeId,
        after: u64,
        emit: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<()> {
        for (n, (name, node)) in self.body(dir).entries.iter().enumerate().skip(after as usize) {
            if !emit(DirEntry { name, node: *node, next: n as u64 + 1 }) {
                break;
            }
        }
        Ok(())
    }

    fn read_link(&self, node: NodeId) -> Result<Vec<u8>> {
        Ok(self.body(node).target.clone())
    }

    fn read_at(&self, node: NodeId, offset: u64, buf: &mut [u8]) -> Result<usize> {
        if let Some(&time) = self.slow.get(&node) {
            std::thread::sleep(time);
        }
        let size = self.attr(node)?.size;
        let len = buf.len().min(usize::try_from(size.saturating_sub(offset)).unwrap());
        let bad = self.damaged.get(&node).is_some_and(|&bad| offset + len as u64 > bad);
        let left = self.fail_after.fetch_sub(len as i64, Ordering::Relaxed);
        if bad || left < len as i64 {
            return Err(Error::new(Kind::Corrupt, "block 42 is damaged"));
        }
        self.fill(node, offset, &mut buf[..len]);
        Ok(len)
    }

    fn extent_at(&self, node: NodeId, offset: u64) -> Result<Extent> {
        let size = self.attr(node)?.size;
        let blocks = &self.body(node).blocks;
        let first = offset / BLOCK;
        let data = blocks.contains_key(&first);
        // Data ends where a block is missing; a hole ends at the next block.
        let end = if data {
            (first..).find(|block| !blocks.contains_key(block)).unwrap()
        } else {
            blocks.range(first..).next().map_or(u64::MAX / BLOCK, |(block, _)| *block)
        };
        Ok(Extent { len: (end * BLOCK).min(size) - offset, hole: !data })
    }

    fn origin_at(&self, node: NodeId, offset: u64) -> Result<Origin> {
        let size = self.attr(node)?.size;
        Ok(Origin::unknown(size.saturating_sub(offset).max(1)))
    }

    fn xattr_names(&self, node: NodeId) -> Result<Vec<Vec<u8>>> {
        Ok(self.body(node).xattrs.keys().cloned().collect())
    }

    fn xattr(&self, node: NodeId, name: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.body(node).xattrs.get(name).cloned())
    }

    fn statfs(&self) -> Result<StatFs> {
        Err(Error::new(Kind::Unsupported, "no sizes"))
    }

    fn whole_file(&self, _: NodeId) -> Option<&File> {
        None
    }
}
