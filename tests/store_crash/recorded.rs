//! Files that remember what was done to them, and fail on demand.

use std::fs::File;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use stratafs::store::Id;
use stratafs::store::objects::{Files, Host};

/// What was done, once it was.
#[derive(Debug, Clone)]
pub enum Change {
    Create(PathBuf),
    Write(PathBuf, Vec<u8>),
    Sync(PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    /// Names that were changed before the change of this number are on stable storage.
    SyncDir(PathBuf, usize),
    /// Not a change: from here on this is promised.
    Promise(Promise),
}

/// What a caller was told of a store, or is about to ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// The snapshot is there.
    Made(usize, Id),
    /// It may go.
    MayGo(usize, Id),
    /// It is gone.
    Gone(usize, Id),
    /// The key of this number opens the stores.
    Key(u8),
    /// It may go.
    KeyMayGo(u8),
}

/// Which call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Create,
    Write,
    Sync,
    Rename,
    Remove,
    SyncDir,
}

/// Says for each call, by its number, whether it fails, and how.
pub type Plan = Box<dyn Fn(u64, Call, &Path) -> Option<rustix::io::Errno> + Send>;

#[derive(Default)]
struct State {
    log: Vec<Change>,
    calls: u64,
    failed: u64,
    plan: Option<Plan>,
}

/// The host's files, and what was done to them.
pub struct Recorded(Mutex<State>);

impl std::fmt::Debug for Recorded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recorded")
    }
}

impl Recorded {
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::default()))
    }

    /// With calls that fail.
    pub fn failing(plan: Plan) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { plan: Some(plan), ..State::default() })))
    }

    pub fn promise(&self, promise: Promise) {
        self.0.lock().log.push(Change::Promise(promise));
    }

    /// All that was done so far, which is forgotten.
    pub fn take_log(&self) -> Vec<Change> {
        std::mem::take(&mut self.0.lock().log)
    }

    /// How many calls there were, and how many of them failed.
    pub fn counted(&self) -> (u64, u64) {
        let state = self.0.lock();
        (state.calls, state.failed)
    }

    fn fail(&self, call: Call, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        let number = state.calls;
        state.calls += 1;
        let fault = state.plan.as_ref().and_then(|plan| plan(number, call, path));
        match fault {
            Some(errno) => {
                state.failed += 1;
                Err(errno.into())
            }
            None => Ok(()),
        }
    }

    fn did(&self, change: Change) {
        self.0.lock().log.push(change);
    }
}

impl Files for Recorded {
    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        Host.make_dir(dir)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        self.fail(Call::Create, path)?;
        let file = Host.create(path)?;
        self.did(Change::Create(path.to_owned()));
        Ok(file)
    }

    fn write(&self, path: &Path, file: &File, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        // As much as there is room for.
        if let Err(error) = self.fail(Call::Write, path) {
            if let Some(part) = parts.first() {
                Host.write(path, file, &[IoSlice::new(&part[..part.len() / 2])])?;
            }
            return Err(error);
        }
        let written = Host.write(path, file, parts)?;
        let mut bytes: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
        bytes.truncate(written);
        self.did(Change::Write(path.to_owned(), bytes));
        Ok(written)
    }

    fn sync(&self, path: &Path, file: &File) -> io::Result<()> {
        self.fail(Call::Sync, path)?;
        Host.sync(path, file)?;
        self.did(Change::Sync(path.to_owned()));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.fail(Call::Rename, to)?;
        Host.rename(from, to)?;
        self.did(Change::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.fail(Call::Remove, path)?;
        Host.remove(path)?;
        self.did(Change::Remove(path.to_owned()));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.fail(Call::SyncDir, dir)?;
        // What another thread does from now on need not be among it.
        let before = self.0.lock().log.len();
        Host.sync_dir(dir)?;
        self.did(Change::SyncDir(dir.to_owned(), before));
        Ok(())
    }
}
