//! Copies between stores that share no key, or no size of blocks.

use super::super::{Copied, Depth, SigningKey};
use super::*;
use crate::store::cause::Cause;

/// A store in memory: what is asked here is not about flushing.
fn quick(secret: Option<Secret>) -> Place {
    let dir = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
    Place::in_dir(dir, secret)
}

fn plain() -> Place {
    quick(None)
}

fn encrypted() -> Place {
    quick(Some(key_file(1)))
}

/// The stores that a snapshot of `from` is copied to: one of its own kind, one with another key or with one at all, and one
/// of smaller blocks.
fn others(from: &Place) -> Vec<Place> {
    let cache = Cache::new(0);
    let dir = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
    let settings = Settings { block_size: 2 * BLOCK as u32, ..Settings::default() };
    let objects = Arc::new(Folder::make(&dir.path().join("store")).unwrap());
    let secret = from.secret.is_none().then(|| key_file(3));
    let store = Store::init(objects, settings, secret.as_ref(), &cache).unwrap();
    let larger = Place { dir, store: Arc::new(store), cache, secret };
    vec![quick(Some(key_file(2))), plain(), larger]
}

fn copy(to: &Place, from: &Place, snapshots: &[Snapshot]) -> Copied {
    to.store.copy_from(&from.store, snapshots, &Progress::default()).unwrap()
}

/// Disks that each differ in a block from the one before, of which the last one is longer.
fn disks() -> Vec<Vec<u8>> {
    let mut disk = noise(1, 40 * BLOCK + 100);
    disk[7 * BLOCK..11 * BLOCK].fill(0);
    let mut disks = vec![disk.clone()];
    for nth in 1..4 {
        disk[nth * 9 * BLOCK..][..BLOCK].copy_from_slice(&noise(nth as u64 + 1, BLOCK));
        disks.push(disk.clone());
    }
    disk.extend(noise(9, 3 * BLOCK));
    disks.push(disk);
    disks
}

fn series(place: &Place) -> Vec<Snapshot> {
    let mut made: Vec<Snapshot> = Vec::new();
    for (second, disk) in disks().iter().enumerate() {
        made.push(place.create("web", second as i64, disk, made.last()));
    }
    made
}

#[test]
fn every_kind_of_store_takes_copies_of_every_other() {
    for from in [plain(), encrypted()] {
        let made = series(&from);
        for to in others(&from) {
            let copied = copy(&to, &from, &made);
            assert_eq!((copied.snapshots.len(), copied.already), (5, 0));
            for (id, disk) in copied.snapshots.iter().zip(disks()) {
                let found = to.store.snapshot(*id).unwrap();
                assert!(read(&to.again().unwrap(), &found).unwrap() == disk);
            }
            assert_eq!(to.store.check(Depth::Data, &|| {}).unwrap().problems, []);
            // Nothing is copied twice, forth or back.
            let again = copy(&to, &from, &made);
            assert_eq!((again.snapshots.len(), again.already, again.stored), (0, 5, 0));
            assert_eq!(to.store.lacks(&made).unwrap(), []);
            let back = copy(&from, &to, &to.store.snapshots().unwrap());
            assert_eq!((back.snapshots.len(), back.already), (0, 5));
            assert_eq!(from.store.snapshots().unwrap().len(), 5);
        }
    }
}

/// Of what was copied before, only the difference is read, though no id is the same.
#[test]
fn only_what_differs_is_read() {
    for to in others(&plain()) {
        let from = plain();
        let made = series(&from);
        copy(&to, &from, &made[..3]);
        let progress = Progress::default();
        let copied = to.store.copy_from(&from.store, &made[3..4], &progress).unwrap();
        assert_eq!(copied.snapshots.len(), 1);
        let read_bytes = progress.read.load(std::sync::atomic::Ordering::Relaxed);
        // The block that changed, in one that may be larger, and the one at the end that is not whole.
        assert!(read_bytes <= 4 * BLOCK as u64 + 100, "{read_bytes}");
        let found = to.store.snapshot(copied.snapshots[0]).unwrap();
        assert!(read(&to.again().unwrap(), &found).unwrap() == disks()[3]);
    }
}

/// One that is no copy of what it is compared with is not taken for it, whatever its names and times.
#[test]
fn two_snapshots_of_one_moment_are_two() {
    let (from, to) = (plain(), encrypted());
    let one = from.create("web", 1, &noise(1, 5 * BLOCK), None);
    let other = from.create("web", 1, &noise(2, 5 * BLOCK), None);
    copy(&to, &from, std::slice::from_ref(&one));
    let copied = copy(&to, &from, &[one, other]);
    assert_eq!((copied.snapshots.len(), copied.already), (1, 1));
    let found = to.store.snapshot(copied.snapshots[0]).unwrap();
    assert!(read(&to.store, &found).unwrap() == noise(2, 5 * BLOCK));
    assert_eq!(found.record.copy_of.map(|id| id.to_string().len()), Some(64));
}

fn key() -> (Arc<SigningKey>, super::super::PublicKey) {
    let (secret, _) = SigningKey::generate().unwrap();
    let key = SigningKey::from_pem(secret.as_bytes()).unwrap();
    let public = key.public();
    (Arc::new(key), public)
}

fn signed(place: &Place, second: i64, disk: &[u8], key: &Arc<SigningKey>) -> Snapshot {
    let mut made = new("web", second, disk, None);
    made.sign = Some(Arc::clone(key));
    place.store.create(made, &Progress::default()).unwrap()
}

#[test]
fn signatures_come_along_where_they_hold() {
    for from in [plain(), encrypted()] {
        let (anna, annas) = key();
        let first = signed(&from, 1, &noise(1, BLOCK), &anna);
        let second = from.create("web", 2, &noise(2, BLOCK), None);
        let all = [first.clone(), second.clone()];
        let dir = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
        let objects = Folder::make(&dir.path().join("store")).unwrap();
        from.store.twin(&objects).unwrap();
        let twin = Store::open(Arc::new(objects), &Cache::new(0), &from.keyring()).unwrap();
        let twin = Arc::new(twin);
        let copied = twin.copy_from(&from.store, &all, &Progress::default()).unwrap();
        assert_eq!((copied.signatures, copied.unsigned), (1, vec![]));
        let keys = |store: &Store, snapshot: &Snapshot| {
            let mut found = store.signatures(std::slice::from_ref(snapshot)).unwrap();
            found.remove(&snapshot.id).unwrap().iter().map(|it| it.key).collect::<Vec<_>>()
        };
        assert_eq!((keys(&twin, &first), keys(&twin, &second)), (vec![annas], vec![]));
        // One that was signed since.
        from.store.sign(second.id, &anna).unwrap();
        let copied = twin.copy_from(&from.store, &all, &Progress::default()).unwrap();
        assert_eq!((copied.already, copied.signatures), (2, 1));
        assert_eq!(keys(&twin, &second), [annas]);
        let copied = twin.copy_from(&from.store, &all, &Progress::default()).unwrap();
        assert_eq!(copied, Copied { already: 2, ..Copied::default() });

        // In a store of another number none holds, and that is told; or the copies are signed.
        for to in others(&from) {
            let copied = copy(&to, &from, &all);
            assert_eq!((copied.signatures, copied.unsigned), (0, copied.snapshots));
        }
        for to in others(&from) {
            let (ben, bens) = key();
            let progress = Progress::default();
            let copied = to.store.copy_signed(&from.store, &all, Some(&ben), &progress).unwrap();
            assert_eq!((copied.signatures, copied.unsigned), (2, vec![]));
            for id in copied.snapshots {
                assert_eq!(keys(&to.store, &to.store.snapshot(id).unwrap()), [bens]);
            }
        }
    }
}

/// Who trusts a key takes nothing over from what it has not signed.
#[test]
fn what_nobody_trusted_signed_is_not_copied() {
    let (anna, annas) = key();
    let from = plain();
    let forged = from.create("web", 1, &noise(1, 5 * BLOCK), None);
    let mut disk = noise(1, 5 * BLOCK);
    disk[..BLOCK].copy_from_slice(&noise(2, BLOCK));
    let good = signed(&from, 2, &disk, &anna);
    let trusting = from.opened_with(&Keyring::default().trusting(move || Ok(vec![annas]))).unwrap();
    let to = encrypted();
    let copy = |snapshot: &Snapshot| {
        let snapshots = std::slice::from_ref(snapshot);
        let progress = Progress::default();
        let copied = to.store.copy_from(&trusting, snapshots, &progress)?;
        Ok::<_, crate::error::Error>((copied, progress.read.into_inner()))
    };
    assert_eq!(copy(&forged).unwrap_err().cause::<Cause>(), Some(&Cause::Unsigned));
    // Somebody else has copied it.
    to.store.copy_from(&from.store, std::slice::from_ref(&forged), &Progress::default()).unwrap();
    let (copied, read_bytes) = copy(&good).unwrap();
    assert_eq!((copied.snapshots.len(), read_bytes), (1, 5 * BLOCK as u64));
}

/// What an attempt that was stopped has stored is not stored again.
#[test]
fn a_copy_that_was_stopped_goes_on() {
    let (from, to) = (plain(), encrypted());
    let made = series(&from);
    let stop = Progress::default();
    stop.stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(to.store.copy_from(&from.store, &made, &stop).is_err());
    assert_eq!(to.store.snapshots().unwrap(), []);
    copy(&to, &from, &made[..1]);
    let copied = copy(&to, &from, &made);
    assert_eq!((copied.snapshots.len(), copied.already), (4, 1));
    assert!(copied.stored < 12 * BLOCK as u64, "{copied:?}");
}
