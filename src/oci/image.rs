//! An image: what a reference leads to.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::archive::Archive;
use super::blob::{Blob, LocalBlob, read_whole};
use super::cause::Cause;
use super::compression::Compression;
use super::config::Config;
use super::digest::Digest;
use super::docker;
use super::layout::Layout;
use super::manifest::{Descriptor, Document, MAX_CONFIG, Manifest, media_type};
use super::platform::{self, Platform};
use super::reference::Reference;
use super::registry::{self, Registry};
use super::span;
use super::toc::soci::{self, Indexed};
use crate::block::{BlockSource, FileSource};
use crate::error::{Error, Result, ResultExt};

/// Indexes that may lie in each other.
const MAX_DEPTH: usize = 4;

/// What is asked for besides the reference.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// For what the image shall be; the host, if that is left open.
    pub platform: Option<Platform>,
    /// How registries are talked to.
    pub registry: registry::Options,
}

/// An image, whose layers are not read yet.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its name, where it lies among others.
    pub name: Option<String>,
    /// The digest of its manifest. Archives of `docker save` and tarballs have none.
    pub manifest_digest: Option<Digest>,
    /// Its config; that of a tarball is empty.
    pub config: Config,
    /// Its layers, the lowest one first.
    pub layers: Vec<LayerBlob>,
    /// What its parts were parsed from, byte for byte.
    pub documents: Documents,
    pub(super) registry: Option<Arc<Registry>>,
    /// What its layers may be indexed by.
    pub(super) indexed: Option<Indexed>,
}

/// The documents of an image as they are stored, for whoever makes another of it.
#[derive(Debug, Clone, Default)]
pub struct Documents {
    /// The manifest, where there is one.
    pub manifest: Option<Vec<u8>>,
    /// The config, where there is one.
    pub config: Option<Vec<u8>>,
}

/// A layer, and what is said about it. Whoever reads all of it holds it against the digests.
#[derive(Debug, Clone)]
pub struct LayerBlob {
    /// The hash of the bytes of `blob`, where it is known.
    pub digest: Option<Digest>,
    /// Its type.
    pub media_type: String,
    /// How it is compressed, as far as its type tells: bytes may tell otherwise.
    pub compression: Compression,
    /// Bytes of `blob`.
    pub size: u64,
    /// The hash of the bytes once they are decompressed, where it is known.
    pub diff_id: Option<Digest>,
    /// What else the manifest says about it.
    pub annotations: BTreeMap<String, String>,
    /// The bytes as they are stored.
    pub blob: Arc<dyn Blob>,
}

impl Image {
    /// What it runs on, if its config says so.
    pub fn platform(&self) -> Option<Platform> {
        self.config.platform()
    }

    /// Bytes that a registry has sent for it so far, the documents included.
    pub fn transferred(&self) -> u64 {
        self.registry.as_ref().map_or(0, |registry| registry.transferred())
    }
}

/// Where the parts of an image lie.
pub(super) trait Content {
    /// The whole of a manifest or index, held against its descriptor.
    fn manifest(&self, manifest: &Descriptor) -> Result<Vec<u8>>;

    /// Another part; `what` it is is for messages.
    fn blob(&self, what: &'static str, part: &Descriptor) -> Result<Arc<dyn Blob>>;
}

/// Opens the image that `reference` means. Only its documents are read.
///
/// # Errors
/// The host's and the registry's, what is wrong with the documents, [`crate::error::Kind::Usage`]
/// where several images are there and none is chosen, [`crate::error::Kind::NotFound`] where there
/// is none of the name or for the platform, with a list of what there is.
pub fn open(reference: &Reference, options: &Options) -> Result<Image> {
    open_parts(reference, options).within(|| reference.to_string())
}

fn open_parts(reference: &Reference, options: &Options) -> Result<Image> {
    let wanted = options.platform.as_ref();
    let image = match reference {
        Reference::Layout { dir, image } => {
            let layout = Layout::open(dir).map_err(hint_colon)?;
            from_layout(&layout, layout.select(image, wanted)?, wanted)
        }
        Reference::OciArchive { file, image } => {
            let layout = Layout::open_archive(open_file(file)?)?;
            from_layout(&layout, layout.select(image, wanted)?, wanted)
        }
        Reference::DockerArchive { file, image } => {
            docker::open(&Archive::open(open_file(file)?)?, image)
        }
        Reference::Registry(name) => {
            let registry = Registry::new(name, &options.registry)?;
            let (bytes, media_type, digest) = registry.top()?;
            let document = Document::parse(&bytes, media_type.as_deref())?;
            let mut image = from_document(&registry, (document, bytes, digest), wanted)?;
            image.name = Some(name.to_string());
            image.registry = Some(registry);
            // Who names a digest trusts nobody to say more than that names.
            if image.indexed.is_none() && name.digest.is_none() {
                image.indexed = image.manifest_digest.clone().map(Indexed::Referring);
            }
            Ok(image)
        }
        Reference::Tarball { file } => tarball(open_file(file)?),
    }?;
    match (wanted, image.platform()) {
        (Some(wanted), Some(found)) if !wanted.fits(&found) => {
            let (wanted, found) = (wanted.to_string(), found.to_string());
            Err(Cause::OtherPlatform { wanted, found }.into())
        }
        _ => Ok(image),
    }
}

fn open_file(file: &std::path::Path) -> Result<Arc<dyn BlockSource>> {
    match FileSource::open(file) {
        Ok(source) => Ok(Arc::new(source)),
        Err(error) => Err(hint_colon(error)),
    }
}

/// The error for a path that is not there says how a path with a colon is written.
fn hint_colon(error: Error) -> Error {
    match error.kind() {
        crate::error::Kind::NotFound => error.with_hint(
            "a colon ends the path; a path that has one goes without the word before it",
        ),
        _ => error,
    }
}

fn from_layout(layout: &Layout, entry: Descriptor, wanted: Option<&Platform>) -> Result<Image> {
    let name = entry.name().map(Into::into);
    let bytes = layout.manifest(&entry)?;
    let document = Document::parse(&bytes, Some(&entry.media_type))?;
    let image = from_document(layout, (document, bytes, entry.digest), wanted)?;
    Ok(Image { name, ..image })
}

/// Goes down from an index or manifest to an image.
fn from_document(
    content: &dyn Content,
    top: (Document, Vec<u8>, Digest),
    wanted: Option<&Platform>,
) -> Result<Image> {
    let (mut document, mut bytes, mut digest) = top;
    for _ in 0..=MAX_DEPTH {
        let index = match document {
            Document::Manifest(manifest) => {
                return from_manifest(content, &manifest, bytes, digest);
            }
            Document::Index(index) => index,
        };
        let chosen = platform::choose(wanted, &index.manifests)?;
        bytes = content.manifest(chosen)?;
        document = Document::parse(&bytes, Some(&chosen.media_type))?;
        digest = chosen.digest.clone();
    }
    Err(Cause::IndexDepth(MAX_DEPTH + 1).into())
}

fn from_manifest(
    content: &dyn Content,
    manifest: &Manifest,
    bytes: Vec<u8>,
    digest: Digest,
) -> Result<Image> {
    let blob = content.blob("config", &manifest.config)?;
    let config_bytes = read_whole(&*blob, &manifest.config, "config", MAX_CONFIG)?;
    let config = Config::parse(&config_bytes)?;
    let diff_ids = config.diff_ids()?;
    if diff_ids.len() != manifest.layers.len() {
        let (layers, diff_ids) = (manifest.layers.len(), diff_ids.len());
        return Err(Cause::LayerCount { layers, diff_ids }.into());
    }
    let layers = manifest.layers.iter().zip(diff_ids).enumerate();
    let layers = layers.map(|(index, ((layer, compression), diff_id))| {
        Ok(LayerBlob {
            digest: Some(layer.digest.clone()),
            media_type: layer.media_type.clone(),
            compression: *compression,
            size: layer.size,
            diff_id: Some(diff_id),
            annotations: layer.annotations.clone(),
            blob: content.blob("layer", layer).within(|| format!("layer {}", index + 1))?,
        })
    });
    let layers = layers.collect::<Result<_>>()?;
    let documents = Documents { manifest: Some(bytes), config: Some(config_bytes) };
    let manifest_digest = Some(digest);
    let named = manifest.annotations.get(soci::MANIFEST_ANNOTATION);
    let indexed = named.and_then(|digest| digest.parse().ok()).map(Indexed::Named);
    Ok(Image { name: None, manifest_digest, config, layers, documents, registry: None, indexed })
}

/// The image whose one layer is a tarball.
fn tarball(source: Arc<dyn BlockSource>) -> Result<Image> {
    let mut start = [0; 6];
    if source.len() >= start.len() as u64 {
        source.read_at(0, &mut start)?;
    }
    let compression = span::detect(&start);
    let media_type = match compression {
        Compression::None => media_type::OCI_LAYER.into(),
        other => format!("{}+{}", media_type::OCI_LAYER, other.name()),
    };
    let blob: Arc<dyn Blob> = Arc::new(LocalBlob(source));
    let size = blob.len();
    let annotations = BTreeMap::new();
    let layer =
        LayerBlob { digest: None, media_type, compression, size, diff_id: None, annotations, blob };
    Ok(Image {
        name: None,
        manifest_digest: None,
        config: Config::default(),
        layers: vec![layer],
        documents: Documents::default(),
        registry: None,
        indexed: None,
    })
}
