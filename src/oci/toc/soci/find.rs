//! Where the ztocs of an image are.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use super::super::{Claim, Form};
use crate::error::{Kind, Result};
use crate::oci::Digest;
use crate::oci::image::Content;
use crate::oci::manifest::{Descriptor, json};
use crate::oci::registry::Registry;

/// Where the manifest of an image names its index.
pub(in crate::oci) const MANIFEST_ANNOTATION: &str = "com.amazon.soci.index-digest";
/// Where a ztoc's descriptor names its layer.
const LAYER_ANNOTATION: &str = "com.amazon.soci.image-layer-digest";
/// What an index of either kind calls itself.
const FIRST: &str = "application/vnd.amazon.soci.index.v1+json";
const SECOND: &str = "application/vnd.amazon.soci.index.v2+json";

/// Which index an image may be read by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::oci) enum Indexed {
    /// This one, which its manifest names.
    Named(Digest),
    /// What the registry has for the manifest of this digest.
    Referring(Digest),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    config: Config,
    #[serde(default)]
    layers: Vec<Ztoc>,
    #[serde(default)]
    subject: Option<Subject>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(default)]
    media_type: String,
}

#[derive(Deserialize)]
struct Subject {
    digest: String,
}

#[derive(Deserialize)]
struct Ztoc {
    digest: String,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Referrers {
    #[serde(default)]
    manifests: Vec<Referrer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Referrer {
    digest: String,
    #[serde(default)]
    artifact_type: Option<String>,
}

/// The ztocs of an image, by the layers that they are of.
///
/// # Errors
/// The registry's, and [`Kind::Corrupt`] for documents that are not what they should be.
pub(in crate::oci) fn find(
    registry: &Arc<Registry>,
    indexed: &Indexed,
) -> Result<BTreeMap<Digest, Claim>> {
    let (digest, kind, subject) = match indexed {
        Indexed::Named(digest) => (digest.clone(), SECOND, None),
        Indexed::Referring(manifest) => match referring(registry, manifest)? {
            Some(digest) => (digest, FIRST, Some(manifest)),
            None => return Ok(BTreeMap::new()),
        },
    };
    let (bytes, ..) = registry.document(&digest.to_string(), Some(&digest))?;
    let index: Index = json("SOCI index", &bytes)?;
    let of_it = match (subject, &index.subject) {
        (Some(manifest), Some(subject)) => subject.digest == manifest.to_string(),
        (Some(_), None) => false,
        (None, _) => true,
    };
    if index.config.media_type != kind || !of_it {
        return Ok(BTreeMap::new());
    }
    let mut ztocs = BTreeMap::new();
    for ztoc in index.layers {
        let Some(layer) = ztoc.annotations.get(LAYER_ANNOTATION) else { continue };
        let (digest, annotations) = (ztoc.digest.parse()?, BTreeMap::new());
        let size = ztoc.size;
        let media_type = String::new();
        let descriptor = Descriptor { media_type, digest, size, platform: None, annotations };
        let blob = registry.blob("ztoc", &descriptor)?;
        ztocs.insert(layer.parse()?, Claim(Form::Soci(descriptor, blob)));
    }
    Ok(ztocs)
}

/// The digest of the index that refers to a manifest, if the registry has one.
fn referring(registry: &Arc<Registry>, manifest: &Digest) -> Result<Option<Digest>> {
    let listed = registry.referrers(manifest, FIRST).or_else(|error| match error.kind() {
        // Registries of old have a tag instead.
        Kind::NotFound => {
            let tag = format!("{}-{}", manifest.algorithm().name(), manifest.hex());
            registry.document(&tag, None).map(|(bytes, ..)| bytes)
        }
        _ => Err(error),
    });
    let listed = match listed {
        Ok(listed) => listed,
        Err(error) if error.kind() == Kind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let listed: Referrers = json("list of referrers", &listed)?;
    let found = listed.manifests.into_iter().find(|it| it.artifact_type.as_deref() == Some(FIRST));
    found.map(|found| found.digest.parse()).transpose()
}
