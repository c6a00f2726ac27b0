//! Very many snapshots, of disks that share all they have.

use jiff::tz::TimeZone;
use rayon::prelude::*;

use super::*;
use crate::store::Keep;

/// Snapshots of one series.
const EACH: u64 = 100;

#[test]
fn very_many_snapshots() {
    let count = from_environment("STRATA_SCALE_SNAPSHOTS", 300).next_multiple_of(EACH);
    let place = TempDir::new().unwrap();
    let objects = Hollow::new(Folder::make(&place.path().join("store")).unwrap());
    let shared: Arc<dyn crate::store::objects::Objects> = Arc::clone(&objects) as _;
    let settings = Settings { block_size: 16 << 10, ..Settings::default() };
    let store = Store::init(Arc::clone(&shared), settings, None, &Cache::new(0)).unwrap();
    let disk = noise(1, 10 * super::super::BLOCK);
    let made = store.create(new("first", 1, &disk, None), &Progress::default()).unwrap();
    // 64 MiB, and what so many records are.
    let mut phases = Phases::new(&objects, (64 << 20) + count * 4000);
    (0..count).into_par_iter().for_each(|number| {
        let record = Record {
            series: format!("series{:04}", number / EACH),
            time: Timestamp::from_second((number % EACH * 86_400) as i64).unwrap(),
            parent: Some(made.id),
            source: "/var/lib/libvirt/images/machine.qcow2".to_owned(),
            ..made.record.clone()
        };
        put(&store, record);
    });
    phases.end("records written", count);
    let open = || Store::open(Arc::clone(&shared), &Cache::new(0), &Keyring::default()).unwrap();
    let again = open();
    phases.end("open", 1);
    let snapshots = again.snapshots().unwrap();
    phases.end("list", count);
    assert_eq!(snapshots.len() as u64, count + 1);
    let chosen = again.select("series0001@1970-02-01").unwrap().0;
    phases.end("one by series and time", 1);
    assert_eq!(chosen.record.time, Timestamp::from_second(31 * 86_400).unwrap());
    assert_eq!(again.select(&chosen.id.to_string()).unwrap().0, chosen);
    phases.end("one by its whole id", 1);
    let keep = Keep { last: 30, ..Keep::default() };
    let decisions = keep.decide(snapshots, &TimeZone::UTC).unwrap();
    phases.end("what prune decides", count);
    let gone: Vec<Id> = decisions
        .iter()
        .filter(|decision| decision.reasons.is_empty())
        .map(|decision| decision.snapshot.id)
        .collect();
    assert_eq!(gone.len() as u64, count / EACH * (EACH - 30));
    gone.iter().for_each(|id| again.remove(*id).unwrap());
    phases.end("snapshots removed", gone.len() as u64);
    let how = Collect { grace: Duration::ZERO, unused: 10, dry_run: false };
    let done = again.collect(&how, &|| {}).unwrap();
    phases.end("collect", count);
    assert_eq!((done.snapshots, done.removed_packs), (count - gone.len() as u64 + 1, 0));
    assert_eq!(open().snapshots().unwrap().len() as u64, done.snapshots);
}
