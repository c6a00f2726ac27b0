//! Hard links.

use super::*;

/// containerd and umoci make links as they come: to what is there at that moment.
#[test]
fn a_link_to_a_lower_layer_is_to_what_is_there_then() {
    let merged = merge(&[&["a = 1 @ 640 5 6 7"], &["b => a"]]);
    assert_eq!(shown(&merged), ["a = 1 *2", "b = 1 *2"]);
    assert_eq!(at(&merged, "a"), at(&merged, "b"));
    // The link's own header says 0 bytes and 0644: the file's own are taken, as by tar and umoci.
    // containerd gives the file the header's owner, mode and time.
    assert_eq!((attr(&merged, "b").mode, attr(&merged, "b").uid), (0o640, 5));
    let later: [&[&str]; 3] = [&["a = new"], &[".wh.a"], &["a/"]];
    let after: [&[&str]; 3] = [&["a = new", "b = 1"], &["b = 1"], &["a/", "b = 1"]];
    for (later, after) in later.iter().zip(after) {
        assert_eq!(shown(&merge(&[&["a = 1"], &["b => a"], later])), after);
    }
    // In the same layer: before the overwrite the old one, behind it the new one.
    assert_eq!(shown(&merge(&[&["a = 1"], &["b => a", "a = 2"]])), ["a = 2", "b = 1"]);
    assert_eq!(shown(&merge(&[&["a = 1"], &["a = 2", "b => a"]])), ["a = 2 *2", "b = 2 *2"]);
}

/// Whatever the order: the whiteout takes the name, the link is to the file below. umoci and
/// containerd do so if the link comes first, and fail if the whiteout does.
#[test]
fn a_link_to_what_its_layer_hides_is_to_the_file_below() {
    for upper in [["b => a", ".wh.a"], [".wh.a", "b => a"]] {
        let merged = merge(&[&["a = 1"], &upper]);
        assert_eq!(shown(&merged), ["b = 1"]);
        assert_eq!((merged.wasted(), merged.layers()[1].hidden_bytes), (0, 0));
    }
    // So it is if the layer has replaced it by then.
    let replaced = merge(&[&["d/", "d/a = 1"], &["d = 2", "b => d/a"]]);
    assert_eq!(shown(&replaced), ["b = 1", "d = 2"]);
    assert_eq!(
        shown(&merge(&[&["d/", "d/a = 1"], &["d/.wh..wh..opq", "d/b => d/a"]])),
        ["d/", "d/b = 1"]
    );
}

#[test]
fn links_to_symbolic_links_devices_and_pipes() {
    let merged = merge(&[&["l -> gone", "c c 1:3", "p |"], &["l2 => l", "c2 => c", "p2 => p"]]);
    assert_eq!(
        shown(&merged),
        ["c c 1:3 *2", "c2 c 1:3 *2", "l -> gone *2", "l2 -> gone *2", "p | *2", "p2 | *2"]
    );
}

/// GNU tar: it is the same file already. umoci and containerd remove it first, and fail.
#[test]
fn a_link_to_itself_changes_nothing() {
    assert_eq!(shown(&merge(&[&["a = 1"], &["a => a"]])), ["a = 1"]);
    assert_eq!(
        shown(&merge(&[&["a = 1", "b => a"], &["b => a", "a => b"]])),
        ["a = 1 *2", "b = 1 *2"]
    );
    assert_eq!(shown(&merge(&[&["a = 1"], &[".wh.a", "a => a"]])), ["a = 1"]);
}

#[test]
fn a_link_replaces_what_has_its_name() {
    let lower = ["a = 1", "f = 2", "d/", "d/x = 3", "l -> a"];
    let merged = merge(&[&lower, &["f => a", "d => a", "l => a"]]);
    assert_eq!(shown(&merged), ["a = 1 *4", "d = 1 *4", "f = 1 *4", "l = 1 *4"]);
    // Even the folder that its target lies in, which umoci and containerd remove first, and fail.
    assert_eq!(shown(&merge(&[&lower, &["d => d/x"]])), ["a = 1", "d = 3", "f = 2", "l -> a"]);
}

/// tar wants the target first, and so do umoci and containerd. Nothing in the specification does.
#[test]
fn a_target_may_come_later_in_the_layer() {
    assert_eq!(shown(&merge(&[&["b => a", "a = 1"]])), ["a = 1 *2", "b = 1 *2"]);
    let chain = ["d => c", "c => b", "b => a", "a = 1"];
    assert_eq!(shown(&merge(&[&chain])), ["a = 1 *4", "b = 1 *4", "c = 1 *4", "d = 1 *4"]);
    let mixed = ["c => b", "b => a", "e => c", "a = 1", "d => b"];
    let all = ["a = 1 *5", "b = 1 *5", "c = 1 *5", "d = 1 *5", "e = 1 *5"];
    assert_eq!(shown(&merge(&[&mixed])), all);
    // What replaced the link before its target came stays.
    assert_eq!(shown(&merge(&[&["b => a", "b = 2", "a = 1"]])), ["a = 1", "b = 2"]);
    assert_eq!(shown(&merge(&[&["b => gone", "b = 2"]])), ["b = 2"]);
    // A later one in the same layer comes after one below.
    assert_eq!(shown(&merge(&[&["a = 1"], &["b => a", ".wh.a", "a = 2"]])), ["a = 2", "b = 1"]);
}

#[test]
fn a_long_chain_of_links_backwards() {
    let count = 20_000;
    let mut made = Made::new(&[]);
    for number in (1..=count).rev() {
        let target = (number - 1).to_string().into_bytes();
        made.entries.push(entry(number.to_string().as_bytes(), EntryKind::HardLink(target)));
    }
    made.entries.extend(Made::new(&["0 |"]).entries);
    let merged = Merged::new(vec![made.part()]).unwrap();
    assert_eq!(attr(&merged, "0").links, count + 1);
    assert_eq!(at(&merged, "0"), at(&merged, &count.to_string()));
}

#[test]
fn targets_are_found_through_symbolic_links_on_the_way() {
    let lower = ["usr/", "usr/lib/", "usr/lib/a = 1", "lib -> /usr/lib"];
    let merged = merge(&[&lower, &["b => lib/a", "lib/c => lib/a"]]);
    assert_eq!(attr(&merged, "usr/lib/c").links, 3);
    assert_eq!(at(&merged, "b"), at(&merged, "usr/lib/a"));
}

#[test]
fn counts_of_links_are_those_of_the_names_that_are_left() {
    let merged = merge(&[&["a = 1", "b => a", "c => a"], &[".wh.b", "d/", "d/e => c"], &[".wh.a"]]);
    assert_eq!(shown(&merged), ["c = 1 *2", "d/", "d/e = 1 *2"]);
    let merged = merge(&[&["d/", "d/a = 1", "b => d/a"], &[".wh.d"]]);
    assert_eq!(shown(&merged), ["b = 1"]);
    let folders = merge(&[&["d/", "d/a/", "d/b/", "d/c = 1"], &["d/.wh.a"]]);
    assert_eq!((attr(&folders, "d").links, attr(&folders, "").links), (3, 3));
}
