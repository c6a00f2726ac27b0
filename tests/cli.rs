//! The program as people and scripts meet it: output, errors, exit statuses, pipes.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failed step is a failed test")]

mod model;
mod support;

use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use jiff::tz::TimeZone;
use model::{Model, ROOT};
use stratafs::cli::ls::{Form, Style, list};
use stratafs::tree::{Device, FileKind, Time};
use support::{run, stdout, strata, tool};

fn style(form: Form) -> Style {
    Style {
        form,
        recursive: false,
        directory: false,
        numeric: false,
        escape: false,
        zone: TimeZone::UTC,
    }
}

#[track_caller]
fn listed(model: &Model, paths: &[&[u8]], style: &Style) -> (String, Vec<String>) {
    let paths: Vec<Vec<u8>> = paths.iter().map(|path| path.to_vec()).collect();
    let (mut out, mut failures) = (vec![], vec![]);
    list(model, &paths, style, &mut out, &mut |error| failures.push(error.to_string())).unwrap();
    (String::from_utf8_lossy(&out).into_owned(), failures)
}

fn small() -> Model {
    let mut model = Model::new();
    let etc = model.dir(ROOT, b"etc", 0o755);
    model.file(etc, b"passwd", 0o644, b"root:x:0:0::/root:/bin/sh\nanna:x:1000:1000::/:\nbad\n");
    model.file(etc, b"group", 0o644, b"root:x:0:\nstaff:x:50:anna\n");
    model.symlink(etc, b"link", b"pass\nwd");
    let dev = model.dir(ROOT, b"dev", 0o1777);
    model.add(dev, b"null", FileKind::CharDevice(Device { major: 1, minor: 3 }), 0o666);
    model.add(dev, b"pipe", FileKind::Fifo, 0o4600);
    let su = model.file(ROOT, b"b\x1b[2J", 0o6755, &[7; 5000]);
    model.attr_mut(su).modified = Time { seconds: -1, nanos: 5 };
    let latin = model.file(ROOT, b"caf\xe9", 0o000, b"");
    for node in [etc, dev, su, latin] {
        model.attr_mut(node).uid = 1000;
        model.attr_mut(node).gid = 50;
    }
    model.attr_mut(latin).uid = 4242;
    model
}

#[test]
fn ls_lists_names_in_order() {
    let (out, failures) = listed(&small(), &[b"/"], &style(Form::Names));
    assert_eq!(out, "b\x1b[2J\ncaf\u{fffd}\ndev\netc\n");
    assert_eq!(failures, Vec::<String>::new());
    let escaped = Style { escape: true, ..style(Form::Names) };
    assert_eq!(listed(&small(), &[b"/"], &escaped).0, "b\\x1b[2J\ncaf\\xe9\ndev\netc\n");
}

#[test]
fn ls_long_is_what_people_know() {
    let long = Style { escape: true, ..style(Form::Long) };
    let (out, _) = listed(&small(), &[b"/"], &long);
    let expected = "\
-rwsr-sr-x 1 anna staff 5000 1969-12-31 23:59:59 b\\x1b[2J
---------- 1 4242 staff    0 2020-09-13 12:26:48 caf\\xe9
drwxrwxrwt 1 anna staff    0 2020-09-13 12:26:44 dev
drwxr-xr-x 1 anna staff    0 2020-09-13 12:26:41 etc
";
    // Nodes are numbered as they are made, and a second later each.
    let time = |line: &str| line.split_whitespace().nth(6).unwrap().to_owned();
    let strip = |text: &str| text.lines().map(|line| line.replace(&time(line), "T")).collect();
    let (out, expected): (Vec<String>, Vec<String>) = (strip(&out), strip(expected));
    assert_eq!(out, expected);
    let (out, _) = listed(&small(), &[b"/dev", b"/etc/link"], &long);
    assert!(out.contains(" 1, 3 "), "{out}");
    assert!(out.contains("prwS------ "), "{out}");
    assert!(out.lines().next().unwrap().ends_with(" /etc/link -> pass\\nwd"), "{out}");
    assert!(out.contains("\n\n/dev:\n"), "{out}");
    let numeric = Style { numeric: true, ..long };
    assert!(listed(&small(), &[b"/"], &numeric).0.contains(" 1000 50 "));
}

#[test]
fn ls_goes_down_without_end_or_recursion() {
    let mut model = small();
    let etc = model.at(&[b"etc"]);
    model.name(etc, b"circle", ROOT);
    let recursive = Style { recursive: true, ..style(Form::Names) };
    let (out, failures) = listed(&model, &[b"/"], &recursive);
    let tail = "\n/dev:\nnull\npipe\n\n/etc:\ncircle\ngroup\nlink\npasswd\n";
    assert!(out.starts_with("/:\nb") && out.ends_with(tail), "{out}");
    assert_eq!(failures, ["/etc/circle: the folder is in the tree more than once (corrupt image)"]);
    let mut at = ROOT;
    for _ in 0..20_000 {
        at = model.dir(at, b"d", 0o755);
    }
    let (out, _) = listed(&model, &[b"/d"], &recursive);
    assert_eq!(out.lines().filter(|line| line.ends_with(':')).count(), 20_000);
}

#[test]
fn ls_json_has_every_byte_and_number() {
    let (out, _) = listed(&small(), &[b"/", b"/dev/null", b"/etc/link"], &style(Form::Json));
    let rows: Vec<serde_json::Value> =
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let row = |path: &str| rows.iter().find(|row| row["path"] == path).unwrap();
    assert_eq!(rows.len(), 6);
    assert_eq!(row("/caf\u{fffd}")["path_hex"], "2f636166e9");
    assert_eq!(row("/etc").get("path_hex"), None);
    assert_eq!(row("/b\u{1b}[2J")["modified"], "1969-12-31T23:59:59.000000005Z");
    assert_eq!(row("/b\u{1b}[2J")["mode"], "6755");
    assert_eq!(row("/b\u{1b}[2J")["size"], 5000);
    assert_eq!(row("/dev/null")["device"], serde_json::json!([1, 3]));
    assert_eq!(row("/etc/link")["target"], "pass\nwd");
    assert_eq!(row("/etc/link")["type"], "symlink");
}

/// An image of a small system, made by mke2fs out of a folder.
struct Image {
    dir: tempfile::TempDir,
}

impl Image {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = Self { dir };
        let tree = image.tree();
        for folder in ["etc", "var/log", "home/anna"] {
            fs::create_dir_all(tree.join(folder)).unwrap();
        }
        let put = |path: &str, contents: &[u8]| fs::write(tree.join(path), contents).unwrap();
        put("etc/passwd", b"root:x:0:0::/root:/bin/sh\n");
        put("etc/os-release", b"PRETTY_NAME=\"Test System 1\"\n");
        let noise: Vec<u8> =
            (0..30_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        put("var/log/big", &noise);
        for n in 0..500 {
            put(&format!("home/anna/note {n}"), format!("note number {n}").as_bytes());
        }
        std::os::unix::fs::symlink("big", tree.join("var/log/link")).unwrap();
        fs::hard_link(tree.join("etc/passwd"), tree.join("home/anna/passwd")).unwrap();
        let mut mkfs = tool("mke2fs", "e2fsprogs");
        mkfs.args(["-q", "-t", "ext4", "-L", "system", "-d"]).arg(&tree).arg(image.path());
        run(mkfs.arg("64M"));
        image
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("disk.img")
    }

    fn tree(&self) -> PathBuf {
        self.dir.path().join("tree")
    }
}

fn output(command: &mut Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn errors_are_one_line_a_hint_and_a_status() {
    let image = Image::new();
    let (status, out, err) = output(strata().arg("ls").arg(image.path()).args(["/nope", "/etc"]));
    assert_eq!((status, out.as_str()), (Some(1), "/etc:\nos-release\npasswd\n"));
    assert!(err.starts_with("strata: /nope: ") && err.lines().count() == 1, "{err}");

    let (status, out, err) = output(strata().args(["ls", "/no/such/image"]));
    assert_eq!((status, out.as_str()), (Some(1), ""));
    assert!(err.starts_with("strata: /no/such/image: "), "{err}");

    for wrong in [&["frob"][..], &["ls"], &["ls", "--colour", "x"], &["ls", "--view=tree", "x"]] {
        let (status, out, err) = output(strata().args(wrong));
        assert_eq!((status, out.as_str()), (Some(2), ""), "{wrong:?}");
        let lines: Vec<&str> = err.lines().collect();
        assert!(lines[0].starts_with("strata: ") && lines.len() == 2, "{err}");
        assert!(lines[1].starts_with("hint: "), "{err}");
    }
    let (status, out, err) = output(strata().arg("--version"));
    assert_eq!((status, err.as_str()), (Some(0), ""));
    assert_eq!(out, format!("strata {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn output_that_is_not_wanted_ends_it_quietly_and_a_full_disk_does_not() {
    let image = Image::new();
    for args in [&["ls", "-R"][..], &["info"], &["ls", "--json", "-R"]] {
        let mut child = strata()
            .args(args)
            .arg(image.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let mut err = String::new();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        assert_eq!((child.wait().unwrap().code(), err.as_str()), (Some(0), ""), "{args:?}");
    }
    for args in [&["cat"][..], &["ls"]] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = strata();
        command.args(args).arg(image.path()).arg("/etc/passwd").stdout(full);
        let (status, _, err) = output(&mut command);
        assert_eq!(status, Some(1));
        assert_eq!(err, "strata: standard output: No space left on device (os error 28)\n");
    }
}

#[test]
fn cat_writes_files_one_after_the_other() {
    let image = Image::new();
    let mut command = strata();
    command.arg("cat").arg(image.path()).args(["/etc/passwd", "/var/log/link"]);
    let expected = [
        fs::read(image.tree().join("etc/passwd")).unwrap(),
        fs::read(image.tree().join("var/log/big")).unwrap(),
    ]
    .concat();
    assert!(run(&mut command).stdout == expected);
    let (status, out, err) =
        output(strata().arg("cat").arg(image.path()).args(["/etc", "/etc/os-release"]));
    assert_eq!((status, err.as_str()), (Some(1), "strata: /etc: is a folder\n"));
    assert_eq!(out, "PRETTY_NAME=\"Test System 1\"\n");
}

#[test]
fn info_tells_a_person_and_a_program_the_same() {
    let image = Image::new();
    let told = stdout(strata().arg("info").arg(image.path()));
    for part in
        ["format:       raw\n", "64 MiB (67,108,864 bytes)", "Test System 1", "ext4 \"system\""]
    {
        assert!(told.contains(part), "{part:?} is not in\n{told}");
    }
    let json = stdout(strata().args(["info", "--json"]).arg(image.path()));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["virtual_size"], 64 << 20);
    assert_eq!(json["system"], "Test System 1");
    assert_eq!(json["volumes"][0]["filesystem"]["label"], "system");
    assert_eq!(json["volumes"][0]["contents"], "ext4");
    assert_eq!(json["partition_table"], serde_json::Value::Null);
}

/// Path, mode, owner, links, time of modification and contents of a file.
type Found = (PathBuf, u32, u32, u64, i64, Vec<u8>);

#[track_caller]
fn assert_same(tree: &Path, restored: &Path) {
    let entries = |dir: &Path| {
        let mut found = vec![];
        let mut left = vec![dir.to_owned()];
        while let Some(folder) = left.pop() {
            for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap) {
                let path = entry.path();
                let meta = fs::symlink_metadata(&path).unwrap();
                let contents = if meta.is_dir() {
                    left.push(path.clone());
                    vec![]
                } else if meta.is_symlink() {
                    fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()
                } else {
                    fs::read(&path).unwrap()
                };
                let name = path.strip_prefix(dir).unwrap().to_owned();
                if name != Path::new("lost+found") {
                    let links = if meta.is_dir() { 0 } else { meta.nlink() };
                    found.push((name, meta.mode(), meta.uid(), links, meta.mtime(), contents));
                }
            }
        }
        found.sort();
        found
    };
    let (expected, found) = (entries(tree), entries(restored));
    let names = |entries: &[Found]| {
        entries.iter().map(|e| (e.0.clone(), e.1, e.2, e.3, e.4)).collect::<Vec<_>>()
    };
    assert_eq!(names(&found), names(&expected));
    assert!(found == expected, "contents differ");
}

#[test]
fn restore_survives_being_killed_at_any_time() {
    let image = Image::new();
    let to = image.dir.path().join("to");
    let restore = || {
        let mut command = strata();
        command.arg("restore").arg(image.path()).arg("/").arg("--to").arg(&to);
        command
    };
    for round in 0..12 {
        let mut child = restore().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // A different place each time, by how much is there; where that never comes, it is done.
        let enough = |dir: &Path| {
            let Ok(entries) = fs::read_dir(dir) else { return 0 };
            entries.map(|e| e.unwrap().metadata().map_or(0, |meta| 1 + meta.len())).sum::<u64>()
        };
        while enough(&to.join("var/log")) < round * 2_500_000 && child.try_wait().unwrap().is_none()
        {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let big = to.join("var/log/big");
        if big.exists() {
            let expected = fs::read(image.tree().join("var/log/big")).unwrap();
            assert!(fs::read(big).unwrap() == expected, "a part has the final name");
        }
        if round % 4 == 3 {
            run(&mut restore());
            assert_same(&image.tree(), &to);
            fs::remove_dir_all(&to).unwrap();
        }
    }
    run(&mut restore());
    assert_same(&image.tree(), &to);
    let told = stdout(restore().arg("--json"));
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&told["files"], &told["bytes"]), (&0.into(), &0.into()));
}

#[test]
fn restore_stops_at_a_signal_and_says_how_to_go_on() {
    let image = Image::new();
    let to = image.dir.path().join("to");
    let restore = || {
        let mut command = strata();
        command.arg("restore").arg(image.path()).arg("/").arg("--to").arg(&to);
        command
    };
    let child = restore().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while !to.exists() {
        std::thread::yield_now();
    }
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    let err = String::from_utf8(stderr).unwrap();
    // On a very fast machine everything may be there before the signal is.
    if status.code() != Some(0) {
        let told = "strata: interrupted\nhint: the same command finishes the rest\n";
        assert_eq!((status.code(), err.as_str()), (Some(1), told));
        assert!(!to.join("var/log/big").exists() || !to.join("home/anna/note 499").exists());
    }
    run(&mut restore());
    assert_same(&image.tree(), &to);
}

#[test]
fn restore_tells_what_differs_and_how_to_go_on() {
    let image = Image::new();
    let to = image.dir.path().join("to");
    fs::create_dir_all(to.join("etc")).unwrap();
    fs::write(to.join("etc/passwd"), "mine").unwrap();
    let restore = || {
        let mut command = strata();
        command.arg("restore").arg(image.path()).args(["/etc", "/var/log/link"]).arg("--to");
        command.arg(&to);
        command
    };
    let (status, out, err) = output(&mut restore());
    assert_eq!(status, Some(1));
    assert!(out.starts_with("restored 1 file, 1 link or special file (28 B) to "), "{out}");
    let lines: Vec<&str> = err.lines().collect();
    assert_eq!(lines.len(), 3, "{err}");
    assert_eq!(lines[0], "strata: etc/passwd: a different file of that name is there");
    assert_eq!(lines[2], "hint: --overwrite replaces files that differ");
    assert_eq!(fs::read(to.join("etc/passwd")).unwrap(), b"mine");
    run(restore().arg("--overwrite"));
    assert!(fs::symlink_metadata(to.join("link")).unwrap().is_symlink());
    let same = fs::read(image.tree().join("etc/passwd")).unwrap();
    assert_eq!(fs::read(to.join("etc/passwd")).unwrap(), same);
}

#[test]
fn an_ordinary_user_lists_reads_and_restores() {
    support::require_root();
    let image = Image::new();
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(image.dir.path(), open).unwrap();
    fs::set_permissions(image.path(), fs::Permissions::from_mode(0o644)).unwrap();
    let program = image.dir.path().join("strata");
    fs::copy(strata().get_program(), &program).unwrap();
    let to = image.dir.path().join("to");
    fs::create_dir(&to).unwrap();
    std::os::unix::fs::chown(&to, Some(65534), Some(65534)).unwrap();
    let user = || {
        let mut command = tool("setpriv", "util-linux");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
        command.current_dir("/");
        command
    };
    assert_eq!(stdout(user().arg("ls").arg(image.path()).arg("/etc")), "os-release\npasswd\n");
    assert!(stdout(user().arg("cat").arg(image.path()).arg("/etc/passwd")).starts_with("root"));
    let restore =
        |path: &str| stdout(user().arg("restore").arg(image.path()).arg(path).arg("--to").arg(&to));
    assert!(restore("/home").contains("owners not set: that takes root"));
    assert!(restore("/home").contains("nothing was missing"), "a second run has nothing to do");
    let note = to.join("home/anna/note 7");
    assert_eq!(fs::read(&note).unwrap(), b"note number 7");
    let original = image.tree().join("home/anna/note 7");
    assert_eq!(fs::metadata(&note).unwrap().mtime(), fs::metadata(original).unwrap().mtime());
}

#[test]
fn manual_pages_and_completions_are_there() {
    let dir = tempfile::tempdir().unwrap();
    run(strata().arg("man").arg("--dir").arg(dir.path()));
    let page = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    assert!(page("strata.1").starts_with(".ie"), "no roff");
    for command in ["mount", "unmount", "info", "ls", "cat", "restore", "completions", "man"] {
        let page = page(&format!("strata-{command}.1"));
        assert!(page.contains(&format!("strata\\-{command}")), "{page}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(strata().args(["completions", shell]));
        assert!(script.contains("restore") && script.contains("allow-path"), "{shell}");
    }
}
