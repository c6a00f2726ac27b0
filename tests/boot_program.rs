//! `strata boot`: what it tells QEMU, machines that really run, and what is left of them.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use support::{fixture, qemu_img, run, strata, tool};

/// How long something that takes seconds, or minutes on a busy emulator, is waited for.
const LIMIT: Duration = Duration::from_secs(420);

/// A folder with all that a test's machines have on the host.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, mode) in [("run", 0o700), ("tmp", 0o700)] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::set_permissions(dir.path().join(name), PermissionsExt::from_mode(mode)).unwrap();
        }
        Self(dir)
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `strata boot` with all its files in here.
    fn boot(&self) -> Command {
        let mut command = strata();
        command.arg("boot");
        self.inside(&mut command);
        command
    }

    fn inside(&self, command: &mut Command) {
        command.env("TMPDIR", self.join("tmp")).env("XDG_RUNTIME_DIR", self.join("run"));
        command.stdin(Stdio::null());
    }

    /// What a machine that does nothing but live is run by; it says so first.
    fn idler(&self) -> PathBuf {
        let path = self.join("idler");
        fs::write(&path, "#!/bin/sh\necho \"$@\"\nexec sleep 1000\n").unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path
    }

    /// Starts an idle machine; returns once it runs.
    fn idle(&self, name: &str, image: &Path) -> Machine {
        let mut command = self.boot();
        command.arg("--qemu").arg(self.idler()).arg(image);
        let machine = self.start(name, &mut command);
        machine.wait_for("virtio-blk-pci");
        machine
    }

    fn start(&self, name: &str, command: &mut Command) -> Machine {
        let console = self.join(name);
        let complaints = self.join(&format!("{name}.err"));
        command.stdout(File::create(&console).unwrap()).stderr(File::create(&complaints).unwrap());
        Machine { process: command.spawn().unwrap(), console, complaints }
    }

    /// The servers of disks in here.
    fn servers(&self) -> Vec<Pid> {
        let run = self.join("run");
        let serves = |pid: &i32| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).into_owned();
            command.contains("--while-locked") && command.contains(run.to_str().unwrap())
        };
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(serves).filter_map(Pid::from_raw).collect()
    }

    /// Waits until nothing is left: no server, no mount, no file.
    #[track_caller]
    fn assert_clean(&self) {
        let left = || {
            let mut left: Vec<String> =
                self.servers().iter().map(|pid| format!("process {pid:?}")).collect();
            let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
            let here = self.0.path().to_str().unwrap();
            left.extend(table.lines().filter(|line| line.contains(here)).map(String::from));
            for folder in ["run/strata", "tmp"] {
                let entries = fs::read_dir(self.join(folder)).into_iter().flatten().flatten();
                left.extend(entries.map(|entry| entry.path().display().to_string()));
            }
            left
        };
        let started = Instant::now();
        while !left().is_empty() {
            assert!(started.elapsed() < LIMIT, "left behind: {:#?}", left());
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Whatever a failed test left.
        for server in self.servers() {
            let _ = rustix::process::kill_process(server, Signal::KILL);
        }
        for entry in fs::read_dir(self.join("run/strata")).into_iter().flatten().flatten() {
            let _ = rustix::mount::unmount(entry.path(), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// A machine, which is switched off when the test ends.
struct Machine {
    process: Child,
    console: PathBuf,
    complaints: PathBuf,
}

impl Machine {
    fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap()).into_owned()
    }

    fn complained(&self) -> String {
        fs::read_to_string(&self.complaints).unwrap()
    }

    #[track_caller]
    fn wait_for(&self, text: &str) {
        let started = Instant::now();
        while !self.said().contains(text) {
            let complaints = self.complained();
            let failed = complaints.lines().any(|line| line.starts_with("qemu-system"));
            let late = started.elapsed() > LIMIT;
            assert!(!late && !failed, "no {text}:\n{}\n{complaints}", self.said());
            thread::sleep(Duration::from_millis(20));
        }
    }

    #[track_caller]
    fn end(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(started.elapsed() < LIMIT, "goes on:\n{}\n{}", self.said(), self.complained());
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.process.id().try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The whole operating system of the small guest: it counts its starts in a file, says what is in
/// another, and switches itself off, or stays if it is told to `hold`.
const INIT: &str = r#"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <unistd.h>
int main(int argc, char **argv) {
    unsigned long sum = 14695981039346656037UL;
    char buffer[65536];
    mount(0, "/", 0, MS_REMOUNT, 0);
    int data = open("/data", O_RDONLY);
    for (long n; (n = read(data, buffer, sizeof buffer)) > 0;)
        for (long i = 0; i < n; i++) sum = (sum ^ (unsigned char)buffer[i]) * 1099511628211UL;
    int starts = open("/starts", O_RDWR | O_CREAT | O_APPEND, 0644);
    write(starts, "x", 1);
    fsync(starts);
    printf("\nSTRATA-GUEST starts=%ld data=%lx\n", (long)lseek(starts, 0, SEEK_END), sum);
    fflush(stdout);
    close(starts);
    if (argc > 1 && !strcmp(argv[1], "hold")) for (;;) pause();
    sync();
    mount(0, "/", 0, MS_REMOUNT | MS_RDONLY, 0);
    reboot(RB_POWER_OFF);
    for (;;) pause();
}
"#;

/// A disk with a kernel, what it needs to start, and [`INIT`]; and the line it will say, without
/// the number of starts.
fn small_guest(place: &Place) -> (PathBuf, String) {
    let root = place.join("root");
    for folder in ["sbin", "boot", "bin", "dev", "proc", "sys", "run", "tmp", "etc"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::write(place.join("init.c"), INIT).unwrap();
    let mut compiler = tool("gcc", "g++");
    run(compiler
        .args(["-static", "-w", "-o"])
        .arg(root.join("sbin/init"))
        .arg(place.join("init.c")));
    fs::copy(root.join("sbin/init"), root.join("bin/sh")).unwrap();
    let debian = fixture("debian.qcow2");
    for (from, to) in
        [("/vmlinuz", "boot/vmlinuz-1.2-test"), ("/initrd.img", "boot/initrd.img-1.2-test")]
    {
        let file = File::create(root.join(to)).unwrap();
        assert!(
            strata().arg("cat").arg(&debian).arg(from).stdout(file).status().unwrap().success()
        );
    }
    std::os::unix::fs::symlink("boot/vmlinuz-1.2-test", root.join("vmlinuz")).unwrap();
    let data: Vec<u8> = (0..3_000_000_u64).map(|at| ((at * at) >> 11) as u8).collect();
    let sum = data.iter().fold(14_695_981_039_346_656_037_u64, |sum, &byte| {
        (sum ^ u64::from(byte)).wrapping_mul(1_099_511_628_211)
    });
    fs::write(root.join("data"), data).unwrap();
    let raw = place.join("guest.raw");
    let mut mkfs = tool("mke2fs", "e2fsprogs");
    run(mkfs.args(["-q", "-t", "ext4", "-d"]).arg(&root).arg(&raw).arg("160M"));
    let image = place.join("guest.qcow2");
    qemu_img([
        OsStr::new("convert"),
        "-O".as_ref(),
        "qcow2".as_ref(),
        raw.as_ref(),
        image.as_ref(),
    ]);
    fs::remove_file(raw).unwrap();
    fs::remove_dir_all(root).unwrap();
    (image, format!("data={sum:x}"))
}

fn dry(place: &Place, args: &[&str], image: &Path) -> (String, String) {
    let output = run(place.boot().arg("--dry-run").args(args).arg(image));
    assert!(!place.join("run/strata").exists(), "a dry run did something");
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr))
}

fn raw(place: &Place, name: &str, sector: &[(usize, &[u8])]) -> PathBuf {
    let path = place.join(name);
    let mut bytes = vec![0; 8 << 20];
    for (at, part) in sector {
        bytes[*at..*at + part.len()].copy_from_slice(part);
    }
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn a_dry_run_prints_one_line_that_a_shell_can_read() {
    let place = Place::new();
    let image = raw(&place, "disk with boot code", &[(0, &[0xfa]), (510, &[0x55, 0xaa])]);
    let (command, told) = dry(&place, &["--accel=tcg", "--arch=x86_64", "--memory=1536M"], &image);
    assert_eq!(command.lines().count(), 1, "{command}");
    assert_eq!(told, "");
    assert!(command.starts_with("qemu-system-x86_64 -no-user-config -nodefaults "), "{command}");
    for part in [
        "-machine q35,accel=tcg,graphics=off",
        "-m 1536M",
        "-netdev user,id=net ",
        "-device virtio-blk-pci,drive=disk,",
        "-display none -serial mon:stdio",
        "\"filename\":\"/proc/self/fd/600\"",
        "\"no-flush\":true",
    ] {
        assert!(command.contains(part), "{part}: {command}");
    }
    assert!(!command.contains("pflash"), "a BIOS: {command}");
    // The shell takes it apart as we put it together.
    let words = run(tool("sh", "dash").args(["-c", &format!("printf '%s\\n' {command}")])).stdout;
    let words = String::from_utf8(words).unwrap();
    let node = words.lines().find(|word| word.contains("\"backing\"")).unwrap();
    let node: serde_json::Value = serde_json::from_str(node).unwrap();
    assert_eq!((&node["backing"], &node["driver"]), (&"base".into(), &"qcow2".into()));
}

#[test]
fn a_dry_run_follows_the_options() {
    let place = Place::new();
    let image = raw(&place, "disk", &[(0, &[0xfa]), (510, &[0x55, 0xaa])]);
    let args = ["--accel=kvm", "--arch=x86_64", "--ssh=2222", "--display", "--cpus=3", "--cow"];
    let cow = place.join("changes.qcow2");
    let args: Vec<&str> = args.into_iter().chain([cow.to_str().unwrap()]).collect();
    let (command, _) = dry(&place, &args, &image);
    for part in
        ["-smp 3", "hostfwd=tcp:127.0.0.1:2222-:22", "accel=kvm", "-cpu host", "-device VGA"]
    {
        assert!(command.contains(part), "{part}: {command}");
    }
    assert!(
        command.contains("changes.qcow2") && command.contains("\"no-flush\":false"),
        "{command}"
    );
    assert!(!command.contains("-display none") && !cow.exists(), "{command}");

    let mut extra = place.boot();
    extra.args(["--dry-run", "--network=none", "--qemu=/opt/my qemu"]).arg(&image);
    let output = run(extra.args(["--", "-cdrom", "a b.iso"]));
    let command = String::from_utf8(output.stdout).unwrap();
    assert!(command.starts_with("'/opt/my qemu' ") && !command.contains("netdev"), "{command}");
    assert!(command.ends_with(" -cdrom 'a b.iso'\n"), "{command}");
}

#[test]
fn firmware_follows_from_the_disk() {
    let place = Place::new();
    let nothing = raw(&place, "nothing", &[]);
    let (command, told) = dry(&place, &["--arch=x86_64", "--accel=tcg"], &nothing);
    assert!(!command.contains("pflash") && told.contains("neither boot code nor"), "{told}");
    let esp = raw(&place, "esp", &[]);
    let table = "label: gpt\nsize=4M, type=uefi\n";
    let mut sfdisk = tool("sfdisk", "fdisk");
    fs::write(place.join("table"), table).unwrap();
    run(sfdisk.arg("-q").arg(&esp).stdin(File::open(place.join("table")).unwrap()));
    assert!(
        Path::new("/usr/share/OVMF").is_dir(),
        "EFI firmware is missing: apt-get install -y ovmf"
    );
    let (command, told) = dry(&place, &["--arch=x86_64", "--accel=tcg"], &esp);
    assert_eq!(told, "");
    assert!(command.contains("pflash0=code,pflash1=variables"), "{command}");
    assert!(command.contains("OVMF_CODE"), "{command}");
    let (command, _) = dry(&place, &["--firmware=bios", "--arch=x86_64", "--accel=tcg"], &esp);
    assert!(!command.contains("pflash"), "{command}");
    // The same with a program in front of the table: a BIOS starts that.
    let mut bytes = fs::read(&esp).unwrap();
    bytes[0] = 0xfa;
    fs::write(&esp, bytes).unwrap();
    let (command, _) = dry(&place, &["--arch=x86_64", "--accel=tcg"], &esp);
    assert!(!command.contains("pflash"), "{command}");
}

#[test]
fn kernels_come_out_of_the_image() {
    let place = Place::new();
    let debian = fixture("debian-snapshot.qcow2");
    let mut snapshot = debian.clone().into_os_string();
    snapshot.push("::before");
    let kernel = ["--kernel=image:/vmlinuz", "--append=quiet -x", "--accel=tcg"];
    let (command, told) = dry(&place, &kernel, Path::new(&snapshot));
    let expected = "-kernel /proc/self/fd/600 -initrd /proc/self/fd/601 \
                    -append 'root=/dev/vda2 ro console=ttyS0 no_timer_check quiet -x'";
    assert!(command.contains(expected), "{command}");
    assert!(command.starts_with("qemu-system-x86_64 "), "by its programs: {command}");
    assert_eq!(told, "");
    let (now, _) = dry(&place, &kernel, &debian);
    assert_ne!(now, command, "a snapshot is another disk");

    let missing = place.boot().args(["--dry-run", "--kernel=image:/none"]).arg(&debian).output();
    let told = String::from_utf8(missing.unwrap().stderr).unwrap();
    assert!(
        told.contains("/none: no such file") && told.contains("image:/boot/vmlinuz-"),
        "{told}"
    );
}

#[test]
fn what_makes_no_sense_is_told_and_leaves_nothing() {
    let place = Place::new();
    let image = raw(&place, "disk", &[]);
    let other = raw(&place, "other", &[]);
    let delta = place.join("delta.qcow2");
    let mut create: Vec<&OsStr> =
        ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"].map(OsStr::new).into();
    create.extend([other.as_os_str(), delta.as_os_str()]);
    qemu_img(create);
    let (delta, here) = (delta.to_str().unwrap().to_owned(), place.0.path().to_str().unwrap());
    let cases: [(&[&str], i32, &str); 5] = [
        (&["--cow", &delta], 2, "is a delta above"),
        (&["--cow", here], 2, "is a folder"),
        (&["--ssh=22", "--network=none"], 2, "--ssh needs a network"),
        (&["--qemu=/none/qemu"], 1, "/none/qemu: No such file"),
        (&["--kernel=/none/vmlinuz"], 1, "/none/vmlinuz: No such file"),
    ];
    for (args, code, told) in cases {
        let output = place.boot().args(args).arg(&image).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
        assert!(text.contains(told), "{args:?}: {text}");
    }
    // Where there is no QEMU at all.
    let output =
        place.boot().env("PATH", "/none").arg("--arch=aarch64").arg(&image).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("apt-get install qemu-system-arm"), "{text}");
    place.assert_clean();
}

#[test]
fn boots_of_one_image_share_one_server_which_ends_with_the_last() {
    let place = Place::new();
    let (one, two) = (raw(&place, "one", &[(512, b"one")]), raw(&place, "two", &[]));
    let count = std::env::var("STRATA_BOOTS").map_or(5, |count| count.parse().unwrap());
    // All at once, so that they race to start the server.
    let mut machines: Vec<Machine> = (0..count)
        .map(|n| {
            let mut command = place.boot();
            command.arg("--qemu").arg(place.idler()).arg(&one);
            place.start(&format!("console-{n}"), &mut command)
        })
        .collect();
    machines.iter().for_each(|machine| machine.wait_for("virtio-blk-pci"));
    assert_eq!(place.servers().len(), 1);
    let other = place.idle("other", &two);
    assert_eq!(place.servers().len(), 2);
    // What they were told to read is the image.
    let said = machines[0].said();
    let disk = said.split('"').find(|word| word.ends_with("/disk.img")).unwrap();
    assert_eq!(fs::read(disk).unwrap(), fs::read(&one).unwrap());

    // SIGTERM, kill -9, and whatever else: all are ends.
    let last = machines.pop().unwrap();
    for (n, machine) in machines.iter_mut().enumerate() {
        machine.signal(if n % 2 == 0 { Signal::TERM } else { Signal::KILL });
        assert!(!machine.end().success());
    }
    drop(other);
    while place.servers().len() > 1 {
        thread::yield_now();
    }
    assert_eq!(fs::read(disk).unwrap().len(), 8 << 20, "served to the last");
    last.signal(Signal::KILL);
    drop(last);
    place.assert_clean();
}

#[test]
fn a_server_that_was_killed_is_replaced_and_what_it_left_cleared() {
    let place = Place::new();
    let (image, other) = (raw(&place, "disk", &[]), raw(&place, "other", &[]));
    let first = place.idle("first", &image);
    rustix::process::kill_process(place.servers()[0], Signal::KILL).unwrap();
    while !place.servers().is_empty() {
        thread::yield_now();
    }
    let second = place.idle("second", &image);
    assert_eq!(place.servers().len(), 1);
    rustix::process::kill_process(place.servers()[0], Signal::KILL).unwrap();
    drop((first, second));
    // A boot of another image clears it.
    drop(place.idle("third", &other));
    place.assert_clean();
}

#[test]
fn a_changed_image_is_another() {
    let place = Place::new();
    let image = raw(&place, "disk", &[]);
    let first = place.idle("first", &image);
    fs::write(&image, vec![7; 4 << 20]).unwrap();
    let second = place.idle("second", &image);
    let disk = |machine: &Machine| {
        let said = machine.said();
        PathBuf::from(said.split('"').find(|word| word.ends_with("/disk.img")).unwrap())
    };
    assert_ne!(disk(&first), disk(&second));
    assert_eq!(fs::read(disk(&second)).unwrap(), vec![7; 4 << 20]);
    drop((first, second));
    place.assert_clean();
}

#[test]
fn a_machine_keeps_its_changes_in_a_delta_that_others_read() {
    support::require_root();
    let place = Place::new();
    let (image, data) = small_guest(&place);
    let before = fs::read(&image).unwrap();
    let delta = place.join("delta.qcow2");
    for starts in ["starts=1", "starts=2"] {
        let mut command = place.boot();
        command.args(["--accel=tcg", "--memory=256M", "--kernel=image:/vmlinuz", "--cow"]);
        let mut machine = place.start("console", command.arg(&delta).arg(&image));
        let status = machine.end();
        let said = machine.said();
        assert!(said.contains(&format!("{starts} {data}")), "{said}\n{}", machine.complained());
        assert!(status.success(), "{status}: {}", machine.complained());
        place.assert_clean();
        qemu_img([OsStr::new("check"), "-q".as_ref(), delta.as_ref()]);
        let read = run(strata().arg("cat").arg(&delta).arg("/starts")).stdout;
        assert_eq!(read.len().to_string(), starts[7..]);
    }
    assert!(before == fs::read(&image).unwrap(), "the image was written");
    // The kernel reads the same through a copy that qemu-img makes of it.
    let (flat, point) = (place.join("flat.raw"), place.join("mnt"));
    fs::create_dir(&point).unwrap();
    qemu_img([OsStr::new("convert"), "-O".as_ref(), "raw".as_ref(), delta.as_ref(), flat.as_ref()]);
    run(tool("mount", "mount").args(["-o", "loop,ro,noload"]).arg(&flat).arg(&point));
    let starts = fs::read(point.join("starts"));
    run(tool("umount", "mount").arg(&point));
    assert_eq!(starts.unwrap(), b"xx");
}

/// A machine on the raw disk that a mount shows, and then on the delta itself.
#[test]
fn a_machine_writes_through_a_mounted_disk() {
    support::require_root();
    let place = Place::new();
    let (image, data) = small_guest(&place);
    let before = fs::read(&image).unwrap();
    let (delta, point) = (place.join("delta.qcow2"), place.join("disk"));
    fs::create_dir(&point).unwrap();
    for (from, to) in [("/vmlinuz", "vmlinuz"), ("/boot/initrd.img-1.2-test", "initrd")] {
        let file = File::create(place.join(to)).unwrap();
        assert!(strata().arg("cat").arg(&image).arg(from).stdout(file).status().unwrap().success());
    }
    let boot = |starts: &str, disk: &Path, format: &str| {
        let mut qemu = tool("qemu-system-x86_64", "qemu-system-x86");
        qemu.args(["-machine", "pc,accel=tcg", "-m", "256", "-no-reboot", "-nic", "none"])
            .args(["-display", "none", "-monitor", "none", "-serial", "stdio", "-kernel"])
            .args([place.join("vmlinuz"), "-initrd".into(), place.join("initrd")])
            .args(["-append", "root=/dev/vda rw console=ttyS0 panic=-1 no_timer_check", "-drive"])
            .arg(format!("file={},format={format},if=virtio", disk.display()));
        let mut machine = place.start("console", &mut qemu);
        let status = machine.end();
        let said = machine.said();
        assert!(said.contains(&format!("{starts} {data}")), "{said}\n{}", machine.complained());
        assert!(status.success(), "{status}: {}", machine.complained());
    };
    for starts in ["starts=1", "starts=2"] {
        let mut mount = strata();
        run(mount.args(["mount", "--view", "disk", "--cow"]).arg(&delta).arg(&image).arg(&point));
        boot(starts, &point.join("disk.img"), "raw");
        run(strata().arg("unmount").arg(&point));
        qemu_img([OsStr::new("check"), "-q".as_ref(), delta.as_ref()]);
        let read = run(strata().arg("cat").arg(&delta).arg("/starts")).stdout;
        assert_eq!(read.len().to_string(), starts[7..]);
    }
    boot("starts=3", &delta, "qcow2");
    let read = run(strata().args(["cat", "--cow"]).arg(&delta).arg(&image).arg("/starts")).stdout;
    assert_eq!(read, b"xxx");
    assert!(before == fs::read(&image).unwrap(), "the image was written");

    // Committed into a copy of the image, or made a disk of its own, it is the same disk.
    let (flat, base, top, alone) =
        (place.join("flat"), place.join("base"), place.join("top"), place.join("alone"));
    qemu_img([OsStr::new("convert"), "-O".as_ref(), "raw".as_ref(), delta.as_ref(), flat.as_ref()]);
    fs::copy(&image, &base).unwrap();
    fs::copy(&delta, &top).unwrap();
    fs::copy(&delta, &alone).unwrap();
    let rebase = ["rebase", "-u", "-F", "qcow2", "-b"].map(OsStr::new);
    qemu_img(rebase.into_iter().chain([base.as_os_str(), top.as_os_str()]));
    qemu_img([OsStr::new("commit"), "-q".as_ref(), top.as_ref()]);
    qemu_img([OsStr::new("compare"), "-q".as_ref(), base.as_ref(), flat.as_ref()]);
    qemu_img([OsStr::new("rebase"), "-b".as_ref(), "".as_ref(), alone.as_ref()]);
    qemu_img([OsStr::new("compare"), "-q".as_ref(), alone.as_ref(), flat.as_ref()]);
}

/// A machine on a snapshot of a store, while newer ones are made; and on the disk of a mount with a throw-away delta.
#[test]
fn a_machine_starts_from_a_snapshot() {
    let place = Place::new();
    let (image, data) = small_guest(&place);
    let (store, delta, newer) = (place.join("st"), place.join("delta.qcow2"), place.join("newer"));
    run(strata().args(["store", "init"]).arg(&store));
    let create = |disk: &Path| {
        run(strata().args(["snapshot", "create"]).arg(&store).arg("guest").arg(disk));
    };
    create(&image);
    let reference = format!("{}::guest", store.display());
    let boot = |cow: &[&OsStr], starts: &str| {
        let mut command = place.boot();
        command.args(["--accel=tcg", "--memory=256M", "--kernel=image:/vmlinuz"]).args(cow);
        let mut machine = place.start("console", command.arg(&reference));
        let status = machine.end();
        let said = machine.said();
        assert!(said.contains(&format!("{starts} {data}")), "{said}\n{}", machine.complained());
        assert!(status.success(), "{status}: {}", machine.complained());
        place.assert_clean();
    };
    let kept = [OsStr::new("--cow"), delta.as_ref()];
    boot(&kept, "starts=1");
    boot(&[], "starts=1");
    // The delta is of the snapshot it was made above, by whatever name.
    fs::write(&newer, [0; 4096]).unwrap();
    create(&newer);
    let read = |image: &Path| run(strata().arg("cat").arg(image).arg("/starts")).stdout;
    assert_eq!(read(&delta), b"x");
    let mut again = place.boot();
    let output = again.arg("--dry-run").args(kept).arg(&reference).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("is a delta above"), "{told}");
}

#[test]
fn thrown_away_changes_are_gone_and_machines_at_once_do_not_meet() {
    let place = Place::new();
    let (image, data) = small_guest(&place);
    let before = fs::read(&image).unwrap();
    let count = std::env::var("STRATA_BOOTS").map_or(3, |count| count.parse().unwrap());
    let mut machines: Vec<Machine> = (0..count)
        .map(|n| {
            let mut command = place.boot();
            command.args(["--accel=tcg", "--memory=256M", "--cpus=1", "--kernel=image:/vmlinuz"]);
            command.args(["--network=none", "--append=hold"]).arg(&image);
            place.start(&format!("console-{n}"), &mut command)
        })
        .collect();
    for machine in &machines {
        machine.wait_for(&format!("starts=1 {data}"));
    }
    assert_eq!(place.servers().len(), 1);
    for machine in &mut machines {
        machine.signal(Signal::TERM);
        assert!(machine.end().success(), "{}", machine.complained());
    }
    assert!(before == fs::read(&image).unwrap(), "the image was written");
    place.assert_clean();
}

#[test]
fn a_boot_loader_starts_its_system() {
    let place = Place::new();
    let image = fixture("debian-chain/layer-32.qcow2");
    let mut command = place.boot();
    let mut machine =
        place.start("console", command.args(["--accel=tcg", "--memory=512M"]).arg(image));
    machine.wait_for("STRATA-BOOT-OK");
    machine.signal(Signal::TERM);
    assert!(machine.end().success(), "{}", machine.complained());
    place.assert_clean();
}

#[test]
fn an_ordinary_user_boots() {
    support::require_root();
    support::require_open_device();
    tool("fusermount3", "fuse3");
    let place = Place::new();
    let image = raw(&place, "disk", &[(512, b"theirs")]);
    fs::set_permissions(place.0.path(), PermissionsExt::from_mode(0o755)).unwrap();
    for name in ["run", "tmp", "disk"] {
        chown(place.join(name), Some(65534), Some(65534)).unwrap();
    }
    let mut command = support::as_nobody([env!("CARGO_BIN_EXE_strata"), "boot", "--qemu"]);
    place.inside(&mut command);
    let machine = place.start("console", command.arg(place.idler()).arg(&image));
    machine.wait_for("virtio-blk-pci");
    assert_eq!(place.servers().len(), 1);
    drop(machine);
    place.assert_clean();
}
