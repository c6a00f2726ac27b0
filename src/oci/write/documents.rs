//! The documents of an image that has one layer more than another.
//!
//! What is not about layers stays as it was, known here or not. Keys come in the order of their
//! names, so the same image always has the same digest.

use serde_json::{Map, Value, json};

use crate::error::{Error, Kind, Result};
use crate::oci::manifest::{self, Document, media_type};
use crate::oci::{Compression, Digest, LayerBlob, Platform};

type Object = Map<String, Value>;

/// Who made the last step of the history.
const CREATED_BY: &str = "strata commit";
/// The name of an image in the index of a layout.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// What configs before Docker 1.10 tell of layers, which have no identity any more.
const OF_LAYERS: [&str; 8] =
    ["id", "parent", "parent_id", "layer_id", "container", "checksum", "throwaway", "Size"];

fn object(what: &'static str, bytes: &[u8]) -> Result<Object> {
    manifest::json(what, bytes)
}

fn bytes(document: Object) -> Vec<u8> {
    // With sorted keys and no line breaks; a value of JSON can always be written.
    Value::Object(document).to_string().into_bytes()
}

/// What names a part of an image.
pub(super) fn descriptor(media_type: &str, digest: &Digest, size: u64) -> Value {
    json!({ "mediaType": media_type, "digest": digest.to_string(), "size": size })
}

/// The type of a layer compressed so.
///
/// # Errors
/// [`Kind::Unsupported`] for what OCI has no type for.
pub(super) fn layer_type(compression: Compression) -> Result<String> {
    match compression {
        Compression::None => Ok(media_type::OCI_LAYER.into()),
        Compression::Gzip | Compression::Zstd => {
            Ok(format!("{}+{}", media_type::OCI_LAYER, compression.name()))
        }
        Compression::Xz | Compression::Bzip2 => {
            let message = format!("no layer of an image is compressed with {}", compression.name());
            Err(Error::new(Kind::Unsupported, message).with_hint("compress it anew with zstd"))
        }
    }
}

/// The type that a layer has among OCI's.
pub(super) fn type_of(layer: &LayerBlob) -> Result<String> {
    if layer.media_type.starts_with(media_type::OCI_LAYER) && layer.digest.is_some() {
        return Ok(layer.media_type.clone());
    }
    layer_type(layer.compression)
}

/// The config `old` with one layer more: `diff_ids` are those of all layers, the new one last.
pub(super) fn config(old: Option<&[u8]>, diff_ids: &[Digest], created: &str) -> Result<Vec<u8>> {
    let mut config = match old {
        Some(old) => object("config", old)?,
        None => Object::new(),
    };
    if !config.contains_key("rootfs") {
        config.retain(|key, _| !OF_LAYERS.contains(&key.as_str()));
    }
    let host = Platform::host();
    for (key, here) in [("architecture", host.architecture), ("os", host.os)] {
        if config.get(key).and_then(Value::as_str).is_none_or(str::is_empty) {
            config.insert(key.into(), here.into());
        }
    }
    let diff_ids: Vec<String> = diff_ids.iter().map(Digest::to_string).collect();
    let below = diff_ids.len().saturating_sub(1);
    config.insert("rootfs".into(), json!({ "type": "layers", "diff_ids": diff_ids }));
    let mut history = match config.remove("history") {
        Some(Value::Array(history)) => history,
        _ => Vec::new(),
    };
    let is_layer = |step: &&Value| step.get("empty_layer").and_then(Value::as_bool) != Some(true);
    // A step for each layer, or the last one would be taken for an earlier layer's.
    for _ in history.iter().filter(is_layer).count()..below {
        history.push(json!({}));
    }
    history.push(json!({ "created": created, "created_by": CREATED_BY }));
    config.insert("history".into(), history.into());
    config.insert("created".into(), created.into());
    Ok(bytes(config))
}

/// The manifest `old` with another config and these layers, the new one last.
pub(super) fn manifest(old: Option<&[u8]>, config: Value, layers: Vec<Value>) -> Result<Vec<u8>> {
    let mut manifest = match old {
        Some(old) => object("manifest", old)?,
        None => Object::new(),
    };
    let known = match manifest.remove("layers") {
        Some(Value::Array(known)) => known,
        _ => Vec::new(),
    };
    let layers = layers.into_iter().enumerate().map(|(nth, mut layer)| {
        // As one of eStargz has the digest of its table of contents there.
        let annotations = known.get(nth).and_then(|known| known.get("annotations"));
        if let (Some(annotations), Some(layer)) = (annotations, layer.as_object_mut()) {
            layer.insert("annotations".into(), annotations.clone());
        }
        layer
    });
    let layers: Vec<Value> = layers.collect();
    // It is no statement about another image any more.
    manifest.remove("subject");
    manifest.insert("schemaVersion".into(), 2.into());
    manifest.insert("mediaType".into(), media_type::OCI_MANIFEST.into());
    manifest.insert("config".into(), config);
    manifest.insert("layers".into(), layers.into());
    Ok(bytes(manifest))
}

/// The index of a layout without images.
pub(super) fn empty_index() -> Vec<u8> {
    let index = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_INDEX,
        "manifests": [],
    });
    index.to_string().into_bytes()
}

/// The index `old` in which `name` is the image `manifest`, and nothing else.
pub(super) fn index(old: &[u8], name: &str, mut manifest: Value) -> Result<Vec<u8>> {
    let Document::Index(_) = Document::parse(old, Some(media_type::OCI_INDEX))? else {
        return Err(Error::new(Kind::Corrupt, "is no index"));
    };
    let mut index = object("index.json", old)?;
    let mut manifests = match index.remove("manifests") {
        Some(Value::Array(manifests)) => manifests,
        _ => Vec::new(),
    };
    if let Some(manifest) = manifest.as_object_mut() {
        manifest.insert("annotations".into(), json!({ REF_NAME: name }));
    }
    let is_it = |image: &Value| {
        let named = image.get("annotations").and_then(|annotations| annotations.get(REF_NAME));
        named.and_then(Value::as_str) == Some(name)
    };
    let place = manifests.iter().position(is_it).unwrap_or(manifests.len());
    manifests.retain(|image| !is_it(image));
    // Those before it are others, and so still there.
    manifests.insert(place.min(manifests.len()), manifest);
    index.insert("schemaVersion".into(), 2.into());
    index.insert("manifests".into(), manifests.into());
    Ok(bytes(index))
}
