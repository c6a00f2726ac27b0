use std::os::unix::fs::{FileExt, PermissionsExt};
use std::sync::atomic::AtomicU64;

use super::*;
use crate::block::MemorySource;
use crate::oci::blob::{Blob, LocalBlob};
use crate::oci::reference::Name;
use crate::oci::registry::{self, Registry};
use crate::oci::{Config, Documents};

/// See `tests/toc/made.sh`.
const ESTARGZ: &[u8] = include_bytes!("../../../tests/toc/estargz");
const TABLE: &str = "sha256:851e3df01669c7c2e94942f016b4b5847864fc30851e21ba90b62e7c13c44c19";

/// A blob of a registry, which may serve no ranges.
#[derive(Debug)]
struct Served {
    blob: LocalBlob,
    ranges: bool,
    streamed: Arc<AtomicU64>,
}

impl Blob for Served {
    fn len(&self) -> u64 {
        self.blob.len()
    }

    fn source(&self) -> Result<Arc<dyn BlockSource>> {
        match self.ranges {
            true => self.blob.source(),
            false => Err(Error::new(Kind::Unsupported, "only the whole")),
        }
    }

    fn stream(&self) -> Result<Box<dyn Read + Send>> {
        self.streamed.fetch_add(1, Ordering::Relaxed);
        self.blob.stream()
    }
}

/// How an image of one eStargz layer is learnt, and how often all of it was sent.
fn learnt(table: &str, ranges: bool, kept: Option<&LayerCache>) -> (Learnt, u64) {
    let streamed = Arc::new(AtomicU64::new(0));
    let blob = LocalBlob(Arc::new(MemorySource::new(ESTARGZ.to_vec())));
    let annotation = ("containerd.io/snapshot/stargz/toc.digest".into(), table.into());
    let layer = LayerBlob {
        digest: Some(Digest::of(Algorithm::Sha256, ESTARGZ)),
        media_type: String::new(),
        compression: crate::oci::Compression::Gzip,
        size: ESTARGZ.len() as u64,
        diff_id: None,
        annotations: [annotation].into(),
        blob: Arc::new(Served { blob, ranges, streamed: Arc::clone(&streamed) }),
    };
    let name = Name::parse("localhost:1/a:b").unwrap();
    let image = Image {
        name: None,
        manifest_digest: None,
        config: Config::default(),
        layers: vec![layer],
        documents: Documents::default(),
        registry: Some(Registry::new(&name, &registry::Options::default()).unwrap()),
        indexed: None,
    };
    let parts = prepare(&image, kept, &Cache::new(16 << 20), &Progress::default()).unwrap();
    (parts[0].index.facts().learnt, streamed.load(Ordering::Relaxed))
}

#[test]
fn a_table_of_contents_that_is_of_no_use_is_not_used() {
    assert_eq!(learnt(TABLE, true, None), (Learnt::Estargz, 0));
    // The registry sends no parts; the manifest names another table, or none that could be.
    assert_eq!(learnt(TABLE, false, None), (Learnt::Whole, 1));
    let other = Digest::of(Algorithm::Sha256, b"other").to_string();
    assert_eq!(learnt(&other, true, None), (Learnt::Whole, 1));
    assert_eq!(learnt("sha256:x", true, None), (Learnt::Whole, 1));
}

#[test]
fn what_one_image_claims_of_a_layer_is_not_believed_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let kept = LayerCache::open(dir.path().join("cache"), 1 << 30).unwrap();
    assert_eq!(learnt(TABLE, true, Some(&kept)), (Learnt::Estargz, 0));
    assert_eq!(kept.list().unwrap().len(), 1);
    let other = Digest::of(Algorithm::Sha256, b"other").to_string();
    assert_eq!(learnt(&other, true, Some(&kept)), (Learnt::Whole, 1));
    // What was verified whole is better than any table.
    assert_eq!(learnt(TABLE, true, Some(&kept)), (Learnt::Whole, 0));
}

#[test]
fn files_without_names() {
    let dir = tempfile::tempdir().unwrap();
    // Somebody has taken the first name.
    let taken = dir.path().join(format!(".strata-{}-0", std::process::id()));
    std::os::unix::fs::symlink("/etc/passwd", &taken).unwrap();
    for make in [nameless, unlinked] {
        let file = make(dir.path()).unwrap();
        file.write_all_at(b"x", 3).unwrap();
        let mut buf = [1; 4];
        file.read_exact_at(&mut buf, 0).unwrap();
        let metadata = file.metadata().unwrap();
        assert_eq!((buf, metadata.nlink()), (*b"\0\0\0x", 0));
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
    let gone = dir.path().join("gone");
    assert_eq!(nameless(&gone).unwrap_err().kind(), io::ErrorKind::NotFound);
}
