//! What differs between two trees.
//!
//! Both are walked side by side, each folder's names in order, and what is found is told in that
//! order: a folder before what is in it, names as bytes compare. Nothing is remembered of what has
//! been told but which folders were entered, and what waits to be compared is bounded.
//!
//! Metadata is compared first. Contents are read only where the sizes are equal and the bytes are
//! not known to be the same ones: two files whose extents finally lie in the same place of the same
//! host file are equal, whatever their names and times. Equal times alone prove nothing.

mod contents;
mod entries;

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::iter::{IntoParallelRefMutIterator, ParallelIterator};

use super::{Attr, FileKind, FileTree, NodeId};
use crate::error::{Error, Kind, Result};
use entries::Entries;

pub use contents::{Range, ranges};

/// What two files can differ in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Aspect {
    /// What they are: a file here, a folder there. Then nothing else is compared.
    Type,
    /// The bytes of regular files.
    Contents,
    /// How many bytes of them there are.
    Size,
    /// Where symbolic links point.
    Target,
    /// Which device they are.
    Device,
    /// Permission bits, with setuid, setgid and sticky.
    Mode,
    /// User and group.
    Owner,
    /// When the contents were changed last. The other times follow from looking at a file, and
    /// from copying it.
    Times,
    /// Extended attributes, and with them ACLs and capabilities.
    Xattrs,
}

impl Aspect {
    /// All of them, in the order they are told.
    pub const ALL: [Aspect; 9] = [
        Aspect::Type,
        Aspect::Contents,
        Aspect::Size,
        Aspect::Target,
        Aspect::Device,
        Aspect::Mode,
        Aspect::Owner,
        Aspect::Times,
        Aspect::Xattrs,
    ];

    /// What it is called.
    pub const fn name(self) -> &'static str {
        match self {
            Aspect::Type => "type",
            Aspect::Contents => "contents",
            Aspect::Size => "size",
            Aspect::Target => "target",
            Aspect::Device => "device",
            Aspect::Mode => "mode",
            Aspect::Owner => "owner",
            Aspect::Times => "times",
            Aspect::Xattrs => "xattrs",
        }
    }
}

/// A set of aspects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Aspects(u16);

impl Aspects {
    /// Adds one.
    pub fn insert(&mut self, aspect: Aspect) {
        self.0 |= 1 << aspect as u16;
    }

    /// Whether it is one of them.
    pub fn contains(self, aspect: Aspect) -> bool {
        self.0 & 1 << aspect as u16 != 0
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those in the set, in the order of [`Aspect::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Aspect> {
        Aspect::ALL.into_iter().filter(move |&aspect| self.contains(aspect))
    }
}

impl FromIterator<Aspect> for Aspects {
    fn from_iter<I: IntoIterator<Item = Aspect>>(aspects: I) -> Self {
        let mut set = Self::default();
        aspects.into_iter().for_each(|aspect| set.insert(aspect));
        set
    }
}

/// A file that is not the same in both trees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Where it is, from the root; begins with a slash.
    pub path: Vec<u8>,
    /// What it was, if it was there.
    pub before: Option<Attr>,
    /// What it is, if it is there.
    pub after: Option<Attr>,
    /// What differs, of a file that is in both.
    pub aspects: Aspects,
}

/// A tree and the place in it that is compared; `None` if it is not there.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// The tree.
    pub tree: &'a dyn FileTree,
    /// A file or folder of it.
    pub node: Option<NodeId>,
}

/// How far a comparison has come, for whoever watches.
#[derive(Debug, Default)]
pub struct Progress {
    /// Files and folders looked at.
    pub files: AtomicU64,
    /// Bytes read of each side.
    pub bytes: AtomicU64,
}

/// Files that are compared at once, and bytes of their paths from which on there are enough.
const BATCH: usize = 1024;
const BATCH_PATHS: usize = 1 << 20;

/// Calls `emit` with all that differs between `before` and `after`, which both are at `path`, but
/// for the aspects in `ignored`.
///
/// What cannot be read is told to `failed` with its path, and the rest goes on: a folder that
/// cannot be read on one side is not compared.
///
/// # Errors
/// Those of `emit`, which end the comparison.
pub fn compare(
    (before, after): (Side<'_>, Side<'_>),
    path: &[u8],
    ignored: Aspects,
    progress: &Progress,
    emit: &mut dyn FnMut(&Change) -> Result<()>,
    failed: &mut dyn FnMut(&[u8], Error),
) -> Result<()> {
    let mut comparison = Comparison {
        trees: [before.tree, after.tree],
        ignored,
        progress,
        emit,
        failed,
        path: path.strip_suffix(b"/").unwrap_or(path).to_vec(),
        entered: [HashSet::new(), HashSet::new()],
        waiting: Vec::new(),
        waiting_paths: 0,
    };
    comparison.walk([before.node, after.node])?;
    comparison.settle()
}

struct Comparison<'a> {
    trees: [&'a dyn FileTree; 2],
    ignored: Aspects,
    progress: &'a Progress,
    emit: &'a mut dyn FnMut(&Change) -> Result<()>,
    failed: &'a mut dyn FnMut(&[u8], Error),
    /// Where the walk is.
    path: Vec<u8>,
    /// Folders that were entered. None is entered twice, or a damaged image would have us go on
    /// for ever.
    entered: [HashSet<NodeId>; 2],
    /// Pairs that are still to be compared, in the order of the walk.
    waiting: Vec<Waiting>,
    waiting_paths: usize,
}

/// A file of one tree or of both.
struct Waiting {
    change: Change,
    error: Option<Error>,
}

/// A folder on the way: its entries, and how long its path is.
struct Level {
    entries: [Option<Entries>; 2],
    path: usize,
}

impl Comparison<'_> {
    fn walk(&mut self, roots: [Option<NodeId>; 2]) -> Result<()> {
        let mut levels = Vec::new();
        levels.extend(self.look(roots)?);
        while let Some(level) = levels.last_mut() {
            self.path.truncate(level.path);
            let Some((name, nodes)) = self.next(&mut level.entries) else {
                levels.pop();
                continue;
            };
            self.path.push(b'/');
            self.path.extend_from_slice(&name);
            levels.extend(self.look(nodes)?);
        }
        Ok(())
    }

    /// The next name of the folders, and what has it on each side.
    fn next(
        &mut self,
        entries: &mut [Option<Entries>; 2],
    ) -> Option<(Vec<u8>, [Option<NodeId>; 2])> {
        for (side, tree) in entries.iter_mut().zip(self.trees) {
            let Some(reading) = side else { continue };
            if let Err(error) = reading.fill(tree) {
                (self.failed)(&self.path, error);
                // What the other side has cannot be told from what could not be read here.
                *entries = [None, None];
                return None;
            }
        }
        let [before, after] = entries;
        let name = [&*before, &*after].into_iter().flatten().filter_map(Entries::peek).min()?;
        let name = name.to_vec();
        let take = |side: &mut Option<Entries>| side.as_mut().and_then(|side| side.take(&name));
        let nodes = [take(before), take(after)];
        Some((name, nodes))
    }

    /// Looks at what is at the path, has it compared, and enters it if it is a folder.
    fn look(&mut self, nodes: [Option<NodeId>; 2]) -> Result<Option<Level>> {
        let mut attrs = [None, None];
        for ((attr, node), tree) in attrs.iter_mut().zip(nodes).zip(self.trees) {
            match node.map(|node| tree.attr(node)).transpose() {
                Ok(found) => *attr = found,
                Err(error) => {
                    (self.failed)(shown(&self.path), error);
                    return Ok(None);
                }
            }
        }
        self.progress.files.fetch_add(1, Ordering::Relaxed);
        let [before, after] = attrs;
        let path = shown(&self.path).to_vec();
        self.waiting_paths += path.len();
        let change = Change { path, before, after, aspects: Aspects::default() };
        self.waiting.push(Waiting { change, error: None });
        if self.waiting.len() >= BATCH || self.waiting_paths >= BATCH_PATHS {
            self.settle()?;
        }
        let mut entries = [None, None];
        for (side, attr) in [before, after].into_iter().enumerate() {
            let Some(attr) = attr.filter(|attr| attr.kind == FileKind::Directory) else { continue };
            let (Some(entered), Some(entries)) =
                (self.entered.get_mut(side), entries.get_mut(side))
            else {
                continue;
            };
            if !entered.insert(attr.node) {
                let error = Error::new(Kind::Corrupt, "the folder is in the tree more than once");
                (self.failed)(shown(&self.path), error);
                return Ok(None);
            }
            *entries = Some(Entries::new(attr.node));
        }
        let is_folder = entries.iter().any(Option::is_some);
        Ok(is_folder.then_some(Level { entries, path: self.path.len() }))
    }

    /// Compares what waits, on all processors, and tells what differs.
    fn settle(&mut self) -> Result<()> {
        let mut waiting = std::mem::take(&mut self.waiting);
        self.waiting_paths = 0;
        let (trees, ignored, progress) = (self.trees, self.ignored, self.progress);
        waiting.par_iter_mut().for_each(|waiting| {
            let Change { before: Some(before), after: Some(after), aspects, .. } =
                &mut waiting.change
            else {
                return;
            };
            match differences(trees, [before, after], ignored, progress) {
                Ok(found) => *aspects = found,
                Err(error) => waiting.error = Some(error),
            }
        });
        for Waiting { change, error } in waiting {
            let in_both = change.before.is_some() && change.after.is_some();
            if let Some(error) = error {
                (self.failed)(&change.path, error);
            } else if !in_both || !change.aspects.is_empty() {
                (self.emit)(&change)?;
            }
        }
        Ok(())
    }
}

fn shown(path: &[u8]) -> &[u8] {
    if path.is_empty() { b"/" } else { path }
}

/// What a file differs in.
fn differences(
    [before_tree, after_tree]: [&dyn FileTree; 2],
    [before, after]: [&Attr; 2],
    ignored: Aspects,
    progress: &Progress,
) -> Result<Aspects> {
    let mut found = Aspects::default();
    let mut note = |aspect, differs: bool| {
        if differs && !ignored.contains(aspect) {
            found.insert(aspect);
        }
    };
    if std::mem::discriminant(&before.kind) != std::mem::discriminant(&after.kind) {
        note(Aspect::Type, true);
        return Ok(found);
    }
    // Devices of one kind differ in their numbers alone.
    note(Aspect::Device, before.kind != after.kind);
    note(Aspect::Mode, before.mode != after.mode);
    note(Aspect::Owner, (before.uid, before.gid) != (after.uid, after.gid));
    note(Aspect::Times, before.modified != after.modified);
    if !ignored.contains(Aspect::Xattrs) {
        let differ = xattrs_differ([before_tree, after_tree], [before.node, after.node])?;
        note(Aspect::Xattrs, differ);
    }
    match before.kind {
        FileKind::Symlink if !ignored.contains(Aspect::Target) => {
            let differ = before_tree.read_link(before.node)? != after_tree.read_link(after.node)?;
            note(Aspect::Target, differ);
        }
        FileKind::Regular if before.size != after.size => {
            note(Aspect::Contents, true);
            note(Aspect::Size, true);
        }
        FileKind::Regular if !ignored.contains(Aspect::Contents) => {
            let files = [(before_tree, before.node), (after_tree, after.node)];
            note(Aspect::Contents, !contents::equal(files, before.size, progress)?);
        }
        _ => {}
    }
    Ok(found)
}

fn xattrs_differ(trees: [&dyn FileTree; 2], nodes: [NodeId; 2]) -> Result<bool> {
    let [mut before, mut after] =
        [trees[0].xattr_names(nodes[0])?, trees[1].xattr_names(nodes[1])?];
    before.sort_unstable();
    after.sort_unstable();
    if before != after {
        return Ok(true);
    }
    for name in before {
        if trees[0].xattr(nodes[0], &name)? != trees[1].xattr(nodes[1], &name)? {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests;
