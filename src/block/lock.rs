//! The locks by which programs that write images keep out of each other's way.
//!
//! They are QEMU's (`docs/system/images.rst` of QEMU, "Image file locking"; `block/file-posix.c`):
//! who opens an image takes a shared lock on byte 100 + n for each permission n it uses, and on
//! byte 200 + n for each it does not grant to others; and asks, without taking it, whether an
//! exclusive lock could be had on the bytes that would contradict. The locks belong to the open
//! file, not to the process, and vanish with it, however it ends.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::error::{Error, Kind, Result};

const USED: i64 = 100;
const NOT_GRANTED: i64 = 200;

/// Permissions, by QEMU's numbers.
const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// Locks `file` as one that is written and that nobody else may write.
///
/// # Errors
/// [`Kind::Refused`] if somebody has it open in a way that contradicts. Where the host has no such
/// locks, that is only logged.
pub(super) fn lock_for_writing(file: &File) -> Result<()> {
    let taken =
        [USED + READ, USED + WRITE, USED + RESIZE, NOT_GRANTED + WRITE, NOT_GRANTED + RESIZE];
    for byte in taken {
        if let Err(error) = lock(file, libc::F_OFD_SETLK, libc::F_RDLCK, byte) {
            return match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EACCES) => Err(in_use()),
                _ => {
                    log::warn!(
                        "the host cannot lock the file ({error}): nothing else may write it"
                    );
                    Ok(())
                }
            };
        }
    }
    let contradicting = [
        NOT_GRANTED + READ,
        NOT_GRANTED + WRITE,
        NOT_GRANTED + RESIZE,
        USED + WRITE,
        USED + RESIZE,
    ];
    for byte in contradicting {
        match lock(file, libc::F_OFD_GETLK, libc::F_WRLCK, byte) {
            Ok(kind) if kind == libc::F_UNLCK => {}
            _ => return Err(in_use()),
        }
    }
    Ok(())
}

fn in_use() -> Error {
    Error::new(Kind::Refused, "is in use by another program that writes or guards it")
        .with_hint("end the strata, QEMU or qemu-nbd that has it open; `lslocks` names the process")
}

/// One `fcntl` on one byte; the kind of lock that the kernel answers with.
fn lock(file: &File, command: i32, kind: i32, byte: i64) -> io::Result<i32> {
    let mut request = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: 1,
        // Must be 0 for locks of an open file.
        l_pid: 0,
    };
    #[expect(
        unsafe_code,
        reason = "neither the standard library nor rustix locks ranges of an open file"
    )]
    // SAFETY: the descriptor is open as long as `file` is borrowed, and the kernel reads and writes
    // nothing but the one `flock` that the pointer is of.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut request) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(i32::from(request.l_type)) }
}
