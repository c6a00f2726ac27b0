use super::*;

fn partition(number: u32, name: Option<&str>, type_id: &str, kind: &str) -> Volume {
    Volume {
        number,
        start: 0,
        len: 1,
        kind: kind.into(),
        type_id: type_id.into(),
        name: name.map(str::to_owned),
        uuid: None,
        active: false,
    }
}

fn snapshot(id: &str, name: &str) -> SnapshotInfo {
    let (id, name) = (id.to_owned(), name.to_owned());
    SnapshotInfo { id, name, created: (0, 0), virtual_size: 0, vm_state_size: 0 }
}

#[test]
fn a_volume_is_called_by_its_name_its_label_or_its_type() {
    let name = |number, name, label| volume(&partition(number, name, "0x83", "Linux"), label);
    assert_eq!(name(1, Some("EFI"), Some("label")), "1-EFI");
    assert_eq!(name(2, None, Some("label")), "2-label");
    assert_eq!(name(2, Some("Linux"), Some("label")), "2-label");
    assert_eq!(name(3, Some(" "), None), "3-linux");
    assert_eq!(volume(&partition(4, None, "0x7e", "type 0x7e"), None), "4");
    assert_eq!(name(5, Some("../a/b\n\u{1b}"), None), "5-.._a_b__");
    assert_eq!(name(6, Some(&"ä".repeat(200)), None), format!("6-{}", "ä".repeat(50)));
}

#[test]
fn the_filesystem_of_a_whole_disk_is_called_by_its_label() {
    assert_eq!(whole_disk(Some("data"), "ext4"), "data");
    for label in [None, Some(""), Some(".."), Some(" . ")] {
        assert_eq!(whole_disk(label, "ext4"), "ext4");
    }
}

#[test]
fn snapshots_have_different_names() {
    let names = |list: &[(&str, &str)]| {
        let list: Vec<_> = list.iter().map(|(id, name)| snapshot(id, name)).collect();
        snapshots(&list)
    };
    assert_eq!(names(&[("1", "before"), ("2", "after")]), ["before", "after"]);
    assert_eq!(names(&[("1", "a"), ("2", "a"), ("3", "b")]), ["a (1)", "a (2)", "b"]);
    assert_eq!(names(&[("1", ""), ("2", ".."), ("3", "a/b")]), ["1", "2", "a_b"]);
    // What no honest tool writes.
    assert_eq!(
        names(&[("1", "a"), ("1", "a"), ("x", "a (1)")]),
        ["a (1)", "a (1) [2]", "a (1) [3]"]
    );
    assert_eq!(names(&[("", ""), ("", "")]), [" ()", " () [2]"]);
    let long = "x".repeat(5000);
    let all = names(&[(&long, &long), (&long, &long)]);
    assert!(all[0] != all[1] && all.iter().all(|name| name.len() < 255));
}

#[test]
fn messages_stay_on_their_line() {
    assert_eq!(printable(b"a\nb\x1b[2J\xff"), "a\\nb\\u{1b}[2J\u{fffd}");
}
