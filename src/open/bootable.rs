//! What a machine needs to know of a disk to start from it.

use std::sync::Arc;

use super::Disk;
use super::system::{Contents, Place};
use crate::block::{BlockSource, Cache};
use crate::tree::FileTree;
use crate::tree::path::{Follow, resolve};

/// What a disk has for a machine to start from. Whatever cannot be read is not there.
#[derive(Debug)]
pub struct Bootable {
    /// Whether its first sector holds a program, which is what a BIOS starts.
    pub boot_code: bool,
    /// Whether it has an EFI system partition.
    pub esp: bool,
    /// The files of its operating system, or of its one filesystem.
    pub files: Option<Arc<dyn FileTree>>,
    /// The partition that the operating system's root is on; 0 if it is the disk as a whole.
    pub root: Option<u32>,
    /// The processor that its programs are for.
    pub processor: Option<Processor>,
}

/// What a program is for, as its ELF header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Processor {
    /// x86 with 64 bits; also takes programs for 32.
    X86_64,
    /// ARM with 64 bits.
    Aarch64,
    /// Another, by its number in ELF.
    Other(u16),
}

/// Bytes of the first sector that may hold a program; then come a signature and the partitions.
const BOOT_CODE: usize = 440;

/// Programs that are there in nearly every system.
const PROGRAMS: [&str; 6] =
    ["/bin/sh", "/usr/bin/sh", "/bin/busybox", "/sbin/init", "/usr/lib/systemd/systemd", "/init"];

/// Where EFI firmware looks on a disk it knows nothing of, and what for.
const LOADERS: [(&str, Processor); 2] =
    [("/EFI/BOOT/BOOTX64.EFI", Processor::X86_64), ("/EFI/BOOT/BOOTAA64.EFI", Processor::Aarch64)];

/// Looks at `disk`, reading through `cache`.
pub fn bootable(disk: &Disk, cache: &Arc<Cache>) -> Bootable {
    let mut found = Bootable {
        boot_code: has_boot_code(&*disk.source),
        esp: false,
        files: None,
        root: None,
        processor: None,
    };
    let Ok(contents) = Contents::look(&disk.source, cache) else { return found };
    let esp = contents.places.iter().find(|place| {
        place.volume.as_ref().is_some_and(|volume| volume.short_kind() == Some("EFI"))
    });
    found.esp = esp.is_some();
    let number = |place: &Place| place.volume.as_ref().map_or(0, |volume| volume.number);
    found.root = contents.root().map(number);
    // What of its fstab cannot be shown matters to nobody here.
    found.files = contents.files(&mut Vec::new()).map(|composed| composed.into_tree());
    let programs = || PROGRAMS.iter().find_map(|path| elf_machine(&**found.files.as_ref()?, path));
    let loaders = || {
        let tree = &*esp?.filesystem()?.tree;
        let is_there = |path: &str| resolve(tree, path.as_bytes(), Follow::Always).is_ok();
        LOADERS.iter().find(|(path, _)| is_there(path)).map(|(_, processor)| *processor)
    };
    found.processor = programs().or_else(loaders);
    found
}

fn has_boot_code(disk: &dyn BlockSource) -> bool {
    let mut sector = [0; 512];
    disk.len() >= 512
        && disk.read_at(0, &mut sector).is_ok()
        && sector.ends_with(&[0x55, 0xaa])
        && sector.iter().take(BOOT_CODE).any(|&byte| byte != 0)
}

/// Field `e_machine` of the ELF header (System V ABI, chapter 4).
fn elf_machine(tree: &dyn FileTree, path: &str) -> Option<Processor> {
    let node = resolve(tree, path.as_bytes(), Follow::Always).ok()?;
    let mut header = [0; 20];
    if tree.read_at(node, 0, &mut header).ok()? != header.len() {
        return None;
    }
    let [0x7f, b'E', b'L', b'F', _, order, .., low, high] = header else { return None };
    let machine =
        if order == 2 { u16::from_be_bytes([low, high]) } else { u16::from_le_bytes([low, high]) };
    Some(match machine {
        3 | 62 => Processor::X86_64,
        183 => Processor::Aarch64,
        other => Processor::Other(other),
    })
}
