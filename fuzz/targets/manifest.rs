//! The input is each document of a layered image in turn, and the archive or layout that they lie in.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use stratafs::block::{BlockSource, MemorySource};
use stratafs::oci::archive::Archive;
use stratafs::oci::docker::Saved;
use stratafs::oci::manifest::Document;
use stratafs::oci::reference::Name;
use stratafs::oci::{Config, Digest, Platform};

fuzz_target!(|data: &[u8]| {
    if let Ok(Document::Manifest(manifest)) = Document::parse(data, None) {
        assert!(manifest.layers.len() <= 1_000, "layers beyond the budget");
    }
    if let Ok(config) = Config::parse(data) {
        let _ = (config.diff_ids(), config.platform());
    }
    let _ = Saved::parse(data);
    if let Ok(text) = std::str::from_utf8(data) {
        if let Ok(name) = Name::parse(text) {
            // What is written in full means the same.
            assert_eq!(Name::parse(&name.to_string()).ok(), Some(name));
        }
        if let Ok(digest) = text.parse::<Digest>() {
            assert!(!digest.to_string().contains(['/', '.']), "a digest that is a path");
        }
        let _ = text.parse::<Platform>();
    }
    let Ok(archive) = Archive::open(Arc::new(MemorySource::new(data.to_vec()))) else { return };
    for name in ["oci-layout", "index.json", "manifest.json", "a", "a/b", "a/layer.tar"] {
        if let Ok(Some(member)) = archive.get(name) {
            let mut bytes = vec![0; usize::try_from(member.len()).unwrap_or(0)];
            assert!(
                member.read_at(0, &mut bytes).is_ok(),
                "a member that passes the archive's end"
            );
        }
    }
});
