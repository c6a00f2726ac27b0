//! What the host does not have room for, or does not permit.

use super::*;

/// A small filesystem of its own, for as long as it lives.
struct Small(tempfile::TempDir);

impl Small {
    fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test mounts a tmpfs: run as root");
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(dir.path());
        assert!(mount.status().unwrap().success());
        Self(dir)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_destination_ends_the_run_with_one_error() {
    let model = oddities();
    let small = Small::new();
    let (result, failures) = run(&model, &everything(), small.0.path(), &plain());
    let error = result.unwrap_err();
    assert_eq!(error.kind(), Kind::NoSpace);
    assert!(error.to_string().contains("No space left"), "{error}");
    assert_eq!(error.hint(), Some("make room; the same command finishes the rest"));
    assert!(failures.len() <= 4, "{failures:?}");
    // Whatever has its name is whole.
    for entry in fs::read_dir(small.0.path()).unwrap().map(Result::unwrap) {
        let Some(node) = model.lookup(ROOT, entry.file_name().as_bytes()).unwrap() else {
            panic!("{:?} was left behind", entry.file_name());
        };
        let attr = model.attr(node).unwrap();
        if attr.kind == FileKind::Regular {
            assert!(fs::read(entry.path()).unwrap() == model.contents(node));
        }
    }
}

#[test]
fn a_full_destination_keeps_nothing_of_the_files_beside() {
    let mut model = Model::new();
    // Halfway through, and for long, when the other finds the destination full.
    for (name, size) in [(b"small", 2 << 20), (b"large", 20 << 20)] {
        let slow = model.add(ROOT, name, FileKind::Regular, 0o644);
        model.put(slow, 0, &bytes(4096, 1));
        model.put(slow, size - 4096, &bytes(4096, 2));
        model.slow.insert(slow, Duration::from_millis(300));
    }
    model.file(ROOT, b"too much", 0o644, &bytes(3 << 20, 3));
    let small = Small::new();
    let (result, _) = run(&model, &everything(), small.0.path(), &plain());
    assert_eq!(result.unwrap_err().kind(), Kind::NoSpace);
    assert_eq!(partials(small.0.path()), Vec::<PathBuf>::new());
}

#[test]
fn a_stopped_run_keeps_nothing_of_a_small_file() {
    let mut model = Model::new();
    let slow = model.file(ROOT, b"slow", 0o644, &bytes(3 << 20, 1));
    model.slow.insert(slow, Duration::from_millis(100));
    let dir = tempfile::tempdir().unwrap();
    let (stop, progress) = (AtomicBool::new(false), Progress::default());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while progress.bytes.load(Ordering::Relaxed) == 0 {
                std::hint::spin_loop();
            }
            stop.store(true, Ordering::Relaxed);
        });
        restore(&model, &everything(), dir.path(), &plain(), &progress, &stop, &|_, _| {}).unwrap()
    });
    assert_eq!(partials(dir.path()), Vec::<PathBuf>::new());
}

/// Run by `an_ordinary_user_restores_what_is_permitted` as user 65534.
#[test]
#[ignore = "a part of another test"]
fn as_an_ordinary_user() {
    let dir = PathBuf::from(std::env::var_os("RESTORE_TO").unwrap());
    let mut model = oddities();
    let passwd = model.at(&[b"etc", b"passwd"]);
    model.attr_mut(passwd).uid = 0;
    for _ in 0..2 {
        let summary = restored(&model, &dir, &plain());
        assert_equal(&model, ROOT, &dir, false);
        assert_eq!(summary.xattrs_refused, 0);
    }
    // Folders that their owner cannot use are finished all the same.
    let closed = dir.join("closed");
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    fs::remove_file(closed.join("inside")).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    restored(&model, &dir, &plain());
    assert_equal(&model, ROOT, &dir, false);
}

#[test]
fn an_ordinary_user_restores_what_is_permitted() {
    assert!(rustix::process::geteuid().is_root(), "this test changes users: run as root");
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let to = dir.path().join("to");
    fs::create_dir(&to).unwrap();
    std::os::unix::fs::chown(&to, Some(65534), Some(65534)).unwrap();
    // The program may lie where this user cannot go.
    let program = dir.path().join("test");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&program)
        .args(["--exact", "host::as_an_ordinary_user", "--ignored"])
        .env("RESTORE_TO", &to)
        .current_dir("/")
        .output()
        .expect("setpriv is missing: apt-get install -y util-linux");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}
