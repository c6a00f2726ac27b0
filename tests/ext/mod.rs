//! Filesystems made by mke2fs, filled and shown by the kernel.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod compare;
pub mod populate;
pub mod rng;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use stratafs::block::{Cache, FileSource};
use stratafs::fs::{self, Filesystem};

pub use rng::Rng;

use crate::support::{require_root, run, tool};

/// An image file in a folder of its own, removed in the end.
pub struct Image {
    pub dir: tempfile::TempDir,
    pub path: PathBuf,
}

impl Image {
    /// Makes a filesystem of `megabytes` with `mke2fs` and these arguments.
    #[track_caller]
    pub fn make(megabytes: u64, args: &[&str]) -> Self {
        require_root();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::File::create(&path).unwrap().set_len(megabytes << 20).unwrap();
        run(tool("mke2fs", "e2fsprogs").args(["-q", "-F"]).args(args).arg(&path));
        Self { dir, path }
    }

    /// A copy of the image as it is on disk now.
    pub fn copy(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        run(std::process::Command::new("cp").arg("--sparse=always").arg(&self.path).arg(&path));
        path
    }

    #[track_caller]
    pub fn mount(&self, options: &str) -> Mounted {
        Mounted::new(&self.path, options)
    }

    #[track_caller]
    pub fn open(&self) -> Filesystem {
        open(&self.path)
    }
}

/// Opens an image with the reader under test.
#[track_caller]
pub fn open(path: &Path) -> Filesystem {
    let source = Arc::new(FileSource::open(path).unwrap());
    fs::open(source, &Cache::new(64 << 20)).unwrap().expect("a filesystem")
}

/// The kernel's mount of an image, through a loop device; unmounted in the end.
pub struct Mounted {
    dir: tempfile::TempDir,
}

impl Mounted {
    #[track_caller]
    pub fn new(image: &Path, options: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("loop,{options}");
        run(tool("mount", "mount").args(["-t", "ext4", "-o", &options]).arg(image).arg(dir.path()));
        Self { dir }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        for _ in 0..20 {
            let done = tool("umount", "mount").arg(self.dir.path()).status();
            if done.is_ok_and(|status| status.success()) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        println!("{} is still mounted", self.dir.path().display());
    }
}
