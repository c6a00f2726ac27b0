//! Disks and packs of no bytes: what is in a block is told by its name alone.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;

use crate::block::{BlockSource, Extent, Home, Origin};
use crate::error::{Error, Kind, Result};
use crate::store::id::Id;
use crate::store::objects::{Folder, Listed, Object, Objects, Sort};

/// Bytes of a block.
pub(super) const BLOCK: u64 = 128 << 10;
/// Blocks that change together.
pub(super) const STRETCH: u64 = 1024;

/// Three numbers made into one that looks random.
pub(super) fn mix(a: u64, b: u64, c: u64) -> u64 {
    let mut x = a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b.rotate_left(24) ^ c.rotate_left(48);
    for _ in 0..2 {
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
    }
    x
}

/// The name of a block of a disk, since it changed last in this version.
pub(super) fn id(disk: u64, version: u16, block: u64) -> Id {
    let seed = mix(disk, version.into(), block);
    let mut id = [0; 32];
    for (number, part) in (0..).zip(id.chunks_exact_mut(8)) {
        part.copy_from_slice(&mix(seed, number, 0).to_le_bytes());
    }
    Id(id)
}

/// A disk at some moment: of each stretch, in which version it changed last.
#[derive(Debug, Clone)]
pub(super) struct Disk {
    pub(super) number: u64,
    pub(super) blocks: u64,
    pub(super) versions: Vec<u16>,
}

impl Disk {
    pub(super) fn id(&self, block: u64) -> Id {
        id(self.number, self.versions[(block / STRETCH) as usize], block)
    }

    /// The blocks that changed last in `version`, in order.
    pub(super) fn changed(&self, version: u16) -> impl Iterator<Item = u64> {
        let stretches = (0..).zip(&self.versions).filter(move |(_, found)| **found == version);
        stretches
            .flat_map(|(stretch, _)| stretch * STRETCH..((stretch + 1) * STRETCH).min(self.blocks))
    }
}

impl BlockSource for Disk {
    fn len(&self) -> u64 {
        self.blocks * BLOCK
    }

    fn read_at(&self, offset: u64, _: &mut [u8]) -> Result<()> {
        Err(Error::new(Kind::Io, format!("nothing is to be read, and {offset:#x} was")))
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        Ok(Extent { len: self.len() - offset, hole: false })
    }

    fn origin_at(&self, offset: u64) -> Result<Origin> {
        let (block, within) = (offset / BLOCK, offset % BLOCK);
        let name = self.id(block).0;
        Ok(Origin { len: BLOCK - within, home: Home::Named { name, within: within as u32 } })
    }

    fn whole_file(&self) -> Option<&std::fs::File> {
        None
    }
}

/// Requests of a kind, and bytes.
#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64, AtomicU64);

impl Count {
    fn add(&self, bytes: u64) {
        self.0.fetch_add(1, Ordering::Relaxed);
        self.1.fetch_add(bytes, Ordering::Relaxed);
    }

    fn take(&self) -> (u64, u64) {
        (self.0.swap(0, Ordering::Relaxed), self.1.swap(0, Ordering::Relaxed))
    }
}

/// A folder beside packs that are only known by name.
#[derive(Debug)]
pub(super) struct Hollow {
    inner: Folder,
    packs: Mutex<HashMap<Id, u64>>,
    index_reads: Count,
    other_reads: Count,
    puts: Count,
    lists: Count,
}

impl Hollow {
    pub(super) fn new(inner: Folder) -> Arc<Self> {
        Arc::new(Self {
            inner,
            packs: Mutex::default(),
            index_reads: Count::default(),
            other_reads: Count::default(),
            puts: Count::default(),
            lists: Count::default(),
        })
    }

    pub(super) fn add(&self, pack: Id, len: u64) {
        self.packs.lock().insert(pack, len);
    }

    /// The packs that are only known by name.
    pub(super) fn packs(&self) -> Vec<Id> {
        self.packs.lock().keys().copied().collect()
    }

    /// What was asked since this was called last: reads of indexes, other reads, puts and lists, each with bytes.
    pub(super) fn take(&self) -> [(u64, u64); 4] {
        [&self.index_reads, &self.other_reads, &self.puts, &self.lists].map(Count::take)
    }
}

impl Objects for Hollow {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn len(&self, object: Object) -> Result<u64> {
        self.inner.len(object)
    }

    fn read_at(&self, object: Object, offset: u64, buf: &mut [u8]) -> Result<()> {
        let is_index = matches!(object, Object::Index(_) | Object::Part(_));
        let count = if is_index { &self.index_reads } else { &self.other_reads };
        count.add(buf.len() as u64);
        self.inner.read_at(object, offset, buf)
    }

    fn put(&self, object: Object, parts: &[&[u8]]) -> Result<()> {
        self.puts.add(parts.iter().map(|part| part.len() as u64).sum());
        self.inner.put(object, parts)
    }

    fn list(&self, sort: Sort) -> Result<Vec<Listed>> {
        let mut listed = self.inner.list(sort)?;
        if sort == Sort::Packs {
            let written = SystemTime::UNIX_EPOCH;
            let packs = self.packs.lock();
            listed.extend(packs.iter().map(|(&id, &len)| Listed { id, len, written }));
        }
        // A server lists a thousand at once.
        (0..=listed.len() / 1000).for_each(|_| self.lists.add(0));
        Ok(listed)
    }

    fn remove(&self, object: Object) -> Result<()> {
        match object {
            Object::Pack(id) if self.packs.lock().remove(&id).is_some() => Ok(()),
            _ => self.inner.remove(object),
        }
    }

    fn clear_unfinished(&self, then: SystemTime) -> Result<u64> {
        self.inner.clear_unfinished(then)
    }
}
