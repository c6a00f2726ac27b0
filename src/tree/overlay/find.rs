//! Finding files: by name in the merged view, and in the upper by where they are.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{self, Stat};
use rustix::io::Errno;

use super::host::{self, Host};
use super::node::{ABOVE, Form, Node, Place};
use super::owner::Owner;
use super::{Overlay, Still, too_high};
use crate::error::{Error, Kind, Result};
use crate::tree::{FileKind, NodeId};

/// What the upper has of a name.
pub(super) enum Above {
    Nothing,
    /// It hides the lower's.
    Whiteout,
    File(File, Stat),
}

pub(super) fn form(kind: FileKind) -> Form {
    match kind {
        FileKind::Directory => Form::Folder,
        FileKind::Regular => Form::Regular,
        FileKind::Symlink => Form::Symlink,
        _ => Form::Special,
    }
}

impl Overlay {
    /// A handle on a file that is in the upper.
    pub(super) fn handle(&self, node: &Arc<Node>, _still: &impl Still) -> Result<Arc<File>> {
        let mut way = Vec::new();
        let mut at = Arc::clone(node);
        let mut handle = loop {
            let place = {
                let state = at.state.lock();
                if let Some(pinned) = &state.pinned {
                    break Arc::clone(pinned);
                }
                state.place.clone()
            };
            if let Some(handle) = self.handles.get(&at.id) {
                break handle;
            }
            match place {
                Place::Entry(parent, name) => {
                    way.push((at.id, name));
                    at = parent;
                }
                Place::Index => {
                    let found = match (&self.work, at.lower) {
                        (Some(work), Some(lower)) => work.indexed(lower)?,
                        _ => None,
                    };
                    let handle = Arc::new(found.ok_or_else(|| host::errno(Errno::STALE))?);
                    self.handles.insert(at.id, Arc::clone(&handle));
                    break handle;
                }
                Place::Root | Place::Nowhere => return Err(host::errno(Errno::STALE)),
            }
        };
        while let Some((id, name)) = way.pop() {
            handle = Arc::new(host::open_path(&*handle, &name).host()?);
            self.handles.insert(id, Arc::clone(&handle));
        }
        Ok(handle)
    }

    /// What the upper has of `name` in `dir`.
    pub(super) fn above(&self, dir: &Arc<Node>, name: &[u8], still: &impl Still) -> Result<Above> {
        if !dir.is_above() {
            return Ok(Above::Nothing);
        }
        let folder = self.handle(dir, still)?;
        let file = match host::open_path(&*folder, name) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::NAMETOOLONG) => return Ok(Above::Nothing),
            Err(error) => return Err(host::errno(error)),
        };
        let stat = fs::fstat(&file).host()?;
        let is_whiteout = match host::kind(&stat) {
            FileKind::CharDevice(device) => device.major == 0 && device.minor == 0,
            FileKind::Regular if stat.st_size == 0 && dir.lower.is_some() => {
                host::get_xattr(&file, self.marks.whiteout.as_bytes())?.is_some()
            }
            _ => false,
        };
        Ok(if is_whiteout { Above::Whiteout } else { Above::File(file, stat) })
    }

    /// The file `name` of the folder `dir` in the merged view.
    pub(super) fn find(
        &self,
        dir: &Arc<Node>,
        name: &[u8],
        still: &impl Still,
    ) -> Result<Option<Arc<Node>>> {
        match self.above(dir, name, still)? {
            Above::Whiteout => Ok(None),
            Above::File(file, stat) => self.meet_above(dir, name, file, &stat).map(Some),
            Above::Nothing => match self.lower_entry(dir, name)? {
                Some(id) => self.meet_below(dir, name, id).map(Some),
                None => Ok(None),
            },
        }
    }

    /// The lower's file `name` in the folder that `dir` is merged with.
    pub(super) fn lower_entry(&self, dir: &Node, name: &[u8]) -> Result<Option<NodeId>> {
        match dir.lower {
            Some(folder) if !dir.state.lock().gone => self.lower.lookup(folder, name),
            _ => Ok(None),
        }
    }

    /// The node of what was found in the upper.
    fn meet_above(
        &self,
        dir: &Arc<Node>,
        name: &[u8],
        file: File,
        stat: &Stat,
    ) -> Result<Arc<Node>> {
        let place = Place::Entry(Arc::clone(dir), name.into());
        let kind = Owner::read(self.marks, &file, stat)?.kind;
        let form = form(kind);
        // Not only in folders marked impure: the kernel marks none for files whose origin it does not
        // record, and yet leaves their data in the lower.
        let may_be_marked = match form {
            Form::Folder | Form::Regular => true,
            _ => dir.lower.is_some() || dir.state.lock().impure,
        };
        let seen =
            if may_be_marked { self.marks.read(&file)? } else { super::marks::Seen::default() };
        let merges = match form {
            Form::Folder => !seen.opaque,
            Form::Regular => seen.metacopy,
            _ => false,
        };
        let lower = if merges {
            let found = match &seen.redirect {
                Some(path) if path.starts_with(b"/") => self.at_lower_path(path)?,
                Some(name) => self.lower_entry(dir, name)?,
                None => self.lower_entry(dir, name)?,
            };
            match found {
                Some(id) if super::find::form(self.lower.attr(id)?.kind) == form => Some(id),
                _ => None,
            }
        } else {
            None
        };
        if seen.metacopy && lower.is_none() && form == Form::Regular {
            let message = format!("the data of \"{}\" are not in the lower", name.escape_ascii());
            return Err(Error::new(Kind::Corrupt, message));
        }
        let own = NodeId(ABOVE | stat.st_ino);
        let mut id = seen.node.map(NodeId).filter(|id| id.0 < ABOVE).unwrap_or(own);
        if let Some(known) = self.table.get(id)
            && known.state.lock().above != Some(stat.st_ino)
        {
            // A copy of a file, marks and all.
            id = own;
        }
        let counts = seen.links && form != Form::Folder;
        let in_index = seen.node.map(NodeId).filter(|id| counts && self.is_indexed(*id));
        if counts && in_index.is_none() && self.marks.extra_links(&file)? >= 0 {
            self.tell_of_lost_names(name);
        }
        // What the index finds a file by.
        let lower = in_index.or(lower);
        let node = self.table.get_or(id, || {
            let node = Node::new(id, lower, form, place.clone());
            let mut state = node.state.lock();
            state.above = Some(stat.st_ino);
            state.data_below = form == Form::Regular && seen.metacopy;
            state.indexed = in_index.is_some();
            state.impure = seen.impure;
            drop(state);
            node
        });
        let mut state = node.state.lock();
        state.place = if state.indexed { Place::Index } else { place };
        let unpinned = state.pinned.take();
        drop(state);
        drop(unpinned);
        if self.handles.get(&id).is_none() {
            self.handles.insert(id, Arc::new(file));
        }
        Ok(node)
    }

    fn is_indexed(&self, node: NodeId) -> bool {
        self.work.as_ref().is_some_and(|work| work.has(Some(node)))
    }

    /// Without the index the host counts the names of a file, and those that are not in the upper are lost.
    fn tell_of_lost_names(&self, name: &[u8]) {
        if !self.told_of_lost_names.swap(true, Ordering::Relaxed) {
            log::warn!(
                "the work folder has lost its index: \"{}\", and maybe more, was changed, and further names of \
                 it may show it as it is in the image",
                name.escape_ascii()
            );
        }
    }

    /// The node of what only the lower has under `name`.
    pub(super) fn meet_below(&self, dir: &Arc<Node>, name: &[u8], id: NodeId) -> Result<Arc<Node>> {
        if id.0 >= ABOVE {
            return Err(too_high(id));
        }
        let place = || Place::Entry(Arc::clone(dir), name.into());
        if let Some(node) = self.table.get(id) {
            let mut state = node.state.lock();
            if state.above.is_none() {
                state.place = place();
            }
            drop(state);
            return Ok(node);
        }
        let attr = self.lower.attr(id)?;
        let form = form(attr.kind);
        let indexed = match &self.work {
            Some(work) if attr.links > 1 && form != Form::Folder => work.indexed(id)?,
            _ => None,
        };
        let Some(file) = indexed else {
            return Ok(self.table.get_or(id, || Node::new(id, Some(id), form, place())));
        };
        let stat = fs::fstat(&file).host()?;
        let seen = self.marks.read(&file)?;
        let node = self.table.get_or(id, || {
            let node = Node::new(id, Some(id), form, Place::Index);
            let mut state = node.state.lock();
            state.above = Some(stat.st_ino);
            state.data_below = seen.metacopy;
            state.indexed = true;
            drop(state);
            node
        });
        self.handles.insert(id, Arc::new(file));
        Ok(node)
    }

    /// The lower's file at an absolute path, no link followed.
    fn at_lower_path(&self, path: &[u8]) -> Result<Option<NodeId>> {
        let mut at = self.lower.root();
        for name in path.split(|&byte| byte == b'/').filter(|name| !name.is_empty()) {
            if matches!(name, b"." | b"..") || self.lower.attr(at)?.kind != FileKind::Directory {
                return Ok(None);
            }
            match self.lower.lookup(at, name)? {
                Some(next) => at = next,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    /// Where the lower has what is merged or shown as `node`: an absolute path.
    pub(super) fn lower_path(&self, node: &Arc<Node>, still: &impl Still) -> Result<Vec<u8>> {
        let mut names: Vec<Vec<u8>> = Vec::new();
        let mut at = Arc::clone(node);
        loop {
            let (place, is_above) = {
                let state = at.state.lock();
                (state.place.clone(), state.above.is_some())
            };
            let Place::Entry(parent, name) = place else { break };
            let redirect = if is_above {
                host::get_xattr(&*self.handle(&at, still)?, self.marks.redirect.as_bytes())?
            } else {
                None
            };
            match redirect {
                Some(path) if path.starts_with(b"/") => {
                    names.push(path.get(1..).unwrap_or_default().to_vec());
                    break;
                }
                Some(name) => names.push(name),
                None => names.push(name.into_vec()),
            }
            at = parent;
        }
        Ok(names.iter().rev().flat_map(|name| [b"/", name.as_slice()].concat()).collect())
    }
}
