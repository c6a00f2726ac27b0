//! What is to be refused, each by its exact cause.

use super::super::cause::{Cause, Fault};
use super::super::extension::kind;
use super::builder::*;
use crate::error::Kind;

const CLUSTER: u64 = 4096;
const LEN: u64 = DATA * CLUSTER;

#[track_caller]
fn refused(kind: Kind, cause: Cause, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = Builder::default().build();
    change(&mut bytes);
    let error = open_bytes(bytes).unwrap_err();
    assert_eq!(error.cause::<Cause>(), Some(&cause), "{error}");
    assert_eq!(error.kind(), kind);
    assert!(error.to_string().starts_with("image: "), "{error}");
}

#[test]
fn signature_version_and_length() {
    let corrupt = Kind::Corrupt;
    refused(corrupt, Cause::Signature, |bytes| bytes[3] = 0);
    refused(corrupt, Cause::Signature, |bytes| bytes.truncate(3));
    refused(corrupt, Cause::HeaderCut { needed: 72, len: 71 }, |bytes| bytes.truncate(71));
    refused(corrupt, Cause::HeaderCut { needed: 104, len: 103 }, |bytes| bytes.truncate(103));
    for version in [0, 1, 4, u32::MAX] {
        refused(Kind::Unsupported, Cause::Version(version), |b| fixed(b).version = version.into());
    }
    for bits in [0, 8, 22, 63, 64, u32::MAX] {
        refused(corrupt, Cause::ClusterBits(bits), |b| fixed(b).cluster_bits = bits.into());
    }
    for length in [0, 72, 103] {
        refused(corrupt, Cause::HeaderShort(length), |b| version3(b).header_length = length.into());
    }
    for length in [4097, 0x7fff_ffff, 0xffff_ffff] {
        refused(corrupt, Cause::HeaderLong(length), |b| version3(b).header_length = length.into());
    }
}

#[test]
fn features_by_their_names() {
    refused(Kind::Unsupported, Cause::Features("bit 5, bit 63".into()), |bytes| {
        version3(bytes).incompatible_features = (1 << 5 | 1 << 63).into();
    });
    let mut names = vec![0, 5];
    names.extend(b"time travel\0");
    names.resize(48, 0);
    let named = Builder {
        incompatible: 1 << 5 | 1 << 6,
        extensions: vec![(kind::FEATURE_NAMES, names)],
        ..Builder::default()
    };
    let error = open_bytes(named.build()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "image: incompatible features: time travel, bit 6 (not supported)"
    );
    // The names are told even if the extensions behind them are damaged.
    let mut damaged = named.clone();
    damaged.extensions.push((1, vec![]));
    let mut bytes = damaged.build();
    let at = 104 + 8 + 48 + 4;
    bytes[at..at + 4].copy_from_slice(&u32::MAX.to_be_bytes());
    assert!(open_bytes(bytes).unwrap_err().to_string().contains("time travel"));
    refused(Kind::Corrupt, Cause::SubclusterBits(12), |bytes| {
        version3(bytes).incompatible_features = (1 << 4).into();
    });
    for order in [7, 255, u32::MAX] {
        refused(Kind::Corrupt, Cause::RefcountOrder(order), |bytes| {
            version3(bytes).refcount_order = order.into();
        });
    }
}

#[test]
fn encryption() {
    for (method, name) in [(1, "AES"), (2, "LUKS")] {
        let mut bytes = Builder::default().build();
        fixed(&mut bytes).crypt_method = method.into();
        let error = open_bytes(bytes).unwrap_err();
        assert_eq!(error.kind(), Kind::Encrypted);
        assert!(error.to_string().contains(name), "{error}");
    }
    refused(Kind::Unsupported, Cause::EncryptionMethod(3), |b| fixed(b).crypt_method = 3.into());
}

#[test]
fn compression_types() {
    let build = |incompatible, compression_type| {
        let builder = Builder { incompatible, compression_type, ..Builder::default() };
        open_bytes(builder.build()).map(drop).map_err(|error| error.cause::<Cause>().cloned())
    };
    assert_eq!(build(8, Some(1)), Ok(()));
    assert_eq!(build(0, Some(0)), Ok(()));
    assert_eq!(build(8, Some(2)), Err(Some(Cause::CompressionType(2))));
    assert_eq!(build(0, Some(1)), Err(Some(Cause::CompressionBit(1))));
    assert_eq!(build(8, None), Err(Some(Cause::CompressionMissing)));
}

#[test]
fn virtual_sizes() {
    for size in [u64::MAX, 1 << 63] {
        refused(Kind::Corrupt, Cause::Size(size), |bytes| fixed(bytes).size = size.into());
    }
    // 1 PB would need a larger L1 table than there is; with one that large, it is an honest disk.
    let petabyte = 1 << 50;
    let needed = petabyte >> (12 + 9);
    let small = Cause::Table("L1 table", Fault::TooSmall(1, needed));
    refused(Kind::Corrupt, small, |bytes| fixed(bytes).size = petabyte.into());
    let too_large = Cause::Table("L1 table", Fault::TooLarge(needed, 4 << 20));
    refused(Kind::Corrupt, too_large, |bytes| {
        fixed(bytes).size = petabyte.into();
        fixed(bytes).l1_size = (needed as u32).into();
    });
}

#[test]
fn l1_tables() {
    let corrupt = |fault| Cause::Table("L1 table", fault);
    for entries in [0x7fff_ffff, 0xffff_ffff, (4 << 20) + 1] {
        let cause = corrupt(Fault::TooLarge(entries, 4 << 20));
        refused(Kind::Corrupt, cause, |b| fixed(b).l1_size = (entries as u32).into());
    }
    refused(Kind::Corrupt, corrupt(Fault::TooSmall(0, 1)), |b| fixed(b).l1_size = 0.into());
    for offset in [1, 512, LEN + 8, u64::MAX] {
        let cause = corrupt(Fault::Misaligned(offset));
        refused(Kind::Corrupt, cause, |b| fixed(b).l1_table_offset = offset.into());
    }
    for offset in [LEN, 1 << 56, u64::MAX - 4095] {
        let cause = corrupt(Fault::BeyondEnd(offset, LEN));
        refused(Kind::Corrupt, cause, |b| fixed(b).l1_table_offset = offset.into());
    }
    // An empty disk needs no L1 table, wherever it says there is one.
    let mut bytes = Builder { size: 0, ..Builder::default() }.build();
    fixed(&mut bytes).l1_size = 0.into();
    open_bytes(bytes).unwrap().layer(None, None).unwrap();
}

#[test]
fn refcount_tables() {
    let cause = |fault| Cause::Table("refcount table", fault);
    refused(Kind::Corrupt, cause(Fault::Missing), |b| {
        fixed(b).refcount_table_clusters = 0.into();
    });
    for clusters in [2049, u32::MAX] {
        let entries = u64::from(clusters) * 512;
        refused(Kind::Corrupt, cause(Fault::TooLarge(entries, 1 << 20)), |b| {
            fixed(b).refcount_table_clusters = clusters.into();
        });
    }
    refused(Kind::Corrupt, cause(Fault::Misaligned(4097)), |b| {
        fixed(b).refcount_table_offset = 4097.into();
    });
    refused(Kind::Corrupt, cause(Fault::BeyondEnd(1 << 40, LEN)), |b| {
        fixed(b).refcount_table_offset = (1 << 40).into();
    });
}

#[test]
fn backing_names() {
    for offset in [4097, u64::MAX, 1 << 63] {
        refused(Kind::Corrupt, Cause::BackingNameOffset(offset), |b| {
            fixed(b).backing_file_offset = offset.into();
        });
    }
    for len in [1024, 0x7fff_ffff, 0xffff_ffff] {
        refused(Kind::Corrupt, Cause::BackingNameLength(len, 1023), |b| {
            fixed(b).backing_file_offset = 200.into();
            fixed(b).backing_file_size = len.into();
        });
    }
    refused(Kind::Corrupt, Cause::BackingNameLength(97, 96), |b| {
        fixed(b).backing_file_offset = 4000.into();
        fixed(b).backing_file_size = 97.into();
    });
}

#[test]
fn extensions() {
    for len in [0x7fff_ffff_u32, 0xffff_ffff, 4096 - 104 - 8 + 1] {
        let room = CLUSTER - 104 - 8;
        let cause = Cause::ExtensionLength { kind: 77, offset: 104, len, room };
        refused(Kind::Corrupt, cause, |bytes| {
            bytes[104..108].copy_from_slice(&77_u32.to_be_bytes());
            bytes[108..112].copy_from_slice(&len.to_be_bytes());
        });
    }
    let odd = Builder { extensions: vec![(kind::BITMAPS, vec![0; 23])], ..Builder::default() };
    let error = open_bytes(odd.build()).unwrap_err();
    let cause = Cause::ExtensionSize { kind: kind::BITMAPS, len: 23 };
    assert_eq!(error.cause(), Some(&cause));
    // Unknown ones are passed over, in version 2 as well, and however far they reach.
    for version in [2, 3] {
        let builder = Builder {
            version,
            cluster_bits: 16,
            size: 1 << 20,
            extensions: vec![(5, vec![1; 20_001]), (kind::BACKING_FORMAT, b"raw".to_vec())],
            backing: Some(b"base".to_vec()),
            ..Builder::default()
        };
        let parent = builder.image().parent.unwrap();
        assert_eq!(parent.name, "base");
        assert_eq!(parent.format.as_deref(), Some("raw"));
    }
}

#[test]
fn data_files_without_a_name() {
    let image = Builder { incompatible: 4, ..Builder::default() }.image();
    let error = image.data_file().unwrap_err();
    assert_eq!(error.cause(), Some(&Cause::DataFileName));
    assert_eq!(image.layer(None, None).unwrap_err().cause(), Some(&Cause::DataFileName));
}

#[test]
fn snapshot_tables() {
    let table = |fault| Cause::Table("snapshot table", fault);
    for count in [65537, u32::MAX] {
        let cause = table(Fault::TooLarge(count.into(), 65536));
        refused(Kind::Corrupt, cause, |b| fixed(b).nb_snapshots = count.into());
    }
    refused(Kind::Corrupt, table(Fault::Misaligned(8)), |b| {
        fixed(b).nb_snapshots = 1.into();
        fixed(b).snapshots_offset = 8.into();
    });
    refused(Kind::Corrupt, table(Fault::BeyondEnd(1 << 60, LEN)), |b| {
        fixed(b).nb_snapshots = 1.into();
        fixed(b).snapshots_offset = (1 << 60).into();
    });

    let entries = |change: &dyn Fn(&mut Vec<u8>)| {
        let snapshots = vec![("1", "one", true), ("2", "two", false)];
        let mut bytes = Builder { snapshots, ..Builder::default() }.build();
        change(&mut bytes);
        let image = open_bytes(bytes).unwrap();
        // What is wrong with the table does not keep the disk from being read.
        image.layer(None, None).unwrap();
        image.snapshots().map_err(|error| error.cause::<Cause>().cloned().unwrap())
    };
    let at = (SNAPSHOTS * CLUSTER) as usize;
    let both = entries(&|_| {}).unwrap();
    assert_eq!((both[0].vm_state_size, both[0].virtual_size), (99, 8 * CLUSTER));
    assert_eq!((both[1].vm_state_size, both[1].virtual_size), (77, 16 * CLUSTER));
    assert_eq!(both[1].created, (1_700_000_000, 5));
    let extra = entries(&|b| b[at + 36..at + 40].copy_from_slice(&[0xff; 4]));
    assert_eq!(extra, Err(Cause::SnapshotExtra { index: 0, len: u32::MAX }));
    let id = entries(&|b| b[at + 12..at + 14].copy_from_slice(&[0xff; 2]));
    assert_eq!(id, Err(Cause::SnapshotCut(0)));
    let name = entries(&|b| b[at + 14..at + 16].copy_from_slice(&[0xff; 2]));
    assert_eq!(name, Err(Cause::SnapshotCut(0)));
    let size = entries(&|b| b[at + 48..at + 56].copy_from_slice(&[0xff; 8]));
    assert_eq!(size, Err(Cause::SnapshotSize { index: 0, size: u64::MAX }));
    let many = entries(&|b| fixed(b).nb_snapshots = 65536.into());
    assert!(matches!(many, Err(Cause::SnapshotCut(_))), "{many:?}");
}

#[test]
fn l1_tables_of_snapshots() {
    let what = "L1 table of the snapshot";
    let at = (SNAPSHOTS * CLUSTER) as usize;
    let layer = |change: &dyn Fn(&mut Vec<u8>), name: &str| {
        let snapshots = vec![("1", "one", true), ("2", "two", false)];
        let mut bytes = Builder { snapshots, ..Builder::default() }.build();
        change(&mut bytes);
        let layer = open_bytes(bytes).unwrap().layer(Some(name), None);
        layer.map(drop).map_err(|error| error.cause::<Cause>().cloned().unwrap())
    };
    assert_eq!(layer(&|_| {}, "one"), Ok(()));
    let size = layer(&|b| b[at + 8..at + 12].copy_from_slice(&[0xff; 4]), "one");
    assert_eq!(size, Err(Cause::Table(what, Fault::TooLarge(u32::MAX.into(), 4 << 20))));
    let empty = layer(&|b| b[at + 8..at + 12].copy_from_slice(&[0; 4]), "one");
    assert_eq!(empty, Err(Cause::Table(what, Fault::TooSmall(0, 1))));
    let odd = layer(&|b| put(b, at as u64, 3 * CLUSTER + 8), "one");
    assert_eq!(odd, Err(Cause::Table(what, Fault::Misaligned(3 * CLUSTER + 8))));
    let far = layer(&|b| put(b, at as u64, 1 << 55), "1");
    assert_eq!(far, Err(Cause::Table(what, Fault::BeyondEnd(1 << 55, LEN))));
    // The disk's L1 table may be empty and a snapshot's not.
    let shrunk = |b: &mut Vec<u8>| {
        fixed(b).size = 0.into();
        fixed(b).l1_size = 0.into();
    };
    assert_eq!(layer(&shrunk, "one"), Ok(()));
    assert_eq!(layer(&shrunk, "two"), Ok(()));
}

#[test]
fn bitmap_directories() {
    let directory = |count: u32, len: u64, offset: u64, entry: &[u8]| {
        let mut data = count.to_be_bytes().to_vec();
        data.extend([0; 4]);
        data.extend(len.to_be_bytes());
        data.extend(offset.to_be_bytes());
        let builder =
            Builder { autoclear: 1, extensions: vec![(kind::BITMAPS, data)], ..Builder::default() };
        let mut bytes = builder.build();
        let at = (SNAPSHOTS * CLUSTER) as usize;
        bytes[at..at + entry.len()].copy_from_slice(entry);
        let image = open_bytes(bytes).unwrap();
        image.bitmaps().map_err(|error| error.cause::<Cause>().cloned().unwrap())
    };
    let at = SNAPSHOTS * CLUSTER;
    let mut entry = vec![0; 24];
    entry[15] = 2;
    entry[16] = 1;
    entry[17] = 16;
    entry[19] = 3;
    entry.extend(b"one\0\0\0\0\0");
    let one = directory(1, 32, at, &entry).unwrap();
    assert_eq!((one[0].name.as_str(), one[0].granularity), ("one", 65536));
    assert!(one[0].enabled && one[0].consistent);
    assert_eq!(directory(0, 32, at, &entry), Err(Cause::BitmapCount(0)));
    assert_eq!(directory(u32::MAX, 32, at, &entry), Err(Cause::BitmapCount(u32::MAX)));
    assert_eq!(directory(1, 1 << 60, at, &entry), Err(Cause::BitmapDirectorySize(1 << 60)));
    let far = Cause::Table("bitmap directory", Fault::BeyondEnd(1 << 60, LEN));
    assert_eq!(directory(1, 32, 1 << 60, &entry), Err(far));
    let odd = Cause::Table("bitmap directory", Fault::Misaligned(at + 1));
    assert_eq!(directory(1, 32, at + 1, &entry), Err(odd));
    assert_eq!(directory(2, 32, at, &entry), Err(Cause::BitmapCut(1)));
    entry[20] = 0xff;
    assert_eq!(directory(1, 32, at, &entry), Err(Cause::BitmapCut(0)));
    entry[17] = 64;
    assert_eq!(directory(1, 32, at, &entry), Err(Cause::BitmapGranularity { index: 0, bits: 64 }));
}
