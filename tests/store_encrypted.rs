//! Encrypted and signed stores from the command line, beside OpenSSL.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use support::{fails, noise, run, stdout, strata, tool};

/// What of the environment opens stores.
const SECRETS: [&str; 5] = [
    "STRATA_KEY_FILE",
    "STRATA_PASSPHRASE_FILE",
    "STRATA_PASSPHRASE",
    "STRATA_NEW_PASSPHRASE",
    "STRATA_TRUSTED_KEYS",
];

struct Place(tempfile::TempDir);

/// A place with a key file, a store that it opens, and a disk.
fn place() -> Place {
    let place = Place(tempfile::tempdir().unwrap());
    fs::write(place.path("key"), noise(1, 64)).unwrap();
    fs::write(place.path("disk.raw"), disk()).unwrap();
    run(place
        .strata(&["store", "init", "--encrypt", "ST"])
        .env("STRATA_KEY_FILE", place.path("key")));
    place
}

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The program with these arguments, in this folder, with no key in its environment; `ST` is the store.
    fn strata(&self, args: &[&str]) -> Command {
        let mut strata = strata();
        for name in SECRETS {
            strata.env_remove(name);
        }
        strata.current_dir(self.0.path()).args(args);
        strata
    }

    /// The same with the key file.
    fn keyed(&self, args: &[&str]) -> Command {
        let mut strata = self.strata(args);
        strata.env("STRATA_KEY_FILE", "key");
        strata
    }

    fn create(&self) -> Value {
        let args = ["snapshot", "create", "--json", "--key-file", "key", "ST", "web", "disk.raw"];
        serde_json::from_str(&stdout(&mut self.strata(&args))).unwrap()
    }
}

/// What marks bytes that must not be seen.
const MARK: &str = "the-marked-contents-of-a-disk";

fn disk() -> Vec<u8> {
    let mut disk = noise(7, 300_000);
    disk.extend(MARK.repeat(4000).bytes());
    disk.resize(4 << 20, 0);
    disk
}

#[test]
fn every_command_opens_it_with_the_key_and_none_without() {
    let place = place();
    let made = place.create();
    let reference = format!("ST::{}", made["id"].as_str().unwrap());
    for args in [
        &["store", "info", "ST"][..],
        &["store", "check", "--read-data", "ST"],
        &["store", "repair", "ST"],
        &["store", "key", "list", "ST"],
        &["snapshot", "list", "ST"],
        &["snapshot", "show", &reference],
        &["snapshot", "prune", "-n", "--keep-last", "1", "ST"],
        &["snapshot", "create", "ST", "web", "disk.raw"],
        &["info", &reference],
        &["ls", "--view", "disk", &reference, "/"],
        &["diff", "--view", "disk", &reference, "disk.raw"],
    ] {
        let told = fails(&mut place.strata(args));
        assert!(
            told.contains("is encrypted, and no key was given")
                && told.contains("hint: --key-file"),
            "{args:?}: {told}"
        );
        let told = fails(place.strata(args).env("STRATA_PASSPHRASE", "guess"));
        assert!(told.contains("this passphrase opens none of its keys"), "{args:?}: {told}");
        run(&mut place.keyed(args));
        let args = [args, &["--key-file", "key"]].concat();
        run(&mut place.strata(&args));
    }
    let out = place.path("out");
    run(&mut place.keyed(&["restore", "--view", "disk", &reference, "/disk.img", "--to", "out"]));
    assert!(fs::read(out.join("disk.img")).unwrap() == disk());
    let told = stdout(&mut place.keyed(&["store", "info", "ST"]));
    assert!(told.contains("encrypted:  yes"), "{told}");

    // Nothing of it is to be seen.
    let mut grep = tool("grep", "grep");
    for mark in [MARK, "web", "disk.raw", "strata 0"] {
        let found =
            grep.args(["-r", "-a", "-l", "-F", mark]).arg(place.path("ST")).output().unwrap();
        assert_eq!((found.status.code(), found.stdout), (Some(1), vec![]), "{mark}");
        grep = tool("grep", "grep");
    }
}

#[test]
fn a_mount_serves_it() {
    let place = place();
    place.create();
    fs::create_dir(place.path("mnt")).unwrap();
    run(&mut place.strata(&["mount", "--view", "disk", "--key-file", "key", "ST::web", "mnt"]));
    let shown = fs::read(place.path("mnt/disk.img"));
    run(&mut place.strata(&["unmount", "mnt"]));
    assert!(shown.unwrap() == disk());
}

#[test]
fn keys_come_and_go() {
    let place = place();
    place.create();
    fs::write(place.path("old"), "old passphrase\nwhatever\n").unwrap();
    fs::write(place.path("new"), "new passphrase").unwrap();
    let packs = || {
        stdout(
            Command::new("sh")
                .current_dir(place.0.path())
                .args(["-c", "find ST/packs -type f | sort | xargs sha256sum"]),
        )
    };
    let before = packs();
    let told = stdout(&mut place.keyed(&[
        "store",
        "key",
        "add",
        "--name",
        "anna",
        "--new-passphrase-file",
        "old",
        "ST",
    ]));
    assert!(told.starts_with("added "), "{told}");
    let info = |name: &str, value: &str| {
        place.strata(&["store", "info", "ST"]).env(name, value).output().unwrap().status.success()
    };
    assert!(info("STRATA_PASSPHRASE", "old passphrase") && info("STRATA_PASSPHRASE_FILE", "old"));
    let mut change =
        place.strata(&["store", "key", "change-passphrase", "--passphrase-file", "old", "ST"]);
    run(change.env("STRATA_NEW_PASSPHRASE", "new passphrase"));
    assert!(!info("STRATA_PASSPHRASE_FILE", "old") && info("STRATA_PASSPHRASE_FILE", "new"));
    let listed = stdout(&mut place.keyed(&["store", "key", "list", "--json", "ST"]));
    let keys: Vec<Value> = listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<_> = keys.iter().map(|key| (&key["kind"], &key["name"], &key["used"])).collect();
    assert_eq!(
        told,
        [
            (&"key-file".into(), &"".into(), &true.into()),
            (&"passphrase".into(), &"anna".into(), &false.into())
        ]
    );
    let id = |key: &Value| key["id"].as_str().unwrap()[..12].to_owned();
    run(&mut place.strata(&[
        "store",
        "key",
        "remove",
        "--passphrase-file",
        "new",
        "ST",
        &id(&keys[0]),
    ]));
    assert!(!info("STRATA_KEY_FILE", "key") && info("STRATA_PASSPHRASE_FILE", "new"));
    let last = ["store", "key", "remove", "--passphrase-file", "new", "ST", &id(&keys[1])];
    let told = fails(&mut place.strata(&last));
    assert!(told.contains("the last key of a store is not removed"), "{told}");
    assert_eq!(packs(), before);
    run(&mut place.strata(&["store", "check", "--read-data", "--passphrase-file", "new", "ST"]));
}

#[test]
fn mistakes_are_told_in_a_line_and_a_hint() {
    let place = place();
    run(&mut place.strata(&["store", "init", "plain"]));
    let told = fails(&mut place.keyed(&["store", "info", "plain"]));
    assert!(
        told.contains("is not encrypted, though a key was given") && told.contains("unset"),
        "{told}"
    );
    let told = fails(&mut place.strata(&["store", "init", "--key-file", "key", "more"]));
    assert!(told.contains("not to be encrypted") && told.contains("--encrypt"), "{told}");
    assert!(!place.path("more").exists());
    let told = fails(&mut place.strata(&["store", "init", "--encrypt", "more"]));
    assert!(told.contains("no new passphrase, and no terminal"), "{told}");
    fs::write(place.path("short"), [1; 31]).unwrap();
    let told =
        fails(&mut place.strata(&["store", "init", "--encrypt", "--key-file", "short", "more"]));
    assert!(told.contains("a key file of 31 bytes") && told.contains("/dev/urandom"), "{told}");
    fs::write(place.path("empty"), "\n").unwrap();
    let told = fails(&mut place.strata(&["store", "info", "--passphrase-file", "empty", "ST"]));
    assert!(told.contains("empty: an empty passphrase"), "{told}");
    let told = fails(&mut place.strata(&["store", "info", "--key-file", "none", "ST"]));
    assert!(told.contains("none: No such file"), "{told}");
    let told = fails(&mut place.strata(&["store", "key", "list", "plain"]));
    assert!(told.contains("has no keys"), "{told}");
    // A key that is set for a store does not matter where there is none.
    run(place.strata(&["info", "disk.raw"]).env("STRATA_KEY_FILE", "none"));
}

/// Runs its arguments behind `--` on a terminal, and answers each question with one of those before; prints what was
/// shown.
const TERMINAL: &str = r#"
import os, pty, sys
split = sys.argv.index("--")
answers, command = sys.argv[1:split], sys.argv[split + 1:]
pid, terminal = pty.fork()
if pid == 0:
    os.execv(command[0], command)
shown = b""
while True:
    try:
        part = os.read(terminal, 4096)
    except OSError:
        break
    if not part:
        break
    shown += part
    if part.endswith(b": ") and answers:
        os.write(terminal, answers.pop(0).encode())
_, status = os.waitpid(pid, 0)
sys.stdout.buffer.write(shown)
sys.exit(os.waitstatus_to_exitcode(status))
"#;

impl Place {
    /// The same as `strata`, by somebody who types these answers; what they see, and whether it went well.
    fn typed(&self, answers: &[&str], args: &[&str]) -> (bool, String) {
        let strata = self.strata(args);
        let mut python = tool("python3", "python3");
        python.args(["-c", TERMINAL]).args(answers).arg("--").arg(strata.get_program()).args(args);
        for name in SECRETS {
            python.env_remove(name);
        }
        let runtime = self.path("run");
        fs::create_dir_all(&runtime).unwrap();
        fs::set_permissions(&runtime, PermissionsExt::from_mode(0o700)).unwrap();
        python.env("XDG_RUNTIME_DIR", runtime).current_dir(self.0.path());
        let Output { status, stdout, .. } = python.output().unwrap();
        (status.success(), String::from_utf8(stdout).unwrap())
    }
}

#[test]
fn a_passphrase_is_asked_for_and_not_shown() {
    let place = Place(tempfile::tempdir().unwrap());
    fs::write(place.path("disk.raw"), disk()).unwrap();
    let init = ["store", "init", "--encrypt", "ST"];
    let (went_well, told) = place.typed(&["secret\n", "other\n"], &init);
    assert!(!went_well && told.contains("two different passphrases"), "{told}");
    assert!(!place.path("ST").exists());
    let (went_well, told) = place.typed(&["secret\n", "sekr\x7f\x7fcret\n"], &init);
    assert!(went_well && told.matches("passphrase").count() == 1, "{told}");
    assert!(!told.contains("secret"), "{told}");
    let (went_well, told) =
        place.typed(&["secret\n"], &["snapshot", "create", "ST", "web", "disk.raw"]);
    assert!(
        went_well && told.contains("passphrase of ST: \r\n") && !told.contains("secret"),
        "{told}"
    );
    let (went_well, told) = place.typed(&["guess\n"], &["snapshot", "list", "ST"]);
    assert!(!went_well && told.contains("opens none of its keys (1 tried)"), "{told}");
    let (went_well, told) = place.typed(&["sec\x03"], &["snapshot", "list", "ST"]);
    assert!(!went_well && told.contains("interrupted"), "{told}");
    // A store that needs none, and one that was given another way, ask nobody.
    run(&mut place.strata(&["store", "init", "plain"]));
    assert_eq!(place.typed(&[], &["snapshot", "list", "plain"]), (true, String::new()));
    fs::write(place.path("pass"), "secret\n").unwrap();
    let (went_well, told) =
        place.typed(&[], &["snapshot", "list", "--passphrase-file", "pass", "ST"]);
    assert!(went_well && told.contains("web"), "{told}");
    // The server of a machine's disk is another process: nobody is asked twice.
    let (went_well, told) = place.typed(&["secret\n"], &["boot", "--qemu", "/bin/echo", "ST::web"]);
    assert!(went_well && told.matches("passphrase of").count() == 1, "{told}");
    assert!(told.contains("virtio-blk"), "{told}");
}

/// OpenSSL on what is in this folder.
fn openssl(dir: &Path, args: &[&str]) -> Command {
    let mut openssl = tool("openssl", "openssl");
    openssl.current_dir(dir).args(args);
    openssl
}

#[test]
fn a_signature_is_one_to_openssl_and_its_keys_are_keys_here() {
    let place = Place(tempfile::tempdir().unwrap());
    let dir = place.0.path();
    fs::write(place.path("disk.raw"), disk()).unwrap();
    run(&mut place.strata(&["store", "init", "ST"]));
    run(&mut place.strata(&["snapshot", "generate-key", "ours"]));
    assert_eq!(fs::metadata(place.path("ours")).unwrap().permissions().mode() & 0o777, 0o600);
    // What OpenSSL makes of the secret key is the public key that was written.
    let public = stdout(&mut openssl(dir, &["pkey", "-in", "ours", "-pubout"]));
    assert_eq!(public, fs::read_to_string(place.path("ours.pub")).unwrap());
    assert!(fails(&mut place.strata(&["snapshot", "generate-key", "ours"])).contains("exists"));
    run(&mut openssl(dir, &["genpkey", "-algorithm", "ed25519", "-out", "theirs"]));
    run(&mut openssl(dir, &["pkey", "-in", "theirs", "-pubout", "-out", "theirs.pub"]));

    let create = ["snapshot", "create", "--json", "--sign-key", "ours", "ST", "web", "disk.raw"];
    let made: Value = serde_json::from_str(&stdout(&mut place.strata(&create))).unwrap();
    let id = made["id"].as_str().unwrap();
    let mut files = fs::read_dir(place.path("ST/signatures")).unwrap();
    let signature = fs::read(files.next().unwrap().unwrap().path()).unwrap();
    // docs/store-format.md, "Signature": the record's id, the key and the signature behind a header of 32 bytes.
    let payload = &signature[32..160];
    assert_eq!(hex(&payload[..32]), id);
    let config = fs::read(place.path("ST/config")).unwrap();
    let config: Value = serde_json::from_slice(&config[32..config.len() - 32]).unwrap();
    let number = unhex(config["store"].as_str().unwrap());
    let message = [&b"stratafs store 2026-11-22 signature"[..], &number, &payload[..32]].concat();
    fs::write(place.path("message"), message).unwrap();
    fs::write(place.path("signature"), &payload[64..]).unwrap();
    let verify = [
        "pkeyutl",
        "-verify",
        "-pubin",
        "-rawin",
        "-in",
        "message",
        "-sigfile",
        "signature",
        "-inkey",
    ];
    let told = stdout(&mut openssl(dir, &[&verify[..], &["ours.pub"]].concat()));
    assert!(told.contains("Signature Verified Successfully"), "{told}");
    assert!(
        !openssl(dir, &[&verify[..], &["theirs.pub"]].concat()).output().unwrap().status.success()
    );

    // Commands that open snapshots open those that a trusted key signed.
    let trusting = |keys: &[&str]| {
        let mut ls = place.strata(&["ls", "--view", "disk", "ST::web", "/"]);
        ls.args(keys.iter().map(|key| format!("--trusted-key={key}")));
        ls
    };
    run(&mut trusting(&["theirs.pub", "ours.pub"]));
    let told = fails(&mut trusting(&["theirs.pub"]));
    assert!(
        told.contains("is signed by no trusted key") && told.contains(&hex(&payload[32..64])),
        "{told}"
    );
    run(&mut place.strata(&["snapshot", "sign", "--sign-key", "theirs", "ST::web"]));
    run(&mut trusting(&["theirs.pub"]));
    run(&mut place.strata(&["snapshot", "create", "ST", "web", "disk.raw"]));
    let told = fails(trusting(&[]).env("STRATA_TRUSTED_KEYS", "theirs.pub:ours.pub"));
    assert!(told.contains("is not signed") && told.contains("(refused)"), "{told}");
    let told = fails(&mut trusting(&["ours"]));
    assert!(told.contains("ours: no public Ed25519 key"), "{told}");

    let list = stdout(&mut place.strata(&["snapshot", "list", "--trusted-key", "ours.pub", "ST"]));
    let words: Vec<_> = list.lines().map(|line| line.trim_end().ends_with("trusted")).collect();
    assert_eq!(words, [true, false], "{list}");
    let show = ["snapshot", "show", "--json", "--trusted-key", "ours.pub", &format!("ST::{id}")];
    let shown: Value = serde_json::from_str(&stdout(&mut place.strata(&show))).unwrap();
    let trusted: Vec<_> =
        shown["signatures"].as_array().unwrap().iter().map(|it| &it["trusted"]).collect();
    assert_eq!(trusted.len(), 2);
    assert!(trusted.contains(&&true.into()) && trusted.contains(&&false.into()), "{shown}");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digits).collect()
}
