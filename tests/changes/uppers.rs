//! `strata commit` of uppers that the kernel's overlayfs wrote. GNU tar and Python read the tars.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, XattrFlags};

use crate::support::{require_root, run, stdout, strata, tool};

/// Puts a layer over a folder, as the image specification says; what an engine does.
const APPLY: &str = r#"
import decimal, os, shutil, sys, tarfile
tar, root = sys.argv[1:]
def remove(path):
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.remove(path)
with tarfile.open(tar) as layer:
    members = layer.getmembers()
    for member in members:
        folder, name = os.path.split(member.name)
        if name == '.wh..wh..opq':
            for entry in os.listdir(os.path.join(root, folder)) if os.path.isdir(os.path.join(root, folder)) else []:
                remove(os.path.join(root, folder, entry))
        elif name.startswith('.wh.'):
            remove(os.path.join(root, folder, name[4:]))
    for member in members:
        path = os.path.join(root, member.name)
        if os.path.basename(member.name).startswith('.wh.'):
            continue
        if os.path.lexists(path) and not (member.isdir() and os.path.isdir(path)):
            remove(path)
        layer.extract(member, root, numeric_owner=True, filter='fully_trusted')
        if 'mtime' in member.pax_headers:
            nanos = int(decimal.Decimal(member.pax_headers['mtime']) * 10**9)
            os.utime(path, ns=(nanos, nanos), follow_symlinks=False)
        for key, value in member.pax_headers.items():
            if key.startswith('SCHILY.xattr.') and not member.islnk():
                name = key[len('SCHILY.xattr.'):].replace('%3D', '=').replace('%25', '%')
                os.setxattr(path, name, value.encode('utf-8', 'surrogateescape'), follow_symlinks=False)
"#;

struct Overlay {
    mounted: PathBuf,
}

impl Overlay {
    fn mount(dir: &Path, options: &str) -> Self {
        for name in ["upper", "work", "merged"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        let folder = |name: &str| dir.join(name).display().to_string();
        let options = format!(
            "lowerdir={},upperdir={},workdir={},{options}",
            folder("lower"),
            folder("upper"),
            folder("work")
        );
        let mounted = dir.join("merged");
        let mut mount = tool("mount", "mount");
        run(mount.args(["-t", "overlay", "overlay", "-o", &options]).arg(&mounted));
        Self { mounted }
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = tool("umount", "mount").arg(&self.mounted).status();
    }
}

fn lower(dir: &Path) {
    let root = dir.join("lower");
    for folder in ["etc/deep/er", "opaque/inner", "gone/sub", "renamed/kept/below"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    let long = "n".repeat(180);
    for (number, name) in [
        "etc/passwd",
        "etc/chmodded",
        "etc/deep/er/file",
        "opaque/hidden",
        "gone/sub/x",
        "renamed/kept/below/y",
        "renamed/changed",
        "renamed/removed",
        "becomes-folder",
        &format!("etc/{long}"),
    ]
    .into_iter()
    .enumerate()
    {
        fs::write(root.join(name), format!("{name} {number}\n").repeat(2000)).unwrap();
    }
    // Whole seconds, which is all that mke2fs keeps of a folder's files.
    let mut touch = Command::new("sh");
    run(touch.current_dir(&root).args(["-c", "find . -exec touch -h -d @1000000001 {} +"]));
    fs::hard_link(root.join("renamed/kept/below/y"), root.join("renamed/kept/link")).unwrap();
}

fn change(root: &Path, metacopy: bool) {
    fs::write(root.join("etc/passwd"), "new contents").unwrap();
    run(Command::new("chmod").arg("640").arg(root.join("etc/chmodded")));
    fs::remove_dir_all(root.join("opaque")).unwrap();
    fs::create_dir(root.join("opaque")).unwrap();
    fs::write(root.join("opaque/new"), "n").unwrap();
    fs::remove_dir_all(root.join("gone")).unwrap();
    if metacopy {
        fs::rename(root.join("renamed"), root.join("etc/moved")).unwrap();
        fs::write(root.join("etc/moved/changed"), "c").unwrap();
        fs::remove_file(root.join("etc/moved/removed")).unwrap();
        fs::rename(root.join("etc/moved/kept"), root.join("kept-elsewhere")).unwrap();
    }
    fs::remove_file(root.join("becomes-folder")).unwrap();
    fs::create_dir(root.join("becomes-folder")).unwrap();
    fs::write(root.join("becomes-folder/f"), "f").unwrap();
    fs::hard_link(root.join("becomes-folder/f"), root.join("second")).unwrap();
    std::os::unix::fs::symlink("t".repeat(200), root.join("to-far")).unwrap();
    std::os::unix::fs::symlink("\u{e9}/x", root.join("caf\u{e9}")).unwrap();
    let deep = format!("{0}/{0}/{0}", "d".repeat(90));
    fs::create_dir_all(root.join(&deep)).unwrap();
    fs::write(root.join(&deep).join("leaf"), vec![5; 1_000_000]).unwrap();
    for (name, kind) in [("pipe", FileType::Fifo), ("null", FileType::CharacterDevice)] {
        let device = if name == "null" { rustix::fs::makedev(1, 3) } else { 0 };
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(CWD, root.join(name), kind, mode, device).unwrap();
    }
    for (name, value) in [("user.a=b%", b"v\x01\n=\xff".as_slice()), ("user.plain", b"p")] {
        let path = root.join("etc/passwd");
        rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
    }
    std::os::unix::fs::chown(root.join("etc/passwd"), Some(3_000_000), Some(5)).unwrap();
    run(Command::new("touch").args(["-d", "1960-02-03 04:05:06.789"]).arg(root.join("second")));
}

/// Everything a listing tells of a tree; of folders, not the time.
fn listing(root: &Path) -> String {
    let format = "%P %y %#m %U %G %n %s %l %T@\\n";
    let find = stdout(
        Command::new("find")
            .current_dir(root)
            .args([".", "-mindepth", "1", "(", "-type", "d", "-printf", "%P d %#m %U %G\\n", ")"])
            .args(["-o", "-printf", format]),
    );
    let mut lines: Vec<&str> = find.lines().collect();
    lines.sort_unstable();
    let mut getfattr = tool("getfattr", "attr");
    let xattrs = stdout(getfattr.current_dir(root).args(["-R", "-h", "-d", "-m", "^user\\.", "."]));
    let mut xattrs: Vec<&str> = xattrs.split("\n\n").map(str::trim).collect();
    xattrs.sort_unstable();
    let mut sums = Command::new("sh");
    sums.current_dir(root).args(["-c", "find . -type f -print0 | sort -z | xargs -0 -r sha256sum"]);
    format!("{}\n{}\n{}", lines.join("\n"), xattrs.join("\n"), stdout(&mut sums))
}

fn image_of(dir: &Path, folder: &str) -> PathBuf {
    let image = dir.join(format!("{folder}.img"));
    fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let mut mke2fs = tool("mke2fs", "e2fsprogs");
    run(mke2fs.args(["-q", "-F", "-t", "ext4", "-d"]).arg(dir.join(folder)).arg(&image));
    image
}

/// Commits the upper in every form and applies it to the lower folder.
fn check(dir: &Path, cow: bool) {
    let upper = dir.join("upper/");
    let commit = |to: &Path, args: &[&str]| {
        let mut command = strata();
        command.arg("commit").arg("--to").arg(to).args(args).arg("-q");
        match cow {
            true => command.arg("--cow").arg(&upper).arg(dir.join("lower.img")),
            false => command.arg(&upper),
        };
        run(&mut command);
    };
    let tar = dir.join("layer.tar");
    commit(&tar, &[]);
    let merged = listing(&dir.join("merged"));
    let applied = dir.join("applied");
    run(Command::new("cp").arg("-a").arg(dir.join("lower")).arg(&applied));
    run(tool("python3", "python3").args(["-c", APPLY]).args([&tar, &applied]));
    let ours = listing(&applied);
    for (ours, theirs) in ours.lines().zip(merged.lines()) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(ours, merged);

    // GNU tar takes out what the folder form has.
    let (folder, extracted) = (dir.join("folder"), dir.join("extracted"));
    commit(&folder, &[]);
    fs::create_dir(&extracted).unwrap();
    let mut extract = tool("tar", "tar");
    extract.args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf"]).arg(&tar);
    run(extract.arg("-C").arg(&extracted));
    assert_eq!(listing(&folder), listing(&extracted));

    // The same files, the same bytes.
    let again = dir.join("again.tar");
    commit(&again, &[]);
    assert!(fs::read(&tar).unwrap() == fs::read(&again).unwrap());
    let (gz, zst) = (dir.join("layer.tar.gz"), dir.join("layer.tar.zst"));
    commit(&gz, &[]);
    commit(&zst, &[]);
    let unpacked = |program: &str, package: &str, path: &Path| {
        run(tool(program, package).arg("-dc").arg(path)).stdout
    };
    assert!(unpacked("gzip", "gzip", &gz) == fs::read(&tar).unwrap());
    assert!(unpacked("zstd", "zstd", &zst) == fs::read(&tar).unwrap());
    let clamped = dir.join("clamped.tar");
    commit(&clamped, &["--source-date-epoch", "1000000000"]);
    let times = stdout(tool("tar", "tar").args(["--full-time", "--utc", "-tvf"]).arg(&clamped));
    assert!(times.contains("2001-09-09 01:46:40") && !times.contains(" 20261"), "{times}");
    assert!(times.contains("1960-02-03"), "{times}");
}

#[test]
fn an_upper_that_stands_alone() {
    require_root();
    for options in ["metacopy=off,redirect_dir=off,xino=off", "userxattr,xino=off"] {
        let dir = tempfile::tempdir().unwrap();
        lower(dir.path());
        let overlay = Overlay::mount(dir.path(), options);
        change(&overlay.mounted, false);
        check(dir.path(), false);
    }
}

#[test]
fn an_upper_with_renamed_folders_and_files_without_contents() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    lower(dir);
    let image = image_of(dir, "lower");
    assert!(image.exists());
    let overlay = Overlay::mount(dir, "metacopy=on,redirect_dir=on,xino=off");
    change(&overlay.mounted, true);
    check(dir, true);
    // Without what lies below there is no whole layer.
    let to = dir.join("never.tar");
    let output =
        strata().arg("commit").arg(dir.join("upper")).arg("--to").arg(&to).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("hint: ") && told.contains("--cow"), "{told}");
    assert!(!to.exists() && !dir.join(".never.tar.partial").exists());
}

#[test]
fn a_renamed_folder_that_is_not_below() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::create_dir_all(dir.join("other")).unwrap();
    let other = image_of(dir, "other");
    let upper = dir.join("upper");
    fs::create_dir_all(upper.join("new")).unwrap();
    let redirect = |value: &[u8]| {
        let flags = XattrFlags::empty();
        rustix::fs::setxattr(upper.join("new"), "trusted.overlay.redirect", value, flags).unwrap();
    };
    for value in [b"old".as_slice(), b"/a/b"] {
        redirect(value);
        let to = dir.join("never.tar");
        let mut commit = strata();
        commit.args(["commit", "--cow"]).arg(&upper).arg(&other).arg("--to").arg(&to);
        let output = commit.output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains("new: was renamed") && told.contains("hint: is REF"), "{told}");
        assert!(!to.exists() && !dir.join(".never.tar.partial").exists());
    }
}

#[test]
fn whiteouts_as_files_and_attributes_of_an_overlay_within() {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let upper = dir.path().join("upper");
    fs::create_dir_all(upper.join("folder")).unwrap();
    for name in ["folder/gone", "folder/empty", "kept"] {
        fs::write(upper.join(name), "").unwrap();
    }
    let set = |name: &str, attribute: &str, value: &str| {
        let path = upper.join(name);
        rustix::fs::lsetxattr(path, attribute, value.as_bytes(), XattrFlags::empty()).unwrap();
    };
    set("", "trusted.overlay.impure", "y");
    set("folder", "trusted.overlay.opaque", "x");
    set("folder/gone", "trusted.overlay.whiteout", "");
    set("kept", "trusted.overlay.overlay.opaque", "y");
    set("kept", "user.overlay.opaque", "y");
    let to = dir.path().join("out");
    run(strata().arg("commit").arg(&upper).arg("--to").arg(&to));
    let mut names: Vec<_> = fs::read_dir(to.join("folder"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, [".wh.gone", "empty"]);
    let mut getfattr = tool("getfattr", "attr");
    let told = stdout(getfattr.args(["--absolute-names", "-d", "-m", "-"]).arg(to.join("kept")));
    assert!(told.contains("trusted.overlay.opaque=\"y\""), "{told}");
    assert!(told.contains("user.overlay.opaque=\"y\""), "not overlayfs's own: {told}");
    assert_eq!(fs::metadata(to.join("folder/.wh.gone")).unwrap().mode() & 0o7777, 0);
}
