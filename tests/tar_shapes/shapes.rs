//! One test for each shape: what makes it, what it can hold, who unpacks it.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use stratafs::error::Kind;
use stratafs::oci::tar::{EntryKind, Reader};
use tempfile::TempDir;

use crate::compare::{Oracle, bsd, compare, gnu, read, shown};
use crate::files::{ALL, Has, LONG, PLAIN, fill};
use crate::support::{require_root, run, tool};

/// A folder `in` filled, and where the tar goes.
fn prepared(has: Has) -> (TempDir, PathBuf, PathBuf) {
    // Owners and devices.
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let (source, tar) = (dir.path().join("in"), dir.path().join("x.tar"));
    fs::create_dir(&source).unwrap();
    fill(&source, has);
    (dir, source, tar)
}

/// GNU tar with these options.
fn by_gnu(options: &[&str], has: Has, oracles: &[Oracle]) -> TempDir {
    let (dir, source, tar) = prepared(has);
    run(gnu().args(options).arg("-cf").arg(&tar).arg("-C").arg(source).arg("."));
    for &oracle in oracles {
        assert!(compare(&tar, oracle) > 15);
    }
    dir
}

/// bsdtar with these options.
fn by_bsd(options: &[&str], has: Has, oracles: &[Oracle]) {
    let (_dir, source, tar) = prepared(has);
    run(bsd().args(options).arg("-cf").arg(&tar).arg("-C").arg(source).arg("."));
    for &oracle in oracles {
        assert!(compare(&tar, oracle) > 15);
    }
}

const BOTH: &[Oracle] = &[Oracle::Gnu, Oracle::Bsd];
const GNU: &[Oracle] = &[Oracle::Gnu];
const BSD: &[Oracle] = &[Oracle::Bsd];

const SPARSE: Has = Has { holes: true, ..PLAIN };

#[test]
fn gnu_v7() {
    by_gnu(&["--format=v7"], Has { special: false, ..PLAIN }, BOTH);
}

#[test]
fn gnu_oldgnu() {
    by_gnu(&["--format=oldgnu"], Has { numbers: true, ..LONG }, BOTH);
}

#[test]
fn gnu_gnu() {
    by_gnu(&["--format=gnu"], Has { numbers: true, ..LONG }, BOTH);
}

#[test]
fn gnu_ustar() {
    by_gnu(&["--format=ustar"], PLAIN, BOTH);
}

#[test]
fn gnu_posix() {
    // bsdtar takes no names but UTF-8 from them.
    by_gnu(&["--format=posix"], Has { attributes: false, ..ALL }, GNU);
}

#[test]
fn gnu_posix_with_attributes() {
    by_gnu(&["--format=posix", "--xattrs", "--xattrs-include=*", "--acls", "--selinux"], ALL, GNU);
}

/// Values for all members: what each says itself is deleted, so that those hold.
#[test]
fn gnu_posix_global() {
    let options =
        ["--format=posix", "--pax-option=globexthdr.name=g,uid=77,mtime=5.25,delete=mtime"];
    let dir = by_gnu(&options, PLAIN, GNU);
    let members = read(&dir.path().join("x.tar"));
    assert!(members.iter().all(|(entry, _)| entry.uid == 77), "{members:?}");
    assert!(members.iter().all(|(entry, _)| entry.modified.nanos == 250_000_000), "{members:?}");
}

#[test]
fn gnu_sparse_old() {
    by_gnu(&["--format=gnu", "-S"], SPARSE, BOTH);
}

#[test]
fn gnu_sparse_0_0() {
    by_gnu(&["--format=posix", "-S", "--sparse-version=0.0"], SPARSE, GNU);
}

#[test]
fn gnu_sparse_0_1() {
    by_gnu(&["--format=posix", "-S", "--sparse-version=0.1"], SPARSE, GNU);
}

#[test]
fn gnu_sparse_1_0() {
    by_gnu(&["--format=posix", "-S", "--sparse-version=1.0"], Has { holes: true, ..ALL }, GNU);
}

/// All three forms tell the holes, not only the contents.
#[test]
fn gnu_sparse_has_holes() {
    for options in [
        &["--format=gnu", "-S"][..],
        &["--format=posix", "-S", "--sparse-version=0.0"],
        &["--format=posix", "-S", "--sparse-version=0.1"],
        &["--format=posix", "-S", "--sparse-version=1.0"],
    ] {
        let dir = by_gnu(options, SPARSE, &[]);
        let members = read(&dir.path().join("x.tar"));
        let named = |name: &[u8]| {
            let found = members.iter().find(|(entry, _)| entry.path.ends_with(name));
            found.unwrap_or_else(|| panic!("{options:?}: {}", shown(name))).0.clone()
        };
        assert_eq!(named(b"/huge").size, 10 << 30);
        assert_eq!(named(b"/huge").runs.len(), 3);
        assert_eq!(named(b"/many-holes").runs.len(), 60);
        assert_eq!((named(b"/all-hole").size, named(b"/all-hole").runs.len()), (1 << 20, 0));
    }
}

/// Folders with lists of what was in them (`D`), times where others have a prefix.
#[test]
fn gnu_incremental() {
    let (dir, source, tar) = prepared(LONG);
    let state = format!("--listed-incremental={}", dir.path().join("state").display());
    run(gnu().args(["--format=gnu", &state, "-cf"]).arg(&tar).arg("-C").arg(source).arg("."));
    assert!(compare(&tar, Oracle::Gnu) > 15);
}

#[test]
fn gnu_volume_label() {
    let (_dir, source, tar) = prepared(PLAIN);
    run(gnu()
        .args(["--format=gnu", "--label=A label", "-cf"])
        .arg(&tar)
        .arg("-C")
        .arg(source)
        .arg("."));
    // GNU tar lists the label, which is no file.
    assert!(compare(&tar, Oracle::Bsd) > 15);
    assert!(read(&tar).iter().all(|(entry, _)| !entry.path.ends_with(b"label")));
}

/// The second volume begins within a file.
#[test]
fn gnu_volumes_are_refused() {
    let (dir, source, tar) = prepared(PLAIN);
    let second = dir.path().join("second.tar");
    run(gnu()
        .args(["--format=gnu", "-ML", "60", "-cf"])
        .arg(&tar)
        .arg("-f")
        .arg(&second)
        .arg("-C")
        .arg(source)
        .arg("large"));
    let bytes = fs::read(second).unwrap();
    let mut reader = Reader::new(bytes.as_slice());
    let error = reader.next().unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.to_string().contains("files that another volume begins"), "{error}");
}

/// Appended to, changed, a member deleted.
#[test]
fn gnu_grown_tar() {
    let (_dir, source, tar) = prepared(PLAIN);
    run(gnu().arg("-cf").arg(&tar).arg("-C").arg(&source).arg("."));
    fs::write(source.join("large"), "now small").unwrap();
    run(gnu().arg("-rf").arg(&tar).arg("-C").arg(&source).args(["./large", "./folder"]));
    run(gnu().args(["--delete", "-f"]).arg(&tar).arg("./one"));
    assert!(compare(&tar, Oracle::Gnu) > 15);
}

#[test]
fn bsdtar_ustar() {
    by_bsd(&["--format=ustar"], PLAIN, BOTH);
}

#[test]
fn bsdtar_v7() {
    by_bsd(&["--format=v7tar"], Has { special: false, ..PLAIN }, BOTH);
}

#[test]
fn bsdtar_gnutar() {
    by_bsd(&["--format=gnutar"], Has { numbers: true, ..LONG }, BOTH);
}

#[test]
fn bsdtar_pax() {
    by_bsd(&["--format=pax", "--xattrs", "--acls"], ALL, BSD);
}

#[test]
fn bsdtar_restricted_pax() {
    by_bsd(&["--format=paxr"], Has { attributes: false, ..ALL }, BOTH);
}

#[test]
fn bsdtar_sparse() {
    by_bsd(&["--format=pax", "--read-sparse"], SPARSE, BOTH);
}

/// Python's, by its three formats.
fn by_python(format: &str, has: Has) {
    let (_dir, source, tar) = prepared(has);
    let program = "import sys, tarfile\n\
        with tarfile.open(sys.argv[1], 'w', format=getattr(tarfile, sys.argv[3]), errors='surrogateescape') as tar:\n\
        \x20   tar.add(sys.argv[2], '.')\n";
    run(tool("python3", "python3").args(["-c", program]).arg(&tar).arg(source).arg(format));
    assert!(compare(&tar, Oracle::Gnu) > 15);
}

#[test]
fn python_ustar() {
    by_python("USTAR_FORMAT", PLAIN);
}

#[test]
fn python_gnu() {
    by_python("GNU_FORMAT", Has { numbers: true, ..LONG });
}

#[test]
fn python_pax() {
    by_python("PAX_FORMAT", Has { attributes: false, ..ALL });
}

#[test]
fn busybox() {
    let (_dir, source, tar) = prepared(LONG);
    run(tool("busybox", "busybox").args(["tar", "-cf"]).arg(&tar).arg("-C").arg(source).arg("."));
    assert!(compare(&tar, Oracle::Gnu) > 15);
}

/// 7-Zip by its formats; it stores neither devices nor links unless asked.
fn by_7zip(format: &str) {
    let (_dir, source, tar) = prepared(Has { special: false, names: false, ..PLAIN });
    let mut command = tool("7zz", "7zip");
    command.current_dir(&source).args(["a", "-ttar", "-snl", "-snh", format]).arg(&tar).arg(".");
    run(command.stdout(Stdio::null()));
    assert!(compare(&tar, Oracle::Gnu) > 15);
}

#[test]
fn seven_zip_gnu() {
    by_7zip("-mm=gnu");
}

#[test]
fn seven_zip_posix() {
    by_7zip("-mm=posix");
}

/// A program that takes the names to store from its input.
fn fed(command: &mut Command, source: &Path) {
    let mut child = command.current_dir(source).stdin(Stdio::piped()).spawn().unwrap();
    let names = run(tool("find", "findutils").arg(source).args(["-printf", "./%P\\n"])).stdout;
    child.stdin.take().unwrap().write_all(&names).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn cpio_ustar() {
    let (_dir, source, tar) = prepared(PLAIN);
    fed(tool("cpio", "cpio").args(["-o", "--quiet", "-H", "ustar", "-O"]).arg(&tar), &source);
    assert!(compare(&tar, Oracle::Gnu) > 15);
}

#[test]
fn cpio_old_tar() {
    let (_dir, source, tar) = prepared(PLAIN);
    fed(tool("cpio", "cpio").args(["-o", "--quiet", "-H", "tar", "-O"]).arg(&tar), &source);
    assert!(compare(&tar, Oracle::Gnu) > 15);
}

#[test]
fn pax_ustar() {
    let (_dir, source, tar) = prepared(PLAIN);
    fed(tool("pax", "pax").args(["-w", "-d", "-x", "ustar", "-f"]).arg(&tar), &source);
    assert!(compare(&tar, Oracle::Gnu) > 15);
}

/// Go's `archive/tar`, which writes the layers of nearly all images, by umoci.
#[test]
fn go_by_umoci() {
    let (dir, source, tar) = prepared(Has { attributes: false, ..ALL });
    // umoci stores no empty values, nor names with an equals sign.
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(source.join("one"), "user.text", b"value\0\n", flags).unwrap();
    let layout = dir.path().join("layout");
    let image = format!("{}:t", layout.display());
    let bundle = dir.path().join("bundle");
    let umoci = || tool("umoci", "umoci");
    run(umoci().arg("init").arg("--layout").arg(&layout));
    run(umoci().args(["new", "--image", &image]));
    run(umoci().args(["unpack", "--image", &image]).arg(&bundle));
    run(tool("cp", "coreutils").arg("-a").arg(source.join(".")).arg(bundle.join("rootfs")));
    run(umoci().args(["repack", "--image", &image]).arg(&bundle));
    // The layer is the blob that gzip can read.
    let blobs = fs::read_dir(layout.join("blobs/sha256")).unwrap();
    let layer = blobs
        .map(|blob| blob.unwrap().path())
        .find(|blob| fs::read(blob).unwrap().starts_with(&[0x1f, 0x8b]))
        .expect("a layer");
    let out = File::create(&tar).unwrap();
    run(tool("gzip", "gzip").arg("-dc").arg(layer).stdout(out));
    let members = read(&tar);
    assert!(members.len() > 50);
    assert!(members.iter().any(|(entry, _)| matches!(entry.kind, EntryKind::HardLink(_))));
    compare(&tar, Oracle::Gnu);
}
