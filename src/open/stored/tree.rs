//! A store as a tree: a folder for each series, in it one for each snapshot, named by its time, and `latest`.
//!
//! A snapshot is opened when someone first looks inside, and closed again once many others are open; who comes
//! back finds the same numbers. The list is looked at again when it is asked for and not fresh.
//!
//! A node's number has three parts: bit 63 is 0; 15 bits say in which opened disk it lies, 0 being the folders
//! and links of this tree itself; 48 bits are the number there. Those of this tree count up and are never
//! used again, so that they serve as positions in a listing, too.

mod listed;

use std::fmt;
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use super::super::view::View;
use super::super::{Opener, Reference};
use super::time_of;
use crate::block::{Extent, Origin};
use crate::error::{Error, Kind, Result};
use crate::store::{Snapshot, Store};
use crate::tree::{Attr, DirEntry, FileKind, FileTree, NodeId, StatFs, read_dir_as};

use listed::{Entry, Listed, Own};

/// How long a list of snapshots is fresh.
const FRESH: Duration = Duration::from_secs(1);

/// Disks that are open at once.
const MOST_OPEN: usize = 64;

/// Disks that can be opened one after the other: what 15 bits count.
const MOST_DISKS: usize = 0x7fff;

const INNER_BITS: u32 = 48;
const ROOT: u64 = 1;
/// The snapshots of a store.
pub(in crate::open) struct StoreTree {
    opener: Arc<Opener>,
    reference: Reference,
    store: Arc<Store>,
    view: View,
    uid: u32,
    gid: u32,
    listed: RwLock<Listed>,
    /// Held while the list is looked at, by one for all.
    listing: Mutex<Option<Instant>>,
    disks: RwLock<Vec<Arc<OpenDisk>>>,
    /// Counts what was asked of disks, to know which was asked least lately.
    clock: AtomicU64,
}

/// A disk that was entered.
#[derive(Debug)]
struct OpenDisk {
    entry: Arc<Entry>,
    number: usize,
    tree: RwLock<Option<Arc<dyn FileTree>>>,
    /// Held while it is opened, so that it is opened once.
    opening: Mutex<()>,
    /// When it was last asked.
    used: AtomicU64,
}

/// A node in its place.
enum Place {
    Own(Own),
    /// In the tree of an opened disk.
    Inner {
        disk: u16,
        tree: Arc<dyn FileTree>,
        node: NodeId,
    },
}

impl StoreTree {
    /// The tree of `store`, which `reference` names; `view` is what is shown of each snapshot.
    ///
    /// # Errors
    /// Those of listing it.
    pub(in crate::open) fn new(
        opener: &Arc<Opener>,
        reference: &Reference,
        store: Arc<Store>,
        view: View,
    ) -> Result<Self> {
        let tree = Self {
            opener: Arc::clone(opener),
            reference: reference.clone(),
            store,
            view,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            listed: RwLock::new(Listed::new()),
            listing: Mutex::new(None),
            disks: RwLock::default(),
            clock: AtomicU64::new(0),
        };
        tree.look()?;
        *tree.listing.lock() = Some(Instant::now());
        Ok(tree)
    }

    /// Looks at the list again unless it is fresh. What is wrong is told; the list stays as it is then.
    fn refresh(&self) {
        // Whoever comes while another looks takes what is known.
        let Some(mut last) = self.listing.try_lock() else { return };
        if last.is_some_and(|last| last.elapsed() < FRESH) {
            return;
        }
        if let Err(error) = self.look() {
            log::warn!("{error}: its snapshots are shown as they were");
        }
        *last = Some(Instant::now());
    }

    fn look(&self) -> Result<()> {
        let there = self.store.snapshot_ids()?;
        let (new, gone) = self.listed.read().compare(&there);
        if new.is_empty() && gone.is_empty() {
            return Ok(());
        }
        let mut found = Vec::new();
        let mut damaged = Vec::new();
        for (id, read) in self.store.read_snapshots(&new) {
            match read {
                Ok(snapshot) => found.push(snapshot),
                // Removed since.
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) if error.kind() == Kind::Corrupt => {
                    log::error!("{error}: not shown");
                    damaged.push(id);
                }
                Err(error) => return Err(error),
            }
        }
        self.listed.write().update(found, &damaged, &gone);
        Ok(())
    }

    fn place(&self, node: NodeId) -> Result<Place> {
        let disk = (node.0 >> INNER_BITS) as u16;
        if disk == 0 {
            let own = self.listed.read().own(node.0).cloned();
            return own.map(Place::Own).ok_or_else(gone);
        }
        let tree = self.tree(disk)?;
        Ok(Place::Inner { disk, tree, node: unpack(node.0 & ((1 << INNER_BITS) - 1)) })
    }

    /// The place whose entries the folder `dir` shows.
    fn enter(&self, dir: NodeId) -> Result<Place> {
        let (entry, number) = match self.place(dir)? {
            Place::Own(Own::Snapshot(entry)) if entry.entered.len() == 1 => (entry, 0),
            Place::Own(Own::Disk(entry, number)) => (entry, number),
            other => return Ok(other),
        };
        let disk = self.number(&entry, number)?;
        let tree = self.tree(disk)?;
        let node = tree.root();
        Ok(Place::Inner { disk, tree, node })
    }

    /// The number that a disk of a snapshot has, or gets.
    fn number(&self, entry: &Arc<Entry>, number: usize) -> Result<u16> {
        let slot = entry.entered.get(number).ok_or_else(gone)?;
        if let Some(disk) = slot.get() {
            return Ok(*disk);
        }
        let mut disks = self.disks.write();
        if disks.len() >= MOST_DISKS && slot.get().is_none() {
            let message = format!("more than {MOST_DISKS} snapshots were entered");
            return Err(Error::new(Kind::Unsupported, message).with_hint("mount it again"));
        }
        Ok(*slot.get_or_init(|| {
            disks.push(Arc::new(OpenDisk {
                entry: Arc::clone(entry),
                number,
                tree: RwLock::default(),
                opening: Mutex::default(),
                used: AtomicU64::new(0),
            }));
            disks.len() as u16
        }))
    }

    /// The tree of a disk that was entered, opened again if it was closed.
    fn tree(&self, disk: u16) -> Result<Arc<dyn FileTree>> {
        let found = self.disks.read().get(usize::from(disk).wrapping_sub(1)).cloned();
        let disk = found.ok_or_else(gone)?;
        disk.used.store(self.clock.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        if let Some(tree) = &*disk.tree.read() {
            return Ok(Arc::clone(tree));
        }
        let _opening = disk.opening.lock();
        if let Some(tree) = &*disk.tree.read() {
            return Ok(Arc::clone(tree));
        }
        let tree = self.open(&disk)?;
        *disk.tree.write() = Some(Arc::clone(&tree));
        self.close_others(&disk);
        Ok(tree)
    }

    fn open(&self, disk: &OpenDisk) -> Result<Arc<dyn FileTree>> {
        let OpenDisk { entry, number, .. } = disk;
        let Snapshot { id, record } = &entry.snapshot;
        let one = record.disks.get(*number).ok_or_else(gone)?;
        let name = match record.disks.len() {
            1 => id.to_string(),
            _ => format!("{id}/{}", one.name),
        };
        let reference =
            Reference { path: self.reference.path.clone(), snapshot: Some(name.clone()) };
        let disk = self.opener.disk_of(
            Arc::clone(&self.store),
            entry.snapshot.clone(),
            one.clone(),
            None,
        )?;
        let shown = super::super::view::show_disk(&self.opener, &reference, disk, self.view)?;
        for warning in &shown.warnings {
            log::warn!("{}::{name}: {warning}", self.reference.path.display());
        }
        Ok(shown.tree.files())
    }

    /// Closes the disk that was asked least lately if many are open. Whoever is at work in it stays there.
    fn close_others(&self, but: &Arc<OpenDisk>) {
        let disks = self.disks.read().clone();
        let open = disks.iter().filter(|disk| disk.tree.read().is_some());
        let mut open: Vec<_> = open.filter(|disk| !Arc::ptr_eq(disk, but)).collect();
        if open.len() < MOST_OPEN {
            return;
        }
        open.sort_by_key(|disk| disk.used.load(Ordering::Relaxed));
        if let Some(oldest) = open.first() {
            oldest.tree.write().take();
        }
    }

    fn own_attr(&self, node: NodeId, own: &Own) -> Attr {
        let (time, folders) = self.listed.read().told(own);
        let (kind, mode, size) = match own {
            Own::Link(target, _) => (FileKind::Symlink, 0o777, target.len()),
            _ => (FileKind::Directory, 0o755, 0),
        };
        let time = time_of(time);
        Attr {
            node,
            kind,
            mode,
            uid: self.uid,
            gid: self.gid,
            links: if kind == FileKind::Directory { 2 + folders as u32 } else { 1 },
            size: size as u64,
            blocks: 0,
            accessed: time,
            modified: time,
            changed: time,
            created: None,
        }
    }

    fn own_lookup(&self, own: &Own, name: &[u8]) -> Result<Option<NodeId>> {
        match own {
            Own::Root | Own::Series(_) => self.refresh(),
            Own::Snapshot(_) | Own::Disk(..) => {}
            Own::Link(..) => return Err(no_folder()),
        }
        Ok(self.listed.read().find(own, name).map(NodeId))
    }

    fn own_list(
        &self,
        own: &Own,
        after: u64,
        emit: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<()> {
        match own {
            Own::Root | Own::Series(_) if after == 0 => self.refresh(),
            Own::Link(..) => return Err(no_folder()),
            _ => {}
        }
        // Not held while `emit` runs, which may ask for attributes.
        let entries = self.listed.read().entries(own, after);
        for (name, node, next) in entries {
            if !emit(DirEntry { name: &name, node: NodeId(node), next }) {
                break;
            }
        }
        Ok(())
    }
}

fn gone() -> Error {
    Error::new(Kind::NotFound, "no such snapshot any more")
}

fn no_folder() -> Error {
    Error::new(Kind::NotADirectory, "is no folder")
}

/// Bits of a number within the first member of a combined tree, and within the others.
const FIRST_BITS: u32 = 47;
const OTHER_BITS: u32 = 40;

/// A node of a disk's tree in 48 bits. Combined trees number their members in the upper 16 bits, of which
/// the files of one disk use few.
fn pack(node: NodeId) -> Result<u64> {
    let (member, inner) = (node.0 >> INNER_BITS, node.0 & ((1 << INNER_BITS) - 1));
    match member {
        0 if inner >> FIRST_BITS == 0 => Ok(inner),
        1..=0x7f if inner >> OTHER_BITS == 0 => Ok(1 << FIRST_BITS | member << OTHER_BITS | inner),
        _ => Err(Error::new(Kind::Unsupported, format!("node {:#x} in a store's tree", node.0))),
    }
}

fn unpack(packed: u64) -> NodeId {
    if packed >> FIRST_BITS == 0 {
        return NodeId(packed);
    }
    let member = packed >> OTHER_BITS & 0x7f;
    NodeId(member << INNER_BITS | packed & ((1 << OTHER_BITS) - 1))
}

fn join(disk: u16, node: NodeId) -> Result<NodeId> {
    Ok(NodeId(u64::from(disk) << INNER_BITS | pack(node)?))
}

impl FileTree for StoreTree {
    fn root(&self) -> NodeId {
        NodeId(ROOT)
    }

    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>> {
        match self.enter(dir)? {
            Place::Own(own) => self.own_lookup(&own, name),
            Place::Inner { disk, tree, node } => {
                tree.lookup(node, name)?.map(|node| join(disk, node)).transpose()
            }
        }
    }

    fn attr(&self, node: NodeId) -> Result<Attr> {
        match self.place(node)? {
            Place::Own(own) => Ok(self.own_attr(node, &own)),
            Place::Inner { tree, node: inner, .. } => Ok(Attr { node, ..tree.attr(inner)? }),
        }
    }

    fn read_dir(
        &self,
        dir: NodeId,
        after: u64,
        emit: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<()> {
        let (disk, tree, node) = match self.enter(dir)? {
            Place::Own(own) => return self.own_list(&own, after, emit),
            Place::Inner { disk, tree, node } => (disk, tree, node),
        };
        read_dir_as(&*tree, node, after, &|node| join(disk, node), emit)
    }

    fn read_link(&self, node: NodeId) -> Result<Vec<u8>> {
        match self.place(node)? {
            Place::Own(Own::Link(target, _)) => Ok(target.to_vec()),
            Place::Own(_) => Err(Error::new(Kind::Usage, "is no symbolic link")),
            Place::Inner { tree, node, .. } => tree.read_link(node),
        }
    }

    fn read_at(&self, node: NodeId, offset: u64, buf: &mut [u8]) -> Result<usize> {
        match self.place(node)? {
            Place::Own(_) => Err(Error::new(Kind::IsADirectory, "is no file")),
            Place::Inner { tree, node, .. } => tree.read_at(node, offset, buf),
        }
    }

    fn extent_at(&self, node: NodeId, offset: u64) -> Result<Extent> {
        match self.place(node)? {
            Place::Own(_) => Err(Error::new(Kind::IsADirectory, "is no file")),
            Place::Inner { tree, node, .. } => tree.extent_at(node, offset),
        }
    }

    fn origin_at(&self, node: NodeId, offset: u64) -> Result<Origin> {
        match self.place(node)? {
            Place::Own(_) => Err(Error::new(Kind::IsADirectory, "is no file")),
            Place::Inner { tree, node, .. } => tree.origin_at(node, offset),
        }
    }

    fn xattr_names(&self, node: NodeId) -> Result<Vec<Vec<u8>>> {
        match self.place(node)? {
            Place::Own(_) => Ok(Vec::new()),
            Place::Inner { tree, node, .. } => tree.xattr_names(node),
        }
    }

    fn xattr(&self, node: NodeId, name: &[u8]) -> Result<Option<Vec<u8>>> {
        match self.place(node)? {
            Place::Own(_) => Ok(None),
            Place::Inner { tree, node, .. } => tree.xattr(node, name),
        }
    }

    fn statfs(&self) -> Result<StatFs> {
        Ok(StatFs {
            block_size: 4096,
            blocks: 0,
            free: 0,
            available: 0,
            files: self.listed.read().len() as u64,
            files_free: 0,
            name_max: 255,
        })
    }

    fn whole_file(&self, _node: NodeId) -> Option<&File> {
        None
    }

    fn lifetime(&self, node: NodeId) -> Option<Duration> {
        if node.0 >> INNER_BITS != 0 {
            return None;
        }
        match self.listed.read().own(node.0) {
            Some(Own::Snapshot(_) | Own::Disk(..) | Own::Link(..)) => None,
            Some(Own::Root | Own::Series(_)) | None => Some(FRESH),
        }
    }
}

impl fmt::Debug for StoreTree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreTree").field("store", &self.reference.path).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
