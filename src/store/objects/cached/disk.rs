//! Pieces of objects in a folder, for the next time.
//!
//! Everything in it can be fetched again, and is held against its hash when it is read. Files appear whole, under
//! their name, so that several processes share the folder; any may be removed at any time.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::{Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

use super::{Key, PIECE, Piece};
use serde::Serialize;

use crate::error::{Error, Kind, Result, ResultExt};
use crate::store::objects::Object;

/// What files begin with that are not whole yet.
const UNFINISHED: &str = ".new-";
/// How old an unfinished file is that nobody writes any more.
const ABANDONED: Duration = Duration::from_secs(3600);
/// Bytes behind a piece: the length of its object, and a hash of it all.
const TRAILER: usize = 8 + 32;

/// A folder of pieces.
#[derive(Debug)]
pub struct PieceCache {
    dir: PathBuf,
    /// Bytes it may take.
    limit: u64,
    /// Bytes this process wrote since it last looked at how many there are.
    written: AtomicU64,
    /// Counts what this process writes.
    number: AtomicU64,
    /// That it cannot be written has been told.
    told: AtomicBool,
}

/// One file of the cache.
#[derive(Debug, Clone)]
struct Kept {
    path: PathBuf,
    size: u64,
    used: SystemTime,
    /// What is needed before anything else is found: indexes and records.
    is_key: bool,
}

/// How many pieces, and what they take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PieceCount {
    /// Pieces.
    pub pieces: u64,
    /// Bytes they take.
    pub bytes: u64,
}

impl PieceCache {
    /// The cache in the folder `dir`, which is made if it is not there, of at most `limit` bytes.
    ///
    /// # Errors
    /// [`Kind::Refused`] if others could write to it, and the host's.
    pub fn open(dir: &Path, limit: u64) -> Result<Self> {
        let named = || dir.display().to_string();
        DirBuilder::new().recursive(true).mode(0o700).create(dir).within(named)?;
        let metadata = dir.metadata().within(named)?;
        if metadata.uid() != rustix::process::geteuid().as_raw() || metadata.mode() & 0o022 != 0 {
            let error = Error::new(Kind::Refused, "others could write to this cache");
            return Err(error.within(named()));
        }
        // Processes that write little each look now and then, too.
        let written = u64::from(std::process::id()) % 64 * (limit / 1024).max(1);
        Ok(Self {
            dir: dir.to_owned(),
            limit,
            written: written.into(),
            number: AtomicU64::new(0),
            told: AtomicBool::new(false),
        })
    }

    fn path(&self, Key(object, number): Key) -> Option<PathBuf> {
        let (sort, id) = match object {
            // It has no name of its own.
            // These are read once.
            Object::Config
            | Object::Lease(_)
            | Object::Condemned(_)
            | Object::Key(_)
            | Object::Signature(_)
            | Object::Draft(_) => return None,
            Object::Pack(id) => ('p', id),
            Object::Index(id) => ('i', id),
            Object::Part(id) => ('t', id),
            Object::Snapshot(id) => ('s', id),
        };
        Some(self.dir.join(format!("{:02x}/{sort}{id}-{number}", id.0[0])))
    }

    /// A piece, if it is here and is what was kept.
    pub(super) fn find(&self, key: Key) -> Option<Piece> {
        let path = self.path(key)?;
        let file = File::open(&path).ok()?;
        let mut bytes = Vec::with_capacity(PIECE as usize + TRAILER);
        (&file).take(PIECE + TRAILER as u64 + 1).read_to_end(&mut bytes).ok()?;
        let piece = open_piece(key, bytes);
        if piece.is_none() {
            log::debug!("{}: is damaged, and fetched again", path.display());
            let _ = fs::remove_file(&path);
            return None;
        }
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let kept = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let times = Timestamps { last_access: kept, last_modification: now };
        // It is found all the same.
        let _ = rustix::fs::futimens(&file, &times);
        piece
    }

    /// Keeps a piece. That it cannot be is no failure of whoever reads.
    pub(super) fn keep(&self, key: Key, piece: &Piece) {
        let Some(path) = self.path(key) else { return };
        match self.write(&path, key, piece) {
            Ok(()) => {}
            Err(error) if self.told.swap(true, Ordering::Relaxed) => log::debug!("{error}"),
            Err(error) => log::warn!("{error}: what is read is not kept"),
        }
        let step = self.limit / 16;
        if self.written.fetch_add(piece.bytes.len() as u64, Ordering::Relaxed) > step {
            self.written.store(0, Ordering::Relaxed);
            if let Err(error) = self.prune(self.limit.saturating_sub(step), None) {
                log::debug!("{error}");
            }
        }
    }

    fn write(&self, path: &Path, key: Key, piece: &Piece) -> Result<()> {
        let Some(dir) = path.parent() else { return Ok(()) };
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let new = dir.join(format!("{UNFINISHED}{}-{number}", std::process::id()));
        let named = || new.display().to_string();
        let open = || {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600).open(&new)
        };
        let file = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                DirBuilder::new().recursive(true).mode(0o700).create(dir).within(named)?;
                open()
            }
            opened => opened,
        };
        let written = file.and_then(|mut file| {
            file.write_all(&piece.bytes)?;
            file.write_all(&piece.object_len.to_le_bytes())?;
            file.write_all(&hash(key, &piece.bytes, piece.object_len))?;
            fs::rename(&new, path)
        });
        if written.is_err() {
            let _ = fs::remove_file(&new);
        }
        written.within(named)
    }

    /// Removes a piece that turned out to be of no use. Whether it was there.
    pub(super) fn forget(&self, key: Key) -> bool {
        self.path(key).is_some_and(|path| fs::remove_file(path).is_ok())
    }

    /// How much is here.
    ///
    /// # Errors
    /// The host's.
    pub fn count(&self) -> Result<PieceCount> {
        let kept = self.kept()?;
        let bytes = kept.iter().map(|kept| kept.size).sum();
        Ok(PieceCount { pieces: kept.len() as u64, bytes })
    }

    fn kept(&self) -> Result<Vec<Kept>> {
        let named = || self.dir.display().to_string();
        let mut all = Vec::new();
        for dir in fs::read_dir(&self.dir).within(named)? {
            // Somebody else may prune at the same time.
            let Ok(entries) = dir.and_then(|dir| fs::read_dir(dir.path())) else { continue };
            for entry in entries.flatten() {
                let Ok(metadata) = entry.metadata() else { continue };
                let name = entry.file_name();
                let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                if name.as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
                    if used.elapsed().is_ok_and(|age| age > ABANDONED) {
                        let _ = fs::remove_file(entry.path());
                    }
                    continue;
                }
                let is_key = !name.as_encoded_bytes().starts_with(b"p");
                let size = metadata.blocks() * 512;
                all.push(Kept { path: entry.path(), size, used, is_key });
            }
        }
        Ok(all)
    }

    /// Removes what was used longest ago until no more than `limit` bytes are left, and what was not used for
    /// `unused`. Pieces of packs go before those of indexes and records, unless these have half of the room.
    ///
    /// # Errors
    /// The host's.
    pub fn prune(&self, limit: u64, unused: Option<Duration>) -> Result<PieceCount> {
        let mut kept = self.kept()?;
        let mut total: u64 = kept.iter().map(|kept| kept.size).sum();
        let keys: u64 = kept.iter().filter(|kept| kept.is_key).map(|kept| kept.size).sum();
        let keys_stay = keys <= limit / 2;
        kept.sort_by_key(|kept| (kept.is_key && keys_stay, kept.used));
        let mut pruned = PieceCount::default();
        for kept in kept {
            let age = kept.used.elapsed().unwrap_or_default();
            if total <= limit && unused.is_none_or(|unused| age < unused) {
                continue;
            }
            match fs::remove_file(&kept.path) {
                Ok(()) => {
                    pruned.pieces += 1;
                    pruned.bytes += kept.size;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).within(|| kept.path.display().to_string()),
            }
            total = total.saturating_sub(kept.size);
        }
        Ok(pruned)
    }
}

fn hash(Key(object, number): Key, bytes: &[u8], object_len: u64) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(format!("{object} {number} {object_len} ").as_bytes());
    hasher.update(bytes);
    hasher.finalize().into()
}

/// The piece in a file, if it is one.
fn open_piece(key: Key, mut bytes: Vec<u8>) -> Option<Piece> {
    let (rest, found) = bytes.split_last_chunk::<32>()?;
    let (data, object_len) = rest.split_last_chunk::<8>()?;
    let object_len = u64::from_le_bytes(*object_len);
    if hash(key, data, object_len) != *found {
        return None;
    }
    let len = data.len();
    bytes.truncate(len);
    Some(Piece { bytes, object_len })
}
