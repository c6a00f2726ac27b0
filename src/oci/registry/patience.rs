//! How long and how often is tried: one budget for whatever goes wrong on the way to one answer.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use super::cause::Cause;

/// Times that bound a conversation with a registry.
#[derive(Debug, Clone)]
pub struct Timing {
    /// Tries for one answer, the first one counted.
    pub tries: u32,
    /// The pause before the second try; each later one is twice as long.
    pub first_pause: Duration,
    /// The longest pause that is made, also where the registry asks for one.
    pub longest_pause: Duration,
    /// From the first failure on: no new try for the same answer begins after that.
    pub total: Duration,
    /// For a connection to stand.
    pub connect: Duration,
    /// Without a byte.
    pub idle: Duration,
    /// Bytes a second that are too few, over a time of `idle`.
    pub slowest: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            tries: 6,
            first_pause: Duration::from_millis(300),
            longest_pause: Duration::from_secs(30),
            total: Duration::from_secs(120),
            connect: Duration::from_secs(10),
            idle: Duration::from_secs(30),
            slowest: 1_000,
        }
    }
}

/// What is left of the budget for one answer.
#[derive(Debug)]
pub(super) struct Patience {
    timing: Timing,
    /// When the first try failed.
    began: Option<Instant>,
    tries: u32,
}

impl Patience {
    pub(super) fn new(timing: &Timing) -> Self {
        Self { timing: timing.clone(), began: None, tries: 1 }
    }

    /// Waits until it is time to try again after `cause`, as long as `asked` if the registry asks
    /// for that.
    ///
    /// # Errors
    /// The cause, with how often was tried, once the budget is spent.
    pub(super) fn again(&mut self, cause: Cause, asked: Option<Duration>) -> Result<(), Cause> {
        if let (Some(wait), Cause::Status { host, .. }) = (asked, &cause)
            && wait > self.timing.longest_pause
        {
            return Err(Cause::Wait { host: host.clone(), wait });
        }
        let doubled = self.timing.first_pause.saturating_mul(1 << (self.tries - 1).min(16));
        // Those who were turned away together shall not come back together.
        let jitter =
            doubled.mul_f64((RandomState::new().hash_one(self.tries) % 512) as f64 / 1024.0);
        let pause = asked.unwrap_or(doubled / 2 + jitter).min(self.timing.longest_pause);
        if self.tries >= self.timing.tries
            || self.began.get_or_insert_with(Instant::now).elapsed() + pause > self.timing.total
        {
            return Err(match self.tries {
                1 => cause,
                tries => Cause::Spent { tries, last: Box::new(cause) },
            });
        }
        log::debug!("{cause}; trying again in {pause:?}");
        std::thread::sleep(pause);
        self.tries += 1;
        Ok(())
    }
}
