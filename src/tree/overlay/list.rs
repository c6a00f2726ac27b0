//! Listing folders.
//!
//! A folder that is only in the lower is listed as the lower lists it, at the lower's positions. Any
//! other is listed in the order of a hash of the names, which also is the position: so a name keeps
//! its position whatever comes and goes, and every name that stays is met exactly once.

use std::collections::{BTreeMap, HashSet};
use std::hash::BuildHasher;
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::Mutex;

use super::find::Above;
use super::host;
use super::node::Node;
use super::{Overlay, Still};
use crate::error::{Error, Kind, Result};
use crate::tree::{DirEntry, NodeId};

/// Positions of ours have this bit; a lower's are below it.
const HASHED: u64 = 1 << 61;

/// Names taken out of a listing at a time.
const BATCH: usize = 64;

/// The names of a folder by position: all that are in it, and maybe some that are not any more.
#[derive(Debug)]
pub(super) struct Listing(Mutex<BTreeMap<u64, Box<[u8]>>>);

/// A listing weighs as much as it has names.
#[derive(Debug, Clone)]
pub(super) struct Weigh;

impl quick_cache::Weighter<NodeId, Arc<Listing>> for Weigh {
    fn weight(&self, _: &NodeId, listing: &Arc<Listing>) -> u64 {
        listing.0.lock().len() as u64 + 16
    }
}

impl Overlay {
    pub(super) fn list(
        &self,
        dir: &Arc<Node>,
        after: u64,
        emit: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<()> {
        if dir.state.lock().gone {
            return Ok(());
        }
        if let Some(lower) = dir.lower
            && after & HASHED == 0
            && (after != 0 || !dir.is_above())
        {
            return self.list_lower(dir, lower, after, emit);
        }
        let listing = self.listing(dir, after)?;
        let mut after = after;
        loop {
            let range = (Bound::Excluded(after), Bound::Unbounded);
            let batch: Vec<_> = listing
                .0
                .lock()
                .range(range)
                .take(BATCH)
                .map(|(position, name)| (*position, name.clone()))
                .collect();
            if batch.is_empty() {
                return Ok(());
            }
            for (position, name) in batch {
                after = position;
                let found = {
                    let still = self.names.read();
                    self.find(dir, &name, &still)?
                };
                if let Some(node) = found
                    && !self.emit(&name, node, position, emit)
                {
                    return Ok(());
                }
            }
        }
    }

    /// Tells of an entry; whoever takes it knows the node from then on.
    fn emit(
        &self,
        name: &[u8],
        node: Arc<Node>,
        next: u64,
        emit: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> bool {
        let known = std::mem::replace(&mut node.state.lock().known, true);
        let taken = emit(DirEntry { name, node: node.id, next });
        if !taken && !known {
            node.state.lock().known = false;
            self.settle(node);
        }
        taken
    }

    fn list_lower(
        &self,
        dir: &Arc<Node>,
        lower: NodeId,
        after: u64,
        emit: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<()> {
        let mut failed = None;
        self.lower.read_dir(lower, after, &mut |entry| {
            if entry.next >= HASHED {
                let message = format!("position {:#x} beneath an upper", entry.next);
                failed = Some(Error::new(Kind::Unsupported, message));
                return false;
            }
            let found = {
                let still = self.names.read();
                if dir.is_above() {
                    // It has come into the upper since the listing began.
                    self.find(dir, entry.name, &still)
                } else {
                    self.meet_below(dir, entry.name, entry.node).map(Some)
                }
            };
            match found {
                Ok(Some(node)) => self.emit(entry.name, node, entry.next, emit),
                Ok(None) => true,
                Err(error) => {
                    failed = Some(error);
                    false
                }
            }
        })?;
        failed.map_or(Ok(()), Err)
    }

    /// The listing of a folder, made anew when it is read from the start.
    fn listing(&self, dir: &Arc<Node>, after: u64) -> Result<Arc<Listing>> {
        if let Some(listing) = self.listings.get(&dir.id) {
            return Ok(listing);
        }
        let _ = after;
        // Names are added to a listing under the same lock, for writing: none is missed.
        let still = self.names.read();
        let mut names: HashSet<Box<[u8]>> = HashSet::new();
        if dir.is_above() {
            let handle = self.handle(dir, &still)?;
            host::list(&handle, &mut |name, _, _| {
                names.insert(name.into());
            })?;
        }
        if let Some(lower) = dir.lower {
            self.lower.read_dir(lower, 0, &mut |entry| {
                names.insert(entry.name.into());
                true
            })?;
        }
        let mut positions = BTreeMap::new();
        for name in names {
            insert(&mut positions, self.position(&name), name);
        }
        let listing = Arc::new(Listing(Mutex::new(positions)));
        self.listings.insert(dir.id, Arc::clone(&listing));
        Ok(listing)
    }

    fn position(&self, name: &[u8]) -> u64 {
        self.hash.hash_one(name) & (HASHED - 1) | HASHED
    }

    /// Tells a listing of a new name.
    pub(super) fn listed(&self, dir: &Node, name: &[u8]) {
        if let Some(listing) = self.listings.get(&dir.id) {
            insert(&mut listing.0.lock(), self.position(name), name.into());
        }
    }

    /// Tells a listing that a name is gone.
    pub(super) fn unlisted(&self, dir: &Node, name: &[u8]) {
        let Some(listing) = self.listings.get(&dir.id) else { return };
        let mut names = listing.0.lock();
        let mut position = self.position(name);
        while let Some(have) = names.get(&position) {
            if **have == *name {
                names.remove(&position);
                return;
            }
            position += 1;
        }
    }

    /// Whether the merged view of a folder has no entries.
    pub(super) fn is_empty(&self, dir: &Arc<Node>, still: &impl Still) -> Result<bool> {
        let mut names = Vec::new();
        if dir.is_above() {
            let handle = self.handle(dir, still)?;
            host::list(&handle, &mut |name, _, _| names.push(name.to_vec()))?;
        }
        for name in &names {
            if matches!(self.above(dir, name, still)?, Above::File(..)) {
                return Ok(false);
            }
        }
        let hidden: HashSet<_> = names.into_iter().collect();
        let mut empty = true;
        if let Some(lower) = dir.lower {
            self.lower.read_dir(lower, 0, &mut |entry| {
                empty = hidden.contains(entry.name);
                empty
            })?;
        }
        Ok(empty)
    }

    /// The count of names a merged folder has: its own two, and `..` of each folder in it.
    pub(super) fn count_links(&self, dir: &Arc<Node>, still: &impl Still) -> Result<u32> {
        if let Some(links) = dir.state.lock().links {
            return Ok(links);
        }
        let (Some(lower), true) = (dir.lower, dir.is_above()) else { return Ok(2) };
        let is_folder =
            |id| self.lower.attr(id).map(|attr| attr.kind == crate::tree::FileKind::Directory);
        let mut names = Vec::new();
        let handle = self.handle(dir, still)?;
        host::list(&handle, &mut |name, _, _| names.push(name.to_vec()))?;
        let mut links = i64::from(self.lower.attr(lower)?.links);
        for name in &names {
            let below = match self.lower.lookup(lower, name)? {
                Some(id) => is_folder(id)?,
                None => false,
            };
            let above = match self.above(dir, name, still)? {
                Above::File(_, stat) => host::kind(&stat) == crate::tree::FileKind::Directory,
                _ => false,
            };
            links += i64::from(above) - i64::from(below);
        }
        let links = u32::try_from(links).unwrap_or(1).max(1);
        dir.state.lock().links = Some(links);
        Ok(links)
    }
}

/// Puts a name at its position, or the next that is free where two hashes are equal.
fn insert(names: &mut BTreeMap<u64, Box<[u8]>>, mut position: u64, name: Box<[u8]>) {
    while let Some(have) = names.get(&position) {
        if *have == name {
            return;
        }
        position += 1;
    }
    names.insert(position, name);
}
