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

/// The process that serves the connection of this number: one that holds `/dev/fuse` open for it,
/// which newer kernels tell (seen on 6.18; where they do not, there is no waiting). The server itself is not asked: it may be the one that hangs.
pub(super) fn server(connection: u32) -> Option<u32> {
    let line = format!("fuse_connection:\t{connection}");
    fs::read_dir("/proc").ok()?.flatten().find_map(|process| {
        let pid = process.file_name().to_str()?.parse().ok()?;
        let serves = |fd: fs::DirEntry| {
            let is_fuse = fs::read_link(fd.path()).is_ok_and(|to| to == Path::new("/dev/fuse"));
            let info = || fs::read_to_string(process.path().join("fdinfo").join(fd.file_name()));
            is_fuse && info().is_ok_and(|info| info.lines().any(|known| known == line))
        };
        fs::read_dir(process.path().join("fd")).ok()?.flatten().any(serves).then_some(pid)
    })
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
