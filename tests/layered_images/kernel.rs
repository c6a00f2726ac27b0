//! A mounted image below the kernel's overlayfs, and as the root of a container.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};

use crate::image::Place;
use crate::seen::{self, same};
use crate::support::{run, stdout, tool};

/// Mounts the kernel's overlayfs at `merged`, above `mnt` and below `upper`.
fn overlay(place: &Place) {
    for name in ["upper", "work", "merged"] {
        fs::create_dir(place.path(name)).unwrap();
        fs::set_permissions(place.path(name), PermissionsExt::from_mode(0o755)).unwrap();
    }
    let options = "lowerdir=mnt,upperdir=upper,workdir=work";
    run(place.tool("mount", "mount").args(["-t", "overlay", "overlay", "-o", options, "merged"]));
}

#[test]
fn it_is_a_lower_of_the_kernels_overlayfs() {
    let place = Place::new();
    run(place.strata().args(["mount", "--suid", "--dev", "oci:L:mixed", "mnt"]));
    let below = seen::of_folder(&place.path("mnt"));
    overlay(&place);
    let mut merged = seen::of_folder(&place.path("merged"));
    // The root is the upper's.
    merged.insert(String::new(), below[""].clone());
    same(&merged, &below, "overlayfs");

    let at = |name: &str| place.path("merged").join(name);
    let large = fs::read(at("srv/large")).unwrap();
    fs::write(at("srv/etc/e01"), "changed").unwrap();
    fs::rename(at("opt/app/large.bin"), at("opt/moved")).unwrap();
    fs::remove_dir_all(at("srv/doc")).unwrap();
    fs::create_dir(at("srv/doc")).unwrap();
    fs::set_permissions(at("srv/large"), PermissionsExt::from_mode(0o400)).unwrap();
    let changed = seen::of_folder(&place.path("merged"));
    assert_eq!(fs::read(at("opt/moved")).unwrap().len(), 1_500_000);
    assert!(fs::read(at("srv/large")).unwrap() == large);
    run(place.tool("umount", "mount").arg("merged"));
    same(&seen::of_folder(&place.path("mnt")), &below, "what lies below");
    run(place.strata().args(["unmount", "mnt"]));

    // The same upper above the image is what the kernel showed, but for which names are of one file:
    // overlayfs copies one name up and leaves the others.
    run(place.strata().args(["mount", "--suid", "--dev", "--cow", "upper/", "oci:L:mixed", "mnt"]));
    let single = |mut tree: seen::Tree| {
        for seen in tree.values_mut() {
            (seen.links, seen.same_as) = (0, String::new());
        }
        tree
    };
    same(&single(seen::of_folder(&place.path("mnt"))), &single(changed), "our view of the upper");
    run(place.strata().args(["unmount", "mnt"]));
}

/// A fifth layer with a shell and what it is linked with: the image `box`.
fn with_a_shell(place: &Place) {
    let busybox = tool("busybox", "busybox");
    let busybox = Path::new(busybox.get_program());
    let linked = place.tool("ldd", "libc-bin").arg(busybox).output().unwrap();
    let linked = String::from_utf8(linked.stdout).unwrap();
    let root = place.path("shell");
    for name in ["bin", "proc", "dev", "sys", "tmp", "etc"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::copy(busybox, root.join("bin/busybox")).unwrap();
    for name in ["sh", "ls", "cat", "touch", "rm", "sha256sum", "id"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    // A busybox that stands alone is linked with nothing.
    for library in linked.split_whitespace().filter(|word| word.starts_with('/')) {
        let to = root.join(library.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(library, to).unwrap();
    }
    run(place.tool("tar", "tar").args([
        "--owner=0",
        "--group=0",
        "-C",
        "shell",
        "-cf",
        "5.tar",
        ".",
    ]));
    let args = ["raw", "add-layer", "--image", "L:v1", "--tag", "box", "5.tar"];
    run(place.tool("umoci", "umoci").args(args));
}

/// Runs `script` in a container by runc, whose root is `root`.
#[track_caller]
fn contained(place: &Place, root: &Path, writable: bool, script: &str) -> String {
    let bundle = tempfile::tempdir_in(place.path("")).unwrap();
    run(tool("runc", "runc").arg("spec").current_dir(bundle.path()));
    let path = bundle.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["process"]["terminal"] = false.into();
    config["process"]["args"] = json!(["/bin/sh", "-euc", script]);
    config["root"] = json!({ "path": root, "readonly": !writable });
    fs::write(&path, config.to_string()).unwrap();
    let name =
        format!("strata-{}-{}", std::process::id(), bundle.path().file_name().unwrap().len());
    let state = bundle.path().join("state");
    let mut runc = tool("runc", "runc");
    runc.arg("--root").arg(state).args(["run", "--bundle"]).arg(bundle.path()).arg(name);
    stdout(&mut runc)
}

#[test]
fn it_is_the_root_of_a_container() {
    let place = Place::new();
    with_a_shell(&place);
    run(place.strata().args(["mount", "oci:L:box", "mnt"]));
    let large = stdout(place.tool("sha256sum", "coreutils").arg("mnt/srv/large"));
    let script =
        "id -u; ls /opt/app; sha256sum /srv/large; touch /new 2>/dev/null || echo read-only";
    let said = contained(&place, &place.path("mnt"), false, script);
    let lines: Vec<_> = said.lines().collect();
    assert_eq!((lines[0], lines[1], lines[lines.len() - 1]), ("0", "a00", "read-only"), "{said}");
    assert!(said.contains(&large[..64]), "{said}");

    // With the kernel's overlayfs above, and with an upper of ours, it can be written.
    overlay(&place);
    let script = "echo kept >/opt/app/new; rm /opt/app/a05; cat /opt/app/new";
    assert_eq!(contained(&place, &place.path("merged"), true, script), "kept\n");
    run(place.tool("umount", "mount").arg("merged"));
    run(place.strata().args(["unmount", "mnt"]));
    run(place.strata().args(["mount", "--cow", "upper/", "oci:L:box", "mnt"]));
    let script =
        "cat /opt/app/new; ls /opt/app/a05 2>/dev/null || echo gone; echo more >>/opt/app/new";
    assert_eq!(contained(&place, &place.path("mnt"), true, script), "kept\ngone\n");
    run(place.strata().args(["unmount", "mnt"]));
    assert_eq!(fs::read_to_string(place.path("upper/opt/app/new")).unwrap(), "kept\nmore\n");
}
