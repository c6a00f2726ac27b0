//! What the kernel's numbers in a request mean.

use fuser::{OpenAccMode, OpenFlags, RenameFlags, Request};

use crate::error::{Error, Kind, Result};
use crate::mount::inode::permissions;
use crate::tree::{Allocate, Caller, Rename, SetXattr};

pub(super) fn caller(req: &Request, umask: u32) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), umask: permissions(umask) & 0o777 }
}

pub(super) fn writes(flags: OpenFlags) -> bool {
    flags.acc_mode() != OpenAccMode::O_RDONLY
}

pub(super) fn how_to_rename(flags: RenameFlags) -> Result<Rename> {
    if flags.is_empty() {
        Ok(Rename::Replace)
    } else if flags == RenameFlags::RENAME_NOREPLACE {
        Ok(Rename::NoReplace)
    } else if flags == RenameFlags::RENAME_EXCHANGE {
        Ok(Rename::Exchange)
    } else if flags == RenameFlags::RENAME_WHITEOUT {
        Ok(Rename::Whiteout)
    } else {
        Err(Error::new(Kind::Usage, "these flags of rename together"))
    }
}

pub(super) fn how_to_allocate(mode: i32) -> Result<Allocate> {
    let keep = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
    match mode & !libc::FALLOC_FL_KEEP_SIZE {
        0 => Ok(Allocate::Reserve { grow: !keep }),
        libc::FALLOC_FL_PUNCH_HOLE if keep => Ok(Allocate::Punch),
        libc::FALLOC_FL_ZERO_RANGE => Ok(Allocate::Zero { grow: !keep }),
        _ => Err(Error::new(Kind::Unsupported, "this way to fallocate")),
    }
}

pub(super) fn how_to_set(flags: i32) -> Result<SetXattr> {
    match flags {
        0 => Ok(SetXattr::Any),
        libc::XATTR_CREATE => Ok(SetXattr::Create),
        libc::XATTR_REPLACE => Ok(SetXattr::Replace),
        _ => Err(Error::new(Kind::Usage, "these flags of setxattr")),
    }
}
