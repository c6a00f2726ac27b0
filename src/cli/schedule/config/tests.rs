use std::path::Path;

use super::*;

const WHOLE: &str = r#"
sign-key = "sign.pem"

[store]
at = "st"
key-file = "/etc/strata/key"
keep = { last = 3, daily = 7, within = "36h", tags = ["keep"] }
collect = "weekly"
grace = "2d"

[copy]
at = "s3://bucket/prefix"
endpoint = "https://s3.example.org"
path-style = true
keep = { monthly = 24 }

[series.web01]
disk = "/dev/vg0/web01-snapshot"
format = "raw"
tags = ["nightly"]
keep = { last = 1 }
before = "lvcreate -s -n web01-snapshot -l 20%ORIGIN vg0/web01"
after = "lvremove -y vg0/web01-snapshot"
timeout = "2m"

[series.db]
disks = { root = "db/root.qcow2", data = "db/data.qcow2::frozen" }
allow-path = ["base"]
"#;

fn parse(text: &str) -> Result<Config> {
    Config::parse(text, Path::new("/conf"))
}

/// What is said of a wrong file, and the hint.
fn refused(text: &str) -> (String, String) {
    let error = parse(text).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    (error.to_string(), error.hint().unwrap_or_default().to_owned())
}

#[test]
fn all_of_it_is_understood() {
    let config = parse(WHOLE).unwrap();
    let (store, copy) = (&config.store, config.copy.as_ref().unwrap());
    assert_eq!(config.sign_key.as_deref(), Some(Path::new("/conf/sign.pem")));
    assert_eq!(store.at, Location::Folder("/conf/st".into()));
    let keep = store.keep.as_ref().unwrap();
    assert_eq!((keep.last, keep.periods, keep.tags.len()), (3, [0, 7, 0, 0, 0], 1));
    assert_eq!((store.collect, store.grace), (Often::Weekly, Duration::from_secs(48 * 3600)));
    assert_eq!((copy.collect, copy.grace), (Often::Daily, Duration::from_secs(3600)));
    // Made by copying, it has the same key.
    assert_eq!(copy.key_file.as_deref(), Some(Path::new("/etc/strata/key")));
    assert_eq!(copy.store_args().path_style, Some(true));
    // In the order of the file.
    let [(web, series), (db, disks)] = config.series.as_slice() else { panic!("two") };
    assert_eq!((web.as_str(), db.as_str()), ("web01", "db"));
    let disk = ("disk".to_owned(), "/dev/vg0/web01-snapshot".to_owned());
    assert_eq!((&series.disks, series.format), (&vec![disk], Some(Format::Raw)));
    assert_eq!(
        (series.timeout, series.tags.as_slice()),
        (Duration::from_secs(120), &["nightly".to_owned()][..])
    );
    assert!(series.before.is_some() && series.after.is_some());
    let root = ("root".to_owned(), "/conf/db/root.qcow2".to_owned());
    let data = ("data".to_owned(), "/conf/db/data.qcow2::frozen".to_owned());
    assert_eq!(disks.disks, [root, data]);
    assert_eq!(disks.allow_path, [PathBuf::from("/conf/base")]);
    assert_eq!(disks.timeout, Duration::from_secs(900));
}

#[test]
fn what_is_wrong_is_told_with_its_line() {
    let least = "[store]\nat = \"st\"\n[series.web]\ndisk = \"d\"\n";
    parse(least).unwrap();
    for (text, line, what, hint) in [
        (least.replace("disk", "dsik"), 4, "dsik = \"d\": unknown field `dsik`", "disk"),
        (least.replace("at =", "path ="), 2, "unknown field `path`", "at"),
        (format!("{least}keep = {{ dayly = 7 }}"), 5, "unknown field `dayly`", "daily"),
        (format!("{least}keep = {{ daily = -7 }}"), 5, "-7", ""),
        (format!("{least}keep = {{ daily = \"7\" }}"), 5, "invalid type: string \"7\"", ""),
        (format!("{least}keep = {{}}"), 5, "keeps nothing", ""),
        (format!("{least}keep = {{ within = \"long\" }}"), 5, "\"long\" is not how long", ""),
        (format!("{least}keep = {{ within = \"-1d\" }}"), 5, "\"-1d\" is not how long", ""),
        (format!("{least}keep = {{ within = \"19000y\" }}"), 5, "19000y is longer than", ""),
        (format!("{least}timeout = \"1mo\""), 5, "1mo is no fixed time", ""),
        (format!("{least}tags = [\"a b\"]"), 5, "tag \"a b\"", ""),
        (format!("{least}format = \"vdi\""), 5, "image format \"vdi\"", ""),
        (format!("{least}disks = {{ a = \"x\" }}"), 3, "has both disk and disks", ""),
        (least.replace("disk = \"d\"", ""), 3, "names no disk", ""),
        (least.replace("[series.web]", "[series.\"a/b\"]"), 3, "series \"a/b\"", ""),
        (least.replace("at = \"st\"", "at = \"s3://\""), 2, "names no bucket", ""),
        (
            least.replace("\"st\"", "\"st\"\ncollect = \"yearly\""),
            3,
            "unknown variant `yearly`",
            "weekly",
        ),
        (format!("{least}disk = \"e\""), 5, "duplicate key", ""),
        (format!("{least}[series.web]\ndisk = \"e\""), 5, "duplicate key", ""),
        (format!("{least}tags = ["), 5, "", ""),
    ] {
        let (told, hinted) = refused(&text);
        assert!(told.starts_with(&format!("line {line}: ")), "{text}\n{told}");
        assert!(told.contains(what) && hinted.contains(hint), "{text}\n{told}\n{hinted}");
    }
    assert!(refused("").0.contains("missing field `store`"));
    assert!(refused("[store]\nat = \"st\"\n").0.contains("missing field `series`"));
    assert!(refused("[store]\nat = \"st\"\n[series]\n").0.contains("there is no series"));
    let same = format!("{least}[copy]\nat = \"st\"\n");
    assert!(refused(&same).0.contains("[copy] is the store itself"));
    let keys = least.replace("\"st\"", "\"st\"\nkey-file = \"k\"\nunencrypted = true");
    assert!(refused(&keys).0.starts_with("st: has several of key-file"));
}

#[test]
fn only_some_of_its_series() {
    let names = |only: &[&str]| {
        let mut config = parse(WHOLE).unwrap();
        let only: Vec<String> = only.iter().map(|&name| name.to_owned()).collect();
        config.only(&only)?;
        Ok::<_, Error>(config.series.into_iter().map(|(name, _)| name).collect::<Vec<_>>())
    };
    assert_eq!(names(&[]).unwrap(), ["web01", "db"]);
    assert_eq!(names(&["db"]).unwrap(), ["db"]);
    let error = names(&["db", "mail"]).unwrap_err();
    assert_eq!((error.kind(), error.hint()), (Kind::Usage, Some("there are: web01, db")));
}

#[test]
fn the_first_run_of_a_period_is_the_one() {
    let at = |text: &str| text.parse::<Timestamp>().unwrap();
    let zone = TimeZone::UTC;
    let before = Some(at("2026-11-22T23:50:00Z"));
    for (now, due) in [
        ("2026-11-22T23:55:00Z", &[Often::Always][..]),
        ("2026-11-23T00:00:00Z", &[Often::Always, Often::Hourly, Often::Daily, Often::Weekly]),
        (
            "2026-12-01T00:00:00Z",
            &[Often::Always, Often::Hourly, Often::Daily, Often::Weekly, Often::Monthly],
        ),
    ] {
        use Often::{Always, Daily, Hourly, Monthly, Never, Weekly};
        let all = [Always, Hourly, Daily, Weekly, Monthly, Never];
        let found: Vec<Often> =
            all.into_iter().filter(|often| often.is_due(before, at(now), &zone)).collect();
        assert_eq!(found, due, "{now}");
    }
    assert!(!Often::Daily.is_due(None, at("2026-11-22T00:00:00Z"), &zone));
    assert!(Often::Always.is_due(None, at("2026-11-22T00:00:00Z"), &zone));
}

#[test]
fn the_example_of_the_documentation_is_one() {
    let page = include_str!("../../../../docs/schedule.md");
    let (_, example) = page.split_once("```toml\n").unwrap();
    let (example, _) = example.split_once("```\n").unwrap();
    let config = parse(example).unwrap();
    assert_eq!(config.series.len(), 3);
    // Every member that there is stands on the page.
    for name in [
        "[store]",
        "[copy]",
        "[series.",
        "sign-key",
        "at",
        "key-file",
        "passphrase-file",
        "unencrypted",
        "endpoint",
        "region",
        "profile",
        "path-style",
        "allow-http",
        "request-timeout",
        "keep",
        "collect",
        "grace",
        "disk",
        "disks",
        "tags",
        "before",
        "after",
        "timeout",
        "format",
        "allow-path",
        "last",
        "hourly",
        "daily",
        "weekly",
        "monthly",
        "yearly",
        "within",
    ] {
        assert!(page.contains(&format!("`{name}")), "{name}");
    }
}
