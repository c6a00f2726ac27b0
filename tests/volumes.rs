//! Partition tables made by `fdisk` and `sgdisk`, read by us and by `fdisk`.
#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use stratafs::block::{BlockSource, FileSource};
use stratafs::volume::{self, Scheme, Table};
use support::{run, tool};
use tempfile::TempDir;

struct Disk {
    _dir: TempDir,
    path: PathBuf,
}

fn disk(mebibytes: u64) -> Disk {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    File::create(&path).unwrap().set_len(mebibytes << 20).unwrap();
    Disk { _dir: dir, path }
}

/// Runs `fdisk` for a disk of `sector` bytes per sector. (`sfdisk`, whose scripts it reads and
/// writes, takes the sector size from the device only.)
fn fdisk(disk: &Path, sector: u32, commands: &str) {
    let input = disk.with_extension("commands");
    std::fs::write(&input, commands).unwrap();
    let mut command = tool("fdisk", "fdisk");
    command.args(["--sector-size", &sector.to_string()]).arg(disk);
    run(command.stdin(File::open(input).unwrap()));
}

/// Makes the table that an `sfdisk` script describes.
fn partition(disk: &Path, sector: u32, script: &str) {
    let path = disk.with_extension("script");
    std::fs::write(&path, script).unwrap();
    fdisk(disk, sector, &format!("I\n{}\nw\n", path.display()));
}

fn sgdisk(disk: &Path, args: &[&str]) {
    run(tool("sgdisk", "gdisk").args(args).arg(disk));
}

fn source(path: &Path) -> Arc<dyn BlockSource> {
    Arc::new(FileSource::open(path).unwrap())
}

fn scan(path: &Path) -> Table {
    volume::scan(&source(path)).unwrap().expect("a partition table")
}

/// The value of `name=` in a line of an `sfdisk` script.
fn field(line: &str, name: &str) -> Option<String> {
    let rest = &line[line.find(&format!(" {name}="))? + name.len() + 2..];
    match rest.strip_prefix('"') {
        Some(quoted) => Some(quoted[..quoted.find('"')?].to_owned()),
        None => Some(rest.split(',').next()?.trim().to_owned()),
    }
}

/// Non-ASCII bytes are dumped as `\xc3`.
fn unescape(name: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = name;
    while let Some(at) = rest.find("\\x") {
        bytes.extend(rest[..at].bytes());
        bytes.push(u8::from_str_radix(&rest[at + 2..at + 4], 16).unwrap());
        rest = &rest[at + 4..];
    }
    bytes.extend(rest.bytes());
    String::from_utf8(bytes).unwrap()
}

/// Compares what we read with what `fdisk` reads; returns ours.
#[track_caller]
fn same_as_fdisk(path: &Path, sector: u32) -> Table {
    let ours = scan(path);
    let dump = path.with_extension("dump");
    let _ = std::fs::remove_file(&dump);
    fdisk(path, sector, &format!("O\n{}\nq\n", dump.display()));
    let theirs = std::fs::read_to_string(dump).unwrap();
    let header = |name: &str| {
        let line = theirs.lines().find_map(|line| line.strip_prefix(name)).expect(name);
        line.trim_start_matches(':').trim().to_lowercase()
    };

    let gpt = ours.scheme == Scheme::Gpt;
    assert_eq!(header("label:"), if gpt { "gpt" } else { "dos" });
    assert_eq!(header("label-id:"), ours.id);
    assert_eq!(ours.sector_size, sector);

    let device = path.display().to_string();
    let mut partitions = Vec::new();
    for line in theirs.lines() {
        let Some((number, line)) =
            line.strip_prefix(&device).and_then(|line| line.split_once(" : "))
        else {
            continue;
        };
        let line = format!(" {line}");
        let kind = field(&line, "type").unwrap().to_lowercase();
        if !gpt && ["5", "f", "85"].contains(&kind.as_str()) {
            continue;
        }
        let bytes =
            |name: &str| field(&line, name).unwrap().parse::<u64>().unwrap() * u64::from(sector);
        partitions.push((
            number.parse::<u32>().unwrap(),
            bytes("start"),
            bytes("size"),
            if gpt { kind } else { format!("0x{kind:0>2}") },
            field(&line, "name").map(|name| unescape(&name)),
            line.ends_with("bootable") || line.contains("LegacyBIOSBootable"),
            field(&line, "uuid").map(|uuid| uuid.to_lowercase()),
        ));
    }
    let volumes: Vec<_> = ours
        .volumes
        .iter()
        .map(|volume| {
            (
                volume.number,
                volume.start,
                volume.len,
                volume.type_id.clone(),
                volume.name.clone(),
                volume.active,
                volume.uuid.clone().filter(|_| gpt),
            )
        })
        .collect();
    assert_eq!(volumes, partitions);
    ours
}

const GPT: &str = "label: gpt\n\
    size=1M, type=21686148-6449-6E6F-744E-656564454649\n\
    size=16M, type=U, name=\"EFI System Partition\"\n\
    start=64M, size=32M, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name=\"ro/ot Ünï\", attrs=LegacyBIOSBootable\n\
    size=8M, type=S\n\
    type=L, name=\"a name of thirty-six characters, all\"\n";

const DOS: &str = "label: dos\nlabel-id: 0xdeadbeef\n\
    size=16M, type=83, bootable\n\
    size=8M, type=82\n\
    size=64M, type=5\n\
    type=c\n\
    size=8M, type=83\n\
    size=8M, type=8e\n\
    size=16M, type=7\n\
    size=4M, type=fd\n";

#[test]
fn gpt_as_fdisk_reads_it() {
    for sector in [512, 4096] {
        let disk = disk(256);
        partition(&disk.path, sector, GPT);
        let table = same_as_fdisk(&disk.path, sector);
        assert_eq!(table.warnings, [""; 0]);
        assert_eq!(table.volumes[2].kind, "Linux root (x86-64)");
        assert!(table.volumes[2].is_root_type() && table.volumes[2].active);
        assert_eq!(table.volumes.len(), 5);
    }
}

#[test]
fn mbr_with_logical_partitions_as_fdisk_reads_it() {
    for sector in [512, 4096] {
        let disk = disk(256);
        partition(&disk.path, sector, DOS);
        let table = same_as_fdisk(&disk.path, sector);
        let numbers: Vec<_> = table.volumes.iter().map(|volume| volume.number).collect();
        assert_eq!(numbers, [1, 2, 4, 5, 6, 7, 8]);
        assert_eq!(table.volumes[3].uuid.as_deref(), Some("deadbeef-05"));
    }
}

#[test]
fn mbr_without_logical_partitions_as_fdisk_reads_it() {
    for sector in [512, 4096] {
        let disk = disk(128);
        partition(&disk.path, sector, "label: dos\nsize=16M, type=ef\ntype=83\n");
        same_as_fdisk(&disk.path, sector);
    }
}

#[test]
fn tables_without_partitions_as_fdisk_reads_them() {
    for label in ["gpt", "dos"] {
        let disk = disk(64);
        partition(&disk.path, 512, &format!("label: {label}\n"));
        assert_eq!(same_as_fdisk(&disk.path, 512).volumes, []);
    }
}

#[test]
fn gaps_in_the_numbers_are_kept() {
    let disk = disk(128);
    sgdisk(&disk.path, &["-n3:2048:4095", "-n128:8192:9000", "-c128:last", "-n7:6144:6145"]);
    let table = same_as_fdisk(&disk.path, 512);
    let numbers: Vec<_> = table.volumes.iter().map(|volume| volume.number).collect();
    assert_eq!(numbers, [3, 7, 128]);
}

#[test]
fn a_damaged_primary_gpt_is_no_loss() {
    for (sector, first, len) in [(512u64, 512u64, 512), (512, 1024, 4096), (4096, 4096, 4096)] {
        let disk = disk(256);
        partition(&disk.path, sector as u32, GPT);
        let whole = scan(&disk.path);
        let file = File::options().write(true).open(&disk.path).unwrap();
        file.write_all_at(&vec![0xa5; len], first).unwrap();
        let table = same_as_fdisk(&disk.path, sector as u32);
        assert_eq!(table.volumes, whole.volumes);
        assert_eq!(table.warnings.len(), 1, "{:?}", table.warnings);
        assert!(table.warnings[0].contains("the backup at the end of the disk is used instead"));
    }
}

#[test]
fn a_damaged_backup_gpt_is_told() {
    let disk = disk(256);
    partition(&disk.path, 512, GPT);
    let file = File::options().write(true).open(&disk.path).unwrap();
    file.write_all_at(&[0; 512], (256 << 20) - 512).unwrap();
    let table = same_as_fdisk(&disk.path, 512);
    assert_eq!(table.warnings, ["backup of the partition table: no GPT header at LBA 524287"]);
}

#[test]
fn a_gpt_on_a_disk_that_grew() {
    let disk = disk(256);
    partition(&disk.path, 512, GPT);
    File::options().write(true).open(&disk.path).unwrap().set_len(300 << 20).unwrap();
    assert_eq!(scan(&disk.path).warnings, [""; 0]);
    same_as_fdisk(&disk.path, 512);
}

#[test]
fn a_hybrid_mbr_is_a_gpt() {
    let disk = disk(256);
    partition(&disk.path, 512, GPT);
    sgdisk(&disk.path, &["--hybrid=2:3"]);
    assert_eq!(scan(&disk.path).scheme, Scheme::Gpt);
    assert_eq!(scan(&disk.path).volumes.len(), 5);
}

#[test]
fn a_large_entry_table() {
    let disk = disk(64);
    sgdisk(&disk.path, &["--clear", "-S", "1024", "-n1000:8192:9000", "-c1000:far out"]);
    let table = same_as_fdisk(&disk.path, 512);
    assert_eq!(table.volumes[0].number, 1000);
}

#[test]
fn a_filesystem_right_on_the_disk_is_no_table() {
    let disk = disk(64);
    run(tool("mkfs.ext4", "e2fsprogs").arg("-q").arg(&disk.path));
    assert_eq!(volume::scan(&source(&disk.path)).unwrap(), None);

    // Made over an older table, of which the end of the disk still has the backup.
    let disk = self::disk(64);
    partition(&disk.path, 512, "label: gpt\n,\n");
    run(tool("mkfs.ext4", "e2fsprogs").args(["-q", "-F"]).arg(&disk.path));
    assert_eq!(volume::scan(&source(&disk.path)).unwrap(), None);
}
