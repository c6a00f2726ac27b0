//! The tars that libarchive is tested with, from many programs and machines: all of them are read as libarchive
//! reads them, or refused with one line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use stratafs::oci::tar::{Entry, EntryKind, Reader};

use crate::compare::{bsd, shown};
use crate::support::{fixture, run, strata, tool};

fn tars() -> Vec<(String, PathBuf)> {
    let files = fs::read_dir(fixture("libarchive")).unwrap().map(|file| file.unwrap().path());
    let named = |path: PathBuf| (path.file_name().unwrap().to_string_lossy().into_owned(), path);
    let mut tars: Vec<_> = files.map(named).collect();
    tars.sort();
    assert!(tars.len() > 80, "{} tars: run scripts/fixtures", tars.len());
    tars
}

/// What is refused, and why.
const REFUSED: [(&str, &str); 2] = [
    // Its map has comments, which GNU tar refuses as well.
    (
        "test_read_format_gtar_sparse_1_17_posix10_modified.tar",
        "member at 0x400: the map of a sparse file is no list of numbers (corrupt image)",
    ),
    (
        "test_read_format_tar_invalid_pax_size.tar",
        "member at 0x0: record size of the extended header has a value that makes no sense (corrupt image)",
    ),
];

/// What bsdtar cannot write again: the name is UTF-8 by its header, and is none.
const NO_COPY: &str = "test_pax_filename_encoding.tar";

/// The bytes of a tar, or nothing if it is compressed with what Debian's libarchive needs a program for.
fn unpacked(path: &Path) -> Option<Vec<u8>> {
    let mut unpack = tool("bsdcat", "libarchive-tools");
    let output = unpack.arg(path).stderr(Stdio::null()).output().unwrap();
    output.status.success().then_some(output.stdout)
}

/// The members, each with its contents.
fn members(tar: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, String> {
    let mut reader = Reader::new(tar);
    let mut members = vec![];
    while let Some(entry) = reader.next().map_err(|error| error.to_string())? {
        let mut contents = vec![0; usize::try_from(entry.size).unwrap()];
        for run in &entry.runs {
            let (at, len, place) = (run.at as usize, run.len as usize, run.place as usize);
            contents[at..at + len].copy_from_slice(&tar[place..place + len]);
        }
        members.push((entry, contents));
    }
    Ok(members)
}

#[test]
fn tars_of_libarchive() {
    let (mut compared, mut packed, mut refused) = (0, 0, vec![]);
    for (name, path) in tars() {
        let Some(tar) = unpacked(&path) else {
            let ending = path.extension().unwrap().to_str().unwrap();
            assert!(["lzo", "grz", "lrz"].contains(&ending), "bsdcat does not read {name}");
            packed += 1;
            continue;
        };
        let ours = match members(&tar) {
            Ok(ours) => ours,
            Err(error) => {
                refused.push((name, error));
                continue;
            }
        };
        // What bsdtar makes of it, written again in the form that says all.
        let copy = || bsd_copy(&path).output().unwrap();
        if name == NO_COPY {
            assert!(!copy().status.success(), "bsdtar writes {name} again");
            continue;
        }
        let theirs = members(&run(&mut bsd_copy(&path)).stdout).unwrap();
        same(&name, &ours, &theirs);
        let all = run(bsd().arg("-xOf").arg(&path)).stdout;
        let contents: Vec<u8> = ours.iter().flat_map(|(_, contents)| contents).copied().collect();
        assert!(contents == all, "contents of {name}");
        compared += 1;
    }
    let wanted = REFUSED.map(|(name, why)| (name.to_owned(), why.to_owned()));
    assert_eq!(refused, wanted);
    assert!(compared > 70, "{compared} of them compared, {packed} not unpacked");
}

fn bsd_copy(path: &Path) -> Command {
    let mut copy = bsd();
    let mut from = std::ffi::OsString::from("@");
    from.push(path);
    copy.args(["--format=pax", "-cf", "-"]).arg(from);
    copy
}

#[track_caller]
fn same(name: &str, ours: &[(Entry, Vec<u8>)], theirs: &[(Entry, Vec<u8>)]) {
    let told = |(entry, contents): &(Entry, Vec<u8>)| {
        let path = shown(entry.path.strip_suffix(b"/").unwrap_or(&entry.path));
        let kind = match &entry.kind {
            EntryKind::Symlink(to) => format!("-> {}", shown(to)),
            EntryKind::HardLink(to) => format!("=> {}", shown(to)),
            other => format!("{other:?}"),
        };
        // A hard link has what its target has.
        let attributes = match entry.kind {
            EntryKind::HardLink(_) => None,
            _ => Some((entry.mode, entry.uid, entry.gid, entry.modified, contents.clone())),
        };
        (path, kind, attributes)
    };
    let (ours, theirs): (Vec<_>, Vec<_>) =
        (ours.iter().map(told).collect(), theirs.iter().map(told).collect());
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours, theirs, "{name}");
    }
    assert_eq!(ours.len(), theirs.len(), "{name}");
}

/// The program opens each, as a tarball or whatever else it may be, or says in a line why it does not.
#[test]
fn the_program_opens_tars_of_libarchive() {
    for (name, path) in tars() {
        let mut ls = strata();
        let output = ls.args(["ls", "-lR", "--layer-cache-size=0"]).arg(&path).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let refused = REFUSED.iter().find(|(refused, _)| *refused == name);
        assert_eq!(output.status.code(), Some(i32::from(refused.is_some())), "{name}: {said}");
        if let Some((_, why)) = refused {
            assert!(said.lines().count() == 1 && said.trim_end().ends_with(why), "{said}");
        }
    }
}
