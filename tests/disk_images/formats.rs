//! Every feature of the formats, one at a time.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use stratafs::block::FileSource;
use stratafs::error::Kind;
use stratafs::image::{Details, Format};
use stratafs::open::Reference;

use crate::compare::*;
use crate::support::{qemu_img, stdout, tool};

const MIB: u64 = 1 << 20;

/// An image with these options, written all over, reads as QEMU reads it.
#[track_caller]
fn check(options: &str, size: u64, cluster: u64, compressed: bool) {
    let bench = Bench::new();
    let options = format!("cluster_size={cluster}{options}");
    let image = bench.create("disk.qcow2", &size.to_string(), &options);
    bench.fill(&image, size, cluster, compressed, size ^ cluster);
    assert_as_qemu(&image);
}

#[test]
fn version_2() {
    check(",compat=0.10", 20 * MIB, 65536, true);
}

#[test]
fn version_3() {
    check("", 20 * MIB, 65536, true);
}

#[test]
fn every_cluster_size() {
    for bits in 9..=21 {
        let size = (8 * MIB).max(12 << bits);
        check("", size + 512, 1 << bits, true);
    }
}

#[test]
fn zstd_clusters() {
    check(",compression_type=zstd", 20 * MIB, 65536, true);
    check(",compression_type=zstd", 20 * MIB, 4096, true);
    check(",compression_type=zstd", 40 * MIB, 2 * MIB, true);
}

#[test]
fn extended_l2() {
    for cluster in [16384, 65536, 2 * MIB] {
        check(",extended_l2=on", 24 * MIB, cluster, true);
    }
}

#[test]
fn lazy_refcounts() {
    check(",lazy_refcounts=on,refcount_bits=1", 8 * MIB, 65536, false);
}

/// `qemu-img convert -c`: every cluster compressed, packed without alignment.
#[test]
fn compressed_by_convert() {
    let bench = Bench::new();
    let plain = bench.create("plain.qcow2", "20M", "");
    bench.fill(&plain, 20 * MIB, 65536, false, 5);
    for options in ["", "compression_type=zstd", "cluster_size=2M", "cluster_size=512"] {
        let packed = bench.path("packed.qcow2");
        let mut args = vec!["convert", "-c", "-O", "qcow2"];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        args.extend([plain.to_str().unwrap(), packed.to_str().unwrap()]);
        qemu_img(args);
        assert_as_qemu(&packed);
        let raw = converted(&plain, None);
        assert_same(&*open(&packed).source, &raw, options);
    }
}

#[test]
fn external_data_file() {
    for raw in ["", ",data_file_raw=on"] {
        let bench = Bench::new();
        let data = bench.path("disk.data");
        let options = format!("data_file={}{raw}", data.display());
        let image = bench.create("disk.qcow2", "10M", &options);
        bench.fill(&image, 10 * MIB, 65536, false, 3);
        assert_as_qemu(&image);
        let disk = open(&image);
        let Details::Qcow2(info) = &disk.chain[0].details else { panic!() };
        assert_eq!(info.data_file.as_deref(), data.to_str());
        assert_eq!(info.data_file_raw, !raw.is_empty());
        // A data file that is too short reads as zeros past its end, with a warning.
        fs::File::options().write(true).open(&data).unwrap().set_len(5 * MIB + 100).unwrap();
        let disk = open(&image);
        assert!(disk.warnings[0].contains("shorter than the disk"), "{:?}", disk.warnings);
        let mut buf = [1; 4096];
        disk.source.read_at(9 * MIB, &mut buf).unwrap();
        assert_eq!(buf, [0; 4096]);
    }
}

#[test]
fn a_chain_of_33() {
    let bench = Bench::new();
    let size = 12 * MIB;
    let base = bench.create("0.qcow2", &size.to_string(), "");
    bench.fill(&base, size, 65536, true, 1);
    for number in 1..33 {
        let below = format!("{}.qcow2", number - 1);
        let image = bench.overlay(&format!("{number}.qcow2"), &below, "qcow2", None);
        let mut random = Random::new(number);
        let commands: Vec<_> = (0..6)
            .map(|_| {
                let at = random.below(size / 512 - 600) * 512;
                format!("write -q -P {number} {at} {}", 512 + random.below(500) * 512)
            })
            .collect();
        bench.io(&image, &commands);
    }
    let top = bench.path("32.qcow2");
    assert_as_qemu(&top);
    let disk = open(&top);
    assert_eq!(disk.chain.len(), 33);
    assert_eq!(disk.chain[0].backing.as_deref(), Some("31.qcow2"));
    assert_eq!(disk.chain[0].backing_format.as_deref(), Some("qcow2"));
    assert!(disk.chain[32].backing.is_none());
}

#[test]
fn overlays_larger_and_smaller_than_their_backing_file() {
    let bench = Bench::new();
    let base = bench.create("base.qcow2", "4M", "");
    bench.fill(&base, 4 * MIB, 65536, false, 2);
    bench.io(&base, &["write -q -P 9 4193792 512".to_owned()]);
    let small = bench.overlay("small.qcow2", "base.qcow2", "qcow2", Some("1000448"));
    assert_as_qemu(&small);
    // The middle layer is the smallest: what the base has past its end must not show through.
    let large = bench.overlay("large.qcow2", "small.qcow2", "qcow2", Some("6M"));
    bench.io(&large, &["write -q -P 8 3M 64k".to_owned()]);
    assert_as_qemu(&large);
}

#[test]
fn a_raw_backing_file_of_odd_size() {
    let bench = Bench::new();
    let mut random = Random::new(4);
    let bytes: Vec<u8> = (0..3_000_001).map(|_| random.next() as u8 | 1).collect();
    fs::write(bench.path("base.raw"), &bytes).unwrap();
    let image = bench.overlay("disk.qcow2", "base.raw", "raw", Some("4M"));
    bench.io(&image, &["write -q -P 7 1M 1000k".to_owned(), "write -q -z 100k 50k".to_owned()]);
    assert_as_qemu(&image);
    let disk = open(&image);
    assert_eq!(disk.chain[1].format, Format::Raw);
    assert_eq!(disk.chain[1].virtual_size, 3_000_001);
}

#[test]
fn backing_files_in_words_of_every_kind() {
    let bench = Bench::new();
    let base = bench.create("base.qcow2", "4M", "");
    bench.fill(&base, 4 * MIB, 65536, true, 2);
    let raw = bench.path("base.raw");
    fs::copy(converted(&base, None), &raw).unwrap();
    let base = base.to_str().unwrap();
    let words = [
        (base.to_owned(), "qcow2"),
        ("file:base.qcow2".to_owned(), "qcow2"),
        (format!("file:{base}"), "qcow2"),
        (
            format!(r#"json:{{"driver":"qcow2","file":{{"driver":"file","filename":"{base}"}}}}"#),
            "qcow2",
        ),
        (
            format!(
                r#"json:{{"driver":"qcow2","file.driver":"file","file.filename":"{base}","file.locking":"off","read-only":"on"}}"#
            ),
            "qcow2",
        ),
        (format!(r#"json:{{"driver":"file","filename":"{}"}}"#, raw.display()), "raw"),
        (
            format!(
                r#"json:{{"driver":"raw","file":{{"driver":"file","filename":"{}"}}}}"#,
                raw.display()
            ),
            "raw",
        ),
    ];
    for (name, format) in words {
        let image = bench.path("disk.qcow2");
        qemu_img([
            "create",
            "-q",
            "-f",
            "qcow2",
            "-u",
            "-b",
            &name,
            "-F",
            format,
            image.to_str().unwrap(),
            "4M",
        ]);
        let disk = open(&image);
        assert_eq!(disk.chain.len(), 2, "{name}");
        assert_same(&*disk.source, &raw, &name);
    }
}

#[test]
fn internal_snapshots() {
    for options in ["", "compat=0.10", "extended_l2=on", "cluster_size=4k"] {
        let bench = Bench::new();
        let image = bench.create("disk.qcow2", "6M", options);
        let path = image.to_str().unwrap();
        let cluster = if options.contains("4k") { 4096 } else { 65536 };
        let mut oracles = Vec::new();
        for number in 1..=4 {
            bench.fill(&image, 6 * MIB, cluster, true, number);
            let name = format!("state {number}");
            qemu_img(["snapshot", "-c", &name, path]);
            let oracle = bench.path(&format!("{number}.oracle"));
            fs::rename(converted(&image, None), &oracle).unwrap();
            oracles.push((name, oracle));
            if number == 2 && !options.contains("0.10") {
                qemu_img(["resize", "-q", path, "7M"]);
            }
        }
        bench.fill(&image, 6 * MIB, cluster, false, 9);
        assert_as_qemu(&image);
        let disk = open(&image);
        assert_eq!(disk.snapshots.len(), 4);
        for (index, (name, oracle)) in oracles.iter().enumerate() {
            let by_name = open_reference(&format!("{path}::{name}"));
            assert_same(&*by_name.source, oracle, name);
            let by_id = open_reference(&format!("{path}::{}", disk.snapshots[index].id));
            assert_same(&*by_id.source, oracle, name);
            assert_eq!(disk.snapshots[index].name, *name);
            assert_eq!(disk.snapshots[index].virtual_size, by_name.source.len());
            assert!(disk.snapshots[index].created.0 > 1_600_000_000);
            let by_qemu = converted(&image, Some(name));
            let by_qemu = fs::File::open(by_qemu).unwrap();
            assert_prefix(&*by_name.source, &by_qemu, by_name.source.len(), name);
        }
        let error = opener().disk(&format!("{path}::nothing").parse().unwrap()).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error.hint().unwrap().contains("state 1, state 2"), "{:?}", error.hint());
    }
}

/// `qemu-img` looks a snapshot up by id first; so does this.
#[test]
fn an_id_comes_before_a_name() {
    let bench = Bench::new();
    let image = bench.create("disk.qcow2", "1M", "");
    let path = image.to_str().unwrap();
    for (number, name) in [(1, "2"), (2, "1")] {
        bench.io(&image, &[format!("write -q -P {number} 0 64k")]);
        qemu_img(["snapshot", "-c", name, path]);
    }
    let oracle = bench.path("by-qemu.raw");
    for wanted in ["1", "2"] {
        qemu_img(["convert", "-O", "raw", "-l", wanted, path, oracle.to_str().unwrap()]);
        assert_same(&*open_reference(&format!("{path}::{wanted}")).source, &oracle, wanted);
    }
}

#[test]
fn a_raw_image_is_its_own_disk() {
    let bench = Bench::new();
    let path = bench.path("disk.raw");
    fs::write(&path, vec![5; 1_000_001]).unwrap();
    let disk = open(&path);
    assert_eq!(disk.source.len(), 1_000_001);
    assert!(disk.source.whole_file().is_some(), "the kernel can read it by itself");
    assert!(matches!(disk.chain[0].details, Details::Raw));
    let error = opener().disk(&Reference { path, snapshot: Some("x".into()) }).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
}

#[test]
fn a_name_with_colons_is_a_file_if_there_is_one() {
    let bench = Bench::new();
    let path = bench.path("a::b.raw");
    fs::write(&path, b"raw").unwrap();
    assert_eq!(Reference::from(path.as_path()), Reference { path: path.clone(), snapshot: None });
    let text = format!("{}::c::d", path.display());
    let expected = Reference { path, snapshot: Some("c::d".into()) };
    assert_eq!(text.parse::<Reference>().unwrap(), expected);
    let nowhere: Reference = "no/such::file::x".parse().unwrap();
    assert_eq!(nowhere.path, Path::new("no/such"));
    assert_eq!(nowhere.snapshot.as_deref(), Some("file::x"));
}

#[test]
fn info_is_what_qemu_img_says() {
    let bench = Bench::new();
    let options = "extended_l2=on,compression_type=zstd,lazy_refcounts=on,cluster_size=128k";
    let image = bench.create("disk.qcow2", "10M", options);
    let path = image.to_str().unwrap();
    qemu_img(["bitmap", "--add", "-g", "128k", path, "since backup"]);
    qemu_img(["bitmap", "--add", "--disable", path, "second"]);
    let said: serde_json::Value =
        serde_json::from_str(&stdout(tool("qemu-img", "qemu-utils").args([
            "info",
            "--output=json",
            path,
        ])))
        .unwrap();
    let data = &said["format-specific"]["data"];
    let disk = open(&image);
    let info = &disk.chain[0];
    assert_eq!(said["virtual-size"], info.virtual_size);
    assert_eq!(said["actual-size"], info.allocated);
    let Details::Qcow2(qcow2) = &info.details else { panic!() };
    assert_eq!(said["cluster-size"], qcow2.cluster_size);
    assert_eq!(data["compression-type"], qcow2.compression);
    assert_eq!(data["extended-l2"], qcow2.extended_l2);
    assert_eq!(data["lazy-refcounts"], qcow2.lazy_refcounts);
    assert_eq!(data["corrupt"], qcow2.corrupt);
    assert_eq!(data["refcount-bits"], qcow2.refcount_bits);
    assert_eq!(qcow2.version, 3);
    let bitmaps = data["bitmaps"].as_array().unwrap();
    assert_eq!(bitmaps.len(), qcow2.bitmaps.len());
    for (said, ours) in bitmaps.iter().zip(&qcow2.bitmaps) {
        assert_eq!(said["name"], ours.name.as_str());
        assert_eq!(said["granularity"], ours.granularity);
        assert_eq!(said["flags"].as_array().unwrap().contains(&"auto".into()), ours.enabled);
        assert!(ours.consistent);
    }
    assert!(disk.warnings.is_empty());
    let json = serde_json::to_value(&disk.chain).unwrap();
    assert_eq!(json[0]["details"]["qcow2"]["compression"], "zstd");
    assert_eq!(json[0]["format"], "qcow2");
}

#[test]
fn a_dirty_or_corrupt_image_is_read_with_a_warning() {
    let bench = Bench::new();
    let image = bench.create("disk.qcow2", "4M", "");
    bench.fill(&image, 4 * MIB, 65536, false, 3);
    let raw = converted(&image, None);
    let file = fs::File::options().write(true).open(&image).unwrap();
    for (bits, word) in [(1_u64, "dirty"), (2, "corrupt")] {
        file.write_all_at(&bits.to_be_bytes(), 72).unwrap();
        let disk = open(&image);
        assert!(disk.warnings[0].contains(word), "{:?}", disk.warnings);
        assert_same(&*disk.source, &raw, word);
    }
}

/// What QEMU calls a hole in an image without a backing file is one here.
#[test]
fn holes_are_where_qemu_sees_them() {
    let bench = Bench::new();
    let image = bench.create("disk.qcow2", "16M", "");
    bench.fill(&image, 16 * MIB, 65536, true, 6);
    let map = stdout(tool("qemu-img", "qemu-utils").args(["map", "--output=json"]).arg(&image));
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let disk = open(&image);
    let mut zeros = 0;
    for range in map.as_array().unwrap() {
        let start = range["start"].as_u64().unwrap();
        let end = start + range["length"].as_u64().unwrap();
        let mut at = start;
        while at < end {
            let extent = disk.source.extent_at(at).unwrap();
            if range["zero"] == true {
                assert!(extent.hole, "{at:#x}");
                zeros += extent.len.min(end - at);
            }
            at += extent.len;
        }
    }
    assert!(zeros > MIB);
}

/// A disk of 4 TiB with nothing in it costs nothing, and reads zeros at its end.
#[test]
fn a_huge_sparse_disk() {
    let bench = Bench::new();
    for options in ["", "cluster_size=2M", "cluster_size=4k,extended_l2=off"] {
        let size: u64 = if options.contains("4k") { 1 << 40 } else { 4 << 40 };
        let image = bench.create("disk.qcow2", &size.to_string(), options);
        bench.io(&image, &[format!("write -q -P 3 {} 4k", size - 4096)]);
        let disk = open(&image);
        let mut buf = [1; 8192];
        disk.source.read_at(size - 8192, &mut buf).unwrap();
        assert_eq!(buf[..4096], [0; 4096]);
        assert_eq!(buf[4096..], [3; 4096]);
        assert!(disk.source.extent_at(size / 2).unwrap().hole);
    }
}

/// A block device is read as a raw disk; as root, since it takes a loop device.
#[test]
fn a_block_device() {
    crate::support::require_root();
    let bench = Bench::new();
    let file = bench.path("disk.raw");
    let mut random = Random::new(4);
    let bytes: Vec<u8> = (0..MIB).map(|_| random.next() as u8).collect();
    fs::write(&file, &bytes).unwrap();
    let device = stdout(tool("losetup", "mount").args(["-r", "-f", "--show"]).arg(&file));
    let device = Path::new(device.trim());
    let read = || {
        let disk = open(device);
        let mut buf = vec![0; bytes.len()];
        disk.source.read_at(0, &mut buf).unwrap();
        // As a backing file it must be allowed by its own name.
        let name = device.to_str().unwrap();
        let image = bench.path("over.qcow2");
        qemu_img([
            "create",
            "-q",
            "-u",
            "-f",
            "qcow2",
            "-b",
            name,
            "-F",
            "raw",
            image.to_str().unwrap(),
            "1M",
        ]);
        let refused =
            opener().disk(&image.as_path().into()).map(drop).map_err(|error| error.kind());
        let mut policy = stratafs::policy::Policy::default();
        policy.allow_paths.push(device.to_owned());
        let mut over = vec![0; bytes.len()];
        let allowed = opener_with(policy).disk(&image.as_path().into());
        allowed.unwrap().source.read_at(0, &mut over).unwrap();
        (disk.source.len(), buf, refused, over)
    };
    let result = std::panic::catch_unwind(read);
    crate::support::run(tool("losetup", "mount").arg("-d").arg(device));
    let (len, buf, refused, over) = result.unwrap();
    assert_eq!(len, MIB);
    assert!(buf == bytes && over == bytes);
    assert_eq!(refused, Err(Kind::Refused));
    assert!(FileSource::open(Path::new("/dev/null")).is_err());
}
