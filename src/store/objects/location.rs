//! Where a store lies, as a person names it: a folder, or `s3://bucket[/prefix]`.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Bucket, BucketOptions, Cached, Folder, Objects, PieceCache};
use crate::error::{Error, Kind, Result};

/// What the name of a bucket begins with.
const SCHEME: &str = "s3://";

/// Where a store lies, or is to lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A folder.
    Folder(PathBuf),
    /// A bucket of object storage.
    Bucket {
        /// The bucket.
        name: String,
        /// What the names of all objects begin with, without a slash around it; may be empty.
        prefix: String,
    },
}

impl Location {
    /// Takes a name apart.
    ///
    /// # Errors
    /// [`Kind::Usage`] for a bucket that cannot be.
    pub fn parse(text: &OsStr) -> Result<Self> {
        let Some(rest) = text.as_bytes().strip_prefix(SCHEME.as_bytes()) else {
            return Ok(Self::Folder(text.into()));
        };
        let wrong = |what: &str| {
            let message = format!("{}: {what}", text.display());
            Err(Error::new(Kind::Usage, message).with_hint("as s3://bucket or s3://bucket/prefix"))
        };
        let Ok(rest) = std::str::from_utf8(rest) else { return wrong("is not in UTF-8") };
        let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        // What servers allow differs; what would change the meaning of a URL is nowhere allowed.
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        if name.is_empty() || !name.chars().all(is_allowed) {
            return wrong("names no bucket");
        }
        let prefix = prefix.trim_end_matches('/');
        let is_part = |part: &str| !matches!(part, "" | "." | "..");
        let sound = prefix.is_empty() || prefix.split('/').all(is_part);
        if !sound || prefix.contains(char::is_control) {
            return wrong("a prefix is made of names with one slash between them");
        }
        Ok(Self::Bucket { name: name.to_owned(), prefix: prefix.to_owned() })
    }

    /// Whether a path, as it was written, names a bucket.
    pub fn is_bucket(path: &Path) -> bool {
        path.as_os_str().as_bytes().starts_with(SCHEME.as_bytes())
    }

    /// Whether it is a bucket's, or a store lies there already.
    pub fn may_be_store(path: &Path) -> bool {
        Self::is_bucket(path) || Folder::is_store(path)
    }

    /// The objects there, which need not be a store.
    ///
    /// # Errors
    /// [`Kind::Usage`] for options that cannot be.
    pub fn objects(&self, options: &BucketOptions) -> Result<Arc<dyn Objects>> {
        Ok(match self {
            Self::Folder(dir) => Arc::new(Folder::new(dir)),
            Self::Bucket { name, prefix } => {
                let bucket = Bucket::new(name, prefix, options)?;
                let disk = options.cache_dir.as_deref().and_then(|dir| {
                    let opened = PieceCache::open(dir, options.cache_limit);
                    opened.map_err(|error| log::warn!("{error}: what is read is not kept")).ok()
                });
                Arc::new(Cached::new(bucket, disk))
            }
        })
    }

    /// The same with nothing between it and whoever reads, to look for damage.
    ///
    /// # Errors
    /// As [`Location::objects`].
    pub fn bare_objects(&self, options: &BucketOptions) -> Result<Arc<dyn Objects>> {
        Ok(match self {
            Self::Folder(dir) => Arc::new(Folder::new(dir)),
            Self::Bucket { name, prefix } => Arc::new(Bucket::new(name, prefix, options)?),
        })
    }

    /// The same place, ready to become a new store.
    ///
    /// # Errors
    /// [`Kind::NotEmpty`] if something lies there, and the host's.
    pub fn make(&self, options: &BucketOptions) -> Result<Arc<dyn Objects>> {
        Ok(match self {
            Self::Folder(dir) => Arc::new(Folder::make(dir)?),
            Self::Bucket { name, prefix } => Arc::new(Bucket::make(name, prefix, options)?),
        })
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(dir) => write!(f, "{}", dir.display()),
            Self::Bucket { name, prefix } if prefix.is_empty() => write!(f, "{SCHEME}{name}"),
            Self::Bucket { name, prefix } => write!(f, "{SCHEME}{name}/{prefix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(name: &str, prefix: &str) -> Location {
        Location::Bucket { name: name.to_owned(), prefix: prefix.to_owned() }
    }

    #[test]
    fn what_is_no_bucket_is_a_folder() {
        for text in ["st", "/srv/st", "./s3:/b", "S3://b", "s3:b", "https://b"] {
            assert_eq!(Location::parse(text.as_ref()).unwrap(), Location::Folder(text.into()));
        }
    }

    #[test]
    fn buckets_and_prefixes_are_taken_apart() {
        for (text, expected, shown) in [
            ("s3://b", bucket("b", ""), "s3://b"),
            ("s3://b/", bucket("b", ""), "s3://b"),
            ("s3://my.b-1/p", bucket("my.b-1", "p"), "s3://my.b-1/p"),
            ("s3://b/p q/é//", bucket("b", "p q/é"), "s3://b/p q/é"),
        ] {
            let location = Location::parse(text.as_ref()).unwrap();
            assert_eq!(location, expected, "{text}");
            assert_eq!(location.to_string(), shown);
        }
    }

    #[test]
    fn what_can_be_no_bucket_is_refused() {
        for text in ["s3://", "s3:///p", "s3://b?x/p", "s3://b/p//q", "s3://b/../q", "s3://b/a\nb"]
        {
            let error = Location::parse(text.as_ref()).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage, "{text}");
        }
    }
}
