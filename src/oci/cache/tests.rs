use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use super::*;

fn cache(limit: u64) -> (tempfile::TempDir, LayerCache) {
    let dir = tempfile::tempdir().unwrap();
    let cache = LayerCache::open(dir.path().join("layers"), limit).unwrap();
    (dir, cache)
}

fn add(cache: &LayerCache, key: &str, part: Part, bytes: usize) {
    let new = cache.begin().unwrap();
    new.file().write_all(&vec![1; bytes]).unwrap();
    cache.keep(new, key, part).unwrap();
}

fn keys(cache: &LayerCache) -> Vec<String> {
    cache.list().unwrap().into_iter().map(|kept| kept.key).collect()
}

fn used(cache: &LayerCache, key: &str, seconds_ago: u64) {
    let (_, file) = cache.find(key, Part::Index).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(seconds_ago)).unwrap();
}

#[test]
fn what_was_used_longest_ago_makes_room() {
    let (_dir, cache) = cache(12 << 10);
    for (key, ago) in [("a", 30), ("b", 20), ("c", 10)] {
        add(&cache, key, Part::Index, 4096);
        used(&cache, key, ago);
    }
    assert_eq!(keys(&cache), ["a", "b", "c"]);
    // Now it is the one used last.
    assert!(cache.find("a", Part::Index).is_some());
    add(&cache, "d", Part::Blob, 4096);
    assert_eq!(keys(&cache), ["c", "a", "d"]);
    assert!(cache.find("b", Part::Index).is_none());
}

#[test]
fn pruning_goes_by_size_and_by_age() {
    let (_dir, cache) = cache(u64::MAX);
    for (key, ago) in [("a", 300), ("b", 200), ("c", 0)] {
        add(&cache, key, Part::Index, 4096);
        used(&cache, key, ago);
    }
    let pruned = cache.prune(u64::MAX, Some(Duration::from_secs(250))).unwrap();
    assert_eq!(
        (pruned, keys(&cache)),
        (Pruned { files: 1, bytes: 4096 }, vec!["b".into(), "c".into()])
    );
    assert_eq!(cache.prune(0, None).unwrap(), Pruned { files: 2, bytes: 8192 });
    assert_eq!(keys(&cache), [""; 0]);
}

#[test]
fn nothing_unfinished_is_seen_or_left() {
    let (_dir, cache) = cache(u64::MAX);
    let files = || std::fs::read_dir(cache.dir()).unwrap().count();
    let new = cache.begin().unwrap();
    new.file().write_all(b"half").unwrap();
    assert_eq!((keys(&cache).len(), files()), (0, 1));
    // It is somebody's.
    cache.prune(0, None).unwrap();
    assert_eq!(files(), 1);
    drop(new);
    assert_eq!(files(), 0);
    // A killed process has left it: nobody holds its lock.
    std::fs::write(cache.dir().join(".new-1-1"), b"half").unwrap();
    cache.prune(u64::MAX, None).unwrap();
    assert_eq!(files(), 0);
}

#[test]
fn what_is_open_outlives_its_removal() {
    let (_dir, cache) = cache(u64::MAX);
    add(&cache, "a", Part::Spool, 4096);
    let (_, file) = cache.find("a", Part::Spool).unwrap();
    cache.prune(0, None).unwrap();
    assert!(cache.find("a", Part::Spool).is_none());
    assert_eq!(file.metadata().unwrap().len(), 4096);
}

#[test]
fn a_folder_that_others_write_is_refused() {
    let (dir, cache) = cache(u64::MAX);
    assert_eq!(cache.dir().metadata().unwrap().permissions().mode() & 0o777, 0o700);
    let open = dir.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(LayerCache::open(open, 0).unwrap_err().kind(), Kind::Refused);
}

#[test]
fn neither_links_nor_strangers_are_found() {
    let (dir, cache) = cache(u64::MAX);
    std::fs::write(dir.path().join("secret"), b"s").unwrap();
    std::os::unix::fs::symlink(dir.path().join("secret"), cache.dir().join("a.index")).unwrap();
    std::fs::write(cache.dir().join("README"), b"what is this").unwrap();
    assert!(cache.find("a", Part::Index).is_none());
    cache.prune(0, None).unwrap();
    assert!(cache.dir().join("README").exists() && dir.path().join("secret").exists());
}

#[test]
fn where_it_is() {
    let dir = |set: &[(&str, &str)], home: Option<&str>| {
        let get = |name: &str| {
            set.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        };
        dir_of(get, || home.map(PathBuf::from)).map(|dir| dir.display().to_string())
    };
    let all = [
        ("STRATA_CACHE_DIR", "/s"),
        ("XDG_CACHE_HOME", "/x"),
        ("HOME", "/h"),
        ("CACHE_DIRECTORY", "/var/cache/one:/var/cache/two"),
    ];
    let wanted = [
        "/s",
        "/x/stratafs",
        "/h/.cache/stratafs",
        "/var/cache/one/stratafs",
        "/p/.cache/stratafs",
    ];
    for (from, wanted) in wanted.iter().enumerate() {
        assert_eq!(dir(&all[from..], Some("/p")).as_deref(), Some(*wanted));
    }
    assert_eq!(dir(&[], None), None);
    // What is empty or relative says nothing.
    assert_eq!(dir(&[("XDG_CACHE_HOME", "x"), ("HOME", ""), ("CACHE_DIRECTORY", "")], None), None);
}

#[test]
fn homes_that_are_there() {
    let text = b"root:x:0:0:root:/root:/bin/bash\n# none\nbroken:x\n\
        tmp:x:1000:1000:A, B:/tmp:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n";
    assert_eq!(home_of(1000, text), Some(PathBuf::from("/tmp")));
    assert_eq!(home_of(65534, text), None);
    assert_eq!(home_of(7, text), None);
}

#[test]
fn what_is_begun_is_not_taken_for_what_was_left() {
    let dir = tempfile::tempdir().unwrap();
    let cache = LayerCache::open(dir.path().join("cache"), u64::MAX).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let cache = &cache;
            scope.spawn(move || {
                for round in 0..300 {
                    let new = cache.begin().unwrap();
                    // Each of these clears what nobody is at work on.
                    cache.keep(new, &format!("{thread}-{}", round % 7), Part::Index).unwrap();
                }
            });
        }
    });
    assert_eq!(cache.list().unwrap().len(), 4 * 7);
}
