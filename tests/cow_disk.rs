//! The writable disk view: a disk and its partitions as files, by themselves and over a delta.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod fsx;
mod model;
mod support;

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;
use stratafs::block::{BlockSink, Window};
use stratafs::mount::{Mounted, Options, mount};
use stratafs::tree::folder::Folder;
use stratafs::tree::{FileTree, Served, Time};

use fsx::mapped::Mapped;
use model::sink::Sink;
use support::{as_nobody, qemu_img, require_open_device, require_root, run, strata, tool};

const DISK: usize = 64 << 20;
const START: u64 = 1 << 20;
const PART: u64 = 48 << 20;

/// A disk and one partition of it, mounted.
struct Fixture {
    sink: Arc<Sink>,
    // In this order: unmounted before the folder goes.
    _mounted: Mounted,
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new(bytes: Vec<u8>) -> Self {
        let sink = Arc::new(Sink::new(bytes));
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        let when = Time { seconds: 1_600_000_000, nanos: 5 };
        let mut folder = Folder::new(uid.as_raw(), gid.as_raw(), when);
        let root = folder.root();
        let disk: Arc<dyn BlockSink> = Arc::<Sink>::clone(&sink);
        let part = Window::new(Arc::clone(&disk), START, PART).unwrap();
        folder.add_sink(root, b"disk.img", disk, u64::MAX, when).unwrap();
        folder.add_sink(root, b"p1.img", Arc::new(part), u64::MAX, when).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let options = Options { name: "disk".to_owned(), ..Options::default() };
        let mounted = mount(Served::Writable(Arc::new(folder)), dir.path(), &options)
            .unwrap_or_else(|error| panic!("{error}\n{:?}", error.hint()));
        Self { sink, _mounted: mounted, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn open(&self, name: &str) -> File {
        OpenOptions::new().read(true).write(true).open(self.path(name)).unwrap()
    }
}

fn byte_at(file: &File, offset: u64) -> u8 {
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    byte[0]
}

#[test]
fn a_disk_keeps_its_size_its_names_and_its_owner() {
    let fixture = Fixture::new(vec![1; DISK]);
    let file = fixture.open("disk.img");
    let metadata = file.metadata().unwrap();
    assert_eq!((metadata.len(), metadata.mode() & 0o7777), (DISK as u64, 0o644));
    let errno = |result: std::io::Result<()>| result.unwrap_err().raw_os_error();
    file.set_len(DISK as u64).unwrap();
    assert_eq!(errno(file.set_len(5)), Some(libc::EPERM));
    assert_eq!(errno(file.set_len(DISK as u64 + 1)), Some(libc::EPERM));
    assert_eq!(errno(File::create(fixture.path("disk.img")).map(drop)), Some(libc::EPERM));
    assert_eq!(errno(file.write_all_at(b"xx", DISK as u64 - 1)), Some(libc::ENOSPC));
    // Up to the end it is written, as on a block device.
    assert!(fixture.sink.bytes.read()[..DISK - 1].iter().all(|&byte| byte == 1));
    assert_eq!(errno(File::create(fixture.path("new")).map(drop)), Some(libc::EROFS));
    assert_eq!(errno(fs::remove_file(fixture.path("p1.img"))), Some(libc::EROFS));
    assert_eq!(errno(fs::rename(fixture.path("p1.img"), fixture.path("x"))), Some(libc::EROFS));
    assert_eq!(errno(fs::create_dir(fixture.path("d"))), Some(libc::EROFS));
    let mode = fs::Permissions::from_mode(0o600);
    assert_eq!(errno(fs::set_permissions(fixture.path("p1.img"), mode)), Some(libc::EPERM));
    let value = rustix::fs::XattrFlags::empty();
    let set = rustix::fs::setxattr(fixture.path("p1.img"), "user.x", b"", value);
    assert_eq!(set, Err(Errno::OPNOTSUPP));
}

#[test]
fn times_move_with_writes_and_can_be_set() {
    let fixture = Fixture::new(vec![1; DISK]);
    let file = fixture.open("p1.img");
    let modified = |name: &str| fs::metadata(fixture.path(name)).unwrap().mtime();
    assert_eq!((modified("disk.img"), modified("p1.img")), (1_600_000_000, 1_600_000_000));
    file.write_all_at(b"x", 0).unwrap();
    assert!(modified("disk.img") > 1_600_000_000 && modified("p1.img") > 1_600_000_000);
    run(Command::new("touch").args(["-d", "@1000"]).arg(fixture.path("p1.img")));
    assert_eq!(modified("p1.img"), 1000);
    assert!(modified("disk.img") > 1_600_000_000);
    std::thread::sleep(std::time::Duration::from_millis(5));
    file.write_all_at(b"x", 0).unwrap();
    assert!(modified("p1.img") > 1_600_000_000);
}

#[test]
fn fallocate_seeks_and_flushes_reach_the_disk() {
    let fixture = Fixture::new(vec![1; DISK]);
    let file = fixture.open("p1.img");
    let keep = FallocateFlags::KEEP_SIZE;
    let allocate = |flags, offset, len| rustix::fs::fallocate(&file, flags, offset, len);
    assert_eq!(byte_at(&file, 5000), 1);
    allocate(FallocateFlags::PUNCH_HOLE | keep, 4096, 8192).unwrap();
    assert_eq!(byte_at(&file, 5000), 0);
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Hole(0)), Ok(4096));
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Data(4096)), Ok(12288));
    file.write_all_at(&[2], 4096).unwrap();
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Hole(0)), Ok(8192));
    allocate(FallocateFlags::ZERO_RANGE, 100, 200).unwrap();
    assert_eq!(fixture.sink.zeroed.load(Ordering::Relaxed), 2);
    allocate(FallocateFlags::empty(), 0, PART).unwrap();
    allocate(keep, 0, PART * 2).unwrap();
    assert_eq!(allocate(FallocateFlags::empty(), 0, PART + 1), Err(Errno::NOSPC));
    assert_eq!(fixture.sink.bytes.read()[START as usize + 4096], 2);
    let flushes = || fixture.sink.flushes.load(Ordering::Relaxed);
    let before = flushes();
    file.sync_all().unwrap();
    assert_eq!(flushes(), before + 1);
    // Alignment is nobody's business but the kernel's: 512 bytes.
    let direct = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(fixture.path("disk.img"))
        .unwrap();
    let room = vec![7; 4096 + 1536];
    let at = room.as_ptr().align_offset(4096);
    direct.write_all_at(&room[at..at + 1536], 512).unwrap();
    let bytes = fixture.sink.bytes.read();
    assert!(bytes[512..2048].iter().all(|&byte| byte == 7));
    assert_eq!((bytes[511], bytes[2048]), (1, 1));
}

#[test]
fn what_is_written_through_a_partition_is_seen_on_the_disk() {
    let fixture = Fixture::new(vec![1; DISK]);
    let disk = || File::open(fixture.path("disk.img")).unwrap();
    let part = || File::open(fixture.path("p1.img")).unwrap();
    // Both are in the page cache by now.
    assert_eq!((byte_at(&disk(), START + 9), byte_at(&part(), 9)), (1, 1));
    fixture.open("p1.img").write_all_at(&[2], 9).unwrap();
    assert_eq!(byte_at(&disk(), START + 9), 2);
    fixture.open("disk.img").write_all_at(&[3], START + 9).unwrap();
    assert_eq!(byte_at(&part(), 9), 3);
    let file = fixture.open("p1.img");
    {
        let map = Mapped::new(&file, 4096);
        map.write(9, &[4]);
    }
    drop(file);
    assert_eq!(byte_at(&disk(), START + 9), 4);
    let file = fixture.open("disk.img");
    let map = Mapped::new(&file, START as usize + 4096);
    map.write(START as usize + 9, &[5]);
    map.sync();
    assert_eq!(byte_at(&part(), 9), 5);
    rustix::fs::fallocate(
        &file,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        START,
        4096,
    )
    .unwrap();
    assert_eq!(byte_at(&part(), 9), 0);
}

/// A loop mount that ends with it.
struct Loop(tempfile::TempDir);

impl Loop {
    fn mount(image: &Path, options: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        run(tool("mount", "mount").args(["-o", options]).arg(image).arg(dir.path()));
        Self(dir)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn the_kernel_writes_a_filesystem_through_disk_and_partition() {
    require_root();
    let fixture = Fixture::new(vec![0; DISK]);
    let part = fixture.path("p1.img");
    run(tool("mkfs.ext4", "e2fsprogs").arg("-q").arg(&part));
    run(tool("e2fsck", "e2fsprogs").args(["-fn"]).arg(&part));
    let offset = format!("loop,offset={START},sizelimit={PART}");
    let text = vec![b'x'; 3 << 20];
    {
        let mounted = Loop::mount(&fixture.path("disk.img"), &offset);
        fs::write(mounted.0.path().join("file"), &text).unwrap();
        fs::create_dir(mounted.0.path().join("folder")).unwrap();
    }
    run(tool("e2fsck", "e2fsprogs").args(["-fn"]).arg(&part));
    let mounted = Loop::mount(&part, "loop,ro");
    assert!(fs::read(mounted.0.path().join("file")).unwrap() == text);
    assert!(mounted.0.path().join("folder").is_dir());
}

#[test]
fn fio_finds_what_it_wrote() {
    let fixture = Fixture::new(vec![0; DISK]);
    for (engine, direct, block) in [
        ("psync", "0", "1k-128k"),
        ("psync", "1", "4k-256k"),
        ("libaio", "1", "4k-4k"),
        ("mmap", "0", "4k-4k"),
    ] {
        let job = [
            "--name=verify",
            "--rw=randwrite",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--do_verify=1",
            "--size=16M",
            "--iodepth=8",
            "--allow_file_create=0",
            "--fallocate=none",
            "--randseed=7",
        ];
        let mut fio = tool("fio", "fio");
        fio.args(job).arg(format!("--ioengine={engine}")).arg(format!("--direct={direct}"));
        fio.arg(format!("--bsrange={block}")).current_dir("/tmp");
        run(fio.arg(format!("--filename={}", fixture.path("disk.img").display())));
    }
}

#[test]
fn random_operations_leave_what_they_should() {
    for (seed, maps) in [(5, false), (6, true)] {
        let fixture = Fixture::new(vec![0; DISK]);
        let what = fsx::Fsx { max: PART, resizes: false, maps, seed: seed * 0x9e37_79b9 };
        let path = fixture.path("p1.img");
        let left = what.run(&path, vec![0; PART as usize], fsx::operations(2000));
        assert!(fs::read(&path).unwrap() == left);
        let start = START as usize;
        assert!(fixture.sink.bytes.read()[start..start + left.len()] == left[..]);
    }
}

/// A folder with an image, mounted by the program.
struct Program {
    dir: tempfile::TempDir,
}

impl Program {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let made = Self { dir };
        fs::create_dir(made.path("mnt")).unwrap();
        fs::create_dir(made.path("sub")).unwrap();
        fs::write(made.path("raw.img"), vec![1; 8 << 20]).unwrap();
        let (raw, image) = (made.path("raw.img"), made.path("sub/base.qcow2"));
        let convert: [&OsStr; 5] =
            ["convert".as_ref(), "-O".as_ref(), "qcow2".as_ref(), raw.as_ref(), image.as_ref()];
        qemu_img(convert);
        run(tool("qemu-img", "qemu-utils").args(["snapshot", "-c", "then"]).arg(&image));
        made
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn strata<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        strata().args(args).current_dir(self.dir.path()).output().unwrap()
    }

    #[track_caller]
    fn ok<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Vec<u8> {
        let output = self.strata(args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    #[track_caller]
    fn refused(&self, args: &[&str], code: i32) -> String {
        let output = self.strata(args);
        assert_eq!(output.status.code(), Some(code));
        String::from_utf8(output.stderr).unwrap()
    }

    fn backing(&self, delta: &str) -> serde_json::Value {
        let mut info = tool("qemu-img", "qemu-utils");
        let output = run(info.args(["info", "-U", "--output=json"]).arg(self.path(delta)));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn disk(&self) -> File {
        OpenOptions::new().read(true).write(true).open(self.path("mnt/disk.img")).unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.strata(["unmount", "--lazy", "mnt"]);
    }
}

#[test]
fn a_delta_keeps_what_is_written_and_the_image_stays() {
    let program = Program::new();
    let before = fs::read(program.path("sub/base.qcow2")).unwrap();
    for round in 1..=2u8 {
        program.ok(["mount", "--cow", "d.qcow2", "sub/base.qcow2", "mnt"]);
        let disk = program.disk();
        assert_eq!(byte_at(&disk, 70_000), if round == 1 { 1 } else { 9 });
        disk.write_all_at(&[9; 5000], 70_000).unwrap();
        disk.write_all_at(&[round; 10], 3 << 20).unwrap();
        drop(disk);
        program.ok(["unmount", "mnt"]);
    }
    assert!(fs::read(program.path("sub/base.qcow2")).unwrap() == before);
    let info = program.backing("d.qcow2");
    assert_eq!(info["backing-filename"], "sub/base.qcow2");
    assert_eq!(info["backing-filename-format"], "qcow2");
    run(tool("qemu-img", "qemu-utils").arg("check").arg(program.path("d.qcow2")));
    // As a chain, beside QEMU, and as changes of the image.
    let mut want = vec![1; 8 << 20];
    want[70_000..75_000].fill(9);
    want[3 << 20..(3 << 20) + 10].fill(2);
    fs::write(program.path("want.img"), &want).unwrap();
    let (delta, raw) = (program.path("d.qcow2"), program.path("want.img"));
    run(tool("qemu-img", "qemu-utils").arg("compare").arg(&delta).arg(&raw));
    let cat = ["cat", "--view", "disk", "d.qcow2", "/disk.img"];
    assert!(program.ok(cat) == want);
    let cat = ["cat", "--view", "disk", "--cow", "d.qcow2", "sub/base.qcow2", "/disk.img"];
    assert!(program.ok(cat) == want);
    // Changes may be shown and not allowed.
    program.ok(["mount", "-o", "ro,cow=d.qcow2,view=disk", "sub/base.qcow2", "mnt"]);
    assert!(fs::read(program.path("mnt/disk.img")).unwrap() == want);
    let written = OpenOptions::new().write(true).open(program.path("mnt/disk.img"));
    assert_eq!(written.unwrap_err().raw_os_error(), Some(libc::EROFS));
    program.ok(["unmount", "mnt"]);
}

#[test]
fn a_delta_belongs_to_one_image_and_snapshot() {
    let program = Program::new();
    let mount = ["mount", "--cow", "d.qcow2", "sub/base.qcow2::then", "mnt"];
    program.ok(mount);
    program.disk().write_all_at(&[8; 10], 0).unwrap();
    program.ok(["unmount", "mnt"]);
    assert_eq!(program.backing("d.qcow2")["backing-filename"], "strata:sub/base.qcow2::1");
    let cat = program.ok(["cat", "--view", "disk", "d.qcow2", "/disk.img"]);
    assert_eq!((cat[9], cat[10]), (8, 1));
    let info = String::from_utf8(program.ok(["info", "d.qcow2"])).unwrap();
    assert!(info.contains("a delta above a snapshot, which only strata can name"), "{info}");
    program.ok(["mount", "--cow", "d.qcow2", "sub/base.qcow2::1", "mnt"]);
    program.ok(["unmount", "mnt"]);

    let told = program.refused(&["mount", "--cow", "d.qcow2", "sub/base.qcow2", "mnt"], 2);
    assert!(told.contains("is a delta above sub/base.qcow2::1, not above"), "{told}");
    let told = program.refused(&["mount", "--cow", "d.qcow2", "raw.img", "mnt"], 2);
    assert!(told.contains("not above") && told.contains("raw.img"), "{told}");
    let told = program.refused(&["mount", "--cow", "sub/base.qcow2", "raw.img", "mnt"], 2);
    assert!(told.contains("no delta"), "{told}");
    let told =
        program.refused(&["mount", "--view", "files", "--cow", "x.qcow2", "raw.img", "mnt"], 2);
    assert!(told.contains("--view disk") && !program.path("x.qcow2").exists(), "{told}");
    // Beside the image or above it in the tree: named by its whole path.
    program.ok(["mount", "--cow", "sub/d.qcow2", "raw.img", "mnt"]);
    program.ok(["unmount", "mnt"]);
    let info = program.backing("sub/d.qcow2");
    assert_eq!(info["backing-filename"], program.path("raw.img").to_str().unwrap());
    assert_eq!(info["backing-filename-format"], "raw");
}

#[test]
fn a_disk_grows_and_does_not_shrink() {
    let program = Program::new();
    program.refused(&["mount", "--size", "1M", "--cow", "d.qcow2", "raw.img", "mnt"], 2);
    assert!(!program.path("d.qcow2").exists());
    program.ok(["mount", "--size", "16M", "--cow", "d.qcow2", "raw.img", "mnt"]);
    let disk = program.disk();
    assert_eq!(disk.metadata().unwrap().len(), 16 << 20);
    assert_eq!((byte_at(&disk, 5), byte_at(&disk, 9 << 20)), (1, 0));
    disk.write_all_at(&[3], 15 << 20).unwrap();
    drop(disk);
    program.ok(["unmount", "mnt"]);
    assert_eq!(program.backing("d.qcow2")["virtual-size"], 16 << 20);
    assert_eq!(program.ok(["cat", "--view", "disk", "d.qcow2", "/disk.img"])[15 << 20], 3);
}

#[test]
fn scratch_leaves_nothing_and_an_ordinary_user_may_write() {
    require_root();
    require_open_device();
    let program = Program::new();
    let temporary = program.path("tmp");
    fs::create_dir(&temporary).unwrap();
    for dir in ["tmp", "mnt"] {
        fs::set_permissions(program.path(dir), fs::Permissions::from_mode(0o777)).unwrap();
        std::os::unix::fs::chown(program.path(dir), Some(65534), Some(65534)).unwrap();
    }
    let script = "set -e; cd \"$1\"; export TMPDIR=\"$1/tmp\"
        \"$0\" mount --scratch raw.img mnt
        printf hello | dd of=mnt/disk.img bs=5 seek=100 conv=notrunc status=none
        dd if=mnt/disk.img bs=5 skip=100 count=1 status=none; ls -A tmp
        \"$0\" unmount mnt; \"$0\" mount --cow tmp/d.qcow2 raw.img mnt
        printf kept | dd of=mnt/disk.img conv=notrunc,fsync status=none
        \"$0\" unmount mnt; \"$0\" cat --allow-path . --view disk tmp/d.qcow2 /disk.img | head -c 4";
    let strata = strata();
    let args = ["sh".as_ref(), "-c".as_ref(), OsStr::new(script), strata.get_program()];
    let output = run(&mut as_nobody(args.into_iter().chain([program.dir.path().as_os_str()])));
    assert_eq!(output.stdout, b"hellokept");
    assert!(fs::read(program.path("raw.img")).unwrap().iter().all(|&byte| byte == 1));
}

/// A filesystem in memory that is soon full, unmounted in the end.
struct Small(PathBuf);

impl Small {
    fn new(at: PathBuf) -> Self {
        fs::create_dir(&at).unwrap();
        run(tool("mount", "mount").args(["-t", "tmpfs", "-o", "size=8m", "small"]).arg(&at));
        Self(at)
    }

    /// Leaves this much room.
    fn leave(&self, room: u64) {
        let path = self.0.join("filler");
        let mut filler = OpenOptions::new().create(true).append(true).open(path).unwrap();
        while filler.write_all(&[1; 4096]).is_ok() {}
        filler.set_len(filler.metadata().unwrap().len() - room).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Writes to the disk, far apart, until neither bytes nor what says where they are find room. How
/// many pieces were written.
fn write_until_full(program: &Program, small: &Small, far: u64) -> u64 {
    let disk = program.disk();
    let mut count = 0;
    small.leave(256 << 10);
    loop {
        match disk.write_all_at(&[7; 4096], count * far) {
            Ok(()) => count += 1,
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
                match rustix::fs::fdatasync(&disk) {
                    Err(errno) => {
                        assert_eq!(errno, Errno::NOSPC);
                        return count;
                    }
                    // Flushed by itself before it was full.
                    Ok(()) => small.leave(128 << 10),
                }
            }
        }
    }
}

#[test]
fn a_full_disk_is_told_while_room_can_be_made() {
    require_root();
    let program = Program::new();
    let far = 32 << 20;
    File::create(program.path("wide.img")).unwrap().set_len(4096 * far).unwrap();
    let small = Small::new(program.path("small"));
    program.ok(["mount", "--cow", "small/d.qcow2", "wide.img", "mnt"]);
    let count = write_until_full(&program, &small, far);
    for _ in 0..2 {
        let told = program.refused(&["unmount", "mnt"], 1);
        assert!(
            told.contains("No space left on device") && told.contains("stays mounted"),
            "{told}"
        );
        assert!(told.contains("\nhint: make room") && told.contains("--lazy mnt"), "{told}");
    }
    assert_eq!(byte_at(&program.disk(), (count - 1) * far), 7);
    fs::remove_file(program.path("small/filler")).unwrap();
    run(tool("mount", "mount").args(["-o", "remount,size=512m"]).arg(&small.0));
    program.ok(["unmount", "mnt"]);
    run(tool("qemu-img", "qemu-utils").args(["check", "-q"]).arg(program.path("small/d.qcow2")));
    program.ok(["mount", "--cow", "small/d.qcow2", "wide.img", "mnt"]);
    let disk = program.disk();
    assert!((0..count).all(|piece| byte_at(&disk, piece * far) == 7));
    drop(disk);
    program.ok(["unmount", "mnt"]);
}

/// What was given up by a lazy unmount is not there; the delta is sound as it was flushed.
#[test]
fn what_finds_no_room_can_be_given_up() {
    require_root();
    let program = Program::new();
    let far = 32 << 20;
    File::create(program.path("wide.img")).unwrap().set_len(4096 * far).unwrap();
    let small = Small::new(program.path("small"));
    program.ok(["mount", "--cow", "small/d.qcow2", "wide.img", "mnt"]);
    let disk = program.disk();
    disk.write_all_at(b"kept", 5 << 30).unwrap();
    disk.sync_all().unwrap();
    drop(disk);
    write_until_full(&program, &small, far);
    program.ok(["unmount", "--lazy", "mnt"]);
    fs::remove_file(program.path("small/filler")).unwrap();
    let mount = ["mount", "--cow", "small/d.qcow2", "wide.img", "mnt"];
    while !program.strata(mount).status.success() {
        // Its server has still to end.
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let mut kept = [0; 4];
    program.disk().read_exact_at(&mut kept, 5 << 30).unwrap();
    assert_eq!(&kept, b"kept");
    program.ok(["unmount", "mnt"]);
    run(tool("qemu-img", "qemu-utils").args(["check", "-q"]).arg(program.path("small/d.qcow2")));
}

#[test]
fn nothing_of_a_scratch_needs_room_in_the_end() {
    require_root();
    let program = Program::new();
    let small = Small::new(program.path("small"));
    let mut mount = strata();
    mount.args(["mount", "--scratch", "raw.img", "mnt"]).env("TMPDIR", &small.0);
    run(mount.current_dir(program.dir.path()));
    let disk = program.disk();
    small.leave(256 << 10);
    let full = (0..2000).map(|piece| disk.write_all_at(&[7; 4096], piece * 4096));
    let error = full.into_iter().find_map(Result::err).unwrap();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    disk.sync_all().unwrap();
    drop(disk);
    program.ok(["unmount", "mnt"]);
}
