//! One layer as it is, and what layers bring and take.

use super::*;

#[test]
fn a_layer_as_it_is_shows_its_whiteouts() {
    let lines = [
        "d/",
        "d/.wh.x",
        ".wh.a => b",
        "d/.wh..wh..opq",
        "b = 1",
        "c => b",
        ".wh.",
        ".wh.d/",
        ".wh.d/e",
    ];
    let tree = Merged::of_layer(part(&lines)).unwrap();
    crate::tree::tests::contract::check(&tree);
    assert_eq!(
        shown(&tree),
        [
            ".wh./",
            ".wh.a = 1 *3",
            ".wh.d/",
            ".wh.d/e",
            "b = 1 *3",
            "c = 1 *3",
            "d/",
            "d/.wh..wh..opq",
            "d/.wh.x"
        ]
    );
}

#[test]
fn a_link_into_a_layer_below_is_shown_empty() {
    let tree = Merged::of_layer(part(&["b => below @ 600 5 6 7", "c => b", "d => d"])).unwrap();
    crate::tree::tests::contract::check(&tree);
    assert_eq!(shown(&tree), ["b *2", "c *2", "d"]);
    assert_eq!((attr(&tree, "b").mode, attr(&tree, "b").uid), (0o600, 5));
}

/// GNU tar says so of each link and makes the rest; an image is another matter, as nothing lies below it.
#[test]
fn a_tarball_leaves_out_links_to_what_is_not_in_it() {
    let lines = [
        "d/",
        "d/b => below @ 600 5 6 7",
        "c => d/b",
        "e => e",
        "a = 1",
        "f => a",
        ".wh.x",
        "g => later",
        "later = 2",
        "h => i",
        "i => h",
    ];
    let tree = Merged::of_tarball(part(&lines)).unwrap();
    crate::tree::tests::contract::check(&tree);
    assert_eq!(shown(&tree), ["a = 1 *2", "d/", "f = 1 *2", "g = 2 *2", "later = 2 *2"]);
    assert_eq!((tree.wasted(), tree.entry_count()), (0, 6));
    assert!(try_merge(&[&lines]).is_err());
    // A link to a folder is none anywhere.
    assert!(Merged::of_tarball(part(&["d/", "b => d"])).is_err());
}

#[test]
fn numbers_of_layers() {
    let merged = merge(&[
        &["a = 12345", "d/", "d/b = 123", "d/c => a", "e = 1"],
        &["d/", "d/.wh..wh..opq", "e = 22", "n = 4444"],
        &[".wh.a", ".wh.gone", "n = 7", "n = 88"],
    ]);
    assert_eq!(shown(&merged), ["d/", "e = 22", "n = 88"]);
    let numbers = |entries, whiteouts, bytes, hidden_entries, hidden_bytes| LayerNumbers {
        entries,
        whiteouts,
        bytes,
        hidden_entries,
        hidden_bytes,
    };
    // The second layer hides d/b, d/c (which has another name) and the old e; the third the last
    // name of a, and n.
    let expected = [numbers(5, 0, 9, 0, 0), numbers(4, 1, 6, 3, 4), numbers(4, 2, 3, 2, 9)];
    assert_eq!(merged.layers(), expected);
    // And what the third layer has twice.
    assert_eq!((merged.wasted(), merged.entry_count()), (14, 4));
    let bytes: u64 = merged.layers().iter().map(|layer| layer.bytes).sum();
    assert_eq!(bytes - merged.wasted(), 4);
}

#[test]
fn images_that_share_layers_are_compared_without_reading_what_they_share() {
    use crate::block::FileSource;
    use crate::tree::difference::{Aspect, Aspects, Progress, Side, compare};

    let shared = Made::new(&["a = one", "d/", "d/b = two", "e = three"]);
    let file = tempfile::tempfile().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &shared.data, 0).unwrap();
    let data: Arc<dyn BlockSource> = Arc::new(FileSource::new(file, "layer".into()).unwrap());
    let shared = LayerPart { data, ..shared.part() };
    let before = Merged::new(vec![shared.clone(), part(&["e = four!", "x = 1"])]).unwrap();
    let after = Merged::new(vec![shared, part(&["e = five!", "d/.wh.b"])]).unwrap();
    let progress = Progress::default();
    let mut told = Vec::new();
    let side = |tree: &'static Merged| Side { tree, node: Some(tree.root()) };
    let [before, after] = [before, after].map(|tree| &*Box::leak(Box::new(tree)));
    compare(
        (side(before), side(after)),
        b"/",
        Aspects::default(),
        &progress,
        &mut |change| {
            let contents = change.aspects.contains(Aspect::Contents);
            told.push((String::from_utf8(change.path.clone()).unwrap(), contents));
            Ok(())
        },
        &mut |_, error| panic!("{error}"),
    )
    .unwrap();
    let expected = [("/d/b", false), ("/e", true), ("/x", false)];
    assert_eq!(told, expected.map(|(path, contents)| (path.to_owned(), contents)));
    // Of all files in both only this one was read.
    assert_eq!(progress.bytes.into_inner(), "five!".len() as u64);
}
