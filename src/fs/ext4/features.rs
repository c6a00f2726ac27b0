//! The three feature sets of the superblock: bits, names, and what is refused.

use super::cause::Cause;

pub(super) mod compat {
    pub(in super::super) const HAS_JOURNAL: u32 = 0x4;
    pub(in super::super) const SPARSE_SUPER2: u32 = 0x200;
    pub(in super::super) const FAST_COMMIT: u32 = 0x400;
}

pub(super) mod incompat {
    pub(in super::super) const FILETYPE: u32 = 0x2;
    pub(in super::super) const RECOVER: u32 = 0x4;
    pub(in super::super) const JOURNAL_DEV: u32 = 0x8;
    pub(in super::super) const META_BG: u32 = 0x10;
    pub(in super::super) const EXTENTS: u32 = 0x40;
    pub(in super::super) const BIT64: u32 = 0x80;
    pub(in super::super) const MMP: u32 = 0x100;
    pub(in super::super) const FLEX_BG: u32 = 0x200;
    pub(in super::super) const EA_INODE: u32 = 0x400;
    pub(in super::super) const CSUM_SEED: u32 = 0x2000;
    pub(in super::super) const LARGEDIR: u32 = 0x4000;
    pub(in super::super) const INLINE_DATA: u32 = 0x8000;
    pub(in super::super) const ENCRYPT: u32 = 0x1_0000;
    pub(in super::super) const CASEFOLD: u32 = 0x2_0000;
    /// What this reader reads. Everything else is refused by name.
    pub(in super::super) const KNOWN: u32 = FILETYPE
        | RECOVER
        | META_BG
        | EXTENTS
        | BIT64
        | MMP
        | FLEX_BG
        | EA_INODE
        | CSUM_SEED
        | LARGEDIR
        | INLINE_DATA
        | ENCRYPT
        | CASEFOLD;
}

pub(super) mod ro_compat {
    pub(in super::super) const SPARSE_SUPER: u32 = 0x1;
    pub(in super::super) const HUGE_FILE: u32 = 0x8;
    pub(in super::super) const GDT_CSUM: u32 = 0x10;
    pub(in super::super) const BIGALLOC: u32 = 0x200;
    pub(in super::super) const METADATA_CSUM: u32 = 0x400;
    pub(in super::super) const ORPHAN_PRESENT: u32 = 0x1_0000;
    /// Features that no ext3 driver knew.
    pub(in super::super) const EXT4: u32 = 0x8 | 0x10 | 0x20 | 0x40 | 0x200 | 0x400;
}

/// Which of the three sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Set {
    Compat,
    Incompat,
    RoCompat,
}

/// The names that `dumpe2fs` and `mke2fs -O` use.
const NAMES: &[(Set, u32, &str)] = &[
    (Set::Compat, 0x1, "dir_prealloc"),
    (Set::Compat, 0x2, "imagic_inodes"),
    (Set::Compat, compat::HAS_JOURNAL, "has_journal"),
    (Set::Compat, 0x8, "ext_attr"),
    (Set::Compat, 0x10, "resize_inode"),
    (Set::Compat, 0x20, "dir_index"),
    (Set::Compat, 0x40, "lazy_bg"),
    (Set::Compat, 0x80, "snapshot_inode"),
    (Set::Compat, 0x100, "snapshot_bitmap"),
    (Set::Compat, compat::SPARSE_SUPER2, "sparse_super2"),
    (Set::Compat, compat::FAST_COMMIT, "fast_commit"),
    (Set::Compat, 0x800, "stable_inodes"),
    (Set::Compat, 0x1000, "orphan_file"),
    (Set::Incompat, 0x1, "compression"),
    (Set::Incompat, incompat::FILETYPE, "filetype"),
    (Set::Incompat, incompat::RECOVER, "needs_recovery"),
    (Set::Incompat, incompat::JOURNAL_DEV, "journal_dev"),
    (Set::Incompat, incompat::META_BG, "meta_bg"),
    (Set::Incompat, incompat::EXTENTS, "extent"),
    (Set::Incompat, incompat::BIT64, "64bit"),
    (Set::Incompat, incompat::MMP, "mmp"),
    (Set::Incompat, incompat::FLEX_BG, "flex_bg"),
    (Set::Incompat, incompat::EA_INODE, "ea_inode"),
    (Set::Incompat, 0x1000, "dirdata"),
    (Set::Incompat, incompat::CSUM_SEED, "metadata_csum_seed"),
    (Set::Incompat, incompat::LARGEDIR, "large_dir"),
    (Set::Incompat, incompat::INLINE_DATA, "inline_data"),
    (Set::Incompat, incompat::ENCRYPT, "encrypt"),
    (Set::Incompat, incompat::CASEFOLD, "casefold"),
    (Set::RoCompat, ro_compat::SPARSE_SUPER, "sparse_super"),
    (Set::RoCompat, 0x2, "large_file"),
    (Set::RoCompat, 0x4, "btree_dir"),
    (Set::RoCompat, ro_compat::HUGE_FILE, "huge_file"),
    (Set::RoCompat, ro_compat::GDT_CSUM, "uninit_bg"),
    (Set::RoCompat, 0x20, "dir_nlink"),
    (Set::RoCompat, 0x40, "extra_isize"),
    (Set::RoCompat, 0x80, "snapshot"),
    (Set::RoCompat, 0x100, "quota"),
    (Set::RoCompat, ro_compat::BIGALLOC, "bigalloc"),
    (Set::RoCompat, ro_compat::METADATA_CSUM, "metadata_csum"),
    (Set::RoCompat, 0x800, "replica"),
    (Set::RoCompat, 0x1000, "read-only"),
    (Set::RoCompat, 0x2000, "project"),
    (Set::RoCompat, 0x4000, "shared_blocks"),
    (Set::RoCompat, 0x8000, "verity"),
    (Set::RoCompat, ro_compat::ORPHAN_PRESENT, "orphan_present"),
];

/// The features a filesystem says it uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Features {
    pub(super) compat: u32,
    pub(super) incompat: u32,
    pub(super) ro_compat: u32,
}

impl Features {
    pub(super) fn has_compat(self, bit: u32) -> bool {
        self.compat & bit != 0
    }

    pub(super) fn has_incompat(self, bit: u32) -> bool {
        self.incompat & bit != 0
    }

    pub(super) fn has_ro_compat(self, bit: u32) -> bool {
        self.ro_compat & bit != 0
    }

    /// Refuses what would make reading wrong. Unknown `compat` and `ro_compat` bits do not: the
    /// format promises that a reader may ignore them.
    pub(super) fn check(self) -> Result<(), Cause> {
        if self.has_incompat(incompat::JOURNAL_DEV) {
            return Err(Cause::JournalDevice);
        }
        let unknown = self.incompat & !incompat::KNOWN;
        if unknown != 0 {
            return Err(Cause::Feature(names(Set::Incompat, unknown).join(", ")));
        }
        Ok(())
    }

    /// All features by name; a bit without one is `I0x400000`, `C…` or `R…`.
    pub(super) fn names(self) -> Vec<String> {
        let sets = [
            (Set::Compat, self.compat),
            (Set::Incompat, self.incompat),
            (Set::RoCompat, self.ro_compat),
        ];
        sets.into_iter().flat_map(|(set, bits)| names(set, bits)).collect()
    }
}

fn names(set: Set, bits: u32) -> Vec<String> {
    (0..u32::BITS)
        .map(|shift| 1 << shift)
        .filter(|bit| bits & bit != 0)
        .map(|bit| {
            let known = NAMES.iter().find(|(of, value, _)| *of == set && *value == bit);
            match (known, set) {
                (Some((_, _, name)), _) => (*name).to_owned(),
                (None, Set::Compat) => format!("C{bit:#x}"),
                (None, Set::Incompat) => format!("I{bit:#x}"),
                (None, Set::RoCompat) => format!("R{bit:#x}"),
            }
        })
        .collect()
}
