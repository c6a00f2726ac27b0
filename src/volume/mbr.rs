//! The master boot record and its chain of logical partitions.

use std::collections::HashSet;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::{Flaw, Scheme, Table, Volume, kinds, place, read, table};
use crate::block::BlockSource;
use crate::wire;

/// Bytes of a boot record, whatever the sector size.
pub(super) const SIZE: usize = 512;

/// Boot records of logical partitions followed at most; the kernel stops at 255 partitions.
const MOST_LOGICAL: usize = 1024;

const PROTECTIVE: u8 = 0xee;
const MIB: u64 = 1 << 20;

#[derive(Debug, Clone, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Record {
    code: [u8; 440],
    disk_signature: U32,
    reserved: U16,
    entries: [Entry; 4],
    signature: [u8; 2],
}

#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Entry {
    flag: u8,
    first_chs: [u8; 3],
    kind: u8,
    last_chs: [u8; 3],
    first: U32,
    sectors: U32,
}

impl Entry {
    fn is_used(&self) -> bool {
        self.sectors.get() != 0 && self.kind != 0
    }

    fn is_extended(&self) -> bool {
        self.is_used() && matches!(self.kind, 0x05 | 0x0f | 0x85)
    }

    fn start(&self, sector_size: u32) -> u64 {
        // 32 bits times 4,096 always fits.
        u64::from(self.first.get()) * u64::from(sector_size)
    }

    fn end(&self, sector_size: u32) -> u64 {
        self.start(sector_size) + u64::from(self.sectors.get()) * u64::from(sector_size)
    }
}

/// What the first sector of a disk is.
#[derive(Debug)]
pub(super) enum Sector {
    /// No boot record at all.
    Unsigned,
    /// A boot record that announces a GPT; other entries beside (a hybrid MBR) repeat what it has.
    Protective,
    /// A partition table.
    Table(Master),
    /// The boot sector of a filesystem, or a boot record without any partition.
    Other,
}

/// A master boot record that makes sense.
#[derive(Debug)]
pub(super) struct Master {
    id: u32,
    entries: [Entry; 4],
}

/// Tells what the first sector is.
///
/// A filesystem's boot sector ends in the same two bytes, with text or code where the entries of
/// a table would be; so a table needs four plausible flags and no filesystem's parameters.
pub(super) fn recognise(sector: &[u8]) -> Sector {
    let Some(record) = wire::record::<Record>(sector, 0) else { return Sector::Unsigned };
    if record.signature != [0x55, 0xaa] {
        return Sector::Unsigned;
    }
    if is_boot_sector(sector) || record.entries.iter().any(|entry| entry.flag & 0x7f != 0) {
        return Sector::Other;
    }
    if record.entries.iter().any(|entry| entry.kind == PROTECTIVE) {
        return Sector::Protective;
    }
    let jumps = matches!(record.code[0], 0xe9 | 0xeb);
    let id = record.disk_signature.get();
    // A boot sector put in front of a bare filesystem has no entries; a new table has none either,
    // but has its signature and begins with no jump over parameters.
    if !record.entries.iter().any(Entry::is_used) && (jumps || id == 0) {
        return Sector::Other;
    }
    Sector::Table(Master { id, entries: record.entries })
}

/// Whether these are the parameters of NTFS, exFAT or FAT.
fn is_boot_sector(sector: &[u8]) -> bool {
    #[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
    #[repr(C)]
    struct Parameters {
        jump: [u8; 3],
        system: [u8; 8],
        sector_size: U16,
        cluster_sectors: u8,
        reserved: U16,
        tables: u8,
        root_entries: U16,
        sectors: U16,
        media: u8,
    }
    let Some(is) = wire::record::<Parameters>(sector, 0) else { return false };
    if matches!(&is.system, b"NTFS    " | b"EXFAT   ") {
        return true;
    }
    let sector_size = is.sector_size.get();
    matches!(is.jump[0], 0xe9 | 0xeb)
        && (512..=4096).contains(&sector_size)
        && sector_size.is_power_of_two()
        && is.cluster_sectors.is_power_of_two()
        && is.reserved.get() != 0
        && matches!(is.tables, 1 | 2)
        && (is.media == 0xf0 || is.media >= 0xf8)
}

/// Reads the partitions of `master` and of the chain behind it; `None` if none of what it says
/// lies on the disk: then it is no table.
pub(super) fn scan(disk: &dyn BlockSource, master: &Master) -> Option<Table> {
    let used: Vec<&Entry> = master.entries.iter().filter(|entry| entry.is_used()).collect();
    if !used.is_empty() && used.iter().all(|entry| entry.start(512) >= disk.len()) {
        return None;
    }
    let sector_size = sector_size(disk, &used);
    let (volumes, flaws) = partitions(disk, master, sector_size);
    let id = format!("{:#010x}", master.id);
    Some(table(Scheme::Mbr, sector_size, id, volumes, flaws))
}

/// The sector size the entries count in. The kernel takes the device's; an image has none, so it
/// is 512 unless the table shows otherwise: logical partitions found only when counting by 4,096,
/// or partitions that lie on whole mebibytes (where every tool puts them) only then, and fit.
fn sector_size(disk: &dyn BlockSource, used: &[&Entry]) -> u32 {
    let mut extended = used.iter().filter(|entry| entry.is_extended()).peekable();
    let large = if extended.peek().is_some() {
        let found =
            |size: u32| extended.clone().all(|entry| record_at(disk, entry.start(size)).is_some());
        !found(512) && found(4096)
    } else {
        let whole = |size: u32| used.iter().all(|entry| entry.start(size) % MIB == 0);
        !used.is_empty()
            && used.iter().all(|entry| entry.end(4096) <= disk.len() && entry.first.get() != 0)
            && whole(4096)
            && !whole(512)
    };
    if large { 4096 } else { 512 }
}

/// The signed boot record at `offset`; one that cannot be read is as good as none.
fn record_at(disk: &dyn BlockSource, offset: u64) -> Option<Record> {
    let sector = read(disk, offset, SIZE).ok().flatten()?;
    let record = wire::record::<Record>(&sector, 0)?;
    (record.signature == [0x55, 0xaa]).then(|| record.clone())
}

fn partitions(
    disk: &dyn BlockSource,
    master: &Master,
    sector_size: u32,
) -> (Vec<Volume>, Vec<Flaw>) {
    let mut flaws = Vec::new();
    if sector_size != 512 {
        flaws.push(Flaw::LargeSectors);
    }
    let mut reader =
        Reader { disk, id: master.id, sector_size, next: 5, volumes: Vec::new(), flaws };
    for (number, entry) in (1..).zip(&master.entries) {
        if entry.is_extended() {
            reader.logical(entry);
        } else if entry.is_used() {
            reader.take(number, entry, u64::from(entry.first.get()));
        }
    }
    (reader.volumes, reader.flaws)
}

struct Reader<'a> {
    disk: &'a dyn BlockSource,
    id: u32,
    sector_size: u32,
    /// Number of the next logical partition.
    next: u32,
    volumes: Vec<Volume>,
    flaws: Vec<Flaw>,
}

impl Reader<'_> {
    /// Adds the partition of `entry`, which begins at sector `first` of the disk.
    fn take(&mut self, number: u32, entry: &Entry, first: u64) {
        let type_id = format!("{:#04x}", entry.kind);
        let volume = Volume {
            number,
            start: 0,
            len: 0,
            kind: kinds::title(&type_id),
            type_id,
            name: None,
            uuid: Some(format!("{:08x}-{number:02x}", self.id)),
            active: entry.flag == 0x80,
        };
        let size = u64::from(self.sector_size);
        let len = u64::from(entry.sectors.get()) * size;
        let placed =
            place(volume, first.checked_mul(size), Some(len), self.disk.len(), &mut self.flaws);
        self.volumes.extend(placed);
    }

    /// Follows the chain of boot records inside the extended partition `outer`. In each, the
    /// partitions count from the record itself, the next record from the start of `outer`.
    fn logical(&mut self, outer: &Entry) {
        let base = u64::from(outer.first.get());
        let mut lba = base;
        let mut seen = HashSet::new();
        loop {
            if !seen.insert(lba) {
                return self.flaws.push(Flaw::ChainLoops { lba });
            }
            if seen.len() > MOST_LOGICAL {
                return self.flaws.push(Flaw::ChainTooLong { most: MOST_LOGICAL });
            }
            // Both are below 2^33, and the sector size is at most 2^12.
            let Some(record) = record_at(self.disk, lba * u64::from(self.sector_size)) else {
                return self.flaws.push(Flaw::ChainBroken { lba });
            };
            let limit = base + u64::from(outer.sectors.get());
            for (slot, entry) in record.entries.iter().enumerate() {
                let first = lba + u64::from(entry.first.get());
                // Slots 3 and 4 are unused by every tool but one: they count if they fit.
                let fits = slot < 2 || first + u64::from(entry.sectors.get()) <= limit;
                if entry.is_used() && !entry.is_extended() && fits {
                    self.take(self.next, entry, first);
                    self.next += 1;
                }
            }
            match record.entries.iter().find(|entry| entry.is_extended()) {
                Some(link) => lba = base + u64::from(link.first.get()),
                None => return,
            }
        }
    }
}
