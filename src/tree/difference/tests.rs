use std::sync::Arc;

use super::*;
use crate::block::{BlockSource, FaultSource, FileSource, MemorySource, Window};
use crate::tree::Time;
use crate::tree::folder::Folder;

const THEN: Time = Time { seconds: 1, nanos: 0 };

fn memory(bytes: &[u8]) -> Arc<dyn BlockSource> {
    Arc::new(MemorySource::new(bytes.to_vec()))
}

fn tree(files: &[(&str, Arc<dyn BlockSource>)]) -> Folder {
    let mut tree = Folder::new(0, 0, THEN);
    for (name, source) in files {
        tree.add_file(tree.root(), name.as_bytes(), Arc::clone(source), 1 << 20, THEN).unwrap();
    }
    tree
}

fn changes(before: &dyn FileTree, after: &dyn FileTree) -> (Vec<String>, u64) {
    let progress = Progress::default();
    let mut told = Vec::new();
    let sides = [before, after].map(|tree| Side { tree, node: Some(tree.root()) });
    compare(
        sides.into(),
        b"/",
        Aspects::default(),
        &progress,
        &mut |change| {
            let path = String::from_utf8_lossy(&change.path);
            let aspects: Vec<_> = change.aspects.iter().map(Aspect::name).collect();
            told.push(match (change.before, change.after) {
                (None, _) => format!("+{path}"),
                (_, None) => format!("-{path}"),
                _ => format!("{path}: {}", aspects.join(" ")),
            });
            Ok(())
        },
        &mut |path, error| panic!("{}: {error}", path.escape_ascii()),
    )
    .unwrap();
    (told, progress.bytes.into_inner())
}

#[test]
fn tells_what_came_went_and_changed_in_order() {
    let before = tree(&[
        ("b", memory(b"same")),
        ("a", memory(b"gone")),
        ("d", memory(b"old")),
        ("e", memory(b"short")),
    ]);
    let mut after = tree(&[
        ("e", memory(b"longer")),
        ("d", memory(b"new")),
        ("c", memory(b"came")),
        ("b", memory(b"same")),
    ]);
    let folder = after.add_folder(after.root(), b"a", Time { seconds: 2, nanos: 0 }).unwrap();
    after.add_file(folder, b"x", memory(b""), 0, THEN).unwrap();
    let (told, _) = changes(&before, &after);
    assert_eq!(told, ["/a: type", "+/a/x", "+/c", "/d: contents", "/e: contents size"]);
    let (told, _) = changes(&after, &before);
    assert_eq!(told, ["/a: type", "-/a/x", "-/c", "/d: contents", "/e: contents size"]);
}

#[test]
fn names_come_in_order_even_if_a_folder_holds_more_than_are_held() {
    let mut trees = [Folder::new(0, 0, THEN), Folder::new(0, 0, THEN)];
    let count = 2 * entries::HELD + 1000;
    let empty = memory(b"");
    for number in (0..count).rev() {
        let name = format!("{number:08}");
        for (nth, tree) in trees.iter_mut().enumerate() {
            if number % 50_000 != 7 + nth {
                tree.add_file(tree.root(), name.as_bytes(), Arc::clone(&empty), 0, THEN).unwrap();
            }
        }
    }
    let (told, _) = changes(&trees[0], &trees[1]);
    let expected: Vec<String> = (0..=count / 50_000)
        .flat_map(|n| [format!("+/{:08}", n * 50_000 + 7), format!("-/{:08}", n * 50_000 + 8)])
        .collect();
    assert_eq!(told, expected);
}

#[test]
fn what_lies_in_the_same_place_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("host");
    std::fs::write(&path, vec![7; 3 << 20]).unwrap();
    let open = || -> Arc<FaultSource> {
        Arc::new(FaultSource::new(Arc::new(FileSource::open(&path).unwrap()), |_, _, _| None))
    };
    let (one, two) = (open(), open());
    let window = |source: &Arc<FaultSource>, start| -> Arc<dyn BlockSource> {
        let source: Arc<dyn BlockSource> = Arc::<FaultSource>::clone(source);
        Arc::new(Window::new(source, start, 1 << 20).unwrap())
    };
    let (told, bytes) = changes(&tree(&[("f", window(&one, 0))]), &tree(&[("f", window(&two, 0))]));
    assert_eq!((told, bytes), (vec![], 0));
    assert_eq!((one.reads(), two.reads()), (0, 0));
    // Equal bytes in another place take reading.
    let (told, bytes) =
        changes(&tree(&[("f", window(&one, 0))]), &tree(&[("f", window(&two, 512))]));
    assert_eq!((told, bytes), (vec![], 1 << 20));
    assert!(one.reads() > 0 && two.reads() > 0);
}

#[test]
fn ranges_are_those_that_do_not_lie_in_the_same_place() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("host");
    std::fs::write(&path, vec![7; 8192]).unwrap();
    let host: Arc<dyn BlockSource> = Arc::new(FileSource::open(&path).unwrap());
    let cut: Arc<dyn BlockSource> = Arc::new(Window::new(Arc::clone(&host), 0, 4096).unwrap());
    let found = |before: &Arc<dyn BlockSource>, after: &Arc<dyn BlockSource>| {
        let (before, after) = (tree(&[("d", before.clone())]), tree(&[("d", after.clone())]));
        let mut found = Vec::new();
        ranges((&before, NodeId(2)), (&after, NodeId(2)), &mut |range| {
            found.push(range);
            Ok(())
        })
        .unwrap();
        found
    };
    assert_eq!(found(&host, &host), []);
    assert_eq!(found(&cut, &host), [Range { offset: 4096, len: 4096, zeros: false }]);
    assert_eq!(found(&host, &cut), [Range { offset: 4096, len: 4096, zeros: true }]);
    let memory = memory(&[7; 8192]);
    assert_eq!(found(&host, &memory), [Range { offset: 0, len: 8192, zeros: false }]);
}
