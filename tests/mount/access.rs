//! Who may see a mount, on what, and how it ends.

use super::*;

#[test]
fn a_mount_is_read_only_owner_only_and_without_devices_by_default() {
    support::require_root();
    let fixture = Fixture::new(model(), &options());
    let line = fixture.mountinfo();
    let fields: Vec<_> = line.split(' ').collect();
    let flags: HashSet<_> = fields[5].split(',').collect();
    for flag in ["ro", "nosuid", "nodev"] {
        assert!(flags.contains(flag), "{line}");
    }
    assert!(!line.contains("allow_other"), "{line}");
    assert!(line.contains(" - fuse.strata model "), "{line}");
    let errno = |result: std::io::Result<()>| result.unwrap_err().raw_os_error();
    assert_eq!(errno(File::create(fixture.path("new")).map(drop)), Some(libc::EROFS));
    assert_eq!(errno(fs::remove_file(fixture.path("one"))), Some(libc::EROFS));
    assert_eq!(
        rustix::fs::setxattr(fixture.path("one"), "user.x", b"1", rustix::fs::XattrFlags::empty()),
        Err(Errno::ROFS)
    );
    let other = as_nobody(["cat".as_ref(), fixture.path("one").as_os_str()]).output().unwrap();
    assert!(String::from_utf8_lossy(&other.stderr).contains("Permission denied"), "{other:?}");
}

#[test]
fn others_come_in_when_asked_and_meet_the_permissions_of_each_file() {
    support::require_root();
    let shared = Options { allow_other: true, suid: true, dev: true, ..options() };
    let fixture = Fixture::new(model(), &shared);
    // The folder the temporary folder stands for is hidden: its own mode is the root's.
    let line = fixture.mountinfo();
    assert!(line.contains("allow_other") && line.contains("default_permissions"), "{line}");
    assert!(!line.contains("nosuid") && !line.contains("nodev"), "{line}");
    let cat = |uid: &str, name: &str| {
        let path = fixture.path(name);
        tool("setpriv", "util-linux")
            .args(["--reuid", uid, "--regid", uid, "--clear-groups", "cat"])
            .arg(path)
            .output()
            .unwrap()
    };
    assert!(cat("65534", "large").status.success());
    assert!(!cat("65534", "attributed").status.success());
    // The access control list lets user 33 in.
    assert!(cat("33", "attributed").status.success());
}

#[test]
fn a_whole_file_is_read_by_the_kernel_itself_as_root() {
    support::require_root();
    let host = tempfile::tempdir().unwrap();
    let image = host.path().join("image.raw");
    let bytes: Vec<u8> = (0..3_000_000).map(|at| byte(99, at)).collect();
    fs::write(&image, &bytes).unwrap();
    let mut model = Model::new(1);
    model.add(b"disk.img", 2, FileKind::Regular, Contents::Host(File::open(&image).unwrap()));
    model.file(b"p1.img", 3, 100_000);
    let fixture = Fixture::new(model, &options());
    let first = File::open(fixture.path("disk.img")).unwrap();
    for _ in 0..3 {
        assert!(fs::read(fixture.path("disk.img")).unwrap() == bytes);
    }
    let mut buf = [0; 1000];
    first.read_exact_at(&mut buf, 2_000_001).unwrap();
    assert_eq!(buf, bytes[2_000_001..2_001_001]);
    assert_eq!(fixture.model.reads.load(Ordering::Relaxed), 0, "passed through");
    let mut expected = vec![0; 100_000];
    pattern(3, 0, 0, &mut expected);
    assert!(fs::read(fixture.path("p1.img")).unwrap() == expected);
    assert_ne!(fixture.model.reads.load(Ordering::Relaxed), 0);
}

#[test]
fn a_second_mount_on_the_folder_is_refused_by_name() {
    let fixture = Fixture::new(model(), &options());
    let error = mount(Served::ReadOnly(Arc::new(Model::new(1))), fixture.dir.path(), &options())
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Exists);
    assert!(error.to_string().ends_with("already shows model"), "{error}");
    assert!(error.hint().unwrap().starts_with("strata unmount"), "{:?}", error.hint());
}

#[test]
fn what_cannot_be_mounted_on_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let error = mount(Served::ReadOnly(Arc::new(Model::new(1))), &file, &options()).unwrap_err();
    assert_eq!(error.kind(), Kind::NotADirectory);
    let error =
        mount(Served::ReadOnly(Arc::new(Model::new(1))), &dir.path().join("no"), &options())
            .unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
}

#[test]
fn unmounting_ends_the_wait_and_a_busy_mount_names_its_user() {
    let mut fixture = Fixture::new(model(), &options());
    let waiting = fixture.mounted.take().unwrap();
    let waiting = std::thread::spawn(|| waiting.wait());
    let mut user =
        Command::new("sleep").arg("1000").current_dir(fixture.dir.path()).spawn().unwrap();
    let busy = unmount(fixture.dir.path(), Unmount::default()).unwrap_err();
    let text = busy.to_string();
    assert!(text.contains(&format!("sleep (process {})", user.id())), "{text}");
    assert!(busy.hint().unwrap().contains("--lazy"));
    user.kill().unwrap();
    user.wait().unwrap();
    // The server is this very process: its end cannot be waited for, so it is told not to.
    unmount(fixture.dir.path(), Unmount { lazy: true, ..Unmount::default() }).unwrap();
    waiting.join().unwrap().unwrap();
    assert_eq!(fs::read_dir(fixture.dir.path()).unwrap().count(), 0);
}
