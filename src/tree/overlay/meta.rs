//! Attributes, plain and extended, and link targets.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::{self, XattrFlags};
use rustix::io::Errno;

use super::host::{self, Host};
use super::node::{Form, Node};
use super::owner::{self, Owner};
use super::{Overlay, acl, read_only};
use crate::error::Result;
use crate::tree::{Attr, Changes, FileKind, SetXattr};

impl Overlay {
    pub(super) fn attributes(&self, node: &Arc<Node>) -> Result<Attr> {
        let (above, gone, data_below, indexed) = {
            let state = node.state.lock();
            (state.above.is_some(), state.gone, state.data_below, state.indexed)
        };
        let below = |node: &Node| match node.lower {
            Some(lower) => self.lower.attr(lower),
            None => Err(host::errno(Errno::STALE)),
        };
        if !above {
            let attr = below(node)?;
            let links = if gone { 0 } else { attr.links };
            return Ok(Attr { node: node.id, links, ..attr });
        }
        let still = self.names.read();
        let handle = self.handle(node, &still)?;
        let stat = fs::fstat(&*handle).host()?;
        let mut links = u32::try_from(stat.st_nlink).unwrap_or(u32::MAX);
        if gone {
            links = 0;
        } else if node.form == Form::Folder && node.lower.is_some() {
            links = self.count_links(node, &still)?;
        } else if indexed {
            let all = i64::from(links) + self.marks.extra_links(&handle)?;
            links = u32::try_from(all).unwrap_or(0);
        }
        drop(still);
        let Owner { uid, gid, mode, kind } = Owner::read(self.marks, &handle, &stat)?;
        let blocks = if data_below {
            below(node)?.blocks
        } else {
            u64::try_from(stat.st_blocks).unwrap_or(0)
        };
        let (accessed, modified) = host::times(&stat);
        let changed = crate::tree::Time {
            seconds: stat.st_ctime,
            nanos: u32::try_from(stat.st_ctime_nsec).unwrap_or(0),
        };
        Ok(Attr {
            node: node.id,
            kind,
            mode,
            uid,
            gid,
            links,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            blocks,
            accessed,
            modified,
            changed,
            created: None,
        })
    }

    /// A handle on `node`, which is copied up if it is not in the upper yet.
    pub(super) fn raised(&self, node: &Arc<Node>) -> Result<Arc<File>> {
        if !self.writable {
            return Err(read_only());
        }
        if node.is_above() {
            return self.handle(node, &self.names.read());
        }
        let (work, alone) = self.change()?;
        self.raise(node, work, &alone)?;
        self.handle(node, &alone)
    }

    pub(super) fn change_attributes(&self, node: &Arc<Node>, changes: &Changes) -> Result<()> {
        if *changes == Changes::default() {
            return Ok(());
        }
        if let Some(size) = changes.size {
            self.cut(node, size)?;
        }
        let handle = self.raised(node)?;
        if changes.uid.is_some() || changes.gid.is_some() || changes.mode.is_some() {
            if self.marks.is_trusted() {
                if changes.uid.is_some() || changes.gid.is_some() {
                    owner::set_owner(&handle, changes.uid, changes.gid)?;
                }
                if let Some(mode) = changes.mode {
                    if node.form == Form::Symlink {
                        return Err(host::errno(Errno::OPNOTSUPP));
                    }
                    host::chmod(&handle, mode & 0o7777).host()?;
                }
            } else {
                self.change_owner(&handle, changes)?;
            }
        }
        if changes.accessed.is_some() || changes.modified.is_some() {
            host::set_times(&handle, changes.accessed, changes.modified).host()?;
        }
        Ok(())
    }

    /// Changes owner and mode where an attribute keeps them, as the host would.
    fn change_owner(&self, handle: &File, changes: &Changes) -> Result<()> {
        let stat = fs::fstat(handle).host()?;
        let mut owner = Owner::read(self.marks, handle, &stat)?;
        if changes.uid.is_some() || changes.gid.is_some() {
            if owner.kind != FileKind::Directory {
                owner.mode &= if owner.mode & 0o010 == 0 { !0o4000 } else { !0o6000 };
            }
            owner.uid = changes.uid.unwrap_or(owner.uid);
            owner.gid = changes.gid.unwrap_or(owner.gid);
        }
        if let Some(mode) = changes.mode {
            owner.mode = mode & 0o7777;
            let name = self.marks.stored(acl::ACCESS);
            let kept = host::get_xattr(handle, &name)?;
            if let Some(acl) = kept.and_then(|acl| acl::with_mode(&acl, mode)) {
                host::set_xattr(handle, &name, &acl, XattrFlags::empty()).host()?;
            }
        }
        owner.give(self.marks, handle, &stat)
    }

    pub(super) fn target(&self, node: &Arc<Node>) -> Result<Vec<u8>> {
        if node.form != Form::Symlink {
            return Err(host::errno(Errno::INVAL));
        }
        if !node.is_above()
            && let Some(lower) = node.lower
        {
            return self.lower.read_link(lower);
        }
        let handle = self.handle(node, &self.names.read())?;
        fs::readlinkat(&*handle, c"", Vec::new()).host().map(std::ffi::CString::into_bytes)
    }

    pub(super) fn list_xattrs(&self, node: &Arc<Node>) -> Result<Vec<Vec<u8>>> {
        if !node.is_above()
            && let Some(lower) = node.lower
        {
            return self.lower.xattr_names(lower);
        }
        let handle = self.handle(node, &self.names.read())?;
        let names = host::list_xattrs(&handle)?;
        Ok(names.iter().filter_map(|name| self.marks.shown(name)).collect())
    }

    pub(super) fn get_xattr(&self, node: &Arc<Node>, name: &[u8]) -> Result<Option<Vec<u8>>> {
        if !node.is_above()
            && let Some(lower) = node.lower
        {
            return self.lower.xattr(lower, name);
        }
        let handle = self.handle(node, &self.names.read())?;
        host::get_xattr(&handle, &self.marks.stored(name))
    }

    pub(super) fn put_xattr(
        &self,
        node: &Arc<Node>,
        name: &[u8],
        value: &[u8],
        how: SetXattr,
    ) -> Result<()> {
        let flags = match how {
            SetXattr::Any => XattrFlags::empty(),
            SetXattr::Create => XattrFlags::CREATE,
            SetXattr::Replace => XattrFlags::REPLACE,
        };
        let handle = self.raised(node)?;
        if !self.marks.is_trusted() && name == acl::ACCESS {
            let bits = acl::mode_of(value).ok_or_else(|| host::errno(Errno::INVAL))?;
            let stat = fs::fstat(&*handle).host()?;
            let mut owner = Owner::read(self.marks, &handle, &stat)?;
            owner.mode = owner.mode & 0o7000 | bits;
            owner.give(self.marks, &handle, &stat)?;
        }
        host::set_xattr(&handle, &self.marks.stored(name), value, flags).host()?;
        if name == acl::DEFAULT {
            node.state.lock().default_acl = None;
        }
        Ok(())
    }

    pub(super) fn drop_xattr(&self, node: &Arc<Node>, name: &[u8]) -> Result<()> {
        // What is not there needs no copy to be removed from.
        if self.writable && !node.is_above() && self.get_xattr(node, name)?.is_none() {
            return Err(host::errno(Errno::NODATA));
        }
        let handle = self.raised(node)?;
        host::remove_xattr(&handle, &self.marks.stored(name)).host()?;
        if name == acl::DEFAULT {
            node.state.lock().default_acl = None;
        }
        Ok(())
    }

    /// The default ACL of a folder in the upper.
    pub(super) fn default_acl(&self, dir: &Node, handle: &File) -> Result<Option<Arc<[u8]>>> {
        if let Some(known) = &dir.state.lock().default_acl {
            return Ok(known.clone());
        }
        let acl = host::get_xattr(handle, &self.marks.stored(acl::DEFAULT))?.map(Arc::from);
        dir.state.lock().default_acl = Some(acl.clone());
        Ok(acl)
    }
}
