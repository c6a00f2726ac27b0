//! Which snapshots are kept, by calendars worked out by hand.

use jiff::tz::TimeZone;
use jiff::{Span, ToSpan};

use super::super::{Id, Keep, Period, Record};
use super::*;

fn at(series: &str, time: &str, tags: &[&str]) -> Snapshot {
    let record = Record {
        series: series.to_owned(),
        time: time.parse().unwrap(),
        tags: tags.iter().map(|&tag| tag.to_owned()).collect(),
        parent: None,
        source: String::new(),
        host: String::new(),
        program: String::new(),
        copy_of: None,
        disks: vec![],
    };
    Snapshot { id: Id::of_object(format!("{series}{time}").as_bytes()), record }
}

fn keep(period: Period, count: usize) -> Keep {
    let mut keep = Keep::default();
    keep.periods[Period::ALL.iter().position(|&it| it == period).unwrap()] = count;
    keep
}

/// The times of what is kept, with the rules, the newest first.
fn kept(keep: &Keep, zone: &str, times: &[&str]) -> Vec<String> {
    let zone = TimeZone::get(zone).unwrap_or(TimeZone::UTC);
    let snapshots = times.iter().map(|time| at("web", time, &[])).collect();
    let decisions = keep.decide(snapshots, &zone).unwrap();
    assert_eq!(decisions.len(), times.len());
    let kept = decisions.iter().filter(|it| !it.reasons.is_empty());
    kept.map(|it| format!("{} {}", it.snapshot.record.time, it.reasons.join(","))).collect()
}

const TIMES: &[&str] = &[
    "2026-01-01T00:30:00Z",
    "2026-01-01T12:00:00Z",
    "2026-01-04T23:59:59Z",
    "2026-01-05T00:00:00Z",
    "2026-01-05T00:59:59Z",
    "2026-01-05T01:00:00Z",
    "2026-02-01T00:00:00Z",
];

#[test]
fn the_newest_of_each_period() {
    let of = |period, count| kept(&keep(period, count), "UTC", TIMES);
    assert_eq!(
        of(Period::Hour, 3),
        [
            "2026-02-01T00:00:00Z hourly",
            "2026-01-05T01:00:00Z hourly",
            "2026-01-05T00:59:59Z hourly"
        ]
    );
    assert_eq!(
        of(Period::Day, 3),
        ["2026-02-01T00:00:00Z daily", "2026-01-05T01:00:00Z daily", "2026-01-04T23:59:59Z daily"]
    );
    // The fourth of January 2026 was a Sunday, and the first in the same week.
    assert_eq!(
        of(Period::Week, 9),
        [
            "2026-02-01T00:00:00Z weekly",
            "2026-01-05T01:00:00Z weekly",
            "2026-01-04T23:59:59Z weekly"
        ]
    );
    assert_eq!(
        of(Period::Month, 9),
        ["2026-02-01T00:00:00Z monthly", "2026-01-05T01:00:00Z monthly"]
    );
    assert_eq!(of(Period::Year, 9), ["2026-02-01T00:00:00Z yearly"]);
}

#[test]
fn a_week_belongs_to_the_year_of_its_thursday() {
    // Thursday 31 December 2026, Friday 1 and Monday 4 January 2027.
    let times = ["2026-12-31T10:00:00Z", "2027-01-01T10:00:00Z", "2027-01-04T10:00:00Z"];
    let of = |period| kept(&keep(period, 9), "UTC", &times).len();
    assert_eq!((of(Period::Week), of(Period::Year)), (2, 2));
}

#[test]
fn rules_add_up_and_say_so() {
    let mut rules = keep(Period::Day, 2);
    rules.last = 1;
    rules.within = Some(27.days());
    assert_eq!(
        kept(&rules, "UTC", TIMES),
        [
            "2026-02-01T00:00:00Z last,daily,within",
            "2026-01-05T01:00:00Z daily,within",
            "2026-01-05T00:59:59Z within",
            "2026-01-05T00:00:00Z within"
        ]
    );
}

#[test]
fn each_series_by_itself_and_tags() {
    let snapshots = vec![
        at("a", "2026-01-01T00:00:00Z", &["gold"]),
        at("a", "2026-01-02T00:00:00Z", &[]),
        at("a", "2026-01-03T00:00:00Z", &[]),
        at("b", "2020-01-01T00:00:00Z", &["silver"]),
        at("b", "2020-01-02T00:00:00Z", &[]),
    ];
    let rules = Keep { last: 1, tags: vec!["gold".to_owned()], ..Keep::default() };
    let decided = rules.decide(snapshots, &TimeZone::UTC).unwrap();
    let told: Vec<String> = decided
        .iter()
        .map(|it| {
            format!(
                "{} {} {}",
                it.snapshot.record.series,
                it.snapshot.record.time,
                it.reasons.join(",")
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            "a 2026-01-03T00:00:00Z last",
            "a 2026-01-02T00:00:00Z ",
            "a 2026-01-01T00:00:00Z tag",
            "b 2020-01-02T00:00:00Z last",
            "b 2020-01-01T00:00:00Z "
        ]
    );
}

#[test]
fn no_rule_is_no_order_to_remove_everything() {
    let error = Keep::default().decide(vec![at("a", "2026-01-01T00:00:00Z", &[])], &TimeZone::UTC);
    assert_eq!(error.unwrap_err().to_string(), "nothing says which snapshots to keep");
    // A span of nothing keeps the newest.
    let rules = Keep { within: Some(Span::new()), ..Keep::default() };
    assert_eq!(kept(&rules, "UTC", TIMES), ["2026-02-01T00:00:00Z within"]);
}
