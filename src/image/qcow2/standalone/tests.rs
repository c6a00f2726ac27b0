use std::sync::Arc;

use super::super::{compress, open};
use super::*;
use crate::block::{BlockSource, Cache, FileSource, FileStorage};
use crate::chain::{Chain, Layer};

/// Bytes that do not compress, or do.
fn bytes(seed: u64, len: usize, dense: bool) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    if !dense {
        bytes.iter_mut().skip(1).step_by(3).for_each(|byte| *byte = 7);
        bytes.iter_mut().skip(2).step_by(3).for_each(|byte| *byte = 7);
    }
    bytes
}

#[test]
fn what_was_put_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    for compression in [None, Some(Compression::Deflate), Some(Compression::Zstd)] {
        let path = dir.path().join(format!("{compression:?}"));
        std::fs::File::create_new(&path).unwrap();
        let storage = FileStorage::open(&path).unwrap();
        // Two L2 tables, and a last cluster that is cut short.
        let size = CLUSTER * PER_TABLE + 3 * CLUSTER + 1024;
        let mut image = Standalone::begin(&storage, size, compression).unwrap();
        let mut wanted = Vec::new();
        for nth in [0, 1, 2, 5, 6, 9, PER_TABLE - 1, PER_TABLE, PER_TABLE + 3] {
            let at = nth * CLUSTER;
            let len = CLUSTER.min(size - at) as usize;
            let mut cluster = bytes(nth, len, nth % 3 == 0);
            // A hole of the host within it.
            cluster[..len.min(9000)].fill(0);
            wanted.push((at, cluster.clone()));
            cluster.resize(CLUSTER as usize, 0);
            match compression.map(|compression| compress(compression, &cluster).unwrap()) {
                Some(Some(stream)) => image.put_compressed(at, &stream).unwrap(),
                _ => image.put(at, &cluster[..len]).unwrap(),
            }
        }
        image.finish().unwrap();
        drop(storage);
        let image = open(Arc::new(FileSource::open(&path).unwrap()), "image").unwrap();
        let layer: Arc<dyn Layer> = Arc::new(image.layer(None, None).unwrap());
        let disk = Chain::new(vec![layer], Cache::new(0)).unwrap();
        assert_eq!(disk.len(), size);
        for (at, cluster) in wanted {
            let mut read = vec![1; cluster.len()];
            disk.read_at(at, &mut read).unwrap();
            assert!(read == cluster, "{compression:?} at {at:#x}");
        }
        assert!(disk.extent_at(3 * CLUSTER).unwrap().hole);
    }
}

#[test]
fn clusters_come_in_order() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let storage = FileStorage::open(file.path()).unwrap();
    let mut image = Standalone::begin(&storage, 1 << 40, None).unwrap();
    image.put(CLUSTER * PER_TABLE, &[1; 512]).unwrap();
    image.put(0, &[1; 512]).unwrap();
    let error = image.put(CLUSTER * PER_TABLE, &[1; 512]).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    assert!(Standalone::begin(&storage, u64::MAX, None).is_err());
    assert_eq!(image.put_compressed(CLUSTER, &[1]).unwrap_err().kind(), Kind::Usage);
}
