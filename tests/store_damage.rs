//! Damage of a store, from the command line: told with snapshots and files, repaired, healed.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use serde_json::Value;
use support::{run, stdout, strata, tool};

const BLOCK: usize = 128 << 10;
const DISK: usize = 24 << 20;

struct Place(tempfile::TempDir);

impl Place {
    fn new(init: &[&str]) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        run(place.strata(&["store", "init"]).args(init).arg("st"));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn strata(&self, args: &[&str]) -> std::process::Command {
        let mut command = strata();
        command.current_dir(self.0.path()).args(args);
        command
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_slice(&self.output(args).stdout).unwrap()
    }

    fn output(&self, args: &[&str]) -> Output {
        self.strata(args).output().unwrap()
    }

    /// A disk with a filesystem whose files do not compress, so that each byte of the disk lies somewhere in a pack as it is.
    fn disk(&self) -> Vec<u8> {
        let files = self.path("files");
        fs::create_dir_all(files.join("deep/down")).unwrap();
        for number in 0..40_u64 {
            let mut bytes = vec![0; 20_000 + 17_000 * number as usize % 300_000];
            blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut bytes);
            let name =
                if number % 2 == 0 { format!("{number}") } else { format!("deep/down/{number}") };
            fs::write(files.join(name), bytes).unwrap();
        }
        fs::hard_link(files.join("8"), files.join("deep/eight")).unwrap();
        let disk = self.path("disk.raw");
        File::create(&disk).unwrap().set_len(DISK as u64).unwrap();
        let mut mke2fs = tool("mke2fs", "e2fsprogs");
        run(mke2fs.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-d"]).arg(&files).arg(&disk));
        fs::read(disk).unwrap()
    }

    fn create(&self, series: &str) -> String {
        let made = self.json(&["snapshot", "create", "--json", "st", series, "disk.raw"]);
        made["id"].as_str().unwrap().to_owned()
    }

    /// Flips a bit of the stored block `number` of `disk`, which is stored as it is.
    fn flip(&self, disk: &[u8], number: usize) {
        let wanted = &disk[number * BLOCK + 1000..number * BLOCK + 1064];
        for pack in packs(&self.path("st/packs")) {
            let bytes = fs::read(&pack).unwrap();
            if let Some(at) = bytes.windows(wanted.len()).position(|window| window == wanted) {
                let file = OpenOptions::new().write(true).open(pack).unwrap();
                return file.write_all_at(&[wanted[7] ^ 2], at as u64 + 7).unwrap();
            }
        }
        panic!("block {number} lies in no pack as it is");
    }
}

fn packs(dir: &Path) -> Vec<PathBuf> {
    let folders = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    folders.flat_map(|dir| fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path())).collect()
}

/// The paths of the files that own any of these blocks of 4,096 bytes, as debugfs knows them.
fn owners(disk: &Path, blocks: std::ops::Range<u64>) -> BTreeSet<String> {
    let debugfs =
        |request: String| stdout(tool("debugfs", "e2fsprogs").args(["-R", &request]).arg(disk));
    let list: Vec<String> = blocks.map(|block| block.to_string()).collect();
    let told = debugfs(format!("icheck {}", list.join(" ")));
    let inodes: BTreeSet<&str> = told
        .lines()
        .skip(1)
        .filter_map(|line| line.split('\t').nth(1))
        .filter(|inode| inode.parse::<u32>().is_ok_and(|inode| inode > 11))
        .collect();
    let inodes: Vec<&str> = inodes.into_iter().collect();
    let told = debugfs(format!("ncheck {}", inodes.join(" ")));
    let paths = told.lines().skip(1).filter_map(|line| line.split('\t').nth(1));
    paths.map(|path| format!("/{}", path.trim_start_matches('/'))).collect()
}

/// A block whose bytes are noise from its first to its last 4,096: only files own it.
fn of_files(disk: &[u8], from: usize) -> usize {
    let is_noise = |page: &[u8]| page.iter().collect::<BTreeSet<_>>().len() > 200;
    let whole =
        |number: &usize| disk[number * BLOCK..(number + 1) * BLOCK].chunks(4096).all(is_noise);
    (from..DISK / BLOCK).find(whole).unwrap()
}

fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

#[test]
fn damage_is_told_with_files_repaired_and_healed() {
    let place = Place::new(&[]);
    let disk = place.disk();
    // Long enough ago that a snapshot may rely on it.
    std::thread::sleep(Duration::from_millis(2500));
    let first = place.create("web");
    let second = place.create("web");
    let block = of_files(&disk, 20);
    place.flip(&disk, block);
    assert_eq!(place.json(&["store", "check", "--json", "st"])["problems"], Value::Array(vec![]));

    let checked = place.output(&["store", "check", "--read-data", "st"]);
    assert_eq!(checked.status.code(), Some(1));
    let (told, hints) = (text(&checked.stdout), text(&checked.stderr));
    let place_of = format!("disk: 128 KiB lost at {:#x}-{:#x}", block * BLOCK, (block + 1) * BLOCK);
    for id in [&first, &second] {
        assert!(told.contains(&format!(" {id}, {place_of}")), "{told}");
    }
    assert!(told.contains("not whole: web@") && told.contains("2 snapshots"), "{told}");
    assert!(hints.contains("--files") && hints.contains("repair --read-data"), "{hints}");

    let first_page = (block * BLOCK / 4096) as u64;
    let owners = owners(&place.path("disk.raw"), first_page..first_page + 32);
    assert!(!owners.is_empty());
    let json = place.json(&["store", "check", "--read-data", "--files", "--json", "st"]);
    let problems = json["problems"].as_array().unwrap();
    let lost: Vec<&Value> = problems.iter().filter(|it| !it["lost"].is_null()).collect();
    assert_eq!(lost.len(), 2, "{json}");
    for problem in &lost {
        let files = problem["files"].as_array().unwrap();
        let files: BTreeSet<String> = files
            .iter()
            .inspect(|file| assert_eq!(file["part"], "contents"))
            .map(|file| file["path"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(files, owners);
        assert_eq!(problem["lost"]["bytes"], BLOCK);
        assert_eq!(problem["lost"]["ranges"][0]["offset"], block * BLOCK);
    }
    let told = text(&place.output(&["store", "check", "--read-data", "--files", "st"]).stdout);
    assert!(owners.iter().all(|path| told.contains(&format!("\n  {path}\n"))), "{told}");

    // The file cannot be read, and says of which snapshot it is; others can.
    let path = owners.iter().next().unwrap();
    let cat = place.output(&["cat", "st::web", path]);
    let told = text(&cat.stderr);
    assert!(!cat.status.success() && told.contains("web@") && told.contains("packs/"), "{told}");

    let repaired = place.output(&["store", "repair", "--read-data", "st"]);
    assert_eq!(repaired.status.code(), Some(1));
    let told = text(&repaired.stdout);
    assert!(told.contains("under quarantine") && told.contains("written anew"), "{told}");
    // What lies in the disk's file is taken as unchanged without being read; what is lost is read.
    let third = place.json(&["snapshot", "create", "--json", "st", "web", "disk.raw"]);
    assert_eq!(third["disks"][0]["new_blocks"], 1, "{third}");
    let told = stdout(&mut place.strata(&["store", "check", "--read-data", "st"]));
    assert!(told.contains("1 of them under quarantine: 0 problems"), "{told}");
    for id in [first, second] {
        run(&mut place.strata(&["convert", &format!("st::{id}"), "out.raw"]));
        assert!(fs::read(place.path("out.raw")).unwrap() == disk);
        fs::remove_file(place.path("out.raw")).unwrap();
    }
    run(&mut place.strata(&["store", "collect", "--grace", "0s", "st"]));
    let told = stdout(&mut place.strata(&["store", "check", "--read-data", "st"]));
    assert!(!told.contains("quarantine"), "{told}");
}

#[test]
fn folders_and_what_lies_in_no_file_are_told_too() {
    let place = Place::new(&[]);
    let disk = place.disk();
    place.create("web");
    // The first block holds the superblock.
    let pack = packs(&place.path("st/packs")).remove(0);
    let bytes = fs::read(&pack).unwrap();
    fs::remove_file(&pack).unwrap();
    let json = place.json(&["store", "check", "--files", "--json", "st"]);
    let problems = json["problems"].as_array().unwrap();
    let files = &problems.iter().find(|it| !it["lost"].is_null()).unwrap()["files"];
    assert_eq!(files[0]["part"], "filesystem", "{json}");
    assert!(problems.iter().any(|it| it["what"].as_str().unwrap().contains("is not there")));
    fs::write(&pack, bytes).unwrap();
    assert_eq!(disk.len(), DISK);
    assert_eq!(
        place.json(&["store", "check", "--files", "--json", "st"])["problems"],
        Value::Array(vec![])
    );
}
