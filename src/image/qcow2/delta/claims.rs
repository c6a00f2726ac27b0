//! Who changes which entries of a slice.

use parking_lot::{Condvar, Mutex};

/// The entries of one slice that somebody is changing. Writes into different clusters do not wait
/// for each other's bytes, only for a claim to be noted.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// First and last entry of each; no two have one in common.
    held: Mutex<Vec<(usize, usize)>>,
    released: Condvar,
}

/// Keeps entries from being changed by anybody else, until it is dropped.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    claims: &'a Claims,
    entries: (usize, usize),
}

impl Claims {
    /// Claims the entries `first..=last` once nobody else does. Whoever holds a claim takes no other.
    pub(super) fn claim(&self, first: usize, last: usize) -> Claim<'_> {
        let mut held = self.held.lock();
        while held.iter().any(|&(from, to)| from <= last && first <= to) {
            self.released.wait(&mut held);
        }
        held.push((first, last));
        Claim { claims: self, entries: (first, last) }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut held = self.claims.held.lock();
        if let Some(at) = held.iter().position(|&entries| entries == self.entries) {
            held.swap_remove(at);
        }
        drop(held);
        self.claims.released.notify_all();
    }
}
