//! Each rule by which layers are applied, and where the specification leaves a choice or is not
//! followed by all, who does what. "umoci" is 0.4.7, as it was seen to do; "containerd" is
//! `pkg/archive` of version 2, as it reads. `tests/layers.rs` runs umoci on random layers.

use super::*;

/// layer.md, "Whiteouts": "whiteout files MUST only apply to resources in lower/parent layers. Files
/// that are present in the same layer as a whiteout file can only be hidden by whiteout files in
/// subsequent layers." umoci keeps to it. containerd removes what its own layer had put there by then.
#[test]
fn the_place_of_a_whiteout_in_its_layer_does_not_matter() {
    let lower = ["a = old", "d/", "d/old = 1"];
    let orders: [&[&str]; 2] = [
        &[".wh.a", "a = new", ".wh.d", "d/", "d/new = 2"],
        &["a = new", ".wh.a", "d/", "d/new = 2", ".wh.d"],
    ];
    for upper in orders {
        assert_eq!(shown(&merge(&[&lower, upper])), ["a = new", "d/", "d/new = 2"]);
    }
}

/// layer.md, "Opaque Whiteout": it hides all children from the layers below, wherever it stands.
/// umoci and containerd keep what the layer has put there, as we do; some tools do not.
#[test]
fn a_late_opaque_keeps_its_own_siblings() {
    let lower = ["d/", "d/old = 1", "d/e/", "d/e/deep = 2"];
    let orders: [&[&str]; 3] = [
        &["d/", "d/.wh..wh..opq", "d/new = 3", "d/e/", "d/e/own = 4"],
        &["d/", "d/new = 3", "d/e/", "d/e/own = 4", "d/.wh..wh..opq"],
        &["d/.wh..wh..opq", "d/new = 3", "d/e/own = 4"],
    ];
    for upper in orders {
        let merged = merge(&[&lower, upper]);
        assert_eq!(shown(&merged), ["d/", "d/e/", "d/e/own = 4", "d/new = 3"]);
    }
}

#[test]
fn an_opaque_covers_all_descendants_from_below() {
    let lower: [&str; 4] = ["d/", "d/a/", "d/a/b/", "d/a/b/c = 1"];
    let merged = merge(&[&lower, &["d/a/b/x = 2"], &["d/.wh..wh..opq"]]);
    assert_eq!(shown(&merged), ["d/"]);
}

#[test]
fn an_opaque_of_the_root_hides_all_below() {
    assert_eq!(
        shown(&merge(&[&["a = 1", "d/", "d/b = 2"], &[".wh..wh..opq", "c = 3"]])),
        ["c = 3"]
    );
}

#[test]
fn an_opaque_keeps_the_attributes_of_its_folder() {
    let merged = merge(&[&["d/ @ 700 5 6 7", "d/a = 1"], &["d/.wh..wh..opq"]]);
    let attr = attr(&merged, "d");
    assert_eq!((attr.mode, attr.uid, attr.gid, attr.modified.seconds), (0o700, 5, 6, 7));
}

#[test]
fn whiteouts_are_never_seen_even_without_a_target() {
    let merged = merge(&[&["d/", "d/a = 1"], &["d/.wh.nothing", "none/.wh.x", ".wh.gone"]]);
    assert_eq!(shown(&merged), ["d/", "d/a = 1"]);
    for (folder, name) in [("d", ".wh.nothing"), ("", ".wh.gone"), ("d", ".wh..wh..opq")] {
        assert_eq!(merged.lookup(at(&merged, folder), name.as_bytes()).unwrap(), None);
    }
    assert_eq!(shown(&merge(&[&[".wh.a", ".wh..wh..opq", "b = 1"]])), ["b = 1"]);
}

/// AUFS, the first of Docker's stores, kept its own files under `.wh..wh.`, and Docker leaves them out.
/// umoci unpacks the folder, which no whiteout may be.
#[test]
fn what_aufs_kept_for_itself_is_left_out() {
    let upper = [".wh..wh.plnk/", ".wh..wh.plnk/1.2 = x", ".wh..wh.aufs", "b = 2"];
    assert_eq!(shown(&merge(&[&["a = 1"], &upper])), ["a = 1", "b = 2"]);
}

#[test]
fn a_whiteout_is_one_by_its_name_whatever_its_type() {
    for whiteout in [".wh.a => b", ".wh.a/", ".wh.a -> b", ".wh.a c 0:0", ".wh.a = text", ".wh.a |"]
    {
        assert_eq!(shown(&merge(&[&["a = 1", "b = 2"], &[whiteout]])), ["b = 2"], "{whiteout}");
    }
}

#[test]
fn a_whiteout_beside_whiteouts_in_what_it_hides() {
    let lower = ["d/", "d/x = 1", "d/y = 2"];
    for upper in [[".wh.d", "d/.wh.x"], ["d/.wh.x", ".wh.d"]] {
        assert_eq!(shown(&merge(&[&lower, &upper])), Vec::<String>::new());
    }
    let both = merge(&[&lower, &["d/", "d/.wh.x", ".wh.d", "d/z = 3"]]);
    assert_eq!(shown(&both), ["d/", "d/z = 3"]);
}

/// The specification does not say what the folder is then. Nothing tells of it any more, so it is
/// made up; umoci, which removes and then makes parents, does the same.
#[test]
fn a_hidden_folder_that_something_is_put_in_is_made_up() {
    let merged = merge(&[&["d/ @ 700 5 6 7", "d/old = 1"], &[".wh.d", "d/new = 2 @ 644 0 0 9"]]);
    assert_eq!(shown(&merged), ["d/", "d/new = 2"]);
    let attr = attr(&merged, "d");
    assert_eq!((attr.mode, attr.uid, attr.gid, attr.modified.seconds), (0o755, 0, 0, 9));
}

#[test]
fn a_whiteout_hides_what_several_layers_made() {
    let merged = merge(&[&["d/", "d/a = 1"], &["d/b = 2"], &[".wh.d"], &["d/", "d/c = 3"]]);
    assert_eq!(shown(&merged), ["d/", "d/c = 3"]);
}

/// layer.md, "Changeset over existing files": only folder over folder keeps what is there.
#[test]
fn folder_over_folder_replaces_attributes_and_keeps_children() {
    let mut upper = Made::new(&["d/ @ 1777 5 6 7"]);
    upper.entries[0].xattrs = vec![(b"user.new".to_vec(), b"1".to_vec())];
    let mut lower = Made::new(&["d/ @ 700 1 2 3", "d/a = 1"]);
    lower.entries[0].xattrs = vec![(b"user.old".to_vec(), b"1".to_vec())];
    let merged = Merged::new(vec![lower.part(), upper.part()]).unwrap();
    assert_eq!(shown(&merged), ["d/", "d/a = 1"]);
    let attr = attr(&merged, "d");
    assert_eq!((attr.mode, attr.uid, attr.gid, attr.modified.seconds), (0o1777, 5, 6, 7));
    assert_eq!(merged.xattr_names(attr.node).unwrap(), [b"user.new"]);
}

#[test]
fn anything_else_is_removed_before_it_is_replaced() {
    let lower = ["x/", "x/child = 1", "f = 2", "l -> f", "p |"];
    let merged = merge(&[&lower, &["x = file", "f/", "l/", "p -> x"]]);
    assert_eq!(shown(&merged), ["f/", "l/", "p -> x", "x = file"]);
    let merged = merge(&[&lower, &["x -> f", "f |", "l c 1:3", "p = text"]]);
    assert_eq!(shown(&merged), ["f |", "l c 1:3", "p = text", "x -> f"]);
    // And back: nothing of the folder comes again.
    assert_eq!(shown(&merge(&[&["x/", "x/a = 1"], &["x = file"], &["x/"]])), ["x/"]);
}

/// umoci and containerd follow the link of the layer below if the opaque comes before the folder, and
/// then lose the files of `usr/lib`.
#[test]
fn a_folder_over_a_symbolic_link_replaces_it_and_its_opaque_spares_the_target() {
    let lower = ["usr/", "usr/lib/", "usr/lib/a = 1", "lib -> usr/lib"];
    for upper in
        [["lib/", "lib/.wh..wh..opq", "lib/b = 2"], ["lib/.wh..wh..opq", "lib/", "lib/b = 2"]]
    {
        let merged = merge(&[&lower, &upper]);
        assert_eq!(shown(&merged), ["lib/", "lib/b = 2", "usr/", "usr/lib/", "usr/lib/a = 1"]);
    }
    let merged = merge(&[&lower, &["lib/", "lib/.wh.a"]]);
    assert_eq!(shown(&merged), ["lib/", "usr/", "usr/lib/", "usr/lib/a = 1"]);
}

#[test]
fn of_duplicates_the_last_one_wins() {
    let merged =
        merge(&[&["a = 1", "d/ @ 700", "a = 2", "d/ @ 711", "x/", "x/y = 1", "x = 3", "a = 4"]]);
    assert_eq!(shown(&merged), ["a = 4", "d/", "x = 3"]);
    assert_eq!(attr(&merged, "d").mode, 0o711);
}

/// 0755 and root's, as umoci and containerd have it. Their time is that of unpacking; ours is the
/// newest of any entry of the layer, which is about when it was made and the same each time.
#[test]
fn missing_parents_are_made_up() {
    let merged =
        merge(&[&["a = 1 @ 644 0 0 50"], &["x/y/z = 2 @ 600 3 4 70", "w = 3 @ 644 0 0 90"]]);
    assert_eq!(shown(&merged), ["a = 1", "w = 3", "x/", "x/y/", "x/y/z = 2"]);
    for path in ["x", "x/y"] {
        let attr = attr(&merged, path);
        assert_eq!((attr.mode, attr.uid, attr.gid, attr.modified.seconds), (0o755, 0, 0, 90));
    }
    // An entry that comes later says what the folder is.
    let merged = merge(&[&["x/y = 2", "x/ @ 700 1 2 3"]]);
    assert_eq!(attr(&merged, "x").mode, 0o700);
    // A parent that a lower layer has is as it was.
    let merged = merge(&[&["x/ @ 700 1 2 3"], &["x/y = 2"]]);
    assert_eq!((attr(&merged, "x").mode, attr(&merged, "x").uid), (0o700, 1));
}

/// containerd leaves the root's entry out, umoci does not.
#[test]
fn the_root_may_be_told_in_any_way_or_not_at_all() {
    for root in [".", "./", "/", "", "/./", "a/.."] {
        let mut made = Made::new(&["x = 1"]);
        let mut folder = entry(root.as_bytes(), EntryKind::Folder);
        (folder.mode, folder.uid) = (0o711, 7);
        made.entries.push(folder);
        let merged = Merged::new(vec![made.part()]).unwrap();
        assert_eq!((attr(&merged, "").mode, attr(&merged, "").uid), (0o711, 7), "{root}");
        assert_eq!(shown(&merged), ["x = 1"]);
    }
    let merged = merge(&[&["x = 1 @ 644 0 0 5"]]);
    let root = attr(&merged, "");
    assert_eq!((root.mode, root.uid, root.modified.seconds, root.node), (0o755, 0, 5, NodeId(1)));
    assert_eq!(shown(&merge(&[])), Vec::<String>::new());
}

#[test]
fn one_path_in_many_spellings() {
    for path in [
        "a/b = new",
        "./a/b = new",
        "/a/b = new",
        "a//b = new",
        "././a/./b = new",
        "a/x/../b = new",
    ] {
        let merged = merge(&[&["a/", "a/b = old"], &[path]]);
        assert_eq!(shown(&merged), ["a/", "a/b = new"], "{path}");
    }
    for path in [".wh.a", "./.wh.a", "/.wh.a", "//.wh.a", "x/../.wh.a"] {
        assert_eq!(shown(&merge(&[&["a/", "a/b = old"], &[path]])), Vec::<String>::new(), "{path}");
    }
    assert_eq!(
        shown(&merge(&[&["a = 1", "b => ./a"], &["c => /a"], &["d => x//..//a"]])),
        ["a = 1 *4", "b = 1 *4", "c = 1 *4", "d = 1 *4"]
    );
}

/// GNU tar reads a regular file with a slash at its end as a folder, as tars from before ustar have
/// them; Go's `archive/tar`, and with it umoci and containerd, only with the typeflag of that time.
#[test]
fn a_regular_file_with_a_slash_at_its_end_is_a_folder() {
    let mut made = Made::new(&["x = 1"]);
    made.entries.push(entry(b"old/", EntryKind::File));
    let merged = Merged::new(vec![made.part()]).unwrap();
    assert_eq!(shown(&merged), ["old/", "x = 1"]);
}

/// As umoci and containerd: `..` is taken away before anything is looked up, and stops at the root.
#[test]
fn names_that_lead_out_stop_at_the_root() {
    let upper = ["../../a = 1", "/../b = 2", "d/../../c = 3", "..", "e => ../../../a"];
    let merged = merge(&[&["d/"], &upper]);
    assert_eq!(shown(&merged), ["a = 1 *2", "b = 2", "c = 3", "d/", "e = 1 *2"]);
}

#[test]
fn parents_that_are_symbolic_links_resolve_inside_the_image() {
    let lower = [
        "usr/",
        "usr/lib/",
        "lib -> usr/lib",
        "abs -> /usr",
        "up -> ../../../usr/lib",
        "d/",
        "d/l -> ../lib",
    ];
    let upper = ["lib/a = 1", "abs/b = 2", "up/c = 3", "d/l/d = 4", "abs/lib/e = 5"];
    let merged = merge(&[&lower, &upper]);
    let all = shown(&merged);
    for line in ["usr/b = 2", "usr/lib/a = 1", "usr/lib/c = 3", "usr/lib/d = 4", "usr/lib/e = 5"] {
        assert!(all.iter().any(|other| other == line), "{line} is not in {all:?}");
    }
    assert_eq!(all.len(), lower.len() + upper.len());
    // A folder entry too: the link stays.
    let merged = merge(&[&lower, &["lib/new/ @ 700"]]);
    assert_eq!(attr(&merged, "usr/lib/new").mode, 0o700);
}

/// As umoci (securejoin) and containerd: what a dangling link names is made, inside.
#[test]
fn a_dangling_link_on_the_way_is_made_good() {
    let merged = merge(&[&["l -> nowhere/else", "up -> ../../out"], &["l/a = 1", "up/b = 2"]]);
    assert_eq!(
        shown(&merged),
        [
            "l -> nowhere/else",
            "nowhere/",
            "nowhere/else/",
            "nowhere/else/a = 1",
            "out/",
            "out/b = 2",
            "up -> ../../out"
        ]
    );
}

#[test]
fn whiteouts_behind_a_symbolic_link_hide_below_and_spare_their_layer() {
    let lower =
        ["usr/", "usr/lib/", "usr/lib/a = 1", "usr/lib/b/", "usr/lib/b/c = 2", "lib -> usr/lib"];
    let merged = merge(&[&lower, &["lib/.wh.a"]]);
    assert_eq!(
        shown(&merged),
        ["lib -> usr/lib", "usr/", "usr/lib/", "usr/lib/b/", "usr/lib/b/c = 2"]
    );
    for upper in [["lib/.wh..wh..opq", "lib/b/d = 3"], ["usr/lib/b/d = 3", "lib/.wh..wh..opq"]] {
        let merged = merge(&[&lower, &upper]);
        assert_eq!(
            shown(&merged),
            ["lib -> usr/lib", "usr/", "usr/lib/", "usr/lib/b/", "usr/lib/b/d = 3"]
        );
    }
    // It does not lead out either.
    let out = merge(&[&["a = 1", "out -> ../../.."], &["out/.wh.a"]]);
    assert_eq!(shown(&out), ["out -> ../../.."]);
}

/// The hazard is the upper's, which escapes them when it copies a file up.
#[test]
fn overlayfs_marks_and_its_whiteouts_are_data() {
    let mut made = Made::new(&["d/", "d/zero c 0:0", "d/a = 1"]);
    made.entries[0].xattrs = vec![
        (b"trusted.overlay.opaque".to_vec(), b"y".to_vec()),
        (b"user.overlay.opaque".to_vec(), b"y".to_vec()),
    ];
    let merged = Merged::new(vec![part(&["d/", "d/b = 2", "d/zero = 3"]), made.part()]).unwrap();
    assert_eq!(shown(&merged), ["d/", "d/a = 1", "d/b = 2", "d/zero c 0:0"]);
    let names = merged.xattr_names(at(&merged, "d")).unwrap();
    assert_eq!(names, [b"trusted.overlay.opaque".as_slice(), b"user.overlay.opaque"]);
}

#[test]
fn a_file_keeps_nothing_of_the_one_it_replaces() {
    let mut lower = Made::new(&["a = old @ 4755 1 2 3"]);
    lower.entries[0].xattrs = vec![(b"user.old".to_vec(), b"1".to_vec())];
    let merged = Merged::new(vec![lower.part(), part(&["a = new @ 600 5 6 7"])]).unwrap();
    let attr = attr(&merged, "a");
    assert_eq!((attr.mode, attr.uid, attr.gid, attr.modified.seconds), (0o600, 5, 6, 7));
    assert_eq!(merged.xattr_names(attr.node).unwrap(), Vec::<Vec<u8>>::new());
}
