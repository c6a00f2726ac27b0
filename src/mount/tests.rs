use std::time::{Duration, UNIX_EPOCH};

use fuser::INodeNo;

use super::inode::{Numbering, file_attr};
use super::*;
use crate::tree::{Attr, Device, FileKind, NodeId, Time};

fn attr(kind: FileKind) -> Attr {
    let time = Time::default();
    Attr {
        node: NodeId(5),
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        links: 1,
        size: 0,
        blocks: 0,
        accessed: time,
        modified: time,
        changed: time,
        created: None,
    }
}

#[test]
fn every_node_has_its_own_number_whatever_the_root_is() {
    for root in [0, 1, 2, 12] {
        let numbering = Numbering::new(NodeId(root));
        assert_eq!(numbering.ino(NodeId(root)), INodeNo(1));
        let mut seen = std::collections::HashSet::new();
        for node in (0..20).chain([(1 << 56) - 1]).map(NodeId) {
            let ino = numbering.ino(node);
            assert_ne!(ino.0, 0);
            assert!(seen.insert(ino), "{node:?} of root {root}");
            assert_eq!(numbering.node(ino), node);
        }
        let shown: std::collections::HashSet<_> =
            (0..20).map(|node| numbering.shown(NodeId(node))).collect();
        assert_eq!(shown.len(), 20);
        assert!(!shown.contains(&INodeNo(0)));
    }
    assert_eq!(Numbering::new(NodeId(2)).shown(NodeId(2)), INodeNo(2));
}

#[test]
fn device_numbers_are_encoded_as_the_kernel_does() {
    let device = FileKind::BlockDevice(Device { major: 259, minor: 0x12345 });
    let rdev = file_attr(INodeNo(5), &attr(device)).rdev;
    // new_encode_dev() of Linux.
    assert_eq!(rdev, 0x45 | 259 << 8 | 0x12300 << 12);
}

#[test]
fn times_keep_their_nanoseconds_before_1970_and_far_after() {
    let mut attr = attr(FileKind::Regular);
    attr.accessed = Time { seconds: -2, nanos: 800_000_000 };
    attr.modified = Time { seconds: 15_032_385_535, nanos: 999_999_999 };
    attr.changed = Time { seconds: i64::MIN, nanos: u32::MAX };
    let shown = file_attr(INodeNo(5), &attr);
    assert_eq!(shown.atime, UNIX_EPOCH - Duration::from_millis(1200));
    assert_eq!(shown.mtime, UNIX_EPOCH + Duration::new(15_032_385_535, 999_999_999));
}

#[test]
fn what_is_no_mount_of_ours_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let error = unmount(dir.path(), Unmount::default()).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    let error = unmount(Path::new("/proc"), Unmount::default()).unwrap_err();
    assert_eq!(error.to_string(), "/proc: is a mount of type proc, not one of strata");
}
