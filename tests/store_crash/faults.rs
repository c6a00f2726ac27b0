//! Every call that changes files fails in turn: what was asked for then is not done, or is done for good, and nothing
//! that was there suffers.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use stratafs::error::{Error, Kind, Result};
use stratafs::store::objects::{Files, Folder, Host};
use stratafs::store::{Progress, Snapshot};

use crate::recorded::{Call, Recorded};
use crate::rng::Rng;
use crate::session::{
    BLOCK, Contents, all_whole, files, init, is_unfinished, new, now, open, pass, secret,
};

/// A store with snapshots, one of which has left some room behind.
struct Place {
    dir: tempfile::TempDir,
    contents: Contents,
    snapshots: Vec<Snapshot>,
}

fn disk(seeds: &[u64]) -> Vec<u8> {
    seeds.iter().flat_map(|&seed| Rng(seed).bytes(BLOCK)).collect()
}

/// What is made in the middle of a fault.
const NEXT: i64 = 50;

fn place() -> Place {
    let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let path = dir.path().join("st");
    let store = init(&path, Arc::new(Host), Some(1)).unwrap();
    let mut contents = Contents::new();
    let mut snapshots: Vec<Snapshot> = Vec::new();
    for (second, seeds) in [(1, [1, 2, 3, 4]), (2, [1, 2, 5, 6]), (3, [7, 8, 9, 10])] {
        let new = new(second, &disk(&seeds), None);
        contents.insert(new.time, disk(&seeds));
        snapshots.push(store.create(new, &Progress::default()).unwrap());
    }
    store.remove(snapshots.remove(2).id).unwrap();
    store.remove(snapshots.remove(1).id).unwrap();
    let next = new(NEXT, &[], None);
    contents.insert(next.time, disk(&[1, 20, 21, 22]));
    Place { dir, contents, snapshots }
}

/// What is done while something fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Create,
    Tag,
    Remove,
    Collect,
    Key,
    Copy,
}

impl Work {
    const ALL: [Self; 6] =
        [Self::Create, Self::Tag, Self::Remove, Self::Collect, Self::Key, Self::Copy];

    fn run(self, place: &Place, files: Arc<dyn Files>) -> Result<()> {
        let path = place.dir.path().join("st");
        match self {
            Self::Copy => {
                let from = open(&path, Arc::new(Host), Some(1))?;
                let to = open(&place.dir.path().join("to"), files, Some(1))?;
                to.copy_from(&from, &place.snapshots, &Progress::default()).map(drop)
            }
            Self::Create => {
                let store = open(&path, files, Some(1))?;
                let next = new(NEXT, &disk(&[1, 20, 21, 22]), place.snapshots.last());
                store.create(next, &Progress::default()).map(drop)
            }
            Self::Tag => {
                let store = open(&path, files, Some(1))?;
                store.tag(&place.snapshots[0], vec!["t".to_owned()], None).map(drop)
            }
            Self::Remove => open(&path, files, Some(1))?.remove(place.snapshots[0].id),
            Self::Collect => open(&path, files, Some(1))?.collect(&now(0), &|| {}).map(drop),
            Self::Key => open(&path, files, Some(1))?.add_key(&secret(2), "second").map(drop),
        }
    }
}

/// What looks at a place after one of so many calls failed.
type Look<'a> = &'a dyn Fn(&Place, std::result::Result<(), Error>, u64);

/// Does `work` with a fault at each of its calls in turn; how many there were. `fails` says how a call fails from the
/// chosen one on.
fn at_each_call(work: Work, fails: fn(u64, Call) -> Option<Errno>, look: Look<'_>) -> u64 {
    let mut at = 0;
    loop {
        let place = place();
        if work == Work::Copy {
            let to = place.dir.path().join("to");
            let objects = Folder::make(&to).unwrap();
            open(&place.dir.path().join("st"), Arc::new(Host), Some(1))
                .unwrap()
                .twin(&objects)
                .unwrap();
        }
        let recorded = Recorded::failing(Box::new(move |number, call, path: &Path| {
            // That somebody is at work is not for keeps.
            let is_lease = path.parent().is_some_and(|dir| dir.ends_with("leases"));
            number.checked_sub(at).filter(|_| !is_lease).and_then(|since| fails(since, call))
        }));
        let done = work.run(&place, recorded.clone());
        let (calls, failed) = recorded.counted();
        if at >= calls {
            assert!(done.is_ok(), "{work:?}: {done:?}");
            return calls;
        }
        if failed > 0 {
            look(&place, done, at);
        }
        at += 1;
    }
}

/// Fails unless earlier snapshots are whole, and what `work` was to do is done or not, as it said, and can be done now.
fn look(work: Work, place: &Place, done: std::result::Result<(), Error>, at: u64, kind: Kind) {
    let told = format!("{work:?}, call {at}: {done:?}");
    if let Err(error) = &done {
        assert_eq!(error.kind(), kind, "{told}");
        let line = error.to_string();
        assert!(line.contains("/st/") || line.contains("/to/"), "{told}");
        assert!(!line.contains('\n'), "{told}");
    }
    let path = place.dir.path().join("st");
    for dir in [&path, &place.dir.path().join("to")] {
        let left = if dir.exists() { files(dir) } else { vec![] };
        let left: Vec<_> = left.into_iter().filter(|path| is_unfinished(path)).collect();
        assert!(left.is_empty(), "{told}: {left:?}");
    }
    let store = open(&path, Arc::new(Host), Some(1)).unwrap();
    let mut snapshots = store.snapshots().unwrap();
    all_whole(&store, &snapshots, &place.contents);
    let is_there = |it: &Snapshot| snapshots.iter().any(|other| other.id == it.id);
    let has_new = snapshots.iter().any(|it| !place.snapshots.contains(it));
    match work {
        Work::Create => {
            assert_eq!(has_new, done.is_ok(), "{told}");
            assert!(place.snapshots.iter().all(is_there), "{told}");
        }
        // The new record comes first, and if removing the other one fails both may be there.
        Work::Tag => assert!(has_new || place.snapshots.iter().all(is_there), "{told}"),
        Work::Remove => assert!(done.is_err() || !place.snapshots.iter().any(is_there), "{told}"),
        Work::Collect => assert!(place.snapshots.iter().all(is_there), "{told}"),
        Work::Key => {
            let is_key = open(&path, Arc::new(Host), Some(2)).is_ok();
            assert_eq!(is_key, done.is_ok(), "{told}");
        }
        Work::Copy => {
            let to = open(&place.dir.path().join("to"), Arc::new(Host), Some(1)).unwrap();
            let there = to.snapshots().unwrap();
            assert_eq!(there.len() == place.snapshots.len(), done.is_ok(), "{told}");
            all_whole(&to, &there, &place.contents);
        }
    }
    // And once more, on a disk that does not fail.
    if done.is_err() {
        pass(&path);
        match work.run(place, Arc::new(Host)) {
            Err(error) if work == Work::Tag => assert_eq!(error.kind(), Kind::NotFound),
            again => again.unwrap(),
        }
        snapshots = store.snapshots().unwrap();
        all_whole(&open(&path, Arc::new(Host), Some(1)).unwrap(), &snapshots, &place.contents);
    }
    pass(&path);
    let store = open(&path, Arc::new(Host), Some(1)).unwrap();
    let done = store.collect(&now(0), &|| {}).unwrap();
    let usage = store.usage().unwrap();
    assert_eq!(usage.pack_bytes, done.needed_bytes + 48 * usage.packs, "{told}");
    all_whole(&store, &store.snapshots().unwrap(), &place.contents);
}

#[test]
fn a_failed_fsync_is_told_and_nothing_is_done() {
    for work in Work::ALL {
        let told = AtomicBool::new(false);
        let fails = |since: u64, call: Call| {
            (since == 0 && matches!(call, Call::Sync | Call::SyncDir)).then_some(Errno::IO)
        };
        let calls = at_each_call(work, fails, &|place, done, at| {
            told.fetch_or(done.is_err(), Ordering::Relaxed);
            look(work, place, done, at, Kind::Io);
        });
        assert!(told.into_inner(), "{work:?}");
        println!("{work:?}: {calls} calls");
    }
}

#[test]
fn a_full_disk_is_told_and_nothing_is_left_behind() {
    for work in Work::ALL.into_iter().filter(|work| *work != Work::Remove) {
        let told = AtomicBool::new(false);
        // From there on there is no room at all.
        let fails = |_since: u64, call: Call| {
            matches!(call, Call::Create | Call::Write).then_some(Errno::NOSPC)
        };
        at_each_call(work, fails, &|place, done, at| {
            told.fetch_or(done.is_err(), Ordering::Relaxed);
            look(work, place, done, at, Kind::NoSpace);
        });
        assert!(told.into_inner(), "{work:?}");
    }
}

#[test]
fn any_other_call_may_fail() {
    for work in Work::ALL {
        let fails = |since: u64, call: Call| {
            (since == 0 && !matches!(call, Call::Sync | Call::SyncDir)).then_some(Errno::IO)
        };
        at_each_call(work, fails, &|place, done, at| look(work, place, done, at, Kind::Io));
    }
}

/// Beside the config it used to stay.
#[test]
fn what_is_unfinished_goes_wherever_it_lies() {
    let place = place();
    let path = place.dir.path().join("st");
    for dir in [".", "packs/00", "index", "snapshots", "condemned"] {
        std::fs::write(path.join(dir).join(".new-1-0"), "x").unwrap();
    }
    pass(&path);
    open(&path, Arc::new(Host), Some(1)).unwrap().collect(&now(0), &|| {}).unwrap();
    assert!(!files(&path).iter().any(|path| is_unfinished(path)));
}

/// A store is made, or is none.
#[test]
fn a_store_that_cannot_be_made_is_none() {
    for at in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("above/st");
        let fails = move |number: u64, _: Call, _: &Path| (number == at).then_some(Errno::IO);
        let recorded = Recorded::failing(Box::new(fails));
        let made = init(&path, recorded.clone(), Some(1));
        if recorded.counted().1 == 0 {
            made.unwrap();
            assert!(at > 10, "only {at} calls");
            break;
        }
        assert_eq!(made.unwrap_err().kind(), Kind::Io);
        assert!(!path.join("config").exists(), "call {at}");
        assert!(open(&path, Arc::new(Host), Some(1)).is_err());
    }
}
