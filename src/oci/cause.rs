//! Everything that is found wrong with an image's documents, exactly.

use thiserror::Error;

use super::digest::Digest;
use crate::error::{Error, Kind};

/// Why an image, or a part of it, cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum Cause {
    #[error("\"{0}\" is no digest")]
    DigestSyntax(String),
    #[error("digest algorithm \"{0}\"")]
    DigestAlgorithm(String),
    #[error("{what} {named} has other contents: their digest is {found}")]
    Digest { what: &'static str, named: Digest, found: Digest },
    #[error("{what} {digest} is {found} bytes long, its descriptor says {named}")]
    Size { what: &'static str, digest: Digest, named: u64, found: u64 },
    #[error("{what} of {len} bytes, more than {most}")]
    TooLarge { what: &'static str, len: u64, most: u64 },
    #[error("{count} {what}, more than {most}")]
    TooMany { what: &'static str, count: usize, most: usize },
    #[error("{what} is not the JSON it should be: {why}")]
    Json { what: &'static str, why: String },
    #[error("manifest of schema version {0}")]
    SchemaVersion(u64),
    #[error("manifest of schema version 1, which Docker gave up")]
    Schema1,
    #[error("is both an index and a manifest")]
    Ambiguous,
    #[error("is neither an index nor a manifest")]
    Shapeless,
    #[error("manifest calls itself {itself}, and was announced as {announced}")]
    MediaTypes { itself: String, announced: String },
    #[error("manifest of type {0}")]
    ManifestType(String),
    #[error("an artifact of type {0}, not an image")]
    Artifact(String),
    #[error("layer {number} is {media_type}, which is kept outside the image")]
    ForeignLayer { number: usize, media_type: String },
    #[error("layer {number} is {media_type}")]
    EncryptedLayer { number: usize, media_type: String },
    #[error("layer {number} is {media_type}, a type that is not known")]
    LayerType { number: usize, media_type: String },
    #[error("manifest has {layers} layers, its config {diff_ids}")]
    LayerCount { layers: usize, diff_ids: usize },
    #[error("indexes lie {0} deep in each other")]
    IndexDepth(usize),
    #[error("no image in it")]
    Empty,
    #[error("several images in it ({0})")]
    Several(String),
    #[error("no image \"{name}\" in it; there is {there}")]
    NoSuchImage { name: String, there: String },
    #[error("no image number {number} in it, the last one is {last}")]
    NoSuchNumber { number: usize, last: usize },
    #[error("no image for {wanted} in it; there is {there}")]
    Platform { wanted: String, there: String },
    #[error("image is for {found}, not {wanted}")]
    OtherPlatform { wanted: String, found: String },
    #[error("layout version {0}")]
    LayoutVersion(String),
    #[error("{0} is missing")]
    Missing(String),
    #[error("{0} is a link that leads outside")]
    Outside(String),
    #[error("header of the member at {at:#x} of the archive {why}")]
    ArchiveHeader { at: u64, why: &'static str },
    #[error("member at {at:#x} of the archive claims {len} bytes, {room} are left")]
    ArchiveCut { at: u64, len: u64, room: u64 },
    #[error("{0} in the archive is stored sparse")]
    ArchiveSparse(String),
    #[error("links in the archive lead in a circle at {0}")]
    ArchiveLinks(String),
    #[error("the archive is compressed ({0})")]
    ArchiveCompressed(&'static str),
    #[error("layers lie in a circle at {0}")]
    ParentCircle(String),
}

impl Cause {
    /// What sort of failure this is to the rest of the program.
    fn kind(&self) -> Kind {
        match self {
            Cause::DigestAlgorithm(_)
            | Cause::SchemaVersion(_)
            | Cause::Schema1
            | Cause::ManifestType(_)
            | Cause::Artifact(_)
            | Cause::ForeignLayer { .. }
            | Cause::LayerType { .. }
            | Cause::LayoutVersion(_)
            | Cause::ArchiveSparse(_)
            | Cause::ArchiveCompressed(_) => Kind::Unsupported,
            Cause::EncryptedLayer { .. } => Kind::Encrypted,
            Cause::Empty
            | Cause::NoSuchImage { .. }
            | Cause::NoSuchNumber { .. }
            | Cause::Platform { .. }
            | Cause::OtherPlatform { .. } => Kind::NotFound,
            Cause::Several(_) => Kind::Usage,
            Cause::Outside(_) => Kind::Refused,
            _ => Kind::Corrupt,
        }
    }
}

impl From<Cause> for Error {
    fn from(cause: Cause) -> Self {
        Error::caused_by(cause.kind(), cause)
    }
}

/// Names for a message: the first few, and how many more there are.
pub(super) fn listed(names: impl IntoIterator<Item = String>) -> String {
    const SHOWN: usize = 20;
    let mut names = names.into_iter();
    let shown: Vec<_> =
        names.by_ref().take(SHOWN).map(|name| name.chars().take(200).collect::<String>()).collect();
    match (shown.is_empty(), names.count()) {
        (true, _) => "none".into(),
        (false, 0) => shown.join(", "),
        (false, more) => format!("{} and {more} more", shown.join(", ")),
    }
}
