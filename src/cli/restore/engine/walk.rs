//! The walk over the tree: finds what there is to restore, makes the folders, and hands the files
//! to the workers.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::SyncSender;

use super::{Closing, FirstName, Item, Job, Run, add, as_damage};
use crate::cli::restore::contents::CHUNK;
use crate::cli::restore::folder::{Folder, Identity, Made, Name, identity};
use crate::error::{Error, Kind, Result};
use crate::tree::{Attr, FileKind, FileTree, NodeId};

/// Levels of the walk whose folders stay open; those above are found again through `..`.
const OPEN_LEVELS: usize = 64;
/// Deeper than any tree that was made on purpose.
const MAX_DEPTH: usize = 16_384;
/// Entries of a folder taken at a time.
const BATCH: usize = 1024;

/// A folder the walk is in.
struct Level {
    node: NodeId,
    /// The folder of the destination, unless it was closed to save descriptors.
    folder: Option<Arc<Folder>>,
    identity: Identity,
    fresh: bool,
    closing: Arc<Closing>,
    entries: std::vec::IntoIter<(Vec<u8>, NodeId)>,
    /// Position in the folder after the entries at hand.
    after: u64,
    ended: bool,
}

/// Where the walk is, and what it has to remember.
pub(super) struct Walk<'r, 'a> {
    run: &'r Run<'a>,
    queue: SyncSender<Job>,
    levels: Vec<Level>,
    /// Folders entered: none may come twice, or a damaged image would have us walk for ever.
    seen: HashSet<NodeId>,
    links: HashMap<NodeId, FirstName>,
    buffer: Vec<u8>,
}

impl<'r, 'a> Walk<'r, 'a> {
    pub(super) fn new(run: &'r Run<'a>, queue: SyncSender<Job>) -> Self {
        let (levels, seen, links) = (Vec::new(), HashSet::new(), HashMap::new());
        Self { run, queue, levels, seen, links, buffer: vec![0; CHUNK] }
    }

    /// Everything asked for. An error ends the whole restore.
    pub(super) fn all(&mut self, items: &[Item]) -> Result<()> {
        let partials = self.run.root.partials()?;
        let closing = Arc::new(Closing {
            attr: None,
            path: Vec::new(),
            partials,
            pending: AtomicUsize::new(1),
        });
        for item in items {
            let root = Arc::clone(&self.run.root);
            match &item.name {
                Some(name) => {
                    self.entry(&root, &closing, name, item.node);
                }
                None => {
                    // The walk of this level counts as one more thing to do in the destination.
                    closing.pending.fetch_add(1, Ordering::AcqRel);
                    self.seen.insert(item.node);
                    self.push(item.node, root, Arc::clone(&closing));
                }
            }
            self.drain()?;
        }
        self.run.leave(&self.run.root, &closing);
        Ok(())
    }

    fn push(&mut self, node: NodeId, folder: Arc<Folder>, closing: Arc<Closing>) {
        self.levels.push(Level {
            node,
            identity: folder.identity(),
            fresh: folder.is_fresh(),
            folder: Some(folder),
            closing,
            entries: Vec::new().into_iter(),
            after: 0,
            ended: false,
        });
        // The lowest level may be the destination itself, which has no way back through `..`.
        let above = self.levels.len().checked_sub(OPEN_LEVELS).filter(|&index| index > 0);
        if let Some(level) = above.and_then(|index| self.levels.get_mut(index)) {
            level.folder = None;
        }
    }

    /// Walks until the stack is empty.
    fn drain(&mut self) -> Result<()> {
        while let Some(level) = self.levels.last_mut() {
            if self.run.stop.is_asked() {
                self.levels.clear();
                break;
            }
            let Some(folder) = level.folder.clone() else {
                return Err(Error::new(Kind::Io, "the folder above is not open"));
            };
            let closing = Arc::clone(&level.closing);
            match level.next(self.run.tree) {
                Ok(Some((name, node))) => self.entry(&folder, &closing, &name, node),
                Ok(None) => self.pop()?,
                Err(error) => {
                    level.ended = true;
                    self.run.fail(&closing.path, as_damage(error));
                }
            }
        }
        Ok(())
    }

    fn pop(&mut self) -> Result<()> {
        let Some(done) = self.levels.pop() else { return Ok(()) };
        let Some(folder) = done.folder else { return Ok(()) };
        if let Some(above) = self.levels.last_mut()
            && above.folder.is_none()
        {
            // Before the folder is finished: its final mode may not let us through.
            above.folder = Some(Arc::new(folder.parent(above.identity, above.fresh)?));
        }
        self.run.leave(&folder, &done.closing);
        Ok(())
    }

    fn entry(&mut self, folder: &Arc<Folder>, closing: &Arc<Closing>, name: &[u8], node: NodeId) {
        let mut path = closing.path.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        if let Err(error) = self.try_entry(folder, closing, name, node, &path) {
            self.run.fail(&path, error);
        }
    }

    fn try_entry(
        &mut self,
        folder: &Arc<Folder>,
        closing: &Arc<Closing>,
        name: &[u8],
        node: NodeId,
        path: &[u8],
    ) -> Result<()> {
        let name = Name::new(name)?;
        let attr = self.run.tree.attr(node).map_err(as_damage)?;
        if attr.kind == FileKind::Directory {
            return self.folder(folder, &name, attr, path);
        }
        if attr.links > 1 {
            return self.linked(folder, &closing.path, &name, attr, path);
        }
        closing.pending.fetch_add(1, Ordering::AcqRel);
        let job = Job {
            folder: Arc::clone(folder),
            closing: Arc::clone(closing),
            name,
            path: path.to_vec(),
            attr,
        };
        // Workers outlive the walk, so the queue cannot be closed.
        self.queue.send(job).map_err(|_| Error::new(Kind::Io, "no worker is left"))
    }

    fn folder(&mut self, within: &Folder, name: &Name, attr: Attr, path: &[u8]) -> Result<()> {
        if !self.seen.insert(attr.node) {
            let message = "the folder is in the tree more than once";
            return Err(Error::new(Kind::Corrupt, message));
        }
        if self.levels.len() >= MAX_DEPTH {
            let message = format!("folders nested more than {MAX_DEPTH} deep");
            return Err(Error::new(Kind::Unsupported, message));
        }
        add(&self.run.progress.files, 1);
        let Made::Open(made) = within.enter(name, self.run.options.overwrite)? else {
            return Err(Error::new(Kind::Exists, "a file has the name of this folder"));
        };
        let partials = if made.is_fresh() {
            add(&self.run.tally.folders, 1);
            Vec::new()
        } else {
            add(&self.run.tally.already_there, 1);
            made.partials()?
        };
        let closing = Closing {
            attr: Some(attr),
            path: path.to_vec(),
            partials,
            pending: AtomicUsize::new(1),
        };
        self.push(attr.node, Arc::new(made), Arc::new(closing));
        Ok(())
    }

    /// A file with several names: the first is restored at once, the others are linked to it.
    fn linked(
        &mut self,
        folder: &Folder,
        folder_path: &[u8],
        name: &Name,
        attr: Attr,
        path: &[u8],
    ) -> Result<()> {
        let run = self.run;
        let vacant = match self.links.entry(attr.node) {
            Entry::Vacant(vacant) => vacant,
            Entry::Occupied(mut first) => {
                run.link(folder, name, &attr, first.get())?;
                first.get_mut().left -= 1;
                if first.get().left == 0 {
                    first.remove();
                }
                return Ok(());
            }
        };
        if run.file(folder, name, path, &attr, &mut self.buffer)
            && let Some(stat) = folder.stat(name)?
        {
            vacant.insert(FirstName {
                folder: folder_path.to_vec(),
                name: name.clone(),
                identity: identity(&stat),
                left: attr.links - 1,
            });
        }
        Ok(())
    }
}

impl Level {
    fn next(&mut self, tree: &dyn FileTree) -> Result<Option<(Vec<u8>, NodeId)>> {
        loop {
            if let Some(entry) = self.entries.next() {
                return Ok(Some(entry));
            }
            if self.ended {
                return Ok(None);
            }
            let mut batch = Vec::new();
            let mut after = self.after;
            let mut full = false;
            tree.read_dir(self.node, after, &mut |entry| {
                full = batch.len() >= BATCH;
                if !full {
                    batch.push((entry.name.to_vec(), entry.node));
                    after = entry.next;
                }
                !full
            })?;
            self.ended = !full;
            self.after = after;
            self.entries = batch.into_iter();
        }
    }
}
