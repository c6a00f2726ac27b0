//! The repair of a delta that was not closed: its refcounts are counted anew.
//!
//! That is all there is to repair, as the map in the file is right at every moment: see
//! `docs/delta.md`. The flag of an entry that says "nobody else refers to this" follows from the
//! counts, and is put right where another program left it wrong.

use std::sync::Arc;

use super::super::cause::{Cause, Fault};
use super::super::header::Header;
use super::super::layer::{COPIED, OFFSET_MASK};
use super::super::snapshot;
use super::entry::Entry;
use super::geometry::Geometry;
use super::open::read_l1;
use super::refcounts::Refcounts;
use crate::block::{BlockSource, Storage};
use crate::error::Result;
use crate::wire::Budget;

/// L2 tables that are read, counting those of snapshots each time.
const TABLES: u64 = 16 << 20;

struct Count<'a> {
    storage: &'a dyn Storage,
    geometry: Geometry,
    len: u64,
    refcounts: Refcounts,
    budget: Budget,
    /// Whether all flags are surely right: each says one reference, and there is one of each.
    flags_right: bool,
}

/// Counts every cluster of `storage`, in which `l1` is the L1 table; its flags are put right.
pub(super) fn recount(
    storage: &Arc<dyn Storage>,
    source: &dyn BlockSource,
    header: &Header,
    l1: &mut [u64],
) -> Result<Refcounts> {
    let len = source.len();
    let mut count = Count {
        storage: &**storage,
        geometry: Geometry::of(header),
        len,
        refcounts: Refcounts::zero(header, len),
        budget: Budget::new("L2 tables", TABLES),
        flags_right: true,
    };
    let cluster = header.cluster_size();
    count.sole("header", 0, cluster)?;
    count.sole("L1 table", header.l1_table_offset, l1.len() as u64 * 8)?;
    let table = u64::from(header.refcount_table_clusters) * cluster;
    count.sole("refcount table", header.refcount_table_offset, table)?;
    let mut snapshots = Vec::new();
    if header.nb_snapshots > 0 {
        let (read, table) = snapshot::read_table(source, header)?;
        count.sole("snapshot table", header.snapshots_offset, table)?;
        snapshots = read;
        for snapshot in &snapshots {
            let entries = snapshot.l1_size;
            let offset = snapshot.l1_table_offset;
            header.check_l1("L1 table of a snapshot", offset, entries, entries.into(), len)?;
            count.sole("L1 table of a snapshot", offset, u64::from(entries) * 8)?;
        }
    }
    count.tables(l1)?;
    for snapshot in &snapshots {
        count.flags_right = false;
        count.tables(&read_l1(source, snapshot.l1_table_offset, snapshot.l1_size.into())?)?;
    }
    // The blocks that hold refcounts stay where they are, those of a torn table left out.
    for (index, block) in count.refcounts.read_table(&**storage)?.into_iter().enumerate() {
        let there =
            block % cluster == 0 && block.checked_add(cluster).is_some_and(|end| end <= len);
        if there && count.refcounts.get(block >> header.cluster_bits, &**storage)? == 0 {
            count.refcounts.count(block, cluster, &**storage)?;
            count.refcounts.put_block(index, block)?;
        }
    }
    if !count.flags_right {
        count.put_flags_right(header.l1_table_offset, l1)?;
        storage.sync()?;
    }
    let mut refcounts = count.refcounts;
    refcounts.trim(&**storage)?;
    Ok(refcounts)
}

impl Count<'_> {
    /// Counts clusters that nothing else may refer to.
    fn sole(&mut self, what: &'static str, offset: u64, len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        let cluster = self.geometry.cluster();
        let end = offset.checked_add(len).filter(|&end| end <= self.len.next_multiple_of(cluster));
        if end.is_none() {
            return Err(Cause::Table(what, Fault::BeyondEnd(offset, self.len)).into());
        }
        if self.refcounts.count(offset, len, self.storage)? > 1 {
            return Err(Cause::Overlap { what, host: offset }.into());
        }
        Ok(())
    }

    /// Counts the L2 tables that `l1` names, and what they name.
    fn tables(&mut self, l1: &[u64]) -> Result<()> {
        let geometry = self.geometry;
        for (index, &entry) in l1.iter().enumerate() {
            let host = entry & OFFSET_MASK;
            if host == 0 {
                continue;
            }
            self.budget.spend(1)?;
            let guest = index as u64 * geometry.table_span();
            let highest = self.refcounts.count(host, 1, self.storage)?;
            self.flags_right &= highest == 1 && entry & COPIED != 0;
            for (nth, entry) in self.table(guest, host)?.iter().enumerate() {
                let guest = guest + ((nth as u64) << geometry.cluster_bits);
                entry.check(guest, self.len, geometry)?;
                let Some((host, len)) = entry.reference(geometry) else { continue };
                // The last sectors of a compressed cluster may be claimed and not be there.
                let len = len.min(self.len.next_multiple_of(geometry.cluster()) - host);
                let highest = self.refcounts.count(host, len, self.storage)?;
                let right = highest == 1 && entry.own_host().is_some();
                self.flags_right &= right || entry.is_compressed();
            }
        }
        Ok(())
    }

    fn table(&self, guest: u64, host: u64) -> Result<Box<[Entry]>> {
        if self.geometry.within(host) != 0 {
            return Err(Cause::L2Misaligned { guest, host }.into());
        }
        let mut bytes = vec![0; self.geometry.cluster() as usize];
        if host >= self.len || self.storage.read_at(host, &mut bytes)? < bytes.len() {
            return Err(Cause::L2BeyondEnd { guest, host }.into());
        }
        Ok(Entry::decode_all(&bytes, self.geometry))
    }

    /// Makes the flags of the tables in use say what the counts say.
    fn put_flags_right(&mut self, l1_offset: u64, l1: &mut [u64]) -> Result<()> {
        let geometry = self.geometry;
        for (index, slot) in l1.iter_mut().enumerate() {
            let host = *slot & OFFSET_MASK;
            if host == 0 {
                continue;
            }
            let sole = self.refcounts.get(host >> geometry.cluster_bits, self.storage)? == 1;
            let right = if sole { host | COPIED } else { host };
            if *slot != right {
                *slot = right;
                self.storage.write_at(l1_offset + index as u64 * 8, &right.to_be_bytes())?;
            }
            let entries = self.table(index as u64 * geometry.table_span(), host)?;
            for (nth, entry) in entries.iter().enumerate() {
                let Some(data) = entry.host() else { continue };
                if self.refcounts.get(data >> geometry.cluster_bits, self.storage)? == 1 {
                    if entry.own_host().is_some() {
                        continue;
                    }
                } else if entry.own_host().is_none() {
                    continue;
                }
                let right = Entry { descriptor: entry.descriptor ^ COPIED, ..*entry };
                let mut bytes = Vec::new();
                right.encode(geometry, &mut bytes);
                self.storage.write_at(host + nth as u64 * geometry.entry_bytes(), &bytes)?;
            }
        }
        Ok(())
    }
}
