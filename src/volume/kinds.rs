//! What the types of partitions are called.
//!
//! Sources: UEFI specification 2.10 table 5.7; the Discoverable Partitions Specification; the
//! names are those that `fdisk` has made known.

/// What a type is called.
#[derive(Debug)]
pub(super) struct Type {
    id: &'static str,
    title: &'static str,
    /// One word, fit for a file name.
    pub(super) short: &'static str,
}

/// The type whose id (a GUID in lower case, or `0x83`) is `id`.
pub(super) fn find(id: &str) -> Option<&'static Type> {
    TYPES.iter().find(|kind| kind.id == id)
}

/// What the type is called; its id if it is not known here.
pub(super) fn title(id: &str) -> String {
    find(id).map_or_else(|| format!("type {id}"), |kind| kind.title.to_owned())
}

const fn of(id: &'static str, title: &'static str, short: &'static str) -> Type {
    Type { id, title, short }
}

#[rustfmt::skip]
const TYPES: &[Type] = &[
    of("0fc63daf-8483-4772-8e79-3d69d8477de4", "Linux filesystem", "linux"),
    of("c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "EFI System", "EFI"),
    of("21686148-6449-6e6f-744e-656564454649", "BIOS boot", "bios"),
    of("bc13c2ff-59e6-4262-a352-b275fd6f7172", "Linux extended boot", "boot"),
    of("9e1a2d38-c612-4316-aa26-8b49521e5a8b", "PowerPC PReP boot", "prep"),
    of("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f", "Linux swap", "swap"),
    of("933ac7e1-2eb4-4f13-b844-0e14e2aef915", "Linux home", "home"),
    of("3b8f8425-20e0-4f3b-907f-1a25a76f98e8", "Linux server data", "srv"),
    of("4d21b016-b534-45c2-a9fb-5c16e091fd2d", "Linux variable data", "var"),
    of("7ec6f557-3bc5-4aca-b293-16ef5df639d1", "Linux temporary data", "tmp"),
    of("773f91ef-66d4-49b5-bd83-d683bf40ad16", "Linux user's home", "user-home"),
    of("8da63339-0007-60c0-c436-083ac8230908", "Linux reserved", "reserved"),
    of("a19d880f-05fc-4d3b-a006-743f0f84911e", "Linux RAID", "raid"),
    of("e6d6d379-f507-44c2-a23c-238f2a3df928", "Linux LVM", "lvm"),
    of("ca7d7ccb-63ed-4c53-861c-1742536059cc", "Linux LUKS", "luks"),
    of("7ffec5c9-2d00-49b7-8941-3ea10a5586b7", "Linux plain dm-crypt", "crypt"),
    of("4f68bce3-e8cd-4db1-96e7-fbcaf984b709", "Linux root (x86-64)", "root"),
    of("44479540-f297-41b2-9af7-d131d5f0458a", "Linux root (x86)", "root"),
    of("b921b045-1df0-41c3-af44-4c6f280d3fae", "Linux root (ARM-64)", "root"),
    of("69dad710-2ce4-4e3c-b16c-21a1d49abed3", "Linux root (ARM)", "root"),
    of("77055800-792c-4f94-b39a-98c91b762bb6", "Linux root (LoongArch-64)", "root"),
    of("37c58c8a-d913-4156-a25f-48b1b64e07f0", "Linux root (MIPS-32 LE)", "root"),
    of("700bda43-7a34-4507-b179-eeb93d7a7ca3", "Linux root (MIPS-64 LE)", "root"),
    of("912ade1d-a839-4913-8964-a10eee08fbd2", "Linux root (PPC64)", "root"),
    of("c31c45e6-3f39-412e-80fb-4809c4980599", "Linux root (PPC64LE)", "root"),
    of("60d5a7fe-8e7d-435c-b714-3dd8162144e1", "Linux root (RISC-V-32)", "root"),
    of("72ec70a6-cf74-40e6-bd49-4bda08e8f224", "Linux root (RISC-V-64)", "root"),
    of("5eead9a9-fe09-4a1e-a1d7-520d00531306", "Linux root (S390X)", "root"),
    of("8484680c-9521-48c6-9c11-b0720656f69e", "Linux /usr (x86-64)", "usr"),
    of("75250d76-8cc6-458e-bd66-bd47cc81a812", "Linux /usr (x86)", "usr"),
    of("b0e01050-ee5f-4390-949a-9101b17104e9", "Linux /usr (ARM-64)", "usr"),
    of("7d0359a3-02b3-4f0a-865c-654403e70625", "Linux /usr (ARM)", "usr"),
    of("2c7357ed-ebd2-46d9-aec1-23d437ec2bf5", "Linux root verity (x86-64)", "root-verity"),
    of("df3300ce-d69f-4c92-978c-9bfb0f38d820", "Linux root verity (ARM-64)", "root-verity"),
    of("77ff5f63-e7b6-4633-acf4-1565b864c0e6", "Linux /usr verity (x86-64)", "usr-verity"),
    of("6e11a4e7-fbca-4ded-b9e9-e1a512bb664e", "Linux /usr verity (ARM-64)", "usr-verity"),
    of("41092b05-9fc8-4523-994f-2def0408b176", "Linux root verity sign. (x86-64)", "root-verity-sig"),
    of("e7bb33fb-06cf-4e81-8273-e543b413e2e2", "Linux /usr verity sign. (x86-64)", "usr-verity-sig"),
    of("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7", "Microsoft basic data", "data"),
    of("e3c9e316-0b5c-4db8-817d-f92df00215ae", "Microsoft reserved", "msr"),
    of("de94bba4-06d1-4d40-a16a-bfd50179d6ac", "Windows recovery environment", "recovery"),
    of("5808c8aa-7e8f-42e0-85d2-e1e90434cfb3", "Microsoft LDM metadata", "ldm-metadata"),
    of("af9b60a0-1431-4f62-bc68-3311714a69ad", "Microsoft LDM data", "ldm-data"),
    of("e75caf8f-f680-4cee-afa3-b001e56efc2d", "Microsoft Storage Spaces", "storage-spaces"),
    of("48465300-0000-11aa-aa11-00306543ecac", "Apple HFS/HFS+", "hfs"),
    of("7c3457ef-0000-11aa-aa11-00306543ecac", "Apple APFS", "apfs"),
    of("426f6f74-0000-11aa-aa11-00306543ecac", "Apple boot", "apple-boot"),
    of("516e7cb4-6ecf-11d6-8ff8-00022d09712b", "FreeBSD data", "freebsd"),
    of("83bd6b9d-7f41-11dc-be0b-001560b84f0f", "FreeBSD boot", "freebsd-boot"),
    of("516e7cb5-6ecf-11d6-8ff8-00022d09712b", "FreeBSD swap", "freebsd-swap"),
    of("516e7cb6-6ecf-11d6-8ff8-00022d09712b", "FreeBSD UFS", "freebsd-ufs"),
    of("516e7cba-6ecf-11d6-8ff8-00022d09712b", "FreeBSD ZFS", "freebsd-zfs"),
    of("6a898cc3-1dd2-11b2-99a6-080020736631", "Solaris /usr & Apple ZFS", "zfs"),
    of("6a945a3b-1dd2-11b2-99a6-080020736631", "Solaris reserved 1", "reserved"),
    of("824cc7a0-36a8-11e3-890a-952519ad3f61", "OpenBSD data", "openbsd"),
    of("49f48d5a-b10e-11dc-b99b-0019d1879648", "NetBSD FFS", "netbsd"),
    of("3cb8e202-3b7e-47dd-8a3c-7ff2a13cfcec", "ChromeOS root fs", "chromeos-root"),
    of("fe3a2a5d-4f32-41a7-b725-accc3285a309", "ChromeOS kernel", "chromeos-kernel"),
    of("5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6", "CoreOS /usr", "coreos-usr"),
    of("3884dd41-8582-4404-b9a8-e9b84f2df50e", "CoreOS root", "root"),
    of("aa31e02a-400f-11db-9590-000c2911d1b8", "VMware VMFS", "vmfs"),
    of("9d275380-40ad-11db-bf97-000c2911d1b8", "VMware Diagnostic", "vmware-diagnostic"),
    of("4fbd7e29-9d25-41b8-afd0-062c0ceff05d", "Ceph OSD", "ceph-osd"),
    of("0x01", "FAT12", "fat"),
    of("0x04", "FAT16 <32M", "fat"),
    of("0x06", "FAT16", "fat"),
    of("0x07", "HPFS/NTFS/exFAT", "ntfs"),
    of("0x0b", "W95 FAT32", "fat"),
    of("0x0c", "W95 FAT32 (LBA)", "fat"),
    of("0x0e", "W95 FAT16 (LBA)", "fat"),
    of("0x11", "Hidden FAT12", "fat"),
    of("0x14", "Hidden FAT16 <32M", "fat"),
    of("0x16", "Hidden FAT16", "fat"),
    of("0x17", "Hidden HPFS/NTFS", "ntfs"),
    of("0x1b", "Hidden W95 FAT32", "fat"),
    of("0x1c", "Hidden W95 FAT32 (LBA)", "fat"),
    of("0x1e", "Hidden W95 FAT16 (LBA)", "fat"),
    of("0x27", "Hidden NTFS WinRE", "recovery"),
    of("0x39", "Plan 9", "plan9"),
    of("0x41", "PPC PReP Boot", "prep"),
    of("0x42", "Windows dynamic disk", "ldm-data"),
    of("0x63", "GNU HURD or SysV", "hurd"),
    of("0x81", "Minix / old Linux", "minix"),
    of("0x82", "Linux swap / Solaris", "swap"),
    of("0x83", "Linux", "linux"),
    of("0x88", "Linux plaintext", "linux"),
    of("0x8e", "Linux LVM", "lvm"),
    of("0xa5", "FreeBSD", "freebsd"),
    of("0xa6", "OpenBSD", "openbsd"),
    of("0xa8", "Darwin UFS", "ufs"),
    of("0xa9", "NetBSD", "netbsd"),
    of("0xab", "Darwin boot", "apple-boot"),
    of("0xaf", "HFS / HFS+", "hfs"),
    of("0xbe", "Solaris boot", "solaris-boot"),
    of("0xbf", "Solaris", "solaris"),
    of("0xda", "Non-FS data", "data"),
    of("0xde", "Dell Utility", "dell"),
    of("0xe8", "LUKS", "luks"),
    of("0xea", "Linux extended boot", "boot"),
    of("0xef", "EFI (FAT-12/16/32)", "EFI"),
    of("0xfb", "VMware VMFS", "vmfs"),
    of("0xfc", "VMware VMKCORE", "vmware-diagnostic"),
    of("0xfd", "Linux RAID autodetect", "raid"),
];
