//! `strata mount` and `strata unmount` as programs: their processes, signals and users.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;
use std::process::Command;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use support::{as_nobody, require_open_device, run, tool};

/// A raw image of odd size, and a folder to mount it on.
struct Image {
    dir: tempfile::TempDir,
    bytes: Vec<u8>,
}

impl Image {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> =
            (0..1_500_000_u64 / 512 * 512).map(|at| ((at * at) >> 7) as u8).collect();
        fs::write(dir.path().join("image.raw"), &bytes).unwrap();
        fs::create_dir(dir.path().join("mnt")).unwrap();
        Self { dir, bytes }
    }

    /// Hands all of it to another user.
    fn owned_by(self, uid: u32) -> Self {
        for path in [self.dir.path().to_owned(), self.path(), self.point()] {
            std::os::unix::fs::chown(path, Some(uid), Some(uid)).unwrap();
        }
        self
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("image.raw")
    }

    fn point(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn mount(&self) -> Command {
        let mut command = support::strata();
        command.args(["mount", "--view=disk"]).arg(self.path()).arg(self.point());
        command
    }

    /// `strata unmount` of the folder, which must succeed.
    fn unmount(&self) {
        run(support::strata().arg("unmount").arg(self.point()));
        assert!(!self.is_mounted());
    }

    fn is_mounted(&self) -> bool {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let point = self.point();
        table.lines().any(|line| line.split(' ').nth(4) == point.to_str())
    }

    fn assert_shown(&self) {
        assert!(fs::read(self.point().join("disk.img")).unwrap() == self.bytes);
    }

    /// The process that serves it.
    fn server(&self) -> Pid {
        let point = self.point();
        let serves = |pid: &i32| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<_> = command.split(|&byte| byte == 0).collect();
            words.contains(&&b"mount"[..]) && words.contains(&point.as_os_str().as_encoded_bytes())
        };
        let pid = fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
            .find(serves);
        Pid::from_raw(pid.expect("a server")).unwrap()
    }

    /// Sends the server a signal and waits for its end.
    fn signal(&self, signal: Signal) {
        let pid = self.server();
        let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        pidfd_send_signal(&process, signal).unwrap();
        wait_for_end(&process);
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // Whatever a failed test left.
        let _ = rustix::mount::unmount(self.point(), rustix::mount::UnmountFlags::DETACH);
    }
}

fn wait_for_end(process: &OwnedFd) {
    let mut end = [PollFd::new(process, PollFlags::IN)];
    poll(&mut end, None).unwrap();
}

#[test]
fn the_program_returns_once_it_serves_and_unmount_once_the_server_is_gone() {
    support::require_root();
    let image = Image::new();
    let output = run(&mut image.mount());
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    image.assert_shown();
    let process = pidfd_open(image.server(), PidfdFlags::empty()).unwrap();
    image.unmount();
    let mut end = [PollFd::new(&process, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    assert_eq!(poll(&mut end, Some(&now)), Ok(1), "the server is still there");
}

#[test]
fn the_server_leaves_the_terminal_and_the_folder_it_was_started_in() {
    support::require_root();
    let image = Image::new();
    run(image.mount().current_dir(image.dir.path()));
    let proc = PathBuf::from(format!("/proc/{}", image.server().as_raw_nonzero()));
    assert_eq!(fs::read_link(proc.join("cwd")).unwrap(), PathBuf::from("/"));
    for fd in ["fd/0", "fd/1", "fd/2"] {
        assert_eq!(fs::read_link(proc.join(fd)).unwrap(), PathBuf::from("/dev/null"));
    }
    let server = image.server();
    assert_eq!(rustix::process::getsid(Some(server)), Ok(server));
    // A hangup is for programs with a terminal.
    rustix::process::kill_process(server, Signal::HUP).unwrap();
    image.assert_shown();
    image.unmount();
}

#[test]
fn sigterm_and_sigint_unmount() {
    support::require_root();
    for signal in [Signal::TERM, Signal::INT] {
        let image = Image::new();
        run(&mut image.mount());
        image.signal(signal);
        assert!(!image.is_mounted());
    }
}

#[test]
fn sigterm_while_in_use_serves_on_until_the_last_user_is_gone() {
    support::require_root();
    let image = Image::new();
    run(&mut image.mount());
    let file = File::open(image.point().join("disk.img")).unwrap();
    let process = pidfd_open(image.server(), PidfdFlags::empty()).unwrap();
    pidfd_send_signal(&process, Signal::TERM).unwrap();
    while image.is_mounted() {
        std::thread::yield_now();
    }
    let mut bytes = Vec::new();
    (&file).read_to_end(&mut bytes).unwrap();
    assert!(bytes == image.bytes);
    drop(file);
    wait_for_end(&process);
}

#[test]
fn in_the_foreground_it_ends_with_success_when_somebody_unmounts() {
    support::require_root();
    let image = Image::new();
    let mut server = image.mount().arg("--foreground").spawn().unwrap();
    while !image.is_mounted() {
        assert!(server.try_wait().unwrap().is_none(), "ended early");
        std::thread::yield_now();
    }
    image.assert_shown();
    run(tool("umount", "mount").arg(image.point()));
    assert!(server.wait().unwrap().success());
}

#[test]
fn after_kill_9_the_folder_can_be_mounted_again_or_unmounted() {
    support::require_root();
    let image = Image::new();
    run(&mut image.mount());
    // Fill the kernel's caches: they must not hide that the server is gone.
    image.assert_shown();
    assert_eq!(fs::read_dir(image.point()).unwrap().count(), 1);
    image.signal(Signal::KILL);
    assert!(image.is_mounted());
    run(&mut image.mount());
    image.assert_shown();
    image.signal(Signal::KILL);
    image.unmount();
    assert_eq!(fs::read_dir(image.point()).unwrap().count(), 0);
}

#[test]
fn unmounting_what_is_in_use_names_who_and_lazy_does_it() {
    support::require_root();
    let image = Image::new();
    run(&mut image.mount());
    let mut user = Command::new("sleep").arg("1000").current_dir(image.point()).spawn().unwrap();
    let refused = support::strata().arg("unmount").arg(image.point()).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let told = String::from_utf8(refused.stderr).unwrap();
    assert!(told.contains(&format!("sleep (process {})", user.id())), "{told}");
    assert!(told.contains("strata unmount --lazy"), "{told}");
    run(support::strata().arg("unmount").arg("--lazy").arg(image.point()));
    assert!(!image.is_mounted());
    user.kill().unwrap();
    user.wait().unwrap();
}

#[test]
fn a_server_that_hangs_can_be_cut_off() {
    support::require_root();
    let image = Image::new();
    run(&mut image.mount());
    let server = pidfd_open(image.server(), PidfdFlags::empty()).unwrap();
    pidfd_send_signal(&server, Signal::STOP).unwrap();
    run(support::strata().arg("unmount").arg("--force").arg(image.point()));
    assert!(!image.is_mounted());
    pidfd_send_signal(&server, Signal::CONT).unwrap();
    wait_for_end(&server);
}

#[test]
fn what_fails_before_serving_is_told_and_the_status_passed_on() {
    let image = Image::new();
    fs::remove_file(image.path()).unwrap();
    let output = image.mount().output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.starts_with("strata: ") && told.contains("image.raw"), "{told}");
    let output = support::strata().arg("unmount").arg(image.point()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("nothing is mounted here"));
}

#[test]
fn fstab_and_mount_fuse_way_of_asking_work() {
    support::require_root();
    let image = Image::new();
    let link = image.dir.path().join("mount.fuse.strata");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_strata"), &link).unwrap();
    let options = "rw,noauto,nofail,_netdev,x-systemd.automount,view=disk,cache_size=64M";
    run(Command::new(&link).arg(image.path()).arg(image.point()).args(["-n", "-o", options]));
    image.assert_shown();
    image.unmount();
    run(support::strata().arg(image.path()).arg(image.point()).args(["-o", "view=disk,dev,suid"]));
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.contains(image.point().to_str().unwrap())).unwrap();
    assert!(line.contains("nosuid") && line.contains("nodev"), "{line}");
    image.unmount();
}

#[test]
fn an_ordinary_user_mounts_and_unmounts() {
    support::require_root();
    require_open_device();
    tool("fusermount3", "fuse3");
    let image = Image::new().owned_by(65534);
    let strata = OsStr::new(env!("CARGO_BIN_EXE_strata"));
    let as_user = |args: &[&OsStr]| {
        let output = as_nobody([strata].into_iter().chain(args.iter().copied())).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
    };
    let (path, point) = (image.path(), image.point());
    as_user(&["mount".as_ref(), "--view=disk".as_ref(), path.as_ref(), point.as_ref()]);
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.contains(point.to_str().unwrap())).unwrap();
    assert!(line.contains("nosuid") && line.contains(" - fuse.strata "), "{line}");
    let shown = as_nobody(["cat".as_ref(), point.join("disk.img").as_os_str()]).output().unwrap();
    assert!(shown.stdout == image.bytes, "{:?}", shown.stderr);
    // Root is another user here.
    assert_eq!(fs::read_dir(&point).unwrap_err().raw_os_error(), Some(libc::EACCES));
    as_user(&["unmount".as_ref(), point.as_ref()]);
    assert!(!image.is_mounted());
}

#[test]
fn inside_a_user_namespace_no_privilege_is_needed() {
    support::require_root();
    require_open_device();
    let image = Image::new().owned_by(65534);
    let script = format!(
        "set -e; '{strata}' mount --view=disk '{path}' '{point}'; cmp '{path}' '{point}/disk.img'; \
         '{strata}' unmount '{point}'; ! test -e '{point}/disk.img'",
        strata = env!("CARGO_BIN_EXE_strata"),
        path = image.path().display(),
        point = image.point().display(),
    );
    let output =
        as_nobody(["unshare", "-Urm", "sh", "-c", &script].map(OsStr::new)).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_truncated_image_reads_as_eio_and_is_logged_once() {
    support::require_root();
    require_open_device();
    let image = Image::new().owned_by(65534);
    let (path, point) = (image.path(), image.point());
    let log = image.dir.path().join("log");
    // An ordinary user's reads always pass through us.
    let strata = OsStr::new(env!("CARGO_BIN_EXE_strata"));
    let mut mount = as_nobody([strata, "mount".as_ref(), "--view=disk".as_ref()]);
    run(mount.arg("--log").arg(&log).arg(&path).arg(&point));
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(4096).unwrap();
    let read = |skip: &str| {
        let mut dd = as_nobody(["dd", "iflag=direct", "bs=4096", "count=1"].map(OsStr::new));
        dd.arg(format!("if={}", point.join("disk.img").display())).arg(format!("skip={skip}"));
        dd.output().unwrap()
    };
    for _ in 0..3 {
        let told = read("9");
        assert!(String::from_utf8_lossy(&told.stderr).contains("Input/output error"), "{told:?}");
    }
    assert_eq!(read("0").stdout, image.bytes[..4096]);
    run(as_nobody([strata, "unmount".as_ref()]).arg(&point));
    let log = fs::read_to_string(log).unwrap();
    assert_eq!(log.lines().count(), 1, "{log}");
    assert!(log.contains("image.raw") && log.contains("cut short since it was opened"), "{log}");
}

/// A signal to whoever waits makes the kernel ask for an interruption. That nobody waits for the answer to
/// that is no failure.
#[test]
fn an_interrupted_caller_is_nothing_to_tell_of() {
    support::require_root();
    let image = Image::new();
    let log = image.dir.path().join("log");
    let mut mount = support::strata();
    mount.args(["mount", "--view=disk", "--cow"]).arg(image.dir.path().join("delta.qcow2"));
    mount.arg("--log").arg(&log).env("STRATA_LOG", "fuser=debug");
    run(mount.arg(image.path()).arg(image.point()));
    let script = "
import os, signal, sys
signal.signal(signal.SIGALRM, lambda *_: None)
disk = os.open(sys.argv[1], os.O_RDWR)
signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
for number in range(300):
    os.pwrite(disk, bytes([number % 256]) * 65536, number % 20 * 65536)
    os.fsync(disk)
signal.setitimer(signal.ITIMER_REAL, 0)
";
    let disk = image.point().join("disk.img");
    run(tool("python3", "python3").args(["-c", script]).arg(disk));
    image.unmount();
    let log = fs::read_to_string(log).unwrap();
    assert!(log.contains("INTERRUPT"), "nobody was interrupted");
    assert!(!log.contains("error: "), "{:?}", log.lines().find(|line| line.contains("error: ")));
}
