//! Waiting a moment for the next request before sleeping for it.
//!
//! Whoever reads a file in small pieces, or walks a tree, sends the next request a few
//! microseconds after the last answer. A thread that has gone to sleep by then must be woken, and
//! on an idle processor, above all a virtual one, that takes longer than the answer itself. So the
//! last thread at work watches the device for a moment. It stops as soon as another thread has
//! work: then the processors are better left to them.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

/// How long the last thread at work watches. About twice what waking costs on a slow virtual
/// machine, so that lingering in vain never costs much more than it could have saved.
const MOMENT: Duration = Duration::from_micros(60);

/// The device watched, and how many threads are at work on requests.
#[derive(Debug)]
pub(super) struct Linger {
    device: OwnedFd,
    at_work: AtomicUsize,
}

impl Linger {
    /// Watches the connection of `device`, which any descriptor of it tells of.
    pub(super) fn new(device: &OwnedFd) -> io::Result<Self> {
        Ok(Self { device: device.try_clone()?, at_work: AtomicUsize::new(0) })
    }

    /// A request begins. It ends, answered, when the returned value is dropped.
    pub(super) fn begin(&self) -> Request<'_> {
        self.at_work.fetch_add(1, Ordering::Relaxed);
        Request(self)
    }

    fn watch(&self) {
        let until = Instant::now() + MOMENT;
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        while self.at_work.load(Ordering::Relaxed) == 0 && Instant::now() < until {
            let mut device = [PollFd::new(&self.device, PollFlags::IN)];
            // A request, the end of the connection or an error: the next read meets it.
            if !matches!(rustix::event::poll(&mut device, Some(&at_once)), Ok(0)) {
                return;
            }
        }
    }
}

/// A request being answered.
#[derive(Debug)]
#[must_use]
pub(super) struct Request<'a>(&'a Linger);

impl Drop for Request<'_> {
    fn drop(&mut self) {
        if self.0.at_work.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.watch();
        }
    }
}
