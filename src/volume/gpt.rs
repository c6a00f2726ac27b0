//! The GUID partition table: header, entries and their backup at the end of the disk.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::{Flaw, Scheme, Table, Volume, kinds, place, read, table};
use crate::block::BlockSource;
use crate::error::{Error, Kind, Result};
use crate::wire;

/// Bytes of entries at most: 256 times what every tool makes.
const MOST_ENTRY_BYTES: u64 = 4 << 20;

const SIGNATURE: &[u8; 8] = b"EFI PART";
const SECTOR_SIZES: [u32; 2] = [512, 4096];

/// Why a copy of the table is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Cause {
    #[error("no GPT header at LBA {lba}")]
    NoHeader { lba: u64 },
    #[error("GPT header at LBA {lba} cannot be read")]
    Unreadable { lba: u64 },
    #[error("GPT header at LBA {lba}: revision is {revision:#x}, not 0x10000")]
    Revision { lba: u64, revision: u32 },
    #[error("GPT header at LBA {lba}: header size is {size}, not 92 to {most}")]
    HeaderSize { lba: u64, size: u32, most: u32 },
    #[error("GPT header at LBA {lba}: checksum is {computed:#010x}, not {stored:#010x}")]
    HeaderChecksum { lba: u64, stored: u32, computed: u32 },
    #[error("GPT header at LBA {lba} says it lies at LBA {says}")]
    Misplaced { lba: u64, says: u64 },
    #[error("GPT header at LBA {lba}: entry size is {size}, not 128 or more in steps of 8")]
    EntrySize { lba: u64, size: u32 },
    #[error("GPT header at LBA {lba}: {count} entries of {size} bytes are more than 4 MiB")]
    TooManyEntries { lba: u64, count: u32, size: u32 },
    #[error("GPT header at LBA {lba}: entries at LBA {entries} lie beyond the end of the disk")]
    EntriesOutside { lba: u64, entries: u64 },
    #[error(
        "GPT header at LBA {lba}: checksum of the entries is {computed:#010x}, not {stored:#010x}"
    )]
    EntriesChecksum { lba: u64, stored: u32, computed: u32 },
    #[error("{primary}; {backup}")]
    NeitherCopy { primary: Box<Cause>, backup: Box<Cause> },
}

#[derive(Debug, Clone, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    signature: [u8; 8],
    revision: U32,
    header_size: U32,
    header_checksum: U32,
    reserved: U32,
    own_lba: U64,
    other_lba: U64,
    first_usable: U64,
    last_usable: U64,
    disk: [u8; 16],
    entries_lba: U64,
    entry_count: U32,
    entry_size: U32,
    entries_checksum: U32,
}

#[derive(Debug, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Entry {
    kind: [u8; 16],
    id: [u8; 16],
    first: U64,
    last: U64,
    attributes: U64,
    name: [U16; 36],
}

/// Attribute bit 2: what a BIOS may boot from.
const LEGACY_BOOT: u64 = 1 << 2;

/// One whole copy of the table.
struct Copy {
    sector_size: u32,
    header: Header,
    entries: Vec<u8>,
}

/// Reads the GPT that the MBR announces.
///
/// # Errors
/// [`Kind::Corrupt`] if neither copy is whole.
pub(super) fn scan(disk: &dyn BlockSource) -> Result<Table> {
    let primary = match primary(disk) {
        Ok(copy) => {
            let mut flaws = Vec::new();
            // The disk may have grown since: the backup is where the header says.
            if let Err(cause) = load(disk, copy.header.other_lba.get(), copy.sector_size) {
                flaws.push(Flaw::BackupDamaged(cause));
            }
            return Ok(volumes(disk, &copy, flaws));
        }
        Err(cause) => cause,
    };
    match backup(disk) {
        Ok(copy) => Ok(volumes(disk, &copy, vec![Flaw::BackupUsed(primary)])),
        Err(backup) => {
            let cause = Cause::NeitherCopy { primary: Box::new(primary), backup: Box::new(backup) };
            Err(Error::caused_by(Kind::Corrupt, cause).within("partition table"))
        }
    }
}

/// Reads a GPT with nothing in front of it, if its primary copy is whole.
pub(super) fn scan_unprotected(disk: &dyn BlockSource) -> Option<Table> {
    let copy = primary(disk).ok()?;
    Some(volumes(disk, &copy, vec![Flaw::Unprotected]))
}

/// The copy behind the MBR. Of several causes, that of a header that is there counts most.
fn primary(disk: &dyn BlockSource) -> Result<Copy, Cause> {
    best(SECTOR_SIZES.map(|size| (size, Some(1))), disk)
}

/// The copy at the end of the disk, or where a header that is itself damaged says.
fn backup(disk: &dyn BlockSource) -> Result<Copy, Cause> {
    let last = SECTOR_SIZES
        .map(|size| (size, (disk.len() / u64::from(size)).checked_sub(1).filter(|&lba| lba > 1)));
    let told = SECTOR_SIZES.map(|size| {
        let header = header_at(disk, 1, size).ok();
        (size, header.map(|header| header.other_lba.get()).filter(|&lba| lba > 1))
    });
    best([last[0], last[1], told[0], told[1]], disk)
}

fn best<const N: usize>(
    places: [(u32, Option<u64>); N],
    disk: &dyn BlockSource,
) -> Result<Copy, Cause> {
    let mut worst = None;
    for (size, lba) in places {
        let Some(lba) = lba else { continue };
        match load(disk, lba, size) {
            Ok(copy) => return Ok(copy),
            Err(cause) => {
                let vague = matches!(worst, None | Some(Cause::NoHeader { .. }));
                let exact = !matches!(cause, Cause::NoHeader { .. });
                if worst.is_none() || (vague && exact) {
                    worst = Some(cause);
                }
            }
        }
    }
    Err(worst.unwrap_or(Cause::NoHeader { lba: 1 }))
}

/// The header at `lba`, if something there looks like one.
fn header_at(disk: &dyn BlockSource, lba: u64, sector_size: u32) -> Result<Header, Cause> {
    let sector = sector_at(disk, lba, sector_size)?;
    let header = wire::record::<Header>(&sector, 0).ok_or(Cause::NoHeader { lba })?;
    if &header.signature != SIGNATURE {
        return Err(Cause::NoHeader { lba });
    }
    Ok(header.clone())
}

fn sector_at(disk: &dyn BlockSource, lba: u64, sector_size: u32) -> Result<Vec<u8>, Cause> {
    let offset = lba.checked_mul(u64::from(sector_size)).ok_or(Cause::NoHeader { lba })?;
    match read(disk, offset, sector_size as usize) {
        Ok(sector) => sector.ok_or(Cause::NoHeader { lba }),
        Err(_) => Err(Cause::Unreadable { lba }),
    }
}

/// The copy whose header is at `lba`, all of it checked.
fn load(disk: &dyn BlockSource, lba: u64, sector_size: u32) -> Result<Copy, Cause> {
    let header = header_at(disk, lba, sector_size)?;
    let revision = header.revision.get();
    if revision != 0x0001_0000 {
        return Err(Cause::Revision { lba, revision });
    }
    let size = header.header_size.get();
    if !(92..=sector_size).contains(&size) {
        return Err(Cause::HeaderSize { lba, size, most: sector_size });
    }
    let mut sector = sector_at(disk, lba, sector_size)?;
    // The checksum counts itself as zero.
    sector[16..20].fill(0);
    let computed = crc32fast::hash(&sector[..size as usize]);
    let stored = header.header_checksum.get();
    if computed != stored {
        return Err(Cause::HeaderChecksum { lba, stored, computed });
    }
    let says = header.own_lba.get();
    if says != lba {
        return Err(Cause::Misplaced { lba, says });
    }
    let (count, size) = (header.entry_count.get(), header.entry_size.get());
    if size < 128 || size % 8 != 0 {
        return Err(Cause::EntrySize { lba, size });
    }
    let bytes = u64::from(count) * u64::from(size);
    if bytes > MOST_ENTRY_BYTES {
        return Err(Cause::TooManyEntries { lba, count, size });
    }
    let entries = header.entries_lba.get();
    let outside = Cause::EntriesOutside { lba, entries };
    let Some(offset) = entries.checked_mul(u64::from(sector_size)) else { return Err(outside) };
    let entries = match read(disk, offset, bytes as usize) {
        Ok(Some(entries)) => entries,
        Ok(None) => return Err(outside),
        Err(_) => return Err(Cause::Unreadable { lba: entries }),
    };
    let computed = crc32fast::hash(&entries);
    let stored = header.entries_checksum.get();
    if computed != stored {
        return Err(Cause::EntriesChecksum { lba, stored, computed });
    }
    Ok(Copy { sector_size, header, entries })
}

fn volumes(disk: &dyn BlockSource, copy: &Copy, mut flaws: Vec<Flaw>) -> Table {
    let sector_size = u64::from(copy.sector_size);
    let mut volumes = Vec::new();
    let entries = copy.entries.chunks_exact(copy.header.entry_size.get() as usize);
    for (number, bytes) in (1..).zip(entries) {
        let Some(entry) = wire::record::<Entry>(bytes, 0) else { continue };
        if entry.kind == [0; 16] {
            continue;
        }
        let (first, last) = (entry.first.get(), entry.last.get());
        if last < first {
            flaws.push(Flaw::Backwards { number, first, last });
            continue;
        }
        let type_id = guid(&entry.kind);
        let volume = Volume {
            number,
            start: 0,
            len: 0,
            kind: kinds::title(&type_id),
            type_id,
            name: name(&entry.name),
            uuid: Some(guid(&entry.id)),
            active: entry.attributes.get() & LEGACY_BOOT != 0,
        };
        let len = (last - first).checked_add(1).and_then(|len| len.checked_mul(sector_size));
        let start = first.checked_mul(sector_size);
        volumes.extend(place(volume, start, len, disk.len(), &mut flaws));
    }
    table(Scheme::Gpt, copy.sector_size, guid(&copy.header.disk), volumes, flaws)
}

/// UTF-16 up to the first NUL; an unpaired half becomes U+FFFD.
fn name(units: &[U16]) -> Option<String> {
    let units = units.iter().map(|unit| unit.get()).take_while(|&unit| unit != 0);
    let name: String =
        char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
    (!name.is_empty()).then_some(name)
}

/// A GUID in its usual form; the first three groups are stored little-endian.
fn guid(bytes: &[u8; 16]) -> String {
    let [a, b, c, d, e, f, g, h, rest @ ..] = *bytes;
    let [i, j, k, l, m, n, o, p] = rest;
    format!(
        "{:08x}-{:04x}-{:04x}-{i:02x}{j:02x}-{k:02x}{l:02x}{m:02x}{n:02x}{o:02x}{p:02x}",
        u32::from_le_bytes([a, b, c, d]),
        u16::from_le_bytes([e, f]),
        u16::from_le_bytes([g, h]),
    )
}
