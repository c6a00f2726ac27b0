//! The file that says what a schedule does (`docs/schedule.md`).

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{Span, SpanRelativeTo, Timestamp};
use serde::de::{self, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, de::Error as _};

use crate::cli::secrets::SecretArgs;
use crate::cli::stores::StoreArgs;
use crate::error::{Error, Kind, Result};
use crate::image::Format;
use crate::store::objects::Location;
use crate::store::{Keep, Period, check_name};

/// All that a run does.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Config {
    /// Where snapshots are made.
    pub(super) store: Place,
    /// Where they are copied to.
    pub(super) copy: Option<Place>,
    /// The PEM file of the key that signs them, and their copies.
    pub(super) sign_key: Option<PathBuf>,
    /// What they are made of, in the order of the file.
    #[serde(deserialize_with = "in_order")]
    pub(super) series: Vec<(String, Series)>,
}

/// A store, and what is done with it after each run.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Place {
    /// A folder, or `s3://bucket/prefix`.
    #[serde(deserialize_with = "location")]
    pub(super) at: Location,
    key_file: Option<PathBuf>,
    passphrase_file: Option<PathBuf>,
    /// Whether it needs no key, whatever the environment or the other store has.
    #[serde(default)]
    unencrypted: bool,
    endpoint: Option<String>,
    region: Option<String>,
    profile: Option<String>,
    path_style: Option<bool>,
    #[serde(default)]
    allow_http: bool,
    request_timeout: Option<u64>,
    /// Which snapshots stay; all of them without.
    #[serde(default, deserialize_with = "keep")]
    pub(super) keep: Option<Keep>,
    /// How often room is given back.
    #[serde(default)]
    pub(super) collect: Often,
    /// How long to keep what nothing needs.
    #[serde(default = "grace", deserialize_with = "duration")]
    pub(super) grace: Duration,
}

/// How often something is done: at each run, never, or at the first run of each period.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Often {
    Always,
    Hourly,
    #[default]
    Daily,
    Weekly,
    Monthly,
    Never,
}

/// What the snapshots of one series are made of.
#[derive(Debug, Deserialize)]
#[serde(try_from = "Members")]
pub(super) struct Series {
    /// Name and reference of each disk; one that is alone is called `disk`.
    pub(super) disks: Vec<(String, String)>,
    /// What they are given besides.
    pub(super) tags: Vec<String>,
    /// Which of them stay; those that the store's rules keep without.
    pub(super) keep: Option<Keep>,
    /// Done before, by the shell.
    pub(super) before: Option<String>,
    /// Done afterwards, however it went.
    pub(super) after: Option<String>,
    /// How long each of the two may take.
    pub(super) timeout: Duration,
    /// How the images are read; found out without.
    pub(super) format: Option<Format>,
    /// Folders that they may refer to files in.
    pub(super) allow_path: Vec<PathBuf>,
}

/// A series as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Members {
    disk: Option<String>,
    #[serde(default, deserialize_with = "named")]
    disks: Vec<(String, String)>,
    #[serde(default, deserialize_with = "tags")]
    tags: Vec<String>,
    #[serde(default, deserialize_with = "keep")]
    keep: Option<Keep>,
    before: Option<String>,
    after: Option<String>,
    #[serde(default = "timeout", deserialize_with = "duration")]
    timeout: Duration,
    #[serde(default, deserialize_with = "format")]
    format: Option<Format>,
    #[serde(default)]
    allow_path: Vec<PathBuf>,
}

impl TryFrom<Members> for Series {
    type Error = &'static str;

    fn try_from(members: Members) -> Result<Self, Self::Error> {
        let disks = match (members.disk, members.disks) {
            (Some(disk), none) if none.is_empty() => vec![("disk".to_owned(), disk)],
            (None, disks) if !disks.is_empty() => disks,
            (None, _) => {
                return Err("names no disk: disk = \"REF\", or disks = { NAME = \"REF\" }");
            }
            (Some(_), _) => return Err("has both disk and disks: one of them is enough"),
        };
        Ok(Self {
            disks,
            tags: members.tags,
            keep: members.keep,
            before: members.before,
            after: members.after,
            timeout: members.timeout,
            format: members.format,
            allow_path: members.allow_path,
        })
    }
}

/// Rules as they are written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Rules {
    last: usize,
    hourly: usize,
    daily: usize,
    weekly: usize,
    monthly: usize,
    yearly: usize,
    #[serde(deserialize_with = "span")]
    within: Option<Span>,
    tags: Vec<String>,
}

fn keep<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Keep>, D::Error> {
    let rules = Rules::deserialize(deserializer)?;
    let keep = Keep {
        last: rules.last,
        periods: [rules.hourly, rules.daily, rules.weekly, rules.monthly, rules.yearly],
        within: rules.within,
        tags: rules.tags,
    };
    match keep.keeps_something() {
        true => Ok(Some(keep)),
        false => Err(D::Error::custom("keeps nothing: without it, all snapshots stay")),
    }
}

const fn grace() -> Duration {
    Duration::from_secs(60 * 60)
}

const fn timeout() -> Duration {
    Duration::from_secs(15 * 60)
}

fn parsed_span<E: de::Error>(text: &str) -> Result<Span, E> {
    let span: Option<Span> = text.parse().ok().filter(|span: &Span| !span.is_negative());
    span.ok_or_else(|| E::custom(format!("\"{text}\" is not how long, as 90m, 12h or 2d")))
}

fn span<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Span>, D::Error> {
    let span: Span = parsed_span(&String::deserialize(deserializer)?)?;
    // A time that is less than all others must be no surprise when it is needed.
    match Timestamp::now().to_zoned(TimeZone::UTC).checked_sub(span) {
        Ok(_) => Ok(Some(span)),
        Err(_) => Err(D::Error::custom(format!("{span:#} is longer than time is told"))),
    }
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let span: Span = parsed_span(&String::deserialize(deserializer)?)?;
    let duration = span.to_duration(SpanRelativeTo::days_are_24_hours()).ok();
    let wrong = || D::Error::custom(format!("{span:#} is no fixed time, as 90m, 12h or 2d is"));
    duration.and_then(|duration| duration.try_into().ok()).ok_or_else(wrong)
}

fn location<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Location, D::Error> {
    let text = String::deserialize(deserializer)?;
    Location::parse(text.as_ref()).map_err(D::Error::custom)
}

fn format<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Format>, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(D::Error::custom)
}

fn tags<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let tags = Vec::<String>::deserialize(deserializer)?;
    tags.iter().try_for_each(|tag| check_name("tag", tag)).map_err(D::Error::custom)?;
    Ok(tags)
}

fn named<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, String)>, D::Error> {
    deserializer.deserialize_map(Ordered::new("disk"))
}

fn in_order<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, Series)>, D::Error> {
    deserializer.deserialize_map(Ordered::new("series"))
}

/// Members of a table whose names are the user's, in the order they are written.
struct Ordered<T> {
    what: &'static str,
    of: std::marker::PhantomData<T>,
}

impl<T> Ordered<T> {
    fn new(what: &'static str) -> Self {
        Self { what, of: std::marker::PhantomData }
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Ordered<T> {
    type Value = Vec<(String, T)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a table with a member for each {}", self.what)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            check_name(self.what, &name).map_err(A::Error::custom)?;
            members.push((name, map.next_value()?));
        }
        match members.is_empty() {
            true => Err(A::Error::custom(format!("there is no {}", self.what))),
            false => Ok(members),
        }
    }
}

impl Place {
    /// How it is reached and opened.
    pub(super) fn store_args(&self) -> StoreArgs {
        let mut args = StoreArgs {
            endpoint: self.endpoint.clone(),
            region: self.region.clone(),
            profile: self.profile.clone(),
            path_style: self.path_style,
            allow_http: self.allow_http,
            secrets: match self.unencrypted {
                true => SecretArgs::unencrypted(),
                false => SecretArgs::of_files(self.key_file.clone(), self.passphrase_file.clone()),
            },
            ..StoreArgs::default()
        };
        if let Some(seconds) = self.request_timeout {
            args.request_timeout = seconds;
        }
        args
    }

    fn says_of_keys(&self) -> bool {
        self.key_file.is_some() || self.passphrase_file.is_some() || self.unencrypted
    }

    fn has_one_key(&self) -> Result<()> {
        let given = [self.key_file.is_some(), self.passphrase_file.is_some(), self.unencrypted];
        match given.into_iter().filter(|&is_given| is_given).count() {
            0 | 1 => Ok(()),
            _ => {
                let message = "has several of key-file, passphrase-file and unencrypted";
                Err(Error::new(Kind::Usage, message).within(self.at.to_string()))
            }
        }
    }

    fn begin_in(&mut self, folder: &Path) {
        if let Location::Folder(dir) = &mut self.at {
            *dir = folder.join(&dir);
        }
        for path in self.key_file.iter_mut().chain(&mut self.passphrase_file) {
            *path = folder.join(&path);
        }
    }
}

impl Config {
    /// Takes the file apart; what is relative begins in `folder`.
    ///
    /// # Errors
    /// [`Kind::Usage`] with the line, for what is not as `docs/schedule.md` says.
    pub(super) fn parse(text: &str, folder: &Path) -> Result<Self> {
        let mut config: Self = toml::from_str(text).map_err(|error| refused(text, &error))?;
        let places = std::iter::once(&config.store).chain(&config.copy);
        for place in places {
            place.has_one_key()?;
        }
        config.store.begin_in(folder);
        if let Some(copy) = &mut config.copy {
            copy.begin_in(folder);
            // One that says nothing of keys has those of the other: so it is if it was made by copying.
            if !copy.says_of_keys() {
                copy.key_file.clone_from(&config.store.key_file);
                copy.passphrase_file.clone_from(&config.store.passphrase_file);
                copy.unencrypted = config.store.unencrypted;
            }
            if copy.at == config.store.at {
                return Err(Error::new(Kind::Usage, "[copy] is the store itself"));
            }
        }
        if let Some(path) = &mut config.sign_key {
            *path = folder.join(&path);
        }
        for (_, series) in &mut config.series {
            for path in &mut series.allow_path {
                *path = folder.join(&path);
            }
            for (_, reference) in &mut series.disks {
                if !reference.contains("://") {
                    *reference = folder.join(&reference).to_string_lossy().into_owned();
                }
            }
        }
        Ok(config)
    }

    /// Leaves only these series, unless they are none.
    ///
    /// # Errors
    /// [`Kind::Usage`] for one that is not there.
    pub(super) fn only(&mut self, names: &[String]) -> Result<()> {
        for name in names {
            if !self.series.iter().any(|(series, _)| series == name) {
                let all: Vec<&str> = self.series.iter().map(|(name, _)| name.as_str()).collect();
                let error = Error::new(Kind::Usage, format!("no series {name}"));
                return Err(error.with_hint(format!("there are: {}", all.join(", "))));
            }
        }
        if !names.is_empty() {
            self.series.retain(|(series, _)| names.contains(series));
        }
        Ok(())
    }
}

impl Often {
    /// Whether it is time now, if the run before made a snapshot at `previous`.
    pub(super) fn is_due(
        self,
        previous: Option<Timestamp>,
        now: Timestamp,
        zone: &TimeZone,
    ) -> bool {
        let period = match self {
            Self::Always => return true,
            Self::Never => return false,
            Self::Hourly => Period::Hour,
            Self::Daily => Period::Day,
            Self::Weekly => Period::Week,
            Self::Monthly => Period::Month,
        };
        let zoned = |time: Timestamp| time.to_zoned(zone.clone());
        // Where there was nothing, there is nothing to give back.
        previous.is_some_and(|previous| !period.has_both(&zoned(previous), &zoned(now)))
    }
}

/// Tells where the file is wrong, in one line.
fn refused(text: &str, error: &toml::de::Error) -> Error {
    let message = error.message();
    // What may stand there instead is the advice.
    let (message, expected) = match message.split_once(", expected ") {
        Some((message, expected)) if message.starts_with("unknown") => (message, Some(expected)),
        _ => (message, None),
    };
    let Range { start, .. } = error.span().unwrap_or_default();
    let before = text.get(..start).unwrap_or_default();
    let line = before.matches('\n').count();
    let shown = text.lines().nth(line).unwrap_or_default().trim();
    let told = Error::new(Kind::Usage, message.trim_end().replace('\n', ", "))
        .within(format!("line {}: {shown}", line + 1));
    match expected {
        Some(expected) => told.with_hint(format!("expected {expected}").replace('`', "")),
        None => told,
    }
}

#[cfg(test)]
mod tests;
