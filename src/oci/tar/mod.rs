//! Tars, as the layers of container images are (OCI image specification, "Image Layer Filesystem
//! Changeset"): read in every dialect there is, written in one.

mod entry;
mod header;
mod read;
mod write;

pub use entry::{Entry, EntryKind, Run};
pub use read::Reader;
pub use write::{Member, MemberKind, Writer};

/// What the name of a file begins with that stands for one removed.
pub const WHITEOUT: &[u8] = b".wh.";
/// The file that stands for everything the layers below have in its folder.
pub const OPAQUE: &[u8] = b".wh..wh..opq";
