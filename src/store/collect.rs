//! Collecting: packs that no snapshot needs are removed, and those that are needed in part written anew.
//!
//! What is needed is found from the records alone. A pack that is not needed is condemned first, and removed once
//! nobody can rely on it any more: no writer is left that began before, the grace is over for readers that hold no
//! lease, and records that were there after those writers ended need nothing of it. At whatever point this is
//! interrupted, nothing is lost that a snapshot needs, and the next collection goes on.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use serde::Serialize;

use super::Store;
use super::cause::Cause;
use super::check::is_damage;
use super::condemned::{Condemned, Sentence, Why};
use super::id::{BlobKind, Id};
use super::index::{self, Index, Location};
use super::lease::{Lease, MOMENT, Root, Seen, Work};
use super::marks::{Marks, Needed};
use super::merge::{Merged, chosen};
use super::objects::{Object, Sort};
use super::pack::{self, Filling, Pack};
use super::record::Record;
use super::sorted::{Iter, Sorted};
use crate::error::{Error, Kind, Result};

/// Packs smaller than this are small,
const SMALL: u64 = pack::FULL as u64 / 4;
/// and so many of them are made into larger ones.
const MANY_SMALL: usize = 16;
/// Blobs that are moved before what held them is condemned: as many as are held in memory.
pub(super) const ROUND: u64 = 1 << 19;

/// How to collect.
#[derive(Debug, Clone)]
pub struct Collect {
    /// How long what nothing needs stays for those who read snapshots that were removed.
    pub grace: Duration,
    /// How much of the packs, in per cent of what is needed, may be of no use before they are written anew.
    pub unused: u64,
    /// Only tell what would be done.
    pub dry_run: bool,
}

/// What collecting did, or would do.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Collected {
    /// Snapshots that were heeded.
    pub snapshots: u64,
    /// Bytes in packs that they need.
    pub needed_bytes: u64,
    /// Packs that were removed.
    pub removed_packs: u64,
    /// Their bytes.
    pub removed_bytes: u64,
    /// Packs whose blobs were needed in part, and lie elsewhere now, too.
    pub rewritten_packs: u64,
    /// Packs that are condemned and still there.
    pub waiting_packs: u64,
    /// Their bytes.
    pub waiting_bytes: u64,
    /// From when on they can be removed, if nobody is at work any more.
    pub waiting_until: Option<Timestamp>,
    /// Who is at work, and may rely on them.
    pub waiting_for: Vec<String>,
}

/// How a pack is used.
#[derive(Debug, Clone, Copy, Default)]
struct Use {
    len: u64,
    /// Bytes that are needed.
    needed: u64,
    /// Blobs that are.
    blobs: u64,
    is_indexed: bool,
    is_there: bool,
}

/// A store, as one that collects finds it.
#[derive(Debug)]
struct Survey {
    records: HashSet<Id>,
    roots: BTreeSet<Root>,
    needed: Needed,
    packs: HashMap<Id, Use>,
    condemned: Condemned,
    /// What was condemned when `packs` was counted: a blob counts where it did then.
    counted_with: Condemned,
    indexes: Vec<Arc<Index>>,
}

/// Who was at work at some moment.
#[derive(Debug)]
struct Others {
    writers: Vec<Seen>,
    readers: BTreeSet<Root>,
    now: SystemTime,
}

impl Others {
    /// Whether a pack can go that was condemned then: those who may rely on it otherwise.
    fn heed(&self, since: SystemTime) -> impl Iterator<Item = &Seen> {
        self.writers.iter().filter(move |writer| writer.since <= since + MOMENT)
    }
}

impl Store {
    /// Removes what no snapshot needs.
    ///
    /// # Errors
    /// [`Kind::Refused`] if another one collects, [`Kind::Corrupt`] if something is lost that a snapshot needs: nothing
    /// is removed then; and the host's.
    pub fn collect(&self, how: &Collect, step: &(dyn Fn() + Sync)) -> Result<Collected> {
        if let Some(unknown) = self.config.features.remove.first() {
            return Err(Error::from(Cause::Feature(unknown.clone())).within(self.name()));
        }
        let lease = self.collecting()?;
        let others = self.others(&lease)?;
        if others.writers.is_empty() && !how.dry_run {
            self.remove_old_drafts(others.now)?;
        }
        let mut survey = self.survey(&lease, step)?;
        let mut done = Collected {
            snapshots: survey.records.len() as u64,
            needed_bytes: survey.packs.values().map(|used| used.needed).sum(),
            ..Collected::default()
        };
        if how.dry_run {
            done.rewritten_packs = survey.sparse(how.unused).len() as u64;
            let unused = survey.unused(&others);
            self.tell_waiting(&survey, unused.keys().copied(), &others, how, &mut done);
            return Ok(done);
        }
        self.objects
            .clear_unfinished(oldest(&others).unwrap_or(others.now).min(others.now - MOMENT))?;
        // What has waited for long enough, and nothing came to need.
        let ripe = survey.ripe(&others, how.grace);
        self.remove_packs(&lease, &mut survey, &ripe, &mut done, step)?;
        let unused = survey.unused(&others);
        self.condemn_more(&mut survey, unused)?;
        self.remove_ripe(&lease, &mut survey, how, &mut done, step)?;
        let mut sparse = survey.sparse(how.unused);
        while !sparse.is_empty() {
            lease.check()?;
            let moved = self.rewrite(&survey, &mut sparse, step)?;
            done.rewritten_packs += moved.len() as u64;
            for id in moved.keys() {
                survey.packs.entry(*id).and_modify(|used| (used.needed, used.blobs) = (0, 0));
            }
            self.condemn_more(&mut survey, moved)?;
        }
        self.remove_ripe(&lease, &mut survey, how, &mut done, step)?;
        self.remove_signatures(&survey, &others, how.grace)?;
        self.merge_indexes(&lease)?;
        self.remove_lost_parts()?;
        let others = self.others(&lease)?;
        let waiting: Vec<Id> = survey.condemned.packs.keys().copied().collect();
        self.tell_waiting(&survey, waiting.into_iter(), &others, how, &mut done);
        Ok(done)
    }

    fn others(&self, lease: &Lease) -> Result<Others> {
        let (seen, now) = self.leases(lease)?;
        let readers = seen.iter().flat_map(|seen| seen.reads.iter().copied()).collect();
        let writers = seen.into_iter().filter(|seen| seen.work == Work::Write).collect();
        Ok(Others { writers, readers, now })
    }

    /// Finds out what is needed, and where it lies.
    fn survey(&self, lease: &Lease, step: &(dyn Fn() + Sync)) -> Result<Survey> {
        let condemned = self.condemned()?;
        let mut records = HashSet::new();
        let mut roots = BTreeSet::new();
        let mut disks: BTreeMap<(String, String), Vec<Root>> = BTreeMap::new();
        for snapshot in self.snapshots()? {
            roots.extend(Root::of(&snapshot));
            records.insert(snapshot.id);
            let Record { series, disks: told, .. } = snapshot.record;
            for disk in told {
                let root = Root { root: disk.root, size: disk.size };
                disks.entry((series.clone(), disk.name)).or_default().push(root);
            }
        }
        roots.extend(self.draft_roots()?);
        // After the records: whoever reads has a lease before it looks whether the record is still there.
        roots.extend(self.others(lease)?.readers);
        self.load_indexes()?;
        let indexes = self.indexes.read().clone();
        // What no record tells of is compared with nothing.
        let alone = roots.iter().map(|&root| vec![root]);
        let needed = Marks::new(self, step).all(disks.into_values().chain(alone))?;
        let mut packs = HashMap::<Id, Use>::new();
        for listed in self.objects.list(Sort::Packs)? {
            packs.insert(listed.id, Use { len: listed.len, is_there: true, ..Use::default() });
        }
        for pack in indexes.iter().flat_map(|index| index.packs()) {
            let used = packs.entry(pack.id).or_default();
            (used.is_indexed, used.len) = (true, pack.len);
        }
        let counted_with = condemned.clone();
        let mut survey = Survey { records, roots, needed, packs, condemned, counted_with, indexes };
        let mut packs = std::mem::take(&mut survey.packs);
        survey.each_needed(&mut |place| {
            let used = packs.entry(place.pack).or_default();
            used.needed += pack::room(&place.blob);
            used.blobs += 1;
            // What is known to be lost keeps nobody from collecting the rest.
            if !used.is_there && survey.condemned.why(&place.pack) != Some(Why::Damaged) {
                let error = Error::new(Kind::Corrupt, "is not there, and is needed");
                let error = error.within(Object::Pack(place.pack).to_string()).within(self.name());
                let hint = format!("strata store check {} tells by what", self.name());
                return Err(error.with_hint(hint));
            }
            Ok(())
        })?;
        survey.packs = packs;
        Ok(survey)
    }

    /// Condemns `packs`, too.
    fn condemn_more(&self, survey: &mut Survey, packs: HashMap<Id, Why>) -> Result<()> {
        if packs.is_empty() {
            return Ok(());
        }
        let before = std::mem::take(&mut survey.condemned);
        let mut all = before.packs.clone();
        for (id, why) in packs {
            all.entry(id).or_insert(Sentence { since: None, why });
        }
        survey.condemned = self.condemn(before, all)?;
        Ok(())
    }

    /// Removes what is condemned and waits for nothing, if the survey still tells what is needed.
    fn remove_ripe(
        &self,
        lease: &Lease,
        survey: &mut Survey,
        how: &Collect,
        done: &mut Collected,
        step: &(dyn Fn() + Sync),
    ) -> Result<()> {
        // In this order: what a writer made that is gone by now is among the records.
        let others = self.others(lease)?;
        let records = self.objects.list(Sort::Snapshots)?;
        let readers = self.others(lease)?.readers;
        let is_new = |id: &Id| !survey.records.contains(id);
        let roots: BTreeSet<Root> = self.draft_roots()?.into_iter().chain(readers).collect();
        if records.iter().any(|record| is_new(&record.id)) || !roots.is_subset(&survey.roots) {
            return Ok(());
        }
        let ripe = survey.ripe(&others, how.grace);
        self.remove_packs(lease, survey, &ripe, done, step)
    }

    /// Removes packs that nothing needs and nobody relies on: from the indexes first.
    fn remove_packs(
        &self,
        lease: &Lease,
        survey: &mut Survey,
        packs: &HashSet<Id>,
        done: &mut Collected,
        step: &(dyn Fn() + Sync),
    ) -> Result<()> {
        let mut rescued = survey.condemned.packs.clone();
        rescued.retain(|id, sentence| {
            // Somebody who began before it was condemned came to need it.
            let is_needed = survey.packs.get(id).is_some_and(|used| used.needed > 0);
            !(packs.contains(id) || is_needed && sentence.why == Why::Unused)
        });
        if packs.is_empty() && rescued.len() == survey.condemned.packs.len() {
            return Ok(());
        }
        lease.check()?;
        self.drop_packs(lease, packs, &survey.condemned)?;
        survey.indexes = self.indexes.read().clone();
        for id in packs {
            lease.check()?;
            self.objects.remove(Object::Pack(*id))?;
            if let Some(used) = survey.packs.remove(id).filter(|used| used.is_there) {
                done.removed_packs += 1;
                done.removed_bytes += used.len;
            }
            step();
        }
        let before = std::mem::take(&mut survey.condemned);
        survey.condemned = self.condemn(before, rescued)?;
        Ok(())
    }

    /// Writes what is needed of some of `sparse` into new packs, and takes those out of it. They can be condemned then.
    fn rewrite(
        &self,
        survey: &Survey,
        sparse: &mut Vec<Id>,
        step: &(dyn Fn() + Sync),
    ) -> Result<HashMap<Id, Why>> {
        let mut round = HashSet::new();
        let mut blobs = 0;
        while let Some(id) = sparse.last() {
            blobs += survey.packs.get(id).map_or(0, |used| used.blobs);
            if blobs > ROUND && !round.is_empty() {
                break;
            }
            round.extend(sparse.pop());
        }
        let mut places: Vec<Location> = Vec::new();
        survey.each_needed(&mut |place| {
            if round.contains(&place.pack) {
                places.push(*place);
            }
            Ok(())
        })?;
        // As they lie, so that what was read together is again.
        places.sort_unstable_by_key(|place| (place.pack, place.blob.at));
        let mut moved: HashMap<Id, Why> = round.iter().map(|&id| (id, Why::Unused)).collect();
        let (mut packs, mut told) = (Vec::new(), Vec::new());
        let mut filling = self.new_pack()?;
        let (mut stored, mut plain) = (Vec::new(), Vec::new());
        for place in &places {
            match self.stored_bytes(place, &mut stored, &mut plain) {
                Ok(()) => {}
                // What can be read of a damaged pack is moved; the rest is needed, and stays where it is.
                Err(error) if is_damage(&error) && survey.is_damaged(&place.pack) => {
                    moved.remove(&place.pack);
                    continue;
                }
                Err(error) => return Err(error.within(self.name())),
            }
            filling.add(
                place.blob.kind,
                place.blob.id,
                place.blob.encoding,
                place.blob.plain,
                &stored,
            )?;
            if filling.is_full() {
                let full = std::mem::replace(&mut filling, self.new_pack()?);
                self.put_pack(full, &mut packs, &mut told)?;
            }
            step();
        }
        if !filling.is_empty() {
            self.put_pack(filling, &mut packs, &mut told)?;
        }
        if !told.is_empty() {
            let bytes = index::make(&self.keys, &packs, told)?;
            self.objects.put(Object::Index(Id::of_object(&bytes)), &[&bytes])?;
        }
        self.load_indexes()?;
        Ok(moved)
    }

    pub(super) fn put_pack(
        &self,
        full: Filling,
        packs: &mut Vec<Pack>,
        told: &mut Vec<(u32, pack::Blob)>,
    ) -> Result<()> {
        let (pack, bytes, blobs) = full.finish();
        self.objects.put(Object::Pack(pack.id), &[&bytes])?;
        let number = packs.len() as u32;
        packs.push(pack);
        told.extend(blobs.into_iter().map(|blob| (number, blob)));
        Ok(())
    }

    /// Removes signatures of snapshots that are gone. One is written before its record: by somebody who is at work.
    fn remove_signatures(&self, survey: &Survey, others: &Others, grace: Duration) -> Result<()> {
        for listed in self.signatures_without(&survey.records)? {
            let is_old = listed.written + grace.max(MOMENT) <= others.now;
            if is_old && others.heed(listed.written).next().is_none() {
                self.objects.remove(Object::Signature(listed.id))?;
            }
        }
        Ok(())
    }

    fn tell_waiting(
        &self,
        survey: &Survey,
        waiting: impl Iterator<Item = Id>,
        others: &Others,
        how: &Collect,
        done: &mut Collected,
    ) {
        let mut last = None;
        let mut heeded = BTreeSet::new();
        for id in waiting {
            let used = survey.packs.get(&id).copied().unwrap_or_default();
            done.waiting_packs += 1;
            done.waiting_bytes += used.len;
            let since = survey.condemned.packs.get(&id).and_then(|sentence| sentence.since);
            let since = since.unwrap_or(others.now);
            last = last.max(Some(since + how.grace));
            heeded.extend(others.heed(since).map(|writer| writer.who.clone()));
        }
        done.waiting_until = last.and_then(|last| Timestamp::try_from(last).ok());
        done.waiting_for = heeded.into_iter().collect();
    }
}

/// When the one began to write that is at it for the longest time.
fn oldest(others: &Others) -> Option<SystemTime> {
    others.writers.iter().map(|writer| writer.since).min()
}

impl Survey {
    /// Calls `each` with where each blob that is needed is to be read.
    fn each_needed(&self, each: &mut dyn FnMut(&Location) -> Result<()>) -> Result<()> {
        let mut merged = Merged::new(&self.indexes)?;
        let mut pages = Wanted::new(&self.needed.pages)?;
        let mut blocks = Wanted::new(&self.needed.blocks)?;
        let mut places = Vec::new();
        while merged.next(&mut places)? {
            let Some(place) = chosen(&places, &self.counted_with) else { continue };
            let wanted = match place.blob.kind {
                BlobKind::Block => &mut blocks,
                BlobKind::Page => &mut pages,
            };
            if wanted.has(&place.blob.id)? {
                each(place)?;
            }
        }
        pages.end()?;
        blocks.end()
    }

    fn is_damaged(&self, pack: &Id) -> bool {
        self.condemned.why(pack) == Some(Why::Damaged)
    }

    /// The condemned packs that nothing needs, nobody relies on, and that waited for `grace`.
    fn ripe(&self, others: &Others, grace: Duration) -> HashSet<Id> {
        // It is at least as late as what was written last.
        let last = self.condemned.packs.values().filter_map(|sentence| sentence.since).max();
        let now = last.map_or(others.now, |last| last.max(others.now));
        let is_ripe = |(id, sentence): &(&Id, &Sentence)| {
            let is_needed = self.packs.get(id).is_some_and(|used| used.needed > 0);
            let since = sentence.since.unwrap_or(now);
            let waited = now.duration_since(since).is_ok_and(|waited| waited >= grace);
            !is_needed && waited && others.heed(since).next().is_none()
        };
        self.condemned.packs.iter().filter(is_ripe).map(|(id, _)| *id).collect()
    }

    /// Packs that nothing needs and that are not condemned yet. One in no index may be that of a writer at work.
    fn unused(&self, others: &Others) -> HashMap<Id, Why> {
        let is_unused = |(id, used): &(&Id, &Use)| {
            let is_whose = !used.is_indexed && !others.writers.is_empty();
            used.needed == 0 && !is_whose && !self.condemned.packs.contains_key(id)
        };
        self.packs.iter().filter(is_unused).map(|(id, _)| (*id, Why::Unused)).collect()
    }

    /// Packs that are worth being written anew: damaged ones, those of least use until no more than `unused` per cent are
    /// of none, and small ones if there are many. The first to go is the last.
    fn sparse(&self, unused: u64) -> Vec<Id> {
        let is_condemned = |id: &Id| self.condemned.packs.contains_key(id);
        let used = || self.packs.iter().filter(|(_, used)| used.needed > 0);
        let mut chosen: Vec<Id> =
            used().map(|(id, _)| *id).filter(|id| self.is_damaged(id)).collect();
        let mut packs: Vec<(&Id, &Use)> = used().filter(|(id, _)| !is_condemned(id)).collect();
        // By how much of each is of use.
        packs.sort_unstable_by_key(|(id, used)| (used.needed * 1000 / used.len.max(1), **id));
        let waste = |used: &Use| used.len.saturating_sub(used.needed + pack::PACK_HEADER as u64);
        let mut wasted: u64 = packs.iter().map(|(_, used)| waste(used)).sum();
        let needed: u64 = packs.iter().map(|(_, used)| used.needed).sum();
        let small = packs.iter().filter(|(_, used)| used.len < SMALL).count() >= MANY_SMALL;
        for (id, used) in packs {
            let is_sparse = wasted > needed.saturating_mul(unused) / 100 && waste(used) > 0;
            if is_sparse || small && used.len < SMALL {
                wasted -= waste(used).min(wasted);
                chosen.push(*id);
            }
        }
        chosen.reverse();
        chosen
    }
}

/// Ids that are all to be found, in order.
struct Wanted<'a> {
    ids: Iter<'a>,
    next: Option<Id>,
}

impl<'a> Wanted<'a> {
    fn new(sorted: &'a Sorted) -> Result<Self> {
        let mut ids = sorted.iter()?;
        Ok(Self { next: ids.next()?, ids })
    }

    /// Whether `id` is one of them; it is larger than those that were asked about before.
    fn has(&mut self, id: &Id) -> Result<bool> {
        match self.next {
            // It would have come before.
            Some(next) if next < *id => Err(Cause::Missing(next).into()),
            Some(next) if next == *id => {
                self.next = self.ids.next()?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn end(&self) -> Result<()> {
        self.next.map_or(Ok(()), |next| Err(Cause::Missing(next).into()))
    }
}
