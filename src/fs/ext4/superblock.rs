//! The superblock: geometry and features. Kernel documentation, `ext4/super.rst`.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::cause::Cause;
use super::checksum::crc32c;
use super::features::{Features, compat, incompat, ro_compat};
use super::inode::BLOCK_LEN;
use crate::wire;

/// Where the superblock is, in bytes of the volume, whatever the block size.
pub(super) const OFFSET: u64 = 1024;
/// Its length.
pub(super) const LEN: usize = 1024;
pub(super) const MAGIC: u16 = 0xef53;
/// Where the checksum is: it covers what is before.
const CHECKSUM_OFFSET: usize = LEN - 4;

/// The superblock as it is on disk.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Record {
    inodes_count: U32,
    blocks_count_lo: U32,
    r_blocks_count_lo: U32,
    free_blocks_count_lo: U32,
    free_inodes_count: U32,
    first_data_block: U32,
    log_block_size: U32,
    log_cluster_size: U32,
    blocks_per_group: U32,
    clusters_per_group: U32,
    inodes_per_group: U32,
    mtime: U32,
    wtime: U32,
    mnt_count: U16,
    max_mnt_count: U16,
    magic: U16,
    state: U16,
    errors: U16,
    minor_rev_level: U16,
    lastcheck: U32,
    checkinterval: U32,
    creator_os: U32,
    rev_level: U32,
    def_resuid: U16,
    def_resgid: U16,
    first_ino: U32,
    inode_size: U16,
    block_group_nr: U16,
    feature_compat: U32,
    feature_incompat: U32,
    feature_ro_compat: U32,
    uuid: [u8; 16],
    volume_name: [u8; 16],
    last_mounted: [u8; 64],
    algorithm_usage_bitmap: U32,
    prealloc_blocks: u8,
    prealloc_dir_blocks: u8,
    reserved_gdt_blocks: U16,
    journal_uuid: [u8; 16],
    journal_inum: U32,
    journal_dev: U32,
    last_orphan: U32,
    hash_seed: [U32; 4],
    def_hash_version: u8,
    jnl_backup_type: u8,
    desc_size: U16,
    default_mount_opts: U32,
    first_meta_bg: U32,
    mkfs_time: U32,
    jnl_blocks: [U32; 17],
    blocks_count_hi: U32,
    r_blocks_count_hi: U32,
    free_blocks_count_hi: U32,
    min_extra_isize: U16,
    want_extra_isize: U16,
    flags: U32,
    raid_stride: U16,
    mmp_interval: U16,
    mmp_block: U64,
    raid_stripe_width: U32,
    log_groups_per_flex: u8,
    checksum_type: u8,
    reserved_pad: U16,
    kbytes_written: U64,
    snapshot: [u8; 20],
    error_log: [u8; 108],
    mount_opts: [u8; 64],
    usr_quota_inum: U32,
    grp_quota_inum: U32,
    overhead_clusters: U32,
    backup_bgs: [U32; 2],
    encrypt_algos: [u8; 4],
    encrypt_pw_salt: [u8; 16],
    lpf_ino: U32,
    prj_quota_inum: U32,
    checksum_seed: U32,
    time_hi: [u8; 8],
    encoding: U16,
    encoding_flags: U16,
    orphan_file_inum: U32,
    reserved: [U32; 94],
    checksum: U32,
}

const _: () = assert!(size_of::<Record>() == LEN);

const STATE_VALID: u16 = 1;
const STATE_ERRORS: u16 = 2;
const FLAG_UNSIGNED_HASH: u32 = 2;
/// `s_jnl_backup_type` when `s_jnl_blocks` holds anything.
const BACKUP_OF_BLOCKS: u8 = 1;
const OS_HURD: u32 = 1;
const REV_ORIGINAL: u32 = 0;
const REV_DYNAMIC: u32 = 1;

/// The seed of folder hashes when the superblock's is all zeros.
const DEFAULT_HASH_SEED: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];

/// What the superblock says, checked: no number here can make an address overflow.
#[derive(Debug, Clone)]
pub(super) struct Superblock {
    pub(super) features: Features,
    /// Bytes of a block, a power of two from 1 KiB to 64 KiB.
    pub(super) block_size: u64,
    /// Blocks in all; `blocks * block_size` fits in 63 bits.
    pub(super) blocks: u64,
    /// Blocks kept for the superuser.
    pub(super) reserved_blocks: u64,
    pub(super) free_blocks: u64,
    /// Blocks the format itself takes, where recorded.
    pub(super) overhead_blocks: u64,
    pub(super) first_data_block: u64,
    /// Blocks of one group, also with `bigalloc`.
    pub(super) blocks_per_group: u64,
    pub(super) inodes: u32,
    pub(super) free_inodes: u32,
    pub(super) inodes_per_group: u32,
    /// Bytes of an inode, a power of two from 128 to the block size.
    pub(super) inode_size: usize,
    /// The first inode that is not the format's own.
    pub(super) first_inode: u32,
    /// Bytes of a group descriptor: 32, or a power of two from 64 to 1,024.
    pub(super) descriptor_size: u64,
    pub(super) first_meta_group: u64,
    backup_groups: [u32; 2],
    /// Bytes of an allocation unit.
    pub(super) cluster_size: u64,
    pub(super) uuid: [u8; 16],
    pub(super) label: Vec<u8>,
    /// What every metadata checksum starts from.
    pub(super) checksum_seed: u32,
    pub(super) hash_seed: [u32; 4],
    pub(super) hash_unsigned: bool,
    pub(super) default_hash: u8,
    pub(super) journal_inode: u32,
    pub(super) journal_device: u32,
    /// What the journal's inode had in `i_block`, and its size: kept in case it is lost.
    pub(super) journal_backup: Option<([u8; BLOCK_LEN], u64)>,
    pub(super) last_orphan: u32,
    /// Inodes that hold the format's own data though their numbers are ordinary.
    pub(super) special_inodes: [u32; 4],
    pub(super) hurd: bool,
    pub(super) valid: bool,
    pub(super) errors: bool,
}

impl Superblock {
    /// Parses and checks the 1,024 bytes of a superblock.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Cause> {
        let raw: &Record = wire::record(bytes, 0).ok_or(Cause::NoSuperblock)?;
        if raw.magic.get() != MAGIC {
            return Err(Cause::NoSuperblock);
        }
        let features = Features {
            compat: raw.feature_compat.get(),
            incompat: raw.feature_incompat.get(),
            ro_compat: raw.feature_ro_compat.get(),
        };
        if features.has_ro_compat(ro_compat::METADATA_CSUM) {
            if raw.checksum_type != 1 {
                return Err(Cause::ChecksumType(raw.checksum_type));
            }
            let stored = raw.checksum.get();
            let computed = crc32c(!0, &bytes[..CHECKSUM_OFFSET]);
            if stored != computed {
                return Err(Cause::SuperblockChecksum { stored, computed });
            }
        }
        features.check()?;
        let revision = raw.rev_level.get();
        if revision > REV_DYNAMIC {
            return Err(Cause::Revision(revision));
        }
        let geometry = Geometry::parse(raw, features)?;
        let (inode_size, first_inode) = inode_layout(raw, geometry.block_size)?;
        let per_block = geometry.block_size / inode_size as u64;
        let inodes_per_group = raw.inodes_per_group.get();
        if u64::from(inodes_per_group) < per_block
            || u64::from(inodes_per_group) > geometry.block_size * 8
        {
            return Err(Cause::InodesPerGroup(inodes_per_group));
        }
        let (inodes, groups) = (raw.inodes_count.get(), geometry.groups);
        if inodes < first_inode || u64::from(inodes) > groups * u64::from(inodes_per_group) {
            return Err(Cause::InodeCount { inodes, groups, per_group: inodes_per_group });
        }
        let wide = |lo: U32, hi: U32| {
            let hi = if features.has_incompat(incompat::BIT64) { hi.get() } else { 0 };
            u64::from(hi) << 32 | u64::from(lo.get())
        };
        let hash_seed = raw.hash_seed.map(U32::get);
        let end = raw.volume_name.iter().position(|&byte| byte == 0).unwrap_or(16);
        Ok(Self {
            features,
            block_size: geometry.block_size,
            blocks: geometry.blocks,
            reserved_blocks: wide(raw.r_blocks_count_lo, raw.r_blocks_count_hi),
            free_blocks: wide(raw.free_blocks_count_lo, raw.free_blocks_count_hi)
                .min(geometry.blocks),
            overhead_blocks: (u64::from(raw.overhead_clusters.get())
                * (geometry.cluster_size / geometry.block_size))
                .min(geometry.blocks),
            first_data_block: geometry.first_data_block,
            blocks_per_group: geometry.blocks_per_group,
            inodes,
            free_inodes: raw.free_inodes_count.get().min(inodes),
            inodes_per_group,
            inode_size,
            first_inode,
            descriptor_size: descriptor_size(raw, features)?,
            first_meta_group: u64::from(raw.first_meta_bg.get()),
            backup_groups: raw.backup_bgs.map(U32::get),
            cluster_size: geometry.cluster_size,
            uuid: raw.uuid,
            label: raw.volume_name[..end].to_vec(),
            checksum_seed: if features.has_incompat(incompat::CSUM_SEED) {
                raw.checksum_seed.get()
            } else {
                crc32c(!0, &raw.uuid)
            },
            hash_seed: if hash_seed == [0; 4] { DEFAULT_HASH_SEED } else { hash_seed },
            hash_unsigned: raw.flags.get() & FLAG_UNSIGNED_HASH != 0,
            default_hash: raw.def_hash_version,
            journal_inode: raw.journal_inum.get(),
            journal_device: raw.journal_dev.get(),
            journal_backup: (raw.jnl_backup_type == BACKUP_OF_BLOCKS).then(|| {
                let [.., hi, lo] = raw.jnl_blocks;
                let mut block = [0; BLOCK_LEN];
                block.copy_from_slice(&raw.jnl_blocks.as_bytes()[..BLOCK_LEN]);
                (block, u64::from(hi.get()) << 32 | u64::from(lo.get()))
            }),
            last_orphan: raw.last_orphan.get(),
            special_inodes: [
                raw.usr_quota_inum.get(),
                raw.grp_quota_inum.get(),
                raw.prj_quota_inum.get(),
                raw.orphan_file_inum.get(),
            ],
            hurd: raw.creator_os.get() == OS_HURD,
            valid: raw.state.get() & STATE_VALID != 0,
            errors: raw.state.get() & STATE_ERRORS != 0,
        })
    }

    pub(super) fn has_metadata_checksums(&self) -> bool {
        self.features.has_ro_compat(ro_compat::METADATA_CSUM)
    }

    pub(super) fn has_journal(&self) -> bool {
        self.features.has_compat(compat::HAS_JOURNAL)
    }

    /// Whether `group` begins with a copy of the superblock.
    pub(super) fn has_superblock(&self, group: u64) -> bool {
        if group == 0 {
            return true;
        }
        if self.features.has_compat(compat::SPARSE_SUPER2) {
            return self.backup_groups.iter().any(|&backup| u64::from(backup) == group);
        }
        if group == 1 || !self.features.has_ro_compat(ro_compat::SPARSE_SUPER) {
            return true;
        }
        [3, 5, 7].into_iter().any(|base| {
            let mut power: u64 = base;
            while power < group {
                power *= base;
            }
            power == group
        })
    }

    /// Whether `len` blocks at `block` lie where a file or a table may have blocks.
    pub(super) fn holds(&self, block: u64, len: u64) -> bool {
        block > self.first_data_block
            && block.checked_add(len).is_some_and(|end| end <= self.blocks)
    }

    /// `ext2`, `ext3` or `ext4`, by the features in use.
    pub(super) fn kind(&self) -> &'static str {
        let old = incompat::FILETYPE | incompat::RECOVER | incompat::META_BG;
        if self.features.incompat & !old != 0 || self.features.has_ro_compat(ro_compat::EXT4) {
            "ext4"
        } else if self.has_journal() {
            "ext3"
        } else {
            "ext2"
        }
    }
}

/// Sizes and counts of blocks and groups.
struct Geometry {
    block_size: u64,
    cluster_size: u64,
    blocks: u64,
    first_data_block: u64,
    blocks_per_group: u64,
    groups: u64,
}

impl Geometry {
    fn parse(raw: &Record, features: Features) -> Result<Self, Cause> {
        let log = raw.log_block_size.get();
        if log > 6 {
            return Err(Cause::BlockSize(log));
        }
        let block_size = 1024 << log;
        let bigalloc = features.has_ro_compat(ro_compat::BIGALLOC);
        let log_cluster = raw.log_cluster_size.get();
        // The largest cluster is 2^30 bytes.
        if bigalloc && !(log..=20).contains(&log_cluster) {
            return Err(Cause::ClusterSize(log_cluster));
        }
        let cluster_size = if bigalloc { 1024 << log_cluster } else { block_size };
        let blocks_per_group = u64::from(raw.blocks_per_group.get());
        // One block of bits says which of a group's clusters are in use.
        if blocks_per_group == 0 || blocks_per_group / (cluster_size / block_size) > block_size * 8
        {
            return Err(Cause::BlocksPerGroup(raw.blocks_per_group.get()));
        }
        let hi = if features.has_incompat(incompat::BIT64) { raw.blocks_count_hi.get() } else { 0 };
        let blocks = u64::from(hi) << 32 | u64::from(raw.blocks_count_lo.get());
        if blocks.checked_mul(block_size).is_none_or(|bytes| bytes > i64::MAX as u64) {
            return Err(Cause::BlockCount(blocks));
        }
        let first = raw.first_data_block.get();
        let first_data_block = u64::from(first);
        if first_data_block >= blocks || (block_size == 1024 && first == 0 && !bigalloc) {
            return Err(Cause::FirstDataBlock { first, blocks });
        }
        let groups = (blocks - first_data_block).div_ceil(blocks_per_group);
        if groups > u64::from(u32::MAX) {
            return Err(Cause::BlockCount(blocks));
        }
        Ok(Self { block_size, cluster_size, blocks, first_data_block, blocks_per_group, groups })
    }
}

fn inode_layout(raw: &Record, block_size: u64) -> Result<(usize, u32), Cause> {
    if raw.rev_level.get() == REV_ORIGINAL {
        return Ok((128, 11));
    }
    let size = raw.inode_size.get();
    if size < 128 || !size.is_power_of_two() || u64::from(size) > block_size {
        return Err(Cause::InodeSize(size));
    }
    Ok((usize::from(size), raw.first_ino.get().max(11)))
}

fn descriptor_size(raw: &Record, features: Features) -> Result<u64, Cause> {
    if !features.has_incompat(incompat::BIT64) {
        return Ok(32);
    }
    let size = raw.desc_size.get();
    if !(64..=1024).contains(&size) || !size.is_power_of_two() {
        return Err(Cause::DescriptorSize(size));
    }
    Ok(u64::from(size))
}
