//! What every place for objects must do.

use std::sync::Arc;

use stratafs::error::Kind;
use stratafs::store::Id;
use stratafs::store::objects::{
    Bucket, BucketOptions, Cached, Folder, Location, Object, Objects, PieceCache, Sort,
};

use super::ceph::{KEY, SECRET};
use super::noise;

/// Holds a place where nothing lies yet against the contract of `Objects`.
fn objects(objects: &Arc<dyn Objects>) {
    let name = objects.name();
    let id = |seed: u64| Id(*blake3::hash(&seed.to_le_bytes()).as_bytes());
    let small = noise(1, 1000);
    let missing = objects.read_at(Object::Config, 0, &mut [0; 10]).unwrap_err();
    assert_eq!(missing.kind(), Kind::NotFound, "{name}: {missing}");
    assert_eq!(objects.len(Object::Pack(id(1))).unwrap_err().kind(), Kind::NotFound);
    for sort in [Sort::Packs, Sort::Indexes, Sort::Snapshots] {
        assert_eq!(objects.list(sort).unwrap(), [], "{name}");
    }
    objects.put(Object::Config, &[&small]).unwrap();

    // One whose length is more than a request takes, and one of two parts.
    let large = noise(2, 70 << 20);
    objects.put(Object::Pack(id(2)), &[&large]).unwrap();
    objects.put(Object::Pack(id(3)), &[&small[..300], &small[300..]]).unwrap();
    objects.put(Object::Pack(id(3)), &[&small]).unwrap();
    objects.put(Object::Index(id(4)), &[&small]).unwrap();
    objects.put(Object::Snapshot(id(5)), &[&small]).unwrap();
    assert_eq!(objects.len(Object::Pack(id(2))).unwrap(), large.len() as u64, "{name}");
    let mut listed = objects.list(Sort::Packs).unwrap();
    listed.sort_by_key(|listed| listed.len);
    let found: Vec<_> = listed.iter().map(|listed| (listed.id, listed.len)).collect();
    assert_eq!(found, [(id(3), 1000), (id(2), large.len() as u64)], "{name}");
    let age = listed[0].written.elapsed().unwrap_or_default();
    assert!(age.as_secs() < 600, "{name}: {age:?}");
    assert_eq!(objects.list(Sort::Indexes).unwrap().len(), 1);

    // Any range reads as it was written.
    for at in 0..60_u64 {
        let drawn = noise(100 + at, 8);
        let drawn = u64::from_le_bytes(drawn.try_into().unwrap()) % (large.len() as u64 - 700_000);
        let len = (drawn % 1000 * (at % 7) * 100) as usize;
        let mut buf = vec![0; len];
        objects.read_at(Object::Pack(id(2)), drawn, &mut buf).unwrap();
        assert!(buf == large[drawn as usize..][..len], "{name}: {len} at {drawn}");
    }
    // One behind the other, from several threads.
    std::thread::scope(|scope| {
        for thread in 0..4_usize {
            let large = &large;
            scope.spawn(move || {
                let mut buf = vec![0; 100_000];
                for at in (thread * (8 << 20)..(thread + 2) * (8 << 20)).step_by(buf.len()) {
                    objects.read_at(Object::Pack(id(2)), at as u64, &mut buf).unwrap();
                    assert!(buf == large[at..][..buf.len()]);
                }
            });
        }
    });
    let mut whole = vec![0; large.len()];
    objects.read_at(Object::Pack(id(2)), 0, &mut whole).unwrap();
    assert!(whole == large, "{name}");
    for (offset, len) in [(999, 2), (1000, 1), (5000, 10), (1 << 40, 5)] {
        let error = objects.read_at(Object::Pack(id(3)), offset, &mut vec![0; len]).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{name}: {len} at {offset}: {error}");
    }
    objects.remove(Object::Snapshot(id(5))).unwrap();
    objects.remove(Object::Snapshot(id(5))).unwrap();
    let gone = objects.read_at(Object::Snapshot(id(5)), 0, &mut [0; 10]).unwrap_err();
    assert_eq!(gone.kind(), Kind::NotFound, "{name}: {gone}");
    assert_eq!(objects.list(Sort::Snapshots).unwrap(), [], "{name}");
}

#[test]
fn of_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    objects(&(Arc::new(Folder::make(&dir.path().join("st")).unwrap()) as Arc<dyn Objects>));
}

/// Of a bucket, and of one whose pieces are kept.
pub(crate) fn of_a_bucket(endpoint: &str) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("credentials"),
        format!("[test]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"),
    )
    .unwrap();
    let options = BucketOptions {
        endpoint: Some(endpoint.to_owned()),
        profile: Some("test".to_owned()),
        credentials: Some(dir.path().join("credentials")),
        ..BucketOptions::default()
    };
    let bucket = |prefix: &str| Bucket::make("bucket", prefix, &options).unwrap();
    objects(&(Arc::new(bucket("bare/in a folder")) as Arc<dyn Objects>));
    let disk = PieceCache::open(&dir.path().join("pieces"), 64 << 20).unwrap();
    objects(&(Arc::new(Cached::new(bucket("kept"), Some(disk))) as Arc<dyn Objects>));
    objects(&(Arc::new(Cached::new(bucket("passing"), None)) as Arc<dyn Objects>));
    let full = Location::parse("s3://bucket/kept".as_ref()).unwrap().make(&options).unwrap_err();
    assert_eq!(full.kind(), Kind::NotEmpty, "{full}");
}
