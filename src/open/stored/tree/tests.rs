use super::*;
use crate::block::{Cache, MemorySource};
use crate::open::stored::Options;
use crate::policy::Policy;
use crate::store::objects::{BucketOptions, Location};
use crate::store::{DiskSource, NewDisk, NewSnapshot, Progress, Reading, Settings};

struct Place {
    _dir: tempfile::TempDir,
    store: Store,
    tree: StoreTree,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(0);
        let path = dir.path().join("st");
        let at = Location::parse(path.as_os_str()).unwrap();
        let store = Store::init(
            at.make(&BucketOptions::default()).unwrap(),
            Settings::default(),
            None,
            &cache,
        )
        .unwrap();
        let opener = Arc::new(Opener::new(Policy::default(), Arc::clone(&cache)));
        let reference = Reference { path: path.clone(), snapshot: None };
        let opened = super::super::store(&at, &Options::default(), &cache).unwrap();
        let tree = StoreTree::new(&opener, &reference, opened, View::Disk).unwrap();
        Self { _dir: dir, store, tree }
    }

    /// A snapshot of disks that are filled with `fill`.
    fn add(&self, series: &str, second: i64, fill: u8, disks: &[&str]) -> crate::store::Id {
        let disk = |name: &&str| NewDisk {
            name: (*name).to_owned(),
            source: DiskSource::Image(Arc::new(MemorySource::new(vec![fill; 8192]))),
            layers: Vec::new(),
        };
        let new = NewSnapshot {
            sign: None,
            reading: Reading::default(),
            series: series.to_owned(),
            time: jiff::Timestamp::new(second, i32::from(fill)).unwrap(),
            tags: Vec::new(),
            parent: None,
            source: String::new(),
            host: String::new(),
            disks: disks.iter().map(disk).collect(),
        };
        let made = self.store.create(new, &Progress::default()).unwrap().id;
        self.tree.look().unwrap();
        made
    }

    fn node(&self, path: &str) -> Option<NodeId> {
        let names = path.split('/').filter(|name| !name.is_empty());
        let mut node = self.tree.root();
        for name in names {
            node = self.tree.lookup(node, name.as_bytes()).unwrap()?;
        }
        Some(node)
    }

    fn names(&self, path: &str) -> Vec<String> {
        let mut names = Vec::new();
        let node = self.node(path).unwrap();
        // In pieces of two.
        let mut after = 0;
        loop {
            let mut room = 2;
            self.tree
                .read_dir(node, after, &mut |entry| {
                    if room == 0 {
                        return false;
                    }
                    room -= 1;
                    after = entry.next;
                    names.push(String::from_utf8(entry.name.to_vec()).unwrap());
                    true
                })
                .unwrap();
            if room > 0 {
                return names;
            }
        }
    }

    fn first(&self, path: &str) -> u8 {
        let mut byte = [0];
        assert_eq!(self.tree.read_at(self.node(path).unwrap(), 0, &mut byte).unwrap(), 1);
        byte[0]
    }
}

#[test]
fn snapshots_come_and_go_and_keep_their_names() {
    let place = Place::new();
    assert_eq!(place.names("/"), [""; 0]);
    let first = place.add("web", 0, 1, &["disk"]);
    let same = place.add("web", 0, 2, &["disk"]);
    let other = format!("1970-01-01T00:00:00Z-{}", &same.to_string()[..12]);
    assert_eq!(place.names("/"), ["web"]);
    assert_eq!(place.names("web"), ["latest", "1970-01-01T00:00:00Z", &other]);
    let latest = |path: &str| place.tree.read_link(place.node(path).unwrap()).unwrap();
    assert_eq!(latest("web/latest"), other.as_bytes());
    let link = place.node("web/latest").unwrap();
    place.add("web", 100, 3, &["disk"]);
    // Another node: what is remembered of the old one is never asked for again.
    assert_ne!(place.node("web/latest").unwrap(), link);
    assert_eq!(latest("web/latest"), b"1970-01-01T00:01:40Z");
    assert_eq!(place.first("web/1970-01-01T00:00:00Z/disk.img"), 1);
    assert_eq!(place.first(&format!("web/{other}/disk.img")), 2);

    // One that is open stays readable; the other keeps its name; one in the past does not move the link.
    let open = place.node("web/1970-01-01T00:00:00Z/disk.img").unwrap();
    place.store.remove(first).unwrap();
    place.add("web", 50, 4, &["disk"]);
    assert_eq!(place.node("web/1970-01-01T00:00:00Z"), None);
    assert_eq!(latest("web/latest"), b"1970-01-01T00:01:40Z");
    assert!(place.names("web").contains(&other));
    let mut byte = [0];
    assert_eq!(place.tree.read_at(open, 4096, &mut byte).unwrap(), 1);
    assert_eq!(byte, [1]);

    let db = place.add("db", 7, 5, &["root", "data"]);
    assert_eq!(place.names("db/1970-01-01T00:00:07Z"), ["root", "data"]);
    assert_eq!(place.first("db/1970-01-01T00:00:07Z/data/disk.img"), 5);
    place.store.remove(db).unwrap();
    place.tree.look().unwrap();
    assert_eq!(place.names("/"), ["web"]);
}

#[test]
fn few_of_many_are_open_and_numbers_stay() {
    let place = Place::new();
    for nth in 0..70 {
        place.add("web", i64::from(nth), nth + 1, &["disk"]);
    }
    let path = |nth: u8| {
        let time = jiff::Timestamp::from_second(i64::from(nth)).unwrap();
        format!("web/{time}/disk.img")
    };
    let before = place.node(&path(0)).unwrap();
    for nth in 0..70 {
        assert_eq!(place.first(&path(nth)), nth + 1);
    }
    let open = || place.tree.disks.read().iter().filter(|d| d.tree.read().is_some()).count();
    assert_eq!(open(), MOST_OPEN);
    assert_eq!(place.node(&path(0)).unwrap(), before);
    let mut byte = [0];
    place.tree.read_at(before, 0, &mut byte).unwrap();
    assert_eq!((byte, open()), ([1], MOST_OPEN));
}

#[test]
fn numbers_are_packed() {
    for node in [0, 5, (1 << FIRST_BITS) - 1, 1 << INNER_BITS, 0x7f << INNER_BITS | 0xff_ffff_ffff]
    {
        let packed = pack(NodeId(node)).unwrap();
        assert!(packed >> INNER_BITS == 0);
        assert_eq!(unpack(packed), NodeId(node));
    }
    assert!(pack(NodeId(1 << FIRST_BITS)).is_err());
    assert!(pack(NodeId(0x80 << INNER_BITS)).is_err());
}
