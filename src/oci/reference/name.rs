//! Names of images in registries (the grammar of the Go package `distribution/reference`, which
//! docker, podman and skopeo share).

use std::fmt;

use crate::error::{Error, Kind, Result};
use crate::oci::Digest;

/// The registry that a name without a host means.
const DEFAULT_HOST: &str = "docker.io";
/// Where that registry keeps what has no folder.
const DEFAULT_FOLDER: &str = "library";
/// The tag that a name without one means.
const DEFAULT_TAG: &str = "latest";
/// Bytes of a host and a repository together at most.
const MAX_LEN: usize = 255;

/// The name of an image in a registry, in full.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    /// The registry, with the port if it has one.
    pub host: String,
    /// The repository in it.
    pub repository: String,
    /// The tag. One that stands beside a digest says nothing.
    pub tag: Option<String>,
    /// The digest of the manifest or index.
    pub digest: Option<Digest>,
}

impl Name {
    /// Takes `[HOST[:PORT]/]NAME[:TAG][@DIGEST]` apart, putting in what is left out. Beside a
    /// digest a tag is allowed, as in what Kubernetes prints, and left aside.
    ///
    /// # Errors
    /// [`Kind::Usage`] that says which part is wrong.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |why: &str| Error::new(Kind::Usage, format!("\"{text}\" {why}"));
        if text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(wrong("is an image ID, which registries do not know"));
        }
        let (rest, digest) =
            match text.split_once('@') {
                Some((rest, digest)) => (
                    rest,
                    Some(digest.parse::<Digest>().map_err(|error| {
                        Error::new(Kind::Usage, format!("\"{text}\": {error}"))
                    })?),
                ),
                None => (text, None),
            };
        let is_host = |part: &str| {
            part.contains(['.', ':'])
                || part == "localhost"
                || part.bytes().any(|b| b.is_ascii_uppercase())
        };
        let (host, path) = match rest.split_once('/') {
            Some((host, path)) if is_host(host) => (host, path),
            _ => (DEFAULT_HOST, rest),
        };
        let (path, tag) = match path.rsplit_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (path, None),
        };
        if !is_valid_host(host) {
            return Err(wrong("does not begin with the name of a host"));
        }
        let host = if host == "index.docker.io" { DEFAULT_HOST } else { host };
        let repository = match path.contains('/') || host != DEFAULT_HOST {
            true => path.to_owned(),
            false => format!("{DEFAULT_FOLDER}/{path}"),
        };
        if path.is_empty() {
            return Err(wrong("names no image"));
        }
        if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(wrong("has capital letters, which names in registries have not"));
        }
        if !repository.split('/').all(is_component) {
            return Err(wrong("is no name of an image"));
        }
        if host.len() + 1 + repository.len() > MAX_LEN {
            return Err(wrong("is longer than 255 letters"));
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(wrong("has a tag that is none"));
        }
        let tag = match (tag, &digest) {
            (None, None) => Some(DEFAULT_TAG),
            (tag, _) => tag,
        };
        Ok(Self { host: host.into(), repository, tag: tag.map(Into::into), digest })
    }

    /// What stands in a manifest's URL: the digest, or else the tag.
    pub fn reference(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.clone().unwrap_or_else(|| DEFAULT_TAG.into()),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

/// `name`, `name:port`, `[::1]:port`: letters, digits and hyphens in parts joined by dots.
fn is_valid_host(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    };
    if port.is_some_and(|port| port.parse::<u16>().is_err() || port.starts_with('+')) {
        return false;
    }
    if let Some(address) = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    name.split('.').all(|part| {
        !part.is_empty()
            && !part.starts_with('-')
            && !part.ends_with('-')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    })
}

/// Small letters and digits, joined by `.`, `_`, `__` or any number of `-`.
fn is_component(part: &str) -> bool {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    part.starts_with(is_word)
        && part.ends_with(is_word)
        && part.split(is_word).all(|joint| {
            matches!(joint, "" | "." | "_" | "__") || joint.bytes().all(|byte| byte == b'-')
        })
}

fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=128).contains(&tag.len())
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|byte| is_word(byte) || byte == b'.' || byte == b'-')
}
