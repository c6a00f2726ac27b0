//! Small ext images with a few bytes changed: whatever comes of it, everything is answered, soon,
//! and within bounds.
#![allow(unreachable_pub, reason = "modules are shared between test binaries")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use stratafs::block::{BlockSource, Cache, Extent, MemorySource, Origin};
use stratafs::error::Result;
use stratafs::fs;

#[path = "ext/rng.rs"]
mod rng;
mod support;
mod walk;

use rng::Rng;

/// Images each test damages unless `STRATA_MUTATIONS` says another number.
const MUTATIONS: u64 = 4000;
/// A test that hangs must fail: far more than one walk takes on a slow machine.
const WATCHDOG: Duration = Duration::from_secs(30);

/// An image with some bytes changed.
#[derive(Debug)]
struct Mutated {
    image: Arc<MemorySource>,
    changes: Vec<(u64, u8)>,
}

impl BlockSource for Mutated {
    fn len(&self) -> u64 {
        self.image.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.image.read_at(offset, buf)?;
        for &(at, byte) in &self.changes {
            if let Some(place) = at.checked_sub(offset).and_then(|at| buf.get_mut(at as usize)) {
                *place = byte;
            }
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        self.image.extent_at(offset)
    }

    fn origin_at(&self, offset: u64) -> Result<Origin> {
        Ok(Origin::unknown(self.len().saturating_sub(offset).max(1)))
    }

    fn whole_file(&self) -> Option<&File> {
        None
    }
}

/// A folder with something of everything that `mke2fs -d` can copy.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let mut rng = Rng(7);
    for len in [0, 10, 100, 3000, 20_000] {
        std::fs::write(root.join(format!("{len}")), rng.bytes(len)).unwrap();
    }
    for number in 0..120 {
        std::fs::create_dir_all(root.join("many")).unwrap();
        let name = format!("many/{number:0>60}");
        std::fs::write(root.join(name), b"").unwrap();
    }
    std::os::unix::fs::symlink("x", root.join("short")).unwrap();
    std::os::unix::fs::symlink("y".repeat(200), root.join("long")).unwrap();
    std::fs::hard_link(root.join("10"), root.join("hard")).unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    for number in 0..30 {
        std::os::unix::fs::FileExt::write_all_at(&sparse, &[1; 10], number * 8192).unwrap();
    }
    let value = rng.bytes(700);
    rustix::fs::setxattr(root.join("100"), "user.large", &value, rustix::fs::XattrFlags::empty())
        .expect("attributes on the folder of temporary files");
    dir
}

fn image(args: &[&str], folder: &Path, dirty: bool) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    File::create(&path).unwrap().set_len(3 << 20).unwrap();
    support::run(
        support::tool("mke2fs", "e2fsprogs")
            .args(["-q", "-F", "-b", "1024", "-N", "256"])
            .args(args)
            .arg("-d")
            .arg(folder)
            .arg(&path),
    );
    if dirty {
        let commands = dir.path().join("commands");
        let block = dir.path().join("block");
        std::fs::write(&block, Rng(9).bytes(3 << 10)).unwrap();
        let text = format!("jo -c\njw -b 2500,2501,2502 {}\njw -r 2501\njc\n", block.display());
        std::fs::write(&commands, text).unwrap();
        support::run(
            support::tool("debugfs", "e2fsprogs").arg("-w").arg("-f").arg(&commands).arg(&path),
        );
    }
    std::fs::read(&path).unwrap()
}

/// Changes up to four places, mostly in what is not file contents.
fn changes(rng: &mut Rng, image: &MemorySource, places: &[u64]) -> Vec<(u64, u8)> {
    let mut changes = Vec::new();
    for _ in 0..=rng.below(3) {
        let block = places[rng.below(places.len() as u64) as usize];
        let mut old = [0; 1024];
        image.read_at(block, &mut old).unwrap();
        // Where something is, rather than in the zeros beside it.
        let mut at = rng.below(1024) as usize;
        if let Some(next) = old[at..].iter().position(|&byte| byte != 0) {
            at += next;
        }
        let len = [1, 1, 2, 4][rng.below(4) as usize];
        for (at, &byte) in old.iter().enumerate().skip(at).take(len) {
            let byte = match rng.below(6) {
                0 => 0,
                1 => 0xff,
                2 => 0x7f,
                3 => byte.wrapping_add(1),
                4 => byte ^ 1 << rng.below(8),
                _ => rng.next() as u8,
            };
            changes.push((block + at as u64, byte));
        }
    }
    changes
}

#[track_caller]
fn survives(args: &[&str], dirty: bool) {
    let folder = folder();
    let image = Arc::new(MemorySource::new(image(args, folder.path(), dirty)));
    let mut places = Vec::new();
    let mut block = [0; 1024];
    for at in (1024..image.len()).step_by(1024) {
        image.read_at(at, &mut block).unwrap();
        let zeros = block.iter().filter(|&&byte| byte == 0).count();
        // Blocks of random contents have few zeros.
        if (60..1024).contains(&zeros) {
            places.push(at);
        }
    }
    // The superblock is one block of many, and decides the most.
    places.extend([1024; 10]);
    let mutations = std::env::var("STRATA_MUTATIONS")
        .map_or(MUTATIONS, |number| number.parse().expect("STRATA_MUTATIONS: a number"));
    let (done, progress) = mpsc::channel();
    let worker = std::thread::spawn(move || {
        let (mut refused, mut walked) = (0, 0);
        for seed in 0..mutations {
            let mut rng = Rng(seed);
            let changes = changes(&mut rng, &image, &places);
            done.send(format!("{changes:?}")).unwrap();
            let cache = Cache::new(0);
            let source = Mutated { image: Arc::clone(&image), changes };
            match fs::open(Arc::new(source), &cache) {
                Ok(Some(found)) => {
                    walked += 1;
                    walk::walk(&*found.tree);
                }
                Ok(None) => refused += 1,
                Err(error) => {
                    assert!(!error.to_string().contains('\n'));
                    refused += 1;
                }
            }
            assert!(cache.weight() <= cache.capacity());
        }
        (refused, walked)
    });
    let mut last = String::new();
    loop {
        match progress.recv_timeout(WATCHDOG) {
            Ok(changes) => last = changes,
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("hangs with {last}"),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    let (refused, walked) = worker.join().unwrap_or_else(|_| panic!("panics with {last}"));
    println!("{args:?}: {refused} refused, {walked} walked");
    assert!(refused > 10 && walked > 1000, "{refused} refused, {walked} walked");
}

#[test]
fn ext4_without_checksums() {
    survives(&["-t", "ext4", "-O", "^metadata_csum,inline_data,ea_inode", "-I", "256"], false);
}

#[test]
fn ext4_with_checksums() {
    survives(&["-t", "ext4", "-O", "metadata_csum,64bit"], false);
}

#[test]
fn ext4_with_a_journal_to_replay() {
    survives(&["-t", "ext4", "-O", "^metadata_csum,^64bit", "-J", "size=1"], true);
}

#[test]
fn ext2_with_block_maps() {
    survives(&["-t", "ext2", "-I", "128"], false);
}

#[test]
fn ext4_with_encrypted_and_folded_names() {
    survives(&["-t", "ext4", "-O", "^metadata_csum,encrypt,casefold,meta_bg,^resize_inode"], false);
}
