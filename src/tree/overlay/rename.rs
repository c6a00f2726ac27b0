//! Renaming.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::{self, AtFlags, RenameFlags};
use rustix::io::Errno;

use super::find::Above;
use super::host::{self, Host};
use super::node::{Form, Node, Place};
use super::work::Work;
use super::{Alone, Overlay};
use crate::error::Result;
use crate::tree::Rename;

impl Overlay {
    pub(super) fn move_name(
        &self,
        from: (&Arc<Node>, &[u8]),
        to: (&Arc<Node>, &[u8]),
        how: Rename,
    ) -> Result<()> {
        let (work, alone) = self.change()?;
        let ((from_dir, from_name), (to_dir, to_name)) = (from, to);
        if how == Rename::Whiteout {
            // A whiteout could not be told from ours. The kernel's overlayfs refuses it, too.
            return Err(host::errno(Errno::INVAL));
        }
        if to_dir.state.lock().gone {
            return Err(host::errno(Errno::NOENT));
        }
        let node =
            self.find(from_dir, from_name, &alone)?.ok_or_else(|| host::errno(Errno::NOENT))?;
        let other = self.find(to_dir, to_name, &alone)?;
        match (&other, how) {
            (Some(_), Rename::NoReplace) => return Err(host::errno(Errno::EXIST)),
            (None, Rename::Exchange) => return Err(host::errno(Errno::NOENT)),
            (Some(other), _) if other.id == node.id => return Ok(()),
            (Some(other), Rename::Replace) => self.check_replace(&node, other, &alone)?,
            _ => {}
        }
        if node.form == Form::Folder && lies_in(to_dir, &node) {
            return Err(host::errno(Errno::INVAL));
        }
        if let Some(other) = &other
            && other.form == Form::Folder
            && lies_in(from_dir, other)
        {
            let exchange = how == Rename::Exchange;
            return Err(host::errno(if exchange { Errno::INVAL } else { Errno::NOTEMPTY }));
        }
        self.raise_name(from_dir, from_name, &node, work, &alone)?;
        self.raise(from_dir, work, &alone)?;
        self.raise(to_dir, work, &alone)?;
        let from_folder = self.handle(from_dir, &alone)?;
        let to_folder = self.handle(to_dir, &alone)?;
        let may_redirect = |node: &Node| {
            let merged = node.form == Form::Folder && node.lower.is_some();
            if merged && !self.marks.is_trusted() {
                // The kernel follows no redirection without marks of the trusted kind.
                return Err(host::errno(Errno::XDEV));
            }
            Ok(())
        };
        may_redirect(&node)?;
        if how == Rename::Exchange {
            let Some(other) = other else { return Err(host::errno(Errno::NOENT)) };
            may_redirect(&other)?;
            self.raise_name(to_dir, to_name, &other, work, &alone)?;
            self.arrive(&node, to, &to_folder, &alone)?;
            self.arrive(&other, from, &from_folder, &alone)?;
            let flags = RenameFlags::EXCHANGE;
            fs::renameat_with(&*from_folder, from_name, &*to_folder, to_name, flags).host()?;
            self.moved(&node, from_dir, to);
            self.moved(&other, to_dir, from);
            return Ok(());
        }
        if let Some(other) = &other {
            self.count_replaced((to_dir, to_name), other, work, &alone)?;
        }
        // Asked before anything is moved: a handle on what is replaced.
        let replaced = match &other {
            Some(other) if other.is_above() => Some(self.handle(other, &alone)?),
            _ => None,
        };
        if let Some(other) = &other {
            self.make_way(other, (to_dir, to_name), &to_folder, work, &alone)?;
        }
        self.arrive(&node, to, &to_folder, &alone)?;
        let hide = self.lower_entry(from_dir, from_name)?.is_some();
        self.rename_above(
            &node,
            (&from_folder, from_name),
            (&to_folder, to_name),
            hide,
            to_dir,
            work,
            &alone,
        )?;
        self.unlisted(from_dir, from_name);
        self.listed(to_dir, to_name);
        self.moved(&node, from_dir, to);
        if let Some(other) = other {
            self.folders_changed(to_dir, &other);
            if other.form == Form::Folder {
                self.folder_lost(&other, replaced);
            } else {
                self.name_lost(to_dir, to_name, &other, replaced, work)?;
            }
            drop(alone);
            self.settle(other);
        }
        Ok(())
    }

    /// Fails if `other` may not be replaced by `node`.
    fn check_replace(&self, node: &Arc<Node>, other: &Arc<Node>, alone: &Alone<'_>) -> Result<()> {
        match (node.form == Form::Folder, other.form == Form::Folder) {
            (true, false) => Err(host::errno(Errno::NOTDIR)),
            (false, true) => Err(host::errno(Errno::ISDIR)),
            (true, true) if !self.is_empty(other, alone)? => Err(host::errno(Errno::NOTEMPTY)),
            _ => Ok(()),
        }
    }

    /// Sees to it that the upper has `node` under this very name; tells whether it had not.
    pub(super) fn raise_name(
        &self,
        dir: &Arc<Node>,
        name: &[u8],
        node: &Arc<Node>,
        work: &Work,
        alone: &Alone<'_>,
    ) -> Result<bool> {
        self.raise(node, work, alone)?;
        if matches!(self.above(dir, name, alone)?, Above::File(..)) {
            return Ok(false);
        }
        // One of several names, which is still only in the lower.
        let Some(lower) = node.lower else { return Err(host::errno(Errno::STALE)) };
        self.raise(dir, work, alone)?;
        let folder = self.handle(dir, alone)?;
        self.mark_impure(dir, &folder)?;
        let handle = self.handle(node, alone)?;
        let before = host::times(&fs::fstat(&*folder).host()?);
        let extra = self.marks.extra_links(&handle)?;
        work.link_from_index(lower, &folder, name)?;
        self.marks.set_extra_links(&handle, extra - 1)?;
        let (accessed, modified) = (before.0, before.1);
        let to = crate::tree::SetTime::To;
        host::set_times(&folder, Some(to(accessed)), Some(to(modified))).host()?;
        Ok(true)
    }

    /// Puts one of several names that is to be replaced into the upper, where the host counts it.
    fn count_replaced(
        &self,
        at: (&Arc<Node>, &[u8]),
        other: &Arc<Node>,
        work: &Work,
        alone: &Alone<'_>,
    ) -> Result<()> {
        let counted = match other.lower {
            Some(lower) if other.form != Form::Folder => {
                other.state.lock().indexed
                    || (!other.is_above() && self.lower.attr(lower)?.links > 1)
            }
            _ => false,
        };
        if counted {
            self.raise_name(at.0, at.1, other, work, alone)?;
        }
        Ok(())
    }

    /// Marks `node` for its new place.
    fn arrive(
        &self,
        node: &Arc<Node>,
        to: (&Arc<Node>, &[u8]),
        folder: &File,
        alone: &Alone<'_>,
    ) -> Result<()> {
        self.prepare_move(node, to.0, folder, alone)?;
        if node.form == Form::Folder
            && node.lower.is_none()
            && self.lower_entry(to.0, to.1)?.is_some()
        {
            // Nothing of the lower's folder of that name is to be seen in it.
            self.marks.set(&*self.handle(node, alone)?, self.marks.opaque, b"y")?;
        }
        Ok(())
    }

    /// Empties a folder of the upper that shows no entries: whiteouts in it keep the host from
    /// replacing it.
    fn make_way(
        &self,
        other: &Arc<Node>,
        at: (&Arc<Node>, &[u8]),
        folder: &File,
        work: &Work,
        alone: &Alone<'_>,
    ) -> Result<()> {
        if other.form != Form::Folder || !other.is_above() {
            return Ok(());
        }
        let handle = self.handle(other, alone)?;
        let mut entries = 0;
        host::list(&handle, &mut |_, _, _| entries += 1)?;
        if entries == 0 {
            return Ok(());
        }
        // An opaque folder stands for it until the rename.
        let temporary = work.name();
        let attr = self.attributes_of(other, &handle)?;
        let emptied = self
            .make_plain(work.tmp(), &temporary, crate::tree::FileKind::Directory, 0o700, b"")
            .host()
            .and_then(|file| {
                let stat = fs::fstat(&file).host()?;
                attr.give(self.marks, &file, &stat)?;
                self.marks.set(&file, self.marks.opaque, b"y")?;
                work.swap(&temporary, folder, at.1)
            });
        work.discard(&temporary);
        emptied
    }

    fn attributes_of(&self, node: &Arc<Node>, handle: &File) -> Result<super::owner::Owner> {
        debug_assert_eq!(node.form, Form::Folder);
        let stat = fs::fstat(handle).host()?;
        super::owner::Owner::read(self.marks, handle, &stat)
    }

    /// The rename in the upper; `hide` leaves a whiteout behind.
    #[expect(clippy::too_many_arguments, reason = "two names, and what becomes of them")]
    fn rename_above(
        &self,
        node: &Arc<Node>,
        from: (&File, &[u8]),
        to: (&File, &[u8]),
        hide: bool,
        to_dir: &Arc<Node>,
        work: &Work,
        alone: &Alone<'_>,
    ) -> Result<()> {
        if node.form == Form::Folder && matches!(self.above(to_dir, to.1, alone)?, Above::Whiteout)
        {
            // A folder cannot replace what is none: it swaps with the whiteout.
            fs::renameat_with(from.0, from.1, to.0, to.1, RenameFlags::EXCHANGE).host()?;
            if !hide {
                fs::unlinkat(from.0, from.1, AtFlags::empty()).host()?;
            }
            return Ok(());
        }
        if !hide {
            return fs::renameat(from.0, from.1, to.0, to.1).host();
        }
        match fs::renameat_with(from.0, from.1, to.0, to.1, RenameFlags::WHITEOUT) {
            Ok(()) => return Ok(()),
            Err(Errno::INVAL | Errno::PERM | Errno::NOSYS) => {}
            Err(error) => return Err(host::errno(error)),
        }
        self.rename_with_own_whiteout(node, from, to, to_dir, work, alone)
    }

    /// The same where the host leaves no whiteouts, in steps between which no name is lost.
    fn rename_with_own_whiteout(
        &self,
        node: &Node,
        from: (&File, &[u8]),
        to: (&File, &[u8]),
        to_dir: &Arc<Node>,
        work: &Work,
        alone: &Alone<'_>,
    ) -> Result<()> {
        let whiteout = work.name();
        if work.make_whiteout(work.tmp(), &whiteout, self.marks)? {
            self.expect_marked_whiteouts(from.0)?;
        }
        if node.form == Form::Folder {
            // The whiteout goes ahead, and they swap. What it takes the place of is an empty folder.
            match self.above(to_dir, to.1, alone)? {
                Above::Nothing => work.finish(&whiteout, to.0, to.1),
                Above::File(..) | Above::Whiteout => work.swap(&whiteout, to.0, to.1),
            }
            .inspect_err(|_| work.discard(&whiteout))?;
            work.discard(&whiteout);
            return fs::renameat_with(from.0, from.1, to.0, to.1, RenameFlags::EXCHANGE).host();
        }
        // Killed in between, the file has both names.
        let second = work.name();
        let moved = fs::linkat(from.0, from.1, work.tmp(), &*second, AtFlags::empty())
            .host()
            .and_then(|()| work.finish(&second, to.0, to.1))
            .and_then(|()| work.finish(&whiteout, from.0, from.1));
        moved.inspect_err(|_| {
            work.discard(&second);
            work.discard(&whiteout);
        })
    }

    /// Notes where a file is now.
    fn moved(&self, node: &Arc<Node>, from: &Node, to: (&Arc<Node>, &[u8])) {
        self.folders_changed(from, node);
        self.folders_changed(to.0, node);
        let mut state = node.state.lock();
        if !matches!(state.place, Place::Index) {
            state.place = Place::Entry(Arc::clone(to.0), to.1.into());
        }
    }
}

/// Whether the folder `dir` is `folder` or lies in it.
fn lies_in(dir: &Arc<Node>, folder: &Arc<Node>) -> bool {
    let mut at = Arc::clone(dir);
    loop {
        if at.id == folder.id {
            return true;
        }
        let place = at.state.lock().place.clone();
        match place {
            Place::Entry(parent, _) => at = parent,
            Place::Root | Place::Index | Place::Nowhere => return false,
        }
    }
}
