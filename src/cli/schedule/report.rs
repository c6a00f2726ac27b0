//! What a run has done, for people and for scripts.

use std::io::Write;

use jiff::Timestamp;
use serde::Serialize;

use crate::cli::{output, stdout};
use crate::cli::{snapshot, store, text};
use crate::error::Result;
use crate::store::{Collected, Copied, Id, Snapshot};

/// What `--json` prints; `docs/json.md` describes it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) config: String,
    pub(super) store: String,
    pub(super) dry_run: bool,
    pub(super) started: Timestamp,
    pub(super) ended: Timestamp,
    pub(super) series: Vec<Made>,
    pub(super) copy: Option<Copy>,
    pub(super) collected: Vec<Room>,
    /// Whether it was stopped before all was done.
    pub(super) interrupted: bool,
    /// How many of these have errors.
    pub(super) failed: usize,
}

/// What became of one series.
#[derive(Debug, Default, Serialize)]
pub(super) struct Made {
    pub(super) series: String,
    pub(super) snapshot: Option<Snapshot>,
    /// What is to be done, if nothing is done.
    #[serde(skip)]
    pub(super) plan: Vec<String>,
    #[serde(flatten)]
    pub(super) pruned: Pruned,
    pub(super) errors: Vec<String>,
}

/// What became of the snapshots that were there.
#[derive(Debug, Default, Serialize)]
pub(super) struct Pruned {
    pub(super) removed: Vec<Id>,
    pub(super) kept: usize,
}

/// What became of the copies.
#[derive(Debug, Default, Serialize)]
pub(super) struct Copy {
    pub(super) to: String,
    #[serde(flatten)]
    pub(super) copied: Copied,
    /// Those that the rules of the other store would not keep.
    pub(super) left: usize,
    #[serde(flatten)]
    pub(super) pruned: Pruned,
    pub(super) errors: Vec<String>,
}

/// What collecting gave back.
#[derive(Debug, Serialize)]
pub(super) struct Room {
    pub(super) store: String,
    #[serde(flatten)]
    pub(super) collected: Option<Collected>,
    pub(super) errors: Vec<String>,
}

impl Pruned {
    fn told(&self, dry_run: bool) -> Option<String> {
        let verb = if dry_run { "to remove" } else { "removed" };
        let removed = text::number(self.removed.len() as u64);
        (!self.removed.is_empty())
            .then(|| format!("{removed} {verb}, {} kept", text::number(self.kept as u64)))
    }
}

impl Report {
    /// Counts what failed.
    pub(super) fn count(&mut self) {
        let series = self.series.iter().map(|made| &made.errors);
        let rooms = self.collected.iter().map(|room| &room.errors);
        let all = series.chain(self.copy.iter().map(|copy| &copy.errors)).chain(rooms);
        self.failed = all.filter(|errors| !errors.is_empty()).count();
    }

    /// A line for each thing that was done, or was to be done.
    pub(super) fn print(&self) -> Result<()> {
        let mut rows: Vec<[String; 2]> = Vec::new();
        for made in &self.series {
            let mut told = made.plan.clone();
            told.extend(made.snapshot.as_ref().map(snapshot::summary));
            told.extend(made.pruned.told(self.dry_run));
            rows.push([made.series.clone(), self.with(told, &made.errors)]);
        }
        if let Some(copy) = &self.copy {
            let count = text::count(copy.copied.snapshots.len() as u64, "snapshot", "snapshots");
            let mut told = vec![match self.dry_run {
                true => format!("{count} to {}", copy.to),
                false => {
                    format!("{count} to {}, {} stored", copy.to, text::size(copy.copied.stored))
                }
            }];
            told.extend(copy.pruned.told(self.dry_run));
            rows.push(["copy".to_owned(), self.with(told, &copy.errors)]);
        }
        for room in &self.collected {
            let mut told = vec![room.store.clone()];
            told.extend(room.collected.as_ref().map(|done| {
                let verb = if self.dry_run { "to give back" } else { "given back" };
                format!("{} {verb}", text::size(done.removed_bytes))
            }));
            rows.push(["collect".to_owned(), self.with(told, &room.errors)]);
        }
        store::write_rows(&rows, [false; 2])?;
        let mut out = stdout()?;
        if self.interrupted {
            output(writeln!(out, "interrupted"))?;
        }
        if self.failed > 0 {
            let failed = text::count(self.failed as u64, "failure", "failures");
            output(writeln!(out, "{failed}"))?;
        }
        output(out.flush())
    }

    fn with(&self, mut told: Vec<String>, errors: &[String]) -> String {
        told.extend(errors.iter().map(|error| format!("FAILED: {error}")));
        told.join("; ")
    }
}
