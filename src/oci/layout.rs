//! The OCI image layout, in a folder or in a tar of one: `oci-layout`, `index.json`, and what they
//! name below `blobs` (OCI image specification, `image-layout.md`).

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use serde::Deserialize;

use super::archive::Archive;
use super::blob::{Blob, LocalBlob, check_size, read_at_most, read_whole};
use super::cause::{Cause, listed};
use super::image::Content;
use super::manifest::{Descriptor, Document, MAX_MANIFEST, json, media_type};
use super::platform::{self, Platform};
use super::reference::Selection;
use crate::block::{BlockSource, FileSource};
use crate::error::{Error, Result, ResultExt};

/// The files that tell a layout.
pub(super) const MARKS: [&str; 2] = ["oci-layout", "index.json"];

/// A layout, wherever its files lie.
#[derive(Debug)]
pub(super) enum Layout {
    Folder { path: PathBuf, dir: File },
    Archive(Archive),
}

#[derive(Deserialize)]
struct Marker {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

impl Layout {
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(dir, flags, Mode::empty())
            .map_err(io::Error::from)
            .map_err(Error::io)?;
        Self::Folder { path: dir.to_owned(), dir: File::from(fd) }.checked()
    }

    pub(super) fn open_archive(source: Arc<dyn BlockSource>) -> Result<Self> {
        Self::Archive(Archive::open(source)?).checked()
    }

    fn checked(self) -> Result<Self> {
        let bytes = self.read("oci-layout", 4 << 10)?;
        let marker: Marker = json("oci-layout", &bytes)?;
        if !marker.version.starts_with("1.") {
            return Err(Cause::LayoutVersion(marker.version).into());
        }
        Ok(self)
    }

    /// The entry of `index.json` that is selected.
    pub(super) fn select(
        &self,
        image: &Selection,
        wanted: Option<&Platform>,
    ) -> Result<Descriptor> {
        let bytes = self.read("index.json", MAX_MANIFEST)?;
        let document =
            Document::parse(&bytes, Some(media_type::OCI_INDEX)).within(|| "index.json")?;
        let Document::Index(index) = document else {
            return Err(Error::from(Cause::Shapeless).within("index.json"));
        };
        let images: Vec<_> =
            index.manifests.into_iter().filter(|image| !image.is_attestation()).collect();
        let names = || {
            listed(images.iter().enumerate().map(|(number, image)| match image.name() {
                Some(name) => name.to_owned(),
                None => format!("@{number}"),
            }))
        };
        let there = match image {
            Selection::Number(number) => {
                let last = images.len().saturating_sub(1);
                let none = Cause::NoSuchNumber { number: *number, last };
                return images.get(*number).cloned().ok_or_else(|| none.into());
            }
            Selection::Only => images.clone(),
            Selection::Named(name) => {
                let is_it = |image: &&Descriptor| image.name() == Some(name);
                images.iter().filter(is_it).cloned().collect()
            }
        };
        match (&*there, image) {
            ([only], _) => Ok(only.clone()),
            ([], Selection::Named(name)) => {
                Err(Cause::NoSuchImage { name: name.clone(), there: names() }.into())
            }
            ([], _) => Err(Cause::Empty.into()),
            // One name for what differs by platform alone is an index that was laid open.
            ([first, rest @ ..], _)
                if rest.iter().all(|image| image.name() == first.name())
                    && there.iter().all(|image| image.platform.is_some()) =>
            {
                platform::choose(wanted, &there).cloned()
            }
            _ => {
                Err(Error::from(Cause::Several(names()))
                    .with_hint("put :NAME or :@NUMBER behind it"))
            }
        }
    }

    /// The whole of a small file that has no digest.
    pub(super) fn read(&self, name: &'static str, most: u64) -> Result<Vec<u8>> {
        let source = self.file(name)?;
        read_at_most(&LocalBlob(source), name, most)
    }

    /// The file of that name, which is made here and not by the image.
    fn file(&self, name: &str) -> Result<Arc<dyn BlockSource>> {
        let (path, dir) = match self {
            Layout::Archive(archive) => {
                let missing = || Cause::Missing(name.to_owned());
                let member: Arc<dyn BlockSource> = archive.get(name)?.ok_or_else(missing)?;
                return Ok(member);
            }
            Layout::Folder { path, dir } => (path, dir),
        };
        // A layout is somebody else's: its links must not make us open files of the host.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(dir, name, flags, Mode::empty(), beneath) {
            Ok(fd) => Ok(Arc::new(FileSource::new(File::from(fd), path.join(name))?)),
            Err(rustix::io::Errno::NOENT) => Err(Cause::Missing(name.to_owned()).into()),
            Err(rustix::io::Errno::XDEV | rustix::io::Errno::LOOP) => {
                Err(Cause::Outside(name.to_owned()).into())
            }
            Err(error) => Err(Error::io(error.into()).within(name.to_owned())),
        }
    }

    fn source(&self, what: &'static str, part: &Descriptor) -> Result<Arc<dyn BlockSource>> {
        let (algorithm, hex) = (part.digest.algorithm().name(), part.digest.hex());
        let source = self.file(&format!("blobs/{algorithm}/{hex}"))?;
        check_size(what, part, source.len())?;
        Ok(source)
    }
}

impl Content for Layout {
    fn manifest(&self, manifest: &Descriptor) -> Result<Vec<u8>> {
        let source = self.source("manifest", manifest)?;
        read_whole(&LocalBlob(source), manifest, "manifest", MAX_MANIFEST)
    }

    fn blob(&self, what: &'static str, part: &Descriptor) -> Result<Arc<dyn Blob>> {
        Ok(Arc::new(LocalBlob(self.source(what, part)?)))
    }
}
