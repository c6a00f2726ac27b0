//! Who keeps a mount busy, as far as `/proc` shows it to us.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use super::table::lies_in;

/// A process that uses a mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its number.
    pub pid: u32,
    /// The name of its program.
    pub program: String,
    /// What of the mount it uses.
    pub path: PathBuf,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {}) uses {}", self.program, self.pid, self.path.display())
    }
}

/// The first `most` processes that have their working folder, root or an open file below `point`.
/// Other users' processes cannot be seen without root.
pub(super) fn holders(point: &Path, most: usize) -> Vec<Holder> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    processes
        .flatten()
        .filter_map(|process| {
            let pid = process.file_name().to_str()?.parse().ok()?;
            let proc = process.path();
            let path = used_by(&proc, point)?;
            let program = fs::read_to_string(proc.join("comm")).unwrap_or_default();
            Some(Holder { pid, program: program.trim_end().to_owned(), path })
        })
        .take(most)
        .collect()
}

fn used_by(proc: &Path, point: &Path) -> Option<PathBuf> {
    let inside = |link: PathBuf| fs::read_link(link).ok().filter(|path| lies_in(path, point));
    if let Some(path) = ["cwd", "root", "exe"].iter().find_map(|name| inside(proc.join(name))) {
        return Some(path);
    }
    fs::read_dir(proc.join("fd")).ok()?.flatten().find_map(|fd| inside(fd.path()))
}
