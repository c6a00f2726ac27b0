//! The progress bar of commands that take long. It is there only on a terminal.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Scope, Thread};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What is shown on standard error while something runs.
pub(super) struct Bar {
    bar: ProgressBar,
    done: AtomicBool,
    /// Who shows it.
    painter: OnceLock<Thread>,
}

impl Bar {
    /// A bar for `total` bytes, or one that does not know how much there is to do.
    pub(super) fn new(hidden: bool, total: Option<u64>) -> Self {
        let target = if hidden {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr_with_hz(10)
        };
        let bar = ProgressBar::with_draw_target(total, target);
        bar.set_style(style(match total {
            Some(_) => {
                "{bar:24} {binary_bytes}/{binary_total_bytes}  {binary_bytes_per_sec}  {eta} left"
            }
            None => "{spinner} {msg}  {binary_bytes}  {binary_bytes_per_sec}",
        }));
        Self { bar, done: AtomicBool::new(false), painter: OnceLock::new() }
    }

    /// Shows how many bytes are done, and a message, until [`Bar::finish`].
    pub(super) fn show<'scope, 'env>(
        &'scope self,
        scope: &'scope Scope<'scope, 'env>,
        state: impl Fn() -> (u64, String) + Send + 'scope,
    ) {
        if self.bar.is_hidden() {
            return;
        }
        let painter = scope.spawn(move || {
            while !self.done.load(Ordering::Relaxed) {
                let (bytes, message) = state();
                self.bar.set_message(message);
                self.bar.set_position(bytes);
                self.bar.tick();
                std::thread::park_timeout(Duration::from_millis(100));
            }
        });
        let _ = self.painter.set(painter.thread().clone());
    }

    /// Changes how many bytes there are.
    pub(super) fn set_total(&self, total: u64) {
        self.bar.set_length(total);
    }

    pub(super) fn finish(&self) {
        self.done.store(true, Ordering::Relaxed);
        // Nobody waits for a bar.
        self.painter.get().into_iter().for_each(Thread::unpark);
        self.bar.finish_and_clear();
    }

    /// Does what writes to standard error with the bar out of the way.
    pub(super) fn suspend(&self, write: impl FnOnce()) {
        self.bar.suspend(write);
    }
}

pub(super) fn style(template: &str) -> ProgressStyle {
    // The templates are ours; a mistake in one must not stop anything.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
