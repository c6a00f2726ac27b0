//! What a person may call a snapshot.

use super::super::objects::{Object, Objects};
use super::super::sealed::Sealed;
use super::super::{Id, Record, check_name};
use super::*;

#[test]
fn by_series_by_time_and_by_id() {
    let place = Place::new();
    let day = |text: &str| text.parse::<Timestamp>().unwrap().as_second();
    let first = place.create("web", day("2026-11-20T10:00:00Z"), b"one", None);
    let second = place.create("web", day("2026-11-22T10:00:00Z"), b"two", None);
    let other = place.create("db", day("2026-11-23T10:00:00Z"), b"three", None);
    let select = |text: &str| place.store.select(text).map(|(snapshot, _)| snapshot.id);
    assert_eq!(select("web").unwrap(), second.id);
    assert_eq!(select("db").unwrap(), other.id);
    assert_eq!(select("web@2026-11-22T10:00:00Z").unwrap(), second.id);
    assert_eq!(select("web@2026-11-22T09:59:59Z").unwrap(), first.id);
    // A day is meant with its end.
    assert_eq!(select("web@2026-11-21").unwrap(), first.id);
    assert_eq!(select("web@2026-11-23").unwrap(), second.id);
    let digits = first.id.to_string();
    assert_eq!(select(&digits).unwrap(), first.id);
    assert_eq!(select(&digits[..8].to_uppercase()).unwrap(), first.id);
    assert_eq!(select(&format!("{}/disk", &digits[..8])).unwrap(), first.id);
}

#[test]
fn what_is_not_there_is_told_with_what_is() {
    let place = Place::new();
    let hint = |text: &str| {
        let error = place.store.select(text).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound, "{error}");
        error.hint().unwrap_or_default().to_owned()
    };
    assert_eq!(hint("web"), "the store has no snapshots yet");
    place.create("web", 1_000_000, b"one", None);
    assert_eq!(hint("wbe"), "there are: web");
    assert_eq!(hint("web@1970-01-01T00:00:00Z"), "the first one is of 1970-01-12T13:46:40Z");
    assert_eq!(hint("web/data"), "there are: disk");
    let error = place.store.select("web@tomorrow").unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (Kind::Usage, "\"tomorrow\" is no time")
    );
}

#[test]
fn names_that_mean_something_else_are_refused() {
    for name in ["", "a/b", "a@b", "a::b", "a b", ".hidden", "-x", "a\nb", &"x".repeat(129)] {
        assert_eq!(check_name("series", name).unwrap_err().kind(), Kind::Usage, "{name:?}");
    }
    for name in ["web01", "web-01.prod_eu+x", "größe"] {
        check_name("series", name).unwrap();
    }
}

#[test]
fn a_record_with_other_names_is_refused() {
    let place = Place::new();
    let good = place.create("web", 1, b"one", None);
    for name in ["a\u{1b}[2J", "a/b", ""] {
        let error =
            place.store.create(new(name, 1, b"one", None), &Progress::default()).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage, "{error}");
        // From somebody who does not ask.
        let record = Record { series: name.to_owned(), ..good.record.clone() };
        let bytes = place.store.keys.seal(Sealed::Record, &serde_json::to_vec(&record).unwrap());
        let bytes = bytes.unwrap();
        let id = Id::of_object(&bytes);
        Folder::new(&place.path()).put(Object::Snapshot(id), &[&bytes]).unwrap();
        let error = place.store.snapshot(id).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{error}");
        assert!(error.to_string().contains("is not described as it should be"), "{error}");
        place.store.remove(id).unwrap();
    }
}
