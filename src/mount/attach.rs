//! Attaching a connection to a folder and detaching it: by mount(2) where that is allowed, and
//! through the setuid program `fusermount3` otherwise.

use std::ffi::{CString, OsStr, OsString};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};

use super::{Options, table};
use crate::error::{Error, Kind, Result, ResultExt};

const DEVICE: &str = "/dev/fuse";
const FUSERMOUNT: &str = "fusermount3";

/// Mounts at `point`; the connection to serve it on.
pub(super) fn attach(point: &Path, options: &Options, writable: bool) -> Result<OwnedFd> {
    let device = open_device()?;
    match mount_directly(&device, point, options, writable) {
        Ok(()) => Ok(device),
        Err(Errno::PERM) => mount_by_fusermount(point, options, writable),
        Err(error) => Err(Error::io(error.into()).within("mounting")),
    }
}

fn open_device() -> Result<OwnedFd> {
    rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| {
        let error = Error::io(errno.into()).within(DEVICE);
        match errno {
            Errno::NOENT | Errno::NODEV | Errno::NXIO => {
                error.with_hint("as root: modprobe fuse (in a container: --device /dev/fuse)")
            }
            Errno::ACCESS | Errno::PERM => error.with_hint(
                "as root: apt-get install fuse3, whose udev rule opens the device to all; \
                 or at once: chmod 666 /dev/fuse",
            ),
            _ => error,
        }
    })
}

fn mount_directly(
    device: &OwnedFd,
    point: &Path,
    options: &Options,
    writable: bool,
) -> std::result::Result<(), Errno> {
    let mut flags = MountFlags::empty();
    flags.set(MountFlags::RDONLY, !writable);
    flags.set(MountFlags::NOSUID, !options.suid);
    flags.set(MountFlags::NODEV, !options.dev);
    flags.set(MountFlags::NOEXEC, options.noexec);
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={}",
        device.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    if options.permissions() {
        data.push_str(",default_permissions");
    }
    let data = CString::new(data).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount(options.name.as_str(), point, table::FSTYPE, flags, data.as_c_str())
}

/// `fusermount3` mounts and hands the connection over through a socket, whose number it finds in
/// `_FUSE_COMMFD`: here its standard input, which it has no other use for.
fn mount_by_fusermount(point: &Path, options: &Options, writable: bool) -> Result<OwnedFd> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(io::Error::from)
    .within(|| FUSERMOUNT)?;
    let child = Command::new(FUSERMOUNT)
        .arg("-o")
        .arg(fusermount_options(options, writable))
        .arg("--")
        .arg(point)
        .env("_FUSE_COMMFD", "0")
        .stdin(theirs)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(no_fusermount)?;
    let device = receive_fd(&ours);
    let output = child.wait_with_output().within(|| FUSERMOUNT)?;
    match device {
        Ok(Some(device)) if output.status.success() => Ok(device),
        _ => Err(refused_by_fusermount(&output)),
    }
}

fn fusermount_options(options: &Options, writable: bool) -> OsString {
    let mut list = String::from(if writable { "rw" } else { "ro" });
    for (flag, name) in [
        (!options.suid, "nosuid"),
        (options.suid, "suid"),
        (!options.dev, "nodev"),
        (options.dev, "dev"),
        (options.noexec, "noexec"),
        (options.allow_other, "allow_other"),
        (options.permissions(), "default_permissions"),
    ] {
        if flag {
            list.push(',');
            list.push_str(name);
        }
    }
    list.push_str(",subtype=strata,fsname=");
    let mut list = list.into_bytes();
    for &byte in options.name.as_bytes() {
        if matches!(byte, b',' | b'\\') {
            list.push(b'\\');
        }
        list.push(byte);
    }
    OsString::from_vec(list)
}

fn receive_fd(socket: &OwnedFd) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut byte)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    let received = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(received)
}

fn no_fusermount(error: io::Error) -> Error {
    let missing = error.kind() == io::ErrorKind::NotFound;
    let error = Error::io(error).within(format!("running {FUSERMOUNT}"));
    if missing {
        error.with_hint("ordinary users mount through it: as root, apt-get install fuse3")
    } else {
        error
    }
}

fn refused_by_fusermount(output: &Output) -> Error {
    let text = String::from_utf8_lossy(&output.stderr);
    let text = text.trim();
    let said =
        if text.is_empty() { format!("{FUSERMOUNT}: {}", output.status) } else { text.into() };
    let error = Error::new(Kind::Denied, said);
    if text.contains("user_allow_other") {
        error.with_hint("as root: add the line user_allow_other to /etc/fuse.conf")
    } else if text.contains("Operation not permitted") {
        error.with_hint(
            "fusermount3 must be setuid root, and the container must allow mounts \
             (--cap-add SYS_ADMIN); or mount inside: unshare -Urm",
        )
    } else {
        error
    }
}

/// How much to insist on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Only if nobody uses it.
    Idle,
    /// Take it out of the tree of names now; it ends when its last user is gone.
    Lazy,
}

/// Takes the topmost mount off `point`.
///
/// # Errors
/// [`Busy`] as the cause if it is in use and `how` is [`How::Idle`].
pub(super) fn detach(point: &Path, how: How) -> Result<()> {
    let mut flags = UnmountFlags::NOFOLLOW;
    flags.set(UnmountFlags::DETACH, how == How::Lazy);
    match rustix::mount::unmount(point, flags) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => detach_by_fusermount(point, how),
        Err(Errno::BUSY) => Err(Error::caused_by(Kind::Io, Busy)),
        Err(errno) => Err(Error::io(errno.into()).within("unmounting")),
    }
}

fn detach_by_fusermount(point: &Path, how: How) -> Result<()> {
    let lazy: &[&str] = if how == How::Lazy { &["-z"] } else { &[] };
    let output = Command::new(FUSERMOUNT)
        .arg("-u")
        .args(lazy)
        .args([OsStr::new("--"), point.as_os_str()])
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(no_fusermount)?;
    if output.status.success() {
        Ok(())
    } else if memmem(&output.stderr, b"busy") {
        Err(Error::caused_by(Kind::Io, Busy))
    } else {
        Err(refused_by_fusermount(&output))
    }
}

fn memmem(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window == word)
}

/// The mount is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("in use")]
pub struct Busy;

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn a_name_cannot_add_mount_options() {
        let options = Options { name: "a,suid\\".into(), ..Options::default() };
        assert_eq!(
            fusermount_options(&options, false).as_bytes(),
            b"ro,nosuid,nodev,subtype=strata,fsname=a\\,suid\\\\"
        );
    }
}
