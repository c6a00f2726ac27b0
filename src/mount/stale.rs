//! The folder to mount on: what it is, and what may be left there by a server that died.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::attach::{How, detach};
use super::table::mount_at;
use crate::error::{Error, Kind, Result, ResultExt};

/// Dead mounts that are cleared off one folder.
const LAYERS: usize = 16;

/// The absolute path of `at` without symlinks, also if what is mounted there is dead.
pub(super) fn resolve(at: &Path) -> Result<PathBuf> {
    let resolved = match at.canonicalize() {
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
            match (at.parent(), at.file_name()) {
                (Some(dir), Some(name)) => {
                    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
                    dir.canonicalize().map(|dir| dir.join(name))
                }
                _ => Err(error),
            }
        }
        resolved => resolved,
    };
    resolved.within(|| at.display().to_string())
}

/// Whether the server of the mount at `point` is gone. Asks what the kernel has no answer to in
/// its caches.
pub(super) fn is_dead(point: &Path) -> bool {
    matches!(rustix::fs::statfs(point), Err(Errno::NOTCONN | Errno::CONNABORTED))
}

/// Makes sure that `at` is a folder that can be mounted on, clearing dead mounts of ours off it;
/// its absolute path.
pub(super) fn prepare(at: &Path) -> Result<PathBuf> {
    let named = || at.display().to_string();
    let point = resolve(at).map_err(|error| match error.kind() {
        Kind::NotFound => error.with_hint("the folder to mount on must exist: mkdir -p it"),
        _ => error,
    })?;
    for _ in 0..LAYERS {
        let Some(there) = mount_at(&point)? else { break };
        let dead = is_dead(&point);
        let source = there.source.display();
        if there.is_ours() && dead {
            log::info!("{}: clearing the mount of {source}, whose server died", point.display());
            detach(&point, How::Lazy).within(named)?;
        } else if there.is_ours() {
            return Err(Error::new(Kind::Exists, format!("already shows {source}"))
                .within(named())
                .with_hint(format!("strata unmount {}", at.display())));
        } else if dead {
            let message = format!("has a dead mount on it: {source} ({})", there.fstype);
            return Err(Error::new(Kind::Io, message)
                .within(named())
                .with_hint(format!("umount --lazy {}", at.display())));
        } else {
            break;
        }
    }
    let metadata = point.metadata().within(named)?;
    if !metadata.is_dir() {
        let cause = io::Error::from_raw_os_error(libc::ENOTDIR);
        return Err(Error::io(cause).within(named()));
    }
    Ok(point)
}
