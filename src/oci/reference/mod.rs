//! References to layered images, as skopeo writes them (containers-transports(5)), and paths to
//! what is one by its contents.

mod name;
mod probe;
pub(super) use probe::compressed;

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};
pub use name::Name;

/// What layered image to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// A folder in the OCI image layout: `oci:DIR[:IMAGE]`.
    Layout {
        /// The folder.
        dir: PathBuf,
        /// Which of its images.
        image: Selection,
    },
    /// A tar of such a folder: `oci-archive:FILE[:IMAGE]`.
    OciArchive {
        /// The tar.
        file: PathBuf,
        /// Which of its images.
        image: Selection,
    },
    /// What `docker save` makes: `docker-archive:FILE[:NAME]`.
    DockerArchive {
        /// The tar.
        file: PathBuf,
        /// Which of its images; names are in full, with a tag.
        image: Selection,
    },
    /// An image in a registry: `docker://HOST[:PORT]/NAME[:TAG|@DIGEST]`.
    Registry(Name),
    /// A tar of a root filesystem, which is an image of one layer.
    Tarball {
        /// The tar, compressed or not.
        file: PathBuf,
    },
}

/// Which image of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// The only one there is.
    Only,
    /// The one of that name.
    Named(String),
    /// The one in that place, counted from 0: `@N`.
    Number(usize),
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selection::Only => Ok(()),
            Selection::Named(name) => write!(f, ":{name}"),
            Selection::Number(number) => write!(f, ":@{number}"),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::Layout { dir, image } => write!(f, "oci:{}{image}", dir.display()),
            Reference::OciArchive { file, image } => {
                write!(f, "oci-archive:{}{image}", file.display())
            }
            Reference::DockerArchive { file, image } => {
                write!(f, "docker-archive:{}{image}", file.display())
            }
            Reference::Registry(name) => write!(f, "docker://{name}"),
            Reference::Tarball { file } => write!(f, "{}", file.display()),
        }
    }
}

impl Reference {
    /// The layered image that `text` means, or `None` for a reference of another kind: a disk
    /// image, a store, a URL, a path to nothing. A word of skopeo's before a colon decides; then
    /// what lies at the path, of which only the beginning is read.
    ///
    /// # Errors
    /// [`Kind::Usage`] for what begins as a layered image's reference and is none, and
    /// [`Kind::Unsupported`] for an archive of images that is compressed.
    pub fn parse(text: &OsStr) -> Result<Option<Self>> {
        match Self::parse_words(text) {
            Some(parsed) => {
                let told = |error: Error| error.within(text.to_string_lossy().into_owned());
                parsed.map(Some).map_err(told)
            }
            None => probe::probe(Path::new(text)),
        }
    }

    /// As [`Reference::parse`], for what says its kind; nothing is read.
    fn parse_words(text: &OsStr) -> Option<Result<Self>> {
        let bytes = text.as_bytes();
        if let Some(rest) = bytes.strip_prefix(b"docker://") {
            return Some(text_of(rest).and_then(Name::parse).map(Self::Registry));
        }
        let at = bytes.iter().position(|&byte| byte == b':')?;
        let (word, rest) = (bytes.get(..at)?, bytes.get(at + 1..)?);
        if !matches!(word, b"oci" | b"oci-archive" | b"docker-archive") || rest.starts_with(b":") {
            // `oci::x` is a snapshot of something called `oci`.
            return None;
        }
        Some(Self::local(word, rest))
    }

    fn local(word: &[u8], rest: &[u8]) -> Result<Self> {
        // As in skopeo, a path here has no colon.
        let mut parts = rest.splitn(2, |&byte| byte == b':');
        let path = parts.next().unwrap_or_default();
        if path.is_empty() {
            return Err(usage("names no path"));
        }
        let path = PathBuf::from(OsStr::from_bytes(path));
        let image = text_of(parts.next().unwrap_or_default())?;
        let image = match (image.strip_prefix('@'), image) {
            (_, "") => Selection::Only,
            (Some(number), _) => {
                let number = number.parse().map_err(|_| usage("after @ goes a number, from 0"))?;
                Selection::Number(number)
            }
            (None, name) if word == b"docker-archive" => {
                let name = Name::parse(name)?;
                if name.digest.is_some() {
                    return Err(usage("an archive of docker save knows names, not digests"));
                }
                Selection::Named(name.to_string())
            }
            (None, name) if is_layout_name(name) => Selection::Named(name.into()),
            _ => return Err(usage(format!("\"{image}\" is no name of an image in a layout"))),
        };
        Ok(match word {
            b"oci" => Self::Layout { dir: path, image },
            b"oci-archive" => Self::OciArchive { file: path, image },
            _ => Self::DockerArchive { file: path, image },
        })
    }
}

fn usage(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(Kind::Usage, message)
}

fn text_of(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| usage("the name of an image is not in UTF-8"))
}

/// Whether it is a name by the grammar of `org.opencontainers.image.ref.name` (OCI image
/// specification, `annotations.md`): words of letters and digits, joined by one of `-._:@+` or by
/// `--`, in parts joined by `/`.
fn is_layout_name(name: &str) -> bool {
    let is_part = |part: &str| {
        let bytes = part.as_bytes();
        let edges = [bytes.first(), bytes.last()];
        edges.iter().all(|edge| edge.is_some_and(u8::is_ascii_alphanumeric))
            && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._:@+".contains(byte))
            && part
                .split(|c: char| c.is_ascii_alphanumeric())
                .all(|joint| joint.len() < 2 || joint == "--")
    };
    name.split('/').all(is_part)
}

#[cfg(test)]
mod tests;
