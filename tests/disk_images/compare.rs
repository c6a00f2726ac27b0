//! Reads a disk through the library and compares it with someone else's reading of it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use stratafs::block::{BlockSource, Cache};
use stratafs::open::{Disk, Opener, Reference};
use stratafs::policy::Policy;

use crate::support::{qemu_img, tool};

/// A small generator of numbers: the same seed, the same numbers, on every machine.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        for _ in 0..4 {
            random.next();
        }
        random
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound.max(1)
    }

    /// True once in `times`.
    pub(crate) fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

pub(crate) fn opener() -> Opener {
    opener_with(Policy::default())
}

pub(crate) fn opener_with(policy: Policy) -> Opener {
    Opener::new(policy, Cache::new(32 << 20))
}

pub(crate) fn open(image: &Path) -> Disk {
    open_reference(image.to_str().unwrap())
}

pub(crate) fn open_reference(reference: &str) -> Disk {
    let reference: Reference = reference.parse().unwrap();
    opener().disk(&reference).unwrap_or_else(|error| panic!("{error}"))
}

/// What `qemu-img convert` makes of an image, or of a snapshot of it.
#[track_caller]
pub(crate) fn converted(image: &Path, snapshot: Option<&str>) -> PathBuf {
    try_converted(image, snapshot).unwrap_or_else(|said| panic!("{}: {said}", image.display()))
}

/// The same, or what `qemu-img` says when it cannot read the image.
pub(crate) fn try_converted(image: &Path, snapshot: Option<&str>) -> Result<PathBuf, String> {
    let raw = image.with_extension("oracle");
    let mut command = tool("qemu-img", "qemu-utils");
    command.args(["convert", "-O", "raw"]);
    if let Some(snapshot) = snapshot {
        command.args(["-l", &format!("snapshot.name={snapshot}")]);
    }
    let output = command.arg(image).arg(&raw).output().unwrap();
    if output.status.success() {
        Ok(raw)
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Compares an image with QEMU's reading of it.
#[track_caller]
pub(crate) fn assert_as_qemu(image: &Path) {
    let disk = open(image);
    assert_same(&*disk.source, &converted(image, None), &image.display().to_string());
}

/// Compares `source` with the file `raw` in odd-sized pieces, from several threads. The file may
/// be longer by what rounds it up to a sector, in zeros.
#[track_caller]
pub(crate) fn assert_same(source: &dyn BlockSource, raw: &Path, what: &str) {
    let oracle = File::open(raw).unwrap();
    let len = oracle.metadata().unwrap().len();
    assert_eq!(source.len().next_multiple_of(512), len.next_multiple_of(512), "size of {what}");
    assert_prefix(source, &oracle, source.len().min(len), what);
}

/// Compares the first `len` bytes of `source` with those of `oracle`.
#[track_caller]
pub(crate) fn assert_prefix(source: &dyn BlockSource, oracle: &File, len: u64, what: &str) {
    const THREADS: u64 = 3;
    const SLICE: u64 = 3 << 20;
    let wrong = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|number| {
                scope.spawn(move || {
                    let mut random = Random::new(number + len);
                    let mut slice = number * SLICE;
                    while slice < len {
                        let end = (slice + SLICE).min(len);
                        let mut at = slice;
                        while at < end {
                            let piece = 1 + random.below(1 << (4 + random.clone().below(17)));
                            let piece = piece.min(end - at) as usize;
                            let (mut got, mut expected) = (vec![0xa5; piece], vec![0; piece]);
                            if let Err(error) = source.read_at(at, &mut got) {
                                return Some(format!("{piece} bytes at {at:#x}: {error}"));
                            }
                            oracle.read_exact_at(&mut expected, at).unwrap();
                            if got != expected {
                                let off = got.iter().zip(&expected).position(|(a, b)| a != b);
                                let at = at + off.unwrap() as u64;
                                return Some(format!("first difference at {at:#x}"));
                            }
                            at += piece as u64;
                        }
                        slice += SLICE * THREADS;
                    }
                    None
                })
            })
            .collect();
        threads.into_iter().find_map(|thread| thread.join().unwrap())
    });
    if let Some(wrong) = wrong {
        panic!("{what}: {wrong}");
    }
    assert_holes(source, oracle, len, what);
}

/// Walks the extents: they cover the disk, and its holes are zeros.
#[track_caller]
fn assert_holes(source: &dyn BlockSource, oracle: &File, len: u64, what: &str) {
    let mut at = 0;
    while at < len {
        let extent = source.extent_at(at).unwrap();
        assert!(extent.len > 0 && at + extent.len <= source.len(), "{what}: extent at {at:#x}");
        if extent.hole {
            let mut bytes = vec![0; extent.len.min(len - at) as usize];
            oracle.read_exact_at(&mut bytes, at).unwrap();
            assert!(bytes.iter().all(|&byte| byte == 0), "{what}: hole with data at {at:#x}");
        }
        at += extent.len;
    }
}

/// A folder for one test, and the files in it that writes take their data from.
pub(crate) struct Bench {
    pub(crate) dir: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut random = Random::new(7);
        let noise: Vec<u8> = (0..1 << 20).map(|_| random.next() as u8).collect();
        // Compresses to about half: words of a small vocabulary.
        let text: Vec<u8> = (0..1 << 18)
            .flat_map(|_| ((random.below(200) as u32) * 0x0101_0307).to_le_bytes())
            .collect();
        std::fs::write(dir.path().join("noise"), noise).unwrap();
        std::fs::write(dir.path().join("text"), text).unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Creates a qcow2 image with these options.
    pub(crate) fn create(&self, name: &str, size: &str, options: &str) -> PathBuf {
        let path = self.path(name);
        let mut args = vec!["create", "-q", "-f", "qcow2"];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        args.extend([path.to_str().unwrap(), size]);
        qemu_img(args);
        path
    }

    /// Creates an overlay over `backing`.
    pub(crate) fn overlay(
        &self,
        name: &str,
        backing: &str,
        format: &str,
        size: Option<&str>,
    ) -> PathBuf {
        let path = self.path(name);
        let mut args = vec!["create", "-q", "-f", "qcow2", "-b", backing, "-F", format];
        args.push(path.to_str().unwrap());
        args.extend(size);
        qemu_img(args);
        path
    }

    /// Runs commands of `qemu-io`; `@text` and `@noise` name the files data comes from.
    pub(crate) fn io(&self, image: &Path, commands: &[String]) {
        let mut args = vec!["-f".to_owned(), "qcow2".to_owned()];
        for command in commands {
            let command = command
                .replace("@text", self.path("text").to_str().unwrap())
                .replace("@noise", self.path("noise").to_str().unwrap());
            args.extend(["-c".to_owned(), command]);
        }
        args.push(image.display().to_string());
        let output = tool("qemu-io", "qemu-utils").args(&args).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        // A compressed write over a cluster that has data is the one that QEMU refuses.
        let refused = "write failed: Input/output error";
        let compressed = commands.iter().any(|command| command.contains(" -c "));
        for line in said.lines() {
            assert!(compressed && line == refused, "{args:?}: {said}");
        }
    }

    /// Writes of every sort over an image of `size` bytes with clusters of `cluster` bytes.
    pub(crate) fn fill(&self, image: &Path, size: u64, cluster: u64, compressed: bool, seed: u64) {
        let mut random = Random::new(seed);
        let mut commands = Vec::new();
        for _ in 0..24 {
            let at = random.below(size / 512) * 512;
            let len = (512 + random.below(6 * cluster.max(4096)) / 512 * 512).min(size - at);
            commands.push(match random.below(6) {
                0 => format!("write -q -z {at} {len}"),
                1 => format!("write -q -z -u {at} {len}"),
                2 => format!("discard -q {at} {len}"),
                3 => format!("write -q -P {} {at} {len}", 1 + random.below(255)),
                4 => format!("write -q -s @noise {at} {len}"),
                _ => format!("write -q -s @text {at} {len}"),
            });
            if compressed && random.once_in(2) {
                let at = random.below(size / cluster) * cluster;
                commands.push(format!("write -q -c -s @text {at} {cluster}"));
            }
        }
        self.io(image, &commands);
    }
}
