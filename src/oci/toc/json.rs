//! The entries of a table of contents, as they come: JSON that is never in memory as a whole.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufReader, Read};

use serde::de::{DeserializeSeed, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::cause::Cause;
use crate::error::{Error, Result};

/// Bytes of one entry at most, a few of its neighbours' counted: what a parser holds at once.
const MOST_ENTRY: u64 = 4 << 20;

/// One entry, as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Raw {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) name: String,
    pub(super) link_name: String,
    pub(super) mode: i64,
    pub(super) size: i64,
    pub(super) uid: i64,
    pub(super) gid: i64,
    pub(super) modtime: Option<String>,
    pub(super) dev_major: i64,
    pub(super) dev_minor: i64,
    pub(super) xattrs: Option<BTreeMap<String, String>>,
    pub(super) digest: String,
    pub(super) offset: i64,
    pub(super) end_offset: i64,
    pub(super) inner_offset: i64,
    pub(super) chunk_size: i64,
    pub(super) chunk_offset: i64,
    pub(super) chunk_digest: String,
    pub(super) chunk_type: String,
}

/// Gives `each` the entries of the table of contents that `json` is, from its start to its end.
///
/// # Errors
/// What `each` and `json` return, and [`Cause::Json`], [`Cause::Version`], [`Cause::Entry`].
pub(super) fn entries(json: impl Read, each: &mut dyn FnMut(Raw) -> Result<()>) -> Result<()> {
    let since = Cell::new(0);
    let failed = Cell::new(None);
    let input = BufReader::with_capacity(64 << 10, Counted { input: json, since: &since });
    let mut json = serde_json::Deserializer::from_reader(input);
    let mut take = |raw| {
        since.set(0);
        each(raw).map_err(|error| failed.set(Some(error)))
    };
    let parsed = Document(&mut take).deserialize(&mut json).and_then(|()| json.end());
    match (failed.take(), parsed) {
        (Some(error), _) => Err(error),
        (None, Ok(())) => Ok(()),
        (None, Err(error)) if error.is_io() => Err(Error::io(error.into())),
        (None, Err(error)) => Err(Cause::Json(error.to_string()).into()),
    }
}

/// Fails once an entry takes more bytes than any should.
struct Counted<'a, R> {
    input: R,
    since: &'a Cell<u64>,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buf)?;
        let since = self.since.get() + read as u64;
        self.since.set(since);
        if since > MOST_ENTRY {
            return Err(io::Error::other(Error::from(Cause::Entry(MOST_ENTRY))));
        }
        Ok(read)
    }
}

type Take<'a> = &'a mut dyn FnMut(Raw) -> Result<(), ()>;

/// The whole: an object with a version and entries.
struct Document<'a>(Take<'a>);

impl<'de> DeserializeSeed<'de> for Document<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Document<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of contents")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Self(take) = self;
        let (mut version, mut seen) = (None, false);
        while let Some(key) = map.next_key::<String>()? {
            match &*key {
                "version" if version.is_none() => version = Some(map.next_value::<u64>()?),
                // Of entries told twice nobody knows which hold.
                "entries" if !seen => {
                    seen = true;
                    map.next_value_seed(Entries(&mut *take))?;
                }
                "version" | "entries" => return Err(A::Error::custom("a field told twice")),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        match (version, seen) {
            (Some(1), true) => Ok(()),
            (Some(version), true) => Err(A::Error::custom(Cause::Version(version))),
            _ => Err(A::Error::custom("no version or no entries")),
        }
    }
}

struct Entries<'a>(Take<'a>);

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(raw) = entries.next_element()? {
            (self.0)(raw).map_err(|()| A::Error::custom("stopped"))?;
        }
        Ok(())
    }
}
