//! What a filesystem may hold after the power went.
//!
//! A file that was synced holds what it did then; one that was not, anything of it: nothing, its beginning, pages of
//! zeros. A name that was changed since its folder was synced is as it was at any time since, each by itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::recorded::Change;
use crate::rng::Rng;

/// Files and what they hold.
pub type Tree = BTreeMap<PathBuf, Arc<Vec<u8>>>;

/// What is written at once, or not.
const PAGE: usize = 4096;

/// A file, whatever its names are.
#[derive(Debug, Default, Clone)]
struct Content {
    bytes: Arc<Vec<u8>>,
    is_synced: bool,
}

/// How a crash chooses.
#[derive(Debug, Clone, Copy)]
enum Choice {
    /// All has arrived: the program was killed.
    Newest,
    /// Nothing that was not synced has.
    Oldest,
    /// Anything, for each name and file by itself.
    Any,
    /// Mostly all.
    Mostly,
}

/// Which file a name stood for, from which change on; none if it was none's.
type Names = BTreeMap<PathBuf, Vec<(usize, Option<usize>)>>;

/// A filesystem at some moment, empty at first.
#[derive(Debug, Default, Clone)]
pub struct Disk {
    files: Vec<Content>,
    /// The first version of each is on stable storage.
    names: Names,
    /// Changes so far.
    at: usize,
}

impl Disk {
    fn file(&self, path: &Path) -> usize {
        let versions = self.names.get(path).and_then(|versions| versions.last());
        versions
            .and_then(|(_, file)| *file)
            .unwrap_or_else(|| panic!("{} is not there", path.display()))
    }

    fn name(&mut self, path: &Path, file: Option<usize>) {
        // What was never there is there no more.
        let versions = self.names.entry(path.to_owned()).or_insert_with(|| vec![(0, None)]);
        versions.push((self.at, file));
    }

    /// Goes on by one change.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Promise(_) => {}
            Change::Create(path) => {
                self.files.push(Content::default());
                self.name(path, Some(self.files.len() - 1));
            }
            Change::Write(path, bytes) => {
                let file = self.file(path);
                Arc::make_mut(&mut self.files[file].bytes).extend_from_slice(bytes);
                self.files[file].is_synced = false;
            }
            Change::Sync(path) => {
                let file = self.file(path);
                self.files[file].is_synced = true;
            }
            Change::Rename(from, to) => {
                let file = self.file(from);
                self.name(to, Some(file));
                self.name(from, None);
            }
            Change::Remove(path) => self.name(path, None),
            Change::SyncDir(dir, before) => {
                for (path, versions) in &mut self.names {
                    if path.parent() != Some(dir) {
                        continue;
                    }
                    let last = versions.iter().rposition(|(at, _)| at < before).unwrap_or(0);
                    versions.drain(..last);
                }
            }
        }
        self.at += 1;
        self.names.retain(|_, versions| versions.len() > 1 || versions[0].1.is_some());
    }

    /// What may be found.
    pub fn crash(&self, rng: &mut Rng) -> Tree {
        let choice = match rng.below(8) {
            0 => Choice::Newest,
            1 => Choice::Oldest,
            2 | 3 => Choice::Mostly,
            _ => Choice::Any,
        };
        let mut contents: BTreeMap<usize, Arc<Vec<u8>>> = BTreeMap::new();
        let mut tree = Tree::new();
        for (path, versions) in &self.names {
            let last = versions.len() - 1;
            let chosen = match choice {
                Choice::Newest => last,
                Choice::Oldest => 0,
                Choice::Mostly if rng.below(8) > 0 => last,
                Choice::Mostly | Choice::Any => rng.below(versions.len() as u64) as usize,
            };
            let Some(file) = versions[chosen].1 else { continue };
            let content =
                contents.entry(file).or_insert_with(|| self.files[file].crash(rng, choice));
            tree.insert(path.clone(), Arc::clone(content));
        }
        tree
    }
}

impl Content {
    fn crash(&self, rng: &mut Rng, choice: Choice) -> Arc<Vec<u8>> {
        if self.is_synced || matches!(choice, Choice::Newest) {
            return Arc::clone(&self.bytes);
        }
        let mut bytes = self.bytes.to_vec();
        match rng.below(4) {
            0 => bytes.clear(),
            1 => bytes.truncate(rng.below(self.bytes.len() as u64 + 1) as usize),
            2 => bytes.chunks_mut(PAGE).filter(|_| rng.one_in(2)).for_each(|page| page.fill(0)),
            _ => {}
        }
        Arc::new(bytes)
    }
}
