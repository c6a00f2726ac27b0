//! Disks of a store compared by their maps.

use std::sync::atomic::{AtomicU64, Ordering};

use super::super::objects::{Folder, Listed, Object, Objects, Sort};
use super::super::record::DiskRecord;
use super::*;

/// Counts what is read of packs.
#[derive(Debug)]
struct Counted(Folder, AtomicU64);

impl Objects for Counted {
    fn name(&self) -> String {
        self.0.name()
    }

    fn len(&self, object: Object) -> Result<u64> {
        self.0.len(object)
    }

    fn read_at(&self, object: Object, offset: u64, buf: &mut [u8]) -> Result<()> {
        if matches!(object, Object::Pack(_)) {
            self.1.fetch_add(1, Ordering::Relaxed);
        }
        self.0.read_at(object, offset, buf)
    }

    fn put(&self, object: Object, parts: &[&[u8]]) -> Result<()> {
        self.0.put(object, parts)
    }

    fn list(&self, sort: Sort) -> Result<Vec<Listed>> {
        self.0.list(sort)
    }

    fn remove(&self, object: Object) -> Result<()> {
        self.0.remove(object)
    }

    fn clear_unfinished(&self, then: std::time::SystemTime) -> Result<u64> {
        self.0.clear_unfinished(then)
    }
}

type Told = Vec<(std::ops::Range<u64>, bool)>;

fn differences(store: &Store, before: &DiskRecord, after: &DiskRecord) -> Told {
    let mut told = Vec::new();
    store
        .differences(before, after, &mut |range, zeros| {
            told.push((range, zeros));
            Ok(())
        })
        .unwrap();
    told
}

/// The same by looking at every block.
fn naive(before: &[u8], after: &[u8]) -> Told {
    let both = before.len().min(after.len());
    let end = before.len().max(after.len());
    let mut told = Told::new();
    let mut add = |range: std::ops::Range<usize>, zeros: bool| {
        let range = range.start as u64..range.end as u64;
        match told.last_mut() {
            _ if range.is_empty() => {}
            Some((last, kind)) if last.end == range.start && *kind == zeros => last.end = range.end,
            _ => told.push((range, zeros)),
        }
    };
    let block = |disk: &[u8], at: usize| {
        let mut block = disk.get(at..disk.len().min(at + BLOCK)).unwrap_or_default().to_vec();
        block.resize(BLOCK, 0);
        block
    };
    let zeros = vec![0; BLOCK];
    for at in (0..end).step_by(BLOCK) {
        let (old, new) = (block(before, at), block(after, at));
        let to = (at + BLOCK).min(end);
        if old != new {
            add(at..to.min(both).max(at), new == zeros);
        }
        add(at.max(both)..to.max(both), new == zeros || at.max(both) >= after.len());
    }
    told
}

#[test]
fn differences_are_those_of_the_blocks() {
    let place = Place::new();
    // Up to three levels' worth of sizes would take long: one page, and two.
    let sizes =
        [0, 1, BLOCK, 3 * BLOCK + 5, 3 * BLOCK + 9, 1024 * BLOCK, 1024 * BLOCK + 1, 1500 * BLOCK];
    let mut disks = Vec::new();
    for (nth, &size) in sizes.iter().enumerate() {
        for seed in 0..2_u64 {
            let mut disk = vec![0; size];
            for at in 0..size.div_ceil(BLOCK) {
                // Runs that are the same in all, differ, or are zeros.
                let fill = match (at / 7 + at / 300) % 4 {
                    0 => 0,
                    1 => 9,
                    2 => (seed * 40) as u8,
                    _ => (seed + nth as u64 % 2) as u8,
                };
                let end = ((at + 1) * BLOCK).min(size);
                disk[at * BLOCK..end].fill(fill);
            }
            let record = place.create("x", 1, &disk, None).record.disks[0].clone();
            disks.push((disk, record));
        }
    }
    for (before, old) in &disks {
        for (after, new) in &disks {
            let told = differences(&place.store, old, new);
            assert_eq!(told, naive(before, after), "{} and {}", before.len(), after.len());
        }
    }
}

#[test]
fn equal_pages_and_all_blocks_are_left_unread() {
    let place = Place::new();
    // Eight pages of level 0, all with other blocks.
    let mut disk = vec![0; 8 * 1024 * BLOCK];
    for (nth, block) in disk.chunks_mut(BLOCK).enumerate() {
        block[..8].copy_from_slice(&(nth as u64 + 1).to_le_bytes());
    }
    let before = place.create("x", 1, &disk, None).record.disks[0].clone();
    disk[5000 * BLOCK] ^= 1;
    let after = place.create("x", 2, &disk, None).record.disks[0].clone();
    let counted = Arc::new(Counted(Folder::new(&place.path()), AtomicU64::new(0)));
    let objects: Arc<dyn Objects> = Arc::<Counted>::clone(&counted);
    let store = Store::open(objects, &Cache::new(0), &Keyring::default()).unwrap();
    assert_eq!(differences(&store, &before, &before), []);
    assert_eq!(counted.1.load(Ordering::Relaxed), 0);
    let start = 5000 * BLOCK as u64;
    let told = differences(&store, &before, &after);
    assert_eq!(told, [(start..start + BLOCK as u64, false)]);
    // Of each the root and one page below it.
    assert_eq!(counted.1.load(Ordering::Relaxed), 4);
}

/// Disks with one block each, and nothing else.
#[test]
fn what_is_not_there_takes_no_time() {
    #[derive(Debug)]
    struct Sparse(u64);

    impl BlockSource for Sparse {
        fn len(&self) -> u64 {
            16 << 30
        }

        fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
            buf.fill(0);
            if (offset..offset + buf.len() as u64).contains(&self.0) {
                buf[(self.0 - offset) as usize] = 1;
            }
            Ok(())
        }

        fn extent_at(&self, offset: u64) -> Result<Extent> {
            let end = if offset <= self.0 { self.0 } else { self.len() };
            let hole = offset != self.0;
            Ok(Extent { len: if hole { end - offset } else { 1 }, hole })
        }

        fn origin_at(&self, offset: u64) -> Result<Origin> {
            Ok(Origin::unknown(self.len() - offset))
        }

        fn whole_file(&self) -> Option<&std::fs::File> {
            None
        }
    }

    let place = Place::new();
    let made = [5 << 30, 6 << 30].map(|at| {
        let source = DiskSource::Image(Arc::new(Sparse(at)));
        let disks = vec![NewDisk { name: "disk".to_owned(), source, layers: vec![] }];
        let new = NewSnapshot { disks, ..new("x", 1, &[], None) };
        place.store.create(new, &Progress::default()).unwrap().record.disks[0].clone()
    });
    let block = BLOCK as u64;
    assert_eq!(
        differences(&place.store, &made[0], &made[1]),
        [(5 << 30..(5 << 30) + block, true), (6 << 30..(6 << 30) + block, false)]
    );
}
