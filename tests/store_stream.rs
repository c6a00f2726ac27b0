//! Snapshots of what comes on standard input.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use support::{qemu_img, run, stdout, strata};

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        run(strata().args(["store", "init", "--block-size", "16K"]).arg(place.path("st")));
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Makes a snapshot of what `send` writes.
    fn streamed(
        &self,
        disks: &[&str],
        send: impl FnOnce(&mut dyn Write) -> std::io::Result<()> + Send,
    ) -> Output {
        let mut create = strata();
        create.args(["snapshot", "create", "--json"]).arg(self.path("st")).arg("web").args(disks);
        let pipes = create.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = pipes.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        thread::scope(|scope| {
            scope.spawn(move || {
                // One that refuses it does not read on.
                let _ = send(&mut stdin);
            });
            child.wait_with_output().unwrap()
        })
    }

    fn converted(&self, disk: &str) -> Vec<u8> {
        let out = self.path("out.raw");
        let reference = format!("{}::web{disk}", self.path("st").display());
        run(strata().args(["convert", "--force"]).arg(reference).arg(&out));
        fs::read(out).unwrap()
    }
}

/// Data, holes, and an end within a block; more than two pages of the map.
fn disk() -> Vec<u8> {
    let mut disk = vec![0; (36 << 20) + 777];
    for (seed, at, len) in
        [(1u64, 0, 5 << 20), (2, (16 << 20) - 9999, 1 << 20), (3, (36 << 20) - 4, 781)]
    {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&seed.to_le_bytes()).finalize_xof().fill(&mut disk[at..at + len]);
    }
    disk
}

fn made(output: Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn refused(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_stream_is_the_disk_that_a_file_is() {
    let place = Place::new();
    let disk = disk();
    // In pieces of odd lengths, some of which come late.
    let streamed = made(place.streamed(&["-"], |stdin| {
        for (number, piece) in disk.chunks(777_777).enumerate() {
            stdin.write_all(piece)?;
            if number % 16 == 0 {
                thread::sleep(Duration::from_millis(250));
            }
        }
        Ok(())
    }));
    assert!(place.converted("") == disk);
    let raw = place.path("disk.raw");
    fs::write(&raw, &disk).unwrap();
    let mut create = strata();
    create.args(["snapshot", "create", "--json"]).arg(place.path("st")).arg("file").arg(&raw);
    let of_file: Value = serde_json::from_str(&stdout(&mut create)).unwrap();
    let (streamed, of_file) = (&streamed["disks"][0], &of_file["disks"][0]);
    for member in ["size", "root", "blocks"] {
        assert_eq!(streamed[member], of_file[member], "{member}");
    }
    assert_eq!(of_file["new_blocks"], 0);
    // The same once more stores nothing.
    let again = made(place.streamed(&["-"], |stdin| stdin.write_all(&disk)));
    assert_eq!(
        (&again["disks"][0]["new_bytes"], &again["disks"][0]["root"]),
        (&0.into(), &of_file["root"])
    );
}

#[test]
fn a_stream_beside_a_file() {
    let place = Place::new();
    let disk = disk();
    let raw = place.path("disk.raw");
    fs::write(&raw, &disk[..5 << 20]).unwrap();
    let file = format!("system={}", raw.display());
    let output = place.streamed(&[&file, "data=-"], |stdin| stdin.write_all(&disk));
    assert_eq!(made(output)["disks"].as_array().unwrap().len(), 2);
    assert!(place.converted("/data") == disk);
    assert!(place.converted("/system") == disk[..5 << 20]);
    let error = refused(&place.streamed(&["a=-", "b=-"], |stdin| stdin.write_all(&disk)));
    assert!(error.contains("one disk, not two"), "{error}");
}

#[test]
fn what_is_no_raw_disk_is_refused() {
    let place = Place::new();
    let qcow2 = place.path("disk.qcow2");
    qemu_img(["create", "-q", "-f", "qcow2", qcow2.to_str().unwrap(), "1M"]);
    let image = fs::read(&qcow2).unwrap();
    let error = refused(&place.streamed(&["-"], |stdin| stdin.write_all(&image)));
    assert!(error.contains("only a raw disk can be read"), "{error}");
    let error = refused(&place.streamed(&["-"], |_| Ok(())));
    assert!(error.contains("nothing came"), "{error}");
    // Said to be raw, it is.
    made(place.streamed(&["--format", "raw", "-"], |stdin| stdin.write_all(&image)));
    assert!(place.converted("") == image);
    // A file can be read anywhere, whatever it comes as.
    let mut create = strata();
    create.args(["snapshot", "create", "--json"]).arg(place.path("st")).args(["web", "-"]);
    let output = create.stdin(File::open(&qcow2).unwrap()).output().unwrap();
    assert_eq!(made(output)["disks"][0]["size"], 1 << 20);
}

#[test]
fn a_stream_of_nothing_but_zeros() {
    let place = Place::new();
    let output = place.streamed(&["-"], |stdin| {
        for _ in 0..40 {
            stdin.write_all(&[0; 1 << 20])?;
        }
        Ok(())
    });
    let disk = &made(output)["disks"][0];
    assert_eq!((&disk["size"], &disk["blocks"]), (&(40 << 20).into(), &0.into()));
    assert!(place.converted("") == vec![0; 40 << 20]);
}
