use super::*;
use crate::block::Cache;
use crate::policy::Policy;
use crate::tree::tests::{at, contract, names};

#[test]
fn views_are_called_by_name() {
    for view in View::ALL {
        assert_eq!(view.to_string().parse::<View>().unwrap(), view);
    }
    let error = "file".parse::<View>().unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    assert_eq!(
        error.to_string(),
        "no view \"file\": there are auto, files, volumes, disk, snapshots, layers"
    );
}

fn show(bytes: &[u8], of: View) -> Result<Shown> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    std::fs::write(&path, bytes).unwrap();
    let opener = Opener::new(Policy::default(), Cache::new(Cache::MIN_CAPACITY));
    view(&Arc::new(opener), &Reference { path, snapshot: None }, of, None)
}

/// A disk of 4 MiB with two partitions.
fn partitioned() -> Vec<u8> {
    let mut bytes = vec![0; 4 << 20];
    for (slot, (first, sectors)) in [(2048u32, 2048u32), (4096, 2048)].into_iter().enumerate() {
        let entry = 446 + slot * 16;
        bytes[entry + 4] = 0x83;
        bytes[entry + 8..entry + 12].copy_from_slice(&first.to_le_bytes());
        bytes[entry + 12..entry + 16].copy_from_slice(&sectors.to_le_bytes());
    }
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    bytes[(1 << 20) + 5] = 9;
    bytes
}

#[test]
fn the_disk_view_has_the_disk_and_its_volumes() {
    for of in [View::Disk, View::Auto] {
        let shown = show(&partitioned(), of).unwrap();
        let tree = &*shown.tree.files();
        assert_eq!(shown.view, View::Disk);
        assert_eq!(names(tree, "/"), ["disk.img", "p1.img", "p2.img"]);
        assert_eq!(tree.attr(at(tree, "p2.img")).unwrap().size, 1 << 20);
        let mut byte = [0];
        tree.read_at(at(tree, "p1.img"), 5, &mut byte).unwrap();
        assert_eq!(byte, [9]);
        assert!(tree.whole_file(at(tree, "disk.img")).is_some());
        contract::check(tree);
        let warned = shown.warnings.iter().any(|line| line.contains("showing the disk"));
        assert_eq!(warned, of == View::Auto, "{:?}", shown.warnings);
    }
}

#[test]
fn a_damaged_table_still_has_a_disk() {
    let mut bytes = partitioned();
    bytes[446 + 4] = 0xee;
    for of in [View::Disk, View::Auto] {
        let shown = show(&bytes, of).unwrap();
        assert_eq!(names(&*shown.tree.files(), "/"), ["disk.img"]);
        assert!(shown.warnings[0].contains("no GPT header at LBA 1"), "{:?}", shown.warnings);
    }
    for of in [View::Files, View::Volumes] {
        assert_eq!(show(&bytes, of).unwrap_err().kind(), Kind::Corrupt);
    }
}

#[test]
fn a_view_of_what_is_not_there_is_an_error_with_a_hint() {
    let refused = |bytes: &[u8], of| {
        let error = show(bytes, of).unwrap_err();
        (error.kind(), error.to_string(), error.hint().unwrap_or_default().to_owned())
    };
    for of in [View::Files, View::Volumes] {
        let (kind, message, hint) = refused(&partitioned(), of);
        assert_eq!(kind, Kind::NotFound);
        assert!(message.ends_with("disk: no filesystem and no partition with one on this disk"));
        assert!(hint.contains("--view disk"));
    }
    let mut xfs = vec![0; 1 << 20];
    xfs[..4].copy_from_slice(b"XFSB");
    let (kind, message, _) = refused(&xfs, View::Files);
    assert_eq!(kind, Kind::Unsupported);
    assert!(message.contains("no filesystem that can be read: the disk holds xfs"), "{message}");

    let (kind, message, hint) = refused(&partitioned(), View::Snapshots);
    assert_eq!(kind, Kind::NotFound);
    assert!(message.ends_with("the image has no internal snapshots"), "{message}");
    assert!(hint.contains("--view files"));
}
