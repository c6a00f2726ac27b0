//! What is left of a store when nobody is at work, no grace is to be waited for, and it was collected.

use std::collections::{BTreeSet, HashSet};

use stratafs::store::objects::{Object, Objects, Sort};
use stratafs::store::{Collected, Id, Store};

use crate::model::Model;

impl Model {
    /// Fails unless packs and indexes hold what the snapshots need, each once, and nothing else is left.
    pub(crate) fn is_tight(&self, side: usize, done: &Collected) {
        let here = &self.sides[side];
        let mut blocks = BTreeSet::new();
        let mut pages = HashSet::new();
        for snapshot in here.alive.values() {
            let name = (snapshot.record.series.clone(), snapshot.record.time);
            for (plain, disk) in self.contents[&name].iter().zip(&snapshot.record.disks) {
                let map = here.map(plain);
                blocks.extend(map.iter().filter(|id| !id.is_zero()).copied());
                let leaves: Vec<Vec<Id>> =
                    map.chunks(Store::blocks_of_page() as usize).map(trimmed).collect();
                let filled = leaves.iter().filter(|leaf| !leaf.is_empty());
                pages.extend(filled.cloned());
                if leaves.len() > 1 && !disk.root.is_zero() {
                    // A page of level 1: what tells it from others is the pages below.
                    let last = leaves.iter().rposition(|leaf| !leaf.is_empty()).unwrap();
                    let below = leaves[..=last].iter();
                    let mark = Id([0xff; 32]);
                    pages.insert(
                        below.flat_map(|leaf| [vec![mark], leaf.clone()].concat()).collect(),
                    );
                }
            }
        }
        let calm = here.ground.calm();
        let packs = calm.list(Sort::Packs).unwrap();
        let (mut found_blocks, mut found_pages, mut bytes) = (Vec::new(), Vec::new(), 0);
        for listed in &packs {
            let mut pack = vec![0; listed.len as usize];
            calm.read_at(Object::Pack(listed.id), 0, &mut pack).unwrap();
            bytes += listed.len;
            // docs/store-format.md, "Pack".
            let mut at = 48;
            while let Some(header) = pack.get(at..at + 56) {
                let id = Id(header[16..48].try_into().unwrap());
                if header[4] == 1 { &mut found_blocks } else { &mut found_pages }.push(id);
                at += 56 + u32::from_le_bytes(header[8..12].try_into().unwrap()) as usize;
            }
            assert_eq!(at, pack.len());
        }
        found_blocks.sort();
        if !found_blocks.iter().eq(&blocks) {
            let count = found_blocks.len();
            let twice: Vec<_> = found_blocks.windows(2).filter(|two| two[0] == two[1]).collect();
            panic!("{count} blocks for {}, twice: {twice:?}; {done:?}; {packs:?}", blocks.len());
        }
        let count = found_pages.len();
        found_pages.sort();
        found_pages.dedup();
        assert_eq!((found_pages.len(), count), (pages.len(), pages.len()));
        assert_eq!(bytes, done.needed_bytes + 48 * packs.len() as u64);
        assert_eq!((done.waiting_packs, &done.waiting_for[..]), (0, &[][..]));
        let usage = here.calm().usage().unwrap();
        // Two indexes may tell of one blob, if whoever merged them ended before the old one was removed.
        assert!(usage.blobs >= (blocks.len() + pages.len()) as u64);
        for sort in [Sort::Condemned, Sort::Leases, Sort::Signatures] {
            assert_eq!(calm.list(sort).unwrap(), [], "{sort:?}");
        }
    }
}

fn trimmed(ids: &[Id]) -> Vec<Id> {
    ids[..ids.iter().rposition(|id| !id.is_zero()).map_or(0, |last| last + 1)].to_vec()
}
