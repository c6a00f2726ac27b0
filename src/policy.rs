//! What an image is allowed to make us open.
//!
//! The person names one image; the image names others: its backing file, its external data file.
//! Those names are input from a stranger. Only regular files in the image's own folder tree, or in
//! a folder the person allows, are opened. Checking and opening are one step: the walk starts at
//! an open folder, takes one component at a time without following links, resolves links itself
//! and starts over at an allowed folder where they lead out. A path outside is never touched, so
//! that not even its existence shows. `docs/policy.md` tells it from the user's side.

mod name;

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};

use crate::block::FileSource;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::image::Format;

use name::Name;

/// What an image is allowed to make us open, as the person set it.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Folders whose files may be opened besides those of the image's own folder, and single
    /// files; a file named here may also be a block device.
    pub allow_paths: Vec<PathBuf>,
    /// Open no other file at all: an image that needs one is refused.
    pub no_backing: bool,
    /// Most layers of one chain.
    pub max_depth: usize,
    /// The format of backing files whose format the image does not say.
    pub backing_format: Option<Format>,
}

impl Default for Policy {
    fn default() -> Self {
        Self { allow_paths: Vec::new(), no_backing: false, max_depth: 512, backing_format: None }
    }
}

/// A file that was allowed and opened.
#[derive(Debug)]
pub struct Admitted {
    /// The file.
    pub source: FileSource,
    /// Where names in it are relative to.
    pub folder: PathBuf,
    /// The format its name came with.
    pub format: Option<Format>,
}

/// A folder whose tree is allowed.
#[derive(Debug)]
struct Root {
    /// Its path without links.
    path: PathBuf,
    /// Its path as the person wrote it, made absolute.
    alias: PathBuf,
    folder: OwnedFd,
    /// Only files right in it: the image lies in `/`, and that must not allow the whole machine.
    shallow: bool,
}

/// The policy applied to one top image: the folders it leaves open.
#[derive(Debug)]
pub struct Gate {
    roots: Vec<Root>,
    /// Single files that are allowed, as written and without links.
    files: Vec<PathBuf>,
    no_backing: bool,
}

/// Where a path begins, seen from what is allowed.
enum Anchor<'a> {
    Folder(&'a Root, VecDeque<OsString>),
    File,
}

/// Links followed for one name; the host's own limit.
const MAX_LINKS: u32 = 40;

impl Gate {
    /// Applies `policy` to the image at `top`, which the person named.
    ///
    /// # Errors
    /// The host's, for a folder that cannot be opened.
    pub fn new(policy: &Policy, top: &FileSource) -> Result<Self> {
        let mut gate = Self { roots: Vec::new(), files: Vec::new(), no_backing: policy.no_backing };
        if policy.no_backing {
            return Ok(gate);
        }
        // A device's folder is no place where images lie side by side.
        if !top.is_device() {
            let paths = [std::path::absolute(top.path()), top.path().canonicalize()];
            for path in paths.iter().flatten() {
                if let Some(folder) = path.parent() {
                    // A folder that is gone or closed to us allows nothing.
                    let _ = gate.allow(folder, true);
                }
            }
        }
        for path in &policy.allow_paths {
            if path.is_dir() {
                gate.allow(path, false)?;
            } else {
                let real = path.canonicalize().within(|| path.display().to_string())?;
                gate.files.extend([absolute(path)?, real]);
            }
        }
        Ok(gate)
    }

    fn allow(&mut self, folder: &Path, own: bool) -> Result<()> {
        let named = || folder.display().to_string();
        let path = folder.canonicalize().within(named)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd =
            rustix::fs::open(&path, flags, Mode::empty()).map_err(io::Error::from).within(named)?;
        let shallow = own && path.parent().is_none();
        self.roots.push(Root { path, alias: absolute(folder)?, folder: fd, shallow });
        Ok(())
    }

    /// Opens the file that an image in `folder` calls `name`, if it is allowed.
    ///
    /// # Errors
    /// [`Kind::Refused`] for what is not allowed, whether or not it exists, or the host's.
    pub fn open(&self, name: &OsStr, folder: &Path) -> Result<Admitted> {
        let shown = || format!("\"{}\"", name.display());
        if self.no_backing {
            return Err(Error::new(Kind::Refused, "other files are not to be opened")
                .within(shown())
                .with_hint("leave out --no-backing to read it"));
        }
        let Name { path, format } = Name::parse(name).within(shown)?;
        let (source, folder) = self.walk(&folder.join(path)).within(shown)?;
        Ok(Admitted { source, folder, format })
    }

    /// Finds the allowed folder that `path`, which is absolute, leads through.
    fn anchor(&self, path: &Path) -> Result<Anchor<'_>> {
        if self.files.iter().any(|file| file == path) {
            return Ok(Anchor::File);
        }
        for root in &self.roots {
            for prefix in [&root.path, &root.alias] {
                let Ok(rest) = path.strip_prefix(prefix) else { continue };
                let rest = components(rest);
                if !root.shallow || rest.len() == 1 {
                    return Ok(Anchor::Folder(root, rest));
                }
            }
        }
        let error = Error::new(Kind::Refused, "outside the folders that may be opened");
        Err(match path.parent() {
            Some(folder) => error.with_hint(format!(
                "if you trust the image, allow it with --allow-path {}",
                folder.display()
            )),
            None => error,
        })
    }

    /// Opens `path`, which is absolute; the folder is the one its last component is named in.
    fn walk(&self, path: &Path) -> Result<(FileSource, PathBuf)> {
        let mut links = MAX_LINKS;
        // Where names inside the file are relative to: the folder it was named in, even if it is
        // a link to a file elsewhere.
        let mut named_in = None;
        let mut path = path.to_owned();
        'anchored: loop {
            let (root, mut rest) = match self.anchor(&path)? {
                Anchor::Folder(root, rest) => (root, rest),
                Anchor::File => {
                    let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
                    return Ok((FileSource::open(&path)?, named_in.unwrap_or(folder)));
                }
            };
            let mut inside: Vec<(OsString, OwnedFd)> = Vec::new();
            while let Some(component) = rest.pop_front() {
                let here = || {
                    let mut here = root.path.clone();
                    here.extend(inside.iter().map(|(name, _)| name));
                    here
                };
                if component == ".." {
                    if inside.pop().is_none() {
                        path = root.path.parent().unwrap_or(Path::new("/")).to_owned();
                        path.extend(rest);
                        continue 'anchored;
                    }
                    continue;
                }
                if rest.is_empty() && named_in.is_none() {
                    named_in = Some(here());
                }
                let folder = inside.last().map_or(root.folder.as_fd(), |(_, fd)| fd.as_fd());
                let peek = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let fd =
                    rustix::fs::openat(folder, &component, peek, Mode::empty()).map_err(host)?;
                let stat = rustix::fs::fstat(&fd).map_err(host)?;
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Symlink => {
                        links = links.checked_sub(1).ok_or_else(|| {
                            Error::new(Kind::Refused, format!("more than {MAX_LINKS} links"))
                        })?;
                        let target =
                            rustix::fs::readlinkat(folder, &component, Vec::new()).map_err(host)?;
                        let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                        if target.is_absolute() {
                            path = target;
                            path.extend(rest);
                            continue 'anchored;
                        }
                        for part in components(&target).into_iter().rev() {
                            rest.push_front(part);
                        }
                    }
                    FileType::Directory if rest.is_empty() => {
                        return Err(Error::new(Kind::IsADirectory, "is a folder, not an image"));
                    }
                    FileType::Directory => inside.push((component, fd)),
                    FileType::RegularFile if rest.is_empty() => {
                        let flags = OFlags::RDONLY
                            | OFlags::NOFOLLOW
                            | OFlags::NONBLOCK
                            | OFlags::NOCTTY
                            | OFlags::CLOEXEC;
                        let file = rustix::fs::openat(folder, &component, flags, Mode::empty())
                            .map_err(host)?;
                        let opened = rustix::fs::fstat(&file).map_err(host)?;
                        if (opened.st_dev, opened.st_ino) != (stat.st_dev, stat.st_ino) {
                            return Err(Error::new(Kind::Refused, "changed while being opened"));
                        }
                        let shown = here().join(&component);
                        let source = FileSource::new(File::from(file), shown)?;
                        return Ok((source, named_in.unwrap_or_else(here)));
                    }
                    FileType::RegularFile => return Err(host(rustix::io::Errno::NOTDIR)),
                    FileType::BlockDevice | FileType::CharacterDevice => {
                        return Err(Error::new(Kind::Refused, "is a device").with_hint(
                            "a block device must be allowed by its own name with --allow-path",
                        ));
                    }
                    _ => return Err(Error::new(Kind::Refused, "is not a regular file")),
                }
            }
            return Err(Error::new(Kind::IsADirectory, "is a folder, not an image"));
        }
    }
}

fn host(errno: rustix::io::Errno) -> Error {
    Error::io(errno.into())
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).within(|| path.display().to_string())
}

/// The components of a path as the host walks them; a leading `/` and `.` fall away.
fn components(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests;
