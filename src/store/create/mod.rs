//! Making a snapshot: what may have changed is read, what the store lacks is written.
//!
//! Workers take the disk in stretches of one map page. The order of writing is the format's: packs, then the index,
//! then the record.

mod compression;
mod draft;
mod leaves;
mod stream;
mod stretch;
mod writer;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;

use super::cause::Cause;
use super::condemned::Why;
use super::id::Id;
use super::lease::{Lease, Root, Work};
use super::map::Shape;
use super::objects::Object;
use super::record::{DiskRecord, Record, Snapshot};
use super::sealed::Sealed;
use super::select::check_name;
use super::signatures::SigningKey;
use super::source::{self, LayerState, SourceLayer};
use super::{MOST_WORKERS, Store};
use crate::block::BlockSource;
use crate::error::{Error, Kind, Result, ResultExt};
use draft::{Begun, DraftDisk, Drafting};
use leaves::{Leaves, SoFar};
use stretch::{Before, Known, Stretch};

pub use stream::Stream;
pub(super) use writer::Writer;

/// Threads more where packs are long on their way.
const SENDERS: usize = 2;

/// One where they are not: while it waits for the disk, the others go on.
const WRITERS: usize = 1;

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
    /// How its disks are read.
    pub reading: Reading,
    /// Its disks.
    pub disks: Vec<NewDisk>,
}

/// How disks are read.
#[derive(Debug, Clone)]
pub struct Reading {
    /// Read all, even what nobody wrote since the parent was made.
    pub all: bool,
    /// Go on where an attempt was interrupted although nothing tells that the disk did not change since.
    pub resume: bool,
    /// How often it is set down how far this came.
    pub set_down: Duration,
}

impl Default for Reading {
    /// What may have changed is read, and once a minute it is set down how far this came.
    fn default() -> Self {
        Self { all: false, resume: false, set_down: Duration::from_secs(60) }
    }
}

/// A disk of a snapshot that is made.
#[derive(Debug)]
pub struct NewDisk {
    /// What it is called among the disks of the snapshot.
    pub name: String,
    /// Its bytes.
    pub source: DiskSource,
    /// The images it is read from, top first, if all of it lies in files; empty if that is not known.
    pub layers: Vec<SourceLayer>,
}

/// Where the bytes of a disk come from.
#[derive(Debug)]
pub enum DiskSource {
    /// What can be read anywhere, and does not change meanwhile.
    Image(Arc<dyn BlockSource>),
    /// What comes one byte behind the other.
    Stream(Stream),
}

impl NewDisk {
    /// Bytes of it, if they can be known.
    pub fn size(&self) -> Option<u64> {
        match &self.source {
            DiskSource::Image(source) => Some(source.len()),
            DiskSource::Stream(_) => None,
        }
    }
}

/// How far making a snapshot has come, for whoever watches.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of all disks whose length is known.
    pub total: AtomicU64,
    /// Those that were looked at.
    pub done: AtomicU64,
    /// Those among them that an earlier attempt had looked at.
    pub resumed: AtomicU64,
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
    pub fn create(&self, new: NewSnapshot, progress: &Progress) -> Result<Snapshot> {
        self.create_as(new, None, progress)
    }

    /// The same of a copy, with what it is a copy of.
    pub(super) fn create_as(
        &self,
        mut new: NewSnapshot,
        copy_of: Option<Id>,
        progress: &Progress,
    ) -> Result<Snapshot> {
        self.may_write()?;
        if new.disks.is_empty() {
            return Err(Error::new(Kind::Usage, "a snapshot without a disk"));
        }
        check_name("series", &new.series)?;
        new.tags.iter().try_for_each(|tag| check_name("tag", tag))?;
        new.disks.iter().try_for_each(|disk| check_name("disk", &disk.name))?;
        let mut begun = Begun::look(self, &new)?;
        let mut reads: Vec<Root> = new.parent.iter().flat_map(Root::of).collect();
        reads.extend(begun.roots());
        let (lease, is_sound) = self.writing(reads)?;
        // With the lease, what is still there keeps what it needs.
        begun.look_again(self)?;
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
        let total = new.disks.iter().filter_map(NewDisk::size).sum();
        progress.total.store(total, Ordering::Relaxed);
        if !is_sound {
            begun = Begun::default();
        }
        let drafting = Drafting::new(self, &lease, &new, begun);
        let mut disks = Vec::new();
        for disk in &new.disks {
            let parent = new.parent.as_ref().and_then(|parent| parent.disk(&disk.name));
            // Of this host's files nobody else knows.
            let is_ours = new.parent.as_ref().is_some_and(|parent| parent.record.host == new.host);
            let hints = is_ours && !new.reading.all;
            let before = Before { disk: parent, hints, names: !new.reading.all, is_sound };
            let made = match &disk.source {
                DiskSource::Image(source) => {
                    self.create_disk(disk, &**source, &before, &drafting, progress)
                }
                DiskSource::Stream(stream) => {
                    self.create_streamed(disk, stream, &new.reading, progress)
                }
            };
            disks.push(made.within(|| disk.name.clone())?);
        }
        let record = Record {
            series: new.series,
            time: new.time,
            tags: new.tags,
            parent: new.parent.map(|parent| parent.id),
            source: new.source,
            host: new.host,
            program: concat!("strata ", env!("CARGO_PKG_VERSION")).to_owned(),
            copy_of,
            disks,
        };
        let id = self.put_record(&record, new.sign.as_deref(), &lease)?;
        drafting.end();
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
        let (lease, _) = self.writing(Root::of(snapshot))?;
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
    /// lease is given back; and so does what `reads` need, if it is still there. Whether nothing in the store is known to
    /// be damaged.
    ///
    /// # Errors
    /// The host's.
    pub(super) fn writing(&self, reads: Vec<Root>) -> Result<(Lease, bool)> {
        // In this order.
        let lease = Lease::new(self, Work::Write, reads)?;
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
        source: &dyn BlockSource,
        before: &Before<'_>,
        drafting: &Drafting<'_>,
        progress: &Progress,
    ) -> Result<DiskRecord> {
        let states = source::states(&disk.layers)?;
        let unchanged = before.unchanged(&states);
        if let Some(parent) = before.disk
            && before.is_sound
            && unchanged.as_ref().is_some_and(|unchanged| unchanged.is_all)
            && parent.size == source.len()
        {
            progress.done.fetch_add(source.len(), Ordering::Relaxed);
            return Ok(DiskRecord { new_blocks: 0, new_bytes: 0, ..parent.clone() });
        }
        let made_of: Option<Vec<LayerState>> = states.iter().cloned().collect();
        let made_of = made_of.filter(|made_of| !made_of.is_empty());
        let shape = Shape::new(source.len(), self.block_size().into())?;
        let known = Known {
            parent: match before.disk {
                Some(disk) => Some((disk.root, Shape::new(disk.size, self.block_size().into())?)),
                None => None,
            },
            parent_size: before.disk.map_or(0, |disk| disk.size),
            unchanged,
            names: before.names,
            is_sound: before.is_sound,
        };
        let writer = Writer::new(self, progress)?;
        let begun = drafting.begun(disk, source.len(), made_of.as_ref());
        let leaves = Leaves::new(self, shape, begun.as_ref(), progress);
        // What is finished by now, and is there for good.
        let stored = || -> Result<DraftDisk> {
            let SoFar { ids, done, blocks } = leaves.so_far();
            let root = writer.tree(ids, shape)?;
            writer.flush()?;
            let (new_blocks, new_bytes) = writer.counted();
            let disk = DiskRecord {
                made_of: made_of.clone(),
                name: disk.name.clone(),
                size: source.len(),
                root,
                blocks,
                new_blocks: leaves.before().new_blocks + new_blocks,
                new_bytes: leaves.before().new_bytes + new_bytes,
            };
            Ok(DraftDisk { disk, done })
        };
        let set_down = || drafting.put(stored()?);
        let work = || {
            let mut stretch = Stretch::new(self, source, &known, &writer);
            while let Some(leaf) = leaves.next() {
                let done = stretch.page(leaf).and_then(|(id, blocks)| {
                    leaves.finish(leaf, id, blocks);
                    drafting.if_due(&set_down)
                });
                if let Err(error) = done {
                    leaves.fail(error);
                }
            }
        };
        let beside = if self.objects.is_far() { SENDERS } else { WRITERS };
        beside_each_other(beside, shape.leaves(), &work);
        if let Some(error) = leaves.failed() {
            if let Err(second) = set_down() {
                log::debug!("how far this came is not set down: {second}");
            }
            return Err(writer.give_up(error));
        }
        let made = stored()?;
        // What was written while it was read is not to be taken as what is stored.
        let is_still = source::states(&disk.layers)? == states;
        let made_of = made.disk.made_of.clone().filter(|_| is_still);
        drafting.finished(made.clone());
        Ok(DiskRecord { made_of, ..made.disk })
    }
}

/// Runs `work` on each processor, and `more` times besides, but not more often than there is something to do.
fn beside_each_other(more: usize, tasks: u64, work: &(impl Fn() + Sync)) {
    let workers = thread::available_parallelism().map_or(1, NonZeroUsize::get) + more;
    let workers = workers.min(MOST_WORKERS).min(usize::try_from(tasks).unwrap_or(MOST_WORKERS));
    thread::scope(|scope| {
        for _ in 1..workers {
            scope.spawn(work);
        }
        work();
    });
}
