//! Trees grafted into a tree at its folders: a disk's volumes under their mount points, snapshots
//! under their names.
//!
//! A composed tree numbers its members. A node's upper 16 bits are the member, the lower 48 the
//! node there; the base is member 0, so its numbers stay what they are. Members only ever get
//! added, so a number, once given out, keeps its meaning, and finding a node takes no lock.
//!
//! A tree is grafted at once ([`Composed::graft`]): then its root takes the place of the folder,
//! which is no longer seen. Or it is opened when someone first looks inside
//! ([`Composed::graft_lazily`]): then the folder stays what it is and only its entries come from
//! the tree. If opening fails, entering the folder fails, and the next one to enter tries again:
//! what was wrong may be gone by then.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::{Attr, DirEntry, FileKind, FileTree, NodeId, StatFs, read_dir_as};
use crate::block::{Extent, Origin};
use crate::error::{Error, Kind, Result};

/// Bits of a node's number within its member.
const INNER_BITS: u32 = 48;
const INNER: u64 = (1 << INNER_BITS) - 1;

/// Members are kept in groups of this many, made when their first one comes.
const GROUP: usize = 256;

type Group = Box<[OnceLock<Member>]>;
type Open = Box<dyn Fn() -> Result<Composed> + Send + Sync>;

/// A tree with others grafted into it.
pub struct Composed {
    groups: Box<[OnceLock<Group>]>,
    /// How many members there are. Held while members are added.
    count: Mutex<u32>,
}

/// One of the trees, with what is grafted into it.
struct Member {
    tree: Arc<dyn FileTree>,
    /// By the folder's node in `tree`; empty for most.
    grafts: HashMap<NodeId, Graft>,
}

enum Graft {
    /// This member's root is here.
    Root(u32),
    Lazy(Lazy),
}

struct Lazy {
    open: Open,
    /// The member it became.
    opened: OnceLock<u32>,
    /// Held while it is being opened, so that it is opened once.
    opening: Mutex<()>,
}

/// A node of one member.
#[derive(Clone, Copy)]
struct Inner {
    member: u32,
    node: NodeId,
}

impl Composed {
    /// `base` with nothing grafted into it yet.
    pub fn new(base: Arc<dyn FileTree>) -> Self {
        let groups = (0..GROUP).map(|_| OnceLock::new()).collect();
        let composed = Self { groups, count: Mutex::new(0) };
        // The first of 65,536 members.
        let _ = composed.add(vec![Member { tree: base, grafts: HashMap::new() }]);
        composed
    }

    /// Puts the root of `tree` in the place of the folder `at`. What is grafted there already is
    /// covered, as by a second mount.
    ///
    /// # Errors
    /// [`Kind::NotADirectory`], what `at`'s tree returns, or [`Kind::Unsupported`] if there are
    /// more than 65,536 trees.
    pub fn graft(&mut self, at: NodeId, tree: Arc<dyn FileTree>) -> Result<()> {
        let place = self.check_folder(at)?;
        let number = self.add(vec![Member { tree, grafts: HashMap::new() }])?;
        self.set(place, Graft::Root(number))
    }

    /// Makes the folder `at` open a tree when someone first looks inside. `open` is called by one
    /// thread at a time, and no more once it has succeeded.
    ///
    /// # Errors
    /// [`Kind::NotADirectory`], [`Kind::Exists`] if something is grafted there already, or what
    /// `at`'s tree returns.
    pub fn graft_lazily(
        &mut self,
        at: NodeId,
        open: impl Fn() -> Result<Composed> + Send + Sync + 'static,
    ) -> Result<()> {
        let place = self.check_folder(at)?;
        let member = self.member(place.member)?;
        if member.grafts.contains_key(&place.node) {
            return Err(Error::new(Kind::Exists, "something is grafted there already"));
        }
        let lazy = Lazy { open: Box::new(open), opened: OnceLock::new(), opening: Mutex::new(()) };
        self.set(place, Graft::Lazy(lazy))
    }

    /// The tree to show: the base itself if nothing was grafted into it.
    pub fn into_tree(self) -> Arc<dyn FileTree> {
        match self.member(0) {
            Ok(base) if base.grafts.is_empty() => Arc::clone(&base.tree),
            _ => Arc::new(self),
        }
    }

    fn check_folder(&self, at: NodeId) -> Result<Inner> {
        if self.attr(at)?.kind != FileKind::Directory {
            return Err(Error::new(Kind::NotADirectory, "not a folder"));
        }
        Ok(split(at))
    }

    fn set(&mut self, place: Inner, graft: Graft) -> Result<()> {
        let (group, slot) = (place.member as usize / GROUP, place.member as usize % GROUP);
        let group = self.groups.get_mut(group).and_then(OnceLock::get_mut);
        let member = group.and_then(|group| group.get_mut(slot)).and_then(OnceLock::get_mut);
        member.ok_or_else(|| no_member(place.member))?.grafts.insert(place.node, graft);
        Ok(())
    }

    /// Adds members, whose own grafts count from the first of them; returns its number.
    fn add(&self, members: Vec<Member>) -> Result<u32> {
        let mut count = self.count.lock();
        let first = *count;
        let most = self.groups.len() * GROUP;
        if first as usize + members.len() > most {
            let message = format!("more than {most} filesystems open at once");
            return Err(Error::new(Kind::Unsupported, message));
        }
        for (number, mut member) in (first..).zip(members) {
            for graft in member.grafts.values_mut() {
                match graft {
                    Graft::Root(number) => *number += first,
                    Graft::Lazy(lazy) => {
                        if let Some(number) = lazy.opened.get_mut() {
                            *number += first;
                        }
                    }
                }
            }
            let group = self.groups[number as usize / GROUP]
                .get_or_init(|| (0..GROUP).map(|_| OnceLock::new()).collect());
            // Empty: `count` is held, and counts those taken.
            let _ = group[number as usize % GROUP].set(member);
            *count = number + 1;
        }
        Ok(first)
    }

    /// Takes all members of another composed tree, which nobody has used yet.
    fn absorb(&self, other: Composed) -> Result<u32> {
        let groups = other.groups.into_vec().into_iter().filter_map(OnceLock::into_inner);
        self.add(groups.flat_map(<[_]>::into_vec).filter_map(OnceLock::into_inner).collect())
    }

    fn member(&self, number: u32) -> Result<&Member> {
        let group = self.groups.get(number as usize / GROUP).and_then(OnceLock::get);
        let member = group.and_then(|group| group[number as usize % GROUP].get());
        member.ok_or_else(|| no_member(number))
    }

    /// What is seen at `inner`: itself, or the root grafted there.
    fn surface(&self, mut inner: Inner) -> Result<NodeId> {
        // Ends: a graft leads to a member added after its own.
        loop {
            let member = self.member(inner.member)?;
            if member.grafts.is_empty() {
                return join(inner);
            }
            match member.grafts.get(&inner.node) {
                Some(Graft::Root(number)) => {
                    inner = Inner { member: *number, node: self.member(*number)?.tree.root() };
                }
                Some(Graft::Lazy(_)) | None => return join(inner),
            }
        }
    }

    /// The folder whose entries `dir` shows, with its member.
    fn enter(&self, dir: NodeId) -> Result<(&Member, Inner)> {
        let mut inner = split(dir);
        loop {
            let member = self.member(inner.member)?;
            if member.grafts.is_empty() {
                return Ok((member, inner));
            }
            let number = match member.grafts.get(&inner.node) {
                None => return Ok((member, inner)),
                Some(Graft::Root(number)) => *number,
                Some(Graft::Lazy(lazy)) => match lazy.opened.get() {
                    Some(number) => *number,
                    None => self.open(lazy)?,
                },
            };
            inner = Inner { member: number, node: self.member(number)?.tree.root() };
        }
    }

    fn open(&self, lazy: &Lazy) -> Result<u32> {
        let _opening = lazy.opening.lock();
        if let Some(number) = lazy.opened.get() {
            return Ok(*number);
        }
        let number = self.absorb((lazy.open)()?)?;
        Ok(*lazy.opened.get_or_init(|| number))
    }

    fn tree(&self, node: NodeId) -> Result<(&dyn FileTree, Inner)> {
        let inner = split(node);
        Ok((self.member(inner.member)?.tree.as_ref(), inner))
    }
}

fn split(node: NodeId) -> Inner {
    Inner { member: (node.0 >> INNER_BITS) as u32, node: NodeId(node.0 & INNER) }
}

fn join(inner: Inner) -> Result<NodeId> {
    if inner.node.0 > INNER {
        let message = format!("node {:#x} does not fit a combined tree", inner.node.0);
        return Err(Error::new(Kind::Unsupported, message));
    }
    Ok(NodeId(u64::from(inner.member) << INNER_BITS | inner.node.0))
}

fn no_member(number: u32) -> Error {
    Error::new(Kind::NotFound, format!("there is no tree {number}"))
}

impl FileTree for Composed {
    fn root(&self) -> NodeId {
        let root = self.member(0).map_or(NodeId(0), |base| base.tree.root());
        self.surface(split(root)).unwrap_or(root)
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>> {
        let (member, inner) = self.enter(dir)?;
        match member.tree.lookup(inner.node, name)? {
            Some(node) => self.surface(Inner { node, ..inner }).map(Some),
            None => Ok(None),
        }
    }

    fn attr(&self, node: NodeId) -> Result<Attr> {
        let (tree, inner) = self.tree(node)?;
        Ok(Attr { node, ..tree.attr(inner.node)? })
    }

    fn read_dir(
        &self,
        dir: NodeId,
        after: u64,
        emit: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<()> {
        let (member, inner) = self.enter(dir)?;
        let number = |node| self.surface(Inner { node, ..inner });
        read_dir_as(&*member.tree, inner.node, after, &number, emit)
    }

    fn read_link(&self, node: NodeId) -> Result<Vec<u8>> {
        let (tree, inner) = self.tree(node)?;
        tree.read_link(inner.node)
    }

    fn read_at(&self, node: NodeId, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let (tree, inner) = self.tree(node)?;
        tree.read_at(inner.node, offset, buf)
    }

    fn extent_at(&self, node: NodeId, offset: u64) -> Result<Extent> {
        let (tree, inner) = self.tree(node)?;
        tree.extent_at(inner.node, offset)
    }

    fn origin_at(&self, node: NodeId, offset: u64) -> Result<Origin> {
        let (tree, inner) = self.tree(node)?;
        tree.origin_at(inner.node, offset)
    }

    fn xattr_names(&self, node: NodeId) -> Result<Vec<Vec<u8>>> {
        let (tree, inner) = self.tree(node)?;
        tree.xattr_names(inner.node)
    }

    fn xattr(&self, node: NodeId, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let (tree, inner) = self.tree(node)?;
        tree.xattr(inner.node, name)
    }

    fn statfs(&self) -> Result<StatFs> {
        let (tree, _) = self.tree(self.root())?;
        tree.statfs()
    }

    fn whole_file(&self, node: NodeId) -> Option<&File> {
        let (tree, inner) = self.tree(node).ok()?;
        tree.whole_file(inner.node)
    }
}

impl fmt::Debug for Composed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let base = self.member(0).ok().map(|member| &member.tree);
        f.debug_struct("Composed")
            .field("base", &base)
            .field("members", &*self.count.lock())
            .finish_non_exhaustive()
    }
}
