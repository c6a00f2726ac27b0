//! What the tests of copy-on-write share: servers that get killed, and numbers for tests.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

#[path = "../ext/rng.rs"]
mod rng;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

pub use rng::Rng;

/// A number that the environment may set: how long a campaign is.
pub fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")),
        Err(_) => default,
    }
}

/// Servers that are killed at the same time. They are waited for more than they compute.
const LANES: u64 = 4;

/// Shares out `kills` among lanes, each with random numbers of its own, and does them at once.
pub fn in_lanes(kills: u64, seed: u64, lane: impl Fn(u64, Rng) + Sync) {
    let lanes = LANES.min(kills);
    std::thread::scope(|scope| {
        for number in 0..lanes {
            let share = kills / lanes + u64::from(number < kills % lanes);
            let (lane, rng) = (&lane, Rng(Rng(seed ^ number << 32).next()));
            scope.spawn(move || lane(share, rng));
        }
    });
}

/// Waits until `done`, a count of operations, has grown by a number below `most`, and then a little
/// longer: how much is under way at a kill does not depend on how busy the machine is.
pub fn sleep_over(done: &AtomicU64, most: u64, rng: &mut Rng) {
    let enough = done.load(SeqCst) + rng.below(most);
    let until = Instant::now() + Duration::from_secs(1);
    while done.load(SeqCst) < enough && Instant::now() < until {
        sleep(Duration::from_micros(100));
    }
    sleep(Duration::from_micros(rng.below(2000)));
}

/// A program that serves a mount point, in the foreground.
#[derive(Debug)]
pub struct Server {
    child: Child,
    point: PathBuf,
}

impl Server {
    /// Starts it and does not wait.
    pub fn spawn(command: &mut Command, point: &Path) -> Self {
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, point: point.to_owned() }
    }

    /// Starts it and waits until it serves.
    #[track_caller]
    pub fn start(command: &mut Command, point: &Path) -> Self {
        let mut server = Self::spawn(command, point);
        while !is_mounted(point) {
            if let Some(status) = server.child.try_wait().expect("a child of ours") {
                panic!("{command:?} ended: {status}");
            }
            sleep(Duration::from_millis(1));
        }
        server
    }

    /// Kills it, and clears away what the kernel keeps of its mount.
    pub fn kill(mut self) {
        self.end();
    }

    /// Asks it to end and kills it if it takes longer than `patience`. `true` if it ended well.
    pub fn end_within(mut self, patience: Duration) -> bool {
        self.ask();
        let until = Instant::now() + patience;
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                return status.success();
            }
            sleep(Duration::from_micros(100));
        }
        self.end();
        false
    }

    /// Ends it as its user does. It must end well.
    #[track_caller]
    pub fn close(mut self) {
        self.ask();
        let status = self.child.wait().expect("a child of ours");
        assert!(status.success(), "the server of {}: {status}", self.point.display());
    }

    fn ask(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("a child of ours");
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        while is_mounted(&self.point) && unmount(&self.point, UnmountFlags::DETACH).is_ok() {}
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// Whether something is mounted there, served or not.
pub fn is_mounted(point: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("/proc");
    table.lines().any(|line| line.split(' ').nth(4) == point.to_str())
}
