//! The config of an image: what it is for, how its program is run, and how it came to be (OCI image
//! specification, `config.md`; Docker's is the same).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::cause::Cause;
use super::digest::Digest;
use super::manifest::{MAX_LAYERS, json};
use super::platform::Platform;
use crate::error::{Result, ResultExt};

/// What is told about an image besides its layers. What the config leaves out is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Config {
    /// When it was made, RFC 3339.
    pub created: Option<String>,
    /// By whom.
    pub author: Option<String>,
    /// The processor, as Go names them.
    pub architecture: Option<String>,
    /// The operating system, as Go names them.
    pub os: Option<String>,
    /// The processor's variant, as `v7`.
    pub variant: Option<String>,
    /// How its program is run.
    #[serde(deserialize_with = "or_default")]
    pub config: Execution,
    /// The layers' digests once they are decompressed.
    #[serde(deserialize_with = "or_default")]
    pub rootfs: RootFs,
    /// The steps by which it was made, the first one first.
    #[serde(deserialize_with = "or_default")]
    pub history: Vec<History>,
}

/// How the program of an image is run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Execution {
    /// User, or user and group.
    pub user: Option<String>,
    /// `NAME=VALUE`.
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// The program.
    #[serde(deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    /// Its arguments, unless others are given.
    #[serde(deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    /// The folder it begins in.
    pub working_dir: Option<String>,
    /// What somebody wanted to be told.
    #[serde(deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    /// Ports it listens on, as `80/tcp`.
    #[serde(deserialize_with = "keys")]
    pub exposed_ports: Vec<String>,
    /// Folders it keeps data in.
    #[serde(deserialize_with = "keys")]
    pub volumes: Vec<String>,
    /// The signal that ends it.
    pub stop_signal: Option<String>,
}

/// The layers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RootFs {
    /// Their digests once they are decompressed, the lowest one first.
    #[serde(deserialize_with = "or_default")]
    pub diff_ids: Vec<String>,
}

/// One step by which an image was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct History {
    /// When, RFC 3339.
    pub created: Option<String>,
    /// By which command.
    pub created_by: Option<String>,
    /// By whom.
    pub author: Option<String>,
    /// What was said about it.
    pub comment: Option<String>,
    /// Whether it made no layer.
    #[serde(deserialize_with = "or_default")]
    pub empty_layer: bool,
}

/// What Go writes for something empty is often `null`.
fn or_default<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: Deserialize<'de> + Default,
    D: serde::Deserializer<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// The keys of a map that stands for a set.
fn keys<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let map: BTreeMap<String, serde::de::IgnoredAny> = or_default(deserializer)?;
    Ok(map.into_keys().collect())
}

impl Config {
    /// The config that `bytes` are.
    ///
    /// # Errors
    /// [`crate::error::Kind::Corrupt`] for anything else.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let config: Self = json("config", bytes)?;
        let count = config.rootfs.diff_ids.len();
        if count > MAX_LAYERS {
            return Err(Cause::TooMany { what: "layers", count, most: MAX_LAYERS }.into());
        }
        Ok(config)
    }

    /// The layers' digests once they are decompressed, the lowest one first.
    ///
    /// # Errors
    /// [`crate::error::Kind::Corrupt`] if one is no digest.
    pub fn diff_ids(&self) -> Result<Vec<Digest>> {
        self.rootfs.diff_ids.iter().map(|id| id.parse::<Digest>().within(|| "config")).collect()
    }

    /// What it runs on, if the config says so.
    pub fn platform(&self) -> Option<Platform> {
        let said = |field: &Option<String>| field.clone().filter(|text| !text.is_empty());
        Some(Platform {
            os: said(&self.os)?,
            architecture: said(&self.architecture)?,
            variant: said(&self.variant),
        })
    }
}
