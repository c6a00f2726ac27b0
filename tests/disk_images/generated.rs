//! Images written at random by QEMU, from a seed, compared byte for byte.
//!
//! `STRATA_RANDOM_IMAGES` says how many (1,000 if unset), `STRATA_RANDOM_SEED` where to begin: a
//! failure prints the seed of its image.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;

use stratafs::error::Kind;
use stratafs::open::Disk;

use crate::compare::*;
use crate::support::qemu_img;

const PARTS: u64 = 4;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| {
        value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number"))
    })
}

/// Every `PARTS`th image, from the one of this number on.
fn part(part: u64) {
    let first = number("STRATA_RANDOM_SEED", 1);
    let images = number("STRATA_RANDOM_IMAGES", 1000);
    let mut bench = Bench::new();
    for index in (part..images).step_by(PARTS as usize) {
        let seed = first + index;
        let done = catch_unwind(AssertUnwindSafe(|| image(&bench, seed)));
        if let Err(panic) = done {
            let kept = bench.dir.path().to_owned();
            bench.dir.disable_cleanup(true);
            eprintln!(
                "the image of seed {seed} (kept in {}): STRATA_RANDOM_SEED={seed} \
                 STRATA_RANDOM_IMAGES=1 repeats it",
                kept.display()
            );
            resume_unwind(panic);
        }
        for entry in fs::read_dir(bench.dir.path()).unwrap() {
            let path = entry.unwrap().path();
            if !path.ends_with("noise") && !path.ends_with("text") {
                fs::remove_file(path).unwrap();
            }
        }
    }
}

#[test]
fn random_images_1() {
    part(0);
}

#[test]
fn random_images_2() {
    part(1);
}

#[test]
fn random_images_3() {
    part(2);
}

#[test]
fn random_images_4() {
    part(3);
}

/// What one layer of a random chain is.
struct Layer {
    path: PathBuf,
    size: u64,
    cluster: u64,
    version: u32,
    data_file: bool,
    backed: bool,
    snapshots: Vec<String>,
}

fn image(bench: &Bench, seed: u64) {
    let mut random = Random::new(seed);
    let depth = 1 + random.below(6).saturating_sub(2);
    let mut below: Option<(String, &str)> = None;
    if random.once_in(4) {
        let len = 1 + random.below(3 << 20);
        let bytes: Vec<u8> = (0..len).map(|at| (at / 97) as u8).collect();
        fs::write(bench.path("base.raw"), bytes).unwrap();
        below = Some(("base.raw".to_owned(), "raw"));
    }
    let mut top = None;
    for number in 0..depth {
        let mut layer = create(bench, &mut random, number, below.take());
        let rounds = if number + 1 == depth { 1 + random.below(3) } else { 1 };
        for round in 0..rounds {
            write(bench, &mut random, &layer);
            if round + 1 < rounds {
                change(&mut random, &mut layer, round);
            }
        }
        below = Some((format!("{number}.qcow2"), "qcow2"));
        top = Some(layer);
    }
    let top = top.unwrap();
    let disk = open(&top.path);
    let what = format!("seed {seed}");
    match try_converted(&top.path, None) {
        Ok(oracle) => assert_same(&*disk.source, &oracle, &what),
        Err(said) => assert_unreadable(&disk, &what, &said),
    }
    assert!(disk.warnings.is_empty(), "{what}: {:?}", disk.warnings);
    assert_eq!(disk.snapshots.len(), top.snapshots.len(), "{what}");
    for name in &top.snapshots {
        let disk = open_reference(&format!("{}::{name}", top.path.display()));
        let what = format!("{what}, {name}");
        match try_converted(&top.path, Some(name)) {
            Ok(oracle) => {
                let oracle = fs::File::open(oracle).unwrap();
                let len = disk.source.len().min(oracle.metadata().unwrap().len());
                assert_prefix(&*disk.source, &oracle, len, &what);
            }
            Err(said) => assert_unreadable(&disk, &what, &said),
        }
    }
}

/// QEMU 7.2 damages a version 2 image when it discards some compressed clusters (seed 412), and
/// cannot read it any more. Then neither can this reader.
fn assert_unreadable(disk: &Disk, what: &str, said: &str) {
    assert!(said.contains("error while reading"), "{what}: {said}");
    let mut bytes = vec![0; disk.source.len() as usize];
    let error = disk.source.read_at(0, &mut bytes).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{what}: {error}");
}

fn create(bench: &Bench, random: &mut Random, number: u64, below: Option<(String, &str)>) -> Layer {
    let bits = match random.below(12) {
        0 => 9 + random.below(3),
        1 => 17 + random.below(5),
        _ => 12 + random.below(5),
    };
    let cluster = 1_u64 << bits;
    let most: u64 = if bits < 12 { 2 << 20 } else { 8 << 20 };
    let size = (1 + random.below(most / 512)) * 512;
    let version = if random.once_in(5) { 2 } else { 3 };
    let mut options = format!("cluster_size={cluster}");
    let mut data_file = false;
    if version == 2 {
        options += ",compat=0.10";
    } else {
        if bits >= 14 && random.once_in(3) {
            options += ",extended_l2=on";
        }
        if random.once_in(3) {
            options += ",compression_type=zstd";
        }
        if random.once_in(6) {
            options += ",lazy_refcounts=on";
        }
        if random.once_in(6) {
            options += &format!(",refcount_bits={}", 1 << (3 + random.below(4)));
        }
        if random.once_in(8) {
            data_file = true;
            options += &format!(",data_file={}", bench.path(&format!("{number}.data")).display());
            if below.is_none() && random.once_in(2) {
                options += ",data_file_raw=on";
            }
        }
    }
    let path = bench.path(&format!("{number}.qcow2"));
    let size_text = size.to_string();
    let mut args = vec!["create", "-q", "-f", "qcow2", "-o", &options];
    if let Some((name, format)) = &below {
        args.extend(["-b", name, "-F", format]);
    }
    args.extend([path.to_str().unwrap(), &size_text]);
    qemu_img(args);
    Layer {
        path,
        size,
        cluster,
        version,
        data_file,
        backed: below.is_some(),
        snapshots: Vec::new(),
    }
}

fn write(bench: &Bench, random: &mut Random, layer: &Layer) {
    let mut commands = Vec::new();
    for _ in 0..4 + random.below(16) {
        let at = random.below(layer.size / 512) * 512;
        let most = if random.once_in(2) { 8192 } else { 10 * layer.cluster.min(65536) };
        let len = (512 + random.below(most) / 512 * 512).min(layer.size - at);
        let whole = (at / layer.cluster * layer.cluster, layer.cluster);
        let fits = whole.0 + whole.1 <= layer.size;
        commands.push(match random.below(9) {
            0 => format!("write -q -z {at} {len}"),
            1 => format!("write -q -z -u {at} {len}"),
            2 => format!("discard -q {at} {len}"),
            3 if fits => format!("write -q -z -u {} {}", whole.0, whole.1),
            4 if fits => format!("discard -q {} {}", whole.0, whole.1),
            5 | 6 if fits && !layer.data_file => {
                let from = if random.once_in(4) { "@noise" } else { "@text" };
                format!("write -q -c -s {from} {} {}", whole.0, whole.1)
            }
            7 => format!("write -q -s @noise {at} {len}"),
            _ => format!("write -q -P {} {at} {len}", 1 + random.below(255)),
        });
    }
    bench.io(&layer.path, &commands);
}

/// A snapshot or a new size, where QEMU allows it.
fn change(random: &mut Random, layer: &mut Layer, round: u64) {
    let path = layer.path.to_str().unwrap();
    // Version 2 has no zero clusters, so it cannot hide what a backing file has in a grown part.
    let resizable = layer.version == 3 || (layer.snapshots.is_empty() && !layer.backed);
    if !layer.data_file && (!resizable || random.once_in(2)) {
        let name = format!("round {round}");
        qemu_img(["snapshot", "-c", &name, path]);
        layer.snapshots.push(name);
    } else if resizable {
        let most = if layer.cluster < 4096 { 2 << 20 } else { 8 << 20 };
        let size = (1 + random.below(most / 512)) * 512;
        if size >= layer.size || layer.snapshots.is_empty() {
            qemu_img(["resize", "-q", "--shrink", "-f", "qcow2", path, &size.to_string()]);
            layer.size = size;
        }
    }
}
