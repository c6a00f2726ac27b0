//! Where the objects of a store lie: written once, whole, never changed.

mod bucket;
mod cached;
mod files;
mod folder;
mod location;

use std::fmt;
use std::ops::Range;
use std::time::SystemTime;

use super::id::Id;
use crate::error::Result;

pub use bucket::{Bucket, BucketOptions, Cause as BucketCause, Traffic};
pub use cached::{Cached, PieceCache, PieceCount};
pub use files::{Files, Host};
pub use folder::Folder;
pub use location::Location;

/// The name of an object; `docs/store-format.md`, "Objects".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Object {
    /// What kind of store it is.
    Config,
    /// Blocks and map pages.
    Pack(Id),
    /// Where blocks and pages lie.
    Index(Id),
    /// A part of a large index.
    Part(Id),
    /// A snapshot record.
    Snapshot(Id),
    /// That somebody is at work.
    Lease(Id),
    /// Which packs are to go.
    Condemned(Id),
    /// What opens an encrypted store.
    Key(Id),
    /// Who says that a snapshot is theirs.
    Signature(Id),
    /// How far a snapshot has come that is made.
    Draft(Id),
}

/// What sort of object, for listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    /// [`Object::Pack`].
    Packs,
    /// [`Object::Index`].
    Indexes,
    /// [`Object::Part`].
    Parts,
    /// [`Object::Snapshot`].
    Snapshots,
    /// [`Object::Lease`].
    Leases,
    /// [`Object::Condemned`].
    Condemned,
    /// [`Object::Key`].
    Keys,
    /// [`Object::Signature`].
    Signatures,
    /// [`Object::Draft`].
    Drafts,
}

impl Sort {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Packs,
        Self::Indexes,
        Self::Parts,
        Self::Snapshots,
        Self::Leases,
        Self::Condemned,
        Self::Keys,
        Self::Signatures,
        Self::Drafts,
    ];
}

impl Sort {
    /// Whether an object is of this sort.
    pub fn is_of(self, object: Object) -> bool {
        match object {
            Object::Config => false,
            Object::Pack(_) => self == Self::Packs,
            Object::Index(_) => self == Self::Indexes,
            Object::Part(_) => self == Self::Parts,
            Object::Snapshot(_) => self == Self::Snapshots,
            Object::Lease(_) => self == Self::Leases,
            Object::Condemned(_) => self == Self::Condemned,
            Object::Key(_) => self == Self::Keys,
            Object::Signature(_) => self == Self::Signatures,
            Object::Draft(_) => self == Self::Drafts,
        }
    }

    /// The object of this sort that is called `id`.
    pub fn object(self, id: Id) -> Object {
        match self {
            Self::Packs => Object::Pack(id),
            Self::Indexes => Object::Index(id),
            Self::Parts => Object::Part(id),
            Self::Snapshots => Object::Snapshot(id),
            Self::Leases => Object::Lease(id),
            Self::Condemned => Object::Condemned(id),
            Self::Keys => Object::Key(id),
            Self::Signatures => Object::Signature(id),
            Self::Drafts => Object::Draft(id),
        }
    }
}

/// An object that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    /// Its id.
    pub id: Id,
    /// Its length in bytes.
    pub len: u64,
    /// When it was written, by the clock of whoever keeps it.
    pub written: SystemTime,
}

/// A place for objects.
///
/// Calls come from several threads at once, and from other processes and machines beside.
pub trait Objects: Send + Sync + fmt::Debug {
    /// What messages call the store.
    fn name(&self) -> String;

    /// The length of an object in bytes.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::error::Kind::NotFound) if it is not there, and the host's.
    fn len(&self, object: Object) -> Result<u64>;

    /// Fills `buf` with the bytes at `offset`: all of it, or an error.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::error::Kind::NotFound) if the object is not there,
    /// [`Kind::Corrupt`](crate::error::Kind::Corrupt) if it ends before, and the host's.
    fn read_at(&self, object: Object, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// Makes an object of `parts`, one behind the other. Once this returns it is on stable storage,
    /// under its name and whole; a lease need not outlive the machine. One of the same name is the same object.
    ///
    /// # Errors
    /// [`Kind::NoSpace`](crate::error::Kind::NoSpace), and the host's: nothing of it is left then.
    fn put(&self, object: Object, parts: &[&[u8]]) -> Result<()>;

    /// The same of bytes that nobody needs any more: a place that would have to copy them takes them.
    ///
    /// # Errors
    /// As [`Objects::put`].
    fn put_owned(&self, object: Object, bytes: Vec<u8>) -> Result<()> {
        self.put(object, &[&bytes])
    }

    /// Whether an object is so long on its way that a thread that puts one is no thread at work.
    fn is_far(&self) -> bool {
        false
    }

    /// All objects of a sort, in no order.
    ///
    /// # Errors
    /// The host's.
    fn list(&self, sort: Sort) -> Result<Vec<Listed>>;

    /// Removes an object. That it is not there is no failure.
    ///
    /// # Errors
    /// The host's.
    fn remove(&self, object: Object) -> Result<()>;

    /// Removes what those left who began to write before `then` and never ended, by the clock of whoever
    /// keeps the objects; how much that was.
    ///
    /// # Errors
    /// The host's.
    fn clear_unfinished(&self, then: SystemTime) -> Result<u64>;
    /// Drops what is kept of these bytes between here and where they lie, as they are not what they should be.
    /// Whether anything was: then reading them again may help.
    fn forget(&self, _object: Object, _range: Range<u64>) -> bool {
        false
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config => f.write_str("config"),
            Self::Pack(id) => write!(f, "packs/{:02x}/{id}", id.0[0]),
            Self::Index(id) => write!(f, "index/{id}"),
            Self::Part(id) => write!(f, "parts/{id}"),
            Self::Snapshot(id) => write!(f, "snapshots/{id}"),
            Self::Lease(id) => write!(f, "leases/{id}"),
            Self::Condemned(id) => write!(f, "condemned/{id}"),
            Self::Key(id) => write!(f, "keys/{id}"),
            Self::Signature(id) => write!(f, "signatures/{id}"),
            Self::Draft(id) => write!(f, "drafts/{id}"),
        }
    }
}
