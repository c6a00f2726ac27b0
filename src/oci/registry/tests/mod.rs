//! Registries that fail, each in one way: a clear error, or another try within one budget.

mod bytes;
mod redirects;
mod server;
mod tokens;
mod tries;

use std::collections::HashSet;
use std::fs;
use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;

use super::*;

use crate::error::Kind;
use crate::oci::{self, Image, LayerBlob};
use server::{Answer, Asked, Sent, Server};

const TRIES: u32 = 4;

/// An image of one layer, as a registry has it.
struct Stored {
    manifest: Vec<u8>,
    config: Vec<u8>,
    layer: Vec<u8>,
}

impl Stored {
    fn new() -> Self {
        // Bytes that differ from place to place: xorshift, seeded.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let layer = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        });
        let layer: Vec<u8> = layer.take(700_001).collect();
        let diff_ids = [digest(&layer).to_string()];
        let config =
            json!({ "os": "linux", "architecture": "amd64", "rootfs": { "diff_ids": diff_ids } });
        let config = config.to_string().into_bytes();
        let part = |media_type: &str, bytes: &[u8]| json!({ "mediaType": media_type, "digest": digest(bytes).to_string(), "size": bytes.len() });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "config": part(media_type::OCI_CONFIG, &config),
            "layers": [part(media_type::OCI_LAYER, &layer)],
        });
        Self { manifest: manifest.to_string().into_bytes(), config, layer }
    }

    /// What a registry in good health answers.
    fn answer(&self, asked: &Asked) -> Answer {
        let path = asked.path.split('?').next().unwrap();
        let last = path.rsplit('/').next().unwrap();
        let blob =
            [&self.config, &self.layer].into_iter().find(|blob| digest(blob).to_string() == last);
        match (path, blob) {
            ("/v2/", _) => Answer::new(200, "{}"),
            (path, _) if path.contains("/manifests/") => Answer::new(200, &*self.manifest)
                .with("Content-Type", media_type::OCI_MANIFEST)
                .with("Docker-Content-Digest", digest(&self.manifest)),
            (_, Some(blob)) => ranged(asked, blob),
            _ => {
                Answer::new(404, r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown"}]}"#)
            }
        }
    }
}

fn ranged(asked: &Asked, blob: &[u8]) -> Answer {
    match asked.range(blob.len()) {
        Some((start, end)) => Answer::new(206, &blob[start..end])
            .with("Content-Range", format!("bytes {start}-{}/{}", end - 1, blob.len())),
        None => Answer::new(200, blob),
    }
}

fn digest(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}

fn is_layer(asked: &Asked) -> bool {
    asked.path.contains(digest(&Stored::new().layer).hex())
}

/// A registry where `fault` comes before what is right.
fn registry(fault: impl Fn(&Asked, &Stored) -> Option<Answer> + Send + Sync + 'static) -> Server {
    let stored = Stored::new();
    Server::start(move |asked| fault(asked, &stored).unwrap_or_else(|| stored.answer(asked)))
}

fn options() -> oci::Options {
    let timing = Timing {
        tries: TRIES,
        first_pause: Duration::from_millis(1),
        longest_pause: Duration::from_millis(500),
        total: Duration::from_secs(60),
        connect: Duration::from_secs(20),
        idle: Duration::from_millis(1500),
        slowest: 10_000,
    };
    let registry = Options { insecure: false, auth_files: vec![], timing };
    oci::Options { platform: None, registry }
}

fn open(server: &Server) -> Result<Image> {
    open_with(server, &options())
}

fn open_with(server: &Server, options: &oci::Options) -> Result<Image> {
    let name = Name::parse(&format!("{}/team/app:v1", server.host)).unwrap();
    oci::open(&oci::Reference::Registry(name), options)
}

fn layer(server: &Server) -> LayerBlob {
    open(server).unwrap().layers.remove(0)
}

/// The layer read from start to end.
fn streamed(layer: &LayerBlob) -> Result<Vec<u8>> {
    let mut bytes = vec![];
    layer.blob.stream()?.read_to_end(&mut bytes).map_err(Error::io)?;
    Ok(bytes)
}

#[track_caller]
fn is_whole(bytes: &[u8]) {
    assert!(bytes == Stored::new().layer, "{} bytes that are not the layer", bytes.len());
}

#[track_caller]
fn cause(error: &Error) -> &Cause {
    error.cause().unwrap_or_else(|| panic!("another cause: {error}"))
}

/// A status that is told after `tries`, with the words of the server behind it.
fn status(server: &Server, status: u16, said: &str, tries: u32) -> Cause {
    let last = Cause::Status { host: server.host.clone(), status, said: said.into() };
    if tries > 1 { Cause::Spent { tries, last: Box::new(last) } } else { last }
}
