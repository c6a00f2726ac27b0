//! Copying files of the lower into the upper before they are first changed.
//!
//! A file is made ready in the work folder, with all it has but its data, and then moved into its
//! place at one stroke. Whenever we are killed, it is there as a whole or not at all. Its data stay
//! the lower's, as the mark `metacopy` says, until they are written; [`data`](super::data) copies
//! them then. Without marks of the trusted kind the kernel does not follow such a mark, and data are
//! copied at once.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::{self, AtFlags, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use super::host::{self, Host};
use super::node::{Form, Node, Place};
use super::owner::{self, Owner};
use super::work::Work;
use super::{Alone, Overlay, acl};
use crate::error::Result;
use crate::tree::{Attr, Device, FileKind, NodeId, SetTime};

/// The device number of a whiteout.
pub(super) const WHITEOUT: FileKind = FileKind::CharDevice(Device { major: 0, minor: 0 });

impl Overlay {
    /// Copies `node` up, after the folders it lies in.
    pub(super) fn raise(&self, node: &Arc<Node>, work: &Work, alone: &Alone<'_>) -> Result<()> {
        let mut way = Vec::new();
        let mut at = Arc::clone(node);
        loop {
            let place = {
                let state = at.state.lock();
                if state.above.is_some() {
                    break;
                }
                state.place.clone()
            };
            way.push(Arc::clone(&at));
            match place {
                Place::Entry(parent, _) => at = parent,
                Place::Root | Place::Index | Place::Nowhere => break,
            }
        }
        way.iter().rev().try_for_each(|node| self.raise_one(node, work, alone))
    }

    fn raise_one(&self, node: &Arc<Node>, work: &Work, alone: &Alone<'_>) -> Result<()> {
        let Some(lower) = node.lower else { return Err(host::errno(Errno::STALE)) };
        let attr = self.lower.attr(lower)?;
        if attr.kind == WHITEOUT {
            return Err(host::errno(Errno::PERM));
        }
        let place = node.state.lock().place.clone();
        let name = work.name();
        let raised = self.raise_as(node, lower, &attr, &place, &name, work, alone);
        if raised.is_err() {
            work.discard(&name);
        }
        raised
    }

    #[expect(clippy::too_many_arguments, reason = "one step of another, cut out for its clean-up")]
    fn raise_as(
        &self,
        node: &Arc<Node>,
        lower: NodeId,
        attr: &Attr,
        place: &Place,
        name: &[u8],
        work: &Work,
        alone: &Alone<'_>,
    ) -> Result<()> {
        let target = match attr.kind {
            FileKind::Symlink => self.lower.read_link(lower)?,
            _ => Vec::new(),
        };
        let file = self.make_plain(work.tmp(), name, attr.kind, 0o600, &target).host()?;
        let mut data_below = false;
        if attr.kind == FileKind::Regular && attr.size > 0 {
            fs::ftruncate(&file, attr.size).host()?;
            if self.marks.is_trusted() {
                self.marks.set(&file, self.marks.metacopy, b"")?;
                data_below = true;
            } else {
                self.copy_data(lower, attr.size, &file)?;
                fs::fdatasync(&file).host()?;
            }
        }
        let named = matches!(place, Place::Entry(..));
        let indexed = named && attr.links > 1 && node.form != Form::Folder && self.can_mark(node);
        if indexed {
            // Of its names there, this one and that of the index are counted by the host.
            self.marks.set_extra_links(&file, i64::from(attr.links) - 2)?;
            if data_below {
                let path = self.lower_path(node, alone)?;
                self.marks.set(&file, self.marks.redirect, &path)?;
            }
        }
        self.dress(&file, attr, Some(node.id))?;
        let stat = fs::fstat(&file).host()?;
        let file = Arc::new(file);
        match place {
            Place::Entry(parent, entry) => {
                let folder = self.handle(parent, alone)?;
                let before = host::times(&fs::fstat(&*folder).host()?);
                self.mark_impure(parent, &folder)?;
                if indexed {
                    work.add_to_index(name, lower)?;
                }
                work.finish(name, &folder, entry)?;
                // To whoever looks, nothing has come or gone.
                let (accessed, modified) = (SetTime::To(before.0), SetTime::To(before.1));
                host::set_times(&folder, Some(accessed), Some(modified)).host()?;
            }
            _ => {
                let flags = match node.form {
                    Form::Folder => AtFlags::REMOVEDIR,
                    _ => AtFlags::empty(),
                };
                fs::unlinkat(work.tmp(), name, flags).host()?;
            }
        }
        let mut state = node.state.lock();
        state.above = Some(stat.st_ino);
        state.data_below = data_below;
        state.indexed = indexed;
        if indexed {
            state.place = Place::Index;
        }
        if !named {
            state.pinned = Some(Arc::clone(&file));
        }
        drop(state);
        self.handles.insert(node.id, file);
        Ok(())
    }

    /// Whether marks can be written on such a file: an ordinary user's only on files and folders.
    fn can_mark(&self, node: &Node) -> bool {
        self.marks.is_trusted() || node.form != Form::Symlink
    }

    /// Makes a file, without owner and all else; `mode` is what the host may make of it.
    pub(super) fn make_plain(
        &self,
        dir: &File,
        name: &[u8],
        kind: FileKind,
        mode: u16,
        target: &[u8],
    ) -> rustix::io::Result<File> {
        let kind = owner::host_kind(self.marks, kind);
        let mode = Mode::from_raw_mode(mode.into());
        match kind {
            FileKind::Regular => {
                let flags = OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::RDWR
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                return fs::openat(dir, name, flags, mode).map(File::from);
            }
            FileKind::Directory => fs::mkdirat(dir, name, mode | Mode::XUSR)?,
            FileKind::Symlink => fs::symlinkat(target, dir, name)?,
            _ => {
                let (kind, device) = host::type_of(kind);
                fs::mknodat(dir, name, kind, mode, device)?;
            }
        }
        host::open_path(dir, name)
    }

    /// Gives the file behind `fd` what a file of the lower has: attributes, owner, mode, times, and
    /// the number it keeps.
    pub(super) fn dress(&self, fd: &File, attr: &Attr, keep: Option<NodeId>) -> Result<()> {
        let Attr { node, kind, mode, uid, gid, .. } = *attr;
        let stat = fs::fstat(fd).host()?;
        Owner { uid, gid, mode, kind }.give(self.marks, fd, &stat)?;
        let any = XattrFlags::empty();
        let markable = self.marks.is_trusted() || kind != FileKind::Symlink;
        if let Some(keep) = keep.filter(|_| markable) {
            self.marks.set(fd, self.marks.node, keep.0.to_string().as_bytes())?;
        }
        for name in self.lower.xattr_names(node)? {
            let Some(value) = self.lower.xattr(node, &name)? else { continue };
            match host::set_xattr(fd, &self.marks.stored(&name), &value, any) {
                Ok(()) => {}
                // As the kernel's: what the upper cannot hold is lost, but never what says who may.
                Err(Errno::OPNOTSUPP | Errno::PERM) if !guards(&name) || !markable => {}
                Err(error) => return Err(host::errno(error)),
            }
        }
        let (accessed, modified) = (SetTime::To(attr.accessed), SetTime::To(attr.modified));
        host::set_times(fd, Some(accessed), Some(modified)).host()
    }

    /// Notes that files with marks may lie in a folder.
    pub(super) fn mark_impure(&self, dir: &Node, handle: &File) -> Result<()> {
        if dir.state.lock().impure {
            return Ok(());
        }
        self.marks.set(handle, self.marks.impure, b"y")?;
        dir.state.lock().impure = true;
        Ok(())
    }
}

/// Whether an attribute says who may do what.
fn guards(name: &[u8]) -> bool {
    name.starts_with(b"security.") || name == acl::ACCESS || name == acl::DEFAULT
}
