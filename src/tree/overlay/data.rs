//! Contents of regular files.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::fs::{self, FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;

use super::host::{self, Host};
use super::node::{Form, Node};
use super::{Overlay, read_only};
use crate::block::{Extent, Origin};
use crate::error::{Error, Kind, Result};
use crate::tree::{Allocate, NodeId, SetTime};

/// Bytes copied at a time.
const PIECE: u64 = 1 << 20;

/// Where the bytes of a file are.
enum Source {
    Upper(Arc<File>),
    /// In the lower, of which this many bytes are seen.
    Lower(NodeId, u64),
}

impl Overlay {
    fn source(&self, node: &Arc<Node>) -> Result<Source> {
        match node.form {
            Form::Regular => {}
            Form::Folder => return Err(Error::new(Kind::IsADirectory, "a folder")),
            Form::Symlink | Form::Special => return Err(host::errno(Errno::INVAL)),
        }
        let (above, data_below) = {
            let state = node.state.lock();
            (state.above.is_some(), state.data_below)
        };
        match node.lower {
            Some(lower) if !above => Ok(Source::Lower(lower, u64::MAX)),
            Some(lower) if data_below => {
                let handle = self.handle(node, &self.names.read())?;
                let size = fs::fstat(&*handle).host()?.st_size;
                Ok(Source::Lower(lower, u64::try_from(size).unwrap_or(0)))
            }
            _ => self.opened(node).map(Source::Upper),
        }
    }

    /// A regular file of the upper, open for reading and, if it may be, writing.
    pub(super) fn opened(&self, node: &Arc<Node>) -> Result<Arc<File>> {
        if let Some(open) = &node.state.lock().open {
            return Ok(Arc::clone(open));
        }
        let handle = self.handle(node, &self.names.read())?;
        // A file that was just made has a handle that can do it all.
        let open = if fs::fcntl_getfl(&*handle).host()?.contains(OFlags::PATH) {
            let mode = if self.writable { OFlags::RDWR } else { OFlags::RDONLY };
            Arc::new(host::reopen(&handle, mode).host()?)
        } else {
            handle
        };
        let mut state = node.state.lock();
        if state.holds > 0 {
            return Ok(Arc::clone(state.open.get_or_insert(open)));
        }
        Ok(open)
    }

    pub(super) fn read(&self, node: &Arc<Node>, offset: u64, buf: &mut [u8]) -> Result<usize> {
        match self.source(node)? {
            Source::Upper(file) => {
                let mut done = 0;
                // The host takes no offset beyond the largest file.
                while done < buf.len() && offset < i64::MAX as u64 {
                    let Some(rest) = buf.get_mut(done..) else { break };
                    match file.read_at(rest, offset.saturating_add(done as u64)) {
                        Ok(0) => break,
                        Ok(count) => done += count,
                        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(Error::io(error)),
                    }
                }
                Ok(done)
            }
            Source::Lower(lower, size) => {
                let room = size.saturating_sub(offset).min(buf.len() as u64);
                let Some(room) = buf.get_mut(..usize::try_from(room).unwrap_or(0)) else {
                    return Ok(0);
                };
                let count = self.lower.read_at(lower, offset, room)?;
                if size == u64::MAX {
                    return Ok(count);
                }
                // Cut or grown, and then interrupted: what the lower has not are zeros.
                room.get_mut(count..).unwrap_or_default().fill(0);
                Ok(room.len())
            }
        }
    }

    /// Where the bytes at `offset` finally lie: told for what is still the lower's.
    pub(super) fn origin(&self, node: &Arc<Node>, offset: u64) -> Result<Origin> {
        match self.source(node)? {
            Source::Lower(lower, u64::MAX) => self.lower.origin_at(lower, offset),
            Source::Upper(_) | Source::Lower(..) => {
                let size = self.attributes(node)?.size;
                Ok(Origin::unknown(size.saturating_sub(offset).max(1)))
            }
        }
    }

    pub(super) fn extent(&self, node: &Arc<Node>, offset: u64) -> Result<Extent> {
        match self.source(node)? {
            Source::Upper(file) => {
                let size = u64::try_from(fs::fstat(&*file).host()?.st_size).unwrap_or(0);
                let rest = size.saturating_sub(offset).max(1);
                let data = match fs::seek(&*file, SeekFrom::Data(offset)) {
                    Ok(data) => data,
                    Err(Errno::NXIO) => return Ok(Extent { len: rest, hole: true }),
                    Err(Errno::INVAL) => return Ok(Extent { len: rest, hole: false }),
                    Err(error) => return Err(host::errno(error)),
                };
                if data > offset {
                    return Ok(Extent { len: (data - offset).min(rest), hole: true });
                }
                let hole = fs::seek(&*file, SeekFrom::Hole(offset)).unwrap_or(size);
                Ok(Extent { len: hole.saturating_sub(offset).clamp(1, rest), hole: false })
            }
            Source::Lower(lower, u64::MAX) => self.lower.extent_at(lower, offset),
            Source::Lower(lower, size) => {
                let rest = size.saturating_sub(offset).max(1);
                if offset >= self.lower.attr(lower)?.size {
                    return Ok(Extent { len: rest, hole: true });
                }
                let extent = self.lower.extent_at(lower, offset)?;
                Ok(Extent { len: extent.len.min(rest), ..extent })
            }
        }
    }

    /// The file with its data in the upper, of which the lower's first `keep` bytes are copied.
    fn to_write(&self, node: &Arc<Node>, cut: Option<u64>) -> Result<Arc<File>> {
        match node.form {
            Form::Regular => {}
            Form::Folder => return Err(Error::new(Kind::IsADirectory, "a folder")),
            Form::Symlink | Form::Special => return Err(host::errno(Errno::INVAL)),
        }
        if !self.writable {
            return Err(read_only());
        }
        self.raised(node)?;
        if node.state.lock().data_below {
            let _copying = node.copying.lock();
            if node.state.lock().data_below {
                let file = self.opened(node)?;
                self.fill(node, &file, cut)?;
                return Ok(file);
            }
        }
        self.opened(node)
    }

    /// Copies the data of a file that has only its metadata in the upper; of one that is to be cut,
    /// what stays of it, and cuts it.
    ///
    /// Until the mark is taken away, which comes last, the data are the lower's for everybody.
    fn fill(&self, node: &Node, file: &File, cut: Option<u64>) -> Result<()> {
        let Some(lower) = node.lower else { return Err(host::errno(Errno::STALE)) };
        let stat = fs::fstat(file).host()?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let keep = cut.unwrap_or(size).min(size);
        self.copy_data(lower, keep, file)?;
        if keep > 0 {
            fs::fdatasync(file).host()?;
        }
        match cut {
            Some(size) => fs::ftruncate(file, size).host()?,
            None => {
                let (accessed, modified) = host::times(&stat);
                let (accessed, modified) = (SetTime::To(accessed), SetTime::To(modified));
                host::set_times(file, Some(accessed), Some(modified)).host()?;
            }
        }
        self.marks.clear(file, self.marks.metacopy)?;
        node.state.lock().data_below = false;
        Ok(())
    }

    /// Copies the first `len` bytes of a file of the lower, as far as they are data.
    pub(super) fn copy_data(&self, lower: NodeId, len: u64, to: &File) -> Result<()> {
        let len = len.min(self.lower.attr(lower)?.size);
        let mut buf = vec![0; usize::try_from(len.min(PIECE)).unwrap_or(0)];
        let mut at = 0;
        while at < len {
            let extent = self.lower.extent_at(lower, at)?;
            let end = at.saturating_add(extent.len.max(1)).min(len);
            if extent.hole {
                at = end;
                continue;
            }
            while at < end {
                let room = usize::try_from((end - at).min(PIECE)).unwrap_or(0);
                let Some(piece) = buf.get_mut(..room) else { break };
                let count = self.lower.read_at(lower, at, piece)?;
                if count == 0 {
                    return Err(Error::new(Kind::Corrupt, "a file ends before its size"));
                }
                to.write_all_at(piece.get(..count).unwrap_or_default(), at).map_err(Error::io)?;
                at += count as u64;
            }
        }
        Ok(())
    }

    pub(super) fn write(&self, node: &Arc<Node>, offset: u64, data: &[u8]) -> Result<()> {
        let file = self.to_write(node, None)?;
        if offset.checked_add(data.len() as u64).is_none_or(|end| end > i64::MAX as u64) {
            return Err(host::errno(Errno::FBIG));
        }
        file.write_all_at(data, offset).map_err(Error::io)
    }

    /// Sets the size of a file.
    pub(super) fn cut(&self, node: &Arc<Node>, size: u64) -> Result<()> {
        let file = self.to_write(node, Some(size))?;
        fs::ftruncate(&*file, size).host()
    }

    pub(super) fn reserve(
        &self,
        node: &Arc<Node>,
        offset: u64,
        len: u64,
        how: Allocate,
    ) -> Result<()> {
        let file = self.to_write(node, None)?;
        let (flags, grow) = match how {
            Allocate::Reserve { grow } => (FallocateFlags::empty(), grow),
            Allocate::Punch => (FallocateFlags::PUNCH_HOLE, false),
            Allocate::Zero { grow } => (FallocateFlags::ZERO_RANGE, grow),
        };
        let flags = if grow { flags } else { flags | FallocateFlags::KEEP_SIZE };
        fs::fallocate(&*file, flags, offset, len).host()
    }

    /// Returns once a file, or the entries of a folder, are on stable storage.
    pub(super) fn flush(&self, node: &Arc<Node>) -> Result<()> {
        if !self.writable || !node.is_above() {
            return Ok(());
        }
        match node.form {
            Form::Regular => fs::fsync(&*self.opened(node)?).host(),
            Form::Folder => {
                let handle = self.handle(node, &self.names.read())?;
                let open = host::reopen(&handle, OFlags::RDONLY | OFlags::DIRECTORY).host()?;
                fs::fsync(open).host()
            }
            Form::Symlink | Form::Special => Ok(()),
        }
    }
}
