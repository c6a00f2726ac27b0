//! The input is a qcow2 image; where it wants a data file, the input is that too.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use stratafs::block::{BlockSource, MemorySource};
use stratafs::chain::{Chain, Layer};
use stratafs::image::qcow2;
use stratafs_fuzz::{cache, read_disk};

fuzz_target!(|data: &[u8]| {
    let source: Arc<dyn BlockSource> = Arc::new(MemorySource::new(data.to_vec()));
    let Ok(image) = qcow2::open(Arc::clone(&source), "fuzz.qcow2") else { return };
    let _ = image.bitmaps();
    let _ = (image.info(), image.warnings(), image.parent());
    let data_file = match image.data_file() {
        Ok(name) => name.map(|_| Arc::clone(&source)),
        Err(_) => return,
    };
    let snapshots = image.snapshots().unwrap_or_default();
    let views = snapshots.iter().take(4).map(|snapshot| Some(snapshot.id.as_str()));
    for snapshot in std::iter::once(None).chain(views) {
        let Ok(layer) = image.layer(snapshot, data_file.clone()) else { continue };
        let layer: Arc<dyn Layer> = Arc::new(layer);
        if let Ok(disk) = Chain::new(vec![layer], cache()) {
            read_disk(&disk);
        }
    }
});
