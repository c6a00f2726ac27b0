//! Random snapshots and removals beside plain copies.

use std::collections::HashSet;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::store::{Collect, Depth};

/// Blocks of a disk in the model.
const MOST_BLOCKS: usize = 40;

#[derive(Debug, Clone)]
enum Step {
    /// A snapshot of a series, on the base of how it was last, with so many blocks rewritten.
    Create { series: usize, changes: Vec<(usize, u64)>, len: usize, with_parent: bool },
    /// Removes one.
    Remove { which: usize },
    /// Gives back room, at once or after a while.
    Collect { grace: bool, unused: u64 },
    /// Another process goes on.
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let change = (0..MOST_BLOCKS, 0..6_u64);
    let create =
        (0..3_usize, prop::collection::vec(change, 0..6), 0..MOST_BLOCKS * BLOCK, any::<bool>())
            .prop_map(|(series, changes, len, with_parent)| Step::Create {
                series,
                changes,
                len,
                with_parent,
            });
    let collect =
        (any::<bool>(), 0..40_u64).prop_map(|(grace, unused)| Step::Collect { grace, unused });
    prop_oneof![5 => create, 2 => (0..100_usize).prop_map(|which| Step::Remove { which }), 2 => collect, 1 => Just(Step::Reopen)]
}

/// The different blocks of a disk that are not zeros.
fn blocks(disk: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let filled = |block: &[u8]| {
        let mut block = block.to_vec();
        block.resize(BLOCK, 0);
        block
    };
    disk.chunks(BLOCK).map(filled).filter(|block| block.iter().any(|&byte| byte != 0))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn every_snapshot_holds_what_it_was_made_of(steps in prop::collection::vec(step(), 1..30), is_encrypted in any::<bool>()) {
        let mut place = if is_encrypted { Place::encrypted() } else { Place::new() };
        let mut states: [Vec<u8>; 3] = Default::default();
        let mut last: [Option<Snapshot>; 3] = Default::default();
        let mut alive: Vec<(Snapshot, Vec<u8>)> = Vec::new();
        for (second, step) in steps.into_iter().enumerate() {
            match step {
                Step::Create { series, changes, len, with_parent } => {
                    let state = &mut states[series];
                    state.resize(len, 0);
                    for (block, seed) in changes {
                        let at = (block * BLOCK).min(len);
                        let end = (at + BLOCK).min(len);
                        // Seed 0 makes zeros.
                        let bytes = if seed == 0 { vec![0; end - at] } else { noise(seed, end - at) };
                        state[at..end].copy_from_slice(&bytes);
                    }
                    let parent = last[series].clone().filter(|_| with_parent);
                    let made = place.create(&format!("s{series}"), second as i64, state, parent.as_ref());
                    last[series] = Some(made.clone());
                    alive.push((made, state.clone()));
                }
                Step::Remove { which } if !alive.is_empty() => {
                    let (gone, _) = alive.swap_remove(which % alive.len());
                    place.store.remove(gone.id).unwrap();
                }
                Step::Remove { .. } => {}
                Step::Collect { grace, unused } => {
                    let grace = Duration::from_secs(if grace { 3600 } else { 0 });
                    let how = Collect { grace, unused, dry_run: false };
                    place.store.collect(&how, &|| {}).unwrap();
                }
                Step::Reopen => place.store = place.again().unwrap(),
            }
        }
        let how = Collect { grace: Duration::ZERO, unused: 0, dry_run: false };
        place.again().unwrap().collect(&how, &|| {}).unwrap();
        let store = place.again().unwrap();
        prop_assert_eq!(store.check(Depth::Data, &|| {}).unwrap().problems, []);
        // Nothing is left but what is needed.
        let needed: HashSet<Vec<u8>> = alive.iter().flat_map(|(_, state)| blocks(state)).collect();
        let most = needed.len() * (BLOCK + 100) + (alive.len() + 1) * 4096;
        prop_assert!(store.usage().unwrap().pack_bytes <= most as u64);
        prop_assert_eq!(store.snapshots().unwrap().len(), alive.len());
        for (snapshot, state) in &alive {
            prop_assert!(read(&store, snapshot).unwrap() == *state);
        }
    }
}
