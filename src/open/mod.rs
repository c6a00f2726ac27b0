//! From a reference on the command line to a disk: the only place that puts formats, policy and
//! chains together.

pub mod bootable;
pub mod cow;
pub mod damage;
mod fstab;
pub mod layered;
mod names;
mod reference;
pub mod stored;
pub mod survey;
mod system;
pub mod view;

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::block::{BlockSource, Cache, FileSource};
use crate::chain::{Chain, Layer, ParentLocator};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::image::{self, Details, Format, ImageInfo, Probed, Raw, SnapshotInfo, qcow2};
use crate::policy::{Admitted, Gate, Policy};
use crate::store::SourceLayer;

pub use reference::Reference;

/// How references are opened.
#[derive(Debug)]
pub struct Opener {
    /// The format of the image that is named; found out if `None`.
    pub format: Option<Format>,
    /// What the image may make us open.
    pub policy: Policy,
    /// How layered images are opened.
    pub layered: layered::Options,
    /// How snapshot stores are opened.
    pub stores: stored::Options,
    /// The cache everything that is opened shares.
    pub cache: Arc<Cache>,
}

/// A disk, with all that is known of the images it is made of.
#[derive(Debug)]
pub struct Disk {
    /// Its bytes.
    pub source: Arc<dyn BlockSource>,
    /// The same as layers, unless it is a raw image by itself.
    pub layers: Option<Arc<Chain>>,
    /// The images it is made of, top first.
    pub chain: Vec<ImageInfo>,
    /// The internal snapshots of the top image.
    pub snapshots: Vec<SnapshotInfo>,
    /// What a store says of it, if it, or what lies below its images, lies in one.
    pub stored: Option<stored::Stored>,
    /// What an operator should know, one line each.
    pub warnings: Vec<String>,
}

impl Disk {
    /// The images it is read from, top first, for whoever is to tell later whether they changed; empty if that cannot be
    /// told, or if one of them is written just now.
    ///
    /// # Errors
    /// The host's.
    pub fn source_layers(&self) -> Result<Vec<SourceLayer>> {
        let files: Option<Vec<Vec<&File>>> = match &self.layers {
            Some(chain) => chain.files().collect(),
            None => self.source.whole_file().map(|file| vec![vec![file]]),
        };
        let files = files.unwrap_or_default();
        if files.len() != self.chain.len() || self.stored.is_some() || !self.warnings.is_empty() {
            return Ok(Vec::new());
        }
        let layer = |(files, image): (Vec<&File>, &ImageInfo)| {
            let files = files.into_iter().map(File::try_clone).collect::<Result<_, _>>();
            let files = files.within(|| image.path.display().to_string())?;
            Ok(SourceLayer { format: image.format.to_string(), size: image.virtual_size, files })
        };
        files.into_iter().zip(&self.chain).map(layer).collect()
    }
}

/// An image file that is about to become a layer.
struct Opened {
    source: FileSource,
    format: Format,
    /// Where names in it are relative to.
    folder: PathBuf,
    /// The snapshot of it that is meant.
    snapshot: Option<String>,
}

/// A chain while it is being put together, top first.
struct Assembly<'a> {
    opener: &'a Opener,
    gate: Gate,
    layers: Vec<Arc<dyn Layer>>,
    /// Which files the layers are, to find a cycle.
    identities: Vec<(u64, u64)>,
    chain: Vec<ImageInfo>,
    snapshots: Vec<SnapshotInfo>,
    stored: Option<stored::Stored>,
    warnings: Vec<String>,
}

impl Opener {
    /// Opens whatever it finds out the format of, under `policy`. Nothing of layered images is kept.
    pub fn new(policy: Policy, cache: Arc<Cache>) -> Self {
        let (layered, stores) = Default::default();
        Self { format: None, policy, layered, stores, cache }
    }

    /// Opens the disk `reference` names, with all the images below it.
    ///
    /// # Errors
    /// [`Kind::Refused`] by policy, [`Kind::NotFound`] for a file or snapshot that is not there,
    /// and what reading the images' headers finds.
    pub fn disk(&self, reference: &Reference) -> Result<Disk> {
        self.stack(None, reference)
    }

    /// Opens the disk `reference` names below the changes of the delta at `delta`, which is known
    /// to belong to it. Both are only read.
    pub(crate) fn disk_with(&self, delta: &Path, reference: &Reference) -> Result<Disk> {
        self.stack(Some(delta), reference)
    }

    /// Opens the disk `reference` names below the changes of the delta at `delta`.
    ///
    /// # Errors
    /// As [`Opener::disk`], and [`Kind::Usage`] if the delta was made above another disk.
    pub fn disk_below(&self, delta: &Path, reference: &Reference) -> Result<Disk> {
        let reference = &*self.pinned(reference)?;
        cow::belongs(self, reference, &self.disk(reference)?, delta)?;
        self.disk_with(delta, reference)
    }

    fn stack(&self, delta: Option<&Path>, reference: &Reference) -> Result<Disk> {
        let path = &reference.path;
        if reference.is_stored() {
            return self.stored_disk(delta, reference);
        }
        let source = FileSource::open(path)?;
        let named = || path.display().to_string();
        let format = match self.format {
            Some(format) => format,
            None => image::probe(&source).within(named)?,
        };
        if format == Format::Raw && (delta.is_none() || reference.snapshot.is_some()) {
            return self.raw_disk(reference, source);
        }
        let folder = std::path::absolute(path).within(named)?;
        let folder = folder.parent().unwrap_or(Path::new("/")).to_owned();
        let mut assembly = Assembly::new(self, &source)?;
        if let Some(delta) = delta {
            assembly.add_delta(FileSource::open(delta)?)?;
        }
        let snapshot = reference.snapshot.clone();
        let mut next = Some(Opened { source, format, folder, snapshot });
        while let Some(opened) = next {
            next = assembly.add(opened)?;
        }
        let Assembly { layers, chain, snapshots, stored, warnings, .. } = assembly;
        let source = Arc::new(Chain::new(layers, Arc::clone(&self.cache))?);
        let layers = Some(Arc::clone(&source));
        Ok(Disk { source, layers, chain, snapshots, stored, warnings })
    }

    /// A raw image by itself is its own disk: the kernel may then read it without us.
    fn raw_disk(&self, reference: &Reference, source: FileSource) -> Result<Disk> {
        if let Some(snapshot) = &reference.snapshot {
            let message = format!("no snapshot \"{snapshot}\": a raw image has none");
            return Err(
                Error::new(Kind::NotFound, message).within(reference.path.display().to_string())
            );
        }
        let chain = vec![raw_info(&source)?];
        let warnings = written_to(&source).into_iter().collect();
        Ok(Disk {
            source: Arc::new(source),
            layers: None,
            chain,
            snapshots: Vec::new(),
            stored: None,
            warnings,
        })
    }
}

/// What to warn of if `source` changes under us.
fn written_to(source: &FileSource) -> Option<String> {
    source.has_qemu_writer().then(|| {
        format!(
            "{}: a running QEMU has it open for writing: what is shown may be stale or torn; \
             take a snapshot there and open what lies below it",
            source.path().display()
        )
    })
}

fn raw_info(source: &FileSource) -> Result<ImageInfo> {
    Ok(ImageInfo {
        path: source.path().to_owned(),
        format: Format::Raw,
        virtual_size: source.len(),
        allocated: source.allocated()?,
        backing: None,
        backing_format: None,
        details: Details::Raw,
    })
}

impl<'a> Assembly<'a> {
    /// A chain of nothing yet. `top` is what policy goes by: what it names has to lie near it.
    fn new(opener: &'a Opener, top: &FileSource) -> Result<Self> {
        Ok(Self {
            opener,
            gate: Gate::new(&opener.policy, top)?,
            layers: Vec::new(),
            identities: Vec::new(),
            chain: Vec::new(),
            snapshots: Vec::new(),
            stored: None,
            warnings: Vec::new(),
        })
    }

    /// Adds a delta, whose parent is known.
    fn add_delta(&mut self, delta: FileSource) -> Result<()> {
        self.identities.push(delta.identity());
        let folder = delta.path().parent().unwrap_or(Path::new("/")).to_owned();
        self.add_qcow2(delta, &folder, None)?;
        Ok(())
    }

    /// Adds `opened` as the lowest layer so far and opens the one below it, if there is one.
    fn add(&mut self, opened: Opened) -> Result<Option<Opened>> {
        let Opened { source, format, folder, snapshot } = opened;
        let identity = source.identity();
        if self.identities.contains(&identity) {
            let message = "is its own backing file, by way of the chain it is in";
            return Err(
                Error::new(Kind::Corrupt, message).within(source.path().display().to_string())
            );
        }
        self.identities.push(identity);
        self.warnings.extend(written_to(&source));
        match (format, snapshot) {
            (Format::Raw, Some(snapshot)) => {
                let message = format!("no snapshot \"{snapshot}\": a raw image has none");
                Err(Error::new(Kind::NotFound, message).within(source.path().display().to_string()))
            }
            (Format::Raw, None) => {
                self.chain.push(raw_info(&source)?);
                self.layers.push(Arc::new(Raw::new(Arc::new(source))));
                Ok(None)
            }
            (Format::Qcow2, snapshot) => {
                let name = source.path().display().to_string();
                match self.add_qcow2(source, &folder, snapshot.as_deref())? {
                    Some(parent) => {
                        let what = || format!("{name}: backing file");
                        if self.add_stored(&parent, &folder).within(what)? {
                            return Ok(None);
                        }
                        self.parent(&parent, &folder).within(what).map(Some)
                    }
                    None => Ok(None),
                }
            }
        }
    }

    /// Adds a qcow2 image as the lowest layer so far; how it names the one below it.
    fn add_qcow2(
        &mut self,
        source: FileSource,
        folder: &Path,
        snapshot: Option<&str>,
    ) -> Result<Option<ParentLocator>> {
        let path = source.path().to_owned();
        let name = path.display().to_string();
        let allocated = source.allocated()?;
        let image = qcow2::open(Arc::new(source), name.clone())?;
        self.warnings.extend(image.warnings());
        if self.layers.is_empty() {
            // A snapshot that is asked for reports this by itself.
            match image.snapshots() {
                Ok(snapshots) => self.snapshots = snapshots,
                Err(error) => self.warnings.push(error.to_string()),
            }
        }
        let mut info = image.info();
        match image.bitmaps() {
            Ok(bitmaps) => info.bitmaps = bitmaps,
            Err(error) => self.warnings.push(error.to_string()),
        }
        let data_file = match image.data_file()? {
            Some(data) => Some(self.data_file(&data, folder, &image, &name)?),
            None => None,
        };
        let layer = image.layer(snapshot, data_file)?;
        self.chain.push(ImageInfo {
            path,
            format: Format::Qcow2,
            virtual_size: layer.virtual_size(),
            allocated,
            backing: image.parent().map(|parent| parent.name.to_string_lossy().into_owned()),
            backing_format: image.parent().and_then(|parent| parent.format.clone()),
            details: Details::Qcow2(info),
        });
        self.layers.push(Arc::new(layer));
        Ok(image.parent().cloned())
    }

    fn data_file(
        &mut self,
        data: &OsStr,
        folder: &Path,
        image: &qcow2::Image,
        name: &str,
    ) -> Result<Arc<dyn BlockSource>> {
        let what = || format!("{name}: data file");
        let Admitted { source, format, .. } = self.gate.open(data, folder).within(what)?;
        if format.is_some_and(|format| format != Format::Raw) {
            let message = "is to be read as an image: only a raw one is";
            return Err(Error::new(Kind::Refused, message).within(what()));
        }
        if self.identities.contains(&source.identity()) {
            let message = format!("\"{}\" is an image of the chain itself", data.display());
            return Err(Error::new(Kind::Corrupt, message).within(what()));
        }
        if source.len() < image.virtual_size() {
            let path = source.path().display();
            self.warnings.push(format!(
                "{path}: shorter than the disk of {name}: it reads as zeros past its end"
            ));
        }
        Ok(Arc::new(source))
    }

    /// Fails if no further layer is allowed.
    fn check_depth(&self) -> Result<()> {
        let limit = self.opener.policy.max_depth;
        if self.layers.len() < limit {
            return Ok(());
        }
        Err(Error::new(Kind::Refused, format!("a chain of more than {limit} images")))
    }

    /// Opens the backing file `parent` of an image in `folder`.
    fn parent(&self, parent: &ParentLocator, folder: &Path) -> Result<Opened> {
        self.check_depth()?;
        let (name, snapshot) = cow::parse_backing(&parent.name);
        let Admitted { source, folder, format } = self.gate.open(name, folder)?;
        let shown = || format!("\"{}\"", parent.name.display());
        let declared = match parent.format.as_deref().filter(|format| !format.is_empty()) {
            // The names of QEMU's protocols for what is read as it is.
            Some("file" | "host_device") => Some(Format::Raw),
            Some(declared) => Some(declared.parse::<Format>().within(shown)?),
            None => None,
        };
        let format = match format.or(declared).or(self.opener.policy.backing_format) {
            Some(format) => format,
            None => undeclared(&source).within(shown)?,
        };
        Ok(Opened { source, format, folder, snapshot })
    }
}

/// The format of a backing file whose format nobody said: raw, or none.
///
/// Whoever could write a raw disk could put another format's signature on it, and the files that
/// one names would be opened for him. So a signature never makes such a file more than raw; it
/// makes it refused.
fn undeclared(source: &FileSource) -> Result<Format> {
    let seems = match image::examine(source)? {
        Probed::Known(Format::Raw) => return Ok(Format::Raw),
        Probed::Known(format) => format.to_string(),
        Probed::Foreign(name) => name.to_owned(),
    };
    let message =
        format!("looks like {seems}, but the image that names it does not say its format");
    Err(Error::new(Kind::Refused, message).with_hint(
        "if you trust both, say --backing-format (or write it into the image: \
         qemu-img rebase -u -F FORMAT -b BACKING IMAGE)",
    ))
}
