//! A bucket, with what was read of it kept: in memory for a moment, in a folder for the next time.
//!
//! Objects never change, so a piece of one is good for ever. Whoever wants a piece that is on its way waits for it, and
//! whoever reads on where it stopped finds the next ones there.

mod disk;

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::SystemTime;

use parking_lot::{Condvar, Mutex};

use super::{Bucket, BucketCause, Listed, Object, Objects, Sort};
use crate::error::{Error, Result};

pub use disk::{PieceCache, PieceCount};

/// Bytes of a piece: two blocks of the default size as they are stored, or more.
const PIECE: u64 = 256 << 10;
/// Bytes of pieces in memory.
const MEMORY: usize = 32 << 20;
/// Pieces that are fetched by one request at most, where more than one is wanted.
const RUN: u64 = 8;
/// The same of an index, whose pages are asked for in no order.
const INDEX_RUN: u64 = 32;
/// Pieces that are fetched ahead of whoever reads on and on.
const MOST_AHEAD: u64 = 32;
/// Requests ahead at the same time.
const READERS: usize = 4;
/// Records that are fetched at the same time.
const RECORDS: usize = 16;
/// Objects whose readers are followed.
const FOLLOWED: usize = 256;
/// Bytes from which on a read passes by: whoever reads a whole pack does it once.
const LARGE: usize = 4 << 20;

/// A piece of an object: which one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key(Object, u64);

/// Its bytes, fewer than [`PIECE`] only at the end of the object.
#[derive(Debug, PartialEq, Eq)]
struct Piece {
    bytes: Vec<u8>,
    /// The length of the whole object.
    object_len: u64,
}

/// A piece that is on its way.
#[derive(Debug, Default)]
struct Flight {
    landed: Mutex<Option<Result<Arc<Piece>>>>,
    landing: Condvar,
}

impl Flight {
    fn land(&self, piece: Result<Arc<Piece>>) {
        *self.landed.lock() = Some(piece);
        self.landing.notify_all();
    }

    fn wait(&self) -> Result<Arc<Piece>> {
        let mut landed = self.landed.lock();
        loop {
            match &*landed {
                Some(Ok(piece)) => return Ok(Arc::clone(piece)),
                Some(Err(error)) => return Err(error.again()),
                None => self.landing.wait(&mut landed),
            }
        }
    }
}

/// Pieces in memory, and those on their way.
#[derive(Debug, Default)]
struct Table {
    here: HashMap<Key, (Arc<Piece>, u64)>,
    /// Which was used when.
    order: BTreeMap<u64, Key>,
    clock: u64,
    weight: usize,
    coming: HashMap<Key, Arc<Flight>>,
}

impl Table {
    fn get(&mut self, key: Key) -> Option<Arc<Piece>> {
        self.clock += 1;
        let (piece, used) = self.here.get_mut(&key)?;
        self.order.remove(used);
        *used = self.clock;
        self.order.insert(self.clock, key);
        Some(Arc::clone(piece))
    }

    fn insert(&mut self, key: Key, piece: Arc<Piece>) {
        self.remove(key);
        self.clock += 1;
        self.weight += piece.bytes.len();
        self.here.insert(key, (piece, self.clock));
        self.order.insert(self.clock, key);
        while self.weight > MEMORY {
            let Some((_, &oldest)) = self.order.first_key_value() else { break };
            self.remove(oldest);
        }
    }

    fn remove(&mut self, key: Key) -> bool {
        let Some((piece, used)) = self.here.remove(&key) else { return false };
        self.weight -= piece.bytes.len();
        self.order.remove(&used);
        true
    }
}

/// Where somebody reads in an object.
#[derive(Debug, Clone, Copy, Default)]
struct Reader {
    end: u64,
    /// Pieces that are fetched ahead: more, the longer it goes on.
    ahead: u64,
}

/// Pieces to be fetched ahead.
#[derive(Debug, Clone, Copy)]
struct Ahead {
    object: Object,
    from: u64,
    count: u64,
}

#[derive(Debug)]
struct Shared {
    bucket: Bucket,
    disk: Option<PieceCache>,
    table: Mutex<Table>,
}

/// A bucket whose objects are kept near.
#[derive(Debug)]
pub struct Cached {
    shared: Arc<Shared>,
    readers: Mutex<HashMap<Object, Reader>>,
    /// To those who fetch ahead, who end when this does.
    ahead: OnceLock<SyncSender<Ahead>>,
}

impl Shared {
    fn coming_or_here(&self, key: Key) -> Option<Result<Arc<Piece>>> {
        let mut table = self.table.lock();
        if let Some(piece) = table.get(key) {
            return Some(Ok(piece));
        }
        let flight = table.coming.get(&key).cloned()?;
        drop(table);
        Some(flight.wait())
    }

    /// The piece `key`; up to `count` with it are fetched by one request if it has to be.
    fn piece(&self, key: Key, count: u64) -> Result<Arc<Piece>> {
        if let Some(piece) = self.coming_or_here(key) {
            return piece;
        }
        if let Some(flight) = self.fetch(key, count) {
            return flight.wait();
        }
        match self.coming_or_here(key) {
            Some(piece) => piece,
            // Somebody brought it, and so much was read meanwhile that it is gone again.
            None => self.fetch_alone(key).map(Arc::new),
        }
    }

    /// Whether the folder may be asked: what exists is what the bucket says.
    fn disk(&self, object: Object) -> Option<&PieceCache> {
        let is_known = !matches!(object, Object::Snapshot(_)) || self.bucket.knows(object);
        self.disk.as_ref().filter(|_| is_known)
    }

    fn fetch_alone(&self, Key(object, number): Key) -> Result<Piece> {
        let start = number * PIECE;
        let (object_len, bytes) = self.bucket.read_up_to(object, start..start + PIECE)?;
        Ok(Piece { bytes: bytes.to_vec(), object_len })
    }

    /// Brings the piece `first` here, and those behind it that nobody else brings. Its flight, unless somebody else
    /// brings it, too.
    fn fetch(&self, first: Key, count: u64) -> Option<Arc<Flight>> {
        let Key(object, from) = first;
        let flights: Vec<Arc<Flight>> = {
            let mut table = self.table.lock();
            let is_new = |table: &Table, key: &Key| {
                !table.here.contains_key(key) && !table.coming.contains_key(key)
            };
            let keys = (from..from.saturating_add(count.max(1))).map(|number| Key(object, number));
            let keys: Vec<Key> = keys.take_while(|key| is_new(&table, key)).collect();
            keys.into_iter().map(|key| Arc::clone(table.coming.entry(key).or_default())).collect()
        };
        let mut left = from;
        let end = from + flights.len() as u64;
        let flight = |number: u64| flights.get((number - from) as usize);
        // What the folder has at the beginning; a gap behind it is fetched with what follows.
        if let Some(disk) = self.disk(object) {
            while left < end
                && let Some(piece) = disk.find(Key(object, left))
            {
                let len = piece.object_len;
                self.land(Key(object, left), flight(left), Ok(Arc::new(piece)));
                left += 1;
                // Nothing is behind its end.
                while left < end && len <= left * PIECE {
                    let behind = Err(BucketCause::Ends { len, end: (left + 1) * PIECE }.into());
                    self.land(Key(object, left), flight(left), behind);
                    left += 1;
                }
            }
        }
        if left < end {
            self.fetch_run(object, left..end, &flight);
        }
        flights.first().cloned()
    }

    fn fetch_run<'a>(
        &self,
        object: Object,
        numbers: Range<u64>,
        flight: &impl Fn(u64) -> Option<&'a Arc<Flight>>,
    ) {
        let range = numbers.start * PIECE..numbers.end * PIECE;
        let got = self.bucket.read_up_to(object, range);
        let mut kept = Vec::new();
        for number in numbers.clone() {
            let key = Key(object, number);
            let piece = match &got {
                Ok((object_len, bytes)) => {
                    let skipped = ((number - numbers.start) * PIECE) as usize;
                    let rest = bytes.get(skipped..).unwrap_or_default();
                    let bytes = rest.get(..rest.len().min(PIECE as usize)).unwrap_or_default();
                    if bytes.is_empty() && number > 0 {
                        let (len, end) = (*object_len, (number + 1) * PIECE);
                        Err(BucketCause::Ends { len, end }.into())
                    } else {
                        Ok(Arc::new(Piece { bytes: bytes.to_vec(), object_len: *object_len }))
                    }
                }
                Err(error) => Err(error.again()),
            };
            if let Ok(piece) = &piece {
                kept.push((key, Arc::clone(piece)));
            }
            self.land(key, flight(number), piece);
        }
        // After all who wait have it.
        if let Some(disk) = &self.disk {
            kept.iter().for_each(|(key, piece)| disk.keep(*key, piece));
        }
    }

    fn land(&self, key: Key, flight: Option<&Arc<Flight>>, piece: Result<Arc<Piece>>) {
        let mut table = self.table.lock();
        if let Ok(piece) = &piece {
            table.insert(key, Arc::clone(piece));
        }
        table.coming.remove(&key);
        drop(table);
        if let Some(flight) = flight {
            flight.land(piece);
        }
    }

    /// Keeps what was just written and is read soon.
    fn put(&self, object: Object, bytes: &[u8]) {
        let object_len = bytes.len() as u64;
        for (number, bytes) in bytes.chunks(PIECE as usize).enumerate() {
            let (key, bytes) = (Key(object, number as u64), bytes.to_vec());
            let piece = Arc::new(Piece { bytes, object_len });
            if let Some(disk) = &self.disk {
                disk.keep(key, &piece);
            }
            self.table.lock().insert(key, piece);
        }
    }
}

impl Cached {
    /// Keeps what is read of `bucket`, in `disk` too if there is one.
    pub fn new(bucket: Bucket, disk: Option<PieceCache>) -> Self {
        let shared = Shared { bucket, disk, table: Mutex::default() };
        Self { shared: Arc::new(shared), readers: Mutex::default(), ahead: OnceLock::new() }
    }

    /// How many pieces to fetch ahead of whoever reads `range`.
    fn follow(&self, object: Object, range: &Range<u64>) -> u64 {
        let mut readers = self.readers.lock();
        if readers.len() >= FOLLOWED && !readers.contains_key(&object) {
            readers.clear();
        }
        let reader = readers.entry(object).or_default();
        let goes_on = range.start.saturating_add(PIECE) >= reader.end
            && range.start <= reader.end.saturating_add(PIECE)
            && reader.end > 0;
        reader.ahead = match goes_on {
            true => (reader.ahead * 2).clamp(1, MOST_AHEAD),
            false => 0,
        };
        reader.end = range.end;
        reader.ahead
    }

    /// Has pieces fetched that nobody waits for yet.
    fn fetch_ahead(&self, object: Object, numbers: Range<u64>) {
        let missing = {
            let table = self.shared.table.lock();
            let is_new = |number: &u64| {
                let key = Key(object, *number);
                !table.here.contains_key(&key) && !table.coming.contains_key(&key)
            };
            numbers.clone().find(is_new)
        };
        let Some(from) = missing else { return };
        let count = numbers.end - from;
        // Small requests cost as much time as large ones.
        if count < RUN.min(numbers.end - numbers.start) {
            return;
        }
        let ahead = self.ahead.get_or_init(|| {
            let (send, receive) = sync_channel::<Ahead>(2 * READERS);
            let receive = Arc::new(Mutex::new(receive));
            for _ in 0..READERS {
                let (shared, receive) = (Arc::clone(&self.shared), Arc::clone(&receive));
                thread::spawn(move || read_ahead(&shared, &receive));
            }
            send
        });
        let mut from = from;
        while from < numbers.end {
            let count = RUN.min(numbers.end - from);
            // Who is behind already needs no more to do.
            let _ = ahead.try_send(Ahead { object, from, count });
            from += count;
        }
    }

    /// Fetches the beginnings of objects that are about to be read, several at a time.
    fn gather(&self, objects: &[Object], count: u64) {
        let next = std::sync::atomic::AtomicUsize::new(0);
        let work = || {
            loop {
                let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let Some(&object) = objects.get(number) else { return };
                // Whoever reads it is told.
                let _ = self.shared.piece(Key(object, 0), count);
            }
        };
        thread::scope(|scope| {
            for _ in 0..RECORDS.min(objects.len()) {
                scope.spawn(work);
            }
        });
    }
}

impl Drop for Cached {
    fn drop(&mut self) {
        // Those who fetch ahead may outlive it.
        self.shared.bucket.tell();
    }
}

fn read_ahead(shared: &Shared, receive: &Mutex<Receiver<Ahead>>) {
    loop {
        let next = receive.lock().recv();
        let Ok(Ahead { object, from, count }) = next else { return };
        shared.fetch(Key(object, from), count);
    }
}

/// Whether it is read once, and not worth being kept.
fn is_passing(object: Object) -> bool {
    match object {
        Object::Config
        | Object::Pack(_)
        | Object::Index(_)
        | Object::Part(_)
        | Object::Snapshot(_) => false,
        Object::Lease(_)
        | Object::Condemned(_)
        | Object::Key(_)
        | Object::Signature(_)
        | Object::Draft(_) => true,
    }
}

impl Objects for Cached {
    fn name(&self) -> String {
        self.shared.bucket.name()
    }

    fn len(&self, object: Object) -> Result<u64> {
        if self.shared.bucket.knows(object)
            || matches!(object, Object::Pack(_))
            || is_passing(object)
        {
            return self.shared.bucket.len(object);
        }
        // It is read next.
        Ok(self.shared.piece(Key(object, 0), 1)?.object_len)
    }

    fn read_at(&self, object: Object, offset: u64, buf: &mut [u8]) -> Result<()> {
        if buf.len() >= LARGE || is_passing(object) {
            return self.shared.bucket.read_at(object, offset, buf);
        }
        let end = offset.saturating_add(buf.len() as u64);
        let (first, last) = (offset / PIECE, end.saturating_sub(1).max(offset) / PIECE);
        let ahead = match object {
            Object::Pack(_) => self.follow(object, &(offset..end)),
            _ => 0,
        };
        let mut object_len = 0;
        let mut filled = 0;
        for number in first..=last {
            let count = match object {
                Object::Index(_) => INDEX_RUN,
                _ => (last - number + 1 + ahead.min(RUN / 2)).min(RUN),
            };
            let piece = self.shared.piece(Key(object, number), count)?;
            object_len = piece.object_len;
            let start = (offset + filled - number * PIECE) as usize;
            let rest = piece.bytes.get(start..).unwrap_or_default();
            let into = buf.get_mut(filled as usize..).unwrap_or_default();
            let len = rest.len().min(into.len());
            if let (Some(into), Some(rest)) = (into.get_mut(..len), rest.get(..len)) {
                into.copy_from_slice(rest);
            }
            filled += len as u64;
        }
        if filled < buf.len() as u64 {
            let error = Error::from(BucketCause::Ends { len: object_len, end });
            return Err(error.within(format!("{}/{object}", self.name())));
        }
        if ahead > 0 {
            let pieces = object_len.div_ceil(PIECE);
            self.fetch_ahead(object, (last + 1).min(pieces)..(last + 1 + ahead).min(pieces));
        }
        Ok(())
    }

    fn put(&self, object: Object, parts: &[&[u8]]) -> Result<()> {
        self.shared.bucket.put(object, parts)?;
        let len: usize = parts.iter().map(|part| part.len()).sum();
        if matches!(object, Object::Index(_)) && len < MEMORY {
            self.shared.put(object, &parts.concat());
        }
        Ok(())
    }

    fn put_owned(&self, object: Object, bytes: Vec<u8>) -> Result<()> {
        match object {
            Object::Pack(_) => self.shared.bucket.put_owned(object, bytes),
            _ => self.put(object, &[&bytes]),
        }
    }

    fn is_far(&self) -> bool {
        true
    }

    fn list(&self, sort: Sort) -> Result<Vec<Listed>> {
        let listed = self.shared.bucket.list(sort)?;
        let objects: Vec<Object> = listed.iter().map(|listed| sort.object(listed.id)).collect();
        match sort {
            // They are read next, one by one.
            Sort::Snapshots => self.gather(&objects, 1),
            Sort::Indexes => self.gather(&objects, INDEX_RUN),
            Sort::Packs
            | Sort::Parts
            | Sort::Leases
            | Sort::Condemned
            | Sort::Keys
            | Sort::Signatures
            | Sort::Drafts => {}
        }
        Ok(listed)
    }

    fn remove(&self, object: Object) -> Result<()> {
        self.forget(object, 0..1);
        self.shared.bucket.remove(object)
    }

    fn clear_unfinished(&self, then: SystemTime) -> Result<u64> {
        self.shared.bucket.clear_unfinished(then)
    }

    fn forget(&self, object: Object, range: Range<u64>) -> bool {
        let mut was_here = false;
        for number in range.start / PIECE..=range.end.saturating_sub(1) / PIECE {
            let key = Key(object, number);
            was_here |= self.shared.table.lock().remove(key);
            was_here |= self.shared.disk.as_ref().is_some_and(|disk| disk.forget(key));
        }
        was_here
    }
}

#[cfg(test)]
mod tests;
