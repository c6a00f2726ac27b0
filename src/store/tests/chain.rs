//! As in a cloud: each snapshot of a series is whole by itself, whatever others are removed.

use super::*;

#[test]
fn each_reads_right_after_any_other_is_removed() {
    // A, B, C, D; then B1, C1; then B2.
    let block = |seed| noise(seed, BLOCK);
    let states =
        [[1, 2, 3, 4], [1, 12, 13, 4], [1, 22, 13, 4]].map(|seeds| seeds.map(block).concat());
    for gone in 0..states.len() {
        let place = Place::new();
        let mut made: Vec<Snapshot> = Vec::new();
        for (second, state) in states.iter().enumerate() {
            let before = made.last().cloned();
            made.push(place.create("web", second as i64, state, before.as_ref()));
        }
        assert_eq!(
            made.iter().map(|it| it.record.disks[0].new_blocks).collect::<Vec<_>>(),
            [4, 2, 1]
        );
        assert_eq!(made[2].record.parent, Some(made[1].id));
        place.store.remove(made[gone].id).unwrap();
        let store = place.again().unwrap();
        assert_eq!(store.snapshots().unwrap().len(), 2);
        for (number, (snapshot, state)) in made.iter().zip(&states).enumerate() {
            if number != gone {
                assert!(read(&store, snapshot).unwrap() == *state, "{number} without {gone}");
            }
        }
    }
}

#[test]
fn what_is_the_same_is_stored_once_whoever_has_it() {
    let place = Place::new();
    let disk = noise(3, 40 * BLOCK);
    let first = place.create("one", 1, &disk, None);
    let stored = place.store.usage().unwrap().pack_bytes;
    let second = place.create("other", 2, &disk, None);
    assert_eq!((first.record.disks[0].new_blocks, second.record.disks[0].new_blocks), (40, 0));
    assert_eq!(place.store.usage().unwrap().pack_bytes, stored);
    assert_eq!(first.record.disks[0].root, second.record.disks[0].root);
}
