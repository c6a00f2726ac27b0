//! Disks that come one byte behind the other, and end where they end.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{ErrorKind, Read};
use std::sync::atomic::Ordering;
use std::time::Instant;

use parking_lot::Mutex;

use super::writer::Writer;
use super::{NewDisk, Progress, Reading, SENDERS, WRITERS, beside_each_other};
use crate::block::is_zero;
use crate::error::{Error, Kind, Result};
use crate::store::Store;
use crate::store::id::{BlobKind, Id};
use crate::store::map::{FANOUT, Shape};
use crate::store::record::DiskRecord;

/// Blocks that are taken at once; a page of the map has a multiple of it.
const TAKEN: u64 = 8;

/// Where such a disk comes from.
pub struct Stream(Mutex<Box<dyn Read + Send>>);

impl Stream {
    /// All that `read` gives.
    pub fn new(read: Box<dyn Read + Send>) -> Self {
        Self(Mutex::new(read))
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stream")
    }
}

/// How much came so far.
#[derive(Debug, Default)]
struct Taken {
    bytes: u64,
    is_over: bool,
    failed: Option<Error>,
}

/// Pages of level 0, some of them unfinished.
#[derive(Debug, Default)]
struct Pages {
    ids: Vec<Id>,
    /// Of each that is not finished, the ids of its blocks, and how many of them have come.
    unfinished: BTreeMap<u64, (Vec<Id>, u64)>,
    blocks: u64,
}

impl Store {
    pub(super) fn create_streamed(
        &self,
        disk: &NewDisk,
        stream: &Stream,
        reading: &Reading,
        progress: &Progress,
    ) -> Result<DiskRecord> {
        let writer = Writer::new(self, progress)?;
        let taken = Mutex::new(Taken::default());
        let pages = Mutex::new(Pages::default());
        let flushed = Mutex::new(Instant::now());
        let block_size = self.block_size() as usize;
        let work = || {
            let mut buf = vec![0; block_size * TAKEN as usize];
            while let Some((at, len)) = take(stream, &taken, &mut buf, progress) {
                let stored = || -> Result<()> {
                    let first = at / block_size as u64;
                    let ids =
                        stored(self, &writer, buf.get(..len).unwrap_or_default(), block_size)?;
                    progress.done.fetch_add(len as u64, Ordering::Relaxed);
                    let finished = add(&mut pages.lock(), first, &ids);
                    if let Some((leaf, ids)) = finished {
                        let id = writer.map_page(&ids)?;
                        set(&mut pages.lock(), leaf, id);
                    }
                    // A killed attempt leaves what was stored to the next one.
                    if let Some(mut flushed) = flushed.try_lock()
                        && flushed.elapsed() >= reading.set_down
                    {
                        writer.flush()?;
                        *flushed = Instant::now();
                    }
                    Ok(())
                };
                if let Err(error) = stored() {
                    let mut taken = taken.lock();
                    taken.is_over = true;
                    taken.failed.get_or_insert(error);
                }
            }
        };
        let beside = if self.objects.is_far() { SENDERS } else { WRITERS };
        beside_each_other(beside, u64::MAX, &work);
        let Taken { bytes, failed, .. } = taken.into_inner();
        if let Some(error) = failed {
            return Err(writer.give_up(error));
        }
        let mut pages = pages.into_inner();
        let shape = Shape::new(bytes, self.block_size().into())?;
        for (leaf, (ids, _)) in std::mem::take(&mut pages.unfinished) {
            let id = writer.map_page(&ids)?;
            set(&mut pages, leaf, id);
        }
        let root = writer.tree(pages.ids, shape)?;
        let (new_blocks, new_bytes) = writer.finish()?;
        let name = disk.name.clone();
        let blocks = pages.blocks;
        Ok(DiskRecord { name, size: bytes, made_of: None, root, blocks, new_blocks, new_bytes })
    }
}

/// Fills `buf` with what comes next: where in the disk that is, and how much; `None` at its end.
fn take(
    stream: &Stream,
    taken: &Mutex<Taken>,
    buf: &mut [u8],
    progress: &Progress,
) -> Option<(u64, usize)> {
    let mut read = stream.0.lock();
    if taken.lock().is_over {
        return None;
    }
    let mut len = 0;
    let mut ended = Ok(false);
    while let Some(rest) = buf.get_mut(len..).filter(|rest| !rest.is_empty()) {
        if progress.stop.load(Ordering::Relaxed) {
            ended = Err(Error::new(Kind::Io, "stopped"));
            break;
        }
        match read.read(rest) {
            Ok(0) => {
                ended = Ok(true);
                break;
            }
            Ok(more) => len += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                ended = Err(Error::io(error));
                break;
            }
        }
    }
    let mut taken = taken.lock();
    let at = taken.bytes;
    match ended {
        Ok(is_over) => taken.is_over = is_over,
        Err(error) => {
            taken.is_over = true;
            taken.failed.get_or_insert(error);
            return None;
        }
    }
    taken.bytes += len as u64;
    progress.read.fetch_add(len as u64, Ordering::Relaxed);
    (len > 0).then_some((at, len))
}

/// Stores the blocks that lie in `bytes`, of which the last may be cut short; their ids.
fn stored(store: &Store, writer: &Writer<'_>, bytes: &[u8], block_size: usize) -> Result<Vec<Id>> {
    let mut last = Vec::new();
    let mut ids = Vec::with_capacity(TAKEN as usize);
    for block in bytes.chunks(block_size) {
        let block = match block.len() == block_size {
            true => block,
            false => {
                last.extend_from_slice(block);
                last.resize(block_size, 0);
                &last
            }
        };
        if is_zero(block) {
            ids.push(Id::ZERO);
            continue;
        }
        let id = store.keys.id(BlobKind::Block, block);
        writer.add(BlobKind::Block, id, block)?;
        ids.push(id);
    }
    Ok(ids)
}

/// Adds the ids of blocks from `first` on. The page that is finished by that, if one is, and what is in it.
fn add(pages: &mut Pages, first: u64, ids: &[Id]) -> Option<(u64, Vec<Id>)> {
    pages.blocks += ids.iter().filter(|id| !id.is_zero()).count() as u64;
    let leaf = first / FANOUT;
    let (page, count) = pages.unfinished.entry(leaf).or_insert_with(|| (Vec::new(), 0));
    let at = (first % FANOUT) as usize;
    page.resize(page.len().max(at + ids.len()), Id::ZERO);
    page.iter_mut().skip(at).zip(ids).for_each(|(place, id)| *place = *id);
    *count += ids.len() as u64;
    if *count < FANOUT {
        return None;
    }
    let (page, _) = pages.unfinished.remove(&leaf)?;
    Some((leaf, page))
}

/// A page is stored.
fn set(pages: &mut Pages, leaf: u64, id: Id) {
    let at = usize::try_from(leaf).unwrap_or(usize::MAX);
    pages.ids.resize(pages.ids.len().max(at.saturating_add(1)), Id::ZERO);
    if let Some(place) = pages.ids.get_mut(at) {
        *place = id;
    }
}
