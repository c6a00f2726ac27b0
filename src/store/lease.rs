//! Leases: who is at work (`docs/store-format.md`, "Leases").
//!
//! A writer takes what the store has as given, and says so only at its end, by the record. Until then its lease keeps
//! collectors from removing anything that was there when it began. A reader's lease keeps what
//! it reads.

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::cause::Cause;
use super::id::Id;
use super::keys::Keys;
use super::objects::{Object, Objects, Sort};
use super::record::Snapshot;
use super::sealed::Sealed;
use super::{Store, whole};
use crate::error::{Error, Kind, Result, ResultExt};

/// How long a lease holds that is not renewed, by the clock of whoever keeps the objects.
const LIFE: Duration = Duration::from_secs(60 * 60);
/// How often it is renewed.
const RENEWAL: Duration = Duration::from_secs(5 * 60);
/// How long one reads before others are told.
const SOON: Duration = Duration::from_secs(10);
/// How old it may be for what relies on it, by this machine's clock, which goes on while the machine sleeps.
const TRUSTED: Duration = Duration::from_secs(30 * 60);
/// How often one that collects waits for another.
const TRIES: u32 = 4;
/// How far apart two times of one clock may be and still be of one moment.
pub(super) const MOMENT: Duration = Duration::from_secs(2);

/// What a lease is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Work {
    /// Making snapshots.
    Write,
    /// Removing what no snapshot needs, or merging indexes. One at a time.
    Collect,
    /// Reading a snapshot that others may remove.
    Read,
}

/// What the object says.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Told {
    session: String,
    work: Work,
    /// When the first lease of the session was written; of that itself nothing.
    since: Option<Timestamp>,
    /// Root pages that are read.
    reads: Vec<Root>,
    host: String,
    process: Option<Process>,
    program: String,
}

/// The root page of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Root {
    pub(super) root: Id,
    pub(super) size: u64,
}

impl Root {
    /// Those of a snapshot.
    pub(super) fn of(snapshot: &Snapshot) -> Vec<Self> {
        let root = |disk: &super::DiskRecord| Self { root: disk.root, size: disk.size };
        snapshot.record.disks.iter().map(root).collect()
    }
}

/// A process of a host that is up: one that is seen to be gone holds nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Process {
    /// Which start of the host.
    boot: String,
    /// Whom the number is unique among.
    namespace: String,
    pid: u32,
    /// When it began, in ticks of the host.
    started: u64,
}

impl Process {
    fn this() -> Option<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned();
        let namespace = fs::read_link("/proc/self/ns/pid").ok()?.to_str()?.to_owned();
        let pid = std::process::id();
        Some(Self { boot, namespace, pid, started: started(pid)? })
    }

    /// Whether it can be seen from here that it is gone.
    fn is_gone(&self) -> bool {
        let Some(this) = Self::this() else { return false };
        this.boot == self.boot
            && this.namespace == self.namespace
            && started(self.pid) != Some(self.started)
    }
}

/// When a process began: the 22nd field of its `stat`, where the 2nd, in brackets, may hold anything.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Time that passes while the machine sleeps, too.
fn now() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::from_secs(now.tv_sec.unsigned_abs())
}

/// Somebody's lease, as it lies in the store.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) work: Work,
    /// When the session began, by the clock of whoever keeps the objects.
    pub(super) since: SystemTime,
    pub(super) reads: Vec<Root>,
    session: String,
    /// Who, for people.
    pub(super) who: String,
}

impl Seen {
    /// Whether it is that one.
    pub(super) fn is(&self, lease: &Lease) -> bool {
        self.session == lease.held.session
    }
}

/// A lease of this process, until it is dropped.
#[derive(Debug)]
pub(super) struct Lease {
    held: Arc<Held>,
    stop: Option<mpsc::Sender<()>>,
    renewing: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Held {
    objects: Arc<dyn Objects>,
    keys: Keys,
    session: String,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    told: Told,
    /// The object, once it is written.
    id: Option<Id>,
    /// When it was written last.
    at: Duration,
}

impl Lease {
    /// Says that this process is at work, and reads what is below `reads`. From when this returns on, others heed it.
    ///
    /// # Errors
    /// The host's.
    pub(super) fn new(store: &Store, work: Work, reads: Vec<Root>) -> Result<Self> {
        let held = Held::new(store, work, reads)?;
        held.renew()?;
        Self::kept(held, RENEWAL)
    }

    /// Says that this process reads what is below `roots`, unless it ends soon: most do, and others leave that
    /// in peace for a while anyway. Where nothing can be written, nothing is said.
    ///
    /// # Errors
    /// The host's.
    pub(super) fn reading(store: &Store, roots: Vec<Root>) -> Result<Self> {
        Self::kept(Held::new(store, Work::Read, roots)?, SOON)
    }

    /// Renews it from time to time, the first one in `first`.
    fn kept(held: Held, first: Duration) -> Result<Self> {
        let held = Arc::new(held);
        let (stop, stopped) = mpsc::channel();
        let renewed = Arc::clone(&held);
        let renewing = thread::Builder::new().name("lease".to_owned()).spawn(move || {
            let mut wait = first;
            while stopped.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                wait = RENEWAL;
                if let Err(error) = renewed.renew() {
                    let name = renewed.objects.name();
                    log::info!("{name}: nobody is told that it is in use: {error}");
                }
            }
        });
        Ok(Self { held, stop: Some(stop), renewing: Some(renewing.map_err(Error::io)?) })
    }

    /// Fails if others may no longer heed it: this process slept for too long.
    pub(super) fn check(&self) -> Result<()> {
        if now().saturating_sub(self.held.state.lock().at) < TRUSTED {
            return Ok(());
        }
        let error = Error::new(
            Kind::Io,
            "this took a break that was too long to rely on what was stored before",
        );
        Err(error.with_hint("run it again: what was stored already is used"))
    }
}

impl Held {
    fn new(store: &Store, work: Work, reads: Vec<Root>) -> Result<Self> {
        let mut number = [0; 16];
        rustix::rand::getrandom(&mut number, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| Error::io(error.into()))?;
        let session: String = number.iter().map(|byte| format!("{byte:02x}")).collect();
        let told = Told {
            session: session.clone(),
            work,
            since: None,
            reads,
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            process: Process::this(),
            program: concat!("strata ", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        let state = Mutex::new(State { told, id: None, at: now() });
        Ok(Self { objects: Arc::clone(&store.objects), keys: store.keys.clone(), session, state })
    }

    /// Writes it again, and removes what was written before.
    fn renew(&self) -> Result<()> {
        let mut state = self.state.lock();
        if let Some(id) = state.id
            && state.told.since.is_none()
        {
            let listed = self.objects.list(Sort::Leases)?;
            let first = listed.iter().find(|listed| listed.id == id);
            let since = first.and_then(|first| Timestamp::try_from(first.written).ok());
            state.told.since =
                Some(since.ok_or_else(|| Error::new(Kind::NotFound, "its lease is gone"))?);
        }
        let at = now();
        let json = serde_json::to_vec(&state.told);
        let json = json.map_err(|error| Error::caused_by(Kind::Io, error))?;
        let bytes = self.keys.seal(Sealed::Lease, &json)?;
        let id = Id::of_object(&bytes);
        self.objects.put(Object::Lease(id), &[&bytes])?;
        let before = state.id.replace(id);
        state.at = at;
        match before.filter(|&before| before != id) {
            Some(before) => self.objects.remove(Object::Lease(before)),
            None => Ok(()),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(renewing) = self.renewing.take()
            && renewing.join().is_err()
        {
            log::error!("renewing a lease panicked");
        }
        let Some(id) = self.held.state.lock().id else { return };
        if let Err(error) = self.held.objects.remove(Object::Lease(id)) {
            let name = self.held.objects.name();
            log::warn!("{name}: others are still told that it is in use: {error}");
        }
    }
}

impl Store {
    /// The leases that hold, `mine` among them, and what time it is where they are kept. Those that are seen not to hold are
    /// removed.
    pub(super) fn leases(&self, mine: &Lease) -> Result<(Vec<Seen>, SystemTime)> {
        let listed = self.objects.list(Sort::Leases)?;
        let own = mine.held.state.lock().id;
        let mut sessions: HashMap<String, Seen> = HashMap::new();
        // What was written last tells what time it is there.
        let now =
            listed.iter().map(|listed| listed.written).max().unwrap_or(SystemTime::UNIX_EPOCH);
        for listed in listed {
            let object = Object::Lease(listed.id);
            let read = || -> Result<Told> {
                let bytes = whole(&*self.objects, object)?;
                let json = self.keys.unseal(Sealed::Lease, &bytes)?;
                Ok(serde_json::from_slice(&json).map_err(|error| Cause::Json(error.to_string()))?)
            };
            let told = match read() {
                Ok(told) => Some(told),
                Err(error) if error.kind() == Kind::NotFound => continue,
                // Whatever it was, it is heeded until it is old.
                Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Unsupported) => None,
                Err(error) => return Err(error).within(|| format!("{}: {object}", self.name())),
            };
            let is_old = now.duration_since(listed.written).is_ok_and(|age| age > LIFE);
            let is_gone =
                told.as_ref().and_then(|told| told.process.as_ref()).is_some_and(Process::is_gone);
            if Some(listed.id) != own && (is_old || is_gone) {
                log::info!("{}: {object} was left by somebody who is gone", self.name());
                self.objects.remove(object)?;
                continue;
            }
            let seen = match told {
                Some(told) => Seen {
                    work: told.work,
                    since: told.since.map_or(listed.written, SystemTime::from),
                    reads: told.reads,
                    who: match told.process {
                        Some(process) => format!("process {} on {}", process.pid, told.host),
                        None => told.host,
                    },
                    session: told.session,
                },
                None => Seen {
                    work: Work::Write,
                    since: SystemTime::UNIX_EPOCH,
                    reads: vec![],
                    session: listed.id.to_string(),
                    who: format!("{object}, which is damaged"),
                },
            };
            sessions.entry(seen.session.clone()).or_insert(seen);
        }
        Ok((sessions.into_values().collect(), now))
    }

    /// The lease of the only one that collects.
    ///
    /// # Errors
    /// [`Kind::Refused`] if somebody does already, and the host's.
    pub(super) fn collecting(&self) -> Result<Lease> {
        let mut tries = 0;
        loop {
            let lease = Lease::new(self, Work::Collect, vec![])?;
            // Whoever wrote its lease first is seen by the other, and two that see each other both go back.
            let (others, _) = self.leases(&lease)?;
            let other =
                others.into_iter().find(|other| other.work == Work::Collect && !other.is(&lease));
            let Some(other) = other else { return Ok(lease) };
            if tries == TRIES {
                let message = format!("{} is collecting", other.who);
                return Err(Error::new(Kind::Refused, message).within(self.name()));
            }
            // Not as long as the other, who may have gone back, too.
            let wait = 50 + u64::from(lease.held.session.bytes().next().unwrap_or(b'0')) % 16 * 10;
            drop(lease);
            thread::sleep(Duration::from_millis(wait << tries));
            tries += 1;
        }
    }
}
