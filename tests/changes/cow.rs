//! `strata diff --cow`: what an upper or a delta changed, beside `diff -r` and a walk over what was there
//! before and after.

use std::fs;
use std::path::{Path, PathBuf};

use crate::diff::{change, diff_r, expected, planted, told_of};
use crate::ext::{Mounted, Rng};
use crate::support::{qemu_img, run, stdout, strata};

const TREES: u64 = 60;

/// A mount of the program, which ends with the test.
struct Served(PathBuf);

impl Served {
    fn new(args: &[&str], cow: &Path, image: &Path, at: PathBuf) -> Self {
        fs::create_dir_all(&at).unwrap();
        let mut mount = strata();
        mount.args(["mount", "--allow-other", "--suid", "--dev"]).args(args);
        run(mount.arg("--cow").arg(cow).arg(image).arg(&at));
        Self(at)
    }

    fn unmount(self) {
        run(strata().arg("unmount").arg(&self.0));
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

fn diff_cow(cow: &Path, image: &Path, args: &[&str]) -> String {
    stdout(strata().args(["diff", "--cow"]).arg(cow).arg(image).args(args))
}

/// `found` is what a walk over both folders finds, and what `diff -r` finds of contents.
#[track_caller]
fn assert_told(found: &str, before: &Path, after: &Path) {
    let wanted = expected(before, after);
    assert!(wanted.lines().count() > 30, "nothing much changed");
    for (found, wanted) in found.lines().zip(wanted.lines()) {
        assert_eq!(found, wanted);
    }
    assert_eq!(found, wanted);
    let (differ, single) = diff_r(before, after);
    assert_eq!(told_of(found, |letter, what| letter == "M" && what.contains("contents")), differ);
    assert!(single.is_subset(&told_of(found, |letter, _| letter == "A" || letter == "D")));
}

#[test]
fn what_an_upper_changed() {
    for seed in [1, 2] {
        let mut rng = Rng(seed);
        let image = planted(&mut rng, TREES);
        let before = image.mount("ro,noload");
        let upper = image.dir.path().join("upper/");
        let serve = || {
            let at = image.dir.path().join("merged");
            Served::new(&["--view=files"], &upper, &image.path, at)
        };
        let served = serve();
        for number in 0..TREES {
            change(&served.0.join(format!("{number:04}")), &mut rng);
        }
        // A folder of the image that goes elsewhere, and one that is made anew in its place.
        fs::rename(served.0.join("0007"), served.0.join("0008/moved")).unwrap();
        fs::create_dir(served.0.join("0007")).unwrap();
        fs::write(served.0.join("0007/new"), "new").unwrap();
        served.unmount();
        let found = diff_cow(&upper, &image.path, &[]);
        let served = serve();
        assert_told(&found, before.path(), &served.0);
        served.unmount();
        let below: String = found
            .lines()
            .filter(|line| line.contains("\t/0008"))
            .map(|line| format!("{line}\n"))
            .collect();
        assert_eq!(diff_cow(&upper, &image.path, &["/0008"]), below);
    }
}

#[test]
fn what_a_delta_changed() {
    let mut rng = Rng(3);
    let image = planted(&mut rng, TREES);
    let path = |name: &str| image.dir.path().join(name);
    let served = Served::new(&["--view=disk"], &path("delta.qcow2"), &image.path, path("disk"));
    {
        // As a machine would that has the disk.
        let inside = Mounted::new(&served.0.join("disk.img"), "rw");
        for number in 0..TREES {
            change(&inside.path().join(format!("{number:04}")), &mut rng);
        }
        fs::rename(inside.path().join("0007"), inside.path().join("0008/moved")).unwrap();
    }
    served.unmount();
    let found = diff_cow(&path("delta.qcow2"), &image.path, &[]);
    let after = path("after");
    let convert = ["convert", "-O", "raw"].map(PathBuf::from);
    qemu_img(convert.into_iter().chain([path("delta.qcow2"), after.clone()]));
    let (old, new) = (image.mount("ro,noload"), Mounted::new(&after, "ro,noload"));
    assert_told(&found, old.path(), new.path());
    let both = stdout(strata().arg("diff").args([&image.path, &path("delta.qcow2")]));
    assert_eq!(both, found);
}
