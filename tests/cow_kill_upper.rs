//! The server of a writable tree killed at random moments: each name and mode is as the last call that
//! came back left it (or the one that was under way), each block of each file is a version that was
//! written to it, none older than a flush, and nothing half done is to be seen.
//!
//! `STRATA_KILLS` says how often (100), `STRATA_SEED` where to begin.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod cow;
mod support;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::{self, sleep};
use std::time::Duration;

use cow::{Rng, Server, setting};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use support::{require_root, run, strata, tool};
use tempfile::TempDir;

const WRITERS: u64 = 3;
const FILES: u64 = 24;
const BLOCK: usize = 4096;

/// A block of a file, which says what it is.
fn contents(file: u64, block: usize, version: u32) -> Vec<u8> {
    let mut rng = Rng(file << 40 ^ (block as u64) << 32 ^ u64::from(version));
    let mut bytes: Vec<u8> = version.to_le_bytes().into();
    bytes.extend(std::iter::repeat_with(|| rng.next().to_le_bytes()).flatten().take(BLOCK - 4));
    bytes
}

/// Where a file is and its mode; `None` if it was removed.
type Place = Option<(String, u32)>;

/// A file of one writer, and what may be found of it.
#[derive(Debug, Clone)]
struct Owned {
    number: u64,
    /// As the last call that came back left it.
    place: Place,
    /// As the call under way would leave it.
    under_way: Option<Place>,
    /// The versions of its blocks: what must not be lost, and the newest one written.
    blocks: Vec<(u32, u32)>,
    /// Whether it may come back to the name that the image has it under.
    returns: bool,
}

impl Owned {
    fn new(number: u64, returns: bool) -> Self {
        let blocks = 1 + (number as usize * 7) % 40;
        // Some are not in the image.
        let place = (!number.is_multiple_of(6)).then(|| (name(number, number), 0o644));
        Self { number, place, under_way: None, blocks: vec![(0, 0); blocks], returns }
    }

    fn in_image(&self) -> Vec<u8> {
        (0..self.blocks.len()).flat_map(|block| contents(self.number, block, 0)).collect()
    }

    fn new_name(&self, rng: &mut Rng) -> String {
        let away = 1 + rng.below(NAMES - 1);
        name(self.number, if self.returns { rng.next() } else { self.number + away })
    }

    /// Does what changes its place, which holds from then on.
    fn change(&mut self, to: Place, call: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.under_way = Some(to.clone());
        call()?;
        self.place = to;
        self.under_way = None;
        Ok(())
    }

    /// One random operation below `root`.
    fn operate(&mut self, root: &Path, rng: &mut Rng) -> io::Result<()> {
        let Some((name_now, mode)) = self.place.clone() else {
            return self.create(root, rng);
        };
        let path = root.join(&name_now);
        match rng.below(10) {
            0..5 => {
                let file = OpenOptions::new().write(true).open(&path)?;
                let first = rng.below(self.blocks.len() as u64) as usize;
                let mut versions = Vec::new();
                for block in first..self.blocks.len().min(first + 1 + rng.below(8) as usize) {
                    self.blocks[block].1 += 1;
                    let version = self.blocks[block].1;
                    file.write_all_at(
                        &contents(self.number, block, version),
                        (block * BLOCK) as u64,
                    )?;
                    versions.push((block, version));
                }
                if rng.one_in(2) {
                    file.sync_all()?;
                    for (block, version) in versions {
                        self.blocks[block].0 = version;
                    }
                }
                Ok(())
            }
            5 | 6 => {
                let other = [0o600, 0o640, 0o644, 0o755][rng.below(4) as usize];
                self.change(Some((name_now, other)), || {
                    fs::set_permissions(&path, Permissions::from_mode(other))
                })
            }
            7 | 8 => {
                let to = self.new_name(rng);
                self.change(Some((to.clone(), mode)), || fs::rename(&path, root.join(&to)))
            }
            _ => self.change(None, || fs::remove_file(&path)),
        }
    }

    /// Writes the whole file anew under another name, flushes it and gives it its own.
    fn create(&mut self, root: &Path, rng: &mut Rng) -> io::Result<()> {
        let temporary = root.join(format!("new-{}", self.number));
        let file = File::create(&temporary)?;
        file.set_permissions(Permissions::from_mode(0o644))?;
        for (block, versions) in self.blocks.iter_mut().enumerate() {
            versions.1 += 1;
            file.write_all_at(&contents(self.number, block, versions.1), (block * BLOCK) as u64)?;
        }
        file.sync_all()?;
        for versions in &mut self.blocks {
            versions.0 = versions.1;
        }
        let to = self.new_name(rng);
        self.change(Some((to.clone(), 0o644)), || fs::rename(&temporary, root.join(&to)))
    }

    /// What is wrong with it below `root`. What is found is what holds from now on.
    fn check(&mut self, root: &Path, wrong: &mut Vec<String>) {
        let found: Vec<Place> = (0..NAMES)
            .map(|choice| name(self.number, choice))
            .filter_map(|name| {
                let mode = fs::symlink_metadata(root.join(&name)).ok()?.permissions().mode();
                Some(Some((name, mode & 0o7777)))
            })
            .collect();
        let found = match found.as_slice() {
            [] => None,
            [one] => one.clone(),
            several => return wrong.push(format!("several names: {several:?}")),
        };
        if found != self.place && Some(&found) != self.under_way.as_ref() {
            wrong.push(format!("{found:?} instead of {:?} or {:?}", self.place, self.under_way));
        }
        self.place = found;
        self.under_way = None;
        let Some((name, _)) = &self.place else { return };
        let bytes = match fs::read(root.join(name)) {
            Ok(bytes) if bytes.len() == self.blocks.len() * BLOCK => bytes,
            Ok(bytes) => return wrong.push(format!("{name} has {} bytes", bytes.len())),
            Err(error) => return wrong.push(format!("{name}: {error}")),
        };
        for (block, (found, versions)) in
            bytes.chunks_exact(BLOCK).zip(&mut self.blocks).enumerate()
        {
            let version = u32::from_le_bytes(found[..4].try_into().unwrap());
            if !(versions.0..=versions.1).contains(&version)
                || found != contents(self.number, block, version)
            {
                wrong.push(format!(
                    "{name}, block {block}: {version}? of {versions:?}, {:02x?}...",
                    &found[..16]
                ));
            }
            versions.0 = version;
        }
    }
}

/// Names that a file may have.
const NAMES: u64 = 6;

fn name(file: u64, choice: u64) -> String {
    let choice = choice % NAMES;
    // Folders of the image, one of them opened by nobody before.
    format!("{}/file-{file}-{choice}", ["", "a", "a/b", "a/b/c", "d", "e"][choice as usize])
        .trim_start_matches('/')
        .to_owned()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    Strata,
    /// Shows that the test is right where the server is known to be.
    FuseOverlayfs,
}

/// An image, its upper, and where they are served.
struct Tree {
    dir: TempDir,
    program: Program,
    files: Vec<Owned>,
}

impl Tree {
    fn new(program: Program) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // A file renamed to where a whiteout was, and removed, is back after the next mount of
        // fuse-overlayfs 1.10.
        let returns = program == Program::Strata;
        let files: Vec<_> = (0..FILES).map(|number| Owned::new(number, returns)).collect();
        let lower = dir.path().join("lower");
        for folder in ["a/b/c", "d", "e"] {
            fs::create_dir_all(lower.join(folder)).unwrap();
        }
        for file in &files {
            if let Some((name, _)) = &file.place {
                fs::write(lower.join(name), file.in_image()).unwrap();
            }
        }
        for folder in ["mnt", "upper", "work", "kernel"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let image = dir.path().join("lower.ext4");
        File::create(&image).unwrap().set_len(32 << 20).unwrap();
        run(tool("mkfs.ext4", "e2fsprogs").args(["-q", "-F", "-d"]).arg(&lower).arg(image));
        Self { dir, program, files }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn serve(&self) -> Command {
        if self.program == Program::Strata {
            let mut command = strata();
            command.args(["mount", "--foreground", "--view=files", "--work"]);
            command.arg(self.path("work")).arg("--cow").arg(self.path("upper/"));
            command.arg(self.path("lower.ext4")).arg(self.path("mnt"));
            return command;
        }
        let mut command = tool("fuse-overlayfs", "fuse-overlayfs");
        let [lower, upper, work] = ["lower", "upper", "work"].map(|name| self.path(name));
        let layers = [("lowerdir", lower), ("upperdir", upper), ("workdir", work)]
            .map(|(option, path)| format!("{option}={}", path.display()));
        command.arg("-f").arg("-o").arg(layers.join(",")).arg(self.path("mnt"));
        command
    }

    fn start(&self) -> Server {
        Server::start(&mut self.serve(), &self.path("mnt"))
    }

    fn load_and_kill(&mut self, rng: &mut Rng, operations: &AtomicU64) {
        let server = self.start();
        // Held, not named: once it is unmounted, the name is that of the folder beneath, where a writer
        // that saw no error yet would go on.
        let held = File::open(self.path("mnt")).unwrap();
        let root = PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd()));
        let (killed, done) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            let share = usize::try_from(FILES / WRITERS).unwrap();
            for files in self.files.chunks_mut(share) {
                let (mut rng, root) = (Rng(rng.next()), &root);
                let (killed, done) = (&killed, &done);
                scope.spawn(move || {
                    loop {
                        let file = rng.below(files.len() as u64) as usize;
                        if let Err(error) = files[file].operate(root, &mut rng) {
                            assert!(killed.load(SeqCst), "{:?}: {error}", files[file]);
                            return;
                        }
                        operations.fetch_add(1, SeqCst);
                        done.fetch_add(1, SeqCst);
                    }
                });
            }
            cow::sleep_over(&done, 100, rng);
            killed.store(true, SeqCst);
            server.kill();
        });
        drop(held);
        let beneath = walk(&self.path("mnt"));
        assert!(beneath.is_empty(), "written beneath the mount: {beneath:?}");
    }

    /// Checks every file below `root`, and that nothing else is there.
    #[track_caller]
    fn assert_right(&mut self, root: &Path, when: &str) {
        let mut wrong = Vec::new();
        let mut names = BTreeSet::from(["a", "a/b", "a/b/c", "d", "e"].map(PathBuf::from));
        for file in &mut self.files {
            file.check(root, &mut wrong);
            names.extend(file.place.iter().map(|(name, _)| PathBuf::from(name)));
            // It may have been under way, and then is as the writer left it.
            let _ = fs::remove_file(root.join(format!("new-{}", file.number)));
        }
        for path in walk(root) {
            let path = path.strip_prefix(root).unwrap();
            if !names.contains(path) && path != Path::new("lost+found") {
                wrong.push(format!("{}: nobody made this", path.display()));
            }
        }
        if !wrong.is_empty() {
            let kept = self.dir.path().with_extension("kept");
            run(Command::new("cp").arg("-a").arg(self.dir.path()).arg(&kept));
            panic!("{when}: {}\nkept as {}", wrong.join("\n"), kept.display());
        }
    }

    /// The kernel reads the same from image and upper.
    #[track_caller]
    fn assert_same_to_the_kernel(&mut self, when: &str) {
        let [image, lower, kernel, upper] =
            ["lower.ext4", "mnt", "kernel", "upper"].map(|name| self.path(name));
        run(tool("mount", "mount").args(["-o", "loop,ro"]).arg(image).arg(&lower));
        // Without an upper of its own it changes nothing.
        let layers = format!("lowerdir={}:{}", upper.display(), lower.display());
        let options = format!("{layers},metacopy=on,redirect_dir=follow");
        run(tool("mount", "mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&kernel));
        let mut files = self.files.clone();
        let mut wrong = Vec::new();
        files.iter_mut().for_each(|file| file.check(&kernel, &mut wrong));
        unmount(&kernel);
        unmount(&lower);
        assert!(wrong.is_empty(), "{when}, as the kernel reads it: {}", wrong.join("\n"));
    }
}

/// A child that another lane is about to start has all our files for a moment.
#[track_caller]
fn unmount(point: &Path) {
    let mut result = Ok(());
    for _ in 0..1000 {
        result = rustix::mount::unmount(point, UnmountFlags::empty());
        if result != Err(Errno::BUSY) {
            break;
        }
        sleep(Duration::from_millis(5));
    }
    result.unwrap_or_else(|errno| panic!("unmounting {}: {errno}", point.display()));
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        found.push(entry.path());
        if entry.file_type().unwrap().is_dir() {
            found.extend(walk(&entry.path()));
        }
    }
    found
}

fn kill_again_and_again(program: Program, kills: u64) {
    require_root();
    let seed = setting("STRATA_SEED", 1);
    let operations = AtomicU64::new(0);
    cow::in_lanes(kills, seed, |kills, rng| kill_one_tree(program, kills, rng, seed, &operations));
    println!("{program:?} killed {kills} times from seed {seed}: {operations:?} operations");
}

fn kill_one_tree(program: Program, kills: u64, mut rng: Rng, seed: u64, operations: &AtomicU64) {
    let mut tree = Tree::new(program);
    for kill in 0..kills {
        if rng.one_in(6) {
            tree = Tree::new(program);
        }
        tree.load_and_kill(&mut rng, operations);
        if rng.one_in(4) {
            let server = Server::spawn(&mut tree.serve(), &tree.path("mnt"));
            sleep(Duration::from_micros(rng.below(30_000)));
            server.kill();
        }
        let when = format!("after kill {kill} from seed {seed}");
        let server = tree.start();
        let root = tree.path("mnt");
        tree.assert_right(&root, &when);
        if program == Program::FuseOverlayfs {
            // It ends with status 1 when it is told to end.
            server.end_within(Duration::from_secs(10));
        } else {
            server.close();
            tree.assert_same_to_the_kernel(&when);
            let left = walk(&tree.path("work")).iter().filter(|path| path.is_file()).count();
            assert_eq!(left, 0, "{when}: unfinished files in the work folder");
        }
    }
}

#[test]
fn a_killed_server_leaves_no_file_half_changed() {
    kill_again_and_again(Program::Strata, setting("STRATA_KILLS", 100));
}

/// The test itself holds beside a server known to be right.
#[test]
fn a_killed_fuse_overlayfs_leaves_no_file_half_changed() {
    kill_again_and_again(Program::FuseOverlayfs, setting("STRATA_KILLS_OF_FUSE_OVERLAYFS", 5));
}
