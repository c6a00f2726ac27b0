//! The lower of these tests: an ext4 image with a little of everything, the kernel's mount of it, and
//! our own.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt, lchown, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use stratafs::mount::{self, Options};
use stratafs::tree::{FileTree, Served};

use crate::ext::{Image, Mounted};
use crate::support::run;

/// The names that operations use: some are there, some are not.
pub const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

pub struct Lower {
    pub image: Image,
    pub mounted: Mounted,
    pub view: View,
}

/// Our read-only mount of the image, which ends with the test.
pub struct View {
    dir: tempfile::TempDir,
    // Gone before its folder is.
    serving: Option<mount::Mounted>,
}

impl View {
    fn new(tree: Arc<dyn FileTree>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Everything that is there can be seen through it, as in the kernel's mount.
        let name = "lower".to_owned();
        let all = Options { allow_other: true, suid: true, dev: true, name, ..Options::default() };
        let serving = mount::mount(Served::ReadOnly(tree), dir.path(), &all).unwrap();
        Self { dir, serving: Some(serving) }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for View {
    fn drop(&mut self) {
        drop(self.serving.take());
    }
}

impl Lower {
    pub fn make() -> Self {
        let image = Image::make(16, &["-t", "ext4"]);
        {
            let mounted = image.mount("rw");
            fill(mounted.path());
        }
        let mounted = image.mount("ro,noload");
        let view = View::new(image.open().tree);
        Self { image, mounted, view }
    }

    /// As we read it.
    pub fn tree(&self) -> Arc<dyn FileTree> {
        self.image.open().tree
    }

    /// A copy of it in a folder of the host.
    pub fn copy(&self, to: &Path) {
        run(Command::new("cp").arg("-a").arg(self.mounted.path()).arg(to));
    }
}

fn fill(root: &Path) {
    fs::remove_dir(root.join("lost+found")).unwrap();
    // a: folders in folders; b: files; c: many names of one file; d: link; e: sparse file.
    for dir in ["a", "a/a", "a/a/a", "a/b", "b", "c", "c/d"] {
        fs::create_dir(root.join(dir)).unwrap();
    }
    for (path, len) in [("a/c", 10), ("a/a/b", 5000), ("a/a/a/c", 1), ("b/a", 100_000), ("b/b", 0)]
    {
        let bytes: Vec<u8> = (0..len).map(|n| u8::try_from(n % 251).unwrap()).collect();
        fs::write(root.join(path), bytes).unwrap();
    }
    fs::write(root.join("c/a"), "shared").unwrap();
    fs::hard_link(root.join("c/a"), root.join("c/b")).unwrap();
    fs::hard_link(root.join("c/a"), root.join("a/d")).unwrap();
    // Where no operation ever puts a folder: the host would follow the link to it, and a tree does not.
    symlink("a/none", root.join("d")).unwrap();
    symlink("nowhere", root.join("b/d")).unwrap();
    let sparse = File::create(root.join("e")).unwrap();
    sparse.set_len(300_000).unwrap();
    sparse.write_all_at(b"island", 150_000).unwrap();
    rustix::fs::mknodat(CWD, root.join("b/e"), FileType::Fifo, Mode::from_raw_mode(0o640), 0)
        .unwrap();
    let device = rustix::fs::makedev(1, 3);
    let mode = Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(CWD, root.join("b/f"), FileType::CharacterDevice, mode, device).unwrap();
    let any = XattrFlags::empty();
    rustix::fs::setxattr(root.join("a/c"), "user.color", b"blue", any).unwrap();
    rustix::fs::setxattr(root.join("a/a"), "trusted.overlay.opaque", b"y", any).unwrap();
    rustix::fs::setxattr(root.join("a"), "user.overlay.redirect", b"/b", any).unwrap();
    lchown(root.join("b/a"), Some(1000), Some(1001)).unwrap();
    lchown(root.join("a"), Some(1000), Some(1000)).unwrap();
    fs::set_permissions(root.join("b/b"), Permissions::from_mode(0o4711)).unwrap();
    fs::set_permissions(root.join("c"), Permissions::from_mode(0o2775)).unwrap();
    fs::set_permissions(root, Permissions::from_mode(0o751)).unwrap();
    let mut paths = vec![root.to_owned()];
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                todo.push(entry.path());
            }
            paths.push(entry.path());
        }
    }
    for (n, path) in (0..).zip(paths) {
        let time = Timespec { tv_sec: 1_500_000_000 + n * 1000, tv_nsec: 123_456_789 };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}
