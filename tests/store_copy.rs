//! `strata store copy` between stores that are opened by different things.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use support::{fails, noise, quick_dir, run, stdout, strata};

/// What of the environment opens stores.
const SECRETS: [&str; 7] = [
    "STRATA_KEY_FILE",
    "STRATA_PASSPHRASE_FILE",
    "STRATA_PASSPHRASE",
    "STRATA_FROM_KEY_FILE",
    "STRATA_FROM_PASSPHRASE_FILE",
    "STRATA_FROM_PASSPHRASE",
    "STRATA_TRUSTED_KEYS",
];

struct Place(tempfile::TempDir);

impl Place {
    /// A folder with the store `plain`, two that are encrypted with the key files `one` and `two`, and one that `pass`, a
    /// passphrase, opens; three snapshots are in `plain`.
    fn new() -> Self {
        let place = Self(quick_dir());
        for (seed, key) in ["one.key", "two.key"].iter().enumerate() {
            fs::write(place.path(key), noise(seed as u64, 64)).unwrap();
        }
        fs::write(place.path("pass"), "secret\n").unwrap();
        run(&mut place.strata(&["store", "init", "plain"]));
        for (store, options) in [
            ("one", ["--key-file", "one.key"]),
            ("two", ["--key-file", "two.key"]),
            ("three", ["--passphrase-file", "pass"]),
        ] {
            run(place.strata(&["store", "init", "--encrypt", store]).args(options));
        }
        for nth in 0..3 {
            fs::write(place.path("disk.raw"), disk(nth)).unwrap();
            let time = format!("2026-11-2{nth}T01:00:00Z");
            run(&mut place
                .strata(&["snapshot", "create", "--time", &time, "plain", "web", "disk.raw"]));
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn strata(&self, args: &[&str]) -> Command {
        let mut strata = strata();
        for name in SECRETS {
            strata.env_remove(name);
        }
        strata.current_dir(self.0.path()).args(args);
        strata
    }

    fn copy(&self, args: &[&str]) -> Command {
        let mut copy = self.strata(&["store", "copy"]);
        copy.args(args);
        copy
    }

    /// What of the snapshots is in `store`, which `options` open.
    #[track_caller]
    fn assert_all(&self, store: &str, options: &[&str]) {
        for nth in 0..3 {
            let reference = format!("{store}::web@2026-11-2{nth}");
            let _ = fs::remove_file(self.path("out.raw"));
            run(self.strata(&["convert", &reference, "out.raw"]).args(options));
            assert!(fs::read(self.path("out.raw")).unwrap() == disk(nth), "{reference}");
        }
        run(self.strata(&["store", "check", "--read-data", store]).args(options));
    }
}

fn json(command: &mut Command) -> Value {
    serde_json::from_str(&stdout(command.arg("--json"))).unwrap()
}

/// A disk of 6 MiB, of which 128 KiB change each time.
fn disk(nth: u64) -> Vec<u8> {
    let mut disk = noise(1, 6 << 20);
    for nth in 1..=nth {
        let at = (nth as usize) << 20;
        disk[at..at + (128 << 10)].copy_from_slice(&noise(10 + nth, 128 << 10));
    }
    disk
}

#[test]
fn from_every_store_into_every_other() {
    let place = Place::new();
    let told =
        json(&mut place.copy(&["plain", "one", "--from-unencrypted", "--key-file", "one.key"]));
    assert_eq!(told["snapshots"].as_array().unwrap().len(), 3);
    place.assert_all("one", &["--key-file", "one.key"]);
    // Each is the whole of the disk once, and then what changed.
    let stored = told["stored"].as_u64().unwrap();
    assert!((6 << 20..7 << 20).contains(&stored), "{told}");

    let mut copy = place.copy(&["one", "two", "--key-file", "two.key"]);
    let told = json(copy.env("STRATA_FROM_KEY_FILE", "one.key"));
    assert_eq!(told["snapshots"].as_array().unwrap().len(), 3);
    place.assert_all("two", &["--key-file", "two.key"]);

    let mut copy = place.copy(&["two", "three", "--from-key-file", "two.key"]);
    run(copy.env("STRATA_PASSPHRASE", "secret"));
    place.assert_all("three", &["--passphrase-file", "pass"]);

    // Back to where they came from, nothing goes.
    let told = json(&mut place.copy(&["three", "plain", "--from-passphrase-file", "pass"]));
    assert_eq!((&told["already"], &told["stored"]), (&3.into(), &0.into()));
    run(&mut place.strata(&["store", "init", "--block-size", "64K", "small"]));
    let mut copy = place.copy(&["three", "small"]);
    run(copy.env("STRATA_FROM_PASSPHRASE", "secret"));
    place.assert_all("small", &[]);
    let mut copy = place.copy(&["small", "one", "--key-file", "one.key", "--from-unencrypted"]);
    assert_eq!(json(&mut copy)["already"], 3);
}

#[test]
fn what_is_mistaken_is_told_with_what_to_do() {
    let place = Place::new();
    let told = fails(&mut place.copy(&["plain", "one", "--key-file", "one.key"]));
    assert!(told.contains("plain: ") && told.contains("not encrypted"), "{told}");
    assert!(told.contains("hint: if that is as it should be, --from-unencrypted"), "{told}");
    let told = fails(&mut place.copy(&["one", "plain", "--key-file", "one.key"]));
    assert!(told.contains("plain: ") && told.contains("--from-key-file"), "{told}");
    let told = fails(&mut place.copy(&[
        "one",
        "two",
        "--from-key-file",
        "two.key",
        "--key-file",
        "two.key",
    ]));
    assert!(told.contains("one: ") && told.contains("opens none of its keys"), "{told}");
    // What is made by copying is opened by the same, so that something else cannot open it.
    let told =
        fails(&mut place.copy(&["plain", "new", "--from-unencrypted", "--key-file", "one.key"]));
    assert!(told.contains("no snapshot store") && told.contains("strata store init new"), "{told}");
    assert!(!place.path("new").exists());
    let told =
        fails(&mut place.copy(&["one", "two", "--from-unencrypted", "--from-key-file", "x"]));
    assert!(told.contains("cannot be used with"), "{told}");
}

#[test]
fn signatures_are_copied_told_of_or_made() {
    let place = Place::new();
    run(&mut place.strata(&["snapshot", "generate-key", "key.pem"]));
    run(&mut place.strata(&["snapshot", "sign", "--sign-key", "key.pem", "plain::web"]));
    let verify = |store: &str, options: &[&str]| {
        let reference = format!("{store}::web");
        let mut info = place.strata(&["info", "--trusted-key", "key.pem.pub", &reference]);
        info.args(options).output().unwrap().status.success()
    };
    // A new store is of the same number: the signature holds.
    assert_eq!(json(&mut place.copy(&["plain", "twin"]))["signatures"], 1);
    assert!(verify("twin", &[]));
    let key = ["--key-file", "one.key"];
    let told = stdout(place.copy(&["plain", "one", "--from-unencrypted"]).args(key));
    assert!(told.contains("was signed, and its copy is not"), "{told}");
    assert!(!verify("one", &key));
    let key = ["--key-file", "two.key"];
    let mut copy = place.copy(&["plain", "two", "--from-unencrypted", "--sign-key", "key.pem"]);
    let told = json(copy.args(key));
    assert_eq!((&told["signatures"], &told["unsigned"]), (&3.into(), &Value::Array(vec![])));
    assert!(verify("two", &key));
}
