//! Drafts: how far making a snapshot has come, so that what was read need not be read again
//! (`docs/store-format.md`, "Drafts").

use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{NewDisk, NewSnapshot, Reading};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::store::cause::Cause;
use crate::store::id::Id;
use crate::store::lease::{Lease, Root};
use crate::store::objects::{Object, Sort};
use crate::store::record::DiskRecord;
use crate::store::sealed::Sealed;
use crate::store::source::LayerState;
use crate::store::{Store, whole};

/// How long a draft keeps what it needs if nobody goes on with it.
const LIFE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A snapshot that is being made, or was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::store) struct Draft {
    series: String,
    source: String,
    host: String,
    program: String,
    disks: Vec<DraftDisk>,
}

/// A disk of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DraftDisk {
    /// As if all that is not finished were zeros.
    pub(super) disk: DiskRecord,
    /// The pages of level 0 that are finished: the first of each run, and the one behind its last, in order.
    pub(super) done: Vec<(u64, u64)>,
}

impl Draft {
    fn roots(&self) -> impl Iterator<Item = Root> {
        self.disks.iter().map(|DraftDisk { disk, .. }| Root { root: disk.root, size: disk.size })
    }
}

impl Store {
    fn draft(&self, id: Id) -> Result<Draft> {
        let object = Object::Draft(id);
        let read = || -> Result<Draft> {
            let bytes = whole(&*self.objects, object)?;
            let json = self.keys.unseal(Sealed::Draft, &bytes)?;
            Ok(serde_json::from_slice(&json).map_err(|error| Cause::Json(error.to_string()))?)
        };
        read().within(|| format!("{}: {object}", self.name()))
    }

    /// The drafts that are there, the newest first. One that is damaged is of no use, and counts as none.
    fn drafts(&self) -> Result<Vec<(Id, Draft)>> {
        let mut listed = self.objects.list(Sort::Drafts)?;
        listed.sort_unstable_by_key(|listed| std::cmp::Reverse((listed.written, listed.id)));
        let mut drafts = Vec::with_capacity(listed.len());
        for listed in listed {
            match self.draft(listed.id) {
                Ok(draft) => drafts.push((listed.id, draft)),
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) if error.kind() == Kind::Corrupt => log::info!("not used: {error}"),
                Err(error) => return Err(error),
            }
        }
        Ok(drafts)
    }

    /// What drafts need.
    ///
    /// # Errors
    /// The host's.
    pub(in crate::store) fn draft_roots(&self) -> Result<Vec<Root>> {
        Ok(self.drafts()?.iter().flat_map(|(_, draft)| draft.roots()).collect())
    }

    /// Removes the drafts that nobody went on with for long, at the time `now` of whoever keeps them.
    ///
    /// # Errors
    /// The host's.
    pub(in crate::store) fn remove_old_drafts(&self, now: SystemTime) -> Result<()> {
        for listed in self.objects.list(Sort::Drafts)? {
            if now.duration_since(listed.written).is_ok_and(|age| age > LIFE) {
                self.objects.remove(Object::Draft(listed.id))?;
            }
        }
        Ok(())
    }
}

/// What is known of earlier attempts at a snapshot.
#[derive(Debug, Default)]
pub(super) struct Begun(Vec<(Id, Draft)>);

impl Begun {
    /// Looks for attempts at `new`.
    pub(super) fn look(store: &Store, new: &NewSnapshot) -> Result<Self> {
        let mut drafts = store.drafts()?;
        drafts.retain(|(_, draft)| draft.series == new.series && draft.host == new.host);
        Ok(Self(drafts))
    }

    /// What they need.
    pub(super) fn roots(&self) -> impl Iterator<Item = Root> {
        self.0.iter().flat_map(|(_, draft)| draft.roots())
    }

    /// Forgets those that somebody has removed since.
    pub(super) fn look_again(&mut self, store: &Store) -> Result<()> {
        if !self.0.is_empty() {
            let listed = store.objects.list(Sort::Drafts)?;
            self.0.retain(|(id, _)| listed.iter().any(|listed| listed.id == *id));
        }
        Ok(())
    }
}

/// Sets down how far a snapshot has come.
#[derive(Debug)]
pub(super) struct Drafting<'a> {
    store: &'a Store,
    lease: &'a Lease,
    begun: Begun,
    reading: Reading,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// With the disks that are finished.
    draft: Draft,
    /// What is set down.
    object: Option<Id>,
    at: Instant,
}

impl<'a> Drafting<'a> {
    pub(super) fn new(store: &'a Store, lease: &'a Lease, new: &NewSnapshot, begun: Begun) -> Self {
        let draft = Draft {
            series: new.series.clone(),
            source: new.source.clone(),
            host: new.host.clone(),
            program: concat!("strata ", env!("CARGO_PKG_VERSION")).to_owned(),
            disks: Vec::new(),
        };
        let state = Mutex::new(State { draft, object: None, at: Instant::now() });
        Self { store, lease, begun, reading: new.reading.clone(), state }
    }

    /// How far an earlier attempt came with a disk of `len` bytes that did not change since: nobody wrote the files it
    /// is made of, or whoever began this says so.
    pub(super) fn begun(
        &self,
        disk: &NewDisk,
        len: u64,
        made_of: Option<&Vec<LayerState>>,
    ) -> Option<DraftDisk> {
        if self.reading.all {
            return None;
        }
        let source = self.state.lock().draft.source.clone();
        self.begun.0.iter().find_map(|(_, draft)| {
            let is_told = self.reading.resume && draft.source == source;
            let is_it = |begun: &&DraftDisk| {
                let is_same = made_of.is_some() && begun.disk.made_of.as_ref() == made_of;
                begun.disk.name == disk.name && begun.disk.size == len && (is_same || is_told)
            };
            draft.disks.iter().find(is_it).cloned()
        })
    }

    /// Calls `set_down` if that was not done for long.
    pub(super) fn if_due(&self, set_down: &dyn Fn() -> Result<()>) -> Result<()> {
        {
            let mut state = self.state.lock();
            if state.at.elapsed() < self.reading.set_down {
                return Ok(());
            }
            // The others go on.
            state.at = Instant::now();
        }
        set_down()
    }

    /// Sets down how far a disk has come; all that it needs is stored, and in an index.
    pub(super) fn put(&self, disk: DraftDisk) -> Result<()> {
        let mut state = self.state.lock();
        let mut draft = state.draft.clone();
        draft.disks.push(disk);
        let json = serde_json::to_vec(&draft).map_err(|error| Error::caused_by(Kind::Io, error))?;
        let bytes = self.store.keys.seal(Sealed::Draft, &json)?;
        let id = Id::of_object(&bytes);
        self.lease.check()?;
        self.store.objects.put(Object::Draft(id), &[&bytes])?;
        match state.object.replace(id).filter(|&before| before != id) {
            Some(before) => self.store.objects.remove(Object::Draft(before)),
            None => Ok(()),
        }
    }

    /// A disk is finished, and the next one begins.
    pub(super) fn finished(&self, disk: DraftDisk) {
        self.state.lock().draft.disks.push(disk);
    }

    /// The snapshot is there: nobody needs to go on with it.
    pub(super) fn end(self) {
        let object = self.state.into_inner().object;
        for id in self.begun.0.iter().map(|(id, _)| *id).chain(object) {
            if let Err(error) = self.store.objects.remove(Object::Draft(id)) {
                // It grows old.
                log::debug!("a draft is left: {error}");
            }
        }
    }
}
