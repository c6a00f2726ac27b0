//! The overlay beside a plain folder of the host, and beside the kernel's overlayfs.
#![allow(unreachable_pub, reason = "modules are shared between test binaries")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/contract.rs"]
mod contract;
mod ext;
#[path = "overlay/lower.rs"]
mod lower;
mod model;
#[path = "overlay/ops.rs"]
mod ops;
#[path = "overlay/rules.rs"]
mod rules;
#[path = "overlay/seen.rs"]
mod seen;
mod support;

use std::path::Path;

use lower::Lower;
use ops::{KINDS, Op};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use stratafs::mount::{Options, mount};
use stratafs::tree::overlay::Overlay;
use stratafs::tree::{Served, WritableTree};
use support::{run, tool};

/// A folder of this test, on a filesystem that can hold an upper.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn op() -> impl Strategy<Value = Op> {
    (0..KINDS, 0u16..1296, 0u16..1296, any::<u32>()).prop_map(|(what, path, other, number)| Op {
        what,
        path,
        other,
        number,
    })
}

/// The kernel's overlayfs, unmounted in the end.
struct Kernel(tempfile::TempDir);

impl Kernel {
    fn mount(lower: &Path, upper: &Path) -> Self {
        let point = folder();
        let work = upper.with_file_name("kernel-work");
        std::fs::create_dir_all(&work).unwrap();
        let options = format!(
            "lowerdir={},upperdir={},workdir={},redirect_dir=on,metacopy=on,index=off,xino=off",
            lower.display(),
            upper.display(),
            work.display()
        );
        run(tool("mount", "mount")
            .args(["-t", "overlay", "overlay", "-o", &options])
            .arg(point.path()));
        Self(point)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        let _ = tool("umount", "mount").arg(self.0.path()).status();
    }
}

/// Does all of `ops` to both, compares what they answer, and in the end all there is; with the
/// overlay as it is, opened again, and as the kernel shows it.
fn beside_a_folder(lower: &Lower, ops: &[Op]) {
    let dir = folder();
    let (upper, plain) = (dir.path().join("upper"), dir.path().join("plain"));
    lower.copy(&plain);
    let open = || Overlay::open(lower.tree(), &upper, None, true).unwrap();
    let mut tree = open();
    for (n, op) in ops.iter().enumerate() {
        if op.number % 16 == 15 {
            drop(tree);
            tree = open();
        }
        let (ours, theirs) = (ops::to_tree(&tree, *op), ops::to_folder(&plain, *op));
        // Which of several reasons to refuse comes first is not told.
        assert_eq!(
            ours.is_ok(),
            theirs.is_ok(),
            "operation {n}: {op:?} on {:?} and {:?}: {ours:?}, {theirs:?}",
            ops::path(op.path),
            ops::path(op.other)
        );
    }
    let theirs = seen::of_folder(&plain);
    seen::same(&seen::of_tree(&tree), &theirs, "as it is");
    drop(tree);
    let tree = open();
    seen::same(&seen::of_tree(&tree), &theirs, "opened again");
    tree.sync_all().unwrap();
    seen::same(&seen::of_tree(&tree), &theirs, "with all names in the upper");
    drop(tree);
    let ours = seen::without_links(seen::without_marks(theirs));
    for below in [lower.view.path(), lower.mounted.path()] {
        let kernel = Kernel::mount(below, &upper);
        let kernels = seen::without_links(seen::without_marks(seen::of_folder(kernel.path())));
        seen::same(&ours, &kernels, &format!("as the kernel shows it above {}", below.display()));
    }
}

/// `STRATA_OVERLAY_CASES` cases from the seed `STRATA_SEED`.
fn config() -> ProptestConfig {
    let number = |name, or| std::env::var(name).map_or(or, |number| number.parse().unwrap());
    ProptestConfig {
        cases: number("STRATA_OVERLAY_CASES", 60).try_into().unwrap(),
        rng_seed: RngSeed::Fixed(number("STRATA_SEED", 1_u64)),
        failure_persistence: None,
        max_shrink_iters: 3000,
        ..ProptestConfig::default()
    }
}

#[test]
fn random_operations_are_those_of_a_folder() {
    let lower = Lower::make();
    let mut runner = proptest::test_runner::TestRunner::new(config());
    runner
        .run(&proptest::collection::vec(op(), 1..80), |ops| {
            beside_a_folder(&lower, &ops);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
    println!("{} sequences of up to 80 operations", config().cases);
}

/// What an ordinary user's upper keeps: owners of links are the user's own, folders that lie in both
/// are not renamed, and links take no attributes.
fn beside_a_folder_as_a_user(lower: &Lower, ops: &[Op]) {
    let dir = folder();
    let (upper, plain) = (dir.path().join("upper"), dir.path().join("plain"));
    lower.copy(&plain);
    std::fs::create_dir(&upper).unwrap();
    // The root's own number says that the upper was begun by an ordinary user.
    let root = lower.tree().root().0.to_string();
    let mark = "user.overlay.strata.node";
    let none = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(&upper, mark, root.as_bytes(), none).unwrap();
    for program in ["chmod", "touch"] {
        let mut like = std::process::Command::new(program);
        run(like.arg("--reference").arg(lower.mounted.path()).arg(&upper));
    }
    let open = || Overlay::open(lower.tree(), &upper, None, true).unwrap();
    let tree = open();
    for (n, op) in ops.iter().enumerate() {
        if matches!(op.what % KINDS, 4 | 11..=15 | 22) {
            continue;
        }
        let (ours, theirs) = (ops::to_tree(&tree, *op), ops::to_folder(&plain, *op));
        assert_eq!(ours.is_ok(), theirs.is_ok(), "operation {n}: {op:?}: {ours:?}, {theirs:?}");
    }
    let theirs = seen::without_link_owners(seen::of_folder(&plain));
    seen::same(&seen::without_link_owners(seen::of_tree(&tree)), &theirs, "as it is");
    drop(tree);
    seen::same(&seen::without_link_owners(seen::of_tree(&open())), &theirs, "opened again");
}

#[test]
fn a_users_upper_keeps_owners_and_devices() {
    let lower = Lower::make();
    let mut runner = proptest::test_runner::TestRunner::new(config());
    runner
        .run(&proptest::collection::vec(op(), 1..80), |ops| {
            beside_a_folder_as_a_user(&lower, &ops);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
}

/// The upper is on a host that cannot leave a whiteout behind when it renames, and has no ACLs.
fn on_a_host_without_whiteouts(lower: &Lower, ops: &[Op]) {
    let (dir, plain) = (folder(), folder());
    let tree = std::sync::Arc::new(model::writable::Writable::new());
    let options = Options { name: "host".to_owned(), dev: true, ..Options::default() };
    let host = mount(Served::Writable(tree), dir.path(), &options).unwrap();
    let (upper, plain) = (dir.path().join("upper"), plain.path().join("plain"));
    lower.copy(&plain);
    let open = || Overlay::open(lower.tree(), &upper, None, true).unwrap();
    let tree = open();
    for (n, op) in ops.iter().enumerate().filter(|(_, op)| op.what % KINDS != 22) {
        let (ours, theirs) = (ops::to_tree(&tree, *op), ops::to_folder(&plain, *op));
        assert_eq!(ours.is_ok(), theirs.is_ok(), "operation {n}: {op:?}: {ours:?}, {theirs:?}");
    }
    let theirs = seen::of_folder(&plain);
    seen::same(&seen::of_tree(&tree), &theirs, "as it is");
    drop(tree);
    let tree = open();
    seen::same(&seen::of_tree(&tree), &theirs, "opened again");
    drop(tree);
    drop(host);
}

#[test]
fn renames_on_a_host_without_whiteouts() {
    let lower = Lower::make();
    let mut runner = proptest::test_runner::TestRunner::new(config());
    runner
        .run(&proptest::collection::vec(op(), 1..80), |ops| {
            on_a_host_without_whiteouts(&lower, &ops);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
}

/// The kernel does all of `ops` above the folder `below`, which shows the lower, and we read what it
/// leaves.
fn after_the_kernel(lower: &Lower, below: &Path, ops: &[Op]) {
    let dir = folder();
    let upper = dir.path().join("upper");
    std::fs::create_dir(&upper).unwrap();
    // Or it would look as one not used yet, which takes on what the lower's root has.
    for program in ["chmod", "touch"] {
        let mut like = std::process::Command::new(program);
        run(like.arg("--reference").arg(lower.mounted.path()).arg(&upper));
    }
    let kernel = Kernel::mount(below, &upper);
    for op in ops {
        // Attributes that look like marks are escaped there, but hidden from the lower's.
        let _ = ops::to_folder(kernel.path(), *op);
    }
    let theirs = seen::without_links(seen::without_marks(seen::of_folder(kernel.path())));
    drop(kernel);
    let tree = Overlay::open(lower.tree(), &upper, None, true).unwrap();
    let ours = seen::without_links(seen::without_marks(seen::of_tree(&tree)));
    seen::same(&ours, &theirs, "as the kernel left it");
}

fn an_upper_of_the_kernel(below: impl Fn(&Lower) -> &Path) {
    let lower = Lower::make();
    let mut runner = proptest::test_runner::TestRunner::new(config());
    runner
        .run(&proptest::collection::vec(op(), 1..80), |ops| {
            after_the_kernel(&lower, below(&lower), &ops);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn an_upper_of_the_kernel_reads_as_there() {
    an_upper_of_the_kernel(|lower| lower.mounted.path());
}

#[test]
fn an_upper_of_the_kernel_above_our_view_reads_as_there() {
    an_upper_of_the_kernel(|lower| lower.view.path());
}

#[test]
fn an_untouched_overlay_is_its_lower() {
    let lower = Lower::make();
    beside_a_folder(&lower, &[]);
}

/// A file that the kernel renamed with its metadata alone, into a folder of the upper.
#[test]
fn regression_renamed_without_its_data() {
    let lower = Lower::make();
    let op = |what, path, other| Op { what, path, other, number: 0 };
    for below in [lower.mounted.path(), lower.view.path()] {
        after_the_kernel(&lower, below, &[op(2, 282, 0), op(11, 13, 1111)]);
    }
}
