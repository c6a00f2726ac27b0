//! What the reader says of a tar, beside what another program unpacks and lists.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::BufReader;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use stratafs::oci::tar::{Entry, EntryKind, Reader};
use stratafs::tree::Device;

use crate::support::{run, tool};

/// Who unpacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Oracle {
    Gnu,
    Bsd,
}

pub(crate) fn gnu() -> Command {
    let mut tar = tool("tar", "tar");
    tar.env("LC_ALL", "C.UTF-8");
    tar
}

pub(crate) fn bsd() -> Command {
    let mut tar = tool("bsdtar", "libarchive-tools");
    tar.env("LC_ALL", "C.UTF-8");
    tar
}

/// All members, each beside the bytes that `contents` gave.
pub(crate) fn read(tar: &Path) -> Vec<(Entry, u64)> {
    let file = File::open(tar).unwrap();
    let mut reader = Reader::new(BufReader::with_capacity(4000, &file));
    let mut members = vec![];
    while let Some(entry) = reader.next().unwrap_or_else(|error| panic!("{tar:?}: {error}")) {
        // Every second is passed over unread.
        let mut stored = 0;
        if members.len() % 2 == 0 {
            reader
                .contents(&mut |chunk| {
                    stored += chunk.len() as u64;
                    Ok(())
                })
                .unwrap();
            let mapped: u64 = entry.runs.iter().map(|run| run.len).sum();
            assert_eq!(stored, mapped, "{tar:?}: {:?}", shown(&entry.path));
        }
        members.push((entry, stored));
    }
    members
}

/// Unpacks `tar` with `oracle` and compares everything there is.
#[track_caller]
pub(crate) fn compare(tar: &Path, oracle: Oracle) -> usize {
    let out = tempfile::tempdir().unwrap();
    let mut command = match oracle {
        Oracle::Gnu => {
            let mut command = gnu();
            command.args([
                "--xattrs",
                "--xattrs-include=*",
                "--acls",
                "--warning=no-unknown-keyword",
                "--delay-directory-restore",
            ]);
            command
        }
        Oracle::Bsd => {
            let mut command = bsd();
            command.args(["--xattrs", "--acls"]);
            command
        }
    };
    run(command
        .args(["--numeric-owner", "--same-owner", "-xpf"])
        .arg(tar)
        .arg("-C")
        .arg(out.path()));
    let members = read(tar);
    if oracle == Oracle::Gnu {
        let listing = run(gnu().args(["--quoting-style=literal", "-tf"]).arg(tar)).stdout;
        let theirs: Vec<_> = listing
            .split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| shown(line.strip_suffix(b"/").unwrap_or(line)))
            .collect();
        let path = |entry: &Entry| shown(entry.path.strip_suffix(b"/").unwrap_or(&entry.path));
        let ours: Vec<_> = members.iter().map(|(entry, _)| path(entry)).collect();
        assert_eq!(ours, theirs, "names in {tar:?}");
    }
    let image = File::open(tar).unwrap();
    let mut last = BTreeMap::new();
    for (entry, _) in &members {
        last.insert(plain(&entry.path), entry);
    }
    // The folder that was there already keeps its time.
    last.remove(Path::new(""));
    let mut found = BTreeSet::new();
    for (path, entry) in &last {
        one(entry, &out.path().join(path), out.path(), &image, oracle);
        found.insert(path.clone());
    }
    for path in walk(out.path()) {
        let path = path.strip_prefix(out.path()).unwrap().to_path_buf();
        // Folders that no member names.
        let parent = last.keys().any(|member| member.starts_with(&path));
        assert!(found.contains(&path) || parent, "{path:?} of {tar:?} was not read");
    }
    members.len()
}

/// One member beside the file that it became.
fn one(entry: &Entry, file: &Path, out: &Path, image: &File, oracle: Oracle) {
    let name = shown(&entry.path);
    let meta = fs::symlink_metadata(file).unwrap_or_else(|error| panic!("{name}: {error}"));
    let number = meta.rdev();
    let device = Device { major: rustix::fs::major(number), minor: rustix::fs::minor(number) };
    match &entry.kind {
        EntryKind::File => assert!(meta.is_file(), "{name}"),
        EntryKind::HardLink(target) => {
            let target = fs::symlink_metadata(out.join(plain(target))).unwrap();
            assert_eq!((meta.ino(), meta.dev()), (target.ino(), target.dev()), "{name}");
            // The rest is the target's.
            return;
        }
        EntryKind::Symlink(target) => {
            assert_eq!(fs::read_link(file).unwrap().as_os_str().as_bytes(), target, "{name}");
        }
        EntryKind::Folder => assert!(meta.is_dir(), "{name}"),
        EntryKind::Fifo => assert!(meta.file_type().is_fifo(), "{name}"),
        EntryKind::CharDevice(number) => {
            assert!(meta.file_type().is_char_device() && *number == device, "{name}");
        }
        EntryKind::BlockDevice(number) => {
            assert!(meta.file_type().is_block_device() && *number == device, "{name}");
        }
    }
    assert_eq!((entry.uid, entry.gid), (meta.uid(), meta.gid()), "owners of {name}");
    // bsdtar before 3.8 counts the fraction of a time before 1970 forwards, GNU tar and Python do not.
    let backwards = entry.modified.seconds < 0 && entry.modified.nanos != 0;
    if !(backwards && oracle == Oracle::Bsd) {
        assert_eq!(
            (entry.modified.seconds, i64::from(entry.modified.nanos)),
            (meta.mtime(), meta.mtime_nsec()),
            "time of {name}"
        );
    }
    if !matches!(entry.kind, EntryKind::Symlink(_)) {
        assert_eq!(entry.mode, (meta.mode() & 0o7777) as u16, "mode of {name}");
        let mut theirs = xattrs(file);
        if oracle == Oracle::Bsd {
            drop_escaped(&mut theirs);
        }
        assert_eq!(theirs, sorted(entry), "attributes of {name}");
    }
    if entry.kind == EntryKind::File {
        assert_eq!(entry.size, meta.len(), "size of {name}");
        contents(entry, &File::open(file).unwrap(), image);
    }
}

/// Every run has the file's bytes, and what lies between runs is zeros.
fn contents(entry: &Entry, file: &File, image: &File) {
    let name = shown(&entry.path);
    let mut at = 0;
    for run in &entry.runs {
        zeros(file, at, run.at, &name);
        let mut ours = vec![0; run.len as usize];
        let mut theirs = ours.clone();
        image.read_exact_at(&mut ours, run.place).unwrap();
        file.read_exact_at(&mut theirs, run.at).unwrap();
        assert!(ours == theirs, "contents of {name} from {:#x}", run.at);
        at = run.at + run.len;
    }
    zeros(file, at, entry.size, &name);
}

/// Looks at data only: what was unpacked with holes has 10 GiB of them.
fn zeros(file: &File, mut at: u64, end: u64, name: &str) {
    while at < end {
        at = match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(_) => return,
        };
        let len = end.saturating_sub(at).min(1 << 20);
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, at).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 0), "{name} has no hole at {at:#x}");
        at += len;
    }
}

fn xattrs(file: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 65_536];
    let len = rustix::fs::llistxattr(file, &mut names[..]).unwrap();
    let names = names[..len].split(|&byte| byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 65_536];
            let len = rustix::fs::lgetxattr(file, name, &mut value[..]).unwrap();
            value.truncate(len);
            (shown(name), value)
        })
        .collect()
}

/// bsdtar before 3.8 writes names escaped as in a URL where they should not be, too, and unpacks
/// those as attributes of their own.
fn drop_escaped(xattrs: &mut BTreeMap<String, Vec<u8>>) {
    let escaped: Vec<_> = xattrs
        .keys()
        .map(|name| name.replace('%', "%25").replace('=', "%3D").replace(' ', "%20"))
        .collect();
    let names: Vec<_> = xattrs.keys().cloned().collect();
    for (name, escaped) in names.iter().zip(escaped) {
        if *name != escaped && xattrs.get(&escaped) == xattrs.get(name) {
            xattrs.remove(&escaped);
        }
    }
}

fn sorted(entry: &Entry) -> BTreeMap<String, Vec<u8>> {
    entry.xattrs.iter().map(|(name, value)| (shown(name), value.clone())).collect()
}

fn plain(path: &[u8]) -> PathBuf {
    // As a path is compared: without dots and doubled slashes.
    Path::new(OsStr::from_bytes(path)).components().filter(|part| part.as_os_str() != ".").collect()
}

pub(crate) fn shown(name: &[u8]) -> String {
    name.escape_ascii().to_string()
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut all = vec![];
    let mut stack = vec![dir.to_path_buf()];
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                stack.push(entry.path());
            }
            all.push(entry.path());
        }
    }
    all
}
