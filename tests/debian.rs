//! The jobs end to end on a real disk: a Debian system, mounted by the program, beside the kernel's
//! own mount and qemu-img's own reading of the same image.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use support::{as_nobody, fixture, require_open_device, require_root, run, stdout, strata, tool};

/// A mount that ends with the test.
struct Mount(tempfile::TempDir);

impl Mount {
    fn strata(view: &str, image: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        run(strata().args(["mount", "--view", view]).arg(image).arg(dir.path()));
        Self(dir)
    }

    /// The kernel's own mount of the volume called `root`, which is never written to.
    fn kernel(image: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let table = stdout(tool("sfdisk", "fdisk").arg("--dump").arg(image));
        let line = table.lines().find(|line| line.contains("name=\"root\"")).unwrap();
        let start: u64 =
            line.split("start=").nth(1).unwrap().split(',').next().unwrap().trim().parse().unwrap();
        let options = format!("loop,ro,noload,offset={}", start * 512);
        run(tool("mount", "mount").args(["-o", &options]).arg(image).arg(dir.path()));
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn join(&self, path: &str) -> PathBuf {
        self.path().join(path)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 64 << 10];
    let len = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..len].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 64 << 10];
            let len = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            (name.to_vec(), value[..len].to_vec())
        })
        .collect()
}

/// What of an entry must be the same, without the inode number.
fn told(path: &Path) -> impl PartialEq + std::fmt::Debug + use<> {
    let stat = fs::symlink_metadata(path).unwrap();
    let folder = stat.file_type().is_dir();
    let times = [
        (stat.mtime(), stat.mtime_nsec()),
        (stat.atime(), stat.atime_nsec()),
        (stat.ctime(), stat.ctime_nsec()),
    ];
    let owner = (stat.uid(), stat.gid());
    let size = if folder { 0 } else { stat.size() };
    (stat.mode(), owner, size, times, stat.nlink(), stat.rdev(), xattrs(path))
}

fn entries(dir: &Path) -> Vec<OsString> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    names
}

/// Whether two files hold the same bytes, holes unread where both have them.
fn same_bytes(ours: &Path, theirs: &Path) -> bool {
    let (ours, theirs) = (File::open(ours).unwrap(), File::open(theirs).unwrap());
    let size = theirs.metadata().unwrap().len();
    let next = |file: &File, at| match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
        Ok(data) => data,
        Err(error) => {
            assert_eq!(error, rustix::io::Errno::NXIO);
            size
        }
    };
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    while at < size {
        at = next(&ours, at).min(next(&theirs, at));
        let len = (size - at).min(1 << 20) as usize;
        ours.read_exact_at(&mut a[..len], at).unwrap();
        theirs.read_exact_at(&mut b[..len], at).unwrap();
        if a[..len] != b[..len] {
            return false;
        }
        at += len as u64;
    }
    true
}

/// Compares all below two folders; the first difference panics. Returns how many entries.
fn compare(ours: &Path, theirs: &Path) -> usize {
    let mut count = 0;
    let mut links = HashMap::new();
    let mut todo = vec![(ours.to_owned(), theirs.to_owned())];
    while let Some((a, b)) = todo.pop() {
        count += 1;
        assert_eq!(told(&a), told(&b), "{}", b.display());
        let (ours, theirs) = (fs::symlink_metadata(&a).unwrap(), fs::symlink_metadata(&b).unwrap());
        let kind = theirs.file_type();
        if kind.is_dir() {
            assert_eq!(entries(&a), entries(&b), "{}", b.display());
            todo.extend(entries(&a).into_iter().map(|name| (a.join(&name), b.join(&name))));
            continue;
        }
        if theirs.nlink() > 1 {
            let first = *links.entry(theirs.ino()).or_insert(ours.ino());
            assert_eq!(first, ours.ino(), "{}: one file became two", b.display());
        }
        if kind.is_symlink() {
            assert_eq!(fs::read_link(&a).unwrap(), fs::read_link(&b).unwrap(), "{}", b.display());
        } else if kind.is_file() {
            assert!(same_bytes(&a, &b), "{}: contents", b.display());
        } else {
            assert!(
                kind.is_fifo()
                    || kind.is_socket()
                    || kind.is_block_device()
                    || kind.is_char_device()
            );
        }
    }
    count
}

#[test]
fn the_files_view_is_what_the_kernel_mounts() {
    require_root();
    let kernel = Mount::kernel(&fixture("debian.raw"));
    for image in ["debian.qcow2", "debian-chain/layer-32.qcow2"] {
        let ours = Mount::strata("files", &fixture(image));
        let count = compare(ours.path(), kernel.path());
        assert!(count > 30_000, "{image}: only {count} entries");
    }
}

#[test]
fn the_disk_view_is_what_qemu_reads() {
    require_root();
    let images = [
        "debian.raw",
        "debian.qcow2",
        "debian-v2.qcow2",
        "debian-zlib.qcow2",
        "debian-zstd.qcow2",
        "debian-extl2.qcow2",
        "debian-datafile.qcow2",
        "debian-512.qcow2",
        "debian-2m.qcow2",
        "debian-larger.qcow2",
        "debian-chain/layer-32.qcow2",
    ];
    for name in images {
        let image = fixture(name);
        let mount = Mount::strata("disk", &image);
        let format = if name.ends_with("raw") { "raw" } else { "qcow2" };
        // QEMU looks for an external data file from the folder it is started in.
        let mut compare = tool("qemu-img", "qemu-utils");
        compare.args(["compare", "-f", "raw", "-F", format]).arg(mount.join("disk.img"));
        let compared = run(compare.arg(&image).current_dir(image.parent().unwrap()));
        let said = String::from_utf8(compared.stdout).unwrap();
        assert!(said.contains("identical"), "{name}: {said}");
    }
    // The snapshot as it was, by name, beside what qemu-img writes out of it.
    let image = fixture("debian-snapshot.qcow2");
    let mut reference = image.clone().into_os_string();
    reference.push("::before");
    let mount = Mount::strata("disk", Path::new(&reference));
    let dir = tempfile::tempdir().unwrap();
    let raw = dir.path().join("before.raw");
    support::qemu_img(
        ["convert", "-l", "snapshot.name=before", "-O", "raw"]
            .map(OsString::from)
            .into_iter()
            .chain([image.into(), raw.clone().into()]),
    );
    assert!(same_bytes(&mount.join("disk.img"), &raw));
}

/// Compares a restored folder with the same in the mount, times of folders' contents included.
fn assert_restored(restored: &Path, mounted: &Path) {
    let mut todo = vec![(restored.to_owned(), mounted.to_owned())];
    while let Some((a, b)) = todo.pop() {
        let (ours, theirs) = (fs::symlink_metadata(&a).unwrap(), fs::symlink_metadata(&b).unwrap());
        let at = b.display();
        assert_eq!(ours.mode(), theirs.mode(), "{at}");
        assert_eq!((ours.uid(), ours.gid()), (theirs.uid(), theirs.gid()), "{at}");
        assert_eq!(
            (ours.mtime(), ours.mtime_nsec()),
            (theirs.mtime(), theirs.mtime_nsec()),
            "{at}"
        );
        assert_eq!(xattrs(&a), xattrs(&b), "{at}");
        if theirs.is_dir() {
            assert_eq!(entries(&a), entries(&b), "{at}");
            todo.extend(entries(&a).into_iter().map(|name| (a.join(&name), b.join(&name))));
        } else if theirs.is_symlink() {
            assert_eq!(fs::read_link(&a).unwrap(), fs::read_link(&b).unwrap(), "{at}");
        } else if theirs.is_file() {
            assert_eq!(ours.len(), theirs.len(), "{at}");
            assert!(same_bytes(&a, &b), "{at}");
        }
    }
}

fn restore(image: &Path, paths: &[&str], to: &Path) -> Command {
    let mut command = strata();
    command.arg("restore").arg(image).args(paths).arg("--to").arg(to).arg("--privileged");
    command
}

#[test]
fn restored_files_are_those_of_the_mount_also_after_a_kill_at_half() {
    require_root();
    let image = fixture("debian.qcow2");
    let mount = Mount::strata("files", &image);
    let sparse = fs::read_dir(mount.join("oddities/sparse")).unwrap().next().unwrap().unwrap();
    let sparse = format!("/oddities/sparse/{}", sparse.file_name().to_str().unwrap());
    let paths = ["/etc", &sparse, "/usr/lib"];
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("to");
    fs::create_dir(&to).unwrap();

    // Kill it once about half of the entries are there.
    let half = walked(&mount.join("usr/lib")) / 2;
    let child = restore(&image, &paths, &to).stderr(Stdio::null()).spawn().unwrap();
    let mut child = KilledAtEnd(child);
    while child.0.try_wait().unwrap().is_none() && walked(&to) < half {
        thread::sleep(Duration::from_millis(2));
    }
    child.0.kill().unwrap();
    child.0.wait().unwrap();
    let there = walked(&to);
    assert!(there < walked(&mount.join("usr/lib")), "it was done before it was killed: {there}");

    run(&mut restore(&image, &paths, &to));
    assert_restored(&to.join("etc"), &mount.join("etc"));
    assert_restored(&to.join("lib"), &mount.join("usr/lib"));
    let name = Path::new(&sparse).file_name().unwrap();
    let (ours, theirs) = (to.join(name), mount.join(&sparse[1..]));
    assert_restored(&ours, &theirs);
    let taken = fs::metadata(&ours).unwrap().blocks() * 512;
    assert!(taken < 8 << 20, "the sparse file takes {taken} bytes");
    assert_eq!(entries(&to).len(), 3, "{:?}", entries(&to));
}

struct KilledAtEnd(Child);

impl Drop for KilledAtEnd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How many entries there are below a folder that somebody may be writing to.
fn walked(root: &Path) -> usize {
    let mut count = 0;
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            count += 1;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                todo.push(entry.path());
            }
        }
    }
    count
}

#[test]
fn a_thousand_readers_at_once_get_right_bytes() {
    require_root();
    let kernel = Mount::kernel(&fixture("debian.raw"));
    let ours = Mount::strata("files", &fixture("debian-zstd.qcow2"));
    let mut files = Vec::new();
    let mut todo = vec![PathBuf::from("usr")];
    while let Some(dir) = todo.pop() {
        for name in entries(&kernel.path().join(&dir)) {
            let path = dir.join(name);
            let kind = fs::symlink_metadata(kernel.path().join(&path)).unwrap();
            if kind.is_dir() {
                todo.push(path);
            } else if kind.is_file() && kind.len() > 0 {
                files.push(path);
            }
        }
    }
    assert!(files.len() >= 1000);
    thread::scope(|scope| {
        for path in files.iter().step_by(files.len() / 1000).take(1000) {
            let (ours, kernel) = (ours.path().join(path), kernel.path().join(path));
            thread::Builder::new()
                .stack_size(128 << 10)
                .spawn_scoped(scope, move || {
                    let (mut a, mut b) = (Vec::new(), Vec::new());
                    File::open(&ours).unwrap().read_to_end(&mut a).unwrap();
                    File::open(&kernel).unwrap().read_to_end(&mut b).unwrap();
                    assert!(a == b, "{}", kernel.display());
                })
                .unwrap();
        }
    });
}

/// Reads a file of the mount past whatever the kernel has cached.
fn read_whole(path: &Path) -> std::io::Result<u64> {
    let mut file = File::open(path)?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    std::io::copy(&mut file, &mut std::io::sink())
}

#[test]
fn what_happens_to_the_image_while_it_is_mounted() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("copy.qcow2");
    fs::copy(fixture("debian.qcow2"), &image).unwrap();
    let mount = Mount::strata("disk", &image);
    let disk = mount.join("disk.img");
    let head = || {
        let file = File::open(&disk).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let mut head = [0; 1024];
        file.read_exact_at(&mut head, 0).map(|()| head)
    };
    let before = head().unwrap();

    // Made unreadable, removed, replaced: what was opened stays what is shown.
    fs::set_permissions(&image, PermissionsExt::from_mode(0o000)).unwrap();
    assert_eq!(head().unwrap(), before);
    let aside = dir.path().join("aside.qcow2");
    fs::rename(&image, &aside).unwrap();
    fs::write(&image, b"another file").unwrap();
    assert_eq!(head().unwrap(), before);

    // Cut short: an error where bytes are gone, none where they are still there.
    let file = File::options().write(true).open(&aside).unwrap();
    file.set_len(64 << 20).unwrap();
    let error = read_whole(&disk).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert_eq!(head().unwrap(), before);

    // Back to its length, though not to its bytes, the server is still there to be asked.
    fs::remove_file(&aside).unwrap();
    assert_eq!(head().unwrap(), before);
    run(strata().arg("unmount").arg(mount.path()));
}

/// The kernel reads a raw image past us where root mounts it, and would take the new end for the
/// end of the disk: a copy would be short, and nobody told.
#[test]
fn a_raw_image_cut_while_it_is_mounted_is_an_error_and_no_end() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.raw");
    fs::write(&image, vec![7; 8 << 20]).unwrap();
    let mount = Mount::strata("disk", &image);
    let opened = File::open(mount.join("disk.img")).unwrap();
    let mut head = [0; 4096];
    opened.read_exact_at(&mut head, 0).unwrap();
    assert_eq!(head, [7; 4096]);

    File::options().write(true).open(&image).unwrap().set_len(4 << 20).unwrap();
    // The host tells of it a moment later.
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let error = loop {
        match opened.read_at(&mut head, 6 << 20) {
            Err(error) => break error,
            Ok(_) => assert!(std::time::Instant::now() < until, "it reads as if it ended there"),
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    };
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    let error = fs::read(mount.join("disk.img")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    drop(opened);
    run(strata().arg("unmount").arg(mount.path()));
}

#[test]
fn an_ordinary_user_does_it_all() {
    require_root();
    require_open_device();
    let image = fixture("debian.qcow2");
    let program = Path::new(env!("CARGO_BIN_EXE_strata"));
    // Where nobody can reach them: the build folder may be closed to others.
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let strata = dir.path().join("strata");
    fs::copy(program, &strata).unwrap();
    let link = dir.path().join("debian.qcow2");
    let overlay = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"].map(OsString::from);
    support::qemu_img(
        overlay.into_iter().chain([image.clone().into_os_string(), link.clone().into()]),
    );
    let allowed = image.parent().unwrap();
    let home = dir.path().join("home");
    fs::create_dir_all(home.join("mnt")).unwrap();
    for path in [&home, &home.join("mnt")] {
        std::os::unix::fs::chown(path, Some(65534), Some(65534)).unwrap();
    }
    let nobody = |args: &[&str]| {
        let mut command = Command::new(&strata);
        let (name, rest) = args.split_first().unwrap();
        command.arg(name);
        if *name != "unmount" {
            command.arg("--allow-path").arg(allowed);
        }
        command.args(rest);
        let mut words = vec![strata.clone().into_os_string()];
        words.extend(command.get_args().map(OsString::from));
        as_nobody(words)
    };
    let (link, home) = (link.to_str().unwrap(), home.to_str().unwrap());
    let listed = stdout(&mut nobody(&["ls", link, "/etc"]));
    assert!(listed.lines().any(|line| line == "os-release"), "{listed}");
    let release = stdout(&mut nobody(&["cat", link, "/etc/os-release"]));
    assert!(release.contains("bookworm"), "{release}");
    run(&mut nobody(&["restore", link, "/etc/os-release", "/etc/apt", "--to", home]));
    assert_eq!(entries(Path::new(home)), ["apt", "mnt", "os-release"]);
    let point = format!("{home}/mnt");
    run(&mut nobody(&["mount", link, &point]));
    let through = stdout(&mut as_nobody(["cat", &format!("{point}/etc/os-release")]));
    assert_eq!(through, release);
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.contains(&point)).unwrap();
    assert!(line.contains("nosuid") && line.contains("nodev") && line.contains("user_id=65534"));
    run(&mut nobody(&["unmount", &point]));
}
