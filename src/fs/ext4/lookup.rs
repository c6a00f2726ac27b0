//! Finding a name in a folder: by the folder's own hash index, by an index of ours for large
//! folders that have none, or by reading a small folder through.

use std::hash::BuildHasher;

use super::Ext4;
use super::dir::{Entry, Scan};
use super::encrypted::{self, Shown};
use super::hash::{self, Version};
use super::htree::Found;
use super::inode::{Inode, flag};
use super::map::Node;
use crate::block::{Key, Weigh};
use crate::error::Result;

/// Folders up to this many bytes are read through.
const SMALL: u64 = 16 << 10;
/// Names that an index of ours holds at most: 16 MiB.
const MAX_NAMES: usize = 1 << 20;

/// An index of a folder: the hash of each name, and where its entry is.
#[derive(Debug)]
pub(super) struct Names {
    /// Ascending.
    entries: Box<[(u64, u64)]>,
    /// Whether every entry is here: the folder is neither damaged nor too large.
    complete: bool,
}

impl Weigh for Names {
    fn weight(&self) -> usize {
        size_of::<Self>() + size_of_val::<[(u64, u64)]>(&self.entries)
    }
}

/// A name without regard to case, near enough to the kernel's own folding for names in composed
/// Unicode.
fn fold(name: &[u8]) -> Vec<u8> {
    match str::from_utf8(name) {
        Ok(name) => name.to_lowercase().into_bytes(),
        Err(_) => name.to_vec(),
    }
}

/// How names are compared in one folder.
struct Wanted<'a> {
    name: &'a [u8],
    folded: Option<Vec<u8>>,
}

impl Wanted<'_> {
    fn new<'a>(inode: &Inode, name: &'a [u8]) -> Wanted<'a> {
        let folds = inode.has(flag::CASEFOLD) && !inode.has(flag::ENCRYPTED);
        Wanted { name, folded: folds.then(|| fold(name)) }
    }

    /// What the index finds it by.
    fn key(&self) -> &[u8] {
        self.folded.as_deref().unwrap_or(self.name)
    }

    fn matches_folded(&self, other: &[u8]) -> bool {
        self.folded.as_deref().is_some_and(|folded| fold(other) == folded)
    }
}

impl Ext4 {
    /// The inode that `name`, as it is shown, stands for in the folder of `node`.
    pub(super) fn find(&self, node: &Node, name: &[u8]) -> Result<Option<u32>> {
        let inode = &node.inode;
        if name.is_empty() || name.len() > 255 {
            return Ok(None);
        }
        if inode.has(flag::ENCRYPTED) {
            return match encrypted::stored(name) {
                Some(stored) => self.find_stored(node, &stored),
                None => self.find_shown(node, name),
            };
        }
        self.find_stored(node, name)
    }

    fn find_stored(&self, node: &Node, name: &[u8]) -> Result<Option<u32>> {
        let inode = &node.inode;
        // Where case does not count, the index is by a folded form of names that is not ours.
        if inode.has(flag::INDEX) && !inode.has(flag::CASEFOLD) {
            match self.index_lookup(node, name) {
                Ok(Found::Inode(found)) => return Ok(Some(found)),
                Ok(Found::Absent) => return Ok(None),
                // A damaged index does not keep the folder from being read.
                Ok(Found::Unknown) | Err(_) => {}
            }
        }
        let wanted = Wanted::new(inode, name);
        if inode.attr.size > SMALL {
            let names = self.names(node)?;
            if let Some(found) = self.find_indexed(node, &names, &wanted)? {
                return Ok(Some(found));
            }
            if names.complete {
                return Ok(None);
            }
        }
        self.find_reading(node, &wanted)
    }

    /// Reads the folder through.
    fn find_reading(&self, node: &Node, wanted: &Wanted<'_>) -> Result<Option<u32>> {
        let (mut exact, mut folded) = (None, None);
        let scanned = self.scan(node, 0, &mut |entry| {
            if entry.name == wanted.name {
                exact = Some(entry.inode);
                return Scan::Stop;
            }
            if folded.is_none() && wanted.matches_folded(entry.name) {
                folded = Some(entry.inode);
            }
            Scan::GoOn
        });
        match exact.or(folded) {
            Some(found) => Ok(Some(found)),
            // The name may be in what could not be read.
            None => scanned.map(|()| None),
        }
    }

    /// Names too long to be shown whole are found by their shown form alone.
    fn find_shown(&self, node: &Node, shown: &[u8]) -> Result<Option<u32>> {
        let mut found = None;
        let scanned = self.scan(node, 0, &mut |entry| {
            if self.shown(&node.inode, &entry).as_bytes() == shown {
                found = Some(entry.inode);
                return Scan::Stop;
            }
            Scan::GoOn
        });
        if found.is_none() { scanned.map(|()| None) } else { Ok(found) }
    }

    /// The shown form of an encrypted name.
    pub(super) fn shown(&self, inode: &Inode, entry: &Entry<'_>) -> Shown {
        let hash = if inode.has(flag::CASEFOLD) {
            entry.hash.unwrap_or_default()
        } else {
            Version::new(self.sb.default_hash, self.sb.hash_unsigned)
                .map(|version| hash::hash(version, &self.sb.hash_seed, entry.name))
                .unwrap_or_default()
        };
        Shown::new(hash, entry.name)
    }

    /// Our index of a folder, made on first use and kept in the shared cache.
    fn names(&self, node: &Node) -> Result<std::sync::Arc<Names>> {
        let key = Key(self.names, u64::from(node.inode.number));
        self.cache.get_or_load(key, || {
            let mut entries = Vec::new();
            let scanned = self.scan(node, 0, &mut |entry| {
                let wanted = Wanted::new(&node.inode, entry.name);
                entries.push((self.hasher.hash_one(wanted.key()), entry.at));
                if entries.len() < MAX_NAMES { Scan::GoOn } else { Scan::Stop }
            });
            entries.sort_unstable();
            let complete = scanned.is_ok() && entries.len() < MAX_NAMES;
            Ok(Names { entries: entries.into(), complete })
        })
    }

    fn find_indexed(&self, node: &Node, names: &Names, wanted: &Wanted<'_>) -> Result<Option<u32>> {
        let hash = self.hasher.hash_one(wanted.key());
        let first = names.entries.partition_point(|&(other, _)| other < hash);
        let mut folded = None;
        for &(_, at) in names.entries[first..].iter().take_while(|&&(other, _)| other == hash) {
            let mut exact = None;
            self.scan(node, at, &mut |entry| {
                if entry.name == wanted.name {
                    exact = Some(entry.inode);
                } else if folded.is_none() && wanted.matches_folded(entry.name) {
                    folded = Some(entry.inode);
                }
                Scan::Stop
            })?;
            if exact.is_some() {
                return Ok(exact);
            }
        }
        Ok(folded)
    }
}
