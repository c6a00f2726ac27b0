//! The input is a table of contents: its JSON with a blob made around it, an eStargz as it is, or a ztoc.
//! What can be made an index of is walked, and all files are read.
#![no_main]

use std::io::{Read, Write};
use std::sync::Arc;

use flate2::write::GzEncoder;
use libfuzzer_sys::fuzz_target;
use stratafs::block::{BlockSource, MemorySource};
use stratafs::error::Result;
use stratafs::oci::layer::Layer;
use stratafs::oci::merge::{LayerPart, Merged};
use stratafs::oci::toc::{Claim, contents, learn};
use stratafs::oci::{Algorithm, Blob, Digest};
use stratafs_fuzz::{cache, walk};

/// Files' contents in front of a table of contents: any, as no digest is right.
const CONTENTS: [u8; 64] = [0; 64];

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    match kind {
        0 => {
            let mut blob = CONTENTS.to_vec();
            let mut tar = vec![0; 512];
            tar[..17].copy_from_slice(b"stargz.index.json");
            tar[100..107].copy_from_slice(b"0000000");
            tar[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
            tar[148..156].fill(b' ');
            tar[156] = b'0';
            let sum: u32 = tar.iter().map(|&byte| u32::from(byte)).sum();
            tar[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            tar.extend_from_slice(data);
            let mut gzip = GzEncoder::new(vec![], flate2::Compression::fast());
            gzip.write_all(&tar).expect("in memory");
            blob.extend_from_slice(&gzip.finish().expect("in memory"));
            blob.extend_from_slice(b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x1a\0SG\x16\0");
            blob.extend_from_slice(format!("{:016x}STARGZ", CONTENTS.len()).as_bytes());
            blob.extend_from_slice(b"\x01\0\0\xff\xff\0\0\0\0\0\0\0\0");
            read(blob, &estargz(data));
        }
        1 => {
            let packed = zstd::bulk::compress(data, 1).expect("in memory");
            let digest = Digest::of(Algorithm::Sha256, &packed).to_string();
            let place = format!("{}:{}:{}:1", CONTENTS.len(), packed.len(), data.len());
            let name = |what| format!("io.github.containers.zstd-chunked.manifest-{what}");
            let said = [(name("checksum"), digest), (name("position"), place)];
            let claim = Claim::of(&said.into()).expect("right").expect("there");
            read([&CONTENTS[..], &packed].concat(), &claim);
        }
        // The footer and what it leads to; its digest is that of nothing it could lead to.
        2 => read(data.to_vec(), &estargz(b"")),
        _ => {
            let digest = Digest::of(Algorithm::Sha256, data);
            // The layer of the seed.
            let layer = include_bytes!("../../tests/toc/layer.tar.gz");
            read(layer.to_vec(), &Claim::ztoc(digest, Arc::new(Held(data.to_vec()))));
        }
    }
});

fn estargz(toc: &[u8]) -> Claim {
    let digest = Digest::of(Algorithm::Sha256, toc).to_string();
    let said = [("containerd.io/snapshot/stargz/toc.digest".to_owned(), digest)];
    Claim::of(&said.into()).expect("right").expect("there")
}

fn read(blob: Vec<u8>, claim: &Claim) {
    let blob: Arc<dyn BlockSource> = Arc::new(MemorySource::new(blob));
    let Ok(index) = learn(claim, &blob, &Digest::of(Algorithm::Sha256, b"")) else { return };
    let index = Arc::new(Layer::from_bytes(index).expect("what was made is one"));
    let data = contents(&index, blob, &cache()).expect("what was made is one");
    if let Ok(tree) = Merged::of_layer(LayerPart { index, data }) {
        walk(&tree);
    }
}

#[derive(Debug)]
struct Held(Vec<u8>);

impl Blob for Held {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }

    fn source(&self) -> Result<Arc<dyn BlockSource>> {
        Ok(Arc::new(MemorySource::new(self.0.clone())))
    }

    fn stream(&self) -> Result<Box<dyn Read + Send>> {
        Ok(Box::new(std::io::Cursor::new(self.0.clone())))
    }
}
