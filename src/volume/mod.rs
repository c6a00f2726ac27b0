//! What lies on a disk: MBR and GPT partition tables, read into plain data.
//!
//! Nothing a table claims is trusted: a volume handed out lies within the disk, and whatever the
//! table says that cannot be so is left out or cut short, with a warning. Partitions carry the
//! numbers the Linux kernel gives them.
//!
//! Sources: UEFI specification 2.10, chapter 5 (GPT and the legacy MBR); the logical partition
//! chain as the kernel's `block/partitions/msdos.c` and util-linux read it.

mod gpt;
mod kinds;
mod mbr;

use std::sync::Arc;

use serde::Serialize;

use crate::block::{BlockSource, Window};
use crate::error::{Result, ResultExt};

/// How a disk is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// The PC's master boot record, with logical partitions.
    Mbr,
    /// The GUID partition table.
    Gpt,
}

impl Scheme {
    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Scheme::Mbr => "MBR",
            Scheme::Gpt => "GPT",
        }
    }
}

/// A partition table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Table {
    /// Which kind of table it is.
    pub scheme: Scheme,
    /// Bytes of the sectors its numbers count: 512 or 4,096.
    pub sector_size: u32,
    /// What identifies the disk: a GUID, or the MBR's signature as `0x1234abcd`.
    pub id: String,
    /// The partitions, by number. Extended partitions, which only hold others, are left out.
    pub volumes: Vec<Volume>,
    /// What the table says that cannot be so, one line each.
    pub warnings: Vec<String>,
}

/// A part of a disk that can hold a filesystem. It lies within the disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Volume {
    /// The number the kernel gives it: the 2 of `vda2`.
    pub number: u32,
    /// Where it begins, in bytes.
    pub start: u64,
    /// Its length in bytes; never 0.
    pub len: u64,
    /// What its type is called, such as `Linux filesystem`.
    pub kind: String,
    /// Its type as the table has it: a GUID, or `0x83`.
    pub type_id: String,
    /// The name the table gives it (GPT only).
    pub name: Option<String>,
    /// What identifies it, as `PARTUUID=` has it.
    pub uuid: Option<String>,
    /// Whether it is marked as the one to boot from.
    pub active: bool,
}

impl Volume {
    /// One word for its type, fit for a file name (`EFI`, `root`), where the type is well known.
    pub fn short_kind(&self) -> Option<&'static str> {
        kinds::find(&self.type_id).map(|kind| kind.short)
    }

    /// Whether its type says that it is the root of a Linux system (discoverable partitions).
    pub fn is_root_type(&self) -> bool {
        self.short_kind() == Some("root")
    }

    /// Its bytes.
    ///
    /// # Errors
    /// [`Kind::OutOfBounds`](crate::error::Kind::OutOfBounds) if `disk` is not the disk scanned.
    pub fn window(&self, disk: &Arc<dyn BlockSource>) -> Result<Arc<dyn BlockSource>> {
        let window = Window::new(Arc::clone(disk), self.start, self.len)
            .within(|| format!("partition {}", self.number))?;
        Ok(Arc::new(window))
    }
}

/// Reads the partition table of `disk`; `None` if there is none: a filesystem right on the disk,
/// or nothing known.
///
/// A GPT counts when the MBR in front of it is protective or hybrid, or is not there at all; an
/// ordinary MBR hides an older GPT, as for the kernel. A damaged primary GPT header is replaced by
/// the backup one, with a warning.
///
/// # Errors
/// The host's; [`Kind::Corrupt`](crate::error::Kind::Corrupt) if the MBR announces a GPT of which
/// neither copy is whole.
pub fn scan(disk: &Arc<dyn BlockSource>) -> Result<Option<Table>> {
    let disk = disk.as_ref();
    let Some(sector) = read(disk, 0, mbr::SIZE)? else { return Ok(None) };
    match mbr::recognise(&sector) {
        mbr::Sector::Protective => gpt::scan(disk).map(Some),
        mbr::Sector::Unsigned => Ok(gpt::scan_unprotected(disk)),
        mbr::Sector::Table(table) => Ok(mbr::scan(disk, &table)),
        mbr::Sector::Other => Ok(None),
    }
}

/// What is wrong with a table that is readable all the same.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Flaw {
    #[error(
        "partition {number} begins at {start:#x}, past the end of the disk at {end:#x}: left out"
    )]
    Outside { number: u32, start: u64, end: u64 },
    #[error(
        "partition {number} ends at {claimed:#x}, past the end of the disk at {end:#x}: cut short"
    )]
    CutShort { number: u32, claimed: u64, end: u64 },
    #[error("partition {number} ends at LBA {last} before it begins at LBA {first}: left out")]
    Backwards { number: u32, first: u64, last: u64 },
    #[error("partitions {first} and {second} overlap")]
    Overlap { first: u32, second: u32 },
    #[error("the chain of logical partitions comes back to sector {lba}: the rest is left out")]
    ChainLoops { lba: u64 },
    #[error("no logical partition table at sector {lba}: the rest of the chain is left out")]
    ChainBroken { lba: u64 },
    #[error("more than {most} logical partition tables: the rest is left out")]
    ChainTooLong { most: usize },
    #[error("the partition table counts sectors of 4,096 bytes, going by where its partitions lie")]
    LargeSectors,
    #[error("there is no protective MBR in front of the GPT")]
    Unprotected,
    #[error("{0}: the backup at the end of the disk is used instead")]
    BackupUsed(gpt::Cause),
    #[error("backup of the partition table: {0}")]
    BackupDamaged(gpt::Cause),
}

/// Keeps `volume` only as far as it lies on a disk of `end` bytes. `start` and `len` are `None`
/// when they do not even fit 64 bits.
fn place(
    mut volume: Volume,
    start: Option<u64>,
    len: Option<u64>,
    end: u64,
    flaws: &mut Vec<Flaw>,
) -> Option<Volume> {
    let number = volume.number;
    let start = start.unwrap_or(u64::MAX);
    if start >= end {
        flaws.push(Flaw::Outside { number, start, end });
        return None;
    }
    let claimed = len.and_then(|len| start.checked_add(len)).unwrap_or(u64::MAX);
    if claimed > end {
        flaws.push(Flaw::CutShort { number, claimed, end });
    }
    volume.start = start;
    volume.len = claimed.min(end) - start;
    (volume.len > 0).then_some(volume)
}

/// Puts the table together: volumes by number, overlaps found.
fn table(
    scheme: Scheme,
    sector_size: u32,
    id: String,
    mut volumes: Vec<Volume>,
    mut flaws: Vec<Flaw>,
) -> Table {
    volumes.sort_by_key(|volume| (volume.start, volume.number));
    let mut furthest: Option<(u64, u32)> = None;
    for volume in &volumes {
        let end = volume.start + volume.len;
        match furthest {
            Some((reached, first)) if volume.start < reached => {
                flaws.push(Flaw::Overlap { first, second: volume.number });
            }
            _ => {}
        }
        if furthest.is_none_or(|(reached, _)| end > reached) {
            furthest = Some((end, volume.number));
        }
    }
    volumes.sort_by_key(|volume| volume.number);
    let warnings = flaws.iter().map(ToString::to_string).collect();
    Table { scheme, sector_size, id, volumes, warnings }
}

/// `len` bytes at `offset`, or `None` if the disk ends before.
fn read(disk: &dyn BlockSource, offset: u64, len: usize) -> Result<Option<Vec<u8>>> {
    if offset.checked_add(len as u64).is_none_or(|end| end > disk.len()) {
        return Ok(None);
    }
    let mut bytes = vec![0; len];
    disk.read_at(offset, &mut bytes).within(|| "partition table")?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests;
