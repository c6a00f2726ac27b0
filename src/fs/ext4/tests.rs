//! Small images made by hand, with one thing wrong in each.

mod image;

use super::inode::flag;
use super::*;
use crate::block::MemorySource;
use crate::tree::{FileTree, NodeId};
use image::*;

pub(super) use image::Image;

#[track_caller]
fn cause<T>(result: Result<T>) -> Cause {
    let error = result.err().expect("an error");
    let line = error.to_string();
    assert!(!line.contains('\n') && !line.is_empty());
    error.cause::<Cause>().unwrap_or_else(|| panic!("{error:?}")).clone()
}

/// Why an image with this change is not opened.
#[track_caller]
fn refused(change: impl FnOnce(&mut Image)) -> Cause {
    let mut image = Image::new();
    change(&mut image);
    cause(image.open())
}

/// Why `ask` fails for an image with this change, which opens.
#[track_caller]
fn failing<T>(change: impl FnOnce(&mut Image), ask: impl FnOnce(&Ext4) -> Result<T>) -> Cause {
    let mut image = Image::new();
    change(&mut image);
    cause(ask(&image.open().unwrap().0))
}

fn id(number: u32) -> NodeId {
    NodeId(u64::from(number))
}

fn names(ext4: &Ext4, dir: u32) -> (Vec<Vec<u8>>, Result<()>) {
    let mut names = Vec::new();
    let listed = ext4.read_dir(id(dir), 0, &mut |entry| {
        names.push(entry.name.to_vec());
        true
    });
    (names, listed)
}

fn list(ext4: &Ext4) -> Result<()> {
    names(ext4, FOLDER).1
}

fn read(ext4: &Ext4) -> Result<usize> {
    ext4.read_at(id(FILE), 0, &mut [0; 2 * BLOCK])
}

#[test]
fn the_image_itself_is_sound() {
    let (ext4, warnings) = Image::new().open().unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    let (listed, result) = names(&ext4, 2);
    result.unwrap();
    assert_eq!(listed, [&b"file"[..], b"folder", b"link"]);
    assert_eq!(ext4.lookup(id(2), b"file").unwrap(), Some(id(FILE)));
    assert_eq!(ext4.lookup(id(2), b"no").unwrap(), None);
    assert_eq!(ext4.read_link(id(LINK)).unwrap(), b"target");
    assert_eq!(read(&ext4).unwrap(), 2 * BLOCK);
    assert_eq!(ext4.lookup(id(FILE), b"x").unwrap_err().kind(), Kind::NotADirectory);
    assert_eq!(ext4.read_at(id(2), 0, &mut []).unwrap_err().kind(), Kind::IsADirectory);
}

#[test]
fn superblocks_that_make_no_sense() {
    assert_eq!(refused(|image| image.put16(SUPERBLOCK + 0x38, 0)), Cause::NoSuperblock);
    for log in [7, 31, 377_579_286, u32::MAX] {
        assert_eq!(refused(|image| image.superblock32(0x18, log)), Cause::BlockSize(log));
    }
    for size in [0, 1, 127, 129, 2048, 65_535] {
        assert_eq!(refused(|image| image.put16(SUPERBLOCK + 0x58, size)), Cause::InodeSize(size));
    }
    for count in [0, 7, 8193, u32::MAX] {
        let cause = refused(|image| image.superblock32(0x28, count));
        assert_eq!(cause, Cause::InodesPerGroup(count));
    }
    for count in [0, 8193, u32::MAX] {
        let cause = refused(|image| image.superblock32(0x20, count));
        assert_eq!(cause, Cause::BlocksPerGroup(count));
    }
    for first in [0, 128, u32::MAX] {
        let cause = refused(|image| image.superblock32(0x14, first));
        assert_eq!(cause, Cause::FirstDataBlock { first, blocks: BLOCKS as u64 });
    }
    for inodes in [0, 10, 65, u32::MAX] {
        let cause = refused(|image| image.superblock32(0, inodes));
        assert_eq!(cause, Cause::InodeCount { inodes, groups: 1, per_group: INODES as u32 });
    }
    assert_eq!(refused(|image| image.superblock32(0x4c, 2)), Cause::Revision(2));
    for size in [0, 32, 63, 65, 2048, u16::MAX] {
        let cause = refused(|image| {
            image.superblock32(0x60, incompat::BIT64);
            image.put16(SUPERBLOCK + 0xfe, size);
        });
        assert_eq!(cause, Cause::DescriptorSize(size));
    }
    let cause = refused(|image| {
        image.superblock32(0x60, incompat::BIT64);
        image.superblock32(0x150, u32::MAX);
    });
    assert_eq!(cause, Cause::BlockCount(u64::from(u32::MAX) << 32 | BLOCKS as u64));
    for log in [21, u32::MAX] {
        let cause = refused(|image| {
            image.superblock32(0x64, ro_compat::BIGALLOC);
            image.superblock32(0x1c, log);
        });
        assert_eq!(cause, Cause::ClusterSize(log));
    }
}

#[test]
fn features_are_refused_by_name() {
    let feature = |bits| refused(|image| image.superblock32(0x60, bits));
    assert_eq!(feature(0x1), Cause::Feature("compression".into()));
    assert_eq!(feature(0x1002), Cause::Feature("dirdata".into()));
    assert_eq!(feature(0x4000_0001), Cause::Feature("compression, I0x40000000".into()));
    assert_eq!(feature(incompat::JOURNAL_DEV), Cause::JournalDevice);
    let mut image = Image::new();
    image.superblock32(0x60, 0x1);
    let error = image.open().unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert_eq!(error.to_string(), "superblock: feature compression (not supported)");
    // What only writers must know is listed, and no reason to refuse.
    image.superblock32(0x60, incompat::FILETYPE);
    image.superblock32(0x64, 0x8000_0000);
    let (ext4, warnings) = image.open().unwrap();
    assert!(ext4.info(warnings).features.contains(&"R0x80000000".to_owned()));
}

#[test]
fn checksums_that_do_not_match() {
    let checked = |image: &mut Image| {
        image.superblock32(0x64, ro_compat::METADATA_CSUM);
        image.0[SUPERBLOCK + 0x175] = 1;
    };
    let sealed = |image: &mut Image| {
        checked(image);
        let crc = checksum::crc32c(!0, &image.0[SUPERBLOCK..][..1020]);
        image.superblock32(0x3fc, crc);
        crc
    };
    let cause = refused(|image| {
        checked(image);
        image.0[SUPERBLOCK + 0x175] = 2;
    });
    assert_eq!(cause, Cause::ChecksumType(2));
    let cause = refused(|image| {
        let crc = sealed(image);
        image.superblock32(0x3fc, !crc);
    });
    assert!(matches!(cause, Cause::SuperblockChecksum { stored, computed } if stored == !computed));
    let cause = refused(|image| _ = sealed(image));
    assert!(matches!(cause, Cause::DescriptorChecksum { group: 0, stored: 0, .. }), "{cause}");
    let cause = refused(|image| image.superblock32(0x64, ro_compat::GDT_CSUM));
    assert!(matches!(cause, Cause::DescriptorChecksum { group: 0, stored: 0, .. }), "{cause}");
    let cause = refused(|image| {
        sealed(image);
        let seed = checksum::crc32c(!0, &[0; 16]);
        let crc = checksum::crc32c(checksum::crc32c(seed, &[0; 4]), &image.0[DESCRIPTOR..][..30]);
        let crc = checksum::crc32c(crc, &[0; 2]);
        image.put16(DESCRIPTOR + 30, crc as u16);
    });
    assert!(matches!(cause, Cause::InodeChecksum { inode: 2, stored: 0, .. }), "{cause}");
}

#[test]
fn groups_and_inodes_that_cannot_be() {
    for block in [0, 1, 121, 128, u32::MAX] {
        let cause = refused(|image| image.put32(DESCRIPTOR + 8, block));
        assert_eq!(cause, Cause::InodeTable { group: 0, block: u64::from(block) });
    }
    for number in [0, 1, 3, 10, 65, u64::MAX] {
        let cause = failing(|_| {}, |ext4| ext4.attr(NodeId(number)));
        assert_eq!(cause, Cause::InodeNumber(number));
    }
    let attr = |ext4: &Ext4| ext4.attr(id(FREE));
    assert_eq!(failing(|_| {}, attr), Cause::InodeFree(FREE));
    let cause = failing(|image| image.inode(FREE, 0o100_644, 0, 0, 0), attr);
    assert_eq!(cause, Cause::InodeFree(FREE));
    let cause = failing(|image| image.inode(FREE, 0o110_644, 1, 0, 0), attr);
    assert_eq!(cause, Cause::Mode { inode: FREE, mode: 0o110_644 });
    let cause = failing(
        |image| {
            image.inode(FREE, 0o100_644, 1, 0, 0);
            image.put32(Image::inode_at(FREE) + 0x6c, u32::MAX);
        },
        attr,
    );
    assert_eq!(cause, Cause::FileSize { inode: FREE, size: 0xffff_ffff_0000_0000 });
    for size in [1, 2, 130, u16::MAX] {
        let cause = refused(|image| {
            image.put16(SUPERBLOCK + 0x58, 256);
            let from = Image::inode_at(2);
            let root = image.0[from..from + 128].to_vec();
            image.put(INODE_TABLE * BLOCK + 256, &root);
            image.put16(INODE_TABLE * BLOCK + 256 + 128, size);
        });
        assert_eq!(cause, Cause::ExtraSize { inode: 2, size });
    }
    let cause = refused(|image| image.inode(2, 0o100_755, 2, 1024, 14));
    assert_eq!(cause, Cause::Mode { inode: 2, mode: 0o755 });
}

#[test]
fn extent_trees_that_cannot_be() {
    let inode = FILE;
    let fails = |root: Vec<Vec<u8>>| failing(|image| image.extents(FILE, &root.concat()), read);
    assert_eq!(fails(vec![vec![0; 12]]), Cause::ExtentMagic { inode, magic: 0 });
    let cause = fails(vec![node(1, 4, 6), index(0, SPARE as u32)]);
    assert_eq!(cause, Cause::ExtentDepth { inode, depth: 6, expected: 5 });
    for (entries, max, depth) in [(5, 4, 0), (1, 5, 0), (0, 4, 1), (u16::MAX, u16::MAX, 0)] {
        let cause = fails(vec![node(entries, max, depth)]);
        assert_eq!(cause, Cause::ExtentEntries { inode, entries, max });
    }
    for (extents, block) in [
        (vec![extent(0, 0, 30)], 0),
        (vec![extent(0, 2, 30), extent(1, 1, 40)], 1),
        (vec![extent(5, 2, 30), extent(1, 1, 40)], 1),
        (vec![extent(u32::MAX, 2, 30)], u32::MAX),
    ] {
        let root = [vec![node(extents.len() as u16, 4, 0)], extents].concat();
        assert_eq!(fails(root), Cause::ExtentOrder { inode, block });
    }
    for (physical, len) in [(0, 1), (1, 1), (127, 2), (u32::MAX, 1)] {
        let cause = fails(vec![node(1, 4, 0), extent(0, len, physical)]);
        let (block, len) = (u64::from(physical), u64::from(len));
        assert_eq!(cause, Cause::BlockRange { inode, block, len });
    }
    let cause = fails(vec![node(1, 4, 1), index(0, 999)]);
    assert_eq!(cause, Cause::BlockRange { inode, block: 999, len: 1 });
    let cause = fails(vec![node(2, 4, 1), index(0, 40), index(0, 41)]);
    assert_eq!(cause, Cause::ExtentOrder { inode, block: 0 });
}

#[test]
fn extent_trees_that_lead_back_to_themselves() {
    let cause = failing(
        |image| {
            image.extents(FILE, &[node(1, 4, 3), index(0, SPARE as u32)].concat());
            let again = [node(1, 84, 2), index(0, SPARE as u32)].concat();
            image.put(SPARE * BLOCK, &again);
        },
        read,
    );
    assert_eq!(cause, Cause::ExtentDepth { inode: FILE, depth: 2, expected: 1 });
    // A leaf may not reach out of what its index entry gave it.
    let cause = failing(
        |image| {
            image.extents(FILE, &[node(2, 4, 1), index(0, 40), index(1, 41)].concat());
            image.put(SPARE * BLOCK, &[node(1, 84, 0), extent(0, 2, 30)].concat());
        },
        read,
    );
    assert_eq!(cause, Cause::ExtentOrder { inode: FILE, block: 0 });
}

#[test]
fn damage_in_a_tree_is_damage_of_its_part_only() {
    let mut image = Image::new();
    image.extents(FILE, &[node(2, 4, 1), index(0, 40), index(1, 41)].concat());
    image.put(SPARE * BLOCK, &[node(1, 84, 0), extent(0, 1, FILE_BLOCK as u32)].concat());
    let (ext4, _) = image.open().unwrap();
    let mut bytes = [0; BLOCK];
    assert_eq!(ext4.read_at(id(FILE), 0, &mut bytes).unwrap(), BLOCK);
    assert_eq!(bytes, [0xf1; BLOCK]);
    let cause = cause(ext4.read_at(id(FILE), BLOCK as u64, &mut bytes));
    assert_eq!(cause, Cause::ExtentMagic { inode: FILE, magic: 0 });
}

#[test]
fn block_maps_that_lead_outside_or_back() {
    for block in [1, 128, u32::MAX] {
        let cause = failing(|image| image.put32(Image::inode_at(FILE) + 0x28, block), read);
        assert_eq!(cause, Cause::BlockRange { inode: FILE, block: u64::from(block), len: 1 });
    }
    // Three levels that are all the same block: it is read as what it is each time, and ends.
    let mut image = Image::new();
    let at = Image::inode_at(FILE);
    image.put32(at + 0x28 + 56, SPARE as u32);
    image.put32(at + 0x6c, 1);
    for word in 0..BLOCK / 4 {
        image.put32(SPARE * BLOCK + 4 * word, SPARE as u32);
    }
    let (ext4, _) = image.open().unwrap();
    let offset = (12 + 256 + 65_536) * BLOCK as u64;
    let mut bytes = [0; 4];
    ext4.read_at(id(FILE), offset, &mut bytes).unwrap();
    assert_eq!(bytes, (SPARE as u32).to_le_bytes());
    assert!(!ext4.extent_at(id(FILE), offset).unwrap().hole);
}

#[test]
fn entries_that_cannot_be() {
    let at = FOLDER_BLOCK * BLOCK + 24;
    for len in [0, 4, 8, 11, 14, 1004, u16::MAX] {
        let cause = failing(|image| image.put16(at + 4, len), list);
        assert_eq!(cause, Cause::EntryLength { inode: FOLDER, offset: 24, len: u32::from(len) });
    }
    let cause = failing(
        |image| {
            image.put16(at + 4, 12);
            image.0[at + 6] = 5;
        },
        list,
    );
    assert_eq!(cause, Cause::EntryName { inode: FOLDER, offset: 24, len: 5 });
    for name in [&b"a/b/c"[..], b"a\0b\0c"] {
        let cause = failing(|image| image.put(at + 8, name), list);
        assert_eq!(cause, Cause::EntryName { inode: FOLDER, offset: 24, len: 5 });
    }
    let cause = failing(|image| image.0[at + 6] = 0, list);
    assert_eq!(cause, Cause::EntryName { inode: FOLDER, offset: 24, len: 0 });
    let cause = failing(|image| image.put32(at, 65), list);
    assert_eq!(cause, Cause::EntryInode { inode: FOLDER, offset: 24, target: 65 });
    let cause = failing(|image| image.put32(Image::inode_at(FOLDER) + 0x28, 0), list);
    assert_eq!(cause, Cause::FolderHole { inode: FOLDER, offset: 0 });
}

#[test]
fn a_damaged_block_does_not_hide_the_next() {
    let mut image = Image::new();
    image.put32(Image::inode_at(FOLDER) + 4, 3 * BLOCK as u32);
    image.put32(Image::inode_at(FOLDER) + 0x28 + 4, SPARE as u32);
    image.put32(Image::inode_at(FOLDER) + 0x28 + 8, SPARE as u32 + 1);
    image.entry((SPARE + 1) * BLOCK, FILE, 1024, b"last");
    let (ext4, _) = image.open().unwrap();
    let (listed, result) = names(&ext4, FOLDER);
    assert_eq!(listed, [&b"again"[..], b"last"]);
    let wrong = Cause::EntryLength { inode: FOLDER, offset: BLOCK as u64, len: 0 };
    assert_eq!(cause(result), wrong);
    assert_eq!(ext4.lookup(id(FOLDER), b"last").unwrap(), Some(id(FILE)));
    // It might be in the block that cannot be read.
    assert_eq!(cause(ext4.lookup(id(FOLDER), b"absent")), wrong);
}

#[test]
fn a_folder_larger_than_the_image_ends() {
    let cause = failing(
        |image| {
            let extents = (0..4).map(|part| extent(part * 100, 100, FOLDER_BLOCK as u32));
            let root: Vec<Vec<u8>> = std::iter::once(node(4, 4, 0)).chain(extents).collect();
            image.extents(FOLDER, &root.concat());
            image.put32(Image::inode_at(FOLDER) + 4, 0xffff_fc00);
            for block in FOLDER_BLOCK..FOLDER_BLOCK + 100 {
                image.entry(block * BLOCK, 0, 1024, b"");
            }
        },
        list,
    );
    assert_eq!(cause, Cause::FileSize { inode: FOLDER, size: 0xffff_fc00 });
}

#[test]
fn links_that_cannot_be() {
    let target = |ext4: &Ext4| ext4.read_link(id(LINK));
    for size in [0, 1025, 5000, u32::MAX] {
        let cause = failing(|image| image.put32(Image::inode_at(LINK) + 4, size), target);
        assert_eq!(cause, Cause::LinkLength { inode: LINK, size: u64::from(size) });
    }
    let cause = failing(|image| image.put(Image::inode_at(LINK) + 0x28, &[0; 6]), target);
    assert_eq!(cause, Cause::LinkLength { inode: LINK, size: 6 });
}

#[test]
fn attributes_that_cannot_be() {
    let at = SPARE * BLOCK;
    let sound = |image: &mut Image| {
        image.put32(Image::inode_at(FILE) + 0x68, SPARE as u32);
        image.put32(at, 0xea02_0000);
        image.put32(at + 8, 1);
        image.put(at + 32, &[4, 1, 0xf8, 0x03]);
        image.put32(at + 40, 3);
        image.put(at + 48, b"name");
        image.put(at + 0x3f8, b"abc");
    };
    let mut image = Image::new();
    sound(&mut image);
    let (ext4, _) = image.open().unwrap();
    assert_eq!(ext4.xattr_names(id(FILE)).unwrap(), [b"user.name"]);
    assert_eq!(ext4.xattr(id(FILE), b"user.name").unwrap().unwrap(), b"abc");
    let fails = |change: &dyn Fn(&mut Image), name: &'static [u8]| {
        failing(
            |image| {
                sound(image);
                change(image);
            },
            |ext4| ext4.xattr(id(FILE), name),
        )
    };
    let block = |what| Cause::AttributeBlock { inode: FILE, block: SPARE as u64, what };
    let entry = |offset, what| Cause::AttributeEntry { inode: FILE, offset, what };
    let any = b"user.other";
    assert_eq!(fails(&|image| image.put32(at, 0), any), block("its header"));
    assert_eq!(fails(&|image| image.put32(at + 8, 2), any), block("its header"));
    let outside = |image: &mut Image| image.put32(Image::inode_at(FILE) + 0x68, 128);
    assert_eq!(fails(&outside, any), Cause::BlockRange { inode: FILE, block: 128, len: 1 });
    for size in [9, 1 << 20, u32::MAX] {
        let cause = fails(&|image| image.put32(at + 40, size), any);
        assert_eq!(cause, entry(32, "its value passes the end"));
    }
    let full = |image: &mut Image| {
        for word in 0..62 {
            image.put(at + 32 + 16 * word, &[0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1]);
        }
    };
    assert_eq!(fails(&full, any), entry(1024, "the list does not end"));
    let long = |image: &mut Image| {
        full(image);
        image.0[at + 32 + 16 * 61] = 255;
    };
    assert_eq!(fails(&long, any), entry(32 + 16 * 61, "its name passes the end"));
    let elsewhere = |image: &mut Image| image.put32(at + 36, FREE);
    let value = |what| Cause::AttributeInode { inode: FILE, value: FREE, what };
    let cause = fails(&elsewhere, b"user.name");
    assert_eq!(cause, value("the filesystem has no such feature"));
    let cause = fails(
        &|image| {
            elsewhere(image);
            image.superblock32(0x60, incompat::EA_INODE);
            image.inode(FREE, 0o100_600, 1, u32::MAX, 0);
            image.put32(Image::inode_at(FREE) + 0x20, flag::EA_INODE);
            image.put32(at + 40, u32::MAX);
        },
        b"user.name",
    );
    assert_eq!(cause, value("no value of that size"));
    let cause = fails(
        &|image| {
            elsewhere(image);
            image.superblock32(0x60, incompat::EA_INODE);
            image.inode(FREE, 0o100_600, 1, 3, 0);
            image.put32(Image::inode_at(FREE) + 0x20, flag::EA_INODE);
        },
        b"user.name",
    );
    assert_eq!(cause, value("its hash"));
    let list = |image: &mut Image| image.0[at + 33] = 2;
    let cause = fails(
        &|image| {
            list(image);
            image.0[at + 32] = 0;
        },
        b"system.posix_acl_access",
    );
    assert_eq!(cause, Cause::Acl { inode: FILE, what: "cut short" });
}

#[test]
fn access_control_lists_are_translated() {
    let stored = [1, 0, 0, 0, 1, 0, 7, 0, 2, 0, 6, 0, 0xe8, 3, 0, 0, 0x20, 0, 4, 0];
    let kernel = [
        2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 2, 0, 6, 0, 0xe8, 3, 0, 0, 0x20, 0, 4, 0, 255,
        255, 255, 255,
    ];
    assert_eq!(acl::to_kernel(7, &stored).unwrap(), kernel);
    let wrong = |what| Err(Cause::Acl { inode: 7, what });
    assert_eq!(acl::to_kernel(7, &[2, 0, 0, 0]), wrong("its version"));
    assert_eq!(acl::to_kernel(7, &stored[..12]), wrong("cut short"));
    assert_eq!(acl::to_kernel(7, &[1, 0, 0, 0, 3, 0, 0, 0]), wrong("an entry of unknown kind"));
}

#[test]
fn an_image_cut_short_is_read_as_far_as_it_goes() {
    let mut image = Image::new();
    image.0.truncate((FILE_BLOCK + 1) * BLOCK);
    let (ext4, warnings) = image.open().unwrap();
    assert!(warnings[0].starts_with("cut short"), "{warnings:?}");
    assert_eq!(ext4.read_at(id(FILE), 0, &mut [0; BLOCK]).unwrap(), BLOCK);
    let wrong = Cause::BeyondImage { what: "data block", block: FILE_BLOCK as u64 };
    assert_eq!(cause(read(&ext4)), wrong);
    image.0.truncate(ROOT_BLOCK * BLOCK);
    let (ext4, _) = image.open().unwrap();
    let wrong = Cause::BeyondImage { what: "folder block", block: ROOT_BLOCK as u64 };
    assert_eq!(cause(names(&ext4, 2).1), wrong);
    image.0.truncate(INODE_TABLE * BLOCK);
    let wrong = Cause::BeyondImage { what: "inode table block", block: INODE_TABLE as u64 };
    assert_eq!(cause(image.open()), wrong);
}

#[test]
fn encrypted_and_compressed_contents_are_refused() {
    let flagged = |flags| failing(|image| image.put32(Image::inode_at(FILE) + 0x20, flags), read);
    assert_eq!(flagged(flag::ENCRYPTED), Cause::Encrypted(FILE));
    assert_eq!(flagged(flag::COMPRESSED), Cause::Compressed(FILE));
    assert_eq!(Error::from(Cause::Encrypted(1)).kind(), Kind::Encrypted);
    let cause = failing(|image| image.put32(Image::inode_at(FILE) + 0x20, flag::INLINE_DATA), read);
    assert_eq!(cause, Cause::InlineData { inode: FILE });
}

#[test]
fn opening_takes_a_handful_of_reads_whatever_the_size() {
    use crate::block::{Fault, FaultSource};
    let source = Arc::new(MemorySource::new(Image::new().0));
    let counting = Arc::new(FaultSource::new(source, |_, _, _| None::<Fault>));
    let source: Arc<dyn BlockSource> = counting.clone();
    Ext4::open(source, &Cache::new(0)).unwrap();
    assert!(counting.reads() <= 3, "{}", counting.reads());
}
