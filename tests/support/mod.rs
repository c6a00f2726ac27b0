//! What the integration tests share: someone else's tools, and the fixtures made with them.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The `strata` program under test.
pub fn strata() -> Command {
    Command::new(env!("CARGO_BIN_EXE_strata"))
}

/// A command of `program`, which the Debian package `package` brings. A missing tool fails the
/// test with the line that installs it.
pub fn tool(program: &str, package: &str) -> Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let found = std::env::split_paths(&path)
        .chain(sbin)
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file());
    match found {
        Some(path) => Command::new(path),
        None => panic!("{program} is missing: apt-get install -y {package}"),
    }
}

/// Runs a command that must succeed; its output otherwise becomes the failure.
#[track_caller]
pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// What a command that must succeed prints.
#[track_caller]
pub fn stdout(command: &mut Command) -> String {
    String::from_utf8(run(command).stdout).expect("output in UTF-8")
}

/// What a command that must fail says.
#[track_caller]
pub fn fails(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(!output.status.success(), "{command:?} went well");
    String::from_utf8(output.stderr).expect("output in UTF-8")
}

/// `qemu-img` with these arguments, which must succeed.
#[track_caller]
pub fn qemu_img<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    run(tool("qemu-img", "qemu-utils").args(args))
}

/// `qemu-io` with these arguments, which must succeed.
#[track_caller]
pub fn qemu_io<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Output {
    run(tool("qemu-io", "qemu-utils").args(args))
}

/// Bytes that do not compress.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// A folder in memory, if the host has such: for tests that make many stores, and are not about flushing.
pub fn quick_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder")
}

/// The folder of generated fixtures: `STRATA_FIXTURES`, or `target/fixtures`. `scripts/fixtures`
/// fills it; a fixture that is not there fails the test with that line.
#[track_caller]
pub fn fixture(name: &str) -> PathBuf {
    let dir = std::env::var_os("STRATA_FIXTURES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/fixtures"), Into::into);
    let path = dir.join(name);
    assert!(path.exists(), "{} is missing: run scripts/fixtures", path.display());
    path
}

/// Tests whose oracle is the kernel's own mount need root.
#[track_caller]
pub fn require_root() {
    assert!(rustix::process::geteuid().is_root(), "this test mounts with the kernel: run as root");
}

/// A command run by an ordinary user, who owns nothing.
#[track_caller]
pub fn as_nobody<S: AsRef<OsStr>>(command: impl IntoIterator<Item = S>) -> Command {
    let mut setpriv = tool("setpriv", "util-linux");
    setpriv.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).args(command);
    setpriv
}

/// Ordinary users mount only where everybody may open `/dev/fuse`.
#[track_caller]
pub fn require_open_device() {
    use std::os::unix::fs::MetadataExt;
    let mode = std::fs::metadata("/dev/fuse").expect("/dev/fuse: modprobe fuse").mode();
    assert_eq!(mode & 0o666, 0o666, "ordinary users cannot mount here: chmod 666 /dev/fuse");
}
