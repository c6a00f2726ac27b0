//! Objects in memory: a store that is copied in no time, of which a bit can be flipped, and that tells what was read.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, RwLock};

use crate::error::{Error, Kind, Result};
use crate::store::objects::{Listed, Object, Objects, Sort};

/// A bit of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flip {
    pub(super) object: Object,
    pub(super) at: u64,
    pub(super) bit: u8,
}

/// What was read: which bytes of which objects.
pub(super) type Reads = Vec<(Object, Range<u64>)>;

/// An object's bytes, and when it was written.
type Kept = (Arc<Vec<u8>>, SystemTime);

#[derive(Debug, Default)]
pub(super) struct Memory {
    objects: RwLock<BTreeMap<Object, Kept>>,
    /// A bit that everybody reads as it is not.
    pub(super) flip: Mutex<Option<Flip>>,
    reads: Mutex<Option<Reads>>,
}

impl Memory {
    /// The same objects, to be changed by themselves.
    pub(super) fn copy(&self) -> Arc<Self> {
        let objects = RwLock::new(self.objects.read().clone());
        Arc::new(Self { objects, ..Self::default() })
    }

    pub(super) fn all(&self) -> Vec<(Object, Arc<Vec<u8>>)> {
        let all = self.objects.read();
        all.iter().map(|(object, (bytes, _))| (*object, Arc::clone(bytes))).collect()
    }

    /// What was read while `read` went on.
    pub(super) fn traced(&self, read: impl FnOnce()) -> Reads {
        *self.reads.lock() = Some(Vec::new());
        read();
        self.reads.lock().take().unwrap_or_default()
    }

    fn get(&self, object: Object) -> Result<Arc<Vec<u8>>> {
        let objects = self.objects.read();
        let found = objects.get(&object).map(|(bytes, _)| Arc::clone(bytes));
        found.ok_or_else(|| Error::new(Kind::NotFound, "is not there").within(object.to_string()))
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
        let (from, to) = (offset as usize, offset as usize + buf.len());
        let Some(range) = bytes.get(from..to) else {
            return Err(Error::new(Kind::Corrupt, "ends before").within(object.to_string()));
        };
        buf.copy_from_slice(range);
        let range = offset..offset + buf.len() as u64;
        if let Some(flip) = *self.flip.lock()
            && flip.object == object
            && range.contains(&flip.at)
        {
            buf[(flip.at - offset) as usize] ^= 1 << flip.bit;
        }
        if let Some(reads) = &mut *self.reads.lock() {
            reads.push((object, range));
        }
        Ok(())
    }

    fn put(&self, object: Object, parts: &[&[u8]]) -> Result<()> {
        // Two that are written one after the other have different times.
        let mut objects = self.objects.write();
        let last = objects.values().map(|(_, written)| *written).max();
        let soon = last.map(|last| last + Duration::from_nanos(1));
        let now = soon.map_or(SystemTime::now(), |soon| soon.max(SystemTime::now()));
        objects.insert(object, (Arc::new(parts.concat()), now));
        Ok(())
    }

    fn list(&self, sort: Sort) -> Result<Vec<Listed>> {
        let objects = self.objects.read();
        let of_sort = objects.iter().filter(|(object, _)| sort.is_of(**object));
        let listed = of_sort.map(|(object, (bytes, written))| {
            let id = match *object {
                Object::Pack(id)
                | Object::Index(id)
                | Object::Snapshot(id)
                | Object::Lease(id)
                | Object::Condemned(id)
                | Object::Key(id)
                | Object::Signature(id)
                | Object::Part(id)
                | Object::Draft(id) => id,
                Object::Config => return Err(Error::new(Kind::Io, "a config is of no sort")),
            };
            Ok(Listed { id, len: bytes.len() as u64, written: *written })
        });
        listed.collect()
    }

    fn remove(&self, object: Object) -> Result<()> {
        self.objects.write().remove(&object);
        Ok(())
    }

    fn clear_unfinished(&self, _then: SystemTime) -> Result<u64> {
        Ok(0)
    }
}
