use std::sync::Arc;

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::gpt::Cause;
use super::*;
use crate::block::{Fault, FaultSource, MemorySource};
use crate::error::Kind;

const MIB: usize = 1 << 20;
const LINUX: [u8; 16] = [
    0xaf, 0x3d, 0xc6, 0x0f, 0x83, 0x84, 0x72, 0x47, 0x8e, 0x79, 0x3d, 0x69, 0xd8, 0x47, 0x7d, 0xe4,
];

fn disk(bytes: Vec<u8>) -> Arc<dyn BlockSource> {
    Arc::new(MemorySource::new(bytes))
}

fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&value);
}

/// A boot record at `at` with these entries: kind, first sector, sectors.
fn boot_record(bytes: &mut [u8], at: usize, entries: &[(u8, u32, u32)]) {
    for (slot, &(kind, first, sectors)) in entries.iter().enumerate() {
        let entry = at + 446 + slot * 16;
        bytes[entry + 4] = kind;
        put(bytes, entry + 8, first.to_le_bytes());
        put(bytes, entry + 12, sectors.to_le_bytes());
    }
    put(bytes, at + 510, [0x55, 0xaa]);
}

fn mbr(len: usize, entries: &[(u8, u32, u32)]) -> Vec<u8> {
    let mut bytes = vec![0; len];
    put(&mut bytes, 440, 0x1234_abcdu32.to_le_bytes());
    boot_record(&mut bytes, 0, entries);
    bytes
}

/// A GPT disk of 4 MiB with these partitions (first and last LBA), and its backup.
fn gpt(sector: usize, partitions: &[(u64, u64)]) -> Vec<u8> {
    let mut bytes = vec![0; 4 * MIB];
    let last = bytes.len() / sector - 1;
    boot_record(&mut bytes, 0, &[(0xee, 1, u32::MAX)]);
    let table_sectors = 128 * 128 / sector;
    let mut table = vec![0; 128 * 128];
    for (index, &(first, end)) in partitions.iter().enumerate() {
        let at = index * 128;
        put(&mut table, at, LINUX);
        put(&mut table, at + 16, [index as u8 + 1; 16]);
        put(&mut table, at + 32, first.to_le_bytes());
        put(&mut table, at + 40, end.to_le_bytes());
        for (unit, code) in "root ü😀".encode_utf16().enumerate() {
            put(&mut table, at + 56 + unit * 2, code.to_le_bytes());
        }
    }
    for (own, other, entries) in [(1, last, 2), (last, 1, last - table_sectors)] {
        bytes[entries * sector..][..table.len()].copy_from_slice(&table);
        let at = own * sector;
        put(&mut bytes, at, *b"EFI PART");
        put(&mut bytes, at + 8, 0x0001_0000u32.to_le_bytes());
        put(&mut bytes, at + 12, 92u32.to_le_bytes());
        put(&mut bytes, at + 24, (own as u64).to_le_bytes());
        put(&mut bytes, at + 32, (other as u64).to_le_bytes());
        put(&mut bytes, at + 56, [7; 16]);
        put(&mut bytes, at + 72, (entries as u64).to_le_bytes());
        put(&mut bytes, at + 80, 128u32.to_le_bytes());
        put(&mut bytes, at + 84, 128u32.to_le_bytes());
        put(&mut bytes, at + 88, crc32fast::hash(&table).to_le_bytes());
        seal(&mut bytes, at);
    }
    bytes
}

/// Makes the checksum of the header at `at` right again.
fn seal(bytes: &mut [u8], at: usize) {
    put(bytes, at + 16, [0; 4]);
    let size = u32::from_le_bytes(bytes[at + 12..at + 16].try_into().unwrap()) as usize;
    let sum = crc32fast::hash(&bytes[at..at + size.min(512)]);
    put(bytes, at + 16, sum.to_le_bytes());
}

fn found(bytes: Vec<u8>) -> Table {
    scan(&disk(bytes)).unwrap().expect("a table")
}

fn places(table: &Table) -> Vec<(u32, u64, u64)> {
    table.volumes.iter().map(|volume| (volume.number, volume.start, volume.len)).collect()
}

#[test]
fn reads_a_gpt_at_either_sector_size() {
    for sector in [512, 4096] {
        let table = found(gpt(sector, &[(64, 95), (96, 127)]));
        let bytes = 32 * sector as u64;
        assert_eq!(places(&table), [(1, 2 * bytes, bytes), (2, 3 * bytes, bytes)]);
        assert_eq!(table.sector_size, sector as u32);
        assert_eq!(table.volumes[0].name.as_deref(), Some("root ü😀"));
        assert_eq!(table.volumes[0].kind, "Linux filesystem");
        assert_eq!(table.volumes[1].uuid.as_deref(), Some("02020202-0202-0202-0202-020202020202"));
        assert_eq!(table.warnings, [""; 0]);
    }
}

/// What a damaged primary copy is found guilty of, and that the backup stands in for it.
#[track_caller]
fn primary_refused(damage: impl FnOnce(&mut [u8]), cause: Cause) {
    let mut bytes = gpt(512, &[(64, 95)]);
    damage(&mut bytes);
    let table = found(bytes);
    assert_eq!(places(&table), [(1, 64 * 512, 32 * 512)]);
    assert_eq!(table.warnings, [Flaw::BackupUsed(cause).to_string()]);
}

#[test]
fn a_damaged_primary_gpt_is_replaced_by_the_backup() {
    primary_refused(|bytes| bytes[512] = 0, Cause::NoHeader { lba: 1 });
    primary_refused(|bytes| bytes[512 + 8] = 2, Cause::Revision { lba: 1, revision: 0x0001_0002 });
    for size in [0, 91, 513, u32::MAX] {
        primary_refused(
            |bytes| put(bytes, 512 + 12, size.to_le_bytes()),
            Cause::HeaderSize { lba: 1, size, most: 512 },
        );
    }
    primary_refused(
        |bytes| {
            put(bytes, 512 + 24, 9u64.to_le_bytes());
            seal(bytes, 512);
        },
        Cause::Misplaced { lba: 1, says: 9 },
    );
    for size in [0, 8, 127, 132] {
        primary_refused(
            |bytes| {
                put(bytes, 512 + 84, size.to_le_bytes());
                seal(bytes, 512);
            },
            Cause::EntrySize { lba: 1, size },
        );
    }
    for (count, size) in [(u32::MAX, 128), (32769, 128), (u32::MAX, 0xffff_fff8), (2, 0x8000_0000)]
    {
        primary_refused(
            |bytes| {
                put(bytes, 512 + 80, count.to_le_bytes());
                put(bytes, 512 + 84, size.to_le_bytes());
                seal(bytes, 512);
            },
            Cause::TooManyEntries { lba: 1, count, size },
        );
    }
    for entries in [8190, 8192, u64::MAX, u64::MAX / 512] {
        primary_refused(
            |bytes| {
                put(bytes, 512 + 72, entries.to_le_bytes());
                seal(bytes, 512);
            },
            Cause::EntriesOutside { lba: 1, entries },
        );
    }
}

#[test]
fn checksums_of_a_gpt_are_checked() {
    let mut bytes = gpt(512, &[(64, 95)]);
    bytes[512 + 40] ^= 1;
    let warnings = found(bytes).warnings;
    assert!(warnings[0].starts_with("GPT header at LBA 1: checksum is 0x"), "{warnings:?}");

    let mut bytes = gpt(512, &[(64, 95)]);
    bytes[1024 + 60] ^= 1;
    let warnings = found(bytes).warnings;
    assert!(
        warnings[0].starts_with("GPT header at LBA 1: checksum of the entries is 0x"),
        "{warnings:?}"
    );

    // The other way round, the primary copy counts and the backup is only complained about.
    let mut bytes = gpt(512, &[(64, 95)]);
    let last = bytes.len() - 512;
    bytes[last] = 0;
    assert_eq!(
        found(bytes).warnings,
        [Flaw::BackupDamaged(Cause::NoHeader { lba: 8191 }).to_string()]
    );
}

#[test]
fn a_gpt_of_which_nothing_is_left_is_an_error() {
    let mut bytes = gpt(512, &[(64, 95)]);
    let last = bytes.len() - 512;
    bytes[512 + 8] = 2;
    bytes[last] = 0;
    let error = scan(&disk(bytes)).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert_eq!(
        error.cause::<Cause>(),
        Some(&Cause::NeitherCopy {
            primary: Box::new(Cause::Revision { lba: 1, revision: 0x0001_0002 }),
            backup: Box::new(Cause::NoHeader { lba: 8191 }),
        })
    );
}

#[test]
fn an_unreadable_primary_gpt_is_a_damaged_one() {
    let source = FaultSource::new(disk(gpt(512, &[(64, 95)])), |_, offset, _| {
        (offset == 512).then_some(Fault::Errno(libc::EIO))
    });
    let source: Arc<dyn BlockSource> = Arc::new(source);
    let table = scan(&source).unwrap().unwrap();
    assert_eq!(table.warnings, [Flaw::BackupUsed(Cause::Unreadable { lba: 1 }).to_string()]);

    let source = FaultSource::new(disk(gpt(512, &[])), |_, _, _| Some(Fault::Errno(libc::EIO)));
    let source: Arc<dyn BlockSource> = Arc::new(source);
    assert_eq!(scan(&source).unwrap_err().kind(), Kind::Io);
}

#[test]
fn a_disk_that_grew_still_has_its_backup_where_the_primary_says() {
    let mut bytes = gpt(512, &[(64, 95)]);
    bytes.resize(8 * MIB, 0);
    assert_eq!(found(bytes.clone()).warnings, [""; 0]);
    // With the primary entries damaged, its header still tells where the backup is.
    bytes[1024] ^= 1;
    assert_eq!(places(&found(bytes)), [(1, 64 * 512, 32 * 512)]);
}

#[test]
fn gpt_partitions_outside_the_disk_are_left_out_or_cut() {
    let table = found(gpt(
        512,
        &[(64, 95), (96, 1 << 40), (1 << 40, 1 << 41), (u64::MAX, u64::MAX), (9, 8), (80, 90)],
    ));
    assert_eq!(
        places(&table),
        [
            (1, 64 * 512, 32 * 512),
            (2, 96 * 512, 4 * MIB as u64 - 96 * 512),
            (6, 80 * 512, 11 * 512)
        ]
    );
    let end = 4 * MIB as u64;
    assert_eq!(
        table.warnings,
        [
            Flaw::CutShort { number: 2, claimed: (1 << 49) + 512, end }.to_string(),
            Flaw::Outside { number: 3, start: 1 << 49, end }.to_string(),
            Flaw::Outside { number: 4, start: u64::MAX, end }.to_string(),
            Flaw::Backwards { number: 5, first: 9, last: 8 }.to_string(),
            Flaw::Overlap { first: 1, second: 6 }.to_string(),
        ]
    );
}

#[test]
fn a_gpt_counts_without_mbr_but_not_behind_another_one() {
    let mut bytes = gpt(512, &[(64, 95)]);
    bytes[..512].fill(0);
    let table = found(bytes.clone());
    assert_eq!(table.warnings, [Flaw::Unprotected.to_string()]);

    boot_record(&mut bytes, 0, &[(0x83, 2048, 2048)]);
    assert_eq!(found(bytes.clone()).scheme, Scheme::Mbr);

    // Hybrid: the GPT has the truth.
    boot_record(&mut bytes, 0, &[(0x83, 2048, 2048), (0xee, 1, 63)]);
    assert_eq!(found(bytes).scheme, Scheme::Gpt);
}

#[test]
fn reads_an_mbr_with_logical_partitions() {
    let mut bytes = mbr(8 * MIB, &[(0x83, 2048, 2048), (0x05, 4096, 12288), (0x82, 63, 1)]);
    // Each boot record: its partition counted from itself, the next counted from the outer start.
    boot_record(&mut bytes, 4096 * 512, &[(0x83, 63, 1000), (0x05, 2048, 2048)]);
    boot_record(&mut bytes, 6144 * 512, &[(0x8e, 63, 500), (0x05, 4096, 2048)]);
    boot_record(&mut bytes, 8192 * 512, &[(0x07, 1, 100)]);
    bytes[446] = 0x80;
    let table = found(bytes);
    let sectors: Vec<_> =
        places(&table).iter().map(|&(n, start, len)| (n, start / 512, len / 512)).collect();
    assert_eq!(
        sectors,
        [(1, 2048, 2048), (3, 63, 1), (5, 4159, 1000), (6, 6207, 500), (7, 8193, 100)]
    );
    assert_eq!(table.id, "0x1234abcd");
    assert_eq!(table.volumes[0].uuid.as_deref(), Some("1234abcd-01"));
    assert!(table.volumes[0].active && !table.volumes[1].active);
    assert_eq!(table.volumes[3].kind, "Linux LVM");
    assert_eq!(table.warnings, [""; 0]);
}

#[track_caller]
fn chain_flaw(link: (u8, u32, u32), flaw: Flaw) {
    let mut bytes = mbr(8 * MIB, &[(0x05, 2048, 12288)]);
    boot_record(&mut bytes, 2048 * 512, &[(0x83, 63, 100), link]);
    let table = found(bytes);
    assert_eq!(places(&table)[0], (5, (2048 + 63) * 512, 100 * 512));
    assert_eq!(table.warnings.last(), Some(&flaw.to_string()));
}

#[test]
fn a_chain_of_logical_partitions_ends() {
    chain_flaw((0x05, 0, 2048), Flaw::ChainLoops { lba: 2048 });
    chain_flaw((0x05, 512, 2048), Flaw::ChainBroken { lba: 2560 });
    let lba = 2048 + u64::from(u32::MAX);
    chain_flaw((0x0f, u32::MAX, 2048), Flaw::ChainBroken { lba });

    // A long chain that never comes back.
    let links = MOST + 10;
    let mut bytes = mbr(links * 1024 + MIB, &[(0x05, 2, links as u32 * 2)]);
    for link in 0..links {
        let entries = [(0x83, 1, 1), (0x05, (link as u32 + 1) * 2, 2)];
        boot_record(&mut bytes, (2 + link * 2) * 512, &entries);
    }
    let table = found(bytes);
    assert_eq!(table.volumes.len(), MOST);
    assert_eq!(table.warnings, [Flaw::ChainTooLong { most: MOST }.to_string()]);
}

const MOST: usize = 1024;

#[test]
fn two_records_that_point_at_each_other_end() {
    let mut bytes = mbr(8 * MIB, &[(0x85, 2048, 12288)]);
    boot_record(&mut bytes, 2048 * 512, &[(0x83, 63, 100), (0x85, 2048, 2048)]);
    boot_record(&mut bytes, 4096 * 512, &[(0x83, 63, 100), (0x85, 0, 2048)]);
    let table = found(bytes);
    assert_eq!(table.volumes.len(), 2);
    assert_eq!(table.warnings, [Flaw::ChainLoops { lba: 2048 }.to_string()]);
}

#[test]
fn mbr_partitions_outside_the_disk_are_left_out_or_cut() {
    let table =
        found(mbr(4 * MIB, &[(0x83, 2048, u32::MAX), (0x83, u32::MAX, u32::MAX), (0x83, 4096, 1)]));
    assert_eq!(places(&table), [(1, MIB as u64, 3 * MIB as u64), (3, 2 * MIB as u64, 512)]);
    assert_eq!(table.warnings.len(), 3);
    assert!(table.warnings[2].contains("partitions 1 and 3 overlap"));
}

#[test]
fn an_mbr_of_large_sectors_is_told_by_where_its_partitions_lie() {
    // 1 MiB and 9 MiB, counted by 4,096.
    let table = found(mbr(16 * MIB, &[(0x83, 256, 2048), (0x83, 2304, 256)]));
    assert_eq!(table.sector_size, 4096);
    assert_eq!(places(&table), [(1, MIB as u64, 8 * MIB as u64), (2, 9 * MIB as u64, MIB as u64)]);
    // Old tools put the first partition at sector 63; that says nothing.
    assert_eq!(found(mbr(16 * MIB, &[(0x83, 63, 2048)])).sector_size, 512);

    let mut bytes = mbr(16 * MIB, &[(0x05, 256, 1024)]);
    boot_record(&mut bytes, MIB, &[(0x83, 256, 256)]);
    let table = found(bytes);
    assert_eq!(places(&table), [(5, 2 * MIB as u64, MIB as u64)]);
}

#[test]
fn what_is_no_table_is_none() {
    let none = |bytes: Vec<u8>| assert_eq!(scan(&disk(bytes)).unwrap(), None);
    none(vec![]);
    none(vec![0; 511]);
    none(vec![0; MIB]);
    // A signature and nothing else: a boot sector in front of a bare filesystem.
    let mut bytes = vec![0; MIB];
    boot_record(&mut bytes, 0, &[]);
    none(bytes.clone());
    // Text where the entries would be.
    bytes[440..510].fill(b'x');
    none(bytes);
    // Partitions far outside.
    none(mbr(MIB, &[(0x83, 1 << 20, 1)]));
    // NTFS and FAT boot sectors, whatever their code looks like.
    let mut bytes = mbr(4 * MIB, &[(0x83, 2048, 2048)]);
    put(&mut bytes, 3, *b"NTFS    ");
    none(bytes);
    let mut bytes = mbr(4 * MIB, &[(0x83, 2048, 2048)]);
    put(&mut bytes, 0, [0xeb, 0x3c, 0x90]);
    put(&mut bytes, 11, [0, 2, 4, 1, 0, 2, 0, 2, 0, 0, 0xf8]);
    none(bytes);
    // A new table without partitions is one all the same.
    assert_eq!(found(mbr(MIB, &[])).volumes, []);
}

#[test]
fn a_window_is_the_partition() {
    let mut bytes = mbr(4 * MIB, &[(0x83, 2048, 2048)]);
    bytes[MIB..2 * MIB].fill(9);
    let disk = disk(bytes);
    let table = scan(&disk).unwrap().unwrap();
    let window = table.volumes[0].window(&disk).unwrap();
    let mut read = vec![0; MIB];
    window.read_at(0, &mut read).unwrap();
    assert!(window.len() == MIB as u64 && read.iter().all(|&byte| byte == 9));
}

fn sound(bytes: Vec<u8>) {
    let disk = disk(bytes);
    if let Ok(Some(table)) = scan(&disk) {
        for volume in &table.volumes {
            assert!(volume.len > 0 && volume.start + volume.len <= disk.len());
            volume.window(&disk).unwrap();
        }
    }
}

proptest! {
    // The same tables in every run.
    #![proptest_config(ProptestConfig { cases: 512, rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_table_says_volumes_lie_on_the_disk(
        large in any::<bool>(),
        reseal in any::<bool>(),
        changes in prop::collection::vec((0usize..4 * 4096 + 600, any::<u8>()), 0..12),
        numbers in prop::collection::vec((0usize..2100, any::<u64>()), 0..4),
    ) {
        let sector = if large { 4096 } else { 512 };
        let mut bytes = gpt(sector, &[(64, 95), (96, 127)]);
        for (at, value) in changes { bytes[at] = value; }
        for (at, value) in numbers { put(&mut bytes, at, value.to_le_bytes()); }
        if reseal { seal(&mut bytes, sector); }
        sound(bytes);
    }

    #[test]
    fn whatever_a_boot_record_says_volumes_lie_on_the_disk(
        entries in prop::collection::vec((prop::sample::select(vec![0u8, 5, 15, 0x83, 0x85, 0x82, 0xee]), 0u32..9000, 0u32..20000), 4),
        records in prop::collection::vec((0usize..8000, (0u32..9000, any::<u32>(), 0u32..9000)), 0..8),
        changes in prop::collection::vec((440usize..512, any::<u8>()), 0..3),
    ) {
        let mut bytes = mbr(4 * MIB, &entries);
        for (lba, (first, sectors, next)) in records {
            boot_record(&mut bytes, lba * 512, &[(0x83, first, sectors), (0x05, next, 9)]);
        }
        for (at, value) in changes { bytes[at] = value; }
        sound(bytes);
    }
}
