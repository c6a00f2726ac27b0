//! One run of a configuration at a time.
//!
//! A run holds a lock on the file itself, which ends with the process however that ends, and which the kernel tells the
//! holder of. Nothing is written anywhere, so whoever can read the file can run it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use rustix::fs::FlockOperation;

use crate::error::{Result, ResultExt};

/// Locks `file`, until it is closed; if another process has it locked, who that is.
pub(super) fn lock(file: &File, path: &Path) -> Result<Option<Holder>> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(None),
        Err(error) if error == rustix::io::Errno::WOULDBLOCK => Ok(Some(Holder::of(file))),
        Err(error) => Err(io::Error::from(error)).within(|| path.display().to_string()),
    }
}

/// Whoever has the lock, as far as it can be told.
#[derive(Debug, Default)]
pub(super) struct Holder {
    /// The process; of another namespace it is not known.
    pub(super) pid: Option<u32>,
    /// When it began.
    pub(super) since: Option<Timestamp>,
}

impl Holder {
    fn of(file: &File) -> Self {
        let Ok(inode) = file.metadata().map(|found| found.ino()) else { return Self::default() };
        let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
        let pid = locks.lines().find_map(|line| holder(line, inode));
        Self { pid, since: pid.and_then(began) }
    }
}

/// Who holds the lock that a line of `/proc/locks` tells of, if it is one of a whole file with that number:
/// `1: FLOCK  ADVISORY  WRITE 4711 00:2f:1234 0 EOF`. What device it is on is told there as some filesystems do not tell it
/// elsewhere.
fn holder(line: &str, inode: u64) -> Option<u32> {
    let words: Vec<&str> = line.split_whitespace().collect();
    // One that waits has an arrow behind its number.
    let &[_, "FLOCK", _, "WRITE", pid, place, ..] = words.as_slice() else { return None };
    let (_, number) = place.rsplit_once(':')?;
    (number.parse() == Ok(inode)).then(|| pid.parse().ok().filter(|&pid| pid > 0))?
}

/// When a process began: its start in ticks since the machine's, and how long that runs.
fn began(pid: u32) -> Option<Timestamp> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The 22nd field, where the 2nd, in brackets, may hold anything.
    let ticks: u64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    let began = ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    let age = Duration::try_from_secs_f64(uptime - began).ok()?;
    Timestamp::try_from(SystemTime::now().checked_sub(age)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_list_tells_who_holds_it() {
        let line = "12: FLOCK  ADVISORY  WRITE 4711 00:2f:1234 0 EOF";
        assert_eq!(holder(line, 1234), Some(4711));
        assert_eq!(holder(line, 234), None);
        assert_eq!(holder("12: POSIX  ADVISORY  WRITE 4711 00:2f:1234 0 EOF", 1234), None);
        assert_eq!(holder("12: -> FLOCK  ADVISORY  WRITE 4711 00:2f:1234 0 EOF", 1234), None);
        // Of another namespace.
        assert_eq!(holder("12: FLOCK  ADVISORY  WRITE 0 00:2f:1234 0 EOF", 1234), None);
        assert_eq!(holder("12: FLOCK", 1234), None);
    }

    #[test]
    fn a_process_has_begun_a_moment_ago() {
        let began = began(std::process::id()).unwrap();
        let age = Timestamp::now().duration_since(began);
        assert!(!age.is_negative() && age.as_hours() < 24, "{age:?}");
    }
}
