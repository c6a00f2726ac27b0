//! What is remembered of files while somebody knows them.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::tree::NodeId;

/// Numbers from here on are of files that began in the upper: the rest is their inode number there.
/// What is below is the lower's own.
pub(super) const ABOVE: u64 = 1 << 62;

/// A file somebody knows.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: NodeId,
    /// The lower's file whose entries are merged in, or whose data are shown; it never changes.
    pub(super) lower: Option<NodeId>,
    pub(super) form: Form,
    pub(super) state: Mutex<State>,
    /// Held while data are copied up, so that it is done once.
    pub(super) copying: Mutex<()>,
}

/// What can be done with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Folder,
    Regular,
    Symlink,
    Special,
}

/// What changes about a file.
#[derive(Debug)]
pub(super) struct State {
    /// The kernel may ask about it.
    pub(super) known: bool,
    /// Where it is found in the upper, or would be.
    pub(super) place: Place,
    /// Its inode number in the upper, if it is there.
    pub(super) above: Option<u64>,
    /// It is in the upper, but its data are the lower's.
    pub(super) data_below: bool,
    /// It has a name in the index, and counts its names in a mark.
    pub(super) indexed: bool,
    /// A folder that may hold files with marks.
    pub(super) impure: bool,
    /// No name leads to it any more.
    pub(super) gone: bool,
    /// How often it is open.
    pub(super) holds: u32,
    /// A handle that must not be lost: no name leads there.
    pub(super) pinned: Option<Arc<File>>,
    /// Open for reading and writing, while it is held.
    pub(super) open: Option<Arc<File>>,
    /// A folder's default ACL, once it was asked for.
    pub(super) default_acl: Option<Option<Arc<[u8]>>>,
    /// The count of names of a merged folder, once it was counted.
    pub(super) links: Option<u32>,
}

/// Where a file is found in the upper.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// It is the root.
    Root,
    /// By a name in a folder.
    Entry(Arc<Node>, Box<[u8]>),
    /// In the index.
    Index,
    /// Nowhere: it is pinned, or only in the lower.
    Nowhere,
}

impl Node {
    pub(super) fn new(id: NodeId, lower: Option<NodeId>, form: Form, place: Place) -> Self {
        Self {
            id,
            lower,
            form,
            state: Mutex::new(State {
                known: false,
                place,
                above: None,
                data_below: false,
                indexed: false,
                impure: false,
                gone: false,
                holds: 0,
                pinned: None,
                open: None,
                default_acl: None,
                links: None,
            }),
            copying: Mutex::new(()),
        }
    }

    pub(super) fn is_above(&self) -> bool {
        self.state.lock().above.is_some()
    }
}

/// All nodes somebody knows, and the folders they lie in.
#[derive(Debug, Default)]
pub(super) struct Table(Mutex<HashMap<NodeId, Arc<Node>>>);

impl Table {
    pub(super) fn get(&self, id: NodeId) -> Option<Arc<Node>> {
        self.0.lock().get(&id).cloned()
    }

    /// The node of that number, which `make` makes if there is none.
    pub(super) fn get_or(&self, id: NodeId, make: impl FnOnce() -> Node) -> Arc<Node> {
        Arc::clone(self.0.lock().entry(id).or_insert_with(|| Arc::new(make())))
    }

    /// Forgets `node`, and the folders it lies in, as far as nobody needs them.
    pub(super) fn reap(&self, node: Arc<Node>) {
        let mut table = self.0.lock();
        let mut next = Some(node);
        while let Some(node) = next {
            // The table's and ours.
            if Arc::strong_count(&node) > 2 {
                return;
            }
            let mut state = node.state.lock();
            if state.known || state.holds > 0 || matches!(state.place, Place::Root) {
                return;
            }
            let is_ours = table.get(&node.id).is_some_and(|have| Arc::ptr_eq(have, &node));
            if is_ours {
                table.remove(&node.id);
            }
            next = match std::mem::replace(&mut state.place, Place::Nowhere) {
                Place::Entry(parent, _) => Some(parent),
                Place::Root | Place::Index | Place::Nowhere => None,
            };
        }
    }
}
