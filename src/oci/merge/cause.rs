//! Everything that is wrong with what layers say of each other, exactly.

use thiserror::Error;

use super::apply::shown;
use crate::error::{Error, Kind};

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(super) enum Cause {
    #[error("{0} layers, more than {1}")]
    Layers(usize, usize),
    #[error("whiteout that names nothing")]
    Whiteout,
    #[error("the root is no folder here")]
    Root,
    #[error("\"{0}\" on the way is no folder")]
    Parent(String),
    #[error("more than {0} symbolic links on the way")]
    Loop(u32),
    #[error("hard link to \"{0}\", which is not there")]
    NoTarget(String),
    #[error("hard link to the folder \"{0}\"")]
    FolderTarget(String),
    #[error("tar of {0:#x} bytes where its index tells of {1:#x}")]
    Data(u64, u64),
    #[error("more than {0} {1}")]
    Budget(u64, &'static str),
}

impl From<Cause> for Error {
    fn from(cause: Cause) -> Self {
        Error::caused_by(Kind::Corrupt, cause)
    }
}

impl Cause {
    /// The error that it is at `path`.
    pub(super) fn at(self, path: &[u8]) -> Error {
        Error::from(self).within(shown(path))
    }
}
