//! Adding an image to an OCI layout: one layer above those of another image.
//!
//! Blobs that the layout has stay as they are; what it lacks is copied, and held against its digest
//! on the way. Everything is written in the folder `.strata-partial` of the layout, brought to
//! stable storage and then renamed, `index.json` last: killed at any time, it leaves a layout whose
//! names mean what they meant before, or all that was wanted. Whoever writes holds a lock (`flock`)
//! on the layout's folder, and clears away what one that was killed left in that folder.
//!
//! Specification: OCI image specification 1.1 (`image-layout.md`).

mod documents;
mod encoder;

use std::fs::{self, DirBuilder, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::Compression;
use super::cause::Cause;
use super::digest::{Algorithm, Digest, Hasher};
use super::image::{Image, LayerBlob};
use super::layout::Layout;
use super::manifest::{MAX_LAYERS, MAX_MANIFEST, media_type};
use crate::error::{Error, Kind, Result, ResultExt};

pub use encoder::Encoder;

/// Where things are until they are whole.
const PARTIAL: &str = ".strata-partial";
const MARKER: &str = "oci-layout";
const INDEX: &str = "index.json";
/// Bytes moved at once.
const CHUNK: usize = 256 << 10;
/// How often it is looked whether somebody else is done.
const PATIENCE: Duration = Duration::from_millis(50);

/// A layout that is written to, locked until this is dropped.
#[derive(Debug)]
pub struct Target {
    path: PathBuf,
    dir: File,
    partial: PathBuf,
    /// Files begun so far.
    begun: AtomicU64,
    /// Whether the folder was made here, and may go with nothing in it.
    made: bool,
}

/// A layer that is in the layout, and not yet in an image of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Added {
    /// The digest of the blob.
    pub digest: Digest,
    /// Bytes of the blob.
    pub size: u64,
    /// The digest of its tar.
    pub diff_id: Digest,
    compression: Compression,
}

/// What an image is to be besides its layers.
#[derive(Debug, Clone, Copy)]
pub struct Naming<'a> {
    /// Its name in the layout. An image that has it loses it.
    pub name: &'a str,
    /// When it was made, RFC 3339.
    pub created: &'a str,
}

/// An image that was added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The digest of its manifest.
    pub manifest: Digest,
    /// That of its config.
    pub config: Digest,
    /// How many layers it has.
    pub layers: usize,
}

impl Target {
    /// The layout in the folder `path`, which becomes one if it is empty or not there. Waits for
    /// whoever writes to it now, unless `stop` says not to.
    ///
    /// # Errors
    /// [`Kind::Exists`] for a folder of other things, [`Kind::Io`] if stopped, and the host's.
    pub fn open(path: &Path, stop: &AtomicBool) -> Result<Self> {
        Self::open_folder(path, stop).within(|| path.display().to_string())
    }

    fn open_folder(path: &Path, stop: &AtomicBool) -> Result<Self> {
        let made = match fs::create_dir(path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(Error::io(error)),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, flags, Mode::empty());
        let dir = File::from(dir.map_err(|errno| Error::io(errno.into()))?);
        lock(&dir, stop)?;
        let partial = path.join(PARTIAL);
        let target = Self { path: path.to_owned(), dir, partial, begun: 0.into(), made };
        target.check()?;
        match DirBuilder::new().mode(0o700).create(&target.partial) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).within(|| PARTIAL);
            }
            _ => {}
        }
        target.clear().within(|| PARTIAL)?;
        Ok(target)
    }

    /// Whether the folder is a layout, or may become one.
    fn check(&self) -> Result<()> {
        if rustix::fs::statat(&self.dir, MARKER, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            return Layout::open(&self.path).map(drop);
        }
        for entry in fs::read_dir(&self.path).map_err(Error::io)? {
            let name = entry.map_err(Error::io)?.file_name();
            // What is there of a layout that was begun and not finished.
            if ![PARTIAL, INDEX, "blobs"].iter().any(|&own| name == own) {
                let message = "holds other things, and is no OCI layout";
                return Err(Error::new(Kind::Exists, message)
                    .with_hint("name a layout, an empty folder, or one that is not there"));
            }
        }
        Ok(())
    }

    /// Begins a layer, whose tar is to be written to what this gives.
    ///
    /// # Errors
    /// The host's.
    pub fn layer(&self, compression: Compression) -> Result<NewLayer<'_>> {
        let (file, path) = self.begin()?;
        let file = BufWriter::with_capacity(CHUNK, file);
        let encoder = Encoder::new(Hashed::new(file, Algorithm::Sha256), compression)?;
        let tar = Hashed::new(encoder, Algorithm::Sha256);
        Ok(NewLayer { target: self, tar, path, compression })
    }

    /// Adds the image that has the layers of `image` and, above them, `added`. `diff_ids` are those
    /// of the layers of `image`; `copied` counts the bytes of its blobs that had to be copied.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if a blob is not what its digest says, [`Kind::Unsupported`] if one cannot
    /// be a layer of OCI's, [`Kind::Io`] once `stop` is set, and those of the host and of where
    /// `image` lies. The layout then is as it was, but for blobs that nothing names.
    pub fn commit(
        &self,
        image: &Image,
        diff_ids: &[Digest],
        added: &Added,
        naming: Naming<'_>,
        copied: &AtomicU64,
        stop: &AtomicBool,
    ) -> Result<Committed> {
        let count = image.layers.len().saturating_add(1);
        if count > MAX_LAYERS {
            return Err(Cause::TooMany { what: "layers", count, most: MAX_LAYERS }.into());
        }
        let mut layers = Vec::with_capacity(count);
        for (nth, layer) in image.layers.iter().enumerate() {
            let named = || format!("layer {} of {}", nth + 1, image.layers.len());
            let media_type = documents::type_of(layer).within(named)?;
            let remote = image.registry.is_some();
            let digest = self.copy(layer, remote, copied, stop).within(named)?;
            layers.push(documents::descriptor(&media_type, &digest, layer.size));
        }
        let media_type = documents::layer_type(added.compression)?;
        layers.push(documents::descriptor(&media_type, &added.digest, added.size));
        let diff_ids: Vec<Digest> = diff_ids.iter().chain([&added.diff_id]).cloned().collect();
        let config =
            documents::config(image.documents.config.as_deref(), &diff_ids, naming.created)?;
        let (config, size) = self.add(&config)?;
        let descriptor = documents::descriptor(media_type::OCI_CONFIG, &config, size);
        let old = image.documents.manifest.as_deref();
        let (manifest, size) = self.add(&documents::manifest(old, descriptor, layers)?)?;
        let descriptor = documents::descriptor(media_type::OCI_MANIFEST, &manifest, size);
        let named = || self.path.display().to_string();
        self.name(naming.name, descriptor).within(named)?;
        if self.made {
            let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let parent = File::open(parent.unwrap_or(Path::new("."))).within(named)?;
            parent.sync_all().within(named)?;
        }
        Ok(Committed { manifest, config, layers: count })
    }

    /// Puts an image into the index: from here on it is there.
    fn name(&self, name: &str, manifest: serde_json::Value) -> Result<()> {
        let has = |name| rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
        if !has(INDEX) {
            self.publish(INDEX, &documents::empty_index())?;
        }
        if !has(MARKER) {
            self.publish(MARKER, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        let old = Layout::open(&self.path)?.read(INDEX, MAX_MANIFEST)?;
        self.publish(INDEX, &documents::index(&old, name, manifest).within(|| INDEX)?)
    }

    /// Writes a file of the layout's own folder, in place of the one there.
    fn publish(&self, name: &'static str, bytes: &[u8]) -> Result<()> {
        let (mut file, path) = self.begin()?;
        file.write_all(bytes).and_then(|()| file.sync_all()).within(|| name)?;
        fs::rename(&path, self.path.join(name)).within(|| name)?;
        self.dir.sync_all().within(|| name)
    }

    /// Begins a file that has no name in the layout yet.
    fn begin(&self) -> Result<(File, PathBuf)> {
        let path = self.partial.join(self.begun.fetch_add(1, Ordering::Relaxed).to_string());
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).open(&path);
        Ok((file.within(|| path.display().to_string())?, path))
    }

    /// Makes a finished file the blob `digest`, unless that is there.
    fn keep(&self, file: &File, path: &Path, digest: &Digest, size: u64) -> Result<()> {
        let blobs = self.blobs(digest.algorithm())?;
        if is_there(&blobs, digest, size) {
            return fs::remove_file(path).within(|| path.display().to_string());
        }
        let named = || format!("{}: blob {digest}", self.path.display());
        file.sync_all().within(named)?;
        let renamed = rustix::fs::renameat(rustix::fs::CWD, path, &blobs, digest.hex());
        renamed.map_err(io::Error::from).within(named)?;
        blobs.sync_all().within(named)
    }

    /// The folder of the blobs that are named by this algorithm, made if it is not there.
    fn blobs(&self, algorithm: Algorithm) -> Result<File> {
        let path = format!("blobs/{}", algorithm.name());
        let named = || self.path.join(&path).display().to_string();
        for folder in ["blobs", &path] {
            match rustix::fs::mkdirat(&self.dir, folder, Mode::from_raw_mode(0o777)) {
                // What is in a folder may be on stable storage before the folder is.
                Ok(()) => self.sync_parent(folder).within(named)?,
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(Error::io(errno.into()).within(named())),
            }
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        // A layout may be somebody else's: its links must not make us write elsewhere.
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(&self.dir, &path, flags, Mode::empty(), beneath) {
            Ok(blobs) => Ok(blobs.into()),
            Err(Errno::XDEV | Errno::LOOP) => {
                Err(Error::from(Cause::Outside(path))).within(|| self.path.display().to_string())
            }
            Err(errno) => Err(Error::io(errno.into()).within(named())),
        }
    }

    /// Brings the name of a folder in the layout to stable storage.
    fn sync_parent(&self, folder: &str) -> io::Result<()> {
        match folder.rsplit_once('/') {
            Some((parent, _)) => File::open(self.path.join(parent))?.sync_all(),
            None => self.dir.sync_all(),
        }
    }

    /// Adds a small blob. Its digest and size.
    fn add(&self, bytes: &[u8]) -> Result<(Digest, u64)> {
        let digest = Digest::of(Algorithm::Sha256, bytes);
        let size = bytes.len() as u64;
        let (mut file, path) = self.begin()?;
        file.write_all(bytes).within(|| path.display().to_string())?;
        self.keep(&file, &path, &digest, size)?;
        Ok((digest, size))
    }

    /// Brings a layer of another image into the layout, if it is not there. Its digest.
    fn copy(
        &self,
        layer: &LayerBlob,
        remote: bool,
        copied: &AtomicU64,
        stop: &AtomicBool,
    ) -> Result<Digest> {
        if let Some(digest) = &layer.digest
            && is_there(&self.blobs(digest.algorithm())?, digest, layer.size)
        {
            return Ok(digest.clone());
        }
        let algorithm = layer.digest.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        let (file, path) = self.begin()?;
        let named = || path.display().to_string();
        let shared = !remote && share(layer, &file)?;
        let mut from: Box<dyn Read + Send> = match shared {
            // Read all the same: what it holds is not known to be right.
            true => Box::new(file.try_clone().within(named)?),
            false => layer.blob.stream()?,
        };
        let mut to = Hashed::new(io::sink(), algorithm);
        let mut buffer = vec![0; CHUNK];
        loop {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::new(Kind::Io, "interrupted"));
            }
            let len = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Error::io(error)),
            };
            let bytes = buffer.get(..len).unwrap_or_default();
            to.write_all(bytes).map_err(Error::io)?;
            if !shared {
                (&file).write_all(bytes).within(named)?;
            }
            copied.fetch_add(len as u64, Ordering::Relaxed);
        }
        let (size, found) = (to.len, to.hasher.finish());
        if let Some(digest) = layer.digest.clone().filter(|digest| *digest != found) {
            return Err(Cause::Digest { what: "layer", named: digest, found }.into());
        }
        if size != layer.size {
            let (digest, named) = (found, layer.size);
            return Err(Cause::Size { what: "layer", digest, named, found: size }.into());
        }
        self.keep(&file, &path, &found, size)?;
        Ok(found)
    }

    /// Removes what is not finished, whoever left it.
    fn clear(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.partial)? {
            fs::remove_file(entry?.path())?;
        }
        Ok(())
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // What cannot be removed is cleared away by the next one.
        let _ = self.clear();
        let _ = fs::remove_dir(&self.partial);
        if self.made {
            // Only goes if nothing was put into it.
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// Waits until nobody else writes to the layout.
fn lock(dir: &File, stop: &AtomicBool) -> Result<()> {
    loop {
        match rustix::fs::flock(dir, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if stop.load(Ordering::Relaxed) => {
                return Err(Error::new(Kind::Io, "interrupted: another process writes to it"));
            }
            Err(Errno::WOULDBLOCK) => std::thread::sleep(PATIENCE),
            // On filesystems without locks nothing saves two writers from each other.
            Err(errno) => {
                log::warn!("the layout cannot be locked ({errno}): nothing else may write to it");
                return Ok(());
            }
            Ok(()) => return Ok(()),
        }
    }
}

/// Whether a blob is there whole. Blobs have their names only once they are, so the length tells.
fn is_there(blobs: &File, digest: &Digest, size: u64) -> bool {
    rustix::fs::statat(blobs, digest.hex(), AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && u64::try_from(stat.st_size) == Ok(size)
    })
}

/// Lets `file` share the bytes of the layer, where that is a file and the host can do so.
fn share(layer: &LayerBlob, file: &File) -> Result<bool> {
    let source = layer.blob.source()?;
    Ok(source.whole_file().is_some_and(|from| rustix::fs::ioctl_ficlone(file, from).is_ok()))
}

/// A layer that is being written.
#[derive(Debug)]
pub struct NewLayer<'a> {
    target: &'a Target,
    tar: Hashed<Encoder<Hashed<BufWriter<File>>>>,
    path: PathBuf,
    compression: Compression,
}

impl NewLayer<'_> {
    /// Ends the layer, and puts it into the layout.
    ///
    /// # Errors
    /// The host's.
    pub fn finish(self) -> Result<Added> {
        let diff_id = self.tar.hasher.finish();
        let blob = self.tar.out.finish()?;
        let (size, digest) = (blob.len, blob.hasher.finish());
        let file = blob.out.into_inner().map_err(|error| Error::io(error.into_error()))?;
        self.target.keep(&file, &self.path, &digest, size)?;
        Ok(Added { digest, size, diff_id, compression: self.compression })
    }
}

impl Write for NewLayer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.tar.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tar.flush()
    }
}

/// Passes bytes on, and hashes them.
#[derive(Debug)]
struct Hashed<W> {
    out: W,
    hasher: Hasher,
    len: u64,
}

impl<W> Hashed<W> {
    fn new(out: W, algorithm: Algorithm) -> Self {
        Self { out, hasher: Hasher::new(algorithm), len: 0 }
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.out.write(bytes)?;
        self.hasher.update(bytes.get(..len).unwrap_or_default());
        self.len += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests;
