//! What one member of a tar says, whichever dialect it is written in.

use crate::tree::{Device, Time};

/// One member of a tar that stands for a file, read with all the headers that belong to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name as it stands in the tar, bytes of no particular encoding: `./a`, `/a`, `a//b` and `a/` are
    /// for whoever applies the layer to understand.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits with setuid, setgid and sticky (`0o7777`).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of contents.
    pub modified: Time,
    /// Extended attributes by their full names, in the order they came, each name once.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes of contents, holes counted; 0 for anything but a regular file.
    pub size: u64,
    /// Where the contents lie, ascending and apart from each other; what no run covers is a hole.
    pub runs: Vec<Run>,
}

/// A piece of a file's contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Where it is in the file.
    pub at: u64,
    /// Its bytes, at least one.
    pub len: u64,
    /// Where it is in the tar, which is not compressed.
    pub place: u64,
}

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// Another name of the file at that path (which may lie in a lower layer).
    HardLink(Vec<u8>),
    /// A symbolic link with that target.
    Symlink(Vec<u8>),
    /// A folder.
    Folder,
    /// A named pipe.
    Fifo,
    /// A character device.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
}
