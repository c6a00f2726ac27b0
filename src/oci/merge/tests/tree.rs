//! The merged tree as a tree: large, deep, sparse.

use super::*;
use crate::block::{Extent, Home, Origin};

#[test]
fn a_folder_of_very_many() {
    let mut made = Made::new(&["d/"]);
    for number in (0..25_000).rev() {
        let mut entry = entry(format!("d/{number}").as_bytes(), EntryKind::File);
        made.fill(&mut entry, number.to_string().as_bytes());
        made.entries.push(entry);
    }
    let lower = made.part();
    let upper = part(&["d/.wh.17", "d/20000 = new"]);
    let merged = Merged::new(vec![lower, upper]).unwrap();
    let folder = at(&merged, "d");
    let mut names = Vec::new();
    merged
        .read_dir(folder, 0, &mut |entry| {
            names.push(entry.name.to_vec());
            true
        })
        .unwrap();
    assert_eq!(names.len(), 24_999);
    assert!(names.is_sorted());
    assert_eq!(contents(&merged, at(&merged, "d/20000")), "new");
    assert_eq!(contents(&merged, at(&merged, "d/24999")), "24999");
    assert_eq!(merged.lookup(folder, b"17").unwrap(), None);
    crate::tree::tests::contract::check(&merged);
}

#[test]
fn a_path_of_4096_folders() {
    let mut made = Made::new(&[]);
    let mut path = String::new();
    for _ in 0..4096 {
        path.push_str("d/");
        made.entries.push(entry(path.as_bytes(), EntryKind::Folder));
    }
    made.entries.push(entry(format!("{path}f").as_bytes(), EntryKind::Fifo));
    let deep = made.part();
    let merged = Merged::new(vec![deep.clone(), part(&["x -> d"])]).unwrap();
    assert_eq!(attr(&merged, &format!("{path}f")).kind, FileKind::Fifo);
    crate::tree::tests::contract::check(&merged);
    // All of it goes at once.
    let gone = Merged::new(vec![deep, part(&[".wh.d"])]).unwrap();
    assert_eq!(shown(&gone), Vec::<String>::new());
    assert_eq!(gone.layers()[1].hidden_entries, 4097);
}

#[test]
fn sparse_files_have_their_holes() {
    let mut made = Made::new(&["a = ABCDEFGHIJ"]);
    let mut sparse = entry(b"sparse", EntryKind::File);
    sparse.size = 1 << 40;
    sparse.runs = vec![
        Run { at: 4096, len: 3, place: 2 },
        Run { at: 5000, len: 4, place: 5 },
        Run { at: 5004, len: 1, place: 0 },
    ];
    made.entries.push(sparse);
    let mut hole = entry(b"hole", EntryKind::File);
    hole.size = 7777;
    made.entries.push(hole);
    let merged = Merged::new(vec![made.part()]).unwrap();
    crate::tree::tests::contract::check(&merged);
    let node = at(&merged, "sparse");
    let mut bytes = [9; 1000];
    merged.read_at(node, 4090, &mut bytes).unwrap();
    let mut expected = [0; 1000];
    expected[6..9].copy_from_slice(b"CDE");
    expected[910..915].copy_from_slice(b"FGHIA");
    assert_eq!(bytes, expected);
    let extent = |offset| merged.extent_at(node, offset).unwrap();
    assert_eq!(extent(0), Extent { len: 4096, hole: true });
    assert_eq!(extent(4097), Extent { len: 2, hole: false });
    assert_eq!(extent(5005), Extent { len: (1 << 40) - 5005, hole: true });
    let origin = merged.origin_at(node, 0).unwrap();
    assert_eq!(origin, Origin { len: 4096, home: Home::Zeros });
    assert_eq!(attr(&merged, "sparse").blocks, 1);
    assert_eq!(attr(&merged, "hole").blocks, 0);
    assert_eq!(merged.layers()[0].bytes, 18);
}

#[test]
fn nodes_are_the_same_when_opened_again() {
    let layers: [&[&str]; 2] = [&["a = 1", "d/", "d/b = 2"], &["c => a", "d/e = 3", ".wh.a"]];
    let (one, other) = (merge(&layers), merge(&layers));
    for path in ["c", "d", "d/b", "d/e"] {
        assert_eq!(at(&one, path), at(&other, path));
    }
}

#[test]
fn names_of_any_bytes() {
    let long = [b'n'; 255];
    let names: [&[u8]; 5] = [b"\xff\xfe", b"a\nb", &long, b" ", b"-"];
    let mut made = Made::new(&[]);
    for name in names {
        made.entries.push(entry(name, EntryKind::Fifo));
    }
    let merged = Merged::new(vec![made.part()]).unwrap();
    crate::tree::tests::contract::check(&merged);
    for name in names {
        assert!(merged.lookup(merged.root(), name).unwrap().is_some());
    }
}
