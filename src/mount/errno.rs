//! The only map from our errors to the numbers programs see.

use fuser::Errno;

use crate::error::Kind;

/// The errno of a kind of failure. No catch-all arm: a new kind must choose.
pub(super) fn errno(kind: Kind) -> Errno {
    match kind {
        // What a disk says of a block it cannot read.
        Kind::Io | Kind::Corrupt | Kind::OutOfBounds => Errno::EIO,
        Kind::Unsupported => Errno::EOPNOTSUPP,
        // As the kernel's own encrypted files without their key.
        Kind::Encrypted => Errno::from_i32(libc::ENOKEY),
        Kind::Refused => Errno::EPERM,
        Kind::NotFound => Errno::ENOENT,
        Kind::NotADirectory => Errno::ENOTDIR,
        Kind::IsADirectory => Errno::EISDIR,
        Kind::Exists => Errno::EEXIST,
        Kind::NotEmpty => Errno::ENOTEMPTY,
        Kind::ReadOnly => Errno::EROFS,
        Kind::Denied => Errno::EACCES,
        Kind::NoSpace => Errno::ENOSPC,
        Kind::Usage => Errno::EINVAL,
    }
}

/// Whether a failure of this kind tells of damage or trouble, rather than answering a question.
pub(super) fn is_worth_a_line(kind: Kind) -> bool {
    match kind {
        Kind::Io
        | Kind::Corrupt
        | Kind::OutOfBounds
        | Kind::Unsupported
        | Kind::Encrypted
        | Kind::Refused
        | Kind::Denied
        | Kind::NoSpace => true,
        Kind::NotFound
        | Kind::NotADirectory
        | Kind::IsADirectory
        | Kind::Exists
        | Kind::NotEmpty
        | Kind::ReadOnly
        | Kind::Usage => false,
    }
}
