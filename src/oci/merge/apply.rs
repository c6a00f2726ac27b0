//! Layers applied one on the other: the OCI image specification's `layer.md`, "Applying Changesets".
//!
//! A layer is applied in this order, so that the place of a whiteout among its entries does not
//! matter: whiteouts hide what the layers below have; the entries are put in place, in the order of
//! the tar; hard links whose target came later are bound; whiteouts that lie behind symbolic links
//! hide what the layers below have there.

use std::collections::HashMap;

use super::cause::Cause;
use super::files::{Body, Node, Xattrs};
use super::links::Waiting;
use super::names::{Key, NONE, Names};
use super::way::Way;
use super::whiteouts::is_whiteout;
use super::{LayerNumbers, LayerPart, Reading};
use crate::error::{Result, ResultExt};
use crate::oci::tar::{Entry, EntryKind, Run};
use crate::tree::Time;

/// Bytes of paths that are held while a layer is applied at most.
const MOST_HELD: u64 = 256 << 20;

/// Layers being applied.
pub(super) struct Applying<'a> {
    pub(super) parts: &'a [LayerPart],
    pub(super) reading: Reading,
    pub(super) nodes: Vec<Node>,
    pub(super) names: Names,
    pub(super) way: Way,
    pub(super) runs: Vec<Run>,
    pub(super) xattrs: Vec<Xattrs>,
    pub(super) xattrs_known: HashMap<Xattrs, u32>,
    /// The layer being applied, and its newest time.
    pub(super) layer: u16,
    newest: Time,
    /// Hard links whose targets are still to come.
    pub(super) waiting: Vec<Waiting>,
    /// Bytes of paths held for this layer.
    held: u64,
    /// Names walked and looked at, of all that an honest image could need.
    steps: u64,
    most_steps: u64,
    most_nodes: u64,
    pub(super) numbers: Vec<LayerNumbers>,
    pub(super) wasted: u64,
}

impl<'a> Applying<'a> {
    pub(super) fn new(parts: &'a [LayerPart], reading: Reading) -> Result<Self> {
        if parts.len() >= usize::from(u16::MAX) {
            return Err(Cause::Layers(parts.len(), usize::from(u16::MAX) - 1).into());
        }
        let entries: usize = parts.iter().map(|part| part.index.likely_entries()).sum();
        let claimed: u64 = parts.iter().map(|part| part.index.entry_count()).sum();
        let newest = parts.first().map(|part| part.index.newest()).unwrap_or_default();
        let mut applying = Self {
            parts,
            reading,
            nodes: Vec::with_capacity(entries + 1),
            names: Names::new(entries),
            way: Way::default(),
            runs: Vec::new(),
            xattrs: vec![Xattrs::new()],
            xattrs_known: HashMap::new(),
            layer: 0,
            newest,
            waiting: Vec::new(),
            held: 0,
            steps: 0,
            most_steps: claimed.saturating_mul(64).saturating_add(1 << 22),
            most_nodes: claimed.saturating_mul(4).saturating_add(1 << 17).min(u64::from(NONE)),
            numbers: Vec::new(),
            wasted: 0,
        };
        applying.nodes.push(applying.made_up());
        Ok(applying)
    }

    /// Applies the next layer.
    pub(super) fn apply(&mut self, part: &LayerPart) -> Result<()> {
        let index = &*part.index;
        if part.data.len() != index.facts().tar_len {
            return Err(Cause::Data(part.data.len(), index.facts().tar_len).into());
        }
        // No more layers than fit.
        self.layer = self.numbers.len() as u16;
        self.held = 0;
        self.newest = index.newest();
        self.numbers.push(LayerNumbers {
            entries: index.entry_count(),
            whiteouts: index.whiteout_count(),
            ..LayerNumbers::default()
        });
        let merging = self.reading != Reading::AsItIs;
        let hides = merging && index.whiteout_count() > 0;
        let binds = merging && self.layer > 0 && index.link_count() > 0;
        let below = if binds { self.bind(index)? } else { Vec::new() };
        let late = if hides { self.whiteouts(index)? } else { Vec::new() };
        let mut below = below.into_iter();
        let mut entries = index.entries()?;
        while let Some(entry) = entries.next()? {
            if hides && is_whiteout(&entry.path) {
                continue;
            }
            let is_link = matches!(entry.kind, EntryKind::HardLink(_));
            let bound = if is_link { below.next().unwrap_or(NONE) } else { NONE };
            self.entry(entry, bound).within(|| shown(&entry.path))?;
        }
        self.bind_waiting()?;
        for path in late {
            self.late(&path).map_err(|cause| cause.at(&path))?;
        }
        self.way.clear();
        Ok(())
    }

    /// One step of work that the image chose.
    pub(super) fn step(&mut self) -> Result<(), Cause> {
        self.steps += 1;
        if self.steps > self.most_steps {
            return Err(Cause::Budget(self.most_steps, "steps to merge the layers"));
        }
        Ok(())
    }

    /// So many bytes more are held until the layer is applied.
    pub(super) fn hold(&mut self, bytes: usize) -> Result<(), Cause> {
        self.held = self.held.saturating_add(bytes as u64);
        if self.held > MOST_HELD {
            return Err(Cause::Budget(MOST_HELD, "bytes of links and whiteouts held"));
        }
        Ok(())
    }

    /// What has `name` in `folder`, or [`NONE`].
    pub(super) fn child(&self, folder: u32, name: &[u8]) -> u32 {
        let slot = self.names.find(self.names.key(folder, name));
        self.holder(slot)
    }

    /// What has the name of a slot, or [`NONE`].
    fn holder(&self, slot: Option<u32>) -> u32 {
        slot.and_then(|slot| self.names.slot(slot)).map_or(NONE, |slot| slot.node)
    }

    pub(super) fn body(&self, node: u32) -> Body {
        self.nodes.get(node as usize).map_or(Body::Waiting, |node| node.body)
    }

    /// A folder that no entry tells of: 0755, root's, as old as the newest entry of the layer.
    fn made_up(&self) -> Node {
        Node {
            seconds: self.newest.seconds,
            nanos: self.newest.nanos,
            uid: 0,
            gid: 0,
            xattrs: 0,
            links: 0,
            mode: 0o755,
            layer: self.layer,
            body: Body::Folder { first: NONE, count: 0 },
        }
    }

    pub(super) fn make_up(&mut self, folder: u32, name: &[u8]) -> Result<u32, Cause> {
        if name.len() > 255 {
            return Err(Cause::Parent(String::from_utf8_lossy(name).into_owned()));
        }
        let node = self.add_node(self.made_up())?;
        self.put(folder, name, node)?;
        Ok(node)
    }

    pub(super) fn add_node(&mut self, node: Node) -> Result<u32, Cause> {
        let number = self.nodes.len() as u32;
        if u64::from(number) >= self.most_nodes {
            return Err(Cause::Budget(self.most_nodes, "files and folders made up on their way"));
        }
        self.nodes.push(node);
        Ok(number)
    }

    fn entry(&mut self, entry: &Entry, bound: u32) -> Result<()> {
        if entry.path.is_empty() {
            if entry.kind != EntryKind::Folder {
                return Err(Cause::Root.into());
            }
            let node = self.node(entry, Body::Fifo);
            self.replace_attributes(0, node);
            return Ok(());
        }
        let (parent, name) = split(&entry.path);
        let folder = self.folder(parent)?;
        let body = match &entry.kind {
            EntryKind::HardLink(target) => {
                return Ok(self.link(entry, (folder, name), target, bound)?);
            }
            EntryKind::File => self.contents(entry)?,
            EntryKind::Symlink(target) => {
                // At most 4095.
                let len = target.len() as u32;
                Body::Symlink { text: self.names.text.add_bytes(target)?, len }
            }
            EntryKind::Folder => Body::Folder { first: NONE, count: 0 },
            EntryKind::Fifo => Body::Fifo,
            EntryKind::CharDevice(device) => Body::CharDevice(*device),
            EntryKind::BlockDevice(device) => Body::BlockDevice(*device),
        };
        let node = self.node(entry, body);
        if let Some(numbers) = self.numbers.last_mut() {
            numbers.bytes = numbers.bytes.saturating_add(stored(&node.body, &self.runs));
        }
        let key = self.names.key(folder, name);
        let slot = self.names.find(key);
        let there = self.holder(slot);
        let is_folder = |body| matches!(body, Body::Folder { .. });
        if is_folder(body) && there != NONE && is_folder(self.body(there)) {
            self.replace_attributes(there, node);
            if let Some(slot) = slot.and_then(|slot| self.names.slot_mut(slot)) {
                slot.layer = self.layer;
            }
            return Ok(());
        }
        let node = self.add_node(node)?;
        Ok(self.put_in(slot, key, node)?)
    }

    pub(super) fn node(&mut self, entry: &Entry, body: Body) -> Node {
        let xattrs = if entry.xattrs.is_empty() {
            0
        } else if let Some(&known) = self.xattrs_known.get(&entry.xattrs) {
            known
        } else {
            let number = self.xattrs.len() as u32;
            self.xattrs.push(entry.xattrs.clone());
            self.xattrs_known.insert(entry.xattrs.clone(), number);
            number
        };
        Node {
            seconds: entry.modified.seconds,
            nanos: entry.modified.nanos,
            uid: entry.uid,
            gid: entry.gid,
            xattrs,
            links: 0,
            mode: entry.mode,
            layer: self.layer,
            body,
        }
    }

    /// Gives a folder that is there the attributes of another; what is in it stays.
    fn replace_attributes(&mut self, folder: u32, from: Node) {
        if let Some(node) = self.nodes.get_mut(folder as usize) {
            *node = Node { links: node.links, body: node.body, ..from };
        }
    }

    fn contents(&mut self, entry: &Entry) -> Result<Body, Cause> {
        match entry.runs.as_slice() {
            [] if entry.size == 0 => Ok(Body::File { size: 0, place: 0 }),
            [run] if run.at == 0 && run.len == entry.size => {
                Ok(Body::File { size: entry.size, place: run.place })
            }
            runs => {
                // A layer has 2^22 of them at most.
                let fault = Cause::Budget(u32::MAX.into(), "pieces of sparse files");
                let first = u32::try_from(self.runs.len()).map_err(|_| fault)?;
                self.runs.extend_from_slice(runs);
                Ok(Body::Sparse { size: entry.size, first, count: runs.len() as u32 })
            }
        }
    }

    /// Gives `name` in `folder` to `node`, and takes it from what has it.
    pub(super) fn put(&mut self, folder: u32, name: &[u8], node: u32) -> Result<(), Cause> {
        let key = self.names.key(folder, name);
        self.put_in(self.names.find(key), key, node)
    }

    /// The same for a name that was found to have that slot, or none.
    fn put_in(&mut self, slot: Option<u32>, key: Key<'_>, node: u32) -> Result<(), Cause> {
        let slot = match slot {
            Some(slot) => slot,
            None => {
                let Body::Folder { first, count } = self.body(key.folder) else {
                    return Err(Cause::Root);
                };
                let slot = self.names.add(key, first)?;
                if let Some(folder) = self.nodes.get_mut(key.folder as usize) {
                    folder.body = Body::Folder { first: slot, count };
                }
                slot
            }
        };
        let before = self.holder(Some(slot));
        if before != node {
            // First, so that a link to something in the folder that it replaces keeps it.
            if let Some(node) = self.nodes.get_mut(node as usize)
                && !matches!(node.body, Body::Folder { .. })
            {
                node.links = node.links.saturating_add(1);
            }
            if before != NONE {
                self.hide(slot)?;
            }
        }
        if let Some(slot) = self.names.slot_mut(slot) {
            slot.node = node;
            slot.layer = self.layer;
        }
        Ok(())
    }
}

/// Bytes that the contents of a file take in the tar.
pub(super) fn stored(body: &Body, runs: &[Run]) -> u64 {
    match *body {
        Body::File { size, .. } => size,
        Body::Sparse { first, count, .. } => {
            runs.iter().skip(first as usize).take(count as usize).map(|run| run.len).sum()
        }
        _ => 0,
    }
}

/// The folder that a path in its plain form lies in, and its name there.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memrchr(b'/', path) {
        Some(slash) => {
            let (parent, name) = path.split_at(slash);
            (parent, name.get(1..).unwrap_or_default())
        }
        None => (&[], path),
    }
}

pub(super) fn shown(path: &[u8]) -> String {
    let path = path.get(..4096).unwrap_or(path);
    format!("/{}", String::from_utf8_lossy(path))
}
