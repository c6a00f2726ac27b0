//! What real programs wrote is read as it is whole; what is made here is what they would not write.

mod hostile;
mod ztocs;

use std::io::{BufReader, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::read::MultiGzDecoder;
use flate2::write::GzEncoder;
use serde_json::{Value, json};

use super::*;
use crate::block::MemorySource;

use crate::oci::tar::{self, Entry};

/// Made by `tests/toc/made.sh`.
const ESTARGZ: &[u8] = include_bytes!("../../../../tests/toc/estargz");
const ESTARGZ_DIGEST: &str =
    "sha256:851e3df01669c7c2e94942f016b4b5847864fc30851e21ba90b62e7c13c44c19";
const ZSTD: &[u8] = include_bytes!("../../../../tests/toc/zstd-chunked");
const ZSTD_DIGEST: &str = "sha256:aa8a273c893570382d29b20e0334b69b5f38f9474e8a76131f3a9a120c449fd2";
const ZSTD_POSITION: &str = "4325:1364:5106:1";

fn claim(annotations: &[(&str, &str)]) -> Result<Option<Claim>> {
    let pairs = annotations.iter().map(|&(name, value)| (name.to_owned(), value.to_owned()));
    Claim::of(&pairs.collect())
}

fn estargz_claim(digest: &str) -> Claim {
    claim(&[(estargz::ANNOTATION, digest)]).unwrap().unwrap()
}

fn zstd_claim(digest: &str, position: &str) -> Claim {
    let both = [(zstd_chunked::CHECKSUM, digest), (zstd_chunked::POSITION, position)];
    claim(&both).unwrap().unwrap()
}

/// A source that counts what is read of it.
#[derive(Debug)]
struct Counting {
    source: MemorySource,
    reads: AtomicU64,
    bytes: AtomicU64,
}

impl Counting {
    fn new(bytes: Vec<u8>) -> Arc<Self> {
        let source = MemorySource::new(bytes);
        Arc::new(Self { source, reads: AtomicU64::new(0), bytes: AtomicU64::new(0) })
    }

    /// Reads and bytes since it was asked last.
    fn taken(&self) -> (u64, u64) {
        (self.reads.swap(0, Ordering::Relaxed), self.bytes.swap(0, Ordering::Relaxed))
    }
}

impl BlockSource for Counting {
    fn len(&self) -> u64 {
        self.source.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.source.read_at(offset, buf)
    }

    fn extent_at(&self, offset: u64) -> Result<crate::block::Extent> {
        self.source.extent_at(offset)
    }

    fn origin_at(&self, offset: u64) -> Result<crate::block::Origin> {
        self.source.origin_at(offset)
    }

    fn whole_file(&self) -> Option<&std::fs::File> {
        None
    }
}

/// A layer by its table of contents.
#[derive(Debug)]
struct Opened {
    index: Arc<Layer>,
    data: Arc<dyn BlockSource>,
    blob: Arc<Counting>,
}

fn open(blob: &[u8], claim: &Claim) -> Result<Opened> {
    let blob = Counting::new(blob.to_vec());
    let source: Arc<dyn BlockSource> = Arc::clone(&blob) as _;
    let digest = Digest::of(crate::oci::Algorithm::Sha256, b"whatever it is");
    let bytes = learn(claim, &source, &digest)?;
    let index = Arc::new(Layer::from_bytes(bytes)?);
    let data = contents(&index, source, &Cache::new(16 << 20))?;
    assert_eq!(data.len(), index.facts().tar_len);
    Ok(Opened { index, data, blob })
}

impl Opened {
    fn entries(&self) -> Vec<Entry> {
        let mut all = vec![];
        let mut entries = self.index.entries().unwrap();
        while let Some(entry) = entries.next().unwrap() {
            all.push(entry.clone());
        }
        all
    }

    fn read(&self, path: &str) -> Result<Vec<u8>> {
        let entry = self.entries().into_iter().find(|entry| entry.path == path.as_bytes());
        filled(&entry.unwrap(), &*self.data)
    }
}

/// The contents of a file.
fn filled(entry: &Entry, data: &dyn BlockSource) -> Result<Vec<u8>> {
    let mut bytes = vec![0; entry.size as usize];
    for run in &entry.runs {
        data.read_at(run.place, &mut bytes[run.at as usize..][..run.len as usize])?;
    }
    Ok(bytes)
}

/// Every entry with its contents, apart from where they lie. Tables of contents of stargz have whole
/// seconds.
fn told(entries: Vec<Entry>, data: &dyn BlockSource) -> Vec<(Entry, Vec<u8>)> {
    let told = entries.into_iter().map(|mut entry| {
        let bytes = filled(&entry, data).unwrap();
        entry.runs.clear();
        (entry, bytes)
    });
    told.collect()
}

/// What reading the whole layer tells.
fn whole(tar: &[u8]) -> Vec<(Entry, Vec<u8>)> {
    let mut reader = tar::Reader::new(BufReader::new(tar));
    let mut builder = super::super::layer::Builder::new().unwrap();
    while let Some(entry) = reader.next().unwrap() {
        builder.add(entry).unwrap();
    }
    let facts = Facts { tar_len: tar.len() as u64, ..Facts::default() };
    let index = Layer::from_bytes(builder.finish(&facts, b"").unwrap()).unwrap();
    let mut all = vec![];
    let mut entries = index.entries().unwrap();
    while let Some(entry) = entries.next().unwrap() {
        all.push(entry.clone());
    }
    told(all, &MemorySource::new(tar.to_vec()))
}

#[test]
fn an_estargz_is_what_it_is_whole() {
    let mut tar = vec![];
    MultiGzDecoder::new(ESTARGZ).read_to_end(&mut tar).unwrap();
    let opened = open(ESTARGZ, &estargz_claim(ESTARGZ_DIGEST)).unwrap();
    let ours = told(opened.entries(), &*opened.data);
    let theirs = whole(&tar);
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours, theirs);
    }
    assert_eq!((ours.len(), opened.index.whiteout_count()), (theirs.len(), 2));
    let last = ours.last().unwrap();
    assert_eq!((&*last.0.path, last.1.len()), (&b"stargz.index.json"[..], 5106));
    let facts = opened.index.facts();
    assert_eq!((facts.learnt, &*facts.diff_id), (Learnt::Estargz, ""));
}

#[test]
fn a_zstd_chunked_is_what_it_is_whole() {
    let tar = zstd::stream::decode_all(ZSTD).unwrap();
    let opened = open(ZSTD, &zstd_claim(ZSTD_DIGEST, ZSTD_POSITION)).unwrap();
    let ours = told(opened.entries(), &*opened.data);
    let theirs = whole(&tar);
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(ours.len(), theirs.len());
    assert_eq!(opened.index.facts().learnt, Learnt::ZstdChunked);
}

#[test]
fn only_what_is_wanted_is_fetched() {
    let opened = open(ESTARGZ, &estargz_claim(ESTARGZ_DIGEST)).unwrap();
    opened.blob.taken();
    // Six chunks beside each other, by one request; then none.
    assert_eq!(opened.read("opt/many").unwrap().len(), 21_000);
    let (reads, bytes) = opened.blob.taken();
    assert!(reads == 1 && bytes < 6_000, "{reads} reads, {bytes} bytes");
    assert_eq!(opened.read("opt/many").unwrap().len(), 21_000);
    assert_eq!(opened.blob.taken(), (0, 0));
    assert_eq!(opened.read("old").unwrap(), b"old");
    let (reads, bytes) = opened.blob.taken();
    assert!(reads == 1 && bytes < 200, "{reads} reads, {bytes} bytes");
    // Read in order, what follows comes with the second one.
    let opened = open(ESTARGZ, &estargz_claim(ESTARGZ_DIGEST)).unwrap();
    let many = opened.entries().into_iter().find(|entry| entry.path == b"opt/many").unwrap();
    opened.blob.taken();
    let mut piece = vec![0; 500];
    for at in (0..many.size - 500).step_by(500) {
        opened.data.read_at(many.runs[0].place + at, &mut piece).unwrap();
    }
    let (reads, _) = opened.blob.taken();
    assert!(reads == 2, "{reads} reads");
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(vec![], flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    Digest::of_sha256(&hash(bytes)).to_string()
}

/// An eStargz of members and a table of contents as it is given.
fn estargz_of(members: &[&[u8]], toc: &[u8]) -> (Vec<u8>, Claim) {
    let mut blob: Vec<u8> = members.iter().flat_map(|member| gzip(member)).collect();
    let at = blob.len();
    let mut header = tar_header("stargz.index.json", toc.len());
    header.extend_from_slice(toc);
    header.resize(header.len().next_multiple_of(512) + 1024, 0);
    blob.extend_from_slice(&gzip(&header));
    blob.extend_from_slice(&footer_of(at as u64));
    (blob, estargz_claim(&sha256(toc)))
}

fn footer_of(at: u64) -> Vec<u8> {
    let mut footer = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255, 26, 0, b'S', b'G', 22, 0];
    footer.extend_from_slice(format!("{at:016x}STARGZ").as_bytes());
    footer.extend_from_slice(&[1, 0, 0, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0]);
    footer
}

fn tar_header(name: &str, len: usize) -> Vec<u8> {
    let mut header = vec![0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    for (at, number) in [(100, 0), (108, 0), (116, 0), (136, 0)] {
        header[at..at + 7].copy_from_slice(format!("{number:07o}").as_bytes());
    }
    header[124..135].copy_from_slice(format!("{len:011o}").as_bytes());
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header
}

/// A zstd:chunked of frames and a table of contents as it is given.
fn zstd_of(frames: &[&[u8]], toc: &[u8]) -> (Vec<u8>, Claim) {
    let pack = |bytes: &[u8]| zstd::bulk::compress(bytes, 3).unwrap();
    let mut blob: Vec<u8> = frames.iter().flat_map(|frame| pack(frame)).collect();
    let packed = pack(toc);
    blob.extend_from_slice(&[0x50, 0x2a, 0x4d, 0x18]);
    blob.extend_from_slice(&(packed.len() as u32).to_le_bytes());
    let position = format!("{}:{}:{}:1", blob.len(), packed.len(), toc.len());
    blob.extend_from_slice(&packed);
    (blob, zstd_claim(&sha256(&packed), &position))
}

fn toc(entries: Value) -> Vec<u8> {
    json!({ "version": 1, "entries": entries }).to_string().into_bytes()
}

#[test]
fn files_that_share_a_member_are_decompressed_once() {
    // `ctr-remote images optimize --estargz-min-chunk-size` writes such.
    let member = [&tar_header("a", 3)[..], b"one", &[0; 509], b"filling", b"twotwo"].concat();
    let entries = json!([
        { "name": "a", "type": "reg", "size": 3, "innerOffset": 512, "chunkDigest": sha256(b"one") },
        { "name": "e", "type": "reg" },
        { "name": "b", "type": "reg", "size": 6, "innerOffset": 1031, "chunkDigest": sha256(b"twotwo") },
    ]);
    let (blob, claim) = estargz_of(&[&member], &toc(entries));
    let opened = open(&blob, &claim).unwrap();
    opened.blob.taken();
    assert_eq!(opened.read("b").unwrap(), b"twotwo");
    assert_eq!(opened.read("a").unwrap(), b"one");
    assert_eq!(opened.read("e").unwrap(), b"");
    assert_eq!(opened.blob.taken().0, 1);
}

#[test]
fn zeros_are_holes_and_not_fetched() {
    let frames: [&[u8]; 3] = [b"begin", &[0; 5000], b"end"];
    let size = |nth: usize| -> usize {
        frames[..nth].iter().map(|frame| zstd::bulk::compress(frame, 3).unwrap().len()).sum()
    };
    // The first chunk of a file is not at 0: a header comes before it.
    let header = zstd::bulk::compress(&[1; 100], 3).unwrap().len();
    let at = |nth| header + size(nth);
    let entries = json!([
        { "name": "f", "type": "reg", "size": 5008, "offset": at(0), "endOffset": at(3),
            "chunkSize": 5, "chunkDigest": sha256(b"begin") },
        { "name": "f", "type": "chunk", "offset": at(1), "chunkOffset": 5, "chunkSize": 5000,
            "chunkType": "zeros", "chunkDigest": sha256(&[0; 5000]) },
        { "name": "f", "type": "chunk", "offset": at(2), "chunkOffset": 5005, "chunkSize": 3,
            "chunkDigest": sha256(b"end") },
        { "name": "z", "type": "reg", "size": 9, "offset": at(3), "chunkType": "zeros" },
    ]);
    let (blob, claim) = zstd_of(&[&[1; 100], frames[0], frames[1], frames[2]], &toc(entries));
    let opened = open(&blob, &claim).unwrap();
    assert_eq!(opened.read("f").unwrap(), frames.concat());
    assert_eq!(opened.entries()[0].runs.len(), 2);
    assert_eq!((opened.read("z").unwrap(), opened.data.len()), (vec![0; 9], 8));
}

#[test]
fn a_large_table_of_contents_is_a_file_like_others() {
    // More than a piece of it.
    let names = (0..60_000).map(|nth| json!({ "name": format!("{nth:070}"), "type": "fifo" }));
    let toc = toc(names.collect());
    let (blob, claim) = estargz_of(&[], &toc);
    let opened = open(&blob, &claim).unwrap();
    assert_eq!(opened.index.entry_count(), 60_001);
    assert!(opened.read("stargz.index.json").unwrap() == toc);
}
