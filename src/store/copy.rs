//! Copying snapshots into another store, and of them only what it lacks.
//!
//! Where both stores cut disks into blocks of one size, a block has the same id in both: blocks are compared by their
//! ids, and a record is copied as it is, under the same id. A pack goes as it is where both stores have one number and most
//! of it is needed. Everything else is read, verified, and written as a new snapshot's blocks are.
//!
//! Where they do not, because blocks are of another size or named with another key, the disks of a snapshot are read as
//! any disk is; of one that another was copied before, only what differs from that one (`renamed.rs`).
//!
//! What an interrupted copy has sent is used by the next: packs are called by their contents, and are made of
//! the same blocks in the same order.

mod renamed;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;

use parking_lot::Mutex;
use serde::Serialize;

use super::create::Writer;
use super::id::{BlobKind, Id};
use super::index::Location;
use super::lease::{Lease, Root};
use super::map::{FANOUT, Shape};
use super::objects::{Object, Objects, Sort};
use super::pack::{Blob, Pack};
use super::record::Snapshot;
use super::sealed::Sealed;
use super::signatures::SigningKey;
use super::{DiskSource, NewDisk, NewSnapshot, Progress, Reading, SnapshotLayer, Store, whole};
use crate::block::BlockSource;
use crate::chain::Chain;
use crate::error::{Error, Kind, Result, ResultExt};
use renamed::Renamed;

/// Packs that are sent at the same time: each is held in memory.
const SENDERS: usize = 3;
/// Packs of which an index tells before the copy is whole.
const INDEX_EVERY: usize = 16;
/// Blocks that are read at once, by several threads, and those threads.
const BATCH: usize = 128;
const READERS: usize = 8;
/// Pages of an index that are read at once.
const READ_PAGES: usize = 64;
/// Blobs that are looked for before some are sent: what is known of them is held in memory.
const SLICE: usize = 1 << 18;

/// What copying did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Copied {
    /// Snapshots that are there now, by their ids there.
    pub snapshots: Vec<Id>,
    /// Those that were there before.
    pub already: u64,
    /// Packs that went as they were.
    pub packs: u64,
    /// Packs of those that were there already, left by an attempt that did not end.
    pub packs_there: u64,
    /// Blocks and map pages that went one by one.
    pub blobs: u64,
    /// Bytes that were stored.
    pub stored: u64,
    /// Signatures that came with them, or were made of copies.
    pub signatures: u64,
    /// Those of `snapshots` that were signed where they came from, and are signed by nobody here: a signature names its
    /// store.
    pub unsigned: Vec<Id>,
}

/// What is needed of one pack.
#[derive(Debug, Default)]
struct Needed {
    locations: Vec<Location>,
    bytes: u64,
}

impl Needed {
    fn blobs(&self) -> Vec<Blob> {
        self.locations.iter().map(|location| location.blob).collect()
    }
}

impl Store {
    /// Makes the objects at `objects` a store of the same number and settings as this one, so that packs can go there as
    /// they are.
    ///
    /// # Errors
    /// Those of both places.
    pub fn twin(&self, objects: &dyn Objects) -> Result<()> {
        for key in self.objects.list(Sort::Keys)? {
            let key = Object::Key(key.id);
            objects.put(key, &[&whole(&*self.objects, key)?])?;
        }
        // Last: only with it is it a store.
        objects.put(Object::Config, &[&whole(&*self.objects, Object::Config)?])
    }

    /// Those of `snapshots`, which are of another store, of which no copy is here.
    ///
    /// # Errors
    /// As [`Store::snapshots`].
    pub fn lacks(&self, snapshots: &[Snapshot]) -> Result<Vec<Snapshot>> {
        let here = self.snapshots()?;
        Ok(snapshots.iter().filter(|snapshot| !is_there(&here, snapshot)).cloned().collect())
    }

    /// Copies `snapshots` of `from`, the oldest first. Each exists here once it is whole. Signatures hold in stores of
    /// one number, and come with it there.
    ///
    /// # Errors
    /// Those of reading `from`, also where what is read is damaged, and of writing here.
    pub fn copy_from(
        self: &Arc<Self>,
        from: &Arc<Store>,
        snapshots: &[Snapshot],
        progress: &Progress,
    ) -> Result<Copied> {
        self.copy_signed(from, snapshots, None, progress)
    }

    /// The same, and `key` signs the copies.
    ///
    /// # Errors
    /// As [`Store::copy_from`].
    pub fn copy_signed(
        self: &Arc<Self>,
        from: &Arc<Store>,
        snapshots: &[Snapshot],
        key: Option<&Arc<SigningKey>>,
        progress: &Progress,
    ) -> Result<Copied> {
        self.may_write()?;
        let mut copied = Copied::default();
        let signed = match self.number == from.number {
            true => self.signatures_lacking(from, snapshots)?,
            false => HashMap::new(),
        };
        let mut here = self.snapshots()?;
        let (there, lacking): (Vec<_>, Vec<_>) =
            snapshots.iter().partition(|snapshot| is_there(&here, snapshot));
        copied.already = there.len() as u64;
        for snapshot in there {
            // Those that were signed since.
            copied.signatures += self.put_signatures(from, signed.get(&snapshot.id))?;
        }
        if lacking.is_empty() {
            return Ok(copied);
        }
        // What a series has here is compared with, and stays meanwhile.
        let is_wanted = |base: &&Snapshot| {
            snapshots.iter().any(|snapshot| snapshot.record.series == base.record.series)
        };
        let newest: HashMap<&str, &Snapshot> =
            here.iter().filter(is_wanted).map(|base| (base.record.series.as_str(), base)).collect();
        let mut bases: Vec<Snapshot> = newest.into_values().cloned().collect();
        // Others may have removed some by when they heed us.
        let (lease, _) = self.writing(bases.iter().flat_map(Root::of).collect())?;
        here = self.snapshots()?;
        // Then a snapshot has one id in both.
        let is_alike =
            self.config.block_size == from.config.block_size && self.keys.are_like(&from.keys);
        let there = if is_alike { Vec::new() } else { from.snapshots()? };
        bases.retain(|base| here.iter().any(|here| here.id == base.id));
        for snapshot in lacking {
            from.trust(snapshot)?;
            if is_there(&here, snapshot) {
                copied.already += 1;
                continue;
            }
            let base = bases.iter().rev().find(|base| base.record.series == snapshot.record.series);
            let named = || format!("snapshot {}", snapshot.id);
            lease.check()?;
            // Before it: it is never there without.
            copied.signatures += self.put_signatures(from, signed.get(&snapshot.id))?;
            let made = match is_alike {
                true => {
                    if let Some(key) = key {
                        self.put_signature(snapshot.id, key)?;
                    }
                    self.copy_alike(from, snapshot, base, &lease, progress, &mut copied)
                }
                false => {
                    let before = base.and_then(|base| {
                        let origin = base.origin();
                        Some([base, there.iter().find(|found| found.origin() == origin)?])
                    });
                    self.copy_anew(from, snapshot, base, before, key, progress, &mut copied)
                }
            };
            let made = made.within(named)?;
            copied.signatures += u64::from(key.is_some());
            if key.is_none() && self.number != from.number {
                let signatures = from.signatures(std::slice::from_ref(snapshot))?;
                if signatures.values().any(|signatures| !signatures.is_empty()) {
                    copied.unsigned.push(made.id);
                }
            }
            copied.snapshots.push(made.id);
            here.push(made.clone());
            bases.push(made);
        }
        Ok(copied)
    }

    /// Copies a snapshot into a store that names blocks differently: its disks are read. `before` is a copy that
    /// is here, and what it is a copy of.
    #[expect(clippy::too_many_arguments, reason = "all of them are of this one copy")]
    fn copy_anew(
        self: &Arc<Self>,
        from: &Arc<Store>,
        snapshot: &Snapshot,
        base: Option<&Snapshot>,
        before: Option<[&Snapshot; 2]>,
        key: Option<&Arc<SigningKey>>,
        progress: &Progress,
        copied: &mut Copied,
    ) -> Result<Snapshot> {
        let record = &snapshot.record;
        // What is taken over must have been signed as well.
        let is_trusted = |store: &Store, snapshot: &Snapshot| match store.trust(snapshot) {
            Err(error) if matches!(error.kind(), Kind::Refused | Kind::Corrupt) => Ok(false),
            trusted => trusted.map(|()| true),
        };
        let base = match base {
            Some(base) if is_trusted(self, base)? => Some(base),
            _ => None,
        };
        let before = match before {
            Some([copy, before]) if base.is_some() && is_trusted(from, before)? => {
                Some([copy, before])
            }
            _ => None,
        };
        let mut disks = Vec::new();
        for disk in &record.disks {
            let layer = SnapshotLayer::new(Arc::clone(from), snapshot, disk)?;
            let chain = Chain::new(vec![Arc::new(layer)], Arc::clone(&from.cache))?;
            let mut source: Arc<dyn BlockSource> = Arc::new(chain);
            if let Some([copy, before]) = before
                && let (Some(copy), Some(before)) = (copy.disk(&disk.name), before.disk(&disk.name))
            {
                match Renamed::new(Arc::clone(&source), from, [before, disk], self, copy) {
                    Ok(renamed) => source = Arc::new(renamed),
                    // Of one that was damaged, or removed since, nothing is taken over.
                    Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::NotFound) => {}
                    Err(error) => return Err(error),
                }
            }
            let source = DiskSource::Image(source);
            disks.push(NewDisk { name: disk.name.clone(), source, layers: Vec::new() });
        }
        let new = NewSnapshot {
            series: record.series.clone(),
            time: record.time,
            tags: record.tags.clone(),
            parent: base.cloned(),
            source: record.source.clone(),
            host: record.host.clone(),
            sign: key.cloned(),
            reading: Reading::default(),
            disks,
        };
        let made = self.create_as(new, Some(snapshot.origin()), progress)?;
        copied.blobs += made.record.disks.iter().map(|disk| disk.new_blocks).sum::<u64>();
        copied.stored += made.record.disks.iter().map(|disk| disk.new_bytes).sum::<u64>();
        Ok(made)
    }

    fn copy_alike(
        &self,
        from: &Arc<Store>,
        snapshot: &Snapshot,
        base: Option<&Snapshot>,
        lease: &Lease,
        progress: &Progress,
        copied: &mut Copied,
    ) -> Result<Snapshot> {
        let writer = Writer::new(self, progress)?;
        let send = &mut |packs| self.send(from, packs, &writer, progress, copied);
        let mut missing = Missing {
            from,
            to: self,
            packs: BTreeMap::new(),
            count: 0,
            pages: HashSet::new(),
            progress,
            send,
        };
        let mut look = || -> Result<()> {
            for disk in &snapshot.record.disks {
                let shape = Shape::new(disk.size, from.block_size().into())?;
                let base = match base.and_then(|base| base.disk(&disk.name)) {
                    Some(base) => {
                        let other = Shape::new(base.size, self.block_size().into())?;
                        Some(base.root).filter(|_| other.level == shape.level)
                    }
                    None => None,
                };
                // What both have at the same place is whole here, and so is all below it.
                missing.look(disk.root, base.unwrap_or(Id::ZERO), shape.level)?;
            }
            missing.flush()
        };
        if let Err(error) = look() {
            return Err(writer.give_up(error));
        }
        let (_, bytes) = writer.finish()?;
        copied.stored += bytes;
        let object = Object::Snapshot(snapshot.id);
        let bytes = whole(&*from.objects, object)?;
        from.keys.unseal(Sealed::Record, &bytes)?;
        lease.check()?;
        self.objects.put(object, &[&bytes])?;
        Ok(snapshot.clone())
    }

    /// Sends what is needed of each pack.
    fn send(
        &self,
        from: &Arc<Store>,
        packs: BTreeMap<Id, Needed>,
        writer: &Writer<'_>,
        progress: &Progress,
        copied: &mut Copied,
    ) -> Result<()> {
        let told: HashMap<Id, Pack> = from
            .indexes
            .read()
            .iter()
            .flat_map(|index| index.packs().to_vec())
            .map(|pack| (pack.id, pack))
            .collect();
        let is_twin = self.number == from.number;
        // One that is to go here would go although it came again.
        let leaving = self.leaving.read().clone();
        let mut all = Vec::new();
        let mut one_by_one = Vec::new();
        for (id, needed) in packs {
            match told.get(&id) {
                Some(&pack)
                    if is_twin && needed.bytes >= pack.len / 2 && !leaving.contains(&id) =>
                {
                    all.push((pack, needed));
                }
                _ => one_by_one.extend(needed.locations),
            }
        }
        match self.send_packs(from, &all, writer, progress, copied) {
            // Somebody collects there, and what is needed of it lies elsewhere by now.
            Err(error) if error.kind() == Kind::NotFound => {
                one_by_one.extend(all.into_iter().flat_map(|(_, needed)| needed.locations));
            }
            sent => sent?,
        }
        one_by_one.sort_unstable_by_key(|location: &Location| (location.pack, location.blob.at));
        one_by_one.dedup();
        copied.blobs += one_by_one.len() as u64;
        self.send_blobs(from, &one_by_one, writer, progress)
    }

    /// Sends packs as they are.
    fn send_packs(
        &self,
        from: &Arc<Store>,
        packs: &[(Pack, Needed)],
        writer: &Writer<'_>,
        progress: &Progress,
        copied: &mut Copied,
    ) -> Result<()> {
        if packs.is_empty() {
            return Ok(());
        }
        let mut blobs: HashMap<Id, Vec<Blob>> =
            packs.iter().map(|(pack, needed)| (pack.id, needed.blobs())).collect();
        // Indexes that were merged since may tell of another place of what is needed, and no more of this one.
        for index in from.indexes.read().iter() {
            let mut entries = index.entries(READ_PAGES);
            while let Some(location) = entries.next()? {
                if let Some(blobs) = blobs.get_mut(&location.pack) {
                    blobs.push(location.blob);
                }
            }
        }
        let there: HashMap<Id, u64> = self
            .objects
            .list(Sort::Packs)?
            .into_iter()
            .map(|listed| (listed.id, listed.len))
            .collect();
        let blobs = Mutex::new(blobs);
        let next = AtomicUsize::new(0);
        let (sent, found, bytes) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let failed = Mutex::new(None);
        let work = || {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let Some((pack, needed)) = packs.get(number) else { return };
                let send = || -> Result<()> {
                    check_stop(progress)?;
                    if there.get(&pack.id) == Some(&pack.len) {
                        found.fetch_add(1, Ordering::Relaxed);
                    } else {
                        from.copy_pack(pack, &*self.objects)?;
                        sent.fetch_add(1, Ordering::Relaxed);
                        bytes.fetch_add(pack.len, Ordering::Relaxed);
                        progress.stored.fetch_add(pack.len, Ordering::Relaxed);
                    }
                    progress.done.fetch_add(needed.bytes, Ordering::Relaxed);
                    let mut blobs = blobs.lock().remove(&pack.id).unwrap_or_default();
                    // Several indexes may tell of it.
                    blobs.sort_unstable_by_key(|blob| blob.at);
                    blobs.dedup();
                    writer.told_of(*pack, blobs, INDEX_EVERY)
                };
                if let Err(error) = send() {
                    failed.lock().get_or_insert(error);
                    next.store(packs.len(), Ordering::Relaxed);
                    return;
                }
            }
        };
        thread::scope(|scope| {
            for _ in 1..SENDERS.min(packs.len()) {
                scope.spawn(work);
            }
            work();
        });
        copied.packs += sent.into_inner();
        copied.packs_there += found.into_inner();
        copied.stored += bytes.into_inner();
        failed.into_inner().map_or(Ok(()), Err)
    }

    /// Copies a pack of ours, which is held against its name.
    fn copy_pack(&self, pack: &Pack, to: &dyn Objects) -> Result<()> {
        let object = Object::Pack(pack.id);
        let mut bytes = vec![0; usize::try_from(pack.len).unwrap_or(usize::MAX)];
        self.objects.read_at(object, 0, &mut bytes)?;
        match Id::of_object(&bytes) {
            found if found == pack.id => to.put_owned(object, bytes),
            found => {
                let error = Error::from(super::cause::Cause::Name(found));
                Err(error.within(format!("{}: {object}", self.name())))
            }
        }
    }

    /// Reads blobs, several at a time, and writes them in their order.
    fn send_blobs(
        &self,
        from: &Arc<Store>,
        locations: &[Location],
        writer: &Writer<'_>,
        progress: &Progress,
    ) -> Result<()> {
        let stop = AtomicBool::new(false);
        let (send, receive) = sync_channel::<Result<Vec<Vec<u8>>>>(1);
        thread::scope(|scope| {
            scope.spawn(|| {
                let send = send;
                for batch in locations.chunks(BATCH) {
                    let read = from.read_batch(batch);
                    let is_last = read.is_err() || stop.load(Ordering::Relaxed);
                    if send.send(read).is_err() || is_last {
                        return;
                    }
                }
            });
            let write = || -> Result<()> {
                for batch in locations.chunks(BATCH) {
                    check_stop(progress)?;
                    let Ok(read) = receive.recv() else { break };
                    for (location, plain) in batch.iter().zip(read?) {
                        let Blob { kind, id, stored, .. } = location.blob;
                        writer.add(kind, id, &plain)?;
                        progress.done.fetch_add(stored.into(), Ordering::Relaxed);
                    }
                }
                Ok(())
            };
            let written = write();
            stop.store(true, Ordering::Relaxed);
            drop(receive);
            written
        })
    }

    fn read_batch(&self, batch: &[Location]) -> Result<Vec<Vec<u8>>> {
        let read = |location: &Location| -> Result<Vec<u8>> {
            let Blob { kind, id, plain, .. } = location.blob;
            let mut bytes = vec![0; plain as usize];
            // Wherever it is good: it may lie in several packs.
            self.read_blob(kind, &id, &mut bytes)?;
            Ok(bytes)
        };
        let size = batch.len().div_ceil(READERS).max(1);
        thread::scope(|scope| {
            let threads: Vec<_> = batch
                .chunks(size)
                .map(|part| scope.spawn(move || part.iter().map(read).collect::<Result<Vec<_>>>()))
                .collect();
            let mut all = Vec::with_capacity(batch.len());
            for thread in threads {
                let part = thread.join();
                all.extend(part.map_err(|_| Error::new(Kind::Io, "a thread failed"))??);
            }
            Ok(all)
        })
    }
}

/// Whether a snapshot, or a copy of it, is among those that are `here`.
fn is_there(here: &[Snapshot], snapshot: &Snapshot) -> bool {
    here.iter().any(|found| found.origin() == snapshot.origin())
}

fn check_stop(progress: &Progress) -> Result<()> {
    match progress.stop.load(Ordering::Relaxed) {
        true => Err(Error::new(Kind::Io, "stopped")),
        false => Ok(()),
    }
}

/// What one store has and another needs.
struct Missing<'a> {
    from: &'a Store,
    to: &'a Store,
    packs: BTreeMap<Id, Needed>,
    /// Blobs in `packs`.
    count: usize,
    /// Pages that were looked at.
    pages: HashSet<Id>,
    progress: &'a Progress,
    send: &'a mut dyn FnMut(BTreeMap<Id, Needed>) -> Result<()>,
}

impl Missing<'_> {
    /// Looks at the page `id` and all below it; `base` is the page that lies there in a snapshot that is whole.
    fn look(&mut self, id: Id, base: Id, level: u32) -> Result<()> {
        if id.is_zero() || id == base || !self.pages.insert(id) {
            return Ok(());
        }
        let page = self.from.map_page(id)?;
        let old = match base.is_zero() {
            true => None,
            // What cannot be read is compared with nothing.
            false => self.to.map_page(base).ok(),
        };
        for number in 0..FANOUT {
            let below = page.get(number);
            let old = old.as_ref().map_or(Id::ZERO, |old| old.get(number));
            if below.is_zero() || below == old {
                continue;
            }
            if level > 0 {
                self.look(below, old, level - 1)?;
            } else {
                self.need(BlobKind::Block, below)?;
            }
        }
        // Behind what it leads to, as they were written.
        self.need(BlobKind::Page, id)
    }

    fn need(&mut self, kind: BlobKind, id: Id) -> Result<()> {
        if self.to.has(kind, &id)? {
            return Ok(());
        }
        let location = self.from.locate(kind, &id)?;
        let needed = self.packs.entry(location.pack).or_default();
        needed.bytes += u64::from(location.blob.stored);
        needed.locations.push(location);
        self.count += 1;
        match self.count < SLICE {
            true => Ok(()),
            false => self.flush(),
        }
    }

    /// Sends what was found so far.
    fn flush(&mut self) -> Result<()> {
        check_stop(self.progress)?;
        self.count = 0;
        let packs = std::mem::take(&mut self.packs);
        let bytes = packs.values().map(|needed| needed.bytes).sum::<u64>();
        self.progress.total.fetch_add(bytes, Ordering::Relaxed);
        match packs.is_empty() {
            true => Ok(()),
            false => (self.send)(packs),
        }
    }
}
