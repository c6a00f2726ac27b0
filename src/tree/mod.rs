//! Files: the tree trait, and what combines trees.

pub mod composed;
pub mod difference;
pub mod folder;
pub mod overlay;
pub mod path;

use std::fmt::Debug;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use crate::block::{Extent, Origin};
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

    /// Where the bytes of a regular file at `offset`, which is below its size, finally lie; see
    /// [`BlockSource::origin_at`](crate::block::BlockSource::origin_at).
    fn origin_at(&self, node: NodeId, offset: u64) -> Result<Origin>;

    /// The full names (`user.comment`) of a file's extended attributes.
    fn xattr_names(&self, node: NodeId) -> Result<Vec<Vec<u8>>>;

    /// The value of one extended attribute. POSIX ACLs come in the form the kernel's
    /// `system.posix_acl_access` has.
    fn xattr(&self, node: NodeId, name: &[u8]) -> Result<Option<Vec<u8>>>;

    /// Sizes of the filesystem as a whole.
    fn statfs(&self) -> Result<StatFs>;

    /// The host file whose bytes are exactly this file's, if there is one.
    fn whole_file(&self, node: NodeId) -> Option<&File>;

    /// How long what is said of `node`, and of the names in it if it is a folder, may be believed; `None` says
    /// for ever. Of a tree that changes by itself, the root has an answer.
    fn lifetime(&self, _node: NodeId) -> Option<Duration> {
        None
    }
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

/// A tree whose files can be changed.
///
/// Everything is asked by node, as in [`FileTree`], and may come from any thread at once. A node
/// stays what it is over renames, over the removal of its last name while it is held, and over its
/// first change. Permissions are not checked here: whoever asks has.
///
/// Where the host failed, the error's cause is its [`std::io::Error`]: what mounts the tree passes
/// that errno on, so `EXDEV`, `ENODATA` or `EMLINK` are told by an error made of that errno.
pub trait WritableTree: FileTree {
    /// Makes the file `name` in `dir`.
    ///
    /// `mode` has not been masked: the folder's default ACL takes the place of the caller's umask,
    /// as POSIX says. The owner is the caller, but for the group where `dir` has setgid.
    fn create(
        &self,
        dir: NodeId,
        name: &[u8],
        new: &NewFile<'_>,
        caller: &Caller,
    ) -> Result<NodeId>;

    /// Gives the file `node` the further name `name` in `dir`.
    fn link(&self, node: NodeId, dir: NodeId, name: &[u8]) -> Result<()>;

    /// Renames `from.1` in `from.0` to `to.1` in `to.0`.
    fn rename(&self, from: (NodeId, &[u8]), to: (NodeId, &[u8]), how: Rename) -> Result<()>;

    /// Removes the name `name` of a file that is no folder.
    fn unlink(&self, dir: NodeId, name: &[u8]) -> Result<()>;

    /// Removes the empty folder `name`.
    fn remove_dir(&self, dir: NodeId, name: &[u8]) -> Result<()>;

    /// Changes attributes; all of them or, after an error, some.
    fn set_attr(&self, node: NodeId, changes: &Changes) -> Result<()>;

    /// Writes all of `data` to a regular file, which grows if it ends before.
    fn write_at(&self, node: NodeId, offset: u64, data: &[u8]) -> Result<()>;

    /// What `fallocate` does to a regular file.
    fn allocate(&self, node: NodeId, offset: u64, len: u64, how: Allocate) -> Result<()>;

    /// Sets an extended attribute.
    fn set_xattr(&self, node: NodeId, name: &[u8], value: &[u8], how: SetXattr) -> Result<()>;

    /// Removes an extended attribute.
    fn remove_xattr(&self, node: NodeId, name: &[u8]) -> Result<()>;

    /// Returns once the file (of a folder: its entries) is on stable storage.
    fn sync(&self, node: NodeId) -> Result<()>;

    /// Returns once the whole tree is. Called at the end of a mount, too.
    fn sync_all(&self) -> Result<()>;

    /// The file is open from here on: it outlives its names until it is released as often. `write`
    /// says that it may be written through this opening.
    fn hold(&self, node: NodeId, write: bool) -> Result<()>;

    /// One opening ended.
    fn release(&self, node: NodeId);

    /// The kernel has forgotten `node`: what is remembered of it may go, unless it is held. It is
    /// found again by [`FileTree::lookup`] or [`FileTree::read_dir`].
    fn forget(&self, node: NodeId);

    /// The host file, open for reading and writing, whose bytes are exactly those of a held regular
    /// file, now and until it is released: the kernel may then read and write it without us.
    fn backing_file(&self, node: NodeId) -> Option<Arc<File>>;

    /// Whether files have bytes in common, so that a write to one changes others, and whether they
    /// cannot grow: a disk and its partitions do so. The kernel then keeps nothing back of what is
    /// written, and what it has cached of a file is dropped once another was written.
    fn shares_bytes(&self) -> bool {
        false
    }

    /// Whether any file has, or can be given, an extended attribute. If not, the kernel saves
    /// asking for `security.capability` before each write.
    fn has_xattrs(&self) -> bool {
        true
    }
}

/// Lists a folder of a tree that is a part of another one, where its nodes have other numbers.
///
/// # Errors
/// As [`FileTree::read_dir`], and those of `number`, which end the listing.
pub(crate) fn read_dir_as(
    tree: &dyn FileTree,
    dir: NodeId,
    after: u64,
    number: &dyn Fn(NodeId) -> Result<NodeId>,
    emit: &mut dyn FnMut(DirEntry<'_>) -> bool,
) -> Result<()> {
    let mut failed = None;
    tree.read_dir(dir, after, &mut |entry| match number(entry.node) {
        Ok(node) => emit(DirEntry { node, ..entry }),
        Err(error) => {
            failed = Some(error);
            false
        }
    })?;
    failed.map_or(Ok(()), Err)
}

/// A tree to serve, and whether it can be changed.
#[derive(Debug, Clone)]
pub enum Served {
    /// It never changes.
    ReadOnly(Arc<dyn FileTree>),
    /// It does.
    Writable(Arc<dyn WritableTree>),
}

impl Served {
    /// Its files, for reading.
    pub fn files(&self) -> Arc<dyn FileTree> {
        match self {
            Self::ReadOnly(tree) => Arc::clone(tree),
            Self::Writable(tree) => Arc::<dyn WritableTree>::clone(tree),
        }
    }
}

/// Who asks for a new file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Its owner.
    pub uid: u32,
    /// Its group, unless the folder has setgid.
    pub gid: u32,
    /// Permission bits it takes away where the folder has no default ACL.
    pub umask: u16,
}

/// A file to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewFile<'a> {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky; not used for a symbolic link.
    pub mode: u16,
    /// Where a symbolic link points; empty for anything else.
    pub target: &'a [u8],
}

/// What becomes of a file in the way of a rename.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rename {
    /// It is replaced.
    Replace,
    /// The rename fails.
    NoReplace,
    /// It takes the other's place.
    Exchange,
    /// It is replaced, and a whiteout (a character device 0:0) takes the place of what moved.
    Whiteout,
}

/// Attributes to change; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    /// Permission bits with setuid, setgid and sticky.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Bytes of contents: cut, or grown by a hole.
    pub size: Option<u64>,
    /// Last read.
    pub accessed: Option<SetTime>,
    /// Last change of contents.
    pub modified: Option<SetTime>,
}

/// A moment to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// The moment of the call.
    Now,
    /// This one.
    To(Time),
}

/// What `fallocate` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocate {
    /// Reserves room; the file grows if `grow`.
    Reserve {
        /// Whether the size follows.
        grow: bool,
    },
    /// Makes a hole; the size stays.
    Punch,
    /// Makes zeros; the file grows if `grow`.
    Zero {
        /// Whether the size follows.
        grow: bool,
    },
}

/// Whether an extended attribute may, must or must not be there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetXattr {
    /// Either.
    Any,
    /// It must not.
    Create,
    /// It must.
    Replace,
}

#[cfg(test)]
pub(crate) mod tests;
