//! Inodes. Kernel documentation, `ext4/inodes.rst`.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::Ext4;
use super::cause::Cause;
use super::checksum::crc32c;
use super::extent;
use super::features::{incompat, ro_compat};
use super::superblock::Superblock;
use crate::error::Result;
use crate::tree::{Attr, Device, FileKind, NodeId, Time};
use crate::wire;

/// The root folder's inode.
pub(super) const ROOT: u32 = 2;

pub(super) mod flag {
    pub(in super::super) const COMPRESSED: u32 = 0x4;
    pub(in super::super) const ENCRYPTED: u32 = 0x800;
    pub(in super::super) const INDEX: u32 = 0x1000;
    pub(in super::super) const HUGE_FILE: u32 = 0x4_0000;
    pub(in super::super) const EXTENTS: u32 = 0x8_0000;
    pub(in super::super) const EA_INODE: u32 = 0x20_0000;
    pub(in super::super) const INLINE_DATA: u32 = 0x1000_0000;
    pub(in super::super) const CASEFOLD: u32 = 0x4000_0000;
}

/// The part of an inode that every revision has.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Record {
    mode: U16,
    uid_lo: U16,
    size_lo: U32,
    atime: U32,
    ctime: U32,
    mtime: U32,
    dtime: U32,
    gid_lo: U16,
    links_count: U16,
    blocks_lo: U32,
    flags: U32,
    version: U32,
    block: [u8; BLOCK_LEN],
    generation: U32,
    file_acl_lo: U32,
    size_hi: U32,
    fragment_address: U32,
    blocks_hi: U16,
    file_acl_hi: U16,
    uid_hi: U16,
    gid_hi: U16,
    checksum_lo: U16,
    reserved: U16,
}

/// What follows in larger inodes, as far as `extra_isize` says.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Extra {
    extra_isize: U16,
    checksum_hi: U16,
    ctime_extra: U32,
    mtime_extra: U32,
    atime_extra: U32,
    crtime: U32,
    crtime_extra: U32,
    version_hi: U32,
    projid: U32,
}

/// Bytes of `i_block`.
pub(super) const BLOCK_LEN: usize = 60;
/// Bytes of the part that every revision has.
pub(super) const BASE: usize = 128;
const CHECKSUM_LO: usize = 0x7c;
const CHECKSUM_HI: usize = 0x82;
const _: () = assert!(size_of::<Record>() == BASE);

mod format {
    pub(super) const MASK: u16 = 0o170_000;
    pub(super) const FIFO: u16 = 0o010_000;
    pub(super) const CHAR: u16 = 0o020_000;
    pub(super) const DIRECTORY: u16 = 0o040_000;
    pub(super) const BLOCK: u16 = 0o060_000;
    pub(super) const REGULAR: u16 = 0o100_000;
    pub(super) const SYMLINK: u16 = 0o120_000;
    pub(super) const SOCKET: u16 = 0o140_000;
}

/// A parsed inode.
#[derive(Debug, Clone)]
pub(super) struct Inode {
    pub(super) number: u32,
    pub(super) attr: Attr,
    pub(super) flags: u32,
    /// `i_block`: a block map, an extent tree's root, a short link's target, inline data.
    pub(super) block: [u8; BLOCK_LEN],
    /// The block of extended attributes, or 0.
    pub(super) attribute_block: u64,
    pub(super) generation: u32,
    /// What checksums of this inode's own blocks start from.
    pub(super) seed: u32,
    /// Where in the inode the attributes begin; the inode's end if there is no room for them.
    pub(super) body: usize,
    /// An attribute-value inode keeps the hash of its value in the seconds of its access time.
    pub(super) value_hash: u32,
    /// And, if an old Lustre server wrote it, its owner in those of its modification time.
    pub(super) value_owner: u32,
}

impl Inode {
    pub(super) fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn is_directory(&self) -> bool {
        self.attr.kind == FileKind::Directory
    }

    /// The journal's inode, as far as the superblock keeps a copy of it.
    pub(super) fn of_journal(sb: &Superblock) -> Option<Self> {
        let (block, size) = sb.journal_backup.filter(|(_, size)| *size <= i64::MAX as u64)?;
        let is_tree = wire::record::<U16>(&block, 0).is_some_and(|m| m.get() == extent::MAGIC);
        let never = Time::default();
        Some(Self {
            number: sb.journal_inode,
            attr: Attr {
                node: NodeId(u64::from(sb.journal_inode)),
                kind: FileKind::Regular,
                mode: 0o600,
                uid: 0,
                gid: 0,
                links: 1,
                size,
                blocks: 0,
                accessed: never,
                modified: never,
                changed: never,
                created: None,
            },
            flags: if is_tree { flag::EXTENTS } else { 0 },
            block,
            attribute_block: 0,
            generation: 0,
            seed: crc32c(crc32c(sb.checksum_seed, &sb.journal_inode.to_le_bytes()), &[0; 4]),
            body: sb.inode_size,
            value_hash: 0,
            value_owner: 0,
        })
    }

    /// Parses the `inode_size` bytes of inode `number`.
    fn parse(sb: &Superblock, number: u32, bytes: &[u8]) -> Result<Self, Cause> {
        let raw: &Record = wire::record(bytes, 0).ok_or(Cause::InodeFree(number))?;
        if raw.mode.get() == 0 && raw.links_count.get() == 0 {
            return Err(Cause::InodeFree(number));
        }
        let extra: Option<&Extra> = wire::record(bytes, BASE);
        let extra_size = extra.map_or(0, |extra| extra.extra_isize.get());
        let body = BASE + usize::from(extra_size);
        if body > bytes.len() || !extra_size.is_multiple_of(4) {
            return Err(Cause::ExtraSize { inode: number, size: extra_size });
        }
        let seed = crc32c(
            crc32c(sb.checksum_seed, &number.to_le_bytes()),
            &raw.generation.get().to_le_bytes(),
        );
        if sb.has_metadata_checksums() {
            check(number, seed, bytes, raw, extra, body)?;
        }
        let flags = raw.flags.get();
        // A field of the larger part counts if `extra_isize` reaches its end.
        let field = |offset: usize| {
            (BASE + offset + 4 <= body).then(|| wire::record::<U32>(bytes, BASE + offset)).flatten()
        };
        let time = |seconds: U32, offset: usize| time(seconds, field(offset).copied());
        let mode = raw.mode.get();
        let kind = kind(number, mode, &raw.block)?;
        let wide = matches!(kind, FileKind::Regular)
            || (sb.features.has_incompat(incompat::LARGEDIR) && kind == FileKind::Directory);
        let size_hi = if wide { u64::from(raw.size_hi.get()) } else { 0 };
        let size = size_hi << 32 | u64::from(raw.size_lo.get());
        if size > i64::MAX as u64 {
            return Err(Cause::FileSize { inode: number, size });
        }
        let upper = |half: U16| if sb.hurd { 0 } else { u64::from(half.get()) << 32 };
        Ok(Self {
            number,
            attr: Attr {
                node: NodeId(u64::from(number)),
                kind,
                mode: mode & 0o7777,
                uid: u32::from(raw.uid_hi.get()) << 16 | u32::from(raw.uid_lo.get()),
                gid: u32::from(raw.gid_hi.get()) << 16 | u32::from(raw.gid_lo.get()),
                links: u32::from(raw.links_count.get()),
                size,
                blocks: sectors(sb, raw, flags),
                accessed: time(raw.atime, 0xc),
                modified: time(raw.mtime, 0x8),
                changed: time(raw.ctime, 0x4),
                created: field(0x10).map(|&seconds| time(seconds, 0x14)),
            },
            flags,
            block: raw.block,
            attribute_block: upper(raw.file_acl_hi) | u64::from(raw.file_acl_lo.get()),
            generation: raw.generation.get(),
            seed,
            body,
            value_hash: raw.atime.get(),
            value_owner: raw.mtime.get(),
        })
    }
}

fn check(
    inode: u32,
    seed: u32,
    bytes: &[u8],
    raw: &Record,
    extra: Option<&Extra>,
    body: usize,
) -> Result<(), Cause> {
    let mut crc = crc32c(seed, &bytes[..CHECKSUM_LO]);
    crc = crc32c(crc, &[0; 2]);
    crc = crc32c(crc, &bytes[CHECKSUM_LO + 2..BASE]);
    let mut stored = u32::from(raw.checksum_lo.get());
    let mut computed_mask = 0xffff;
    if let Some(extra) = extra {
        let mut rest = CHECKSUM_HI;
        crc = crc32c(crc, &bytes[BASE..CHECKSUM_HI]);
        if body >= CHECKSUM_HI + 2 {
            crc = crc32c(crc, &[0; 2]);
            rest += 2;
            stored |= u32::from(extra.checksum_hi.get()) << 16;
            computed_mask = u32::MAX;
        }
        crc = crc32c(crc, &bytes[rest..]);
    }
    let computed = crc & computed_mask;
    if stored == computed { Ok(()) } else { Err(Cause::InodeChecksum { inode, stored, computed }) }
}

/// 512-byte units in use: counted in them, or for huge files in filesystem blocks.
fn sectors(sb: &Superblock, raw: &Record, flags: u32) -> u64 {
    let low = u64::from(raw.blocks_lo.get());
    if !sb.features.has_ro_compat(ro_compat::HUGE_FILE) {
        return low;
    }
    let count = u64::from(raw.blocks_hi.get()) << 32 | low;
    if flags & flag::HUGE_FILE != 0 { count * (sb.block_size / 512) } else { count }
}

/// Seconds are signed 32 bits; the extra word holds two more bits of them, and nanoseconds.
fn time(seconds: U32, extra: Option<U32>) -> Time {
    let low = i64::from(seconds.get().cast_signed());
    let extra = extra.map_or(0, U32::get);
    Time { seconds: low + (i64::from(extra & 3) << 32), nanos: (extra >> 2).min(999_999_999) }
}

fn kind(inode: u32, mode: u16, block: &[u8; BLOCK_LEN]) -> Result<FileKind, Cause> {
    Ok(match mode & format::MASK {
        format::FIFO => FileKind::Fifo,
        format::CHAR => FileKind::CharDevice(device(block)),
        format::DIRECTORY => FileKind::Directory,
        format::BLOCK => FileKind::BlockDevice(device(block)),
        format::REGULAR => FileKind::Regular,
        format::SYMLINK => FileKind::Symlink,
        format::SOCKET => FileKind::Socket,
        _ => return Err(Cause::Mode { inode, mode }),
    })
}

/// The number is in the first word of `i_block` (8-bit halves), or in the second (12 and 20 bits).
fn device(block: &[u8; BLOCK_LEN]) -> Device {
    let word = |at| wire::record::<U32>(block, at).map_or(0, |word| word.get());
    match word(0) {
        0 => {
            let new = word(4);
            Device { major: (new & 0xf_ff00) >> 8, minor: (new & 0xff) | ((new >> 12) & 0xf_ff00) }
        }
        old => Device { major: (old >> 8) & 0xff, minor: old & 0xff },
    }
}

impl Ext4 {
    /// The inode of this number, if it may be reached through a name.
    pub(super) fn inode(&self, number: u64) -> Result<Inode> {
        let sb = &self.sb;
        let ordinary = u32::try_from(number)
            .ok()
            .filter(|&number| number >= sb.first_inode || number == ROOT)
            .filter(|&number| number != sb.journal_inode && !sb.special_inodes.contains(&number))
            .ok_or(Cause::InodeNumber(number))?;
        let inode = self.any_inode(ordinary)?;
        if inode.attr.links == 0 || inode.has(flag::EA_INODE) {
            return Err(Cause::InodeFree(ordinary).into());
        }
        Ok(inode)
    }

    /// The inode of this number, also one of the format's own.
    pub(super) fn any_inode(&self, number: u32) -> Result<Inode> {
        self.inode_bytes(number, |bytes| Inode::parse(&self.sb, number, bytes))?.map_err(Into::into)
    }

    /// Calls `read` with the bytes of an inode as they are on disk, `inode_size` of them.
    pub(super) fn inode_bytes<R>(&self, number: u32, read: impl FnOnce(&[u8]) -> R) -> Result<R> {
        let sb = &self.sb;
        if number == 0 || number > sb.inodes {
            return Err(Cause::InodeNumber(u64::from(number)).into());
        }
        let (group, index) =
            ((number - 1) / sb.inodes_per_group, (number - 1) % sb.inodes_per_group);
        let table = self.inode_table(u64::from(group))?;
        let offset = table * sb.block_size + u64::from(index) * sb.inode_size as u64;
        self.metadata("inode table block", offset, sb.inode_size, read)
    }
}
