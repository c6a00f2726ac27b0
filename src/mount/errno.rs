//! The only map from our errors to the numbers programs see.

use std::io;

use fuser::Errno;

use crate::error::{Error, Kind};

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

/// The errno of a change that failed: the host's own where the host refused it, as its `EXDEV`,
/// `EMLINK` or `ENODATA` say what no kind of ours does.
pub(super) fn change_errno(error: &Error) -> Errno {
    match error.cause::<io::Error>().and_then(io::Error::raw_os_error) {
        // A server that has gone, or a request that is not understood, is not what happened.
        Some(libc::ENOSYS | libc::ENOTCONN) | None => errno(error.kind()),
        Some(raw) => Errno::from_i32(raw),
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

/// Whether a change that failed tells of damage or trouble. Most are plain answers: a file that is
/// there already, an attribute that is not.
pub(super) fn is_trouble(error: &Error) -> bool {
    match error.cause::<io::Error>().and_then(io::Error::raw_os_error) {
        Some(raw) => matches!(raw, libc::EIO | libc::ENOSPC | libc::EDQUOT | libc::EUCLEAN),
        None => matches!(
            error.kind(),
            Kind::Io | Kind::Corrupt | Kind::OutOfBounds | Kind::Encrypted | Kind::NoSpace
        ),
    }
}
