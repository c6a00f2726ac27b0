//! All kinds of references show the same files as umoci unpacks, or GNU tar.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::image::{Place, Registry};
use crate::seen::{self, Tree, same};
use crate::support::{as_nobody, require_open_device, run};

/// umoci sets the times of a folder when an entry is for it, and leaves it as the clock has it where a later
/// entry, a whiteout say, changes what is in it. `tests/layers.rs` says the same.
pub(crate) fn beside_umoci(mut tree: Tree) -> Tree {
    for seen in tree.values_mut().filter(|seen| seen.kind == 'd') {
        seen.modified = (0, 0);
    }
    tree
}

/// What the library shows of a reference.
#[track_caller]
fn shown(place: &Place, reference: &str) -> Tree {
    let (layered, _) = place.open(reference).unwrap_or_else(|error| panic!("{error}"));
    seen::of_tree(&layered.merged().unwrap())
}

#[test]
fn every_kind_of_reference_shows_what_umoci_unpacks() {
    let place = Place::new();
    let theirs = beside_umoci(place.unpacked());
    let several = theirs.values().filter(|seen| seen.links > 1).count();
    assert!(theirs.len() > 400 && several > 30, "{} entries, {several}", theirs.len());
    let registry = Registry::start(&place);
    let host = &registry.host;
    for image in ["v1", "mixed"] {
        let from = format!("oci:L:{image}");
        place.copy(&from, &format!("oci:only-{image}"));
        place.copy(&from, &format!("oci-archive:{image}.oci.tar"));
        place.copy(&from, &format!("docker://{host}/app:{image}"));
        let mut references = vec![
            place.at("oci:", &format!("L:{image}")),
            place.at("oci-archive:", &format!("{image}.oci.tar")),
            format!("docker://{host}/app:{image}"),
            place.at("", &format!("only-{image}")),
            place.at("", &format!("{image}.oci.tar")),
        ];
        // Docker knows no zstd, and its archives hold layers uncompressed.
        if image == "v1" {
            place.copy(&from, "docker-archive:docker.tar:app:v1");
            references.push(place.at("docker-archive:", "docker.tar:app:v1"));
            references.push(place.at("", "docker.tar"));
        }
        for reference in references {
            same(&beside_umoci(shown(&place, &reference)), &theirs, &reference);
        }
    }
    let _ = place.open(&format!("docker://{host}/app:v1")).unwrap();
    let before = place.kept().len();
    // What the registry sent is kept; but the manifest is asked for again.
    let (layered, read) = place.open(&format!("docker://{host}/app:v1")).unwrap();
    assert_eq!((read, place.kept().len()), (0, before));
    assert!(layered.image.transferred() < 10_000, "{}", layered.image.transferred());
    same(&beside_umoci(seen::of_tree(&layered.merged().unwrap())), &theirs, "from the cache");
}

#[test]
fn a_mount_shows_what_umoci_unpacks() {
    require_open_device();
    let place = Place::new();
    let theirs = beside_umoci(place.unpacked());
    for image in ["v1", "mixed"] {
        run(place.strata().args(["mount", &format!("oci:L:{image}"), "mnt"]));
        same(&beside_umoci(seen::of_folder(&place.path("mnt"))), &theirs, image);
        run(place.strata().args(["unmount", "mnt"]));
    }

    // An ordinary user sees the same, owners included, in a mount of its own.
    let place = Place::new();
    place.give_to_nobody();
    let program = place.path("strata");
    fs::copy(env!("CARGO_BIN_EXE_strata"), &program).unwrap();
    let inside = |script: &str| {
        let mut shell = as_nobody(["sh", "-euc", script]);
        shell.current_dir(place.path("")).env("STRATA_CACHE_DIR", place.path("cache"));
        shell.env_remove("HOME");
        run(&mut shell).stdout
    };
    inside("./strata mount oci:L:mixed mnt");
    // Nobody else may look into it, root neither: they list it themselves.
    let find = |at: &str| {
        format!(
            "cd {at}; find . -type d -printf '%P|%y|%m|%U:%G\\n' -o -printf '%P|%y|%m|%U:%G|%T@|%s|%n|%l\\n' | LC_ALL=C sort"
        )
    };
    let ours = inside(&find("mnt"));
    let sums = "cd mnt; find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum";
    let our_sums = inside(sums);
    inside("./strata unmount mnt");
    place.unpacked();
    let bundle = |script: &str| {
        let script = script.replace("cd mnt", "cd B/rootfs");
        run(place.tool("sh", "dash").args(["-euc", &script])).stdout
    };
    assert!(ours == bundle(&find("B/rootfs")), "owners, modes and times differ");
    assert!(our_sums == bundle(sums), "contents differ");
}

#[test]
fn tarballs_show_what_gnu_tar_unpacks() {
    let place = Place::new();
    fs::create_dir(place.path("T")).unwrap();
    let all = ["--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", "1.tar", "-C", "T"];
    // Folders get their times once everything is in them.
    let delay = "--delay-directory-restore";
    run(place.tool("tar", "tar").arg(delay).args(all));
    let theirs = seen::of_folder(&place.path("T"));
    for (program, package, name) in [
        ("true", "coreutils", "1.tar"),
        ("gzip", "gzip", "1.tar.gz"),
        ("zstd", "zstd", "1.tar.zst"),
        ("xz", "xz-utils", "1.tar.xz"),
        ("bzip2", "bzip2", "1.tar.bz2"),
    ] {
        run(place.tool(program, package).args(["-q", "-k", "1.tar"]));
        let reference = place.at("", name);
        let (layered, read) = place.open(&reference).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(read, fs::metadata(place.path(name)).unwrap().len());
        same(&seen::of_tree(&layered.merged().unwrap()), &theirs, name);
        let (layered, read) = place.open(&reference).unwrap();
        assert_eq!(read, 0, "{name} was read again");
        same(&seen::of_tree(&layered.merged().unwrap()), &theirs, name);
    }
}

#[test]
fn what_is_kept_is_used_and_made_anew() {
    let place = Place::new();
    let reference = place.at("oci:", "L:mixed");
    let (layered, read) = place.open(&reference).unwrap();
    let size: u64 = layered.image.layers.iter().map(|layer| layer.size).sum();
    assert_eq!(read, size);
    let whole = seen::of_tree(&layered.merged().unwrap());
    let again = |why: &str| {
        let (layered, read) = place.open(&reference).unwrap_or_else(|error| panic!("{error}"));
        same(&seen::of_tree(&layered.merged().unwrap()), &whole, why);
        read
    };
    assert_eq!(again("as it is"), 0);
    let kept = place.kept();
    let indexes: Vec<_> = kept.iter().filter(|path| path.extension().unwrap() == "index").collect();
    assert_eq!(indexes.len(), 4, "{kept:?}");
    for path in &kept {
        let name = path.display().to_string();
        fs::remove_file(path).unwrap();
        assert!(again(&format!("{name} removed")) > 0, "{name} was not missed");
        assert_eq!(again("after that"), 0);
    }
    for path in indexes {
        let name = path.display().to_string();
        let good = fs::read(path).unwrap();
        // Anywhere: in the header, in the middle, at the end; or part of it is not there.
        for at in [9, good.len() / 3, good.len() / 2, good.len() - 3] {
            let file = OpenOptions::new().write(true).open(path).unwrap();
            file.write_all_at(&[!good[at]], at as u64).unwrap();
            drop(file);
            assert!(again(&format!("{name} damaged at {at}")) > 0, "{name}: {at} was not noticed");
            assert!(fs::read(path).unwrap() == good, "{name} is not as it was");
        }
        for len in [0, 100, good.len() - 1] {
            fs::write(path, &good[..len]).unwrap();
            assert!(again(&format!("{name} cut to {len}")) > 0, "{name}: {len}");
        }
    }

    // What cannot be entered in the middle is kept decompressed; cut short, it is of no use.
    let is_spool = |path: &&PathBuf| path.extension().is_some_and(|ending| ending == "spool");
    let spools: Vec<_> = kept.iter().filter(is_spool).collect();
    assert!(!spools.is_empty(), "{kept:?}");
    for path in spools {
        let good = fs::read(path).unwrap();
        fs::write(path, &good[..good.len() / 2]).unwrap();
        assert!(again("a short spool") > 0);
        assert!(fs::read(path).unwrap() == good);
    }
}

#[test]
fn a_tarball_that_was_changed_in_place_is_read_again() {
    let place = Place::new();
    let tarball = place.at("", "1.tar");
    let large = |place: &Place| {
        let (layered, read) = place.open(&tarball).unwrap();
        (seen::of_tree(&layered.merged().unwrap())["/srv/large"].clone(), read)
    };
    let (before, read) = large(&place);
    assert!(read > 0 && large(&place) == (before.clone(), 0));
    let bytes = fs::read(place.path("1.tar")).unwrap();
    let name = b"./srv/large\0";
    let header = bytes.windows(name.len()).position(|window| window == name).unwrap();
    let file = OpenOptions::new().write(true).open(place.path("1.tar")).unwrap();
    // Behind its header, and without another length.
    file.write_all_at(b"changed", header as u64 + 512 + 1_000_000).unwrap();
    drop(file);
    let (after, again) = large(&place);
    assert!(again == read && after != before, "{before:?}");
}
