//! The suite that every place for stores has to pass, on a folder.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "store_suite/mod.rs"]
mod suite;
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

struct Folder(tempfile::TempDir);

impl suite::Place for Folder {
    fn strata(&self, args: &[&str]) -> Command {
        let mut command = support::strata();
        command.args(args);
        command
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn store(&self, name: &str) -> String {
        self.path(&format!("{name}.store")).to_str().unwrap().to_owned()
    }

    fn bytes(&self, name: &str) -> Vec<Vec<u8>> {
        fn walk(dir: &Path, found: &mut Vec<Vec<u8>>) {
            for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
                match path.is_dir() {
                    true => walk(&path, found),
                    false => found.push(fs::read(path).unwrap()),
                }
            }
        }
        let mut found = Vec::new();
        walk(Path::new(&self.store(name)), &mut found);
        found
    }
}

#[test]
fn a_folder_passes_the_suite() {
    suite::all(&Folder(tempfile::tempdir().unwrap()));
}
