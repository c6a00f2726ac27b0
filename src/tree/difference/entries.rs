//! The entries of one folder in the order of their names, however many there are.

use std::collections::BTreeMap;

use super::super::{FileTree, NodeId};
use crate::error::Result;

/// Entries held at once. A folder of more is read again for each piece of that many.
pub(super) const HELD: usize = 1 << 16;

/// A folder's entries, in order.
#[derive(Debug)]
pub(super) struct Entries {
    folder: NodeId,
    /// The next ones.
    held: BTreeMap<Vec<u8>, NodeId>,
    /// The last name that was taken.
    last: Option<Vec<u8>>,
    /// Whether there may be more behind those held.
    more: bool,
}

impl Entries {
    pub(super) fn new(folder: NodeId) -> Self {
        Self { folder, held: BTreeMap::new(), last: None, more: true }
    }

    /// Reads on if all that was held has been taken.
    pub(super) fn fill(&mut self, tree: &dyn FileTree) -> Result<()> {
        if !self.held.is_empty() || !self.more {
            return Ok(());
        }
        self.more = false;
        let Self { folder, held, last, more } = self;
        tree.read_dir(*folder, 0, &mut |entry| {
            if last.as_deref().is_some_and(|last| entry.name <= last) {
                return true;
            }
            if held.len() >= HELD {
                *more = true;
                if held.last_key_value().is_some_and(|(name, _)| entry.name > name.as_slice()) {
                    return true;
                }
            }
            // Of two entries of one name, the first is the one that is found.
            held.entry(entry.name.to_vec()).or_insert(entry.node);
            if held.len() > HELD {
                held.pop_last();
            }
            true
        })
    }

    /// The next name.
    pub(super) fn peek(&self) -> Option<&[u8]> {
        self.held.first_key_value().map(|(name, _)| name.as_slice())
    }

    /// The next entry, if it has this name.
    pub(super) fn take(&mut self, name: &[u8]) -> Option<NodeId> {
        let first = self.held.first_entry().filter(|first| first.key() == name)?;
        let (name, node) = first.remove_entry();
        self.last = Some(name);
        Some(node)
    }
}
