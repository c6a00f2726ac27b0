//! Open files of a writable tree: by what way the kernel reads and writes each of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::BackingId;
use parking_lot::Mutex;

use crate::tree::NodeId;

/// The files that are open.
///
/// The kernel wants every opening of one inode to be served the same way, through its cache or
/// through the same host file: the first decides for all that overlap with it.
#[derive(Debug)]
pub(super) struct Opened {
    nodes: Mutex<HashMap<NodeId, Open>>,
    /// Whether the kernel may be given host files. Once it refused one, it is not asked again.
    pub(super) passes_through: AtomicBool,
    writes: Mutex<Writes>,
}

#[derive(Debug)]
struct Open {
    openings: u64,
    backing: Option<Arc<BackingId>>,
}

/// How often files were written to, for trees whose files share bytes.
#[derive(Debug, Default)]
struct Writes {
    all: u64,
    by_node: HashMap<NodeId, Written>,
}

#[derive(Debug, Default)]
struct Written {
    /// Writes to this file.
    own: u64,
    /// Writes to all others when it was opened last.
    others: u64,
}

impl Opened {
    pub(super) fn new() -> Self {
        Self {
            nodes: Mutex::default(),
            passes_through: AtomicBool::new(false),
            writes: Mutex::default(),
        }
    }

    /// `node` is opened; through what, if not through us. `backing` is asked by the first opening.
    pub(super) fn open(
        &self,
        node: NodeId,
        backing: impl FnOnce() -> Option<BackingId>,
    ) -> Option<Arc<BackingId>> {
        let mut nodes = self.nodes.lock();
        let open = nodes.entry(node).or_insert_with(|| {
            let passes = self.passes_through.load(Ordering::Relaxed);
            let backing = if passes { backing() } else { None };
            Open { openings: 0, backing: backing.map(Arc::new) }
        });
        open.openings += 1;
        open.backing.clone()
    }

    /// One opening of `node` ended.
    pub(super) fn release(&self, node: NodeId) {
        let mut nodes = self.nodes.lock();
        let Some(open) = nodes.get_mut(&node) else { return };
        open.openings -= 1;
        if open.openings == 0 {
            let closed = nodes.remove(&node);
            drop(nodes);
            drop(closed);
        }
    }

    /// `node` was written to, and whoever wrote is yet to be told so.
    pub(super) fn written(&self, node: NodeId) {
        let mut writes = self.writes.lock();
        writes.all += 1;
        writes.by_node.entry(node).or_default().own += 1;
    }

    /// Whether any other file was written to since this was asked of `node` before.
    pub(super) fn others_written(&self, node: NodeId) -> bool {
        let mut writes = self.writes.lock();
        let all = writes.all;
        let node = writes.by_node.entry(node).or_default();
        let others = all - node.own;
        std::mem::replace(&mut node.others, others) != others
    }
}
