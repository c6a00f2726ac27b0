//! Layers made ready to be read: their indexes found in the cache, or made in one pass over each.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use rayon::prelude::*;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::cache::{LayerCache, Part, Unfinished};
use super::image::{Image, LayerBlob};
use super::layer::{Builder, Facts, Layer, Learnt, SpansOf};
use super::merge::LayerPart;
use super::span::{self, Pass, Passed, Side, Spans, Unpacked};
use super::tar;
use super::toc::{self, Claim, soci};
use super::{Algorithm, Digest, Hasher};
use crate::block::{BlockSource, Cache, FileSource};
use crate::error::{Error, Kind, Result, ResultExt};

/// Bytes read at once from a blob.
const READ: usize = 256 << 10;

/// Bytes that a layer's side file may take, however little may be kept: without it the layer cannot be
/// read at all.
const LEAST_SIDE: u64 = 1 << 30;

/// Bytes of a layer from which on it is asked whether there is a SOCI index: they have one from 10 MiB on, if
/// nobody says otherwise.
const INDEXED: u64 = 256 << 10;

/// How far preparing has come, for whoever watches. Layers whose index is there do not count.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of blobs to read.
    pub total: AtomicU64,
    /// Those that have been.
    pub done: AtomicU64,
    /// Set to stop: preparing then fails soon.
    pub stop: Arc<AtomicBool>,
}

/// Makes the layers of `image` ready, the bottom one first. What `kept` has is taken from there,
/// what is made goes there; without it, nothing outlives the process. Decoded spans go to `cache`.
///
/// # Errors
/// What reading, decompressing and parsing a layer finds, and [`Kind::Corrupt`] if one is not what
/// its digests say. The layer is named.
pub fn prepare(
    image: &Image,
    kept: Option<&LayerCache>,
    cache: &Arc<Cache>,
    progress: &Progress,
) -> Result<Vec<LayerPart>> {
    let stage = Stage { kept, cache, progress, image, ztocs: OnceLock::new() };
    let count = image.layers.len();
    // The first failure stops the others, and theirs are not the cause.
    let failed = Mutex::new(None);
    let part = |(nth, layer): (usize, &LayerBlob)| {
        let name = || match &layer.digest {
            Some(digest) => format!("layer {} of {count}, {digest}", nth + 1),
            None if count > 1 => format!("layer {} of {count}", nth + 1),
            None => "its tar".to_owned(),
        };
        let part = stage.layer(layer).within(name);
        part.map_err(|error| {
            failed.lock().get_or_insert(error);
            progress.stop.store(true, Ordering::Relaxed);
        })
        .ok()
    };
    let parts: Option<Vec<_>> = image.layers.par_iter().enumerate().map(part).collect();
    match (parts, failed.into_inner()) {
        (_, Some(error)) => Err(error),
        (Some(parts), None) => Ok(parts),
        (None, None) => Err(stopped()),
    }
}

/// What the layers of an image have in common.
struct Stage<'a> {
    kept: Option<&'a LayerCache>,
    cache: &'a Arc<Cache>,
    progress: &'a Progress,
    image: &'a Image,
    /// What a SOCI index has of its layers, once one asks.
    ztocs: OnceLock<BTreeMap<Digest, Claim>>,
}

impl Stage<'_> {
    fn layer(&self, layer: &LayerBlob) -> Result<LayerPart> {
        let key = key(layer)?;
        let kept = self.kept.zip(key.as_deref());
        if let Some((kept, key)) = kept
            && let Some((path, _)) = kept.find(key, Part::Index)
        {
            match Layer::open(&path).and_then(|index| self.open(layer, index, kept, key)) {
                Ok(part) => return Ok(part),
                Err(error) => {
                    log::info!("made anew: {error}");
                    Part::ALL.into_iter().for_each(|part| kept.forget(key, part));
                }
            }
        }
        if self.remote()
            && let Some(part) = self.by_table(layer)?
        {
            return Ok(part);
        }
        match self.make(layer, kept) {
            // A full disk is no reason not to look into an image, if there is another.
            Err(error) if error.kind() == Kind::NoSpace && kept.is_some() => {
                let temporary = std::env::temp_dir();
                let shown = temporary.display();
                log::warn!("the layer is not kept, but in {shown} for the time being: {error}");
                let made = self.make(layer, None);
                made.map_err(|error| match error.kind() {
                    Kind::NoSpace => error.with_hint(
                        "STRATA_CACHE_DIR=DIR or TMPDIR=DIR names a folder where there is room",
                    ),
                    _ => error,
                })
            }
            made => made,
        }
    }

    /// Whether the blobs have to be fetched.
    fn remote(&self) -> bool {
        self.image.registry.is_some()
    }

    /// What a SOCI index has of the layers. Without one they are read whole, whatever the reason.
    fn ztocs(&self) -> &BTreeMap<Digest, Claim> {
        self.ztocs.get_or_init(|| {
            let indexed = self.image.registry.as_ref().zip(self.image.indexed.as_ref());
            let Some((registry, indexed)) = indexed else { return BTreeMap::new() };
            soci::find(registry, indexed).unwrap_or_else(|error| {
                log::warn!("layers are read whole, and not by a SOCI index: {error}");
                BTreeMap::new()
            })
        })
    }

    /// The layer by its table of contents, if it brings one that is of use.
    fn by_table(&self, layer: &LayerBlob) -> Result<Option<LayerPart>> {
        let Some(digest) = &layer.digest else { return Ok(None) };
        let claimed = Claim::of(&layer.annotations);
        let part = match claimed {
            // A small one is there before its index would be.
            Ok(None) if layer.size < INDEXED => return Ok(None),
            Ok(None) => match self.ztocs().get(digest) {
                Some(claim) => self.learn(layer, digest, claim),
                None => return Ok(None),
            },
            Ok(Some(claim)) => self.learn(layer, digest, &claim),
            Err(error) => Err(error),
        };
        match part {
            Ok(part) => Ok(Some(part)),
            // What the table says is of no use, or the registry gives no parts of a blob.
            Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::Unsupported) => {
                log::warn!(
                    "layer {digest} is read whole, and not by its table of contents: {error}"
                );
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn learn(&self, layer: &LayerBlob, digest: &Digest, claim: &Claim) -> Result<LayerPart> {
        let blob = layer.blob.source()?;
        let key = claim.key(digest);
        let part = |index: Layer| {
            index.entries()?;
            let index = Arc::new(index);
            let data = toc::contents(&index, Arc::clone(&blob), self.cache)?;
            Ok(LayerPart { index, data })
        };
        if let Some((path, _)) = self.kept.and_then(|kept| kept.find(&key, Part::Index)) {
            match Layer::open(&path).and_then(part) {
                Ok(part) => return Ok(part),
                Err(error) => log::info!("made anew: {error}"),
            }
        }
        let bytes = toc::learn(claim, &blob, digest)?;
        part(self.keep(self.kept.map(|kept| (kept, &*key)), bytes)?)
    }

    /// The index that `bytes` are, kept if there is where and room.
    fn keep(&self, kept: Option<(&LayerCache, &str)>, bytes: Vec<u8>) -> Result<Layer> {
        match kept.map(|(kept, key)| keep_index(kept, key, &bytes)) {
            Some(Ok(index)) => Ok(index),
            // A full disk is no reason not to look into an image.
            Some(Err(error)) => {
                log::warn!("the index is not kept, and the layer is read anew next time: {error}");
                Layer::from_bytes(bytes)
            }
            None => Layer::from_bytes(bytes),
        }
    }

    /// The layer by an index that was kept.
    fn open(
        &self,
        layer: &LayerBlob,
        index: Layer,
        kept: &LayerCache,
        key: &str,
    ) -> Result<LayerPart> {
        let source = |(path, file)| FileSource::new(file, path);
        let blob: Arc<dyn BlockSource> = match kept.find(key, Part::Blob) {
            Some(found) => Arc::new(source(found)?),
            None => layer.blob.source()?,
        };
        let side = kept.find(key, Part::Spool).map(source).transpose()?;
        // While it can still be made anew.
        index.entries()?;
        self.part(index, blob, side)
    }

    /// Reads the layer from its start to its end.
    fn make(&self, layer: &LayerBlob, kept: Option<(&LayerCache, &str)>) -> Result<LayerPart> {
        self.progress.total.fetch_add(layer.size, Ordering::Relaxed);
        let side = Scratch::begin(kept)?;
        let copy = if self.remote() { Some(Scratch::begin(kept)?) } else { None };
        let other = layer.digest.as_ref().map(Digest::algorithm);
        let other = other.filter(|&algorithm| algorithm != Algorithm::Sha256);
        let other = other.map(|algorithm| Arc::new(Mutex::new(Hasher::new(algorithm))));
        let stream = Stream {
            stream: layer.blob.stream()?,
            copy: copy.as_ref().map(Scratch::writer).transpose()?,
            other: other.clone(),
            progress: self.progress,
        };
        let mut stream = BufReader::with_capacity(READ, stream);
        let how = span::detect(stream.fill_buf().map_err(Error::io)?);
        let max_len = self.kept.map_or(u64::MAX, |kept| kept.limit().max(LEAST_SIDE));
        let options = span::Options {
            max_len: span::Options::max_len_of(how, layer.size),
            side: Some(Side { file: side.writer()?, max_len }),
            stop: Arc::clone(&self.progress.stop),
            ..span::Options::default()
        };
        let mut reader = tar::Reader::new(Pass::new(stream, how, options)?);
        let mut builder = Builder::new()?;
        while let Some(entry) = reader.next()? {
            builder.add(entry)?;
        }
        let passed = reader.into_inner().finish()?;
        let blob = match other {
            None => Digest::of_sha256(&passed.blob),
            // The stream, which had the other half, is gone.
            Some(other) => other.lock().clone().finish(),
        };
        expect("blob", layer.digest.as_ref(), &blob)?;
        expect("uncompressed tar", layer.diff_id.as_ref(), &Digest::of_sha256(&passed.diff_id))?;
        let bytes = builder.finish(&facts(&blob, &passed), passed.spans.as_bytes())?;
        let blob: Arc<dyn BlockSource> = match copy {
            Some(copy) => Arc::new(copy.keep(Part::Blob)?),
            None => layer.blob.source()?,
        };
        let side = match passed.spans.side_len() {
            0 => None,
            _ => Some(side.keep(Part::Spool)?),
        };
        self.part(self.keep(kept, bytes)?, blob, side)
    }

    fn part(
        &self,
        index: Layer,
        blob: Arc<dyn BlockSource>,
        side: Option<FileSource>,
    ) -> Result<LayerPart> {
        let index = Arc::new(index);
        index.spans()?;
        let spans = Spans::from_bytes(SpansOf(Arc::clone(&index)))?;
        let side = side.map(|side| Arc::new(side) as Arc<dyn BlockSource>);
        let data = Arc::new(Unpacked::new(blob, side, spans, Arc::clone(self.cache))?);
        Ok(LayerPart { index, data })
    }
}

fn keep_index(kept: &LayerCache, key: &str, bytes: &[u8]) -> Result<Layer> {
    let new = kept.begin()?;
    new.file().write_all(bytes).within(|| kept.dir().display().to_string())?;
    Layer::open(&kept.keep(new, key, Part::Index)?)
}

fn stopped() -> Error {
    Error::new(Kind::Io, "interrupted")
}

fn facts(blob: &Digest, passed: &Passed) -> Facts {
    Facts {
        blob_digest: blob.to_string(),
        diff_id: Digest::of_sha256(&passed.diff_id).to_string(),
        blob_len: passed.blob_len,
        tar_len: passed.len,
        learnt: Learnt::Whole,
    }
}

/// Holds what a pass has found against what the image says, if it does.
fn expect(what: &'static str, said: Option<&Digest>, found: &Digest) -> Result<()> {
    match said {
        Some(said) if said.algorithm() != found.algorithm() => {
            let message = format!("the {what} is known by {said} only");
            Err(Error::new(Kind::Unsupported, message))
        }
        Some(said) if said != found => {
            let message = format!("the {what} is {found}, not {said}");
            Err(Error::new(Kind::Corrupt, message))
        }
        _ => Ok(()),
    }
}

/// What a layer is called in the cache: its digest, or which file it is in which state. `None` for
/// what cannot be told from others.
fn key(layer: &LayerBlob) -> Result<Option<String>> {
    if let Some(digest) = &layer.digest {
        return Ok(Some(format!("{}-{}", digest.algorithm().name(), digest.hex())));
    }
    if let Some(diff_id) = &layer.diff_id {
        return Ok(Some(format!("tar-{}-{}", diff_id.algorithm().name(), diff_id.hex())));
    }
    let source = layer.blob.source()?;
    let Some(file) = source.whole_file() else { return Ok(None) };
    let metadata = file.metadata().within(|| "reading its attributes")?;
    let (modified, changed) =
        ((metadata.mtime(), metadata.mtime_nsec()), (metadata.ctime(), metadata.ctime_nsec()));
    Ok(metadata.is_file().then(|| {
        format!(
            "file-{:x}-{:x}-{:x}-{:x}.{:x}-{:x}.{:x}",
            metadata.dev(),
            metadata.ino(),
            metadata.len(),
            modified.0,
            modified.1,
            changed.0,
            changed.1
        )
    }))
}

/// A file that is being written, to be kept in the cache if there is one.
enum Scratch<'a> {
    Cached {
        kept: &'a LayerCache,
        key: &'a str,
        new: Unfinished,
    },
    /// It has no name, and goes with the process.
    Nameless(File),
}

impl<'a> Scratch<'a> {
    fn begin(kept: Option<(&'a LayerCache, &'a str)>) -> Result<Self> {
        if let Some((kept, key)) = kept
            && let Ok(new) = kept.begin()
        {
            return Ok(Self::Cached { kept, key, new });
        }
        let dir = std::env::temp_dir();
        Ok(Self::Nameless(nameless(&dir).within(|| dir.display().to_string())?))
    }

    fn writer(&self) -> Result<File> {
        let file = match self {
            Self::Cached { new, .. } => new.file(),
            Self::Nameless(file) => file,
        };
        file.try_clone().within(|| "opening a file twice")
    }

    /// The finished file, to be read.
    fn keep(self, part: Part) -> Result<FileSource> {
        match self {
            Self::Cached { kept, key, new } => {
                let file = new.file().try_clone().within(|| "opening a file twice")?;
                FileSource::new(file, kept.keep(new, key, part)?)
            }
            Self::Nameless(file) => FileSource::new(file, PathBuf::from(part.name())),
        }
    }
}

/// A file in `dir` that has no name.
fn nameless(dir: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR) {
        // NFS, and overlayfs of Linux before 6.1, on which containers have their temporary files.
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => unlinked(dir),
        file => Ok(file?.into()),
    }
}

/// The same where no file can be made without a name: it loses its own at once.
fn unlinked(dir: &Path) -> io::Result<File> {
    const TRIES: u32 = 1000;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    let mut number = 0;
    loop {
        let path = dir.join(format!(".strata-{}-{number}", std::process::id()));
        match options.open(&path) {
            Ok(file) => {
                std::fs::remove_file(path)?;
                return Ok(file);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < TRIES => {
                number += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

/// A blob as it comes, with those who want to see its bytes.
struct Stream<'a> {
    stream: Box<dyn Read + Send>,
    copy: Option<File>,
    /// Makes a digest that the pass does not.
    other: Option<Arc<Mutex<Hasher>>>,
    progress: &'a Progress,
}

impl Read for Stream<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.progress.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other(stopped()));
        }
        let len = self.stream.read(buf)?;
        let bytes = buf.get(..len).unwrap_or_default();
        if let Some(copy) = &mut self.copy {
            copy.write_all(bytes)?;
        }
        if let Some(other) = &self.other {
            other.lock().update(bytes);
        }
        self.progress.done.fetch_add(len as u64, Ordering::Relaxed);
        Ok(len)
    }
}

#[cfg(test)]
mod tests;
