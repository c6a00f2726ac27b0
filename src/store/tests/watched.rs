//! Objects that count what is done with them, let something else happen in between, or fail from some point on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use parking_lot::Mutex;

use super::*;
use crate::store::objects::{Listed, Object, Objects, Sort};

/// What happens before an operation of some number.
type Event = Box<dyn FnOnce() + Send>;

pub(super) struct Watched {
    inner: Folder,
    done: AtomicUsize,
    event: Mutex<Option<(usize, Event)>>,
    /// The first operation that fails, and all after it.
    dies_at: usize,
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watched").field("done", &self.done).finish_non_exhaustive()
    }
}

impl Watched {
    pub(super) fn new(path: &std::path::Path) -> Self {
        let done = AtomicUsize::new(0);
        Self { inner: Folder::new(path), done, event: Mutex::new(None), dies_at: usize::MAX }
    }

    /// Lets `event` happen before the operation `at`.
    pub(super) fn with(self, at: usize, event: impl FnOnce() + Send + 'static) -> Self {
        *self.event.lock() = Some((at, Box::new(event)));
        self
    }

    /// Fails with the operation `at` and all after it, as if the process had been ended there.
    pub(super) fn dying_at(self, at: usize) -> Self {
        Self { dies_at: at, ..self }
    }

    /// How many operations there were.
    pub(super) fn done(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }

    fn step(&self) -> Result<()> {
        let number = self.done.fetch_add(1, Ordering::Relaxed);
        if number >= self.dies_at {
            return Err(Error::new(Kind::Io, "the process has ended"));
        }
        let event = self.event.lock().take_if(|(at, _)| *at == number);
        if let Some((_, event)) = event {
            event();
        }
        Ok(())
    }
}

impl Objects for Watched {
    fn name(&self) -> String {
        self.inner.name()
    }

    fn len(&self, object: Object) -> Result<u64> {
        self.step()?;
        self.inner.len(object)
    }

    fn read_at(&self, object: Object, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.step()?;
        self.inner.read_at(object, offset, buf)
    }

    fn put(&self, object: Object, parts: &[&[u8]]) -> Result<()> {
        self.step()?;
        self.inner.put(object, parts)
    }

    fn list(&self, sort: Sort) -> Result<Vec<Listed>> {
        self.step()?;
        self.inner.list(sort)
    }

    fn remove(&self, object: Object) -> Result<()> {
        self.step()?;
        self.inner.remove(object)
    }

    fn clear_unfinished(&self, then: SystemTime) -> Result<u64> {
        self.step()?;
        self.inner.clear_unfinished(then)
    }
}

/// The store of `place` through `watched`.
pub(super) fn open(watched: &Arc<Watched>) -> Result<Arc<Store>> {
    Store::open(Arc::clone(watched) as Arc<dyn Objects>, &Cache::new(0), &Keyring::default())
        .map(Arc::new)
}
