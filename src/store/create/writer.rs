//! What workers write to: packs, and indexes that tell of them.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::Progress;
use super::compression::Compression;
use crate::error::{Error, Kind, Result};
use crate::store::Store;
use crate::store::id::{BlobKind, Id};
use crate::store::index::{self, Index};
use crate::store::map::{FANOUT, Shape, page_bytes, span};
use crate::store::objects::Object;
use crate::store::pack::{Blob, Encoding, Filling, Pack};

/// Blobs from which on an index is written before the snapshot is whole: what is in an index need not be
/// held in memory.
const INDEX_FULL: usize = 1 << 18;

/// What all workers write to.
pub(in crate::store) struct Writer<'a> {
    store: &'a Store,
    pub(super) progress: &'a Progress,
    filling: Mutex<Filling>,
    /// What is written and in no index yet.
    new: Mutex<HashSet<(BlobKind, Id)>>,
    /// Packs that are stored, and what is in them.
    packs: Mutex<Packs>,
    /// Held by whoever merges indexes.
    merging: Mutex<()>,
    /// Held by each who adds a blob until it is in a pack; and by who waits for them all.
    adding: RwLock<()>,
    /// Whether something is in `new` that never came to be stored.
    is_broken: AtomicBool,
    new_blocks: AtomicU64,
    new_bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct Packs {
    packs: Vec<Pack>,
    blobs: Vec<(u32, Blob)>,
}

thread_local! {
    static COMPRESSION: RefCell<Compression> = RefCell::new(Compression::new());
}

impl Store {
    /// A pack to be filled.
    pub(in crate::store) fn new_pack(&self) -> Result<Filling> {
        Ok(Filling::new(self.number, self.keys.new_pack()?))
    }
}

impl<'a> Writer<'a> {
    pub(in crate::store) fn new(store: &'a Store, progress: &'a Progress) -> Result<Self> {
        Ok(Self {
            store,
            progress,
            filling: Mutex::new(store.new_pack()?),
            new: Mutex::default(),
            packs: Mutex::default(),
            merging: Mutex::default(),
            adding: RwLock::default(),
            is_broken: AtomicBool::new(false),
            new_blocks: AtomicU64::new(0),
            new_bytes: AtomicU64::new(0),
        })
    }

    /// Stores a blob unless the store has it, or will.
    pub(in crate::store) fn add(&self, kind: BlobKind, id: Id, plain: &[u8]) -> Result<()> {
        let _adding = self.adding.read();
        if self.store.has(kind, &id)? || !self.new.lock().insert((kind, id)) {
            return Ok(());
        }
        let added = self.pack(kind, id, plain).and_then(|full| match full {
            Some(full) => self.put(full),
            None => Ok(()),
        });
        if added.is_err() {
            self.is_broken.store(true, Ordering::Relaxed);
        }
        added
    }

    /// Adds it to the pack that is filled, and begins another one if that is full.
    fn pack(&self, kind: BlobKind, id: Id, plain: &[u8]) -> Result<Option<Filling>> {
        COMPRESSION.with_borrow_mut(|compression| {
            let packed = compression.compress(plain, self.store.config.level)?;
            // What saves little is not worth decoding.
            let (encoding, stored) = match packed.len() + packed.len() / 16 < plain.len() {
                true => (Encoding::Zstd, packed),
                false => (Encoding::Plain, plain),
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
        })
    }

    /// Stores a map page; its id.
    pub(in crate::store) fn map_page(&self, ids: &[Id]) -> Result<Id> {
        let bytes = page_bytes(ids);
        if bytes.is_empty() {
            return Ok(Id::ZERO);
        }
        let id = self.store.keys.id(BlobKind::Page, &bytes);
        self.add(BlobKind::Page, id, &bytes)?;
        Ok(id)
    }

    /// The pages above those of level 0; the root.
    pub(in crate::store) fn tree(&self, mut ids: Vec<Id>, shape: Shape) -> Result<Id> {
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
    pub(in crate::store) fn told_of(
        &self,
        pack: Pack,
        blobs: Vec<Blob>,
        most_packs: usize,
    ) -> Result<()> {
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
        match Index::open(&store.keys, &store.objects, &store.cache, id) {
            Ok(index) => store.indexes.write().push(Arc::new(index)),
            // Somebody merged it just now.
            Err(error) if error.kind() == Kind::NotFound => store.load_indexes()?,
            Err(error) => return Err(error),
        }
        let mut new = self.new.lock();
        for blob in &told {
            new.remove(blob);
        }
        Ok(())
    }

    /// Stores all that was added, and has an index tell of it.
    ///
    /// # Errors
    /// The host's; and an earlier one of adding, since then it is not all there.
    pub(super) fn flush(&self) -> Result<()> {
        let _all = self.adding.write();
        if self.is_broken.load(Ordering::Relaxed) {
            return Err(Error::new(Kind::Io, "something was not stored before"));
        }
        self.flush_alone().inspect_err(|_| self.is_broken.store(true, Ordering::Relaxed))
    }

    fn flush_alone(&self) -> Result<()> {
        let left = std::mem::replace(&mut *self.filling.lock(), self.store.new_pack()?);
        if !left.is_empty() {
            self.put(left)?;
        }
        let packs = std::mem::take(&mut *self.packs.lock());
        if packs.packs.is_empty() { Ok(()) } else { self.put_index(packs) }
    }

    /// Sees to it that the next attempt finds what was stored before `error`.
    pub(in crate::store) fn give_up(&self, error: Error) -> Error {
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

    /// Blocks and bytes that were new so far.
    pub(super) fn counted(&self) -> (u64, u64) {
        (self.new_blocks.load(Ordering::Relaxed), self.new_bytes.load(Ordering::Relaxed))
    }

    /// Stores what is left. Blocks and bytes that were new.
    pub(in crate::store) fn finish(self) -> Result<(u64, u64)> {
        self.flush()?;
        Ok(self.counted())
    }
}
