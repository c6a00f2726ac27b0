//! Pieces in memory and on disk.

use super::*;
use crate::store::id::Id;

fn key(seed: u8, number: u64) -> Key {
    Key(Object::Pack(Id([seed; 32])), number)
}

fn piece(seed: u8, len: usize) -> Piece {
    Piece { bytes: vec![seed; len], object_len: 1 << 20 }
}

#[test]
fn a_piece_is_found_by_another_process_unless_it_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let cache = PieceCache::open(dir.path(), 1 << 30).unwrap();
    cache.keep(key(1, 2), &piece(1, 1000));
    let again = PieceCache::open(dir.path(), 1 << 30).unwrap();
    assert_eq!(again.find(key(1, 2)), Some(piece(1, 1000)));
    assert_eq!(again.find(key(1, 3)), None);
    let pieces = || {
        let files = std::fs::read_dir(dir.path().join("01")).unwrap();
        files.map(|file| file.unwrap().path()).collect::<Vec<_>>()
    };
    let path = pieces().remove(0);
    let sound = std::fs::read(&path).unwrap();
    for at in [0, 999, 1000, 1007, 1008, sound.len() - 1] {
        let mut bad = sound.clone();
        bad[at] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        assert_eq!(again.find(key(1, 2)), None, "byte {at}");
        assert_eq!(pieces().len(), 0, "it is fetched again");
    }
    // One piece in the place of another, and one cut short.
    std::fs::write(dir.path().join("01").join(path.file_name().unwrap()), &sound[..500]).unwrap();
    assert_eq!(again.find(key(1, 2)), None);
    cache.keep(key(1, 7), &piece(1, 10));
    std::fs::rename(pieces().remove(0), &path).unwrap();
    assert_eq!(again.find(key(1, 2)), None);
}

#[test]
fn what_was_used_longest_ago_goes_first_and_indexes_last() {
    let dir = tempfile::tempdir().unwrap();
    let cache = PieceCache::open(dir.path(), 1 << 30).unwrap();
    cache.keep(Key(Object::Index(Id([9; 32])), 0), &piece(9, 4000));
    for seed in 0..8 {
        cache.keep(key(seed, 0), &piece(seed, 4000));
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(cache.find(key(0, 0)).is_some());
    let all = cache.count().unwrap();
    assert_eq!(all.pieces, 9);
    let pruned = cache.prune(all.bytes / 9 * 3, None).unwrap();
    assert_eq!(pruned.pieces, 6);
    for (seed, stays) in [(0, true), (1, false), (6, false), (7, true)] {
        assert_eq!(cache.find(key(seed, 0)).is_some(), stays, "{seed}");
    }
    assert!(cache.find(Key(Object::Index(Id([9; 32])), 0)).is_some());
    assert_eq!(cache.prune(0, None).unwrap().pieces, 3);
}

#[test]
fn it_stays_below_its_limit_while_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let cache = PieceCache::open(dir.path(), 1 << 20).unwrap();
    for number in 0..200 {
        cache.keep(key(1, number), &piece(1, 20_000));
    }
    let found = cache.count().unwrap();
    assert!(found.bytes <= (1 << 20) + (1 << 17) && found.pieces > 20, "{found:?}");
}

#[test]
fn a_folder_that_cannot_be_written_fails_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let cache = PieceCache::open(dir.path(), 1 << 20).unwrap();
    std::fs::write(dir.path().join("01"), b"a file in the way").unwrap();
    cache.keep(key(1, 0), &piece(1, 100));
    assert_eq!(cache.find(key(1, 0)), None);
}

#[test]
fn memory_is_bounded_and_the_oldest_goes() {
    let mut table = Table::default();
    let count = MEMORY as u64 / PIECE + 10;
    for number in 0..count {
        table.insert(key(1, number), Arc::new(piece(1, PIECE as usize)));
        assert!(table.get(key(1, 0)).is_some(), "what is used stays");
    }
    assert!(table.weight <= MEMORY);
    assert_eq!(table.here.len(), table.order.len());
    assert!(table.get(key(1, 1)).is_none());
    assert!(table.remove(key(1, 0)) && !table.remove(key(1, 0)));
}
