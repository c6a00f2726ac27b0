//! What the writer writes, the reader reads.

use std::io::{BufReader, Cursor};

use proptest::collection::vec;
use proptest::prelude::*;

use crate::oci::tar::{Entry, EntryKind, Member, MemberKind, Reader, Writer};
use crate::tree::{Device, Time};

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![8 => b'a'..=b'z', 1 => Just(b'/'), 1 => 1_u8..];
    (vec(byte, 0..300), b'a'..=b'z').prop_map(|(mut name, last)| {
        // No slash at the end: that is for folders.
        name.push(last);
        name
    })
}

fn kind() -> impl Strategy<Value = EntryKind> {
    // Seven octal digits.
    let device = (0_u32..0o10_000_000, 0_u32..0o10_000_000)
        .prop_map(|(major, minor)| Device { major, minor });
    prop_oneof![
        4 => Just(EntryKind::File),
        1 => name().prop_map(EntryKind::HardLink),
        1 => name().prop_map(EntryKind::Symlink),
        1 => Just(EntryKind::Folder),
        1 => Just(EntryKind::Fifo),
        1 => device.clone().prop_map(EntryKind::CharDevice),
        1 => device.prop_map(EntryKind::BlockDevice),
    ]
}

fn member() -> impl Strategy<Value = (Entry, Vec<u8>)> {
    let xattr = (vec(1_u8.., 1..40), vec(any::<u8>(), 0..200));
    let time = (any::<i32>(), -4_i64..4, 0_u32..1_000_000_000, any::<bool>()).prop_map(
        |(small, large, nanos, whole)| Time {
            seconds: i64::from(small) + large * (1 << 33),
            nanos: if whole { 0 } else { nanos },
        },
    );
    let id = prop_oneof![0_u32..2000, any::<u32>()];
    (
        (name(), kind(), 0_u16..0o10000, id.clone(), id, time),
        vec(xattr, 0..4),
        vec(any::<u8>(), 0..1500),
    )
        .prop_map(|((mut path, kind, mode, uid, gid, modified), mut xattrs, contents)| {
            let contents = if kind == EntryKind::File { contents } else { vec![] };
            if kind == EntryKind::Folder {
                path.push(b'/');
            }
            xattrs.sort();
            xattrs.dedup_by(|(a, _), (b, _)| a == b);
            let size = contents.len() as u64;
            let entry = Entry { path, kind, mode, uid, gid, modified, xattrs, size, runs: vec![] };
            (entry, contents)
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn what_is_written_is_read(members in vec(member(), 0..8), capacity in 1_usize..2000) {
        let mut writer = Writer::new(Vec::new());
        for (entry, contents) in &members {
            let kind = match &entry.kind {
                EntryKind::File => MemberKind::File(entry.size),
                EntryKind::HardLink(target) => MemberKind::HardLink(target),
                EntryKind::Symlink(target) => MemberKind::Symlink(target),
                EntryKind::Folder => MemberKind::Folder,
                EntryKind::Fifo => MemberKind::Fifo,
                EntryKind::CharDevice(device) => MemberKind::CharDevice(*device),
                EntryKind::BlockDevice(device) => MemberKind::BlockDevice(*device),
            };
            let path = entry.path.strip_suffix(b"/").unwrap_or(&entry.path);
            let Entry { mode, uid, gid, modified, xattrs, .. } = entry;
            let (mode, uid, gid, modified) = (*mode, *uid, *gid, *modified);
            writer.begin(&Member { path, kind, mode, uid, gid, modified, xattrs }).unwrap();
            writer.write(contents).unwrap();
        }
        let bytes = writer.finish().unwrap();
        let mut reader = Reader::new(BufReader::with_capacity(capacity, Cursor::new(&bytes)));
        for (expected, contents) in &members {
            let mut entry = reader.next().unwrap().unwrap();
            let mut stored = vec![];
            if capacity % 2 == 0 {
                reader.contents(&mut |chunk| { stored.extend_from_slice(chunk); Ok(()) }).unwrap();
                prop_assert_eq!(&stored, contents);
            }
            for run in std::mem::take(&mut entry.runs) {
                prop_assert_eq!((run.at, run.len), (0, expected.size));
                prop_assert_eq!(&bytes[run.place as usize..][..run.len as usize], &contents[..]);
            }
            prop_assert_eq!(&entry, expected);
        }
        prop_assert_eq!(reader.next().unwrap(), None);
    }
}
