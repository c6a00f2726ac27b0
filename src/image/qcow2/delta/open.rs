//! Opening: what is refused, what is repaired, what is read.

use std::collections::HashSet;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};

use super::super::header::{Header, MAX_L1_BYTES, incompatible};
use super::super::layer::OFFSET_MASK;
use super::super::{self as qcow2, Image};
use super::Overlay;
use super::flush::Flushes;
use super::geometry::Geometry;
use super::head::Head;
use super::map::Map;
use super::recount;
use super::refcounts::Refcounts;
use crate::block::{BlockSource, Storage, StorageSource};
use crate::error::{Error, Kind, Result};

/// Fails for what may be read but must not be written here.
fn check(image: &Image) -> Result<()> {
    let header = &image.header;
    let refused = |what: &str, hint: &str| {
        Err(Error::new(Kind::Unsupported, format!("{what} cannot be written"))
            .with_hint(hint.to_owned()))
    };
    if header.version < 3 {
        return refused(
            "a version 2 image",
            "`qemu-img amend -f qcow2 -o compat=1.1 FILE` makes it version 3",
        );
    }
    if header.incompatible & incompatible::CORRUPT != 0 {
        let message = "is marked corrupt, and is not written";
        return Err(Error::new(Kind::Corrupt, message)
            .with_hint("`qemu-img check -r all FILE` repairs what can be repaired"));
    }
    if header.has_data_file() {
        return refused("an image with an external data file", "make a new overlay of it");
    }
    if image.extensions.bitmaps.is_some() {
        return refused(
            "an image with persistent bitmaps",
            "writing would make them wrong: `qemu-img bitmap --remove FILE NAME` drops one",
        );
    }
    Ok(())
}

/// Opens what is in `storage` above `below`.
pub(super) fn open(
    storage: Arc<dyn Storage>,
    name: String,
    below: Option<Arc<dyn BlockSource>>,
    size: Option<u64>,
) -> Result<Overlay> {
    // What is read below must be what a crash leaves: a killed writer may have left more in the
    // host's cache than is on stable storage.
    storage.sync()?;
    let source: Arc<dyn BlockSource> = Arc::new(StorageSource::new(Arc::clone(&storage))?);
    let image = qcow2::open(Arc::clone(&source), name.clone())?;
    check(&image)?;
    let mut head = Head::read(&*storage)?;
    let header = &image.header;
    let mut l1 = read_l1(&*source, header.l1_table_offset, u64::from(header.l1_size))?;
    let mut refcounts = if head.is_dirty() {
        log::info!("{name}: was not closed; counting its clusters");
        recount::recount(&storage, &*source, header, &mut l1)?
    } else {
        Refcounts::read(header, &*storage)?
    };
    // Features that need nothing of a reader, and that a writer who does not know them ends.
    if head.version3.autoclear_features.get() != 0 {
        head.version3.autoclear_features = 0.into();
        head.write(&*storage)?;
        storage.sync()?;
    }
    let old_size = header.size;
    let size = match size {
        None => old_size,
        Some(size) => grown(size, old_size)?,
    };
    let geometry = Geometry::of(header);
    grow_l1(&*storage, &mut head, &mut l1, &mut refcounts, geometry, size)?;
    let metadata = metadata(&source, header, &head, &l1, &refcounts)?;
    let mut overlay = Overlay {
        below,
        geometry,
        size,
        parent: image.parent.clone(),
        compression: header.compression()?,
        as_opened: source,
        map: Map::new(geometry, &l1, metadata),
        file_end: refcounts.end().into(),
        refcounts: Mutex::new(refcounts),
        head: Mutex::new(head),
        name,
        storage,
        gate: RwLock::default(),
        given_up: Mutex::default(),
        flushes: Flushes::default(),
        written: AtomicBool::new(false),
        failed: OnceLock::new(),
        closed: AtomicBool::new(false),
    };
    if size > old_size {
        overlay.zero_grown(old_size)?;
        overlay.head.get_mut().fixed.size = size.into();
        overlay.head.get_mut().write(&*overlay.storage)?;
        overlay.storage.sync()?;
    }
    Ok(overlay)
}

pub(super) fn read_l1(source: &dyn BlockSource, offset: u64, entries: u64) -> Result<Vec<u64>> {
    let mut bytes = vec![0; entries as usize * 8];
    // What the file has of it: the entries the disk needs were checked to be there.
    let there = source.len().saturating_sub(offset).min(bytes.len() as u64) as usize;
    source.read_at(offset, &mut bytes[..there])?;
    Ok(bytes
        .chunks_exact(8)
        .map(|entry| entry.iter().fold(0, |value, &byte| value << 8 | u64::from(byte)))
        // The other bits are reserved.
        .map(|entry| entry & (OFFSET_MASK | super::super::layer::COPIED))
        .collect())
}

fn grown(size: u64, old: u64) -> Result<u64> {
    if size < old {
        let message = format!("a disk of {old} bytes cannot shrink to {size}");
        return Err(Error::new(Kind::Usage, message));
    }
    (size.checked_next_multiple_of(512).filter(|&size| size <= i64::MAX as u64))
        .ok_or_else(|| Error::new(Kind::Usage, format!("a disk of {size} bytes is too large")))
}

/// Sees to it that the L1 table reaches to `size`. A longer one is written elsewhere and synced
/// before the header names it; the old one is free from then on.
fn grow_l1(
    storage: &dyn Storage,
    head: &mut Head,
    l1: &mut Vec<u64>,
    refcounts: &mut Refcounts,
    geometry: Geometry,
    size: u64,
) -> Result<()> {
    let needed = size.div_ceil(geometry.table_span());
    if needed <= l1.len() as u64 {
        return Ok(());
    }
    if needed > MAX_L1_BYTES / 8 {
        let message = format!("a disk of {size} bytes is too large for its clusters");
        return Err(Error::new(Kind::Usage, message));
    }
    let cluster = geometry.cluster();
    let (old, old_len) = (head.fixed.l1_table_offset.get(), l1.len() as u64 * 8);
    let host = refcounts.allocate_run((needed * 8).div_ceil(cluster), storage)?;
    l1.resize(needed as usize, 0);
    let mut bytes: Vec<u8> = l1.iter().flat_map(|entry| entry.to_be_bytes()).collect();
    bytes.resize(bytes.len().next_multiple_of(cluster as usize), 0);
    storage.write_at(host, &bytes)?;
    storage.sync()?;
    head.fixed.l1_table_offset = host.into();
    head.fixed.l1_size = (needed as u32).into();
    // The refcounts in the file do not know the new table.
    head.set_dirty(true);
    head.write(storage)?;
    storage.sync()?;
    if old_len > 0 {
        let clusters = old / cluster..(old + old_len).div_ceil(cluster);
        refcounts.release(clusters, storage)?;
    }
    Ok(())
}

/// The host clusters that are no guest's.
fn metadata(
    source: &Arc<dyn BlockSource>,
    header: &Header,
    head: &Head,
    l1: &[u64],
    refcounts: &Refcounts,
) -> Result<HashSet<u64>> {
    let cluster = header.cluster_size();
    let mut metadata = HashSet::from([0]);
    let mut add = |offset: u64, len: u64| {
        metadata.extend((0..len.div_ceil(cluster)).map(|n| offset.saturating_add(n * cluster)));
    };
    add(head.fixed.l1_table_offset.get(), l1.len() as u64 * 8);
    let table = head.fixed.refcount_table_clusters.get();
    add(header.refcount_table_offset, u64::from(table) * cluster);
    refcounts.blocks().for_each(|block| add(block, cluster));
    l1.iter().filter(|&&entry| entry != 0).for_each(|entry| add(entry & OFFSET_MASK, cluster));
    if header.nb_snapshots > 0 {
        let (snapshots, len) = qcow2::snapshot::read_table(&**source, header)?;
        add(header.snapshots_offset, len);
        for snapshot in snapshots {
            add(snapshot.l1_table_offset, u64::from(snapshot.l1_size) * 8);
        }
    }
    Ok(metadata)
}
