use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

fn counting(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 7) as u8).collect()
}

/// What every source promises, whatever it is made of.
fn contract(source: &dyn BlockSource, expected: &[u8]) {
    assert_eq!(source.len(), expected.len() as u64);
    for (offset, len) in [(0, expected.len()), (0, 0), (1, 3), (expected.len() - 1, 1)] {
        let mut buf = vec![0xaa; len];
        source.read_at(offset as u64, &mut buf).unwrap();
        assert_eq!(buf, expected[offset..offset + len]);
    }
    for (offset, len) in [(expected.len() as u64, 1), (expected.len() as u64 + 1, 0), (u64::MAX, 2)]
    {
        let error = source.read_at(offset, &mut vec![0; len]).unwrap_err();
        assert_eq!(error.kind(), Kind::OutOfBounds);
    }
    let mut at = 0;
    while at < source.len() {
        let extent = source.extent_at(at).unwrap();
        assert!(extent.len > 0 && at + extent.len <= source.len());
        if extent.hole {
            assert!(expected[at as usize..][..extent.len as usize].iter().all(|&byte| byte == 0));
        }
        at += extent.len;
    }
}

#[test]
fn sources_keep_the_contract() {
    let bytes = counting(100_000);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&bytes).unwrap();
    let memory: Arc<dyn BlockSource> = Arc::new(MemorySource::new(bytes.clone()));
    contract(&*memory, &bytes);
    contract(&FileSource::open(file.path()).unwrap(), &bytes);
    contract(&Window::new(Arc::clone(&memory), 4096, 50_000).unwrap(), &bytes[4096..54_096]);
    contract(&Pages::new(Arc::clone(&memory), Cache::new(0)), &bytes);
    contract(&FaultSource::new(memory, |_, _, _| None), &bytes);
}

#[test]
fn a_sparse_file_shows_its_holes() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(file.as_file(), &[1; 4096], 512 << 10).unwrap();
    let source = FileSource::open(file.path()).unwrap();
    let first = source.extent_at(0).unwrap();
    assert_eq!(first, Extent { len: 512 << 10, hole: true });
    let at = |offset| source.extent_at(offset);
    assert_eq!(seek_extent(1 << 20, 0, false, at).unwrap(), Some(512 << 10));
    assert_eq!(seek_extent(1 << 20, 516 << 10, false, at).unwrap(), None);
}

#[test]
fn a_seek_through_exbibytes_of_holes_ends() {
    let asked = std::cell::Cell::new(0u32);
    let at = |_| {
        asked.set(asked.get() + 1);
        Ok(Extent { len: 32 << 20, hole: true })
    };
    let data = seek_extent(1 << 61, 0, false, at).unwrap().unwrap();
    assert_eq!(data, u64::from(asked.get()) * (32 << 20));
    assert!(asked.get() <= 1 << 18);
}

#[test]
fn a_window_must_lie_within() {
    let memory: Arc<dyn BlockSource> = Arc::new(MemorySource::new(vec![0; 10]));
    assert!(Window::new(Arc::clone(&memory), 5, 5).is_ok());
    assert!(Window::new(Arc::clone(&memory), 5, 6).is_err());
    assert!(Window::new(memory, u64::MAX, 2).is_err());
}

#[test]
fn a_file_cut_short_is_an_error_not_zeros() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&counting(8192)).unwrap();
    let source = FileSource::open(file.path()).unwrap();
    file.as_file().set_len(4096).unwrap();
    source.read_at(0, &mut [0; 4096]).unwrap();
    let error = source.read_at(4000, &mut [0; 200]).unwrap_err();
    assert_eq!(error.kind(), Kind::Io);
    assert!(error.to_string().contains("cut short"), "{error}");
}

#[test]
fn many_who_want_one_unit_wait_for_one_load() {
    let cache = Cache::new(0);
    let key = Key(cache.owner(), 7);
    let loads = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let unit = cache
                    .get_or_load(key, || {
                        loads.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(std::time::Duration::from_millis(20));
                        Ok(Unit(vec![3; 10].into()))
                    })
                    .unwrap();
                assert_eq!(unit.0[..], [3; 10]);
            });
        }
    });
    assert_eq!(loads.into_inner(), 1);
}

#[test]
fn the_cache_stays_within_its_bound_and_forgets_failures() {
    let cache = Cache::new(Cache::MIN_CAPACITY);
    let owner = cache.owner();
    for id in 0..1000 {
        cache.get_or_load(Key(owner, id), || Ok(Unit(vec![0; 64 << 10].into()))).unwrap();
        assert!(cache.weight() <= cache.capacity());
    }
    let key = Key(owner, 5000);
    let failed = cache.get_or_load::<Unit>(key, || Err(Error::new(Kind::Io, "no")));
    assert_eq!(failed.unwrap_err().kind(), Kind::Io);
    assert_eq!(cache.get_or_load(key, || Ok(Unit([1].into()))).unwrap().0[..], [1]);
}

#[test]
fn pages_read_beside_damage() {
    let memory: Arc<dyn BlockSource> = Arc::new(MemorySource::new(counting(64 << 10)));
    let bad = |_, offset: u64, len: usize| {
        (offset < 512 && offset + len as u64 > 0).then_some(Fault::Errno(libc::EIO))
    };
    let pages = Pages::new(Arc::new(FaultSource::new(memory, bad)), Cache::new(0));
    assert!(pages.read_at(0, &mut [0; 10]).is_err());
    assert_eq!(pages.with(1024, 4, <[u8]>::to_vec).unwrap(), counting(64 << 10)[1024..1028]);
}
