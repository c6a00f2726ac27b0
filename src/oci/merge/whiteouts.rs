//! Whiteouts, and hiding what has a name.

use super::apply::{Applying, split, stored};
use super::cause::Cause;
use super::files::{Body, GONE};
use super::names::NONE;
use super::way::Literal;
use crate::error::Result;
use crate::oci::layer::Layer;
use crate::oci::tar::{OPAQUE, WHITEOUT};

impl Applying<'_> {
    /// Hides what the whiteouts of the layer name below it. Those whose folder is not there as
    /// written, in the layers below, are left for later.
    pub(super) fn whiteouts(&mut self, index: &Layer) -> Result<Vec<Vec<u8>>> {
        let mut late = Vec::new();
        let mut entries = index.entries()?;
        while let Some(entry) = entries.next()? {
            let path = &entry.path;
            let Some((parent, what)) = whiteout(path).map_err(|cause| cause.at(path))? else {
                continue;
            };
            let Literal::Folder(folder) = self.literal(parent, false)? else {
                self.hold(path.len() + size_of::<Vec<u8>>())?;
                late.push(path.clone());
                continue;
            };
            match what {
                Whiteout::Name(name) => {
                    if let Some(slot) = self.names.find(self.names.key(folder, name)) {
                        self.hide(slot)?;
                    }
                }
                Whiteout::All => {
                    for slot in self.slots_of(folder)? {
                        self.hide(slot)?;
                    }
                }
            }
        }
        Ok(late)
    }

    /// Hides what a whiteout names that lies behind symbolic links, or in a folder that came with
    /// this layer: only what has its name from a layer below.
    pub(super) fn late(&mut self, path: &[u8]) -> Result<(), Cause> {
        let Some((parent, what)) = whiteout(path)? else { return Ok(()) };
        let Some(folder) = self.folder_if_there(parent)? else { return Ok(()) };
        let slots = match what {
            Whiteout::Name(name) => {
                self.names.find(self.names.key(folder, name)).into_iter().collect()
            }
            Whiteout::All => self.slots_of(folder)?,
        };
        // Folders before what is in them, each with the one it is in.
        let mut found: Vec<(u32, usize)> =
            slots.into_iter().map(|slot| (slot, NO_FOLDER)).collect();
        let mut next = 0;
        while let Some(&(slot, _)) = found.get(next) {
            self.step()?;
            let node = self.names.slot(slot).map_or(NONE, |slot| slot.node);
            if node != NONE && matches!(self.body(node), Body::Folder { .. }) {
                found.extend(self.slots_of(node)?.into_iter().map(|slot| (slot, next)));
            }
            next += 1;
        }
        let mut stays = vec![false; found.len()];
        for (index, &(slot, within)) in found.iter().enumerate().rev() {
            let Some(named) = self.names.slot(slot).filter(|slot| slot.node != NONE) else {
                continue;
            };
            if named.layer == self.layer || stays.get(index).copied().unwrap_or_default() {
                if let Some(folder) = stays.get_mut(within) {
                    *folder = true;
                }
            } else {
                self.hide(slot)?;
            }
        }
        Ok(())
    }

    fn slots_of(&mut self, folder: u32) -> Result<Vec<u32>, Cause> {
        let mut slots = Vec::new();
        let Body::Folder { first, .. } = self.body(folder) else { return Ok(slots) };
        let mut next = first;
        while let Some(slot) = self.names.slot(next) {
            slots.push(next);
            next = slot.next;
            self.step()?;
        }
        Ok(slots)
    }

    /// Takes a name from what has it, with all there is in it if it is a folder.
    pub(super) fn hide(&mut self, slot: u32) -> Result<(), Cause> {
        let mut hidden = vec![slot];
        while let Some(number) = hidden.pop() {
            self.step()?;
            let Some(slot) = self.names.slot_mut(number) else { continue };
            let (node, layer) = (std::mem::replace(&mut slot.node, NONE), slot.layer);
            let Some(found) = self.nodes.get_mut(node as usize) else { continue };
            let is_below = layer != self.layer;
            let mut bytes = 0;
            match found.body {
                Body::Folder { .. } => {
                    found.links = GONE;
                    self.way.clear();
                    hidden.extend(self.slots_of(node)?);
                }
                body => {
                    if matches!(body, Body::Symlink { .. }) {
                        self.way.clear();
                    }
                    found.links = found.links.saturating_sub(1);
                    if found.links == 0 {
                        bytes = stored(&body, &self.runs);
                    }
                }
            }
            self.wasted = self.wasted.saturating_add(bytes);
            if let Some(numbers) = self.numbers.last_mut().filter(|_| is_below) {
                numbers.hidden_entries += 1;
                numbers.hidden_bytes = numbers.hidden_bytes.saturating_add(bytes);
            }
        }
        Ok(())
    }
}

/// In no folder that is looked at.
const NO_FOLDER: usize = usize::MAX;

/// What a whiteout hides in its folder.
enum Whiteout<'a> {
    Name(&'a [u8]),
    All,
}

/// The folder of the whiteout at `path` and what it hides there, if it is one. By its name: it may
/// be of any type.
fn whiteout(path: &[u8]) -> Result<Option<(&[u8], Whiteout<'_>)>, Cause> {
    let (parent, name) = split(path);
    let Some(hidden) = name.strip_prefix(WHITEOUT) else { return Ok(None) };
    if is_whiteout(parent) {
        return Ok(None);
    }
    if name == OPAQUE {
        return Ok(Some((parent, Whiteout::All)));
    }
    // What AUFS kept for itself, `.wh..wh.plnk` and the like, hides nothing.
    if hidden.starts_with(WHITEOUT) {
        return Ok(None);
    }
    match hidden {
        b"" | b"." | b".." => Err(Cause::Whiteout),
        name => Ok(Some((parent, Whiteout::Name(name)))),
    }
}

/// Whether a whiteout's name is in `path`: neither it nor what lies below is ever shown.
pub(super) fn is_whiteout(path: &[u8]) -> bool {
    let is_start = |at: usize| at == 0 || path.get(at - 1) == Some(&b'/');
    memchr::memmem::find_iter(path, WHITEOUT).any(is_start)
}
