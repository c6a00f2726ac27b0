//! One rule at a time.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use stratafs::error::Kind;
use stratafs::tree::overlay::Overlay;
use stratafs::tree::{
    Caller, Changes, FileKind, FileTree, NewFile, NodeId, Rename, SetXattr, WritableTree,
};

use crate::lower::Lower;
use crate::{contract, folder};

const ROOT: Caller = Caller { uid: 0, gid: 0, umask: 0o022 };
const FILE: NewFile<'_> = NewFile { kind: FileKind::Regular, mode: 0o644, target: b"" };
const DIR: NewFile<'_> = NewFile { kind: FileKind::Directory, mode: 0o755, target: b"" };

fn open(lower: &Lower, dir: &Path) -> Overlay {
    Overlay::open(lower.tree(), &dir.join("upper"), None, true).unwrap()
}

fn at(tree: &dyn FileTree, path: &str) -> NodeId {
    path.split('/').filter(|name| !name.is_empty()).fold(tree.root(), |dir, name| {
        tree.lookup(dir, name.as_bytes()).unwrap().unwrap_or_else(|| panic!("{path}"))
    })
}

fn contents(tree: &dyn FileTree, node: NodeId) -> Vec<u8> {
    let mut bytes = vec![0; tree.attr(node).unwrap().size as usize];
    assert_eq!(tree.read_at(node, 0, &mut bytes).unwrap(), bytes.len());
    bytes
}

#[test]
fn keeps_the_contract_of_trees_changed_or_not() {
    let (lower, dir) = (Lower::make(), folder());
    let tree = open(&lower, dir.path());
    contract::check(&tree);
    let root = tree.root();
    tree.write_at(at(&tree, "b/a"), 5, b"new").unwrap();
    tree.set_attr(at(&tree, "e"), &Changes { mode: Some(0o600), ..Changes::default() }).unwrap();
    tree.unlink(at(&tree, "b"), b"b").unwrap();
    tree.rename((root, b"a"), (at(&tree, "c"), b"moved"), Rename::Replace).unwrap();
    tree.create(root, b"a", &DIR, &ROOT).unwrap();
    tree.create(root, b"new", &FILE, &ROOT).unwrap();
    contract::check(&tree);
    drop(tree);
    contract::check(&open(&lower, dir.path()));
}

#[test]
fn a_node_stays_what_it_is() {
    let (lower, dir) = (Lower::make(), folder());
    let tree = open(&lower, dir.path());
    let below = lower.tree();
    let (file, folder) = (at(&tree, "b/a"), at(&tree, "a/a"));
    assert_eq!(file, at(&*below, "b/a"), "as the lower numbers it");
    tree.write_at(file, 0, b"x").unwrap();
    tree.rename((at(&tree, "b"), b"a"), (tree.root(), b"x"), Rename::Replace).unwrap();
    tree.rename((at(&tree, "a"), b"a"), (tree.root(), b"y"), Rename::Replace).unwrap();
    let new = tree.create(tree.root(), b"new", &FILE, &ROOT).unwrap();
    tree.rename((tree.root(), b"new"), (folder, b"new"), Rename::Replace).unwrap();
    let expected = [("x", file), ("y", folder), ("y/new", new)];
    for (path, node) in expected {
        assert_eq!(at(&tree, path), node, "{path}");
    }
    drop(tree);
    let tree = open(&lower, dir.path());
    for (path, node) in expected {
        assert_eq!(at(&tree, path), node, "{path}, opened again");
    }
}

#[test]
fn metadata_are_copied_without_data() {
    let (lower, dir) = (Lower::make(), folder());
    let tree = open(&lower, dir.path());
    let file = at(&tree, "b/a");
    let before = contents(&tree, file);
    tree.set_attr(file, &Changes { mode: Some(0o600), ..Changes::default() }).unwrap();
    let upper = dir.path().join("upper/b/a");
    assert_eq!(upper.metadata().unwrap().blocks(), 0, "no data yet");
    assert_eq!(contents(&tree, file), before);
    tree.hold(file, true).unwrap();
    assert!(tree.backing_file(file).is_none(), "its bytes are elsewhere");
    tree.write_at(file, 3, b"***").unwrap();
    let backing = tree.backing_file(file).unwrap();
    backing.write_all_at(b"!", 4).unwrap();
    let mut after = before;
    after[3..6].copy_from_slice(b"*!*");
    assert_eq!(contents(&tree, file), after);
    assert_eq!(std::fs::read(upper).unwrap(), after);
    tree.release(file);
}

#[test]
fn a_removed_file_lives_while_it_is_held() {
    let (lower, dir) = (Lower::make(), folder());
    let tree = open(&lower, dir.path());
    // One only in the lower, one in the upper, and one that was copied up.
    let new = tree.create(tree.root(), b"new", &FILE, &ROOT).unwrap();
    tree.write_at(new, 0, b"new").unwrap();
    let copied = at(&tree, "a/a/b");
    tree.write_at(copied, 0, b"X").unwrap();
    for (parent, name) in [("b", "a"), ("", "new"), ("a/a", "b")] {
        let parent = at(&tree, parent);
        let node = tree.lookup(parent, name.as_bytes()).unwrap().unwrap();
        let before = contents(&tree, node);
        tree.hold(node, true).unwrap();
        tree.unlink(parent, name.as_bytes()).unwrap();
        assert_eq!(tree.lookup(parent, name.as_bytes()).unwrap(), None);
        assert_eq!(tree.attr(node).unwrap().links, 0, "{name}");
        assert_eq!(contents(&tree, node), before, "{name}");
        tree.write_at(node, 1, b"late").unwrap();
        assert_eq!(&contents(&tree, node)[1..5], b"late", "{name}");
        let error = tree.link(node, tree.root(), b"again").unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound, "a file without names gets none");
        tree.release(node);
        tree.forget(node);
        assert!(tree.attr(node).is_err(), "{name} is gone");
    }
}

#[test]
fn a_listing_goes_on_while_names_come_and_go() {
    let (lower, dir) = (Lower::make(), folder());
    let tree = open(&lower, dir.path());
    let root = tree.root();
    for n in 0..500 {
        tree.create(root, format!("n{n}").as_bytes(), &FILE, &ROOT).unwrap();
    }
    let mut met = std::collections::BTreeMap::new();
    let mut after = 0;
    let mut round = 0;
    loop {
        let mut count = 0;
        tree.read_dir(root, after, &mut |entry| {
            if count == 7 {
                return false;
            }
            count += 1;
            after = entry.next;
            *met.entry(entry.name.to_vec()).or_insert(0) += 1;
            true
        })
        .unwrap();
        if count == 0 {
            break;
        }
        // Of the even ones none is touched.
        let gone = format!("n{}", round * 2 + 1);
        let _ = tree.unlink(root, gone.as_bytes());
        tree.create(root, format!("late{round}").as_bytes(), &FILE, &ROOT).unwrap();
        round += 1;
        assert!(round < 2000);
    }
    for n in (0..500).step_by(2) {
        assert_eq!(met.get(format!("n{n}").as_bytes()), Some(&1), "n{n}");
    }
    assert!(met.values().all(|times| *times == 1), "{met:?}");
}

#[test]
fn an_upper_is_used_by_one() {
    let (lower, dir) = (Lower::make(), folder());
    let tree = open(&lower, dir.path());
    let second = Overlay::open(lower.tree(), &dir.path().join("upper"), None, true);
    assert_eq!(second.unwrap_err().kind(), Kind::Refused);
    drop(tree);
    let reader = || Overlay::open(lower.tree(), &dir.path().join("upper"), None, false).unwrap();
    let (one, two) = (reader(), reader());
    let error = one.create(one.root(), b"x", &FILE, &ROOT).unwrap_err();
    assert_eq!(error.kind(), Kind::ReadOnly);
    assert_eq!(contents(&one, at(&one, "c/a")), contents(&two, at(&two, "c/b")));
}

#[test]
fn leftovers_of_a_kill_are_cleared() {
    let (lower, dir) = (Lower::make(), folder());
    drop(open(&lower, dir.path()));
    let tmp = dir.path().join(".upper.work/strata/tmp");
    std::fs::create_dir_all(tmp.join("7/in/side")).unwrap();
    std::fs::write(tmp.join("7/in/file"), "half").unwrap();
    std::os::unix::fs::symlink("/etc", tmp.join("8")).unwrap();
    drop(open(&lower, dir.path()));
    assert_eq!(std::fs::read_dir(tmp).unwrap().count(), 0);
}

#[test]
fn links_planted_in_the_upper_are_not_followed() {
    let (lower, dir) = (Lower::make(), folder());
    drop(open(&lower, dir.path()));
    let outside = dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, dir.path().join("upper/trap")).unwrap();
    let tree = open(&lower, dir.path());
    let trap = at(&tree, "trap");
    assert_eq!(tree.attr(trap).unwrap().kind, FileKind::Symlink);
    assert!(tree.create(trap, b"x", &FILE, &ROOT).is_err());
    assert!(tree.write_at(trap, 0, b"x").is_err());
    tree.set_attr(trap, &Changes { uid: Some(5), gid: Some(5), ..Changes::default() }).unwrap();
    assert_eq!(outside.metadata().unwrap().uid(), 0);
    assert_eq!(std::fs::read_dir(outside).unwrap().count(), 0);
}

#[test]
fn attributes_that_look_like_marks_are_escaped() {
    let (lower, dir) = (Lower::make(), folder());
    let tree = open(&lower, dir.path());
    let folder = at(&tree, "a/a");
    assert_eq!(tree.xattr(folder, b"trusted.overlay.opaque").unwrap().as_deref(), Some(&b"y"[..]));
    tree.set_xattr(folder, b"trusted.overlay.redirect", b"/b", SetXattr::Create).unwrap();
    let again = tree.set_xattr(folder, b"trusted.overlay.redirect", b"/b", SetXattr::Create);
    assert_eq!(again.unwrap_err().kind(), Kind::Exists);
    drop(tree);
    let tree = open(&lower, dir.path());
    let folder = at(&tree, "a/a");
    let mut names = tree.xattr_names(folder).unwrap();
    names.sort();
    assert_eq!(names, [&b"trusted.overlay.opaque"[..], b"trusted.overlay.redirect"]);
    at(&tree, "a/a/b");
}

#[test]
fn writers_copy_a_file_up_once() {
    let (lower, dir) = (Lower::make(), folder());
    let tree = Arc::new(open(&lower, dir.path()));
    let file = at(&*tree, "b/a");
    let mut expected = contents(&*tree, file);
    std::thread::scope(|scope| {
        for n in 0..8u64 {
            let tree = &tree;
            scope.spawn(move || {
                for k in 0..50 {
                    tree.write_at(file, n * 10_000 + k * 7, &[n as u8 + 200]).unwrap();
                }
            });
        }
    });
    for n in 0..8 {
        for k in 0..50 {
            expected[n * 10_000 + k * 7] = n as u8 + 200;
        }
    }
    assert_eq!(contents(&*tree, file), expected);
}

/// As after `rm -r .upper.work`, which the kernel's overlayfs allows.
#[test]
fn an_upper_without_its_work_folder_counts_as_the_host_does() {
    let (lower, dir) = (Lower::make(), folder());
    let tree = open(&lower, dir.path());
    tree.write_at(at(&tree, "c/a"), 0, b"S").unwrap();
    tree.set_attr(at(&tree, "a/d"), &Changes { mode: Some(0o600), ..Changes::default() }).unwrap();
    tree.sync_all().unwrap();
    drop(tree);
    std::fs::remove_dir_all(dir.path().join(".upper.work")).unwrap();
    for writable in [false, true] {
        let upper = dir.path().join("upper");
        let tree = Overlay::open(lower.tree(), &upper, None, writable).unwrap();
        let file = at(&tree, "c/a");
        assert_eq!([at(&tree, "c/b"), at(&tree, "a/d")], [file, file]);
        assert_eq!(tree.attr(file).unwrap().links, 3);
        assert_eq!(contents(&tree, file), b"Shared");
    }
    let tree = open(&lower, dir.path());
    let file = at(&tree, "c/a");
    tree.hold(file, true).unwrap();
    for (parent, name, left) in [("c", "a", 2), ("a", "d", 1), ("c", "b", 0)] {
        tree.unlink(at(&tree, parent), name.as_bytes()).unwrap();
        assert_eq!(tree.attr(file).unwrap().links, left);
        tree.write_at(file, 1, b"H").unwrap();
        if left > 0 {
            assert_eq!(contents(&tree, at(&tree, "c/b")), b"SHared");
        }
    }
}

/// What takes the host several steps, as an owner that is not the server's, is made apart.
#[test]
fn a_file_of_another_owner_is_never_seen_without_it() {
    let (lower, dir) = (Lower::make(), folder());
    let tree = Arc::new(open(&lower, dir.path()));
    let caller = Caller { uid: 1000, gid: 1001, umask: 0 };
    let upper = dir.path().join("upper");
    let ended = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let seen = scope.spawn(|| {
            let mut seen = 0;
            while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                for entry in std::fs::read_dir(&upper).unwrap() {
                    // What is the lower's is root's.
                    let entry = entry.unwrap();
                    if entry.file_name().len() < 2 {
                        continue;
                    }
                    let stat = entry.metadata().unwrap();
                    assert_eq!((stat.uid(), stat.gid()), (1000, 1001), "{:?}", entry.path());
                    seen += 1;
                }
            }
            seen
        });
        for n in 0..400 {
            let new = if n % 2 == 0 { FILE } else { DIR };
            tree.create(tree.root(), format!("new{n}").as_bytes(), &new, &caller).unwrap();
        }
        ended.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(seen.join().unwrap() > 0);
    });
    let again = tree.create(tree.root(), b"new7", &FILE, &caller).unwrap_err();
    assert_eq!(again.kind(), Kind::Exists);
}
