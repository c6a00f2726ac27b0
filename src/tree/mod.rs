//! Files: the tree trait, and what combines trees.

pub mod composed;
pub mod folder;
pub mod path;

use std::fmt::Debug;
use std::fs::File;

use crate::block::Extent;
use crate::error::Result;

/// One file of a tree, found again by this number alone: an inode number, an index.
///
/// It stays the same for as long as the tree is open. A tree that is grafted into another, as
/// filesystems are, keeps its numbers below 2^48: what combines trees numbers them in the upper 16
/// bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

/// A read-only tree of files. Positional, stateless, usable from any thread at once.
///
/// Names and link targets are bytes as stored. Paths are not known here: one name at a time.
pub trait FileTree: Send + Sync + Debug {
    /// The root folder.
    fn root(&self) -> NodeId;

    /// The entry `name` of the folder `dir`, or `None`. Never asked for `.` or `..`.
    ///
    /// # Errors
    /// [`Kind::NotADirectory`](crate::error::Kind::NotADirectory) if `dir` is none.
    fn lookup(&self, dir: NodeId, name: &[u8]) -> Result<Option<NodeId>>;

    /// What is known about a file.
    fn attr(&self, node: NodeId) -> Result<Attr>;

    /// Calls `emit` with the entries of `dir` after position `after`, in a stable order, without
    /// `.` and `..`, until it answers `false` (that entry counts as not taken) or the end.
    ///
    /// `after` is 0 or the `next` of an entry seen before.
    fn read_dir(
        &self,
        dir: NodeId,
        after: u64,
        emit: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<()>;

    /// The target of a symbolic link.
    fn read_link(&self, node: NodeId) -> Result<Vec<u8>>;

    /// Reads a regular file into `buf` from `offset` on; returns how many bytes there were, fewer
    /// than asked only at the end of the file.
    fn read_at(&self, node: NodeId, offset: u64, buf: &mut [u8]) -> Result<usize>;

    /// Whether a regular file has data or a hole at `offset`, which is below its size, and how
    /// far that is known to go on; see [`BlockSource::extent_at`](crate::block::BlockSource::extent_at).
    fn extent_at(&self, node: NodeId, offset: u64) -> Result<Extent>;

    /// The full names (`user.comment`) of a file's extended attributes.
    fn xattr_names(&self, node: NodeId) -> Result<Vec<Vec<u8>>>;

    /// The value of one extended attribute. POSIX ACLs come in the form the kernel's
    /// `system.posix_acl_access` has.
    fn xattr(&self, node: NodeId, name: &[u8]) -> Result<Option<Vec<u8>>>;

    /// Sizes of the filesystem as a whole.
    fn statfs(&self) -> Result<StatFs>;

    /// The host file whose bytes are exactly this file's, if there is one.
    fn whole_file(&self, node: NodeId) -> Option<&File>;
}

/// What is known about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// The node itself; shown as the inode number.
    pub node: NodeId,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky (`0o7777`).
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names it has.
    pub links: u32,
    /// Bytes of contents.
    pub size: u64,
    /// 512-byte blocks it takes.
    pub blocks: u64,
    /// Last read.
    pub accessed: Time,
    /// Last change of contents.
    pub modified: Time,
    /// Last change of anything.
    pub changed: Time,
    /// When it was made, where that is recorded.
    pub created: Option<Time>,
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A folder.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device of this number.
    CharDevice(Device),
    /// A block device of this number.
    BlockDevice(Device),
}

/// A device number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Which driver.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
}

/// A moment: seconds since 1970 (before it, negative) and nanoseconds after that second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanos: u32,
}

/// One entry of a folder.
#[derive(Debug, Clone, Copy)]
pub struct DirEntry<'a> {
    /// Its name.
    pub name: &'a [u8],
    /// The file it names.
    pub node: NodeId,
    /// Position to go on from, after this entry; never 0.
    pub next: u64,
}

/// Sizes of a filesystem, as `statfs` has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatFs {
    /// Bytes of one block.
    pub block_size: u32,
    /// All blocks.
    pub blocks: u64,
    /// Blocks not in use.
    pub free: u64,
    /// Blocks not in use that an ordinary user could have taken.
    pub available: u64,
    /// All files there can be.
    pub files: u64,
    /// Files there could be more.
    pub files_free: u64,
    /// Bytes of the longest name.
    pub name_max: u32,
}

#[cfg(test)]
pub(crate) mod tests;
