//! Why an ext filesystem, or one object of it, was refused.

use thiserror::Error;

use crate::error::{Error, Kind};

/// The exact reason. Offsets are bytes of the volume, blocks are filesystem blocks.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum Cause {
    #[error("no ext2/ext3/ext4 superblock at offset 1024")]
    NoSuperblock,
    #[error("superblock: checksum {stored:#010x}, computed {computed:#010x}")]
    SuperblockChecksum { stored: u32, computed: u32 },
    #[error("superblock: checksum algorithm {0} is unknown")]
    ChecksumType(u8),
    #[error("superblock: feature {0}")]
    Feature(String),
    #[error("superblock: it is the journal device of another filesystem")]
    JournalDevice,
    #[error("superblock: revision {0}")]
    Revision(u32),
    #[error("superblock: s_log_block_size is {0}; at most 6 makes sense")]
    BlockSize(u32),
    #[error("superblock: s_log_cluster_size is {0}")]
    ClusterSize(u32),
    #[error("superblock: s_inode_size is {0}")]
    InodeSize(u16),
    #[error("superblock: s_desc_size is {0}")]
    DescriptorSize(u16),
    #[error("superblock: s_blocks_per_group is {0}")]
    BlocksPerGroup(u32),
    #[error("superblock: s_inodes_per_group is {0}")]
    InodesPerGroup(u32),
    #[error("superblock: s_inodes_count is {inodes} in {groups} groups of {per_group}")]
    InodeCount { inodes: u32, groups: u64, per_group: u32 },
    #[error("superblock: s_first_data_block is {first} of {blocks} blocks")]
    FirstDataBlock { first: u32, blocks: u64 },
    #[error("superblock: s_blocks_count is {0}")]
    BlockCount(u64),
    #[error("{what} {block} lies beyond the end of the image")]
    BeyondImage { what: &'static str, block: u64 },
    #[error("group {group}: descriptor checksum {stored:#06x}, computed {computed:#06x}")]
    DescriptorChecksum { group: u64, stored: u16, computed: u16 },
    #[error("group {group}: inode table at block {block}")]
    InodeTable { group: u64, block: u64 },
    #[error("inode {0} does not exist")]
    InodeNumber(u64),
    #[error("inode {0} is free or deleted")]
    InodeFree(u32),
    #[error("inode {inode}: checksum {stored:#010x}, computed {computed:#010x}")]
    InodeChecksum { inode: u32, stored: u32, computed: u32 },
    #[error("inode {inode}: i_extra_isize is {size}")]
    ExtraSize { inode: u32, size: u16 },
    #[error("inode {inode}: i_size is {size:#x}")]
    FileSize { inode: u32, size: u64 },
    #[error("inode {inode}: i_mode is {mode:#o}")]
    Mode { inode: u32, mode: u16 },
    #[error("inode {inode}: extent node magic {magic:#06x}")]
    ExtentMagic { inode: u32, magic: u16 },
    #[error("inode {inode}: extent node of depth {depth}, expected {expected}")]
    ExtentDepth { inode: u32, depth: u16, expected: u16 },
    #[error("inode {inode}: extent node holds {entries} of at most {max} entries")]
    ExtentEntries { inode: u32, entries: u16, max: u16 },
    #[error("inode {inode}: extent at logical block {block} is empty, out of order or overlaps")]
    ExtentOrder { inode: u32, block: u32 },
    #[error("inode {inode}: extent node at block {block}: checksum")]
    ExtentChecksum { inode: u32, block: u64 },
    #[error("inode {inode}: {len} blocks at block {block} lie outside the filesystem")]
    BlockRange { inode: u32, block: u64, len: u64 },
    #[error("inode {inode}: inline data without its feature or its attribute")]
    InlineData { inode: u32 },
    #[error("folder {inode}: entry at {offset:#x} has record length {len}")]
    EntryLength { inode: u32, offset: u64, len: u32 },
    #[error("folder {inode}: entry at {offset:#x} has a name of {len} bytes")]
    EntryName { inode: u32, offset: u64, len: u8 },
    #[error("folder {inode}: entry at {offset:#x} names inode {target}")]
    EntryInode { inode: u32, offset: u64, target: u32 },
    #[error("folder {inode}: block at {offset:#x}: checksum")]
    FolderChecksum { inode: u32, offset: u64 },
    #[error("folder {inode}: hole at {offset:#x}")]
    FolderHole { inode: u32, offset: u64 },
    #[error("folder {inode}: hash index: {what}")]
    HashIndex { inode: u32, what: &'static str },
    #[error("inode {inode}: symbolic link of {size} bytes")]
    LinkLength { inode: u32, size: u64 },
    #[error("inode {inode}: attribute block {block}: {what}")]
    AttributeBlock { inode: u32, block: u64, what: &'static str },
    #[error("inode {inode}: attribute entry at {offset:#x}: {what}")]
    AttributeEntry { inode: u32, offset: usize, what: &'static str },
    #[error("inode {inode}: attribute value in inode {value}: {what}")]
    AttributeInode { inode: u32, value: u32, what: &'static str },
    #[error("inode {inode}: access control list: {what}")]
    Acl { inode: u32, what: &'static str },
    #[error("inode {0}: contents encrypted, and the key is not known")]
    Encrypted(u32),
    #[error("inode {0}: compressed contents")]
    Compressed(u32),
    #[error("journal: inode {0} is no journal")]
    JournalInode(u32),
    #[error("journal: superblock: {0}")]
    JournalSuperblock(&'static str),
    #[error("journal: feature {0}")]
    JournalFeature(String),
    #[error("journal: its superblock has checksum {stored:#010x}, computed {computed:#010x}")]
    JournalChecksum { stored: u32, computed: u32 },
    #[error("journal: block {0} has no place in the journal's file")]
    JournalHole(u64),
    #[error("journal: block {block} of transaction {sequence}: {what}")]
    JournalBlock { block: u64, sequence: u32, what: &'static str },
    #[error("journal: its copy of block {0} is damaged, and what stands in its place is outdated")]
    JournalCopy(u64),
    #[error("journal: more than {0} blocks to replay")]
    JournalTooLarge(usize),
}

impl Cause {
    const fn kind(&self) -> Kind {
        match self {
            Cause::ChecksumType(_)
            | Cause::Feature(_)
            | Cause::JournalDevice
            | Cause::Revision(_)
            | Cause::Compressed(_)
            | Cause::JournalFeature(_) => Kind::Unsupported,
            Cause::Encrypted(_) => Kind::Encrypted,
            _ => Kind::Corrupt,
        }
    }
}

impl From<Cause> for Error {
    fn from(cause: Cause) -> Self {
        Error::caused_by(cause.kind(), cause)
    }
}
