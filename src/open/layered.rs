//! Layered images: their files as one tree, or layer by layer.

use std::ffi::OsStr;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use super::Opener;
use super::view::{Shown, View};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::oci::cache::LayerCache;
use crate::oci::merge::{LayerPart, Merged};
use crate::oci::prepare::{Progress, prepare};
use crate::oci::{self, Image, LayerBlob, Reference};
use crate::tree::composed::Composed;
use crate::tree::folder::Folder;
use crate::tree::{FileTree, Served, Time};

/// How layered images are opened.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Which of several images, and how registries are talked to.
    pub image: oci::Options,
    /// Where indexes are kept, and what registries sent; nowhere, if `None`.
    pub cache_dir: Option<PathBuf>,
    /// Bytes that may be kept there.
    pub cache_limit: u64,
    /// Where to see how far reading layers has come.
    pub progress: Arc<Progress>,
}

impl Options {
    /// Bytes that are kept in the cache folder, if nobody says otherwise.
    pub const CACHE_LIMIT: u64 = 16 << 30;
}

/// A layered image whose layers can be read at any place.
#[derive(Debug)]
pub struct Layered {
    /// What it says of itself.
    pub image: Image,
    /// Its layers, the lowest one first.
    pub parts: Vec<LayerPart>,
    /// What an operator should know, one line each.
    pub warnings: Vec<String>,
    name: String,
}

/// Whether a layered image can be shown as `view`, which is to be asked before its layers are read.
///
/// # Errors
/// [`Kind::Usage`] for a view of disks.
pub fn check_view(view: View) -> Result<()> {
    match view {
        View::Auto | View::Files | View::Layers => Ok(()),
        View::Volumes | View::Disk | View::Snapshots => {
            let message = format!("a layered image has no {view} view");
            let error = Error::new(Kind::Usage, message);
            Err(error.with_hint("it has files and layers"))
        }
    }
}

impl Opener {
    /// The layered image that `text` means, or `None` for a reference of another kind. With a
    /// format of disk images, it is another kind.
    ///
    /// # Errors
    /// As [`Reference::parse`].
    pub fn layered_reference(&self, text: &OsStr) -> Result<Option<Reference>> {
        match self.format {
            Some(_) => Ok(None),
            None => Reference::parse(text),
        }
    }

    /// Opens a layered image. Layers that the cache does not know are read once, whole.
    ///
    /// # Errors
    /// What reading documents and layers finds.
    pub fn layered(&self, reference: &Reference) -> Result<Layered> {
        let mut warnings = Vec::new();
        let options = &self.layered;
        let kept = options.cache_dir.clone().and_then(|dir| {
            let kept = LayerCache::open(dir, options.cache_limit);
            kept.map_err(|error| warnings.push(format!("nothing is kept: {error}"))).ok()
        });
        let image = oci::open(reference, &options.image)?;
        let name = reference.to_string();
        let parts = prepare(&image, kept.as_ref(), &self.cache, &options.progress);
        Ok(Layered { parts: parts.within(|| name.clone())?, image, warnings, name })
    }
}

impl Layered {
    /// All layers merged; of a tarball, what is in it.
    ///
    /// # Errors
    /// As [`Merged::new`].
    pub fn merged(&self) -> Result<Merged> {
        let is_tarball = |layer: &LayerBlob| layer.digest.is_none() && layer.diff_id.is_none();
        let merged = match (self.image.layers.as_slice(), self.parts.as_slice()) {
            ([layer], [part]) if is_tarball(layer) => Merged::of_tarball(part.clone()),
            (_, parts) => Merged::new(parts.to_vec()),
        };
        merged.within(|| self.name.clone())
    }

    /// A folder for each layer, as it is.
    fn layers(&self) -> Result<Composed> {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        let newest = self.parts.iter().map(|part| part.index.newest()).max();
        let changed = newest.unwrap_or(Time::default());
        let mut folder = Folder::new(uid.as_raw(), gid.as_raw(), changed);
        let mut trees = Vec::new();
        for (nth, (part, layer)) in self.parts.iter().zip(&self.image.layers).enumerate() {
            let digest = layer.digest.as_ref().or(layer.diff_id.as_ref());
            let short = digest.and_then(|digest| digest.hex().get(..12)).unwrap_or("layer");
            let name = format!("{}-{short}", nth + 1);
            let node = folder.add_folder(folder.root(), name.as_bytes(), part.index.newest())?;
            let tree = Merged::of_layer(part.clone()).within(|| name.clone());
            trees.push((node, tree.within(|| self.name.clone())?));
        }
        let mut composed = Composed::new(Arc::new(folder));
        for (node, tree) in trees {
            composed.graft(node, Arc::new(tree))?;
        }
        Ok(composed)
    }

    /// Shows it as `view`.
    ///
    /// # Errors
    /// As [`check_view`] and [`Merged::new`].
    pub fn show(self, view: View) -> Result<Shown> {
        check_view(view).within(|| self.name.clone())?;
        let (tree, view): (Arc<dyn FileTree>, _) = match view {
            View::Layers => (self.layers()?.into_tree(), View::Layers),
            _ => (Arc::new(self.merged()?), View::Files),
        };
        let (tree, warnings) = (Served::ReadOnly(tree), self.warnings);
        Ok(Shown { tree, view, warnings, delta: None, no_files: None })
    }
}

impl fmt::Display for Layered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}
