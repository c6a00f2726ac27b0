//! The folders and links of a store's tree, and how they come and go.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, OnceLock};

use jiff::Timestamp;

use super::ROOT;
use crate::store::{Id, Snapshot};

/// What is known of the store.
#[derive(Debug)]
pub(super) struct Listed {
    series: BTreeMap<String, Series>,
    nodes: HashMap<u64, Own>,
    known: HashMap<Id, u64>,
    /// Records that cannot be read, which was told.
    damaged: HashSet<Id>,
    next: u64,
}

/// Where the link to the newest snapshot comes in a listing: before all nodes but the root.
const LATEST_POSITION: u64 = ROOT;
const LATEST: &[u8] = b"latest";

#[derive(Debug)]
struct Series {
    node: u64,
    /// By their nodes.
    snapshots: BTreeMap<u64, Arc<[u8]>>,
    by_name: HashMap<Arc<[u8]>, u64>,
    /// The link to the newest.
    latest: u64,
}

/// A folder or link of this tree itself.
#[derive(Debug, Clone)]
pub(super) enum Own {
    Root,
    Series(String),
    /// To a snapshot of the series; one to another is another node, so that no old target is remembered.
    Link(Arc<[u8]>, Timestamp),
    Snapshot(Arc<Entry>),
    /// One of several disks of a snapshot.
    Disk(Arc<Entry>, usize),
}

/// A snapshot that is listed.
#[derive(Debug)]
pub(super) struct Entry {
    /// Its folder; those of several disks follow.
    node: u64,
    pub(super) snapshot: Snapshot,
    /// The number of each of its disks, once it was entered.
    pub(super) entered: Box<[OnceLock<u16>]>,
}

impl Listed {
    /// Of a store that nothing is known of yet.
    pub(super) fn new() -> Self {
        Self {
            series: BTreeMap::new(),
            nodes: HashMap::from([(ROOT, Own::Root)]),
            known: HashMap::new(),
            damaged: HashSet::new(),
            next: ROOT + 1,
        }
    }

    /// Which of the snapshots that are there are new, and which are there no more.
    pub(super) fn compare(&self, there: &[Id]) -> (Vec<Id>, Vec<Id>) {
        let is_known = |id: &&Id| self.known.contains_key(*id) || self.damaged.contains(*id);
        let new = there.iter().filter(|id| !is_known(id)).copied().collect();
        let there: HashSet<&Id> = there.iter().collect();
        (new, self.known.keys().filter(|id| !there.contains(id)).copied().collect())
    }

    /// Takes in what was found out.
    pub(super) fn update(&mut self, mut found: Vec<Snapshot>, damaged: &[Id], gone: &[Id]) {
        found.sort_by_key(|snapshot| (snapshot.record.time, snapshot.id));
        self.damaged.extend(damaged);
        gone.iter().for_each(|id| self.remove(id));
        found.into_iter().for_each(|snapshot| self.add(snapshot));
        self.link();
    }

    /// How many nodes there are.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// What a node is.
    pub(super) fn own(&self, node: u64) -> Option<&Own> {
        self.nodes.get(&node)
    }

    /// Of when a folder or link is, and how many folders it holds.
    pub(super) fn told(&self, own: &Own) -> (Timestamp, usize) {
        let (time, folders) = match own {
            Own::Root => {
                let newest = self.series.values().filter_map(|series| self.newest(series)).max();
                (newest, self.series.len())
            }
            Own::Series(name) => match self.series.get(name) {
                Some(series) => (self.newest(series), series.snapshots.len()),
                None => (None, 0),
            },
            Own::Link(_, time) => (Some(*time), 0),
            Own::Snapshot(entry) => {
                let disks = entry.entered.len();
                (Some(entry.snapshot.record.time), if disks == 1 { 0 } else { disks })
            }
            Own::Disk(entry, _) => (Some(entry.snapshot.record.time), 0),
        };
        (time.unwrap_or(Timestamp::UNIX_EPOCH), folders)
    }

    /// The node of that name in a folder.
    pub(super) fn find(&self, own: &Own, name: &[u8]) -> Option<u64> {
        match own {
            Own::Root => Some(self.series.get(std::str::from_utf8(name).ok()?)?.node),
            Own::Series(series) => {
                let series = self.series.get(series)?;
                if name == LATEST { Some(series.latest) } else { series.by_name.get(name).copied() }
            }
            Own::Snapshot(entry) => {
                let mut disks = (1..).zip(&entry.snapshot.record.disks);
                let found = disks.find(|(_, disk)| disk.name.as_bytes() == name);
                found.map(|(nth, _)| entry.node + nth)
            }
            Own::Disk(..) | Own::Link(..) => None,
        }
    }

    /// What a folder holds after a position: names, nodes and positions.
    pub(super) fn entries(&self, own: &Own, after: u64) -> Vec<(Arc<[u8]>, u64, u64)> {
        let mut entries: Vec<(Arc<[u8]>, u64, u64)> = Vec::new();
        match own {
            Own::Root => entries.extend(
                self.series
                    .iter()
                    .map(|(name, series)| (Arc::from(name.as_bytes()), series.node, series.node)),
            ),
            Own::Series(name) => {
                let Some(series) = self.series.get(name) else { return entries };
                entries.push((LATEST.into(), series.latest, LATEST_POSITION));
                let all = series.snapshots.range(after..);
                entries.extend(all.map(|(node, name)| (Arc::clone(name), *node, *node)));
            }
            Own::Snapshot(entry) => {
                for (nth, disk) in (1..).zip(&entry.snapshot.record.disks) {
                    let node = entry.node + nth;
                    entries.push((disk.name.as_bytes().into(), node, node));
                }
            }
            Own::Disk(..) | Own::Link(..) => {}
        }
        entries.retain(|(_, _, position)| *position > after);
        entries.sort_unstable_by_key(|(_, _, position)| *position);
        entries
    }

    fn take(&mut self, count: u64) -> u64 {
        let node = self.next;
        self.next += count;
        node
    }

    fn add(&mut self, snapshot: Snapshot) {
        let disks = snapshot.record.disks.len();
        let node = self.take(1 + disks as u64);
        let (id, name) = (snapshot.id, snapshot.record.series.clone());
        if !self.series.contains_key(&name) {
            let own = self.take(1);
            self.nodes.insert(own, Own::Series(name.clone()));
            let (snapshots, by_name) = Default::default();
            self.series.insert(name.clone(), Series { node: own, snapshots, by_name, latest: 0 });
        }
        let Some(series) = self.series.get_mut(&name) else { return };
        let folder = series.name_for(&snapshot);
        series.snapshots.insert(node, Arc::clone(&folder));
        series.by_name.insert(folder, node);
        let entered = (0..disks).map(|_| OnceLock::new()).collect();
        let entry = Arc::new(Entry { node, snapshot, entered });
        if disks > 1 {
            for (nth, number) in (1..).zip(0..disks) {
                self.nodes.insert(node + nth, Own::Disk(Arc::clone(&entry), number));
            }
        }
        self.nodes.insert(node, Own::Snapshot(entry));
        self.known.insert(id, node);
    }

    /// Takes a snapshot out of the list. One that was entered can still be read.
    fn remove(&mut self, id: &Id) {
        let Some(node) = self.known.remove(id) else { return };
        let Some(Own::Snapshot(entry)) = self.nodes.get(&node).cloned() else { return };
        if let Some(series) = self.series.get_mut(&entry.snapshot.record.series) {
            if let Some(name) = series.snapshots.remove(&node) {
                series.by_name.remove(&name);
            }
            if series.snapshots.is_empty() {
                self.nodes.remove(&series.node);
                self.nodes.remove(&series.latest);
                self.series.remove(&entry.snapshot.record.series);
            }
        }
        if entry.entered.iter().all(|slot| slot.get().is_none()) {
            (0..=entry.entered.len() as u64).for_each(|nth| drop(self.nodes.remove(&(node + nth))));
        }
    }

    /// Makes each link lead to the newest snapshot.
    fn link(&mut self) {
        let mut moved = Vec::new();
        for (name, series) in &self.series {
            let newest =
                series.snapshots.iter().filter_map(|(node, name)| match self.nodes.get(node) {
                    Some(Own::Snapshot(entry)) => {
                        Some((entry.snapshot.record.time, entry.snapshot.id, name))
                    }
                    _ => None,
                });
            let Some((time, _, target)) = newest.max() else { continue };
            let now = self.nodes.get(&series.latest);
            if !matches!(now, Some(Own::Link(current, _)) if current == target) {
                moved.push((name.clone(), Arc::clone(target), time));
            }
        }
        for (name, target, time) in moved {
            let link = self.take(1);
            self.nodes.insert(link, Own::Link(target, time));
            if let Some(series) = self.series.get_mut(&name) {
                let before = std::mem::replace(&mut series.latest, link);
                self.nodes.remove(&before);
            }
        }
    }

    fn newest(&self, series: &Series) -> Option<Timestamp> {
        match self.nodes.get(&series.latest) {
            Some(Own::Link(_, time)) => Some(*time),
            _ => None,
        }
    }
}

impl Series {
    /// What the folder of a snapshot is called: its time to the second, and its id if another has that name.
    fn name_for(&self, snapshot: &Snapshot) -> Arc<[u8]> {
        let second = Timestamp::from_second(snapshot.record.time.as_second());
        let time = second.unwrap_or(snapshot.record.time).to_string();
        if !self.by_name.contains_key(time.as_bytes()) {
            return time.into_bytes().into();
        }
        let id = snapshot.id.to_string();
        let short = format!("{time}-{}", id.get(..12).unwrap_or(&id)).into_bytes();
        match self.by_name.contains_key(short.as_slice()) {
            false => short.into(),
            true => format!("{time}-{id}").into_bytes().into(),
        }
    }
}
