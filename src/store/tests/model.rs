//! Random snapshots and removals beside plain copies.

use proptest::prelude::*;

use super::*;

/// Blocks of a disk in the model.
const MOST_BLOCKS: usize = 40;

#[derive(Debug, Clone)]
enum Step {
    /// A snapshot of a series, on the base of how it was last, with so many blocks rewritten.
    Create { series: usize, changes: Vec<(usize, u64)>, len: usize, with_parent: bool },
    /// Removes one.
    Remove { which: usize },
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
    prop_oneof![5 => create, 2 => (0..100_usize).prop_map(|which| Step::Remove { which }), 1 => Just(Step::Reopen)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn every_snapshot_holds_what_it_was_made_of(steps in prop::collection::vec(step(), 1..30)) {
        let mut place = Place::new();
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
                Step::Reopen => place.store = place.again().unwrap(),
            }
        }
        let store = place.again().unwrap();
        prop_assert_eq!(store.snapshots().unwrap().len(), alive.len());
        for (snapshot, state) in &alive {
            prop_assert!(read(&store, snapshot).unwrap() == *state);
        }
    }
}
