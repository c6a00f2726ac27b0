//! The sinks of a folder written to: disk files whose size is fixed.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Content, Folder};
use crate::block::BlockSink;
use crate::error::{Error, Kind, Result};
use crate::tree::{
    Allocate, Caller, Changes, FileTree, NewFile, NodeId, Rename, SetTime, SetXattr, Time,
    WritableTree,
};

/// Times of a sink that were set.
#[derive(Debug, Default)]
pub(super) struct Times {
    accessed: Option<Time>,
    /// What was set, and when.
    modified: Option<(Time, Time)>,
    changed: Option<Time>,
}

impl Times {
    /// Last read, change of contents and change of anything, where the disk was opened `first`
    /// and a sink was last `written`.
    pub(super) fn shown(&self, first: Time, written: Option<Time>) -> (Time, Time, Time) {
        let modified = match (self.modified, written) {
            (Some((modified, set)), Some(written)) if written <= set => modified,
            (_, Some(written)) => written,
            (Some((modified, _)), None) => modified,
            (None, None) => first,
        };
        let changed = self.changed.max(written).unwrap_or(first);
        (self.accessed.unwrap_or(first), modified, changed)
    }
}

fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: since.subsec_nanos(),
    }
}

fn fixed<T>() -> Result<T> {
    Err(Error::new(Kind::ReadOnly, "the files of a disk view are what they are"))
}

fn not_permitted(what: &'static str) -> Error {
    Error::io(io::Error::from_raw_os_error(libc::EPERM)).within(what)
}

impl Folder {
    fn sink(&self, id: NodeId) -> Result<&Arc<dyn BlockSink>> {
        match &self.node(id)?.content {
            Content::Sink { sink, .. } => Ok(sink),
            Content::Folder(_) => Err(Error::new(Kind::IsADirectory, "is a folder")),
            Content::File { .. } | Content::Symlink(_) => fixed(),
        }
    }

    /// Where a range of a sink ends; what lies past the end of a disk has no room.
    fn check(sink: &dyn BlockSink, offset: u64, len: u64) -> Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= sink.len() => Ok(()),
            _ => {
                let (end, what) = (sink.len(), format!("{len:#x} bytes at {offset:#x}"));
                let message = format!("{what} pass the end of the disk at {end:#x}");
                Err(Error::io(io::Error::from_raw_os_error(libc::ENOSPC)).within(message))
            }
        }
    }

    fn written(&self) {
        *self.written.lock() = Some(now());
    }

    fn sinks(&self) -> impl Iterator<Item = &Arc<dyn BlockSink>> {
        self.nodes.iter().filter_map(|node| match &node.content {
            Content::Sink { sink, .. } => Some(sink),
            Content::File { .. } | Content::Folder(_) | Content::Symlink(_) => None,
        })
    }
}

impl WritableTree for Folder {
    fn create(&self, _: NodeId, _: &[u8], _: &NewFile<'_>, _: &Caller) -> Result<NodeId> {
        fixed()
    }

    fn link(&self, _: NodeId, _: NodeId, _: &[u8]) -> Result<()> {
        fixed()
    }

    fn rename(&self, _: (NodeId, &[u8]), _: (NodeId, &[u8]), _: Rename) -> Result<()> {
        fixed()
    }

    fn unlink(&self, _: NodeId, _: &[u8]) -> Result<()> {
        fixed()
    }

    fn remove_dir(&self, _: NodeId, _: &[u8]) -> Result<()> {
        fixed()
    }

    fn set_attr(&self, id: NodeId, changes: &Changes) -> Result<()> {
        let attr = self.attr(id)?;
        let node = self.node(id)?;
        let Content::Sink { times, .. } = &node.content else { return fixed() };
        if changes.size.is_some_and(|size| size != attr.size) {
            return Err(not_permitted("a disk has the size it was mounted with"));
        }
        let other_mode = changes.mode.is_some_and(|mode| mode != attr.mode);
        let other_uid = changes.uid.is_some_and(|uid| uid != attr.uid);
        if other_mode || other_uid || changes.gid.is_some_and(|gid| gid != attr.gid) {
            return Err(not_permitted("a disk belongs to who mounted it"));
        }
        let now = now();
        let time = |set| match set {
            SetTime::Now => now,
            SetTime::To(time) => time,
        };
        let mut times = times.lock();
        times.accessed = changes.accessed.map(time).or(times.accessed);
        times.modified = changes.modified.map(|set| (time(set), now)).or(times.modified);
        times.changed = Some(now);
        Ok(())
    }

    fn write_at(&self, id: NodeId, offset: u64, data: &[u8]) -> Result<()> {
        let sink = self.sink(id)?;
        Self::check(sink.as_ref(), offset, data.len() as u64)?;
        sink.write_at(offset, data)?;
        self.written();
        Ok(())
    }

    fn allocate(&self, id: NodeId, offset: u64, len: u64, how: Allocate) -> Result<()> {
        let sink = self.sink(id)?;
        let grows = matches!(how, Allocate::Reserve { grow: true } | Allocate::Zero { grow: true });
        if grows {
            Self::check(sink.as_ref(), offset, len)?;
        }
        match how {
            // Room is taken when it is needed.
            Allocate::Reserve { .. } => Ok(()),
            Allocate::Punch | Allocate::Zero { .. } => {
                // What lies past the end is none of a file's bytes.
                let len = len.min(sink.len().saturating_sub(offset));
                if len > 0 {
                    sink.write_zeroes(offset, len)?;
                    self.written();
                }
                Ok(())
            }
        }
    }

    fn set_xattr(&self, _: NodeId, _: &[u8], _: &[u8], _: SetXattr) -> Result<()> {
        Err(Error::new(Kind::Unsupported, "extended attributes of disk files"))
    }

    fn remove_xattr(&self, _: NodeId, _: &[u8]) -> Result<()> {
        Err(Error::new(Kind::Unsupported, "extended attributes of disk files"))
    }

    fn sync(&self, id: NodeId) -> Result<()> {
        match &self.node(id)?.content {
            Content::Sink { sink, .. } => sink.flush(),
            Content::Folder(_) => self.sync_all(),
            Content::File { .. } | Content::Symlink(_) => Ok(()),
        }
    }

    fn sync_all(&self) -> Result<()> {
        self.sinks().try_for_each(|sink| sink.flush())
    }

    fn hold(&self, id: NodeId, write: bool) -> Result<()> {
        if write { self.sink(id).map(|_| ()) } else { Ok(()) }
    }

    fn release(&self, _: NodeId) {}

    fn forget(&self, _: NodeId) {}

    fn backing_file(&self, _: NodeId) -> Option<Arc<File>> {
        None
    }

    fn shares_bytes(&self) -> bool {
        true
    }

    fn has_xattrs(&self) -> bool {
        false
    }
}
