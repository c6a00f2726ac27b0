//! Manifests and indexes: JSON documents that name the parts of an image (OCI image specification,
//! `manifest.md`, `image-index.md`, `descriptor.md`; Docker's schema 2 is the same with other types).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::cause::Cause;
use super::compression::Compression;
use super::digest::Digest;
use super::platform::Platform;
use crate::error::{Result, ResultExt};

/// Bytes of the largest manifest or index: registries hold no larger ones.
pub const MAX_MANIFEST: u64 = 4 << 20;
/// Bytes of the largest config.
pub const MAX_CONFIG: u64 = 8 << 20;
/// Layers of an image at most. Container runtimes stop at some 127.
pub const MAX_LAYERS: usize = 1_000;
/// Manifests of an index at most.
const MAX_MANIFESTS: usize = 10_000;

/// Types of documents and layers.
pub mod media_type {
    /// An index of OCI's.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// A manifest of OCI's.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// A config of OCI's.
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// A layer that is not compressed; `+gzip` or `+zstd` follows for one that is.
    pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    /// An index of Docker's.
    pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// A manifest of Docker's.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// A config of Docker's.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    /// A layer of Docker's that is not compressed; `.gzip` or `.zstd` follows for one that is.
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
    /// What Docker gave up, signed and not.
    pub(super) const SCHEMA1: [&str; 2] = [
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    ];
    /// What was to become the manifest of an artifact.
    pub(super) const OCI_ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";
}

/// Parses JSON; `what` it should be is for the message. Depth is bounded by the parser (128).
pub(super) fn json<'a, T: Deserialize<'a>>(what: &'static str, bytes: &'a [u8]) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|error| Cause::Json { what, why: error.to_string() }.into())
}

/// What names a part of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// What it is.
    pub media_type: String,
    /// Its hash, by which it is found.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// What it runs on, in an index.
    pub platform: Option<Platform>,
    /// What else is said about it.
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// The name it has in the index of a layout.
    pub fn name(&self) -> Option<&str> {
        self.annotations.get("org.opencontainers.image.ref.name").map(String::as_str)
    }

    /// Whether it says something about an image instead of being one: BuildKit puts how an image
    /// was built beside it, for a platform that is none.
    pub(super) fn is_attestation(&self) -> bool {
        self.annotations
            .get("vnd.docker.reference.type")
            .is_some_and(|is| is == "attestation-manifest")
            // A SOCI index, which lies beside its image.
            || self.annotations.contains_key("com.amazon.soci.image-manifest-digest")
            || self.platform.as_ref().is_some_and(|platform| {
                platform.os == "unknown" && platform.architecture == "unknown"
            })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: Option<String>,
    digest: String,
    size: u64,
    #[serde(default)]
    platform: Option<RawPlatform>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct RawPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

impl RawDescriptor {
    fn checked(self) -> Result<Descriptor> {
        let platform = self.platform.filter(|raw| !raw.os.is_empty()).map(|raw| Platform {
            os: raw.os,
            architecture: raw.architecture,
            variant: raw.variant.filter(|variant| !variant.is_empty()),
        });
        Ok(Descriptor {
            media_type: self.media_type.unwrap_or_default(),
            digest: self.digest.parse()?,
            size: self.size,
            platform,
            annotations: self.annotations.unwrap_or_default(),
        })
    }
}

/// The manifests of several images, or of one for several platforms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// In the order they came.
    pub manifests: Vec<Descriptor>,
}

/// One image: a config and layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The config.
    pub config: Descriptor,
    /// The layers, the lowest one first, each with how it is compressed.
    pub layers: Vec<(Descriptor, Compression)>,
    /// What else is said about it.
    pub annotations: BTreeMap<String, String>,
}

/// A document that a name in an index or a tag of a registry leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// Several manifests.
    Index(Index),
    /// One image.
    Manifest(Manifest),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    schema_version: Option<u64>,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    config: Option<RawDescriptor>,
    #[serde(default)]
    layers: Option<Vec<RawDescriptor>>,
    #[serde(default)]
    manifests: Option<Vec<RawDescriptor>>,
    #[serde(default)]
    fs_layers: Option<IgnoredAny>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

enum Shape {
    Index,
    Manifest,
}

/// What a type of document is, if it is one that is known.
fn shape(media_type: &str) -> Option<Shape> {
    match media_type {
        media_type::OCI_INDEX | media_type::DOCKER_INDEX => Some(Shape::Index),
        media_type::OCI_MANIFEST | media_type::DOCKER_MANIFEST => Some(Shape::Manifest),
        _ => None,
    }
}

impl Document {
    /// The document that `bytes` are, announced as of type `announced`. An unknown type of a
    /// document that does not name its own says nothing: servers make them up.
    ///
    /// # Errors
    /// [`crate::error::Kind::Corrupt`] for what contradicts itself or the announcement,
    /// [`crate::error::Kind::Unsupported`] for schema 1, artifacts, layers that lie elsewhere, and
    /// unknown types, all by name.
    pub fn parse(bytes: &[u8], announced: Option<&str>) -> Result<Self> {
        let raw: Raw = json("manifest", bytes)?;
        let announced = announced.map(|said| said.split(';').next().unwrap_or_default().trim());
        let itself = raw.media_type.as_deref().filter(|own| !own.is_empty());
        if raw.schema_version == Some(1)
            || raw.fs_layers.is_some()
            || itself.is_some_and(|own| media_type::SCHEMA1.contains(&own))
        {
            return Err(Cause::Schema1.into());
        }
        if let Some(version) = raw.schema_version.filter(|&version| version != 2) {
            return Err(Cause::SchemaVersion(version).into());
        }
        if itself == Some(media_type::OCI_ARTIFACT) {
            let kind = raw.artifact_type.unwrap_or_else(|| media_type::OCI_ARTIFACT.into());
            return Err(Cause::Artifact(kind).into());
        }
        let has_image = raw.config.is_some() || raw.layers.is_some();
        if has_image && raw.manifests.is_some() {
            // What one program reads as an index another reads as an image (CVE-2021-41190).
            return Err(Cause::Ambiguous.into());
        }
        let named = match (itself, announced) {
            (Some(itself), Some(announced))
                if shape(announced).is_some() && itself != announced =>
            {
                let (itself, announced) = (itself.into(), announced.into());
                return Err(Cause::MediaTypes { itself, announced }.into());
            }
            (Some(itself), _) if shape(itself).is_none() => {
                return Err(Cause::ManifestType(itself.into()).into());
            }
            (Some(named), _) | (None, Some(named)) => shape(named),
            (None, None) => None,
        };
        match (named, has_image, raw.manifests) {
            (Some(Shape::Index) | None, false, Some(manifests)) => Index::checked(manifests),
            (Some(Shape::Manifest) | None, true, None) => {
                let annotations = raw.annotations.unwrap_or_default();
                Manifest::checked(raw.config, raw.layers, raw.artifact_type, annotations)
            }
            (Some(Shape::Index), false, None) => Ok(Self::Index(Index { manifests: vec![] })),
            _ => Err(Cause::Shapeless.into()),
        }
    }
}

impl Index {
    fn checked(manifests: Vec<RawDescriptor>) -> Result<Document> {
        let count = manifests.len();
        if count > MAX_MANIFESTS {
            return Err(Cause::TooMany { what: "manifests", count, most: MAX_MANIFESTS }.into());
        }
        let manifests = manifests.into_iter().map(RawDescriptor::checked);
        let manifests = manifests.collect::<Result<_>>().within(|| "index")?;
        Ok(Document::Index(Self { manifests }))
    }
}

impl Manifest {
    fn checked(
        config: Option<RawDescriptor>,
        layers: Option<Vec<RawDescriptor>>,
        artifact_type: Option<String>,
        annotations: BTreeMap<String, String>,
    ) -> Result<Document> {
        let (Some(config), Some(layers)) = (config, layers) else {
            return Err(Cause::Shapeless.into());
        };
        let config = config.checked().within(|| "config")?;
        if !matches!(&*config.media_type, media_type::OCI_CONFIG | media_type::DOCKER_CONFIG) {
            let kind = artifact_type.filter(|kind| !kind.is_empty()).unwrap_or(config.media_type);
            return Err(Cause::Artifact(kind).into());
        }
        let count = layers.len();
        if count > MAX_LAYERS {
            return Err(Cause::TooMany { what: "layers", count, most: MAX_LAYERS }.into());
        }
        let layers = (1..).zip(layers).map(|(number, raw)| {
            let layer = raw.checked().within(|| format!("layer {number}"))?;
            let compression = layer_compression(number, &layer.media_type)?;
            Ok((layer, compression))
        });
        let layers = layers.collect::<Result<_>>()?;
        Ok(Document::Manifest(Self { config, layers, annotations }))
    }
}

/// How a layer of this type is compressed. The first layer is number 1, as in the layers view.
fn layer_compression(number: usize, media_type: &str) -> Result<Compression> {
    let named = media_type.to_owned();
    // `application/vnd.oci.image.layer.nondistributable.v1.tar+gzip`, and Docker's `foreign`.
    if media_type.contains(".layer.nondistributable.") || media_type.contains(".rootfs.foreign.") {
        return Err(Cause::ForeignLayer { number, media_type: named }.into());
    }
    if media_type.ends_with("+encrypted") {
        return Err(Cause::EncryptedLayer { number, media_type: named }.into());
    }
    let oci = media_type.strip_prefix(media_type::OCI_LAYER);
    match oci.or_else(|| media_type.strip_prefix(media_type::DOCKER_LAYER)) {
        Some("") => Ok(Compression::None),
        Some("+gzip" | ".gzip") => Ok(Compression::Gzip),
        Some("+zstd" | ".zstd") => Ok(Compression::Zstd),
        _ => Err(Cause::LayerType { number, media_type: named }.into()),
    }
}

#[cfg(test)]
mod tests;
