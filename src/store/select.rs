//! What a person may call a snapshot: `web01`, `web01@2026-11-22`, `1f3a9c`, and `/data` behind it for one of
//! several disks.

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

use super::Store;
use super::id::Id;
use super::record::{DiskRecord, Record, Snapshot};
use crate::error::{Error, Kind, Result};

/// Digits of an id that are enough to be meant as one.
const FEWEST_DIGITS: usize = 4;

/// Bytes of the name of a series at most.
const MOST_NAME: usize = 128;

impl Snapshot {
    /// Its disk of that name.
    pub fn disk(&self, name: &str) -> Option<&DiskRecord> {
        self.record.disks.iter().find(|disk| disk.name == name)
    }
}

/// Whether a series, a tag or a disk may be called so: what has another meaning in a reference, or in a
/// path, is refused.
///
/// # Errors
/// [`Kind::Usage`], saying what is allowed.
pub fn check_name(what: &str, name: &str) -> Result<()> {
    let is_allowed = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '+');
    if name.is_empty()
        || name.len() > MOST_NAME
        || !name.chars().all(is_allowed)
        || name.starts_with(['.', '-'])
    {
        let message = format!(
            "{what} \"{name}\": letters, digits, and - _ . + within, {MOST_NAME} bytes at most"
        );
        return Err(Error::new(Kind::Usage, message));
    }
    Ok(())
}

impl Record {
    /// Fails unless everything in it may be called so.
    pub(super) fn check_names(&self) -> Result<()> {
        check_name("series", &self.series)?;
        self.tags.iter().try_for_each(|tag| check_name("tag", tag))?;
        self.disks.iter().try_for_each(|disk| check_name("disk", &disk.name))
    }
}

impl Store {
    /// The snapshot and disk that `text` means: the newest of a series, the newest one not later than a time, or one by how
    /// its id begins.
    ///
    /// # Errors
    /// [`Kind::NotFound`] with what there is, [`Kind::Usage`] where several fit, and those of
    /// [`Store::snapshots`].
    pub fn select(&self, text: &str) -> Result<(Snapshot, DiskRecord)> {
        let (text, disk) = match text.split_once('/') {
            Some((text, disk)) => (text, Some(disk)),
            None => (text, None),
        };
        let snapshot = self.select_any(text)?;
        let names = || {
            let names: Vec<&str> =
                snapshot.record.disks.iter().map(|disk| disk.name.as_str()).collect();
            names.join(", ")
        };
        let chosen = match (disk, snapshot.record.disks.as_slice()) {
            (Some(name), _) => snapshot.disk(name).cloned().ok_or_else(|| {
                Error::new(Kind::NotFound, format!("no disk \"{name}\" in {text}"))
                    .with_hint(format!("there are: {}", names()))
            }),
            (None, [disk]) => Ok(disk.clone()),
            (None, _) => Err(Error::new(Kind::Usage, format!("{text} has several disks"))
                .with_hint(format!("name one of them, as {text}/NAME: {}", names()))),
        }?;
        Ok((snapshot, chosen))
    }

    /// The snapshot that `text` means, whatever disks it has.
    ///
    /// # Errors
    /// As [`Store::select`].
    pub fn select_any(&self, text: &str) -> Result<Snapshot> {
        // One that is named whole is not looked for.
        if let Ok(id) = text.parse::<Id>() {
            return self.snapshot(id);
        }
        let snapshots = self.snapshots()?;
        if let Some((series, when)) = text.split_once('@') {
            let until = last_moment(when)?;
            let found = snapshots
                .iter()
                .rev()
                .find(|snapshot| snapshot.record.series == series && snapshot.record.time <= until);
            return found.cloned().ok_or_else(|| {
                let first = snapshots.iter().find(|snapshot| snapshot.record.series == series);
                let error =
                    Error::new(Kind::NotFound, format!("no snapshot of {series} as of {when}"));
                match first {
                    Some(first) => {
                        error.with_hint(format!("the first one is of {}", first.record.time))
                    }
                    None => error.with_hint(series_hint(&snapshots)),
                }
            });
        }
        if let Some(found) = snapshots.iter().rev().find(|snapshot| snapshot.record.series == text)
        {
            return Ok(found.clone());
        }
        let is_id =
            text.len() >= FEWEST_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let digits = text.to_ascii_lowercase();
        let mut found = snapshots
            .iter()
            .filter(|snapshot| is_id && snapshot.id.to_string().starts_with(&digits));
        match (found.next(), found.next()) {
            (Some(snapshot), None) => Ok(snapshot.clone()),
            (Some(one), Some(other)) => {
                let message = format!("{text} could be {} or {}", one.id, other.id);
                Err(Error::new(Kind::Usage, message).with_hint("give more digits"))
            }
            (None, _) => Err(Error::new(Kind::NotFound, format!("no series or snapshot {text}"))
                .with_hint(series_hint(&snapshots))),
        }
    }
}

fn series_hint(snapshots: &[Snapshot]) -> String {
    let mut names: Vec<&str> =
        snapshots.iter().map(|snapshot| snapshot.record.series.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    match names.as_slice() {
        [] => "the store has no snapshots yet".to_owned(),
        names => format!("there are: {}", names.join(", ")),
    }
}

/// The last moment that `text` means: of a day, its end; where no zone is named, of this machine's.
fn last_moment(text: &str) -> Result<Timestamp> {
    let zone = TimeZone::system();
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let local = |time: DateTime| time.to_zoned(zone.clone()).ok().map(|time| time.timestamp());
    let day_end = || {
        let next = text.parse::<Date>().ok()?.checked_add(1.day()).ok()?;
        local(next.at(0, 0, 0, 0))?.checked_sub(1.nanosecond()).ok()
    };
    // A date and a time is also a date.
    let moment = if text.contains(['T', ' ']) {
        text.parse::<DateTime>().ok().and_then(local)
    } else {
        day_end()
    };
    moment.ok_or_else(|| {
        Error::new(Kind::Usage, format!("\"{text}\" is no time"))
            .with_hint("2026-11-22, 2026-11-22T01:00 or 2026-11-22T01:00:00Z is one")
    })
}
