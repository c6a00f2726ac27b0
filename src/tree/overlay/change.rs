//! Making, linking and removing files.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::{self, AtFlags, CWD, XattrFlags};
use rustix::io::Errno;

use super::copy_up::WHITEOUT;
use super::find::{Above, form};
use super::host::{self, Host};
use super::node::{ABOVE, Form, Node, Place};
use super::owner::{Owner, open_mode};
use super::work::Work;
use super::{Alone, Overlay, acl};
use crate::error::Result;
use crate::tree::{Caller, FileKind, NewFile, NodeId};

impl Overlay {
    pub(super) fn make(
        &self,
        dir: &Arc<Node>,
        name: &[u8],
        new: &NewFile<'_>,
        caller: &Caller,
    ) -> Result<Arc<Node>> {
        let (work, alone) = self.change()?;
        if new.kind == WHITEOUT {
            return Err(host::errno(Errno::PERM));
        }
        let covered = self.vacant(dir, name, &alone)?;
        self.raise(dir, work, &alone)?;
        let folder = self.handle(dir, &alone)?;
        let above = fs::fstat(&*folder).host()?;
        let parent = Owner::read(self.marks, &folder, &above)?;
        let default = match new.kind {
            FileKind::Symlink => None,
            _ => self.default_acl(dir, &folder)?,
        };
        let (mut mode, access) = match &default {
            Some(default) => acl::inherit(default, new.mode & 0o7777),
            None => (new.mode & 0o7777 & !caller.umask, None),
        };
        let mut owner = Owner { uid: caller.uid, gid: caller.gid, mode, kind: new.kind };
        if parent.mode & 0o2000 != 0 {
            owner.gid = parent.gid;
            if new.kind == FileKind::Directory {
                mode |= 0o2000;
            }
        }
        owner.mode = if new.kind == FileKind::Symlink { 0o777 } else { mode };
        let asked = if default.is_some() { new.mode & 0o7777 } else { mode };
        let asked = if self.marks.is_trusted() { asked } else { open_mode(mode, new.kind) };
        // What takes several steps is done apart, so that whoever looks after a kill finds all or nothing.
        let apart = covered || !self.host_gives(&owner, &above, default.is_some());
        let made = if apart {
            None
        } else {
            match self.make_plain(&folder, name, new.kind, asked, new.target) {
                Ok(file) => Some(file),
                Err(Errno::EXIST) => {
                    self.nothing_but_a_whiteout(dir, name, &alone)?;
                    None
                }
                Err(error) => return Err(host::errno(error)),
            }
        };
        let file = match made {
            Some(file) => {
                let given = self.give_new(&file, &owner, default.as_deref(), access, false);
                if let Err(error) = given {
                    host::remove_all(&folder, name)?;
                    return Err(error);
                }
                file
            }
            None => {
                let covered = self.nothing_but_a_whiteout(dir, name, &alone)?;
                let temporary = work.name();
                let put = self
                    .make_plain(work.tmp(), &temporary, new.kind, asked, new.target)
                    .host()
                    .and_then(|file| {
                        self.give_new(&file, &owner, default.as_deref(), access, true)?;
                        if new.kind == FileKind::Directory && covered {
                            self.marks.set(&file, self.marks.opaque, b"y")?;
                            work.swap(&temporary, &folder, name)?;
                            work.discard(&temporary);
                        } else {
                            work.finish(&temporary, &folder, name)?;
                        }
                        Ok(file)
                    });
                put.inspect_err(|_| work.discard(&temporary))?
            }
        };
        let stat = fs::fstat(&file).host()?;
        let id = NodeId(ABOVE | stat.st_ino);
        let place = Place::Entry(Arc::clone(dir), name.into());
        let node = self.table.get_or(id, || Node::new(id, None, form(new.kind), place));
        let mut state = node.state.lock();
        state.known = true;
        state.above = Some(stat.st_ino);
        drop(state);
        self.handles.insert(id, Arc::new(file));
        self.listed(dir, name);
        self.folders_changed(dir, &node);
        drop(alone);
        Ok(node)
    }

    /// Whether the host makes a file in `folder` of this owner and mode at one stroke, with the ACLs that a
    /// default one asks for.
    fn host_gives(&self, owner: &Owner, folder: &fs::Stat, has_default_acl: bool) -> bool {
        let gid = match host::mode(folder) & 0o2000 {
            0 => rustix::process::getegid().as_raw(),
            _ => folder.st_gid,
        };
        let is_ours = owner.uid == rustix::process::geteuid().as_raw() && owner.gid == gid;
        if self.marks.is_trusted() {
            return is_ours;
        }
        match owner.kind {
            FileKind::Symlink => true,
            FileKind::Regular | FileKind::Directory => {
                is_ours && owner.mode == open_mode(owner.mode, owner.kind) && !has_default_acl
            }
            _ => false,
        }
    }

    /// Whether the upper has a whiteout as `name`. Fails if it has a file there.
    fn nothing_but_a_whiteout(
        &self,
        dir: &Arc<Node>,
        name: &[u8],
        alone: &Alone<'_>,
    ) -> Result<bool> {
        match self.above(dir, name, alone)? {
            Above::File(..) => Err(host::errno(Errno::EXIST)),
            Above::Whiteout => Ok(true),
            Above::Nothing => Ok(false),
        }
    }

    /// Gives a new file its owner, mode and ACLs. In its own folder (not `apart`) the host has
    /// given the ACLs.
    fn give_new(
        &self,
        file: &File,
        owner: &Owner,
        default: Option<&[u8]>,
        access: Option<Vec<u8>>,
        apart: bool,
    ) -> Result<()> {
        let stat = fs::fstat(file).host()?;
        owner.give(self.marks, file, &stat)?;
        if !apart && self.marks.is_trusted() {
            return Ok(());
        }
        let any = XattrFlags::empty();
        if let Some(access) = access {
            host::set_xattr(file, &self.marks.stored(acl::ACCESS), &access, any).host()?;
        }
        if let (Some(default), FileKind::Directory) = (default, owner.kind) {
            host::set_xattr(file, &self.marks.stored(acl::DEFAULT), default, any).host()?;
        }
        Ok(())
    }

    /// Fails if the merged view of `dir` has `name`; tells whether the upper has a whiteout there.
    fn vacant(&self, dir: &Arc<Node>, name: &[u8], alone: &Alone<'_>) -> Result<bool> {
        if dir.state.lock().gone {
            return Err(host::errno(Errno::NOENT));
        }
        if dir.lower.is_none() {
            // The host will say.
            return Ok(false);
        }
        match self.above(dir, name, alone)? {
            Above::File(..) => Err(host::errno(Errno::EXIST)),
            Above::Whiteout => Ok(true),
            Above::Nothing => match self.lower_entry(dir, name)? {
                Some(_) => Err(host::errno(Errno::EXIST)),
                None => Ok(false),
            },
        }
    }

    /// What was counted of the folders in `dir` holds no more, if `node` is one.
    pub(super) fn folders_changed(&self, dir: &Node, node: &Node) {
        if node.form == Form::Folder {
            dir.state.lock().links = None;
        }
    }

    /// Marks what goes with a file under a new name.
    pub(super) fn prepare_move(
        &self,
        node: &Arc<Node>,
        to: &Arc<Node>,
        folder: &File,
        alone: &Alone<'_>,
    ) -> Result<()> {
        let (data_below, indexed) = {
            let state = node.state.lock();
            (state.data_below, state.indexed)
        };
        let merged = node.form == Form::Folder && node.lower.is_some();
        if data_below || indexed || merged || node.id.0 < ABOVE {
            self.mark_impure(to, folder)?;
        }
        // A file of the index has it from the beginning.
        if (data_below && !indexed) || merged {
            let handle = self.handle(node, alone)?;
            let have = host::get_xattr(&handle, self.marks.redirect.as_bytes())?;
            if !have.is_some_and(|path| path.starts_with(b"/")) {
                let path = self.lower_path(node, alone)?;
                self.marks.set(&handle, self.marks.redirect, &path)?;
            }
        }
        Ok(())
    }

    pub(super) fn add_name(&self, node: &Arc<Node>, dir: &Arc<Node>, name: &[u8]) -> Result<()> {
        let (work, alone) = self.change()?;
        if node.form == Form::Folder {
            return Err(host::errno(Errno::PERM));
        }
        if node.state.lock().gone {
            return Err(host::errno(Errno::NOENT));
        }
        let covered = self.vacant(dir, name, &alone)?;
        self.raise(node, work, &alone)?;
        self.raise(dir, work, &alone)?;
        let folder = self.handle(dir, &alone)?;
        self.prepare_move(node, dir, &folder, &alone)?;
        let source = host::through(&*self.handle(node, &alone)?);
        let follow = AtFlags::SYMLINK_FOLLOW;
        let linked = if covered {
            Err(Errno::EXIST)
        } else {
            fs::linkat(CWD, &source, &*folder, name, follow)
        };
        match linked {
            Ok(()) => {}
            Err(Errno::EXIST) if matches!(self.above(dir, name, &alone)?, Above::Whiteout) => {
                let temporary = work.name();
                fs::linkat(CWD, &source, work.tmp(), &*temporary, follow).host()?;
                work.finish(&temporary, &folder, name).inspect_err(|_| work.discard(&temporary))?;
            }
            Err(error) => return Err(host::errno(error)),
        }
        self.listed(dir, name);
        Ok(())
    }

    /// Puts a whiteout in the place of `name`.
    pub(super) fn hide(
        &self,
        folder: &File,
        name: &[u8],
        is_above: bool,
        work: &Work,
    ) -> Result<()> {
        let marked = if is_above {
            let temporary = work.name();
            let marked = work.make_whiteout(work.tmp(), &temporary, self.marks)?;
            if marked {
                self.expect_marked_whiteouts(folder)?;
            }
            return work.finish(&temporary, folder, name).inspect_err(|_| work.discard(&temporary));
        } else {
            work.make_whiteout(folder, name, self.marks)?
        };
        if marked { self.expect_marked_whiteouts(folder) } else { Ok(()) }
    }

    /// Tells the kernel that whiteouts of a merged folder are marked files.
    pub(super) fn expect_marked_whiteouts(&self, folder: &File) -> Result<()> {
        self.marks.set(folder, self.marks.opaque, b"x")
    }

    pub(super) fn remove_name(&self, dir: &Arc<Node>, name: &[u8]) -> Result<()> {
        let (work, alone) = self.change()?;
        let node = self.find(dir, name, &alone)?.ok_or_else(|| host::errno(Errno::NOENT))?;
        if node.form == Form::Folder {
            return Err(host::errno(Errno::ISDIR));
        }
        let below = self.lower_entry(dir, name)?;
        if !node.is_above()
            && let Some(lower) = node.lower
            && self.lower.attr(lower)?.links > 1
        {
            // Its other names have one name less beside them.
            self.raise(&node, work, &alone)?;
        }
        self.take_off(dir, name, &node, below.is_some(), work, &alone)?;
        drop(alone);
        self.settle(node);
        Ok(())
    }

    /// Takes a name off a file that is no folder.
    fn take_off(
        &self,
        dir: &Arc<Node>,
        name: &[u8],
        node: &Arc<Node>,
        hide: bool,
        work: &Work,
        alone: &Alone<'_>,
    ) -> Result<()> {
        let handle = if node.is_above() { Some(self.handle(node, alone)?) } else { None };
        if hide {
            self.raise(dir, work, alone)?;
        }
        let folder = self.handle(dir, alone)?;
        let is_above = handle.is_some() && !matches!(self.above(dir, name, alone)?, Above::Nothing);
        if hide {
            self.hide(&folder, name, is_above, work)?;
        } else {
            fs::unlinkat(&*folder, name, AtFlags::empty()).host()?;
        }
        self.unlisted(dir, name);
        if let Some(handle) = &handle
            && !is_above
        {
            // The name was still only in the lower, and the host never counted it.
            let extra = self.marks.extra_links(handle)?;
            self.marks.set_extra_links(handle, extra - 1)?;
        }
        self.name_lost(dir, name, node, handle, work)
    }

    /// Notes that a name of a file is gone: whether it was the last, and how it is found now.
    pub(super) fn name_lost(
        &self,
        dir: &Arc<Node>,
        name: &[u8],
        node: &Arc<Node>,
        handle: Option<Arc<File>>,
        work: &Work,
    ) -> Result<()> {
        let indexed = node.state.lock().indexed;
        let left = match &handle {
            None => 0,
            Some(handle) => {
                let links =
                    i64::try_from(fs::fstat(&**handle).host()?.st_nlink).unwrap_or(i64::MAX);
                if indexed { links + self.marks.extra_links(handle)? } else { links }
            }
        };
        let mut state = node.state.lock();
        let was_here = matches!(&state.place, Place::Entry(parent, entry)
            if parent.id == dir.id && **entry == *name);
        if left <= 0 {
            state.gone = true;
            state.place = Place::Nowhere;
            state.pinned = handle;
            if indexed && let Some(lower) = node.lower {
                work.remove_from_index(lower)?;
            }
        } else if was_here {
            state.place = Place::Nowhere;
            state.pinned = handle;
        } else {
            return Ok(());
        }
        drop(state);
        self.handles.remove(&node.id);
        Ok(())
    }

    pub(super) fn remove_folder(&self, dir: &Arc<Node>, name: &[u8]) -> Result<()> {
        let (work, alone) = self.change()?;
        let node = self.find(dir, name, &alone)?.ok_or_else(|| host::errno(Errno::NOENT))?;
        if node.form != Form::Folder {
            return Err(host::errno(Errno::NOTDIR));
        }
        let hide = self.lower_entry(dir, name)?.is_some();
        if (hide || node.lower.is_some()) && !self.is_empty(&node, &alone)? {
            return Err(host::errno(Errno::NOTEMPTY));
        }
        let handle = if node.is_above() { Some(self.handle(&node, &alone)?) } else { None };
        if hide {
            self.raise(dir, work, &alone)?;
        }
        let folder = self.handle(dir, &alone)?;
        if !hide {
            match fs::unlinkat(&*folder, name, AtFlags::REMOVEDIR) {
                Ok(()) => {}
                // There may be whiteouts left in it.
                Err(Errno::NOTEMPTY | Errno::EXIST) if self.is_empty(&node, &alone)? => {
                    let temporary = work.name();
                    fs::renameat(&*folder, name, work.tmp(), &*temporary).host()?;
                    work.discard(&temporary);
                }
                Err(error) => return Err(host::errno(error)),
            }
        } else if handle.is_some() {
            let temporary = work.name();
            let marked = work.make_whiteout(work.tmp(), &temporary, self.marks)?;
            if marked {
                self.expect_marked_whiteouts(&folder)?;
            }
            work.swap(&temporary, &folder, name).inspect_err(|_| work.discard(&temporary))?;
            work.discard(&temporary);
        } else {
            self.hide(&folder, name, false, work)?;
        }
        self.unlisted(dir, name);
        self.folders_changed(dir, &node);
        self.folder_lost(&node, handle);
        drop(alone);
        self.settle(node);
        Ok(())
    }

    /// Notes that a folder is gone.
    pub(super) fn folder_lost(&self, node: &Node, handle: Option<Arc<File>>) {
        let mut state = node.state.lock();
        state.gone = true;
        state.place = Place::Nowhere;
        state.pinned = handle;
        drop(state);
        self.handles.remove(&node.id);
        self.listings.remove(&node.id);
    }
}
