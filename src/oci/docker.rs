//! What `docker save` makes: a tar with `manifest.json`, which names configs and layers in the tar,
//! or only with `repositories`, as before Docker 1.10 (Docker image specification 1.0 to 1.2).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use super::archive::Archive;
use super::blob::{Blob, LocalBlob, read_at_most};
use super::cause::{Cause, listed};
use super::compression::Compression;
use super::config::Config;
use super::digest::Digest;
use super::image::{Documents, Image, LayerBlob};
use super::manifest::{MAX_CONFIG, MAX_LAYERS, MAX_MANIFEST, json, media_type};
use super::reference::{Name, Selection};
use super::span;
use crate::block::BlockSource;
use crate::error::{Error, Result, ResultExt};

const MANIFEST: &str = "manifest.json";
const REPOSITORIES: &str = "repositories";

/// One image of `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Saved {
    /// The member that is its config.
    pub config: String,
    /// Its names, or none.
    #[serde(default)]
    pub repo_tags: Option<Vec<String>>,
    /// The members that are its layers, the lowest one first.
    #[serde(default)]
    pub layers: Option<Vec<String>>,
}

impl Saved {
    /// The images that `manifest.json` lists.
    ///
    /// # Errors
    /// [`crate::error::Kind::Corrupt`] for anything else.
    pub fn parse(bytes: &[u8]) -> Result<Vec<Self>> {
        let images: Vec<Self> = json(MANIFEST, bytes)?;
        for image in &images {
            let count = image.layers.as_ref().map_or(0, Vec::len);
            if count > MAX_LAYERS {
                return Err(Cause::TooMany { what: "layers", count, most: MAX_LAYERS }.into());
            }
        }
        Ok(images)
    }

    fn names(&self) -> &[String] {
        self.repo_tags.as_deref().unwrap_or_default()
    }

    fn is_called(&self, wanted: &str) -> bool {
        let full = |name: &String| Name::parse(name).is_ok_and(|name| name.to_string() == wanted);
        self.names().iter().any(full)
    }
}

/// A layer as it was kept before there were configs: `ID/json` beside `ID/layer.tar`.
#[derive(Deserialize)]
struct OldLayer {
    #[serde(default)]
    parent: Option<String>,
}

/// Repository to tag to the ID of the uppermost layer.
type Repositories = BTreeMap<String, BTreeMap<String, String>>;

/// Whether the members are those of an archive of `docker save`.
pub(super) fn is_archive(archive: &Archive) -> bool {
    let read = |name| read(archive, name, MAX_MANIFEST).ok();
    read(MANIFEST).is_some_and(|bytes| Saved::parse(&bytes).is_ok())
        || read(REPOSITORIES)
            .is_some_and(|bytes| json::<Repositories>(REPOSITORIES, &bytes).is_ok())
}

/// The image of `archive` that is selected.
pub(super) fn open(archive: &Archive, image: &Selection) -> Result<Image> {
    if archive.get(MANIFEST)?.is_none() && archive.get(REPOSITORIES)?.is_some() {
        return open_old(archive, image);
    }
    let images = Saved::parse(&read(archive, MANIFEST, MAX_MANIFEST)?)?;
    let saved = select(&images, image, Saved::is_called, |number, saved| match saved.names() {
        [] => format!("@{number}"),
        names => names.join(", "),
    })?;
    let bytes = read(archive, &saved.config, MAX_CONFIG).within(|| "config")?;
    if let Some(digest) = digest_named(&saved.config) {
        digest.check("config", &bytes)?;
    }
    let config = Config::parse(&bytes)?;
    let diff_ids = config.diff_ids()?;
    let layers = saved.layers.as_deref().unwrap_or_default();
    if layers.len() != diff_ids.len() {
        let cause = Cause::LayerCount { layers: layers.len(), diff_ids: diff_ids.len() };
        return Err(cause.into());
    }
    let layers = layers.iter().zip(diff_ids).enumerate().map(|(index, (member, diff_id))| {
        layer(archive, member, Some(diff_id)).within(|| format!("layer {}", index + 1))
    });
    let layers = layers.collect::<Result<_>>()?;
    let name = saved.names().first().cloned();
    let documents = Documents { manifest: None, config: Some(bytes) };
    Ok(Image {
        name,
        manifest_digest: None,
        config,
        layers,
        documents,
        registry: None,
        indexed: None,
    })
}

/// The one of `images` that is selected.
fn select<'a, T>(
    images: &'a [T],
    selection: &Selection,
    is_called: impl Fn(&T, &str) -> bool,
    name: impl Fn(usize, &T) -> String,
) -> Result<&'a T> {
    let names = || listed(images.iter().enumerate().map(|(number, image)| name(number, image)));
    match (selection, images) {
        (_, []) => Err(Cause::Empty.into()),
        (Selection::Only, [only]) => Ok(only),
        (Selection::Only, _) => {
            let hint = "put :NAME or :@NUMBER behind it";
            Err(Error::from(Cause::Several(names())).with_hint(hint))
        }
        (&Selection::Number(number), _) => {
            let none = || Cause::NoSuchNumber { number, last: images.len() - 1 }.into();
            images.get(number).ok_or_else(none)
        }
        (Selection::Named(wanted), _) => {
            let none = || Cause::NoSuchImage { name: wanted.clone(), there: names() }.into();
            images.iter().find(|image| is_called(image, wanted)).ok_or_else(none)
        }
    }
}

fn open_old(archive: &Archive, image: &Selection) -> Result<Image> {
    let bytes = read(archive, REPOSITORIES, MAX_MANIFEST)?;
    let repositories: Repositories = json(REPOSITORIES, &bytes)?;
    let images: Vec<_> = repositories
        .into_iter()
        .flat_map(|(name, tags)| {
            tags.into_iter().map(move |(tag, id)| (format!("{name}:{tag}"), id))
        })
        .collect();
    let is_called = |(name, _): &(String, String), wanted: &str| {
        Name::parse(name).is_ok_and(|name| name.to_string() == wanted)
    };
    let (name, top) = select(&images, image, is_called, |_, (name, _)| name.clone())?;
    let mut config = None;
    let mut layers = vec![];
    let mut next = Some(top.clone());
    while let Some(id) = next {
        if layers.len() >= MAX_LAYERS {
            return Err(Cause::ParentCircle(id).into());
        }
        let bytes = read(archive, &format!("{id}/json"), MAX_CONFIG)?;
        next = json::<OldLayer>("layer", &bytes)?.parent.filter(|parent| !parent.is_empty());
        layers.push(layer(archive, &format!("{id}/layer.tar"), None)?);
        if config.is_none() {
            config = Some((Config::parse(&bytes)?, bytes));
        }
    }
    layers.reverse();
    let (config, bytes) = config.unzip();
    let documents = Documents { manifest: None, config: bytes };
    let config = config.unwrap_or_default();
    let name = Some(name.clone());
    Ok(Image {
        name,
        manifest_digest: None,
        config,
        layers,
        documents,
        registry: None,
        indexed: None,
    })
}

/// The layer that a member is. Docker stores them as they are; others compress them.
fn layer(archive: &Archive, member: &str, diff_id: Option<Digest>) -> Result<LayerBlob> {
    let source = archive.get(member)?.ok_or_else(|| Cause::Missing(member.to_owned()))?;
    let mut start = [0; 6];
    if source.len() >= start.len() as u64 {
        source.read_at(0, &mut start)?;
    }
    let compression = span::detect(&start);
    let digest = match compression {
        Compression::None => diff_id.clone(),
        _ => digest_named(member),
    };
    let blob: Arc<dyn Blob> = Arc::new(LocalBlob(source));
    let media_type = match compression {
        Compression::None => media_type::DOCKER_LAYER.into(),
        other => format!("{}.{}", media_type::DOCKER_LAYER, other.name()),
    };
    let (size, annotations) = (blob.len(), BTreeMap::new());
    Ok(LayerBlob { digest, media_type, compression, size, diff_id, annotations, blob })
}

/// The digest that the name of a member is: `HEX.json`, `blobs/sha256/HEX`, `sha256:HEX`.
fn digest_named(member: &str) -> Option<Digest> {
    let last = member.rsplit('/').next().unwrap_or_default();
    let stem = last.split('.').next().unwrap_or_default();
    match stem.contains(':') {
        true => stem.parse().ok(),
        false => format!("sha256:{stem}").parse().ok(),
    }
}

fn read(archive: &Archive, name: &str, most: u64) -> Result<Vec<u8>> {
    let source = archive.get(name)?.ok_or_else(|| Cause::Missing(name.to_owned()))?;
    read_at_most(&LocalBlob(source), "member", most).within(|| name.to_owned())
}
