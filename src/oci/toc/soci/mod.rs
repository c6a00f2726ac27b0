//! SOCI: an index beside an image, with a ztoc for each of its larger layers
//! (awslabs/soci-snapshotter, `docs/`). Layers stay as they are.
//!
//! An index of the second kind is named by the manifest of the image and so vouched for by it. One of
//! the first kind names the image, and anyone who may write to the repository can put it there: it is
//! used only where the image is asked for by a tag, as then the registry is trusted to say what the
//! image is.

mod find;
mod flatbuffer;
mod spans;
mod ztoc;

pub(in crate::oci) use find::{Indexed, MANIFEST_ANNOTATION, find};
pub(super) use spans::Spans;
pub(super) use ztoc::parse;
