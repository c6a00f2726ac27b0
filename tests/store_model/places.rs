//! Places for objects: one in memory, and what stands between any place and a process: a clock that tests turn, an
//! end at some operation, and something else that happens in between.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, RwLock};
use stratafs::error::{Error, Kind, Result};
use stratafs::store::Id;
use stratafs::store::objects::{Listed, Object, Objects, Sort};

/// Objects in memory.
#[derive(Default)]
pub struct Memory(RwLock<HashMap<Object, Written>>);

/// The bytes of an object, and when it was written.
type Written = (Arc<Vec<u8>>, SystemTime);

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Memory")
    }
}

impl Memory {
    fn get(&self, object: Object) -> Result<Arc<Vec<u8>>> {
        let found = self.0.read().get(&object).map(|(bytes, _)| Arc::clone(bytes));
        found.ok_or_else(|| Error::new(Kind::NotFound, format!("no {object}")))
    }
}

fn id_of(object: Object) -> Id {
    match object {
        Object::Config => Id([0; 32]),
        Object::Pack(id)
        | Object::Index(id)
        | Object::Snapshot(id)
        | Object::Lease(id)
        | Object::Condemned(id)
        | Object::Key(id)
        | Object::Signature(id)
        | Object::Part(id)
        | Object::Draft(id) => id,
    }
}

impl Objects for Memory {
    fn name(&self) -> String {
        "memory".to_owned()
    }

    fn len(&self, object: Object) -> Result<u64> {
        Ok(self.get(object)?.len() as u64)
    }

    fn read_at(&self, object: Object, offset: u64, buf: &mut [u8]) -> Result<()> {
        let bytes = self.get(object)?;
        let range = offset as usize..offset as usize + buf.len();
        let found = bytes.get(range).ok_or_else(|| Error::new(Kind::Corrupt, "ends before"))?;
        buf.copy_from_slice(found);
        Ok(())
    }

    fn put(&self, object: Object, parts: &[&[u8]]) -> Result<()> {
        self.0.write().insert(object, (Arc::new(parts.concat()), SystemTime::now()));
        Ok(())
    }

    fn list(&self, sort: Sort) -> Result<Vec<Listed>> {
        let objects = self.0.read();
        let listed = objects.iter().filter(|(object, _)| sort.is_of(**object));
        let listed = listed.map(|(&object, (bytes, written))| Listed {
            id: id_of(object),
            len: bytes.len() as u64,
            written: *written,
        });
        Ok(listed.collect())
    }

    fn remove(&self, object: Object) -> Result<()> {
        self.0.write().remove(&object);
        Ok(())
    }

    fn clear_unfinished(&self, _then: SystemTime) -> Result<u64> {
        Ok(0)
    }
}

/// A place, and what its clock is ahead by.
#[derive(Debug)]
pub struct Ground {
    inner: Arc<dyn Objects>,
    ahead: Mutex<Duration>,
    written: Mutex<HashMap<Object, Duration>>,
}

impl Ground {
    pub fn new(inner: Arc<dyn Objects>) -> Arc<Self> {
        Arc::new(Self { inner, ahead: Mutex::default(), written: Mutex::default() })
    }

    /// Lets time pass.
    pub fn advance(&self, by: Duration) {
        *self.ahead.lock() += by;
    }

    /// As a process finds it that nothing happens to.
    pub fn calm(self: &Arc<Self>) -> Arc<Process> {
        self.process(u64::MAX, Event::None)
    }

    /// The same with `event` before the operation `at`.
    pub fn process(self: &Arc<Self>, at: u64, event: Event) -> Arc<Process> {
        Arc::new(Process {
            ground: Arc::clone(self),
            done: AtomicU64::new(0),
            at,
            event: Mutex::new(event),
            has_ended: AtomicBool::new(false),
        })
    }
}

/// What happens in between.
pub enum Event {
    None,
    /// The process ends: this operation fails, and all after it.
    End {
        /// The first that fails is done all the same: nobody is left to hear of it.
        done: bool,
    },
    /// Something else is done.
    Other(Box<dyn FnOnce() + Send>),
}

/// What a process sees of a place.
pub struct Process {
    ground: Arc<Ground>,
    done: AtomicU64,
    at: u64,
    event: Mutex<Event>,
    has_ended: AtomicBool,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("done", &self.done).finish_non_exhaustive()
    }
}

impl Process {
    /// Whether it ended before it was done.
    pub fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::SeqCst)
    }

    /// Whether it is to end at some operation.
    pub fn ends(&self) -> bool {
        matches!(*self.event.lock(), Event::End { .. })
    }

    fn step<T>(&self, operation: impl FnOnce(&dyn Objects) -> Result<T>) -> Result<T> {
        let number = self.done.fetch_add(1, Ordering::SeqCst);
        if number == self.at {
            let event = std::mem::replace(&mut *self.event.lock(), Event::None);
            match event {
                Event::None => {}
                Event::End { done } => {
                    self.has_ended.store(true, Ordering::SeqCst);
                    if done {
                        operation(&*self.ground.inner)?;
                    }
                    return Err(ended());
                }
                // Elsewhere: this thread may hold something of its own.
                Event::Other(happens) => std::thread::spawn(happens).join().unwrap(),
            }
        }
        if self.has_ended() {
            return Err(ended());
        }
        operation(&*self.ground.inner)
    }
}

fn ended() -> Error {
    Error::new(Kind::Io, "the process has ended")
}

impl Objects for Process {
    fn name(&self) -> String {
        self.ground.inner.name()
    }

    fn len(&self, object: Object) -> Result<u64> {
        self.step(|inner| inner.len(object))
    }

    fn read_at(&self, object: Object, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.step(|inner| inner.read_at(object, offset, buf))
    }

    fn put(&self, object: Object, parts: &[&[u8]]) -> Result<()> {
        self.step(|inner| {
            let ahead = *self.ground.ahead.lock();
            self.ground.written.lock().insert(object, ahead);
            inner.put(object, parts)
        })
    }

    fn list(&self, sort: Sort) -> Result<Vec<Listed>> {
        let mut listed = self.step(|inner| inner.list(sort))?;
        let written = self.ground.written.lock();
        for listed in &mut listed {
            listed.written += written.get(&sort.object(listed.id)).copied().unwrap_or_default();
        }
        Ok(listed)
    }

    fn remove(&self, object: Object) -> Result<()> {
        self.step(|inner| inner.remove(object))
    }

    fn clear_unfinished(&self, then: SystemTime) -> Result<u64> {
        let ahead = *self.ground.ahead.lock();
        self.step(|inner| inner.clear_unfinished(then - ahead))
    }

    fn forget(&self, object: Object, range: Range<u64>) -> bool {
        self.ground.inner.forget(object, range)
    }
}
