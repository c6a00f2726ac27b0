//! From slots to the files as they are asked for.

use std::sync::Arc;

use super::apply::{Applying, stored};
use super::files::{Body, Files, Named};
use super::names::NONE;

impl Applying<'_> {
    /// The files, once all layers are applied.
    pub(super) fn finish(self) -> Files {
        let Self { parts, mut nodes, names, mut runs, mut xattrs, xattrs_known, .. } = self;
        drop(xattrs_known);
        let (mut text, slots) = names.into_parts();
        for node in &mut nodes {
            if let Body::Folder { first, count } = &mut node.body {
                (*first, *count) = (0, 0);
            }
        }
        // Live names, counted for each folder; then where each folder's begin; then the names.
        let live = || slots.iter().filter(|slot| slot.node != NONE);
        let mut total = 0;
        for slot in live() {
            total += 1;
            let folder = nodes.get(slot.node as usize).map(|node| node.body);
            if let Some(node) = nodes.get_mut(slot.folder as usize)
                && let Body::Folder { count, .. } = &mut node.body
            {
                *count += 1;
                if matches!(folder, Some(Body::Folder { .. })) {
                    node.links += 1;
                }
            }
        }
        let mut end = 0;
        for node in &mut nodes {
            if let Body::Folder { first, count } = &mut node.body {
                *first = end;
                end += std::mem::take(count);
            }
        }
        let mut named = vec![Named { text: 0, node: 0 }; total];
        for slot in live() {
            if let Some(Body::Folder { first, count }) =
                nodes.get_mut(slot.folder as usize).map(|node| &mut node.body)
                && let Some(place) = named.get_mut((*first + *count) as usize)
            {
                (place.text, place.node) = (slot.text, slot.node);
                *count += 1;
            }
        }
        drop(slots);
        text.shrink();
        nodes.shrink_to_fit();
        runs.shrink_to_fit();
        xattrs.shrink_to_fit();
        let mut bytes: u64 = 0;
        for node in &nodes {
            match node.body {
                Body::Folder { first, count } => {
                    let (first, count) = (first as usize, count as usize);
                    if let Some(names) = named.get_mut(first..first + count) {
                        names.sort_unstable_by(|one, other| {
                            text.get(one.text).cmp(text.get(other.text))
                        });
                    }
                }
                Body::File { size, .. } if node.links > 0 => bytes = bytes.saturating_add(size),
                Body::Sparse { .. } if node.links > 0 => {
                    bytes = bytes.saturating_add(stored(&node.body, &runs));
                }
                _ => {}
            }
        }
        let data = parts.iter().map(|part| Arc::clone(&part.data)).collect();
        Files { nodes, text, named, runs, xattrs, data, bytes }
    }
}
