//! What the model found, each by itself.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use stratafs::block::Cache;
use stratafs::store::objects::{Object, Objects, Sort};
use stratafs::store::{
    Collect, DiskSource, Keyring, NewDisk, NewSnapshot, Progress, Reading, Settings, Snapshot,
    Store,
};

use crate::disks::{PIECE, Plain, PlainSource};
use crate::places::{Event, Ground, Memory};

fn init() -> (Arc<dyn Objects>, Arc<Store>) {
    let objects: Arc<dyn Objects> = Arc::new(Memory::default());
    let settings = Settings { block_size: PIECE as u32, level: 1 };
    Store::init(Arc::clone(&objects), settings, None, &Cache::new(0)).unwrap();
    let store = open(&objects);
    (objects, store)
}

fn open(objects: &Arc<dyn Objects>) -> Arc<Store> {
    open_process(Arc::clone(objects))
}

fn open_process(objects: Arc<dyn Objects>) -> Arc<Store> {
    Arc::new(Store::open(objects, &Cache::new(0), &Keyring::default()).unwrap())
}

fn create(store: &Store, second: i64, seeds: &[u8]) -> Snapshot {
    let plain = Plain { seeds: seeds.to_vec(), len: (seeds.len() * PIECE) as u64 };
    let source = Arc::new(PlainSource { plain, tells_holes: false });
    let new = NewSnapshot {
        series: "web".to_owned(),
        time: Timestamp::from_second(second).unwrap(),
        tags: vec![],
        parent: None,
        source: "plain".to_owned(),
        host: "here".to_owned(),
        sign: None,
        reading: Reading::default(),
        disks: vec![NewDisk {
            name: "disk".to_owned(),
            source: DiskSource::Image(source),
            layers: vec![],
        }],
    };
    store.create(new, &Progress::default()).unwrap()
}

/// A copy used to fail as soon as somebody merged the indexes of the store it was from.
#[test]
fn what_is_copied_may_be_merged_meanwhile() {
    for is_twin in [false, true] {
        let (from, writer) = init();
        let first = create(&writer, 1, &[1, 2]);
        let reader = open(&from);
        let index = from.list(Sort::Indexes).unwrap()[0].id;
        for second in 2..10 {
            create(&writer, second.into(), &[second + 10, second + 20]);
        }
        let is_there = from.len(Object::Index(index)).is_ok();
        assert!(!is_there, "this was to be merged");
        let to = match is_twin {
            false => init().0,
            true => {
                let to: Arc<dyn Objects> = Arc::new(Memory::default());
                reader.twin(&*to).unwrap();
                to
            }
        };
        let copied =
            open(&to).copy_from(&reader, std::slice::from_ref(&first), &Progress::default());
        assert_eq!(copied.unwrap().snapshots, [first.id]);
        assert_eq!(open(&to).snapshots().unwrap(), [first]);
    }
}

/// A snapshot used to fail if its index was merged right after it was written.
#[test]
fn a_new_index_may_be_merged_at_once() {
    // One that finds another at it waits for it.
    std::thread::scope(|scope| {
        for at in 0..60 {
            scope.spawn(move || merges_before(at));
        }
    });
}

fn merges_before(at: u64) {
    let (objects, store) = init();
    // One more index, and they are merged.
    for second in 1..8 {
        create(&store, second.into(), &[second, second + 10]);
    }
    let other = open(&objects);
    let collects = move || {
        let how = Collect { grace: Duration::ZERO, unused: 0, dry_run: false };
        drop(other.collect(&how, &|| {}));
    };
    let ground = Ground::new(Arc::clone(&objects));
    let process = ground.process(at, Event::Other(Box::new(collects)));
    let made = create(&open_process(process), 9, &[40, 41]);
    assert!(open(&objects).snapshots().unwrap().contains(&made));
}

/// Of a pack that was condemned and came to be needed, blobs used to be written anew that another pack had.
#[test]
fn a_rescued_pack_leaves_nothing_behind() {
    let mut rescued = 0;
    // The names of packs are random, and decide.
    for at in (0..30).chain(0..30) {
        let (objects, store) = init();
        let gone = create(&store, 1, &[2, 5]);
        store.remove(gone.id).unwrap();
        let other = open(&objects);
        let how = || Collect { grace: Duration::ZERO, unused: 0, dry_run: false };
        let event = move || {
            drop(other.collect(&how(), &|| {}));
            create(&other, 2, &[5]);
        };
        let ground = Ground::new(Arc::clone(&objects));
        let process = ground.process(at, Event::Other(Box::new(event)));
        create(&open_process(process), 3, &[2]);
        rescued += u64::from(!objects.list(Sort::Condemned).unwrap().is_empty());
        let done = open(&objects).collect(&how(), &|| {}).unwrap();
        let usage = open(&objects).usage().unwrap();
        assert_eq!(usage.pack_bytes, done.needed_bytes + 48 * usage.packs, "{at}: {done:?}");
    }
    assert!(rescued > 5, "{rescued}");
}
