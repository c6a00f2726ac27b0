//! How requests that change a tree, or open its files, are answered.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use fuser::{BackingId, Errno, FopenFlags, Generation, INodeNo, ReplyEmpty, ReplyEntry, Request};

use super::asked::caller;
use super::known::{Asking, Known};
use super::opened::Opened;
use super::write::WritableAdapter;
use super::{Adapter, FOR_ONCE, LIFETIME};
use crate::error::Result;
use crate::mount::errno::change_errno;
use crate::mount::inode::file_attr;
use crate::mount::linger::Linger;
use crate::tree::{FileTree, NewFile, NodeId, WritableTree};

impl WritableAdapter {
    pub(in crate::mount) fn new(
        tree: Arc<dyn WritableTree>,
        permissions: bool,
        linger: Linger,
        point: &Path,
    ) -> Self {
        let files: Arc<dyn FileTree> = Arc::<dyn WritableTree>::clone(&tree);
        let shares_bytes = tree.shares_bytes();
        Self {
            read: Adapter::new(files, permissions, linger, point),
            known: Known::new(Arc::clone(&tree)),
            opened: Opened::new(),
            lifetime: if shares_bytes { FOR_ONCE } else { LIFETIME },
            shares_bytes,
            xattrs: tree.has_xattrs(),
            tree,
        }
    }

    pub(super) fn node(&self, ino: INodeNo) -> NodeId {
        self.read.numbering.node(ino)
    }

    /// As [`Adapter::answer`], for what changes something.
    pub(super) fn change<T>(
        &self,
        operation: &'static str,
        node: NodeId,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T, Errno> {
        let told = self.read.answer(operation, node, || match work() {
            Ok(done) => Ok(Ok(done)),
            Err(error) => {
                self.read.report.change_failed(operation, node, &error);
                Ok(Err(change_errno(&error)))
            }
        });
        told.and_then(|outcome| outcome)
    }

    /// The attributes of `node`, of which the kernel is told as an entry of `dir`.
    pub(super) fn tell(
        &self,
        asking: &Asking<'_>,
        node: NodeId,
        dir: NodeId,
    ) -> Result<fuser::FileAttr> {
        let attr = self.tree.attr(node)?;
        asking.tell(node);
        self.read.note_parent(node, &attr, dir);
        Ok(file_attr(self.read.numbering.ino(node), &attr))
    }

    /// Makes a file and answers with it.
    pub(super) fn make(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        umask: u32,
        new: &NewFile<'_>,
        reply: ReplyEntry,
    ) {
        let _request = self.read.linger.begin();
        if name.len() > self.read.name_max {
            return reply.error(Errno::ENAMETOOLONG);
        }
        let dir = self.node(parent);
        let asking = self.known.ask();
        let made = self.change("making a file in", dir, || {
            let node = self.tree.create(dir, name.as_bytes(), new, &caller(req, umask))?;
            self.tell(&asking, node, dir)
        });
        match made {
            Ok(attr) => reply.entry(&self.lifetime, &attr, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    /// Does what answers nothing but that it is done.
    pub(super) fn act(
        &self,
        operation: &'static str,
        node: NodeId,
        reply: ReplyEmpty,
        work: impl FnOnce() -> Result<()>,
    ) {
        let _request = self.read.linger.begin();
        match self.change(operation, node, work) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    /// The host file the kernel may use for `node` in our place.
    pub(super) fn backing(
        &self,
        node: NodeId,
        register: impl FnOnce(&std::fs::File) -> io::Result<BackingId>,
    ) -> Option<BackingId> {
        let file = self.tree.backing_file(node)?;
        register(&file)
            .inspect_err(|error| {
                // Ordinary users and user namespaces are refused, and that for good.
                if error.raw_os_error() == Some(libc::EPERM) {
                    self.opened.passes_through.store(false, Ordering::Relaxed);
                }
                log::debug!("inode {} goes through us: {error}", node.0);
            })
            .ok()
    }

    /// How the kernel serves an opening that does not pass through.
    pub(super) fn cached(&self, node: NodeId, write: bool) -> FopenFlags {
        let mut flags = FopenFlags::FOPEN_KEEP_CACHE;
        // A host file that it could not use this time may have been changed through it before.
        let passed = self.opened.passes_through.load(Ordering::Relaxed)
            && self.tree.backing_file(node).is_some();
        if passed || (self.shares_bytes && self.opened.others_written(node)) {
            flags = FopenFlags::empty();
        }
        if !write {
            flags |= FopenFlags::FOPEN_NOFLUSH;
        }
        flags
    }

    /// The folder that `to` names now lies in another.
    pub(super) fn moved(&self, dir: NodeId, name: &[u8]) -> Result<()> {
        if let Some(node) = self.tree.lookup(dir, name)? {
            let attr = self.tree.attr(node)?;
            self.read.note_parent(node, &attr, dir);
        }
        Ok(())
    }
}
