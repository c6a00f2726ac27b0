//! Which snapshots of a series to keep.

use std::collections::{BTreeMap, BTreeSet};

use jiff::tz::TimeZone;
use jiff::{Span, Zoned};
use serde::Serialize;

use super::record::Snapshot;
use crate::error::{Error, Kind, Result};

/// What to keep of each series. What no rule keeps is to go.
#[derive(Debug, Clone, Default)]
pub struct Keep {
    /// So many of the newest.
    pub last: usize,
    /// The newest of each period, for so many periods that have one, by [`Period::ALL`].
    pub periods: [usize; Period::ALL.len()],
    /// Those no more than this older than the newest of the series.
    pub within: Option<Span>,
    /// Those with one of these tags.
    pub tags: Vec<String>,
}

/// A period of the calendar, in the time of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Period {
    /// From one full hour to the next.
    Hour,
    /// From midnight to midnight.
    Day,
    /// From Monday to Sunday.
    Week,
    /// By the calendar.
    Month,
    /// By the calendar.
    Year,
}

impl Period {
    /// All of them, the shortest first.
    pub const ALL: [Self; 5] = [Self::Hour, Self::Day, Self::Week, Self::Month, Self::Year];

    /// What a snapshot is that is kept for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hour => "hourly",
            Self::Day => "daily",
            Self::Week => "weekly",
            Self::Month => "monthly",
            Self::Year => "yearly",
        }
    }

    /// Whether both times are in one period, by the calendar of their zone.
    pub fn has_both(self, one: &Zoned, other: &Zoned) -> bool {
        self.of(one) == self.of(other)
    }

    /// What tells the period that `time` is in from all others.
    fn of(self, time: &Zoned) -> (i16, i16, i8, i32) {
        let week = time.date().iso_week_date();
        match self {
            // When clocks are set back an hour comes twice, at another offset.
            Self::Hour => (time.year(), time.day_of_year(), time.hour(), time.offset().seconds()),
            Self::Day => (time.year(), time.day_of_year(), 0, 0),
            Self::Week => (week.year(), 0, week.week(), 0),
            Self::Month => (time.year(), 0, time.month(), 0),
            Self::Year => (time.year(), 0, 0, 0),
        }
    }
}

/// What becomes of a snapshot, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// The rules that keep it; if there is none, it goes.
    pub reasons: Vec<&'static str>,
}

impl Keep {
    /// Whether any rule keeps anything.
    pub fn keeps_something(&self) -> bool {
        self.last > 0
            || self.periods.iter().any(|&count| count > 0)
            || self.within.is_some()
            || !self.tags.is_empty()
    }

    /// Decides about all snapshots, each series by itself and its newest first; periods are those of `zone`.
    ///
    /// # Errors
    /// [`Kind::Usage`] if no rule keeps anything: that is hardly meant.
    pub fn decide(&self, snapshots: Vec<Snapshot>, zone: &TimeZone) -> Result<Vec<Decision>> {
        if !self.keeps_something() {
            return Err(Error::new(Kind::Usage, "nothing says which snapshots to keep")
                .with_hint("as --keep-last 7 --keep-monthly 12, to begin with"));
        }
        let mut series: BTreeMap<String, Vec<Snapshot>> = BTreeMap::new();
        for snapshot in snapshots {
            series.entry(snapshot.record.series.clone()).or_default().push(snapshot);
        }
        let mut decisions = Vec::new();
        for mut snapshots in series.into_values() {
            snapshots
                .sort_by_key(|snapshot| std::cmp::Reverse((snapshot.record.time, snapshot.id)));
            self.decide_series(snapshots, zone, &mut decisions)?;
        }
        Ok(decisions)
    }

    /// Decides about one series, the newest first.
    fn decide_series(
        &self,
        snapshots: Vec<Snapshot>,
        zone: &TimeZone,
        decisions: &mut Vec<Decision>,
    ) -> Result<()> {
        let newest = snapshots.first().map(|snapshot| snapshot.record.time.to_zoned(zone.clone()));
        let oldest = match newest.zip(self.within) {
            Some((newest, within)) => {
                let oldest = newest.checked_sub(within);
                Some(oldest.map_err(|error| Error::caused_by(Kind::Usage, error))?.timestamp())
            }
            None => None,
        };
        let mut seen: [BTreeSet<(i16, i16, i8, i32)>; Period::ALL.len()] = Default::default();
        for (age, snapshot) in snapshots.into_iter().enumerate() {
            let mut reasons = Vec::new();
            if age < self.last {
                reasons.push("last");
            }
            let time = snapshot.record.time.to_zoned(zone.clone());
            for ((period, most), seen) in Period::ALL.iter().zip(self.periods).zip(&mut seen) {
                if seen.len() < most && seen.insert(period.of(&time)) {
                    reasons.push(period.name());
                }
            }
            if oldest.is_some_and(|oldest| snapshot.record.time >= oldest) {
                reasons.push("within");
            }
            if snapshot.record.tags.iter().any(|tag| self.tags.contains(tag)) {
                reasons.push("tag");
            }
            decisions.push(Decision { snapshot, reasons });
        }
        Ok(())
    }
}
