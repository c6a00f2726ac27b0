//! The snapshot table: internal snapshots, each with an L1 table and a disk size of its own.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::cause::Cause;
use super::header::Header;
use crate::block::BlockSource;
use crate::error::Result;
use crate::image::SnapshotInfo;
use crate::wire;

/// The part every entry of the table has.
#[derive(Debug, Clone, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Entry {
    pub l1_table_offset: U64,
    pub l1_size: U32,
    pub id_str_size: U16,
    pub name_size: U16,
    pub date_sec: U32,
    pub date_nsec: U32,
    pub vm_clock_nsec: U64,
    pub vm_state_size: U32,
    pub extra_data_size: U32,
}

/// Longest extra data of an entry (QEMU's limit).
const MAX_EXTRA: u32 = 1024;
/// Longest snapshot table. QEMU writes names of at most 255 and ids of at most 127 bytes, so that
/// the most snapshots it allows fit.
const MAX_TABLE: u64 = 32 << 20;

/// One internal snapshot.
#[derive(Debug, Clone)]
pub(super) struct Snapshot {
    pub l1_table_offset: u64,
    pub l1_size: u32,
    /// Whether the entry itself said the disk size: old ones did not.
    pub sized: bool,
    pub info: SnapshotInfo,
}

/// Reads the whole table; with it, the bytes it takes.
pub(super) fn read_table(
    source: &dyn BlockSource,
    header: &Header,
) -> Result<(Vec<Snapshot>, u64)> {
    let mut table = Table {
        source,
        start: header.snapshots_offset,
        end: source.len().min(header.snapshots_offset.saturating_add(MAX_TABLE)),
        window: Vec::new(),
        window_start: 0,
    };
    let mut snapshots = Vec::new();
    let mut at = header.snapshots_offset;
    for index in 0..header.nb_snapshots {
        let fixed = table.bytes(index, at, size_of::<Entry>())?;
        let Some(entry) = wire::record::<Entry>(fixed, 0).cloned() else {
            return Err(Cause::SnapshotCut(index).into());
        };
        at += size_of::<Entry>() as u64;
        let extra_len = entry.extra_data_size.get();
        if extra_len > MAX_EXTRA {
            return Err(Cause::SnapshotExtra { index, len: extra_len }.into());
        }
        let extra = table.bytes(index, at, extra_len as usize)?;
        let vm_state_size = wire::record::<U64>(extra, 0)
            .map_or(u64::from(entry.vm_state_size.get()), |size| size.get());
        let disk_size = wire::record::<U64>(extra, 8).map(|size| size.get());
        at += u64::from(extra_len);
        let id = text(table.bytes(index, at, usize::from(entry.id_str_size.get()))?);
        at += u64::from(entry.id_str_size.get());
        let name = text(table.bytes(index, at, usize::from(entry.name_size.get()))?);
        at += u64::from(entry.name_size.get());
        at = at.next_multiple_of(8);
        let virtual_size = disk_size.unwrap_or(header.size);
        if virtual_size > i64::MAX as u64 {
            return Err(Cause::SnapshotSize { index, size: virtual_size }.into());
        }
        snapshots.push(Snapshot {
            l1_table_offset: entry.l1_table_offset.get(),
            l1_size: entry.l1_size.get(),
            sized: disk_size.is_some(),
            info: SnapshotInfo {
                id,
                name,
                created: (u64::from(entry.date_sec.get()), entry.date_nsec.get()),
                virtual_size,
                vm_state_size,
            },
        });
    }
    Ok((snapshots, at - header.snapshots_offset))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The table's bytes, read a window at a time.
struct Table<'a> {
    source: &'a dyn BlockSource,
    start: u64,
    end: u64,
    window: Vec<u8>,
    window_start: u64,
}

impl Table<'_> {
    const WINDOW: u64 = 128 << 10;

    /// The `len` bytes at `at`, which belong to entry `index`; at most 64 KiB.
    fn bytes(&mut self, index: u32, at: u64, len: usize) -> Result<&[u8]> {
        let end = at.saturating_add(len as u64);
        if end > self.end {
            return Err(if end - self.start > MAX_TABLE {
                Cause::SnapshotTableSize(index).into()
            } else {
                Cause::SnapshotCut(index).into()
            });
        }
        let held = self.window_start..self.window_start + self.window.len() as u64;
        if at < held.start || end > held.end {
            let fill = (self.end - at).min(Self::WINDOW);
            self.window.resize(fill as usize, 0);
            self.window_start = at;
            self.source.read_at(at, &mut self.window)?;
        }
        let from = (at - self.window_start) as usize;
        self.window.get(from..from + len).ok_or_else(|| Cause::SnapshotCut(index).into())
    }
}
