//! Platforms, and which image of an index is for one: as containerd chooses (its package
//! `platforms`), which the OCI image specification leaves open.

use std::fmt;
use std::str::FromStr;

use super::cause::{Cause, listed};
use super::manifest::Descriptor;
use crate::error::{Error, Kind, Result};

/// What an image runs on, in the words of Go: `linux/arm64/v8`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// The operating system.
    pub os: String,
    /// The processor.
    pub architecture: String,
    /// The processor's variant.
    pub variant: Option<String>,
}

impl Platform {
    /// This machine's. Its variant is left to the normal one, as a look at an image does not run it.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: None }.normal()
    }

    /// The same platform under the names that are usual for it.
    fn normal(&self) -> Self {
        let os = match &*self.os.to_ascii_lowercase() {
            "macos" => "darwin".into(),
            os => os.to_owned(),
        };
        let architecture = self.architecture.to_ascii_lowercase();
        let variant = self.variant.as_deref().unwrap_or_default().to_ascii_lowercase();
        let (architecture, variant) = match (&*architecture, &*variant) {
            ("i386" | "i486" | "i586" | "i686" | "386", _) => ("386", ""),
            ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
            ("x86_64" | "x86-64" | "amd64", variant) => ("amd64", variant),
            ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
            ("aarch64" | "arm64", "9" | "9.0" | "v9.0") => ("arm64", "v9"),
            ("aarch64" | "arm64", variant) => ("arm64", variant),
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            ("arm", "" | "7") => ("arm", "v7"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "6") => ("arm", "v6"),
            ("arm", "8") => ("arm", "v8"),
            (architecture, variant) => (architecture, variant),
        };
        Self {
            os,
            architecture: architecture.into(),
            variant: Some(variant.to_owned()).filter(|variant| !variant.is_empty()),
        }
    }

    /// What runs on this platform, the best first: an older variant, or what a 64-bit processor
    /// runs of its 32-bit forebear.
    fn runs(&self) -> Vec<Self> {
        let wanted = self.normal();
        let of = |architecture: &str, variant: Option<&str>| {
            let (os, architecture) = (wanted.os.clone(), architecture.into());
            Self { os, architecture, variant: variant.map(Into::into) }.normal()
        };
        let level = |variant: &str| variant.strip_prefix('v')?.parse::<u8>().ok();
        let older = |architecture: &str, from: u8, to: u8| {
            (to..from).rev().map(|level| of(architecture, Some(&format!("v{level}")))).collect()
        };
        let variant = wanted.variant.as_deref();
        let rest: Vec<Self> = match (&*wanted.architecture, variant) {
            ("amd64", variant) => {
                let level = variant.and_then(level).filter(|level| *level <= 9).unwrap_or(1);
                let mut rest: Vec<Self> = older("amd64", level, 1);
                rest.push(of("386", None));
                rest
            }
            ("arm", Some(variant)) => {
                older("arm", level(variant).filter(|level| *level <= 9).unwrap_or(5), 5)
            }
            ("arm64", variant) => {
                let mut rest = if variant.is_some() { vec![of("arm64", None)] } else { vec![] };
                rest.push(of("arm", Some("v8")));
                rest.extend::<Vec<Self>>(older("arm", 8, 5));
                rest
            }
            _ => vec![],
        };
        let mut runs = vec![wanted];
        runs.extend(rest);
        runs
    }

    /// Whether what is for `other` runs here.
    pub(super) fn fits(&self, other: &Self) -> bool {
        self.runs().contains(&other.normal())
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Platform {
    type Err = Error;

    /// Takes `OS/ARCHITECTURE[/VARIANT]`.
    fn from_str(text: &str) -> Result<Self> {
        let is_word = |part: &&str| {
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            !part.is_empty() && part.bytes().all(plain)
        };
        let parts: Vec<_> = text.split('/').collect();
        match (parts.iter().all(is_word), &*parts) {
            (true, &[os, architecture]) => {
                Ok(Self { os: os.into(), architecture: architecture.into(), variant: None })
            }
            (true, &[os, architecture, variant]) => {
                let variant = Some(variant.into());
                Ok(Self { os: os.into(), architecture: architecture.into(), variant })
            }
            _ => {
                let message = format!("platform \"{text}\" is not OS/ARCHITECTURE[/VARIANT]");
                Err(Error::new(Kind::Usage, message).with_hint("as linux/arm64 or linux/arm/v7"))
            }
        }
    }
}

/// The image of `manifests` for the platform that is wanted, or else for the host.
///
/// Where only one image is there and none is asked for, it is that, whatever it runs on: to look
/// into it nothing of it needs to run.
///
/// # Errors
/// [`Kind::NotFound`] that lists what there is.
pub(super) fn choose<'a>(
    wanted: Option<&Platform>,
    manifests: &'a [Descriptor],
) -> Result<&'a Descriptor> {
    let images: Vec<_> = manifests.iter().filter(|image| !image.is_attestation()).collect();
    match (&*images, wanted) {
        ([], _) => return Err(Cause::Empty.into()),
        (&[only], None) => return Ok(only),
        // Its config says what it is for, and is held against what is wanted.
        (&[only], Some(_)) if only.platform.is_none() => return Ok(only),
        _ => {}
    }
    let wanted = wanted.cloned().unwrap_or_else(Platform::host);
    for candidate in wanted.runs() {
        let is_it = |image: &&&Descriptor| {
            image.platform.as_ref().is_some_and(|platform| platform.normal() == candidate)
        };
        if let Some(image) = images.iter().find(is_it) {
            return Ok(image);
        }
    }
    let there = listed(images.iter().map(|image| match &image.platform {
        Some(platform) => platform.to_string(),
        None => "one that says no platform".into(),
    }));
    let cause = Cause::Platform { wanted: wanted.to_string(), there };
    Err(Error::from(cause).with_hint("--platform OS/ARCHITECTURE chooses"))
}

#[cfg(test)]
mod tests;
