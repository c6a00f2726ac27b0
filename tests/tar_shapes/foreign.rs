//! The tars that libarchive is tested with, from many programs and machines: all of them are read as libarchive
//! reads them, or refused with one line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use stratafs::oci::tar::{Entry, EntryKind, Reader};
use stratafs::oci::{Algorithm, Digest};

use crate::compare::{bsd, shown};
use crate::support::{fixture, strata, tool};

fn tars() -> Vec<(String, PathBuf)> {
    let files = fs::read_dir(fixture("libarchive")).unwrap().map(|file| file.unwrap().path());
    let named = |path: PathBuf| (path.file_name().unwrap().to_string_lossy().into_owned(), path);
    let mut tars: Vec<_> = files.map(named).collect();
    tars.sort();
    assert!(tars.len() > 80, "{} tars: run scripts/fixtures", tars.len());
    tars
}

/// What is refused, and why.
const REFUSED: [(&str, &str); 3] = [
    // Its map has comments, which GNU tar refuses as well.
    (
        "test_read_format_gtar_sparse_1_17_posix10_modified.tar",
        "member at 0x400: the map of a sparse file is no list of numbers (corrupt image)",
    ),
    // What bsdtar once wrote: the extended header tells the size with the holes, the header itself the one
    // without. Whoever takes the extended header's everywhere, as GNU tar and we do, cannot read it.
    (
        "test_read_format_gtar_sparse_skip_entry.tar.Z",
        "the tar ends at 0x2200, within the contents of a member (corrupt image)",
    ),
    (
        "test_read_format_tar_invalid_pax_size.tar",
        "member at 0x0: record size of the extended header has a value that makes no sense (corrupt image)",
    ),
];

/// What is compressed as we do not know.
const OTHERS: [(&str, &str); 6] = [
    (".tar.lz4", "lz4"),
    (".tar.lz", "lzip"),
    (".tar.lzma", "lzma"),
    (".tar.lzo", "lzop"),
    (".tar.lrz", "lrzip"),
    (".tar.Z", "uncompress"),
];

/// What bsdtar reads otherwise than we do.
const OTHERWISE: [&str; 2] = [
    // A folder of V7 that claims to be of one byte. GNU tar and Go's archive/tar pass over a block, as we do:
    // the next member is in it. bsdtar takes none of what a folder claims.
    "test_compat_tar_directory_1.tar",
    // A hard link that claims a size, without contents: bsdtar writes zeros for it, and GNU tar nothing.
    "test_compat_tar_hardlink_1.tar",
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
        let theirs = members(&copy().stdout).unwrap();
        let mut found: Vec<_> = differences(&ours, &theirs).collect();
        // It fails where a name is empty, and goes on.
        let all = bsd().arg("-xOf").arg(&path).stderr(Stdio::null()).output().unwrap().stdout;
        let contents: Vec<u8> = ours.iter().flat_map(|(_, contents)| contents).copied().collect();
        if contents != all {
            found.push("contents".to_owned());
        }
        if OTHERWISE.contains(&&*name) {
            assert!(!found.is_empty(), "bsdtar reads {name} as we do");
        } else {
            assert!(found.is_empty(), "{name}: {found:#?}");
        }
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

/// What the one says of a member, and the other does not.
fn differences(
    ours: &[(Entry, Vec<u8>)],
    theirs: &[(Entry, Vec<u8>)],
) -> impl Iterator<Item = String> {
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
            _ => Some((entry.mode, entry.uid, entry.gid, entry.modified, digest(contents))),
        };
        (path, kind, attributes)
    };
    let count = ours.len().max(theirs.len());
    let told = |members: &[(Entry, Vec<u8>)]| -> Vec<_> {
        let all = members.iter().map(|member| Some(told(member)));
        all.chain(std::iter::repeat(None)).take(count).collect()
    };
    let pairs = told(ours).into_iter().zip(told(theirs));
    pairs.filter(|(ours, theirs)| ours != theirs).map(|pair| format!("{pair:?}"))
}

fn digest(contents: &[u8]) -> String {
    Digest::of(Algorithm::Sha256, contents).to_string()
}

/// The program opens each, as a tarball or whatever else it may be, or says in a line why it does not.
#[test]
fn the_program_opens_tars_of_libarchive() {
    for (name, path) in tars() {
        let mut ls = strata();
        let output = ls.args(["ls", "-lR", "--layer-cache-size=0"]).arg(&path).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let packed = OTHERS.iter().find(|(ending, _)| name.ends_with(ending));
        let why = match packed {
            Some((_, program)) => {
                Some(format!(": the archive is compressed ({program}) (not supported)"))
            }
            None => REFUSED.iter().find(|(refused, _)| *refused == name).map(|it| it.1.to_owned()),
        };
        assert_eq!(output.status.code(), Some(i32::from(why.is_some())), "{name}: {said}");
        if let Some(why) = why {
            let mut lines = said.lines();
            assert!(lines.next().unwrap().ends_with(&why), "{said}");
            let hint =
                packed.map(|(_, program)| format!("hint: decompress it first: {program} -d FILE"));
            assert_eq!(lines.collect::<Vec<_>>(), hint.as_slice(), "{said}");
        }
    }
}
