//! Hard links: other names of files of this layer or of those below.

use std::collections::{HashMap, HashSet};

use super::Reading;
use super::apply::{Applying, shown, split, stored};
use super::cause::Cause;
use super::files::Body;
use super::names::NONE;
use super::whiteouts::is_whiteout;
use crate::error::Result;
use crate::oci::layer::Layer;
use crate::oci::tar::{Entry, EntryKind};

/// A hard link whose target is still to come.
pub(super) struct Waiting {
    /// The placeholder that has its name.
    node: u32,
    path: Vec<u8>,
    target: Vec<u8>,
}

impl Applying<'_> {
    /// What the hard links of the layer lead to in the layers below, before this one hides or
    /// replaces it; or [`NONE`].
    pub(super) fn bind(&mut self, index: &Layer) -> Result<Vec<u32>> {
        let mut bound = Vec::new();
        let mut entries = index.entries()?;
        while let Some(entry) = entries.next()? {
            if let EntryKind::HardLink(target) = &entry.kind
                && !is_whiteout(&entry.path)
            {
                bound.push(self.target(target)?);
            }
        }
        Ok(bound)
    }

    /// What is at `path`, itself not followed if it is a symbolic link; or [`NONE`].
    fn target(&mut self, path: &[u8]) -> Result<u32, Cause> {
        if path.is_empty() {
            return Ok(0);
        }
        let (parent, name) = split(path);
        let folder = self.folder_if_there(parent)?;
        Ok(folder.map_or(NONE, |folder| self.child(folder, name)))
    }

    /// Binds a hard link to what is at its target now, in this layer or below: what is done to the
    /// target later does not change it. The attributes are the target's.
    pub(super) fn link(
        &mut self,
        entry: &Entry,
        (folder, name): (u32, &[u8]),
        target: &[u8],
        bound: u32,
    ) -> Result<(), Cause> {
        let mut node = self.target(target)?;
        if node == NONE && bound != NONE {
            node = bound;
            self.unhide(node);
        }
        if node == NONE {
            let held = Waiting {
                node: self.nodes.len() as u32,
                path: entry.path.clone(),
                target: target.to_vec(),
            };
            self.hold(held.path.len() + held.target.len() + size_of::<Waiting>())?;
            self.waiting.push(held);
            let placeholder = self.node(entry, Body::Waiting);
            node = self.add_node(placeholder)?;
        }
        if matches!(self.body(node), Body::Folder { .. }) {
            return Err(Cause::FolderTarget(String::from_utf8_lossy(target).into_owned()));
        }
        self.put(folder, name, node)
    }

    /// A file that whiteouts took the last name of is to have one again.
    fn unhide(&mut self, node: u32) {
        let Some(node) = self.nodes.get(node as usize).filter(|node| node.links == 0) else {
            return;
        };
        let bytes = stored(&node.body, &self.runs);
        self.wasted = self.wasted.saturating_sub(bytes);
        if let Some(numbers) = self.numbers.last_mut() {
            numbers.hidden_bytes = numbers.hidden_bytes.saturating_sub(bytes);
        }
    }

    /// Binds the links whose targets came later in the layer.
    pub(super) fn bind_waiting(&mut self) -> Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        if waiting.is_empty() {
            return Ok(());
        }
        let mut leads: HashMap<u32, u32> = HashMap::new();
        let mut lost = Vec::new();
        for link in &waiting {
            // One that was replaced waits for nothing.
            if self.nodes.get(link.node as usize).is_some_and(|node| node.links == 0) {
                continue;
            }
            match self.target(&link.target)? {
                NONE => {
                    self.lost(link)?;
                    lost.push(link);
                }
                target if matches!(self.body(target), Body::Folder { .. }) => {
                    let target = String::from_utf8_lossy(&link.target).into_owned();
                    return Err(Cause::FolderTarget(target).at(&link.path));
                }
                target => {
                    leads.insert(link.node, target);
                }
            }
        }
        for link in &waiting {
            let mut passed = Vec::new();
            let mut node = link.node;
            while let Some(&next) = leads.get(&node) {
                if passed.len() > leads.len() {
                    // They lead to each other.
                    self.lost(link)?;
                    lost.push(link);
                    leads.remove(&link.node);
                    node = link.node;
                    break;
                }
                passed.push(node);
                node = next;
            }
            for passed in passed {
                if passed != node {
                    leads.insert(passed, node);
                }
            }
        }
        for slot in &mut self.names.slots {
            if let Some(&node) = leads.get(&slot.node) {
                slot.node = node;
                if let Some(node) = self.nodes.get_mut(node as usize) {
                    node.links = node.links.saturating_add(1);
                }
            }
        }
        if self.reading == Reading::Tarball {
            self.leave_out(&lost)?;
        }
        Ok(())
    }

    /// A hard link that leads nowhere: an error, but in a layer by itself, where its target may lie in a
    /// layer below. In one shown as it is it is an empty file.
    fn lost(&mut self, link: &Waiting) -> Result<()> {
        let target = String::from_utf8_lossy(&link.target).into_owned();
        match self.reading {
            Reading::Merged => return Err(Cause::NoTarget(target).at(&link.path)),
            Reading::Tarball => {}
            Reading::AsItIs => {
                log::info!(
                    "{}: hard link to \"{target}\" in a layer below, shown empty",
                    shown(&link.path)
                );
                if let Some(node) = self.nodes.get_mut(link.node as usize) {
                    node.body = Body::File { size: 0, place: 0 };
                }
            }
        }
        Ok(())
    }

    /// Takes their names from links that lead nowhere, and from the links to those.
    fn leave_out(&mut self, lost: &[&Waiting]) -> Result<()> {
        let Some(first) = lost.first() else { return Ok(()) };
        let nodes: HashSet<u32> = lost.iter().map(|link| link.node).collect();
        let slots = self.names.slots.iter().enumerate();
        let slots = slots.filter(|(_, slot)| nodes.contains(&slot.node)).map(|(at, _)| at as u32);
        let slots: Vec<u32> = slots.collect();
        let (path, target) = (shown(&first.path), String::from_utf8_lossy(&first.target));
        match slots.len() {
            0 => {}
            1 => log::warn!(
                "{path} is left out: a hard link to \"{target}\", which is not in this tar"
            ),
            count => log::warn!(
                "{count} hard links are left out, as their files are not in this tar: the first is \
                 {path} to \"{target}\""
            ),
        }
        for slot in slots {
            self.hide(slot)?;
        }
        Ok(())
    }
}
