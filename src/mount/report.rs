//! What goes wrong while serving is told once: a damaged block is read again and again.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use parking_lot::Mutex;

use crate::error::Error;
use crate::tree::NodeId;

use super::errno::{is_trouble, is_worth_a_line};

/// Different failures that are told; what comes after is not.
const MOST: usize = 1000;

/// Tells each failure once.
#[derive(Debug, Default)]
pub(super) struct Report {
    told: Mutex<HashSet<u64>>,
    hasher: RandomState,
}

impl Report {
    /// Logs that `operation` on `node` failed, unless the same error was told before.
    pub(super) fn failed(&self, operation: &str, node: NodeId, error: &Error) {
        if is_worth_a_line(error.kind()) {
            self.line(operation, node, &error.to_string());
        }
    }

    /// Logs that the change `operation` of `node` failed, if that is more than an answer.
    pub(super) fn change_failed(&self, operation: &str, node: NodeId, error: &Error) {
        if is_trouble(error) {
            self.line(operation, node, &error.to_string());
        }
    }

    /// Logs that `operation` on `node` met a bug of ours.
    pub(super) fn panicked(&self, operation: &str, node: NodeId, panic: &str) {
        self.line(operation, node, &format!("internal error: {panic}"));
    }

    /// Whether there was a line to write.
    fn line(&self, operation: &str, node: NodeId, message: &str) -> bool {
        // One damaged block shows up under every request that touches it: the message names it.
        let hash = self.hasher.hash_one(message);
        let mut told = self.told.lock();
        if told.len() > MOST || !told.insert(hash) {
            return false;
        }
        let last = told.len() > MOST;
        drop(told);
        if last {
            log::error!("more than {MOST} different failures: no more of them are logged");
        } else {
            log::error!("{operation} of inode {}: {message}", node.0);
        }
        true
    }
}

/// Whether a line of the log tells of an answer that nobody waited for, which is no failure.
///
/// Whoever waits for an answer and gets a signal makes the kernel ask for an interruption. `fuser` answers
/// that it knows of none, as is right: the request itself is answered soon. But the thread that was asked is
/// mostly another than the one at work on the request, and the kernel looks for what is answered among the
/// requests of that thread: it says `ENOENT`, which it says of no answer to a request that somebody waits for.
pub fn answers_nobody(record: &log::Record<'_>) -> bool {
    record.target() == "fuser::reply"
        && record.args().to_string().ends_with(&format!("(os error {})", libc::ENOENT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_a_failure_once_and_stops_at_a_bound() {
        let report = Report::default();
        assert!(report.line("read", NodeId(1), "x"));
        assert!(!report.line("read", NodeId(2), "x"));
        let told = (0..5000).filter(|n| report.line("read", NodeId(1), &n.to_string())).count();
        assert_eq!(told, MOST);
        assert_eq!(report.told.lock().len(), MOST + 1);
    }
}
