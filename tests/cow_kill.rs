//! The server of a writable disk killed at random moments: nothing that was flushed is lost, and
//! nothing is there that was never written.
//!
//! `STRATA_KILLS` says how often (100), `STRATA_SEED` where to begin.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod cow;
#[path = "cow/sectors.rs"]
mod sectors;
mod support;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::{self, sleep};
use std::time::Duration;

use cow::{Rng, Server, setting};
use rustix::fs::{FallocateFlags, fallocate, fdatasync};
use sectors::{DISK, Ledger, SECTOR, SECTORS, offset, stripe};
use support::{run, strata, tool};
use tempfile::TempDir;

/// Whose server it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    Strata,
    /// Shows that the test is right where the server is known to be.
    Qemu,
}

impl Program {
    /// Threads that write at once. fio sees the export of QEMU 7.2 mix up writes that are under way together.
    fn writers(self) -> usize {
        if self == Self::Strata { 4 } else { 1 }
    }
}

/// A base image, its delta, and where they are served.
struct Disk {
    dir: TempDir,
    program: Program,
    ledger: Ledger,
}

impl Disk {
    fn new(program: Program, seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::new(seed);
        ledger.write_base(&File::create(dir.path().join("base.raw")).unwrap()).unwrap();
        fs::create_dir(dir.path().join("mnt")).unwrap();
        let disk = Self { dir, program, ledger };
        if program == Program::Qemu {
            File::create(disk.point()).unwrap();
            let create = ["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw"];
            run(tool("qemu-img", "qemu-utils").args(create).arg(disk.delta()));
        }
        disk
    }

    fn delta(&self) -> PathBuf {
        self.dir.path().join("delta.qcow2")
    }

    fn point(&self) -> PathBuf {
        self.dir.path().join(if self.program == Program::Strata { "mnt" } else { "disk" })
    }

    fn file(&self) -> PathBuf {
        let point = self.point();
        if self.program == Program::Strata { point.join("disk.img") } else { point }
    }

    fn serve(&self) -> Command {
        if self.program == Program::Strata {
            let mut command = strata();
            command.args(["mount", "--foreground", "--view=disk", "--cow"]).arg(self.delta());
            command.arg(self.dir.path().join("base.raw")).arg(self.point());
            return command;
        }
        let mut command = tool("qemu-storage-daemon", "qemu-system-x86");
        let (delta, point) = (self.delta(), self.point());
        command.arg("--blockdev").arg(format!("file,node-name=f,filename={}", delta.display()));
        command.args(["--blockdev", "qcow2,node-name=d,file=f,discard=unmap", "--export"]);
        command.arg(format!("fuse,id=e,node-name=d,mountpoint={},writable=on", point.display()));
        command
    }

    fn start(&self) -> Server {
        Server::start(&mut self.serve(), &self.point())
    }

    /// The delta, closed, is what `qemu-img check` calls clean.
    #[track_caller]
    fn assert_sound(&self) {
        if self.program == Program::Qemu {
            // It leaves lost clusters to whoever looks for them.
            tool("qemu-img", "qemu-utils")
                .args(["check", "-q", "-r", "all"])
                .arg(self.delta())
                .output()
                .unwrap();
        }
        run(tool("qemu-img", "qemu-utils").args(["check", "-q"]).arg(self.delta()));
    }

    #[track_caller]
    fn assert_right(&self, file: &Path, when: &str) {
        if let Err(wrong) = self.ledger.check(&File::open(file).unwrap()) {
            let kept = self.dir.path().with_extension("kept");
            let _ = fs::copy(self.delta(), &kept);
            panic!("{when}: {wrong}\nthe delta is kept as {}", kept.display());
        }
    }
}

/// Writes, reads back and flushes until the server is gone, and tells `done` of each operation, whether it
/// was a flush. `killed` is set before it is killed.
fn write(
    disk: &Disk,
    writer: usize,
    mut rng: Rng,
    killed: &AtomicBool,
    done: &mut dyn FnMut(bool),
) {
    let ended = |result: io::Result<()>, what: &str| match result {
        Ok(()) => false,
        Err(_) if killed.load(SeqCst) => true,
        Err(error) => panic!("{what}: {error}"),
    };
    // Some past the page cache, some through it.
    let direct = if writer.is_multiple_of(2) { libc::O_DIRECT } else { 0 };
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(direct);
    let file = match options.open(disk.file()) {
        Ok(file) => file,
        Err(_) if killed.load(SeqCst) => return,
        Err(error) => panic!("opening the disk: {error}"),
    };
    let ledger = &disk.ledger;
    loop {
        let sector = rng.below(SECTORS as u64) as usize;
        let (first, count) = stripe(sector);
        if first / count % disk.program.writers() != writer {
            continue;
        }
        let longest = [1, 8, 64, 512][rng.below(4) as usize];
        let len = (1 + rng.below(longest) as usize).min(first + count - sector);
        let zeros = disk.program == Program::Strata && rng.one_in(8);
        let result = if rng.one_in(8) {
            let mut bytes = vec![0; len * SECTOR];
            let result = file.read_exact_at(&mut bytes, offset(sector));
            if result.is_ok() {
                for (at, bytes) in (sector..).zip(bytes.chunks_exact(SECTOR)) {
                    assert!(ledger.is_newest(at, bytes), "sector {at} reads not as written last");
                }
            }
            result
        } else if zeros {
            ledger.issue_zeros(sector, len);
            let punch = if rng.one_in(2) {
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE
            } else {
                FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE
            };
            let result = fallocate(&file, punch, offset(sector), (len * SECTOR) as u64);
            result.map_err(Into::into).inspect(|()| ledger.completed(sector, len))
        } else {
            let bytes = ledger.issue(sector, len);
            let result = file.write_all_at(&bytes, offset(sector));
            result.inspect(|()| ledger.completed(sector, len))
        };
        if ended(result, "a read or write") {
            return;
        }
        done(false);
        if rng.one_in(10) {
            let writes = ledger.flush_begins();
            let result = fdatasync(&file).map_err(Into::into);
            if ended(result.inspect(|()| ledger.flushed(&writes)), "a flush") {
                return;
            }
            done(true);
        }
    }
}

/// A server under load, and its end: by a kill, or while it is told to end.
fn load_and_kill(disk: &Disk, server: Server, rng: &mut Rng, done: &Done) {
    let (killed, operations) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for writer in 0..disk.program.writers() {
            let rng = Rng(rng.next());
            let (killed, operations) = (&killed, &operations);
            scope.spawn(move || {
                write(disk, writer, rng, killed, &mut |flush| {
                    let kind = if flush { &done.flushes } else { &done.reads_and_writes };
                    kind.fetch_add(1, SeqCst);
                    operations.fetch_add(1, SeqCst);
                });
            });
        }
        cow::sleep_over(&operations, 100, rng);
        killed.store(true, SeqCst);
        server.kill();
    });
}

/// What all rounds did.
#[derive(Debug, Default)]
struct Done {
    reads_and_writes: AtomicU64,
    flushes: AtomicU64,
    second_kills: AtomicU64,
    read_by_qemu: AtomicU64,
}

fn kill_again_and_again(program: Program, kills: u64) {
    support::require_root();
    let seed = setting("STRATA_SEED", 1);
    let done = Done::default();
    cow::in_lanes(kills, seed, |kills, rng| kill_one_disk(program, kills, rng, seed, &done));
    println!("{program:?} killed {kills} times from seed {seed}: {done:?}");
}

fn kill_one_disk(program: Program, kills: u64, mut rng: Rng, seed: u64, done: &Done) {
    let mut disk = Disk::new(program, rng.next());
    for kill in 0..kills {
        // A delta that has been written for long allocates little: begin anew.
        if rng.one_in(8) {
            disk = Disk::new(program, rng.next());
        }
        load_and_kill(&disk, disk.start(), &mut rng, done);
        if rng.one_in(4) {
            done.second_kills.fetch_add(1, SeqCst);
            // Killed as it opens what was killed, or as it closes.
            let server = Server::spawn(&mut disk.serve(), &disk.point());
            sleep(Duration::from_micros(rng.below(30_000)));
            if rng.one_in(2) || !cow::is_mounted(&disk.point()) {
                server.kill();
            } else {
                server.end_within(Duration::from_micros(rng.below(3_000)));
            }
        }
        let when = format!("after kill {kill} from seed {seed}");
        let server = disk.start();
        disk.assert_right(&disk.file(), &when);
        server.close();
        disk.assert_sound();
        if rng.one_in(16) {
            done.read_by_qemu.fetch_add(1, SeqCst);
            // What QEMU reads is the same.
            let raw = disk.dir.path().join("raw");
            let convert = ["convert", "-f", "qcow2", "-O", "raw"];
            run(tool("qemu-img", "qemu-utils").args(convert).arg(disk.delta()).arg(&raw));
            disk.assert_right(&raw, &format!("{when}, as QEMU reads it"));
            fs::remove_file(raw).unwrap();
        }
    }
}

#[test]
fn a_killed_server_loses_nothing_that_was_flushed() {
    kill_again_and_again(Program::Strata, setting("STRATA_KILLS", 100));
}

/// The test itself holds beside a server known to be right.
#[test]
fn a_killed_qemu_loses_nothing_that_was_flushed() {
    kill_again_and_again(Program::Qemu, setting("STRATA_KILLS_OF_QEMU", 5));
}

/// What is closed in order keeps what was never flushed.
#[test]
fn what_was_written_is_there_after_an_unmount() {
    support::require_root();
    let disk = Disk::new(Program::Strata, 2);
    let server = disk.start();
    let file = OpenOptions::new().write(true).open(disk.file()).unwrap();
    for sector in (0..SECTORS).step_by(24) {
        let len = stripe(sector).1.min(5).min(SECTORS - sector);
        let bytes = disk.ledger.issue(sector, len);
        // A run that crosses the end of an island goes to two places.
        for (at, bytes) in (sector..).zip(bytes.chunks_exact(SECTOR)) {
            file.write_all_at(bytes, offset(at)).unwrap();
        }
        disk.ledger.completed(sector, len);
    }
    drop(file);
    disk.ledger.flushed(&disk.ledger.flush_begins());
    server.close();
    disk.assert_sound();
    let server = disk.start();
    disk.assert_right(&disk.file(), "after an unmount");
    server.close();
}

#[test]
fn the_check_sees_what_is_lost_torn_or_foreign() {
    let ledger = Ledger::new(3);
    let file = tempfile::tempfile().unwrap();
    ledger.write_base(&file).unwrap();
    assert_eq!(file.metadata().unwrap().len(), DISK);
    ledger.check(&file).unwrap();
    let at = SECTORS / 2;
    let first = ledger.issue(at, 1);
    ledger.check(&file).expect("a write that never arrived may be lost");
    file.write_all_at(&first, offset(at)).unwrap();
    assert!(ledger.check(&file).is_err(), "it was lost before, and is back");

    let second = ledger.issue(at, 1);
    ledger.completed(at, 1);
    ledger.flushed(&ledger.flush_begins());
    assert!(ledger.check(&file).is_err(), "lost after a flush");
    file.write_all_at(&second, offset(at)).unwrap();
    ledger.check(&file).unwrap();
    file.write_all_at(&second, offset(at + 1)).unwrap();
    assert!(ledger.check(&file).is_err(), "in the wrong place");
    file.write_all_at(&ledger.issue(at + 1, 1), offset(at + 1)).unwrap();
    ledger.check(&file).unwrap();
    file.write_all_at(&[0; 17], offset(at) + 300).unwrap();
    assert!(ledger.check(&file).is_err(), "torn");
    ledger.issue_zeros(at, 1);
    file.write_all_at(&[0; SECTOR], offset(at)).unwrap();
    ledger.check(&file).unwrap();
    assert!(ledger.is_newest(at, &[0; SECTOR]) && !ledger.is_newest(at, &second));
}
