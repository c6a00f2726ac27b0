//! Kernels that are started without a boot loader: from a file of the host, or of the image.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::MemfdFlags;

use super::inherited::Inherited;
use super::machine::Bus;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::open::bootable::Bootable;
use crate::tree::path::{Follow, Resolved, locate};
use crate::tree::{FileKind, FileTree, NodeId};

/// What begins the name of a file in the image.
const IN_IMAGE: &[u8] = b"image:";

/// Bytes of a kernel or initial RAM disk at most: it is kept in memory.
const MOST_BYTES: u64 = 1 << 30;

/// What QEMU starts instead of a boot loader.
#[derive(Debug)]
pub(super) struct Kernel {
    /// The kernel's name on the host.
    pub kernel: String,
    /// The initial RAM disk's.
    pub initrd: Option<String>,
    /// The kernel's command line.
    pub append: String,
}

/// What was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub kernel: &'a OsStr,
    pub initrd: Option<&'a OsStr>,
    /// What the kernel's command line ends with.
    pub append: Option<&'a str>,
    /// The guest's name of its first serial port.
    pub console: &'a str,
    pub bus: Bus,
    /// Whether the processor is emulated.
    pub emulated: bool,
}

impl Kernel {
    /// Finds what is `wanted`. Files of the image are copied to memory that QEMU inherits.
    ///
    /// # Errors
    /// What is not there.
    pub(super) fn find(
        wanted: &Wanted<'_>,
        found: &Bootable,
        inherited: &mut Inherited,
    ) -> Result<Self> {
        let (kernel, initrd) = match inside(wanted.kernel) {
            None => (on_host(wanted.kernel)?, None),
            Some(path) => {
                let tree = files(found)?;
                let kernel = locate(tree, path, Follow::Always)
                    .map_err(|error| offer(error, tree))
                    .within(|| shown(path))?;
                let initrd = || initrd_of(tree, &kernel.path);
                let initrd = if wanted.initrd.is_none() { initrd() } else { None };
                (copy(tree, &kernel, inherited)?, initrd)
            }
        };
        let initrd = match (wanted.initrd, initrd) {
            (None, None) => None,
            (None, Some(initrd)) => Some(copy(files(found)?, &initrd, inherited)?),
            (Some(wanted), _) => Some(match inside(wanted) {
                None => on_host(wanted)?,
                Some(path) => {
                    let tree = files(found)?;
                    let initrd = locate(tree, path, Follow::Always).within(|| shown(path))?;
                    copy(tree, &initrd, inherited)?
                }
            }),
        };
        // The kernel takes the last of each: what the person says comes after what we guess.
        let mut append = match found.root {
            Some(number) => format!("root={} ro ", wanted.bus.linux_name(number)),
            None => String::new(),
        };
        append.push_str("console=");
        append.push_str(wanted.console);
        // Ticks come late where many machines are emulated at once, and Linux would give up.
        if wanted.emulated {
            append.push_str(" no_timer_check");
        }
        if let Some(wanted) = wanted.append {
            append.push(' ');
            append.push_str(wanted);
        }
        Ok(Self { kernel, initrd, append })
    }
}

/// The path in the image, if `name` is of one.
fn inside(name: &OsStr) -> Option<&[u8]> {
    name.as_bytes().strip_prefix(IN_IMAGE)
}

fn shown(path: &[u8]) -> String {
    format!("image:{}", String::from_utf8_lossy(path))
}

fn files(found: &Bootable) -> Result<&dyn FileTree> {
    found.files.as_deref().ok_or_else(|| {
        Error::new(Kind::NotFound, "no operating system in the image whose files can be read")
            .with_hint("strata info tells what is on it; --kernel FILE takes a file of this host")
    })
}

fn on_host(name: &OsStr) -> Result<String> {
    let shown = || name.display().to_string();
    let file = File::open(name).within(shown)?;
    if !file.metadata().within(shown)?.is_file() {
        return Err(Error::new(Kind::Usage, "is not a regular file").within(shown()));
    }
    let name = name.to_str().map(str::to_owned);
    name.ok_or_else(|| {
        Error::new(Kind::Unsupported, "QEMU takes no name that is not UTF-8").within(shown())
    })
}

/// A missing kernel, with the ones that are there.
fn offer(error: Error, tree: &dyn FileTree) -> Error {
    let Ok(boot) = locate(tree, b"/boot", Follow::Always) else { return error };
    let mut kernels = Vec::new();
    let listed = tree.read_dir(boot.node, 0, &mut |entry| {
        if entry.name.starts_with(b"vmlinu") || entry.name.starts_with(b"Image") {
            kernels.push(format!("image:/boot/{}", String::from_utf8_lossy(entry.name)));
        }
        kernels.len() < 10
    });
    if listed.is_err() || kernels.is_empty() {
        return error;
    }
    kernels.sort();
    error.with_hint(format!("there is: {}", kernels.join(", ")))
}

/// The initial RAM disk beside the kernel at `path`, by the names distributions give them.
fn initrd_of(tree: &dyn FileTree, path: &[u8]) -> Option<Resolved> {
    let at = path.iter().rposition(|&byte| byte == b'/')?;
    let (folder, name) = (path.get(..=at)?, path.get(at + 1..)?);
    let (_, version) =
        name.split_at(name.iter().position(|&byte| byte == b'-').unwrap_or(name.len()));
    let names = [("initrd.img", ""), ("initramfs", ".img"), ("initrd", ""), ("initramfs", "")];
    names.iter().find_map(|(before, after)| {
        let path = [folder, before.as_bytes(), version, after.as_bytes()].concat();
        locate(tree, &path, Follow::Always).ok()
    })
}

/// Copies a file of the image to memory.
fn copy(tree: &dyn FileTree, file: &Resolved, inherited: &mut Inherited) -> Result<String> {
    let named = || shown(&file.path);
    let attr = tree.attr(file.node).within(named)?;
    if attr.kind != FileKind::Regular {
        return Err(Error::new(Kind::Usage, "is not a regular file").within(named()));
    }
    if attr.size > MOST_BYTES {
        let message = format!("{} bytes, more than any kernel has", attr.size);
        return Err(Error::new(Kind::Unsupported, message).within(named()));
    }
    inherited.add(|| in_memory(tree, file.node, attr.size)).within(named)
}

fn in_memory(tree: &dyn FileTree, node: NodeId, size: u64) -> Result<OwnedFd> {
    let mut memory = memory("kernel")?;
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    while at < size {
        let count = tree.read_at(node, at, &mut buffer).within(|| format!("at byte {at}"))?;
        if count == 0 {
            return Err(Error::new(Kind::Corrupt, format!("ends at byte {at}")));
        }
        memory.write_all(buffer.get(..count).unwrap_or_default()).within(|| "copying it")?;
        at += count as u64;
    }
    Ok(memory.into())
}

/// A file in memory that has no name.
pub(super) fn memory(name: &str) -> Result<File> {
    let memory = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC);
    memory.map(File::from).map_err(io::Error::from).within(|| "memory for a file")
}
