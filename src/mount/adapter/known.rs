//! What the kernel knows of a tree: every answer that names a node counts, and what is known of
//! the node may only go once the kernel has given all of them back.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::tree::{NodeId, WritableTree};

/// How often the kernel was told of each node.
#[derive(Debug)]
pub(super) struct Known {
    tree: Arc<dyn WritableTree>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    told: HashMap<NodeId, u64>,
    /// Questions under way whose answers may name nodes.
    asking: usize,
    /// What was given back meanwhile. One of the questions may have found it just before.
    given_back: Vec<NodeId>,
}

impl Known {
    pub(super) fn new(tree: Arc<dyn WritableTree>) -> Self {
        Self { tree, state: Mutex::default() }
    }

    /// A question begins that finds nodes. Until it ends, the tree is told of none to forget.
    pub(super) fn ask(&self) -> Asking<'_> {
        self.state.lock().asking += 1;
        Asking(self)
    }

    /// The kernel gives back `count` answers that named `node`; whether those were all.
    pub(super) fn give_back(&self, node: NodeId, count: u64) -> bool {
        let mut state = self.state.lock();
        let Some(told) = state.told.get_mut(&node) else { return false };
        *told = told.saturating_sub(count);
        if *told > 0 {
            return false;
        }
        state.told.remove(&node);
        if state.asking == 0 {
            self.tree.forget(node);
        } else {
            state.given_back.push(node);
        }
        true
    }
}

/// A question under way.
#[derive(Debug)]
#[must_use]
pub(super) struct Asking<'a>(&'a Known);

impl Asking<'_> {
    /// The answer names `node`.
    pub(super) fn tell(&self, node: NodeId) {
        *self.0.state.lock().told.entry(node).or_default() += 1;
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.asking -= 1;
        if state.asking == 0 {
            for node in std::mem::take(&mut state.given_back) {
                if !state.told.contains_key(&node) {
                    self.0.tree.forget(node);
                }
            }
        }
    }
}
