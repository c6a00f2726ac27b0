//! Making a snapshot: what may have changed is read, what the store lacks is written.
//!
//! Workers take the disk in stretches of one map page. The order of writing is the format's: packs, then the index,
//! then the record.

use std::cell::RefCell;
use std::collections::HashSet;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use jiff::Timestamp;
use parking_lot::Mutex;
use zstd::zstd_safe::{CCtx, compress_bound};

use super::cause::Cause;
use super::condemned::Why;
use super::id::{BlobKind, Id};
use super::index::{self, Index};
use super::lease::{Lease, Work};
use super::map::{FANOUT, Shape, page_bytes, span};
use super::objects::Object;
use super::pack::{Blob, Encoding, Filling, Pack};
use super::record::{DiskRecord, Record, Snapshot};
use super::sealed::Sealed;
use super::select::check_name;
use super::signatures::SigningKey;
use super::source::{self, LayerState, SourceLayer, Unchanged};
use super::{MOST_WORKERS, Store};
use crate::block::{BlockSource, Extent, Home, Origin, is_zero};
use crate::error::{Error, Kind, Result, ResultExt};

/// Blobs from which on an index is written before the snapshot is whole: what is in an index need not be
/// held in memory.
const INDEX_FULL: usize = 1 << 18;

/// Threads more where packs are long on their way.
const SENDERS: usize = 2;

/// What a snapshot is made of.
#[derive(Debug)]
pub struct NewSnapshot {
    /// The series it is to belong to.
    pub series: String,
    /// Of when it is.
    pub time: Timestamp,
    /// What it is given besides.
    pub tags: Vec<String>,
    /// What to compare it with: only what differs from it is looked for in the store.
    pub parent: Option<Snapshot>,
    /// What it is made of, for people.
    pub source: String,
    /// Where it is made.
    pub host: String,
    /// What signs it.
    pub sign: Option<Arc<SigningKey>>,
    /// Its disks.
    pub disks: Vec<NewDisk>,
}

/// A disk of a snapshot that is made.
#[derive(Debug)]
pub struct NewDisk {
    /// What it is called among the disks of the snapshot.
    pub name: String,
    /// Its bytes, which do not change meanwhile.
    pub source: Arc<dyn BlockSource>,
    /// The images it is read from, top first, if all of it lies in files; empty if that is not known.
    pub layers: Vec<SourceLayer>,
}

/// How far making a snapshot has come, for whoever watches.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of all disks.
    pub total: AtomicU64,
    /// Those that were looked at.
    pub done: AtomicU64,
    /// Bytes that were read.
    pub read: AtomicU64,
    /// Bytes that were stored.
    pub stored: AtomicU64,
    /// Set to stop: making then fails soon.
    pub stop: Arc<AtomicBool>,
}

impl Store {
    /// Makes a snapshot. It exists once this returns, and is on stable storage then.
    ///
    /// # Errors
    /// Those of reading the disks and of writing to the store. What was stored by then is used by the next
    /// attempt.
    pub fn create(&self, mut new: NewSnapshot, progress: &Progress) -> Result<Snapshot> {
        self.may_write()?;
        if new.disks.is_empty() {
            return Err(Error::new(Kind::Usage, "a snapshot without a disk"));
        }
        check_name("series", &new.series)?;
        new.tags.iter().try_for_each(|tag| check_name("tag", tag))?;
        new.disks.iter().try_for_each(|disk| check_name("disk", &disk.name))?;
        let (lease, is_sound) = self.writing()?;
        // With the lease, what a record that is still there needs will stay.
        let is_there = |parent: &Snapshot| match self.snapshot(parent.id) {
            Err(error) if error.kind() == Kind::NotFound => Ok(false),
            found => found.map(|_| true),
        };
        if let Some(parent) = &new.parent
            && !is_there(parent)?
        {
            new.parent = None;
        }
        // What it says of the disk may be taken over.
        if let Some(parent) = &new.parent {
            self.trust(parent)?;
        }
        let total = new.disks.iter().map(|disk| disk.source.len()).sum();
        progress.total.store(total, Ordering::Relaxed);
        let mut disks = Vec::new();
        for disk in &new.disks {
            let parent = new.parent.as_ref().and_then(|parent| parent.disk(&disk.name));
            // Of this host's files nobody else knows.
            let is_ours = new.parent.as_ref().is_some_and(|parent| parent.record.host == new.host);
            let before = Before { disk: parent, hints: is_ours && is_sound, names: is_sound };
            let name = || disk.name.clone();
            disks.push(self.create_disk(disk, &before, progress).within(name)?);
        }
        let record = Record {
            series: new.series,
            time: new.time,
            tags: new.tags,
            parent: new.parent.map(|parent| parent.id),
            source: new.source,
            host: new.host,
            program: concat!("strata ", env!("CARGO_PKG_VERSION")).to_owned(),
            disks,
        };
        let id = self.put_record(&record, new.sign.as_deref(), &lease)?;
        drop(lease);
        if let Err(error) = self.merge_if_due() {
            // Somebody else will.
            log::debug!("indexes were not merged: {error}");
        }
        Ok(Snapshot { id, record })
    }

    /// Stores a record, and with that the snapshot is there; its id.
    fn put_record(&self, record: &Record, key: Option<&SigningKey>, lease: &Lease) -> Result<Id> {
        let json = serde_json::to_vec(record).map_err(|error| Error::caused_by(Kind::Io, error))?;
        let bytes = self.keys.seal(Sealed::Record, &json)?;
        let id = Id::of_object(&bytes);
        // Before it: it is never there without.
        if let Some(key) = key {
            self.put_signature(id, key)?;
        }
        lease.check()?;
        self.objects.put(Object::Snapshot(id), &[&bytes])?;
        Ok(id)
    }

    /// Gives a snapshot these tags. Its record is another one then, with another id, and takes the place of the one
    /// before. One that is signed has to be signed anew.
    ///
    /// # Errors
    /// [`Kind::Usage`] for what no tag may be, [`Kind::Refused`] if it is signed and no key is given, [`Kind::NotFound`] if it was
    /// removed, and the host's.
    pub fn tag(
        &self,
        snapshot: &Snapshot,
        tags: Vec<String>,
        key: Option<&SigningKey>,
    ) -> Result<Snapshot> {
        self.may_write()?;
        tags.iter().try_for_each(|tag| check_name("tag", tag))?;
        let (lease, _) = self.writing()?;
        let Snapshot { id: before, record } = self.snapshot(snapshot.id)?;
        let signatures = self.signatures(std::slice::from_ref(snapshot))?;
        let is_signed = signatures.values().any(|signatures| !signatures.is_empty());
        if is_signed && key.is_none() {
            let error = Error::new(Kind::Refused, format!("snapshot {before} is signed as it is"));
            return Err(error.within(self.name()).with_hint("--sign-key FILE signs it anew"));
        }
        let record = Record { tags, ..record };
        let id = self.put_record(&record, key, &lease)?;
        if id != before {
            self.remove(before)?;
        }
        Ok(Snapshot { id, record })
    }

    /// Begins to write: what others remove from now on is not relied on, and what is there now stays until the
    /// lease is given back. Whether nothing in the store is known to be damaged.
    ///
    /// # Errors
    /// The host's.
    pub(super) fn writing(&self) -> Result<(Lease, bool)> {
        // In this order.
        let lease = Lease::new(self, Work::Write)?;
        let condemned = self.condemned()?.packs;
        let is_sound = condemned.values().all(|sentence| sentence.why != Why::Damaged);
        *self.leaving.write() = condemned.into_keys().collect();
        self.load_indexes()?;
        Ok((lease, is_sound))
    }

    /// Fails if writing needs what this program does not know.
    pub(super) fn may_write(&self) -> Result<()> {
        match self.config.features.write.first() {
            Some(unknown) => Err(Error::from(Cause::Feature(unknown.clone())).within(self.name())),
            None => Ok(()),
        }
    }

    fn create_disk(
        &self,
        disk: &NewDisk,
        before: &Before<'_>,
        progress: &Progress,
    ) -> Result<DiskRecord> {
        let source = &*disk.source;
        let states = source::states(&disk.layers)?;
        let unchanged = before.unchanged(&states);
        if let Some(parent) = before.disk
            && unchanged.as_ref().is_some_and(|unchanged| unchanged.is_all)
            && parent.size == source.len()
        {
            progress.done.fetch_add(source.len(), Ordering::Relaxed);
            return Ok(DiskRecord { new_blocks: 0, new_bytes: 0, ..parent.clone() });
        }
        let shape = Shape::new(source.len(), self.block_size().into())?;
        let known = Known {
            parent: match before.disk {
                Some(disk) => Some((disk.root, Shape::new(disk.size, self.block_size().into())?)),
                None => None,
            },
            parent_size: before.disk.map_or(0, |disk| disk.size),
            unchanged,
            names: before.names,
        };
        let writer = Writer::new(self, progress)?;
        let leaves = shape.leaves();
        let ids: Vec<OnceLock<Id>> = (0..leaves).map(|_| OnceLock::new()).collect();
        let next = AtomicU64::new(0);
        let blocks = AtomicU64::new(0);
        let failed = Mutex::new(None);
        let work = || {
            let mut stretch = Stretch::new(self, source, &known, &writer);
            loop {
                let leaf = next.fetch_add(1, Ordering::Relaxed);
                let Some(slot) = usize::try_from(leaf).ok().and_then(|leaf| ids.get(leaf)) else {
                    return;
                };
                match stretch.page(leaf) {
                    Ok((id, count)) => {
                        blocks.fetch_add(count, Ordering::Relaxed);
                        // Each leaf is taken once.
                        let _ = slot.set(id);
                    }
                    Err(error) => {
                        // The first failure is the cause; the others stop.
                        failed.lock().get_or_insert(error);
                        next.store(leaves, Ordering::Relaxed);
                        return;
                    }
                }
            }
        };
        // While one sends a pack, another goes on.
        let senders = if self.objects.is_far() { SENDERS } else { 0 };
        let workers = thread::available_parallelism().map_or(1, NonZeroUsize::get) + senders;
        thread::scope(|scope| {
            for _ in 1..workers.min(MOST_WORKERS).min(leaves as usize) {
                scope.spawn(work);
            }
            work();
        });
        if let Some(error) = failed.into_inner() {
            return Err(writer.give_up(error));
        }
        let leaves = ids.into_iter().map(|id| id.into_inner().unwrap_or(Id::ZERO)).collect();
        let root = writer.tree(leaves, shape)?;
        let (new_blocks, new_bytes) = writer.finish()?;
        // What was written while it was read is not to be taken as what is stored.
        let is_still = source::states(&disk.layers)? == states;
        let made_of: Option<Vec<LayerState>> = states.into_iter().collect();
        Ok(DiskRecord {
            made_of: made_of.filter(|made_of| is_still && !made_of.is_empty()),
            name: disk.name.clone(),
            size: source.len(),
            root,
            blocks: blocks.into_inner(),
            new_blocks,
            new_bytes,
        })
    }
}

/// What a disk is compared with.
struct Before<'a> {
    disk: Option<&'a DiskRecord>,
    /// Whether the state of files counts.
    hints: bool,
    /// Whether the names of blocks do.
    names: bool,
}

impl Before<'_> {
    fn unchanged(&self, now: &[Option<LayerState>]) -> Option<Unchanged> {
        let before = self.disk.filter(|_| self.hints)?.made_of.as_deref()?;
        Unchanged::new(before, now)
    }
}

/// What is known of a disk before it is read.
struct Known {
    parent: Option<(Id, Shape)>,
    parent_size: u64,
    unchanged: Option<Unchanged>,
    names: bool,
}

/// Up to where a disk is known to be data, or a hole.
struct Run {
    end: u64,
    hole: bool,
}

/// One worker's way through a disk.
struct Stretch<'a> {
    store: &'a Store,
    source: &'a dyn BlockSource,
    known: &'a Known,
    writer: &'a Writer<'a>,
    buf: Vec<u8>,
}

impl<'a> Stretch<'a> {
    fn new(
        store: &'a Store,
        source: &'a dyn BlockSource,
        known: &'a Known,
        writer: &'a Writer<'a>,
    ) -> Self {
        Self { store, source, known, writer, buf: vec![0; store.block_size() as usize] }
    }

    /// Stores what one map page covers. Its id, and how many blocks are not zeros.
    fn page(&mut self, leaf: u64) -> Result<(Id, u64)> {
        let block_size = u64::from(self.store.block_size());
        let start = leaf * FANOUT * block_size;
        let end = start.saturating_add(FANOUT * block_size).min(self.source.len());
        let before = match self.known.parent {
            Some((root, shape)) => Some(self.store.map_page(self.store.leaf(root, shape, leaf)?)?),
            None => None,
        };
        let mut ids = Vec::with_capacity(FANOUT as usize);
        let mut extent = Run { end: start, hole: false };
        let mut at = start;
        while at < end {
            if self.writer.progress.stop.load(Ordering::Relaxed) {
                return Err(Error::new(Kind::Io, "stopped"));
            }
            let len = block_size.min(end - at);
            let old = before.as_ref().map(|page| page.get(ids.len() as u64));
            let id = if self.is_hole(at..at + len, &mut extent)? {
                Id::ZERO
            } else if let Some(known) = self.unread(at, len, old)? {
                known
            } else {
                self.block(at, len as usize, old)?
            };
            ids.push(id);
            at += len;
            self.writer.progress.done.fetch_add(len, Ordering::Relaxed);
        }
        let count = ids.iter().filter(|id| !id.is_zero()).count() as u64;
        Ok((self.writer.map_page(&ids)?, count))
    }

    /// Whether the source has nothing but holes in `range`. `run` is what is known from before, and what is known
    /// then: asking takes longer than one thinks.
    fn is_hole(&self, range: Range<u64>, run: &mut Run) -> Result<bool> {
        let mut at = range.start;
        while at < range.end {
            if run.end <= at {
                let Extent { len, hole } = self.source.extent_at(at)?;
                *run = Run { end: at.saturating_add(len), hole };
            }
            if !run.hole {
                return Ok(false);
            }
            at = run.end;
        }
        Ok(true)
    }

    /// The id of the block at `at`, if it is known without reading it.
    fn unread(&self, at: u64, len: u64, old: Option<Id>) -> Result<Option<Id>> {
        if let Some(old) = old
            && at + len <= self.known.parent_size
            && let Some(unchanged) = &self.known.unchanged
            && unchanged.covers(self.source, at, len)?
        {
            return Ok(Some(old));
        }
        if !self.known.names || len != u64::from(self.store.block_size()) {
            return Ok(None);
        }
        let Origin { len: run, home } = self.source.origin_at(at)?;
        let Home::Named { name, within: 0 } = home else { return Ok(None) };
        let id = Id(name);
        if run < len {
            return Ok(None);
        }
        // What the parent has stays.
        let is_stored = old == Some(id) || self.store.has(BlobKind::Block, &id)?;
        Ok(is_stored.then_some(id))
    }

    /// The id of the block at `at`, which is stored unless it is that of `old`.
    fn block(&mut self, at: u64, len: usize, old: Option<Id>) -> Result<Id> {
        let (bytes, rest) = self.buf.split_at_mut(len);
        self.source.read_at(at, bytes)?;
        rest.fill(0);
        self.writer.progress.read.fetch_add(len as u64, Ordering::Relaxed);
        if is_zero(&self.buf) {
            return Ok(Id::ZERO);
        }
        let id = self.store.keys.id(BlobKind::Block, &self.buf);
        if old != Some(id) {
            self.writer.add(BlobKind::Block, id, &self.buf)?;
        }
        Ok(id)
    }
}

/// What all workers write to.
pub(super) struct Writer<'a> {
    store: &'a Store,
    progress: &'a Progress,
    filling: Mutex<Filling>,
    /// What is written and in no index yet.
    new: Mutex<HashSet<(BlobKind, Id)>>,
    /// Packs that are stored, and what is in them.
    packs: Mutex<Packs>,
    /// Held by whoever merges indexes.
    merging: Mutex<()>,
    new_blocks: AtomicU64,
    new_bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct Packs {
    packs: Vec<Pack>,
    blobs: Vec<(u32, Blob)>,
}

thread_local! {
    static COMPRESSION: RefCell<(CCtx<'static>, Vec<u8>)> = RefCell::new((CCtx::create(), Vec::new()));
}

impl Store {
    /// A pack to be filled.
    pub(super) fn new_pack(&self) -> Result<Filling> {
        Ok(Filling::new(self.number, self.keys.new_pack()?))
    }
}

impl<'a> Writer<'a> {
    pub(super) fn new(store: &'a Store, progress: &'a Progress) -> Result<Self> {
        Ok(Self {
            store,
            progress,
            filling: Mutex::new(store.new_pack()?),
            new: Mutex::default(),
            packs: Mutex::default(),
            merging: Mutex::default(),
            new_blocks: AtomicU64::new(0),
            new_bytes: AtomicU64::new(0),
        })
    }

    /// Stores a blob unless the store has it, or will.
    pub(super) fn add(&self, kind: BlobKind, id: Id, plain: &[u8]) -> Result<()> {
        if self.store.has(kind, &id)? || !self.new.lock().insert((kind, id)) {
            return Ok(());
        }
        let full = COMPRESSION.with_borrow_mut(|(context, out)| -> Result<Option<Filling>> {
            out.resize(compress_bound(plain.len()), 0);
            let level = self.store.config.level;
            let len = context.compress(&mut out[..], plain, level).map_err(|code| {
                Error::new(Kind::Io, format!("zstd: {}", zstd::zstd_safe::get_error_name(code)))
            })?;
            // What saves little is not worth decoding.
            let (encoding, stored) = match out.get(..len) {
                Some(packed) if len + len / 16 < plain.len() => (Encoding::Zstd, packed),
                _ => (Encoding::Plain, plain),
            };
            self.new_blocks.fetch_add(u64::from(kind == BlobKind::Block), Ordering::Relaxed);
            self.new_bytes.fetch_add(stored.len() as u64, Ordering::Relaxed);
            self.progress.stored.fetch_add(stored.len() as u64, Ordering::Relaxed);
            let mut filling = self.filling.lock();
            filling.add(kind, id, encoding, plain.len() as u32, stored)?;
            Ok(match filling.is_full() {
                true => Some(std::mem::replace(&mut *filling, self.store.new_pack()?)),
                false => None,
            })
        })?;
        match full {
            Some(full) => self.put(full),
            None => Ok(()),
        }
    }

    /// Stores a map page; its id.
    pub(super) fn map_page(&self, ids: &[Id]) -> Result<Id> {
        let bytes = page_bytes(ids);
        if bytes.is_empty() {
            return Ok(Id::ZERO);
        }
        let id = self.store.keys.id(BlobKind::Page, &bytes);
        self.add(BlobKind::Page, id, &bytes)?;
        Ok(id)
    }

    /// The pages above those of level 0; the root.
    pub(super) fn tree(&self, mut ids: Vec<Id>, shape: Shape) -> Result<Id> {
        for _ in 0..shape.level {
            ids =
                ids.chunks(FANOUT as usize).map(|ids| self.map_page(ids)).collect::<Result<_>>()?;
        }
        debug_assert!(ids.len() <= 1 && span(shape.level) >= shape.blocks);
        Ok(ids.first().copied().unwrap_or(Id::ZERO))
    }

    /// Stores a pack, and an index once there is enough to tell of.
    fn put(&self, full: Filling) -> Result<()> {
        let (pack, bytes, blobs) = full.finish();
        self.store.objects.put_owned(Object::Pack(pack.id), bytes)?;
        self.told_of(pack, blobs, usize::MAX)
    }

    /// Has an index tell of a pack that is stored, once there are enough blobs or packs to tell of.
    pub(super) fn told_of(&self, pack: Pack, blobs: Vec<Blob>, most_packs: usize) -> Result<()> {
        let full = {
            let mut packs = self.packs.lock();
            let number = packs.packs.len() as u32;
            packs.packs.push(pack);
            packs.blobs.extend(blobs.into_iter().map(|blob| (number, blob)));
            let is_full = packs.blobs.len() >= INDEX_FULL || packs.packs.len() >= most_packs;
            is_full.then(|| std::mem::take(&mut *packs))
        };
        match full {
            Some(full) => self.put_index(full)?,
            None => return Ok(()),
        }
        // All of them are asked for what comes next. One is enough to see to it.
        if let Some(_merging) = self.merging.try_lock()
            && let Err(error) = self.store.merge_if_due()
        {
            log::debug!("indexes were not merged: {error}");
        }
        Ok(())
    }

    fn put_index(&self, Packs { packs, blobs }: Packs) -> Result<()> {
        let told: Vec<_> = blobs.iter().map(|(_, blob)| (blob.kind, blob.id)).collect();
        let bytes = index::make(&self.store.keys, &packs, blobs)?;
        let id = Id::of_object(&bytes);
        let store = self.store;
        store.objects.put(Object::Index(id), &[&bytes])?;
        let index = Arc::new(Index::open(&store.keys, &store.objects, &store.cache, id)?);
        store.indexes.write().push(index);
        let mut new = self.new.lock();
        for blob in &told {
            new.remove(blob);
        }
        Ok(())
    }

    /// Sees to it that the next attempt finds what was stored before `error`.
    pub(super) fn give_up(self, error: Error) -> Error {
        let packs = std::mem::take(&mut *self.packs.lock());
        if !packs.packs.is_empty()
            && let Err(second) = self.put_index(packs)
        {
            log::debug!("no index tells of what was stored: {second}");
        }
        match error.kind() {
            Kind::NoSpace => {
                error.with_hint("make room and run it again: what was stored already is used")
            }
            _ if self.progress.stop.load(Ordering::Relaxed) => {
                error.with_hint("run it again to go on: what was stored already is used")
            }
            _ => error,
        }
    }

    /// Stores what is left. Blocks and bytes that were new.
    pub(super) fn finish(self) -> Result<(u64, u64)> {
        let left = std::mem::replace(&mut *self.filling.lock(), self.store.new_pack()?);
        if !left.is_empty() {
            self.put(left)?;
        }
        let packs = std::mem::take(&mut *self.packs.lock());
        if !packs.packs.is_empty() {
            self.put_index(packs)?;
        }
        Ok((self.new_blocks.into_inner(), self.new_bytes.into_inner()))
    }
}
