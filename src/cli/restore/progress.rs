//! The progress bar of `strata restore`, and the failures told above it.

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::Scope;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget};

use super::super::bar::style;
use super::engine::{Item, Progress, measure};
use super::text;
use crate::error::Error;
use crate::tree::FileTree;

/// Failures told one by one; the others are only counted.
const TOLD: u64 = 20;

/// What is shown on standard error while a restore runs. The bar is there only on a terminal.
pub(super) struct Display {
    bar: ProgressBar,
    done: AtomicBool,
    failures: AtomicU64,
}

impl Display {
    pub(super) fn new(quiet: bool) -> Self {
        let target = if quiet {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr_with_hz(10)
        };
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(style("{spinner} {msg}  {binary_bytes}  {binary_bytes_per_sec}"));
        Self { bar, done: AtomicBool::new(false), failures: AtomicU64::new(0) }
    }

    /// Shows how far `progress` has come until [`Display::finish`]. Meanwhile, `items` are
    /// measured: how much there is to do is known a little later.
    pub(super) fn show<'scope, 'env>(
        &'scope self,
        scope: &'scope Scope<'scope, 'env>,
        tree: &'scope dyn FileTree,
        items: &'scope [Item],
        progress: &'scope Progress,
        stop: &'scope AtomicBool,
    ) {
        if self.bar.is_hidden() {
            return;
        }
        scope.spawn(move || {
            let given_up = || stop.load(Ordering::Relaxed) || self.done.load(Ordering::Relaxed);
            if let Some((_, bytes)) = measure(tree, items, &given_up) {
                self.bar.set_length(bytes);
                self.bar.set_style(style(
                    "{bar:24} {binary_bytes}/{binary_total_bytes}  {msg}  {binary_bytes_per_sec}  {eta} left",
                ));
            }
        });
        scope.spawn(move || {
            while !self.done.load(Ordering::Relaxed) {
                let files = progress.files.load(Ordering::Relaxed);
                self.bar.set_message(text::count(files, "file", "files"));
                self.bar.set_position(progress.bytes.load(Ordering::Relaxed));
                self.bar.tick();
                std::thread::park_timeout(Duration::from_millis(100));
            }
        });
    }

    pub(super) fn finish(&self) {
        self.done.store(true, Ordering::Relaxed);
        self.bar.finish_and_clear();
        let silent = self.failures.load(Ordering::Relaxed).saturating_sub(TOLD);
        if silent > 0 {
            let more = text::count(silent, "more failure", "more failures");
            write(&format!("strata: {more} not told one by one\n"));
        }
    }

    pub(super) fn failed(&self, path: &[u8], error: &Error) {
        let path = text::printable(path);
        if self.failures.fetch_add(1, Ordering::Relaxed) < TOLD {
            self.bar.suspend(|| write(&format!("strata: {path}: {error}\n")));
        } else {
            log::info!("{path}: {error}");
        }
    }
}

fn write(text: &str) {
    // With standard error gone there is nobody left to tell.
    let _ = std::io::stderr().write_all(text.as_bytes());
}
