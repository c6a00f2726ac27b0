//! Objects as files of a folder.

use std::fs::{self, File, Metadata};
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use super::files::{Files, Host};
use super::{Listed, Object, Objects, Sort};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::store::id::Id;

/// What files begin with that are not whole yet.
const UNFINISHED: &str = ".new-";

/// Objects that are kept open for the next read.
const MOST_OPEN: usize = 256;

/// A folder of objects.
#[derive(Debug)]
pub struct Folder {
    dir: PathBuf,
    files: Arc<dyn Files>,
    open: quick_cache::sync::Cache<Object, Arc<File>>,
    /// Counts what this process writes.
    written: AtomicU64,
}

impl Folder {
    /// The store in `dir`, which need not hold one yet.
    pub fn new(dir: &Path) -> Self {
        Self::over(dir, Arc::new(Host))
    }

    /// The same where files are changed by way of `files`.
    pub fn over(dir: &Path, files: Arc<dyn Files>) -> Self {
        let open = quick_cache::sync::Cache::new(MOST_OPEN);
        Self { dir: dir.to_owned(), files, open, written: AtomicU64::new(0) }
    }

    /// Whether a store lies in `dir`.
    pub fn is_store(dir: &Path) -> bool {
        dir.join("config").is_file() && dir.join("snapshots").is_dir()
    }

    /// Makes the folders of a new store.
    ///
    /// # Errors
    /// [`Kind::NotEmpty`] if something lies in `dir`, and the host's.
    pub fn make(dir: &Path) -> Result<Self> {
        Self::make_over(dir, Arc::new(Host))
    }

    /// The same where files are changed by way of `files`.
    ///
    /// # Errors
    /// As [`Folder::make`].
    pub fn make_over(dir: &Path, files: Arc<dyn Files>) -> Result<Self> {
        let folder = Self::over(dir, files);
        let shown = || dir.display().to_string();
        folder.make_dirs(dir).within(shown)?;
        if fs::read_dir(dir).within(shown)?.next().is_some() {
            let error = Error::new(Kind::NotEmpty, "is not empty").within(shown());
            return Err(error.with_hint("a new store needs a folder of its own"));
        }
        folder.files.make_dir(&dir.join("packs")).within(shown)?;
        for part in Sort::ALL.into_iter().flat_map(|sort| folder.dirs(sort)) {
            folder.files.make_dir(&part).within(shown)?;
        }
        folder.files.sync_dir(&dir.join("packs")).within(shown)?;
        folder.files.sync_dir(dir).within(shown)?;
        Ok(folder)
    }

    /// Makes a folder and those that it is to lie in, as far as they are not there.
    fn make_dirs(&self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        let above = match dir.parent() {
            Some(above) if above.as_os_str().is_empty() => Path::new("."),
            Some(above) => above,
            None => Path::new("/"),
        };
        self.make_dirs(above)?;
        match self.files.make_dir(dir) {
            // Somebody else made it just now.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
            made => made?,
        }
        self.files.sync_dir(above)
    }

    fn path(&self, object: Object) -> PathBuf {
        self.dir.join(object.to_string())
    }

    /// The folders that hold objects of a sort.
    fn dirs(&self, sort: Sort) -> Vec<PathBuf> {
        let one = |name: &str| vec![self.dir.join(name)];
        match sort {
            Sort::Packs => {
                (0..=u8::MAX).map(|first| self.dir.join(format!("packs/{first:02x}"))).collect()
            }
            Sort::Indexes => one("index"),
            Sort::Parts => one("parts"),
            Sort::Snapshots => one("snapshots"),
            Sort::Leases => one("leases"),
            Sort::Condemned => one("condemned"),
            Sort::Keys => one("keys"),
            Sort::Signatures => one("signatures"),
            Sort::Drafts => one("drafts"),
        }
    }

    fn file(&self, object: Object) -> Result<Arc<File>> {
        if let Some(file) = self.open.get(&object) {
            return Ok(file);
        }
        let path = self.path(object);
        let file = Arc::new(File::open(&path).within(|| path.display().to_string())?);
        self.open.insert(object, Arc::clone(&file));
        Ok(file)
    }
}

fn write_all(files: &dyn Files, path: &Path, file: &File, parts: &[&[u8]]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut slices = &mut slices[..];
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        match files.write(path, file, slices) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => IoSlice::advance_slices(&mut slices, count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Objects for Folder {
    fn name(&self) -> String {
        self.dir.display().to_string()
    }

    fn len(&self, object: Object) -> Result<u64> {
        let named = || self.path(object).display().to_string();
        Ok(self.file(object)?.metadata().within(named)?.len())
    }

    fn read_at(&self, object: Object, offset: u64, buf: &mut [u8]) -> Result<()> {
        let read =
            self.file(object)?.read_exact_at(buf, offset).map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => {
                    let end = offset.saturating_add(buf.len() as u64);
                    Error::new(Kind::Corrupt, format!("ends before {end:#x}"))
                }
                _ => Error::io(error),
            });
        read.within(|| self.path(object).display().to_string())
    }

    fn put(&self, object: Object, parts: &[&[u8]]) -> Result<()> {
        let path = self.path(object);
        let named = || path.display().to_string();
        let dir = path.parent().unwrap_or(&self.dir);
        let number = self.written.fetch_add(1, Ordering::Relaxed);
        let new = dir.join(format!("{UNFINISHED}{}-{number}", std::process::id()));
        let file = match self.files.create(&new) {
            // A process of the same number left it.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.files.remove(&new).and_then(|()| self.files.create(&new))
            }
            created => created,
        };
        let is_lasting = !matches!(object, Object::Lease(_));
        // What has the name already is the same object, and others may rely on it.
        let is_new = !path.exists();
        let put = file.and_then(|file| {
            write_all(&*self.files, &new, &file, parts)?;
            // Before its name says that it is whole.
            if is_lasting {
                self.files.sync(&new, &file)?;
            }
            self.files.rename(&new, &path)
        });
        // One that was damaged and is whole now.
        self.open.remove(&object);
        if put.is_err() {
            // What is left of it is nobody's.
            let _ = self.files.remove(&new);
        }
        put.and_then(|()| match is_lasting {
            true => self.files.sync_dir(dir).inspect_err(|_| {
                // What may be gone after the next start is not there now either.
                if is_new {
                    let _ = self.files.remove(&path);
                }
            }),
            false => Ok(()),
        })
        .within(named)
    }

    fn list(&self, sort: Sort) -> Result<Vec<Listed>> {
        let mut listed = Vec::new();
        for dir in self.dirs(sort) {
            each_file(&dir, &mut |name, file| {
                let Ok(id) = name.parse::<Id>() else { return Ok(()) };
                listed.push(Listed { id, len: file.len(), written: file.modified()? });
                Ok(())
            })?;
        }
        Ok(listed)
    }

    fn remove(&self, object: Object) -> Result<()> {
        let path = self.path(object);
        self.open.remove(&object);
        let removed = match self.files.remove(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Ok(()) if matches!(object, Object::Lease(_)) => Ok(()),
            removed => {
                removed.and_then(|()| self.files.sync_dir(path.parent().unwrap_or(&self.dir)))
            }
        };
        removed.within(|| path.display().to_string())
    }

    fn clear_unfinished(&self, then: SystemTime) -> Result<u64> {
        let mut cleared = 0;
        let dirs = Sort::ALL.into_iter().flat_map(|sort| self.dirs(sort));
        // Beside the config, too.
        for dir in std::iter::once(self.dir.clone()).chain(dirs) {
            each_file(&dir, &mut |name, file| {
                if name.starts_with(UNFINISHED) && file.modified()? < then {
                    self.files.remove(&dir.join(name))?;
                    cleared += 1;
                }
                Ok(())
            })?;
        }
        Ok(cleared)
    }
}

/// Calls `each` with the name of each file in `dir` that is still there.
fn each_file(dir: &Path, each: &mut dyn FnMut(&str, &Metadata) -> io::Result<()>) -> Result<()> {
    let named = || dir.display().to_string();
    for entry in fs::read_dir(dir).within(named)? {
        let entry = entry.within(named)?;
        let done = match (entry.file_name().to_str(), entry.metadata()) {
            (Some(name), Ok(file)) => each(name, &file),
            (None, Ok(_)) => Ok(()),
            (_, Err(error)) => Err(error),
        };
        match done {
            // Removed since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => done.within(named)?,
        }
    }
    Ok(())
}
