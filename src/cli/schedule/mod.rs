//! `strata snapshot run`: what a schedule does, as a file says it.
//!
//! For each series a snapshot is made, then they are copied, then those go that no rule keeps, then room is given back. What
//! fails keeps nothing else from being done, except that nothing goes of what the failure may have left as the last of its
//! kind: the snapshots of a series of which none could be made, and of all if they could not be copied.

mod config;
mod lock;
mod report;
mod shell;

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::secrets::signing_key;
use super::snapshot::{free, host, local, new_disk, newest, watched};
use super::store::{CACHE, collected, write_json};
use super::store_copy::copied;
use super::{OpenArgs, Outcome, parse_size, tell};
use crate::block::Cache;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::open::{Opener, Reference, stored};
use crate::store::{
    Collect, Copied, Decision, Id, Keep, NewSnapshot, Reading, Record, SigningKey, Snapshot, Store,
};
use config::{Config, Place, Series};
use report::{Copy, Made, Pruned, Report, Room};

/// Bytes of a configuration at most.
const MOST: u64 = 1 << 20;

/// Unused bytes of packs in per cent before they are written anew, as of `strata store collect`.
const UNUSED: u64 = 10;

/// Options of `strata snapshot run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: strata snapshot run /etc/strata/nightly.toml")]
pub(super) struct Args {
    /// What to do: a TOML file (docs/schedule.md)
    #[arg(value_name = "CONFIG")]
    config: PathBuf,

    /// Only these of its series
    #[arg(value_name = "SERIES")]
    series: Vec<String>,

    /// Only tell what would be done
    #[arg(short = 'n', long)]
    dry_run: bool,

    /// Tell what was done as one JSON object (docs/json.md)
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    let named = || args.config.display().to_string();
    let mut file = File::open(&args.config).within(named)?;
    let mut text = String::new();
    let read = file.by_ref().take(MOST + 1).read_to_string(&mut text);
    if read.within(named)? as u64 > MOST {
        return Err(Error::new(Kind::Usage, "is larger than 1 MiB").within(named()));
    }
    let path = std::path::absolute(&args.config).within(named)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut config = Config::parse(&text, folder).within(named)?;
    config.only(&args.series).within(named)?;
    if !args.dry_run
        && let Some(holder) = lock::lock(&file, &args.config)?
    {
        let pid = holder.pid.map_or(String::new(), |pid| format!(": process {pid}"));
        let since = holder.since.map(|since| local(since, &TimeZone::system()));
        let since = since.map_or(String::new(), |since| format!(", since {since}"));
        let message = format!("another run is not over yet{pid}{since}");
        tell(&Error::new(Kind::Exists, message).within(named()));
        return Ok(Outcome::Busy);
    }
    let mut report = Run::new(&config, folder, args.dry_run)?.all(named())?;
    report.count();
    match args.json {
        true => write_json(&report)?,
        false => report.print()?,
    }
    Ok(if report.failed > 0 || report.interrupted { Outcome::Partly } else { Outcome::Done })
}

/// One run.
struct Run<'a> {
    config: &'a Config,
    /// Where its commands are run.
    folder: &'a Path,
    dry_run: bool,
    sign: Option<Arc<SigningKey>>,
    cache: Arc<Cache>,
    store: Arc<Store>,
    zone: TimeZone,
    /// Set by the first signal: what is under way ends soon, and what is owed is done.
    stop: Arc<AtomicBool>,
    /// Whether a signal ends the process at once: while nothing is owed, and what is done does not look at `stop`.
    may_end: Arc<AtomicBool>,
}

impl<'a> Run<'a> {
    fn new(config: &'a Config, folder: &'a Path, dry_run: bool) -> Result<Self> {
        let sign = config.sign_key.as_deref().map(signing_key).transpose()?.map(Arc::new);
        let cache = Cache::new(CACHE);
        let options = config.store.store_args().options();
        let store = stored::store(&config.store.at, &options, &cache)?;
        let (stop, may_end) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        for signal in [SIGHUP, SIGINT, SIGTERM] {
            signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&may_end))
                .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&stop)))
                .within(|| "cannot watch for signals")?;
        }
        let zone = TimeZone::system();
        Ok(Self { config, folder, dry_run, sign, cache, store, zone, stop, may_end })
    }

    fn all(&self, name: String) -> Result<Report> {
        let started = Timestamp::now();
        // When the run before was.
        let there = self.ours(self.store.snapshots()?);
        let previous = there.last().map(|snapshot| snapshot.record.time);
        let mut series: Vec<Made> = Vec::new();
        for (name, series_config) in &self.config.series {
            series.push(self.series(name, series_config));
        }
        let copy = self.config.copy.as_ref().map(|place| self.copy(place, &series));
        if copy.as_ref().is_none_or(|copy| copy.0.errors.is_empty()) {
            for (made, (_, config)) in series.iter_mut().zip(&self.config.series) {
                self.prune_series(made, config);
            }
        }
        let (copy, other) = copy.unzip();
        let mut collected = Vec::new();
        let stores = [
            (Some(&self.store), Some(&self.config.store)),
            (other.as_ref().and_then(Option::as_ref), self.config.copy.as_ref()),
        ];
        for (store, place) in stores {
            if let (Some(store), Some(place)) = (store, place)
                && place.collect.is_due(previous, started, &self.zone)
                && !self.is_stopped()
            {
                collected.push(self.collect(store, place));
            }
        }
        Ok(Report {
            config: name,
            store: self.store.name(),
            dry_run: self.dry_run,
            started,
            ended: Timestamp::now(),
            series,
            copy,
            collected,
            interrupted: self.is_stopped(),
            failed: 0,
        })
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Those of the series that are dealt with.
    fn ours(&self, mut snapshots: Vec<Snapshot>) -> Vec<Snapshot> {
        snapshots.retain(|snapshot| {
            self.config.series.iter().any(|(name, _)| *name == snapshot.record.series)
        });
        snapshots
    }

    /// Makes a snapshot of a series, with what is to be done before and after.
    fn series(&self, name: &str, series: &Series) -> Made {
        let mut made = Made { series: name.to_owned(), ..Made::default() };
        if self.dry_run {
            match self.plan(series) {
                Ok(plan) => made.plan = plan,
                Err(error) => fail(&mut made.errors, error.within(name.to_owned())),
            }
            return made;
        }
        if self.is_stopped() {
            fail(&mut made.errors, Error::new(Kind::Io, "not begun, as the run was stopped"));
            return made;
        }
        let store = self.config.store.at.to_string();
        let variables = [("STRATA_SERIES", name), ("STRATA_STORE", store.as_str())];
        let before = match &series.before {
            Some(line) => {
                let stop = Some(&*self.stop);
                let done = shell::run(line, self.folder, &variables, series.timeout, stop);
                done.within(|| "before")
            }
            None => Ok(()),
        };
        match before.and_then(|()| self.create(name, series)) {
            Ok(snapshot) => made.snapshot = Some(snapshot),
            Err(error) => fail(&mut made.errors, error.within(name.to_owned())),
        }
        if let Some(line) = &series.after {
            let id = made.snapshot.as_ref().map(|snapshot| snapshot.id.to_string());
            let [one, two] = variables;
            let variables = [one, two, ("STRATA_SNAPSHOT", id.as_deref().unwrap_or_default())];
            // Whether or not anybody wants to stop: a machine may be frozen.
            let done = shell::run(line, self.folder, &variables, series.timeout, None);
            if let Err(error) = done {
                fail(&mut made.errors, error.within(format!("{name}: after")));
            }
        }
        made
    }

    fn opener(&self, series: &Series) -> Result<Arc<Opener>> {
        let size = |text| parse_size(text).map_err(|error| Error::new(Kind::Usage, error));
        let open = OpenArgs {
            format: series.format,
            allow_path: series.allow_path.clone(),
            backing_format: None,
            no_backing: false,
            cache_size: size("256M")?,
            platform: None,
            insecure: false,
            layer_cache_size: size("16G")?,
            stores: self.config.store.store_args(),
        };
        Ok(open.opener_until(Arc::clone(&self.stop)))
    }

    fn create(&self, name: &str, series: &Series) -> Result<Snapshot> {
        let opener = self.opener(series)?;
        let disks = series.disks.iter().map(|(disk, reference)| {
            new_disk(&opener, disk.clone(), &Reference::from(OsStr::new(reference)))
        });
        let sources = series.disks.iter().map(|(name, reference)| match series.disks.len() {
            1 => reference.clone(),
            _ => format!("{name}={reference}"),
        });
        let new = NewSnapshot {
            series: name.to_owned(),
            disks: disks.collect::<Result<_>>()?,
            time: Timestamp::now(),
            tags: series.tags.clone(),
            parent: newest(&self.store, name)?,
            source: sources.collect::<Vec<_>>().join(" "),
            host: host(),
            sign: self.sign.clone(),
            reading: Reading::default(),
        };
        watched(&self.store, new, Arc::clone(&self.stop))
    }

    /// What making a snapshot of a series is made of.
    fn plan(&self, series: &Series) -> Result<Vec<String>> {
        let mut plan = Vec::new();
        plan.extend(series.before.iter().map(|line| format!("before: {}", free(line))));
        let opener = self.opener(series)?;
        for (_, reference) in &series.disks {
            // What is there only once `before` has made it, cannot be looked at.
            let size = match series.before {
                Some(_) => String::new(),
                None => {
                    let disk = opener.disk(&Reference::from(OsStr::new(reference)))?;
                    format!(" ({})", super::text::size(disk.source.len()))
                }
            };
            plan.push(format!("a snapshot of {}{size}", free(reference)));
        }
        plan.extend(series.after.iter().map(|line| format!("after: {}", free(line))));
        Ok(plan)
    }

    /// The snapshots of a store that are dealt with, and what a dry run would have added by now.
    fn as_if(&self, store: &Store, added: &[Made]) -> Result<Vec<Snapshot>> {
        let mut snapshots = self.ours(store.snapshots()?);
        if self.dry_run {
            let time = Timestamp::now();
            let added = added.iter().filter(|made| made.errors.is_empty());
            snapshots.extend(added.map(|made| Snapshot {
                id: Id::ZERO,
                record: Record {
                    series: made.series.clone(),
                    time,
                    tags: self.tags_of(&made.series),
                    parent: None,
                    source: String::new(),
                    host: String::new(),
                    program: String::new(),
                    copy_of: None,
                    disks: Vec::new(),
                },
            }));
        }
        Ok(snapshots)
    }

    fn tags_of(&self, series: &str) -> Vec<String> {
        let found = self.config.series.iter().find(|(name, _)| name == series);
        found.map(|(_, series)| series.tags.clone()).unwrap_or_default()
    }

    /// Removes the snapshots of a series that no rule keeps, if one was made.
    fn prune_series(&self, made: &mut Made, series: &Series) {
        let is_made = made.snapshot.is_some() || (self.dry_run && made.errors.is_empty());
        let keep = series.keep.as_ref().or(self.config.store.keep.as_ref());
        let Some(keep) = keep.filter(|_| is_made && !self.is_stopped()) else { return };
        let decide = || -> Result<Vec<Decision>> {
            let mut snapshots = self.as_if(&self.store, std::slice::from_ref(made))?;
            snapshots.retain(|snapshot| snapshot.record.series == made.series);
            keep.decide(snapshots, &self.zone)
        };
        let pruned = decide().and_then(|decisions| self.remove(&self.store, decisions));
        match pruned {
            Ok(pruned) => made.pruned = pruned,
            Err(error) => fail(&mut made.errors, error.within(made.series.clone())),
        }
    }

    /// Removes what is to go.
    fn remove(&self, store: &Store, decisions: Vec<Decision>) -> Result<Pruned> {
        let mut pruned = Pruned::default();
        for Decision { snapshot, reasons } in decisions {
            if !reasons.is_empty() {
                pruned.kept += 1;
                continue;
            }
            if !self.dry_run {
                store.remove(snapshot.id)?;
            }
            pruned.removed.push(snapshot.id);
        }
        Ok(pruned)
    }

    /// Copies what the other store lacks, and would keep; and removes there what it does not.
    fn copy(&self, place: &Place, made: &[Made]) -> (Copy, Option<Arc<Store>>) {
        let mut copy = Copy { to: place.at.to_string(), ..Copy::default() };
        let mut other = None;
        let done = (|| -> Result<()> {
            if self.is_stopped() {
                return Err(Error::new(Kind::Io, "not begun, as the run was stopped"));
            }
            let store = self.other(place)?;
            let store = other.insert(store);
            let here = self.as_if(&self.store, made)?;
            let mut chosen = store.lacks(&here)?;
            if let Some(keep) = &place.keep {
                let kept = self.kept(store, &chosen, keep)?;
                copy.left = chosen.len() - kept.len();
                chosen = kept;
            }
            if self.dry_run {
                let snapshots = chosen.iter().map(|snapshot| snapshot.id).collect();
                copy.copied = Copied { snapshots, ..Copied::default() };
            } else {
                let sign = self.sign.as_ref();
                copy.copied = copied(store, &self.store, &chosen, sign, &self.stop)?;
            }
            if let Some(keep) = &place.keep {
                let mut there = self.ours(store.snapshots()?);
                if self.dry_run {
                    there.extend(chosen);
                }
                copy.pruned = self.remove(store, keep.decide(there, &self.zone)?)?;
            }
            Ok(())
        })();
        if let Err(error) = done {
            fail(&mut copy.errors, error.within("copy"));
        }
        (copy, other)
    }

    /// The store that is copied to. None is made: where it should lie, something may not be mounted.
    fn other(&self, place: &Place) -> Result<Arc<Store>> {
        let opened = stored::store(&place.at, &place.store_args().options(), &self.cache);
        opened.map_err(|error| match error.kind() {
            Kind::NotFound => error.with_hint(format!(
                "if it is there, is it mounted? strata store copy {} {} makes it",
                self.config.store.at, place.at
            )),
            _ => error,
        })
    }

    /// Those of `lacking` that would stay in `store` by its rules.
    fn kept(&self, store: &Store, lacking: &[Snapshot], keep: &Keep) -> Result<Vec<Snapshot>> {
        let mut all = self.ours(store.snapshots()?);
        all.extend(lacking.iter().cloned());
        let stays =
            |decision: Decision| (!decision.reasons.is_empty()).then_some(decision.snapshot);
        let kept = keep.decide(all, &self.zone)?.into_iter().filter_map(stays);
        let mut kept: Vec<Snapshot> = kept.filter(|snapshot| lacking.contains(snapshot)).collect();
        kept.sort_by_key(|snapshot| (snapshot.record.time, snapshot.id));
        Ok(kept)
    }

    fn collect(&self, store: &Store, place: &Place) -> Room {
        let how = Collect { grace: place.grace, unused: UNUSED, dry_run: self.dry_run };
        // An interrupted collection loses nothing, and the next one goes on.
        self.may_end.store(true, Ordering::Relaxed);
        let done = collected(store, &how);
        self.may_end.store(false, Ordering::Relaxed);
        let mut room = Room { store: place.at.to_string(), collected: None, errors: Vec::new() };
        match done {
            Ok(done) => room.collected = Some(done),
            Err(error) => fail(&mut room.errors, error.within("collect")),
        }
        room
    }
}

/// Tells of a failure now, and at the end.
fn fail(errors: &mut Vec<String>, error: Error) {
    tell(&error);
    errors.push(error.to_string());
}
