//! Paths within a tree.
//!
//! A path starts at the root of the tree and never leaves it: `..` stops at the root, and symbolic
//! links lead where they would for someone who had the tree as their root folder.

use std::collections::VecDeque;

use super::{FileKind, FileTree, NodeId};
use crate::error::{Error, Kind, Result, ResultExt};

/// Symbolic links followed on the way at most, as in the kernel.
const MOST_LINKS: u32 = 40;

/// Bytes of a path at most, with the targets of the links on the way.
const MOST_BYTES: usize = 1 << 20;

/// Whether a symbolic link at the end of a path is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follow {
    /// Like every other link on the way.
    Always,
    /// The link itself is what was asked for, unless a slash comes after it.
    ExceptLast,
}

/// A file found by its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The file.
    pub node: NodeId,
    /// Where it is, from the root, free of links, `.` and `..`; begins with a slash.
    pub path: Vec<u8>,
}

/// The file at `path`, which counts from the root with or without a leading slash.
///
/// # Errors
/// [`Kind::NotFound`] or [`Kind::NotADirectory`], naming the place on the way where it was so, and
/// what the tree returns.
pub fn resolve(tree: &dyn FileTree, path: &[u8], last: Follow) -> Result<NodeId> {
    locate(tree, path, last).map(|resolved| resolved.node)
}

/// As [`resolve`]; also tells where the file really is.
///
/// # Errors
/// As [`resolve`].
pub fn locate(tree: &dyn FileTree, path: &[u8], last: Follow) -> Result<Resolved> {
    let mut way = Way { root: tree.root(), below: Vec::new() };
    let mut ahead = VecDeque::new();
    push_front(&mut ahead, path);
    let mut links = 0;
    let mut bytes = path.len();

    while let Some(name) = ahead.pop_front() {
        let here = way.node();
        // What a dot or a slash at the end comes after has to be a folder.
        if matches!(name.as_slice(), b"" | b"." | b"..") {
            let attr = tree.attr(here).within(|| way.shown(None))?;
            if attr.kind != FileKind::Directory {
                return Err(way.not_a_folder());
            }
            if name == b".." {
                way.below.pop();
            }
            continue;
        }
        let found = tree.lookup(here, &name).map_err(|error| match error.kind() {
            Kind::NotADirectory => way.not_a_folder(),
            _ => error.within(way.shown(Some(&name))),
        })?;
        let Some(node) = found else {
            let message = format!("{}: no such file or folder", way.shown(Some(&name)));
            return Err(Error::new(Kind::NotFound, message));
        };
        let follow = last == Follow::Always || !ahead.is_empty();
        let is_link = || -> Result<bool> { Ok(tree.attr(node)?.kind == FileKind::Symlink) };
        if !(follow && is_link().within(|| way.shown(Some(&name)))?) {
            way.below.push((node, name));
            continue;
        }
        let target = tree.read_link(node).within(|| way.shown(Some(&name)))?;
        links += 1;
        bytes = bytes.saturating_add(target.len());
        let fault = if links > MOST_LINKS || bytes > MOST_BYTES {
            Some(format!("more than {MOST_LINKS} symbolic links on the way"))
        } else if target.is_empty() {
            Some("a symbolic link to nowhere".to_owned())
        } else {
            None
        };
        if let Some(fault) = fault {
            let message = format!("{}: {fault}", way.shown(Some(&name)));
            return Err(Error::new(Kind::NotFound, message));
        }
        if target.first() == Some(&b'/') {
            way.below.clear();
        }
        push_front(&mut ahead, &target);
    }
    Ok(Resolved { node: way.node(), path: way.path() })
}

/// The folders passed from the root to where we are.
struct Way {
    root: NodeId,
    below: Vec<(NodeId, Vec<u8>)>,
}

impl Way {
    fn node(&self) -> NodeId {
        self.below.last().map_or(self.root, |(node, _)| *node)
    }

    fn path(&self) -> Vec<u8> {
        if self.below.is_empty() {
            return b"/".to_vec();
        }
        self.below.iter().flat_map(|(_, name)| [b"/", name.as_slice()].concat()).collect()
    }

    /// For a message: where we are, or the entry `name` there.
    fn shown(&self, name: Option<&[u8]>) -> String {
        let mut path = self.path();
        if let Some(name) = name {
            if !self.below.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
        }
        String::from_utf8_lossy(&path).into_owned()
    }

    fn not_a_folder(&self) -> Error {
        Error::new(Kind::NotADirectory, format!("{}: not a folder", self.shown(None)))
    }
}

/// Puts the names of `path` before those ahead; a slash at its end becomes an empty name.
fn push_front(ahead: &mut VecDeque<Vec<u8>>, path: &[u8]) {
    if path.len() > 1 && path.ends_with(b"/") {
        ahead.push_front(Vec::new());
    }
    for name in path.rsplit(|&byte| byte == b'/').filter(|name| !name.is_empty()) {
        ahead.push_front(name.to_vec());
    }
}
