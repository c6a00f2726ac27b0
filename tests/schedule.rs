//! `strata snapshot run`: what a file says is done, whatever of it fails.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{as_nobody, noise, quick_dir, run, stdout, strata, tool};

/// How long something that takes a moment is waited for.
const LIMIT: Duration = Duration::from_secs(60);

struct Place(tempfile::TempDir);

impl Place {
    /// A folder with a store, a second one and two disks.
    fn new() -> Self {
        let place = Self(quick_dir());
        for store in ["st", "st2"] {
            run(strata().args(["store", "init"]).arg(place.path(store)));
        }
        for (nth, disk) in ["web.raw", "db.raw"].iter().enumerate() {
            fs::write(place.path(disk), noise(nth as u64, 3 << 20)).unwrap();
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a configuration that uses `st`.
    fn config(&self, text: &str) -> &Self {
        let text = text.replace("[store]", "[store]\nat = \"st\"");
        fs::write(self.path("conf.toml"), text).unwrap();
        self
    }

    fn strata(&self, args: &[&str]) -> Command {
        let mut strata = strata();
        strata.current_dir(self.0.path()).args(args);
        for name in ["STRATA_KEY_FILE", "STRATA_PASSPHRASE", "STRATA_TRUSTED_KEYS"] {
            strata.env_remove(name);
        }
        strata
    }

    /// Runs it from another folder than its own.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.strata(&["snapshot", "run"]);
        command.arg(self.path("conf.toml")).args(args).current_dir("/");
        command
    }

    /// Runs it: the exit status, what it reports, and what it complained about.
    fn run(&self, args: &[&str]) -> (i32, Value, String) {
        let Output { status, stdout, stderr } = self.command(args).arg("--json").output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        let report = serde_json::from_slice(&stdout).unwrap_or(Value::Null);
        (status.code().unwrap(), report, stderr)
    }

    #[track_caller]
    fn runs(&self) -> Value {
        let (status, report, complaints) = self.run(&[]);
        assert_eq!((status, complaints.as_str()), (0, ""), "{report:#}");
        report
    }

    /// Starts it, and waits for the file `begun`.
    fn start(&self) -> Child {
        let mut command = self.command(&[]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        until("it has begun", || self.path("begun").exists());
        child
    }

    fn snapshots(&self, store: &str) -> Vec<Value> {
        let listed = stdout(&mut self.strata(&["snapshot", "list", "--json", store]));
        listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn times(&self, store: &str) -> Vec<String> {
        let text = |value: &Value| value["time"].as_str().unwrap()[..10].to_owned();
        self.snapshots(store).iter().map(text).collect()
    }

    fn old(&self, series: &str, time: &str) {
        let disk = if series == "web" { "web.raw" } else { "db.raw" };
        run(&mut self.strata(&["snapshot", "create", "--time", time, "st", series, disk]));
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }
}

#[track_caller]
fn until(what: &str, seen: impl Fn() -> bool) {
    let started = Instant::now();
    while !seen() {
        assert!(started.elapsed() < LIMIT, "not seen: {what}");
        sleep(Duration::from_millis(10));
    }
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(child.id().try_into().unwrap()).unwrap(), signal).unwrap();
}

const BOTH: &str = r#"
[store]
keep = { daily = 2 }

[copy]
at = "st2"
keep = { monthly = 12 }
collect = "always"
grace = "0s"

[series.web]
disk = "web.raw"
tags = ["nightly"]

[series.db]
disks = { root = "db.raw", data = "web.raw" }
keep = { last = 1 }
"#;

#[test]
fn snapshots_are_made_copied_and_pruned() {
    let place = Place::new();
    for time in ["2026-01-10T01:00:00Z", "2026-01-11T01:00:00Z", "2026-02-01T01:00:00Z"] {
        place.old("web", time);
        place.old("db", time);
    }
    place.old("other", "2026-01-10T01:00:00Z");
    place.config(BOTH);

    // First it is told; nothing is done.
    let (status, plan, _) = place.run(&["--dry-run"]);
    assert_eq!(status, 0);
    assert_eq!(place.snapshots("st").len(), 7);
    assert_eq!(place.snapshots("st2").len(), 0);

    let report = place.runs();
    for key in ["removed", "kept"] {
        for (planned, done) in [(0, 0), (1, 1)] {
            assert_eq!(plan["series"][planned][key], report["series"][done][key], "{key}");
        }
    }
    assert_eq!(plan["copy"]["left"], report["copy"]["left"]);
    let today = report["started"].as_str().unwrap()[..10].to_owned();
    let [web, db] = report["series"].as_array().unwrap().as_slice() else { panic!("{report}") };
    assert_eq!(web["snapshot"]["tags"], serde_json::json!(["nightly"]));
    assert_eq!((&web["kept"], web["removed"].as_array().unwrap().len()), (&2.into(), 2));
    assert_eq!((&db["kept"], db["removed"].as_array().unwrap().len()), (&1.into(), 3));
    let disks: Vec<_> = db["snapshot"]["disks"].as_array().unwrap().iter().collect();
    assert_eq!(disks.iter().map(|it| &it["name"]).collect::<Vec<_>>(), ["root", "data"]);
    // What no rule is about stays, and so does another's series.
    assert_eq!(place.times("st"), ["2026-01-10", "2026-02-01", &today, &today]);
    // The newest of each month went to the other store before it was removed here, and nothing else did.
    let copy = &report["copy"];
    assert_eq!((&copy["left"], copy["snapshots"].as_array().unwrap().len()), (&2.into(), 6));
    assert_eq!(
        place.times("st2"),
        ["2026-01-11", "2026-01-11", "2026-02-01", "2026-02-01", &today, &today]
    );
    run(&mut place.strata(&["store", "check", "--read-data", "st2"]));

    // Again: what the other store has removed does not go there once more.
    let report = place.runs();
    let copy = &report["copy"];
    assert_eq!(copy["snapshots"].as_array().unwrap().len(), 2);
    assert_eq!(copy["removed"].as_array().unwrap().len(), 2);
    assert_eq!(place.snapshots("st2").len(), 6);
    assert_eq!(place.snapshots("st").len(), 4);
    let collected = report["collected"].as_array().unwrap();
    assert_eq!(collected.len(), 1, "only where it is to be at each run: {collected:?}");
    assert!(collected[0]["store"].as_str().unwrap().ends_with("st2"));
}

#[test]
fn the_first_run_of_a_period_collects() {
    let place = Place::new();
    place
        .config("[store]\nkeep = { last = 1 }\ngrace = \"0s\"\n[series.web]\ndisk = \"web.raw\"\n");
    assert_eq!(place.runs()["collected"].as_array().unwrap().len(), 0);
    fs::write(place.path("db.raw"), noise(7, 3 << 20)).unwrap();
    let place = Place::new();
    place
        .config("[store]\nkeep = { last = 1 }\ngrace = \"0s\"\n[series.web]\ndisk = \"web.raw\"\n");
    place.old("web", "2026-01-10T01:00:00Z");
    fs::write(place.path("web.raw"), noise(7, 3 << 20)).unwrap();
    let report = place.runs();
    assert!(report["collected"][0]["removed_bytes"].as_u64().unwrap() > 3 << 20, "{report:#}");
    assert_eq!(place.runs()["collected"].as_array().unwrap().len(), 0);
}

#[test]
fn only_the_series_that_are_named() {
    let place = Place::new();
    place.config(BOTH);
    let (status, report, _) = place.run(&["web"]);
    assert_eq!((status, report["series"].as_array().unwrap().len()), (0, 1));
    assert_eq!(place.snapshots("st").len(), 1);
    let (status, _, told) = place.run(&["mail"]);
    assert_eq!(status, 2);
    assert!(told.contains("no series mail") && told.contains("hint: there are: web, db"), "{told}");
}

#[test]
fn one_that_fails_does_not_keep_the_others_from_being_made() {
    let place = Place::new();
    for series in ["web", "db"] {
        place.old(series, "2026-01-10T01:00:00Z");
    }
    place.config(
        "[store]\nkeep = { last = 1 }\n\
         [series.gone]\ndisk = \"none.raw\"\n\
         [series.db]\ndisk = \"db.raw\"\nbefore = \"exit 3\"\nafter = \"echo after-db:$STRATA_SNAPSHOT >> log\"\n\
         [series.web]\ndisk = \"web.raw\"\nbefore = \"echo $STRATA_SERIES >> log\"\n\
         after = \"echo after:${#STRATA_SNAPSHOT} >> log\"\n\
         [series.bad-after]\ndisk = \"web.raw\"\nafter = \"echo said; kill -9 $$\"\n\
         [series.late]\ndisk = \"web.raw\"\nbefore = \"sleep 1000\"\ntimeout = \"100ms\"\n",
    );
    let (status, report, told) = place.run(&[]);
    assert_eq!((status, &report["failed"]), (1, &4.into()), "{told}");
    for line in [
        "strata: gone: ",
        "strata: db: before: ended with status 3",
        "strata: bad-after: after: ended by signal 9",
        "strata: late: before: took longer than its timeout",
    ] {
        assert!(told.contains(line), "{line}: {told}");
    }
    let made: Vec<bool> =
        report["series"].as_array().unwrap().iter().map(|it| it["snapshot"].is_object()).collect();
    assert_eq!(made, [false, false, true, true, false]);
    // What thaws is done in any case, and in the configuration's own folder.
    assert_eq!(place.log(), "after-db:\nweb\nafter:64\n");
    // What such commands print is no part of the report.
    assert!(told.contains("said\n"), "{told}");
    // Of a series of which none could be made nothing goes.
    let series: Vec<Value> =
        place.snapshots("st").iter().map(|snapshot| snapshot["series"].clone()).collect();
    assert_eq!(series, ["db", "web", "bad-after"]);
    let human = place.command(&["gone", "web"]).output().unwrap();
    let human = String::from_utf8(human.stdout).unwrap();
    assert!(human.contains("FAILED: gone: ") && human.contains("1 failure"), "{human}");
}

#[test]
fn what_could_not_be_copied_is_not_removed() {
    let place = Place::new();
    place.old("web", "2026-01-10T01:00:00Z");
    place.config(
        "[store]\nkeep = { last = 1 }\n[copy]\nat = \"none\"\n[series.web]\ndisk = \"web.raw\"\n",
    );
    let (status, report, told) = place.run(&[]);
    assert_eq!((status, &report["failed"]), (1, &1.into()));
    assert!(told.contains("none: no snapshot store") && told.contains("is it mounted?"), "{told}");
    assert!(!place.path("none").exists());
    assert_eq!(place.snapshots("st").len(), 2);
    run(&mut place.strata(&["store", "copy", "st", "none"]));
    place.runs();
    assert_eq!((place.snapshots("st").len(), place.snapshots("none").len()), (1, 3));
}

#[test]
fn each_store_has_its_key_and_copies_are_signed() {
    let place = Place::new();
    fs::remove_dir_all(place.path("st2")).unwrap();
    fs::write(place.path("key"), noise(5, 64)).unwrap();
    run(&mut place.strata(&["store", "init", "--encrypt", "--key-file", "key", "st2"]));
    run(&mut place.strata(&["snapshot", "generate-key", "sign.pem"]));
    place.config(
        "sign-key = \"sign.pem\"\n[store]\nunencrypted = true\n\
         [copy]\nat = \"st2\"\nkey-file = \"key\"\n[series.web]\ndisk = \"web.raw\"\n",
    );
    // Whatever the environment has for others.
    let mut command = place.command(&["--json"]);
    let report = stdout(command.env("STRATA_KEY_FILE", "/nowhere"));
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!((&report["failed"], &report["copy"]["signatures"]), (&0.into(), &1.into()));
    for (store, key) in [("st", None), ("st2", Some("key"))] {
        let mut convert = place.strata(&["convert", "--trusted-key", "sign.pem.pub"]);
        convert.args(key.iter().flat_map(|key| ["--key-file", key]));
        convert.arg(format!("{store}::web")).arg(format!("{store}.raw"));
        run(&mut convert);
        assert!(fs::read(place.path(&format!("{store}.raw"))).unwrap() == noise(0, 3 << 20));
    }
}

const SLOW: &str = r#"
[store]
[series.web]
disk = "web.raw"
before = "touch begun; test -e quick || sleep 1000"
after = "echo thawed >> log"
"#;

#[test]
fn another_run_is_refused_and_a_killed_one_leaves_nothing() {
    let place = Place::new();
    place.config(SLOW);
    let mut first = place.start();
    let (status, report, told) = place.run(&[]);
    assert_eq!((status, report), (75, Value::Null));
    let year = jiff::Zoned::now().year();
    let expected = format!("another run is not over yet: process {}, since {year}-", first.id());
    assert!(told.contains(&expected), "{told}");
    // Looking is no run.
    assert_eq!(place.run(&["--dry-run"]).0, 0);
    assert_eq!(place.log(), "");

    first.kill().unwrap();
    first.wait().unwrap();
    fs::write(place.path("quick"), "").unwrap();
    let (status, _, told) = place.run(&[]);
    assert_eq!(status, 0, "{told}");
    assert_eq!(place.log(), "thawed\n");
}

#[test]
fn who_interrupts_it_finds_it_tidied_up() {
    for stop in [Signal::INT, Signal::TERM, Signal::HUP] {
        let place = Place::new();
        place.config(&format!(
            "{SLOW}\n[series.next]\ndisk = \"db.raw\"\nbefore = \"touch next\"\n"
        ));
        let mut child = place.start();
        signal(&child, stop);
        assert_eq!(child.wait().unwrap().code(), Some(1));
        assert_eq!(place.log(), "thawed\n");
        assert!(!place.path("next").exists());
        assert_eq!(place.snapshots("st").len(), 0);
    }
    // Once what thaws has begun, nothing keeps it from ending.
    let place = Place::new();
    place.config(
        "[store]\n[series.web]\ndisk = \"web.raw\"\nafter = \"touch begun; sleep 1; echo thawed >> log\"\n",
    );
    let mut child = place.start();
    signal(&child, Signal::INT);
    signal(&child, Signal::TERM);
    // The snapshot is there, and all was done that was begun.
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!((place.log().as_str(), place.snapshots("st").len()), ("thawed\n", 1));
}

#[test]
fn what_makes_no_sense_is_refused_before_anything_is_done() {
    let place = Place::new();
    let (status, _, told) = place.run(&[]);
    assert_eq!(status, 1);
    assert!(told.contains("conf.toml: No such file"), "{told}");
    for (text, expected) in [
        (
            "[store]\n[series.web]\ndsik = \"web.raw\"\n",
            "conf.toml: line 4: dsik = \"web.raw\": unknown field",
        ),
        ("[store]\nkeep = { within = \"x\" }\n[series.web]\ndisk = \"d\"\n", "conf.toml: line 3: "),
        ("[store]\n", "missing field `series`"),
    ] {
        let (status, _, told) = place.config(text).run(&[]);
        assert_eq!(status, 2, "{told}");
        assert!(told.contains(expected), "{told}");
    }
    fs::write(place.path("conf.toml"), vec![b'#'; 2 << 20]).unwrap();
    assert!(place.run(&[]).2.contains("larger than 1 MiB"));
    fs::write(place.path("conf.toml"), b"\xff").unwrap();
    assert!(place.run(&[]).2.contains("UTF-8"));
    // A store that is not there is the concern of whoever is to see it.
    place.config("[store]\n[series.web]\ndisk = \"web.raw\"\nbefore = \"touch begun\"\n");
    fs::rename(place.path("st"), place.path("elsewhere")).unwrap();
    let (status, _, told) = place.run(&[]);
    assert_eq!(status, 1);
    assert!(told.contains("no snapshot store") && !place.path("begun").exists(), "{told}");
}

/// Somebody who may only read the file: the lock needs no more.
#[test]
fn an_ordinary_user_runs_it() {
    support::require_root();
    let place = Place::new();
    place.config("[store]\n[series.web]\ndisk = \"web.raw\"\n");
    run(Command::new("chown").args(["-R", "nobody"]).arg(place.path("st")));
    run(Command::new("chmod").args(["-R", "a+rX"]).arg(place.0.path()));
    // Where the program lies need not be open to everybody.
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = dir.path().join("strata");
    fs::copy(env!("CARGO_BIN_EXE_strata"), &program).unwrap();
    let mut command = as_nobody([program.as_os_str()]);
    run(command.args(["snapshot", "run"]).arg(place.path("conf.toml")));
    assert_eq!(place.snapshots("st").len(), 1);
}

/// A disk that changes costs what changed, also in the other store.
#[test]
fn the_second_store_gets_what_it_lacks() {
    let place = Place::new();
    place.config("[store]\n[copy]\nat = \"st2\"\n[series.web]\ndisk = \"web.raw\"\n");
    let first = place.runs();
    let disk = File::options().write(true).open(place.path("web.raw")).unwrap();
    disk.write_all_at(&noise(9, 4096), 1 << 20).unwrap();
    let second = place.runs();
    let stored = |report: &Value| report["copy"]["stored"].as_u64().unwrap();
    assert!(stored(&first) > 3 << 20 && stored(&second) < 200 << 10, "{second:#}");
    let raw = place.path("out.raw");
    run(place.strata(&["convert", "st2::web"]).arg(&raw));
    assert!(same(&raw, &place.path("web.raw")));
}

fn same(one: &Path, other: &Path) -> bool {
    fs::read(one).unwrap() == fs::read(other).unwrap()
}

/// The units say nothing that systemd does not know, and the timer has its service.
#[test]
fn systemd_understands_the_units() {
    let place = Place::new();
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/systemd");
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let text = fs::read_to_string(entry.path()).unwrap();
        let text = text.replace("/usr/local/bin/strata", env!("CARGO_BIN_EXE_strata"));
        let text = text.replace("# OnFailure", "OnFailure");
        let name = entry.file_name().into_string().unwrap();
        fs::write(place.path(&name), &text).unwrap();
        let name = name.replace('@', "@nightly");
        fs::write(place.path(&name), &text).unwrap();
        names.push(name);
    }
    names.sort();
    assert_eq!(
        names,
        [
            "strata-failed@nightly.service",
            "strata-snapshot@nightly.service",
            "strata-snapshot@nightly.timer"
        ]
    );
    let mut analyze = tool("systemd-analyze", "systemd");
    analyze.current_dir(place.0.path()).args(["verify", "--man=no"]);
    let Output { status, stdout, stderr } =
        analyze.args(names.iter().map(|name| format!("./{name}"))).output().unwrap();
    let told = [stdout, stderr].map(|text| String::from_utf8(text).unwrap()).concat();
    assert!(status.success() && told.is_empty(), "{told}");
}
