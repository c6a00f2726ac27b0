//! Firmware: what QEMU brings for a BIOS, and what distributions install for EFI.
//!
//! Distributions describe theirs in JSON files, as `docs/interop/firmware.json` of QEMU says.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::inherited::Inherited;
use super::kernel::memory;
use super::machine::Arch;
use crate::error::{Error, Kind, Result, ResultExt};

/// EFI firmware, by the names QEMU opens it by.
#[derive(Debug)]
pub(super) struct Efi {
    /// Its program.
    pub code: String,
    /// Its variables, a copy that vanishes.
    pub variables: Option<String>,
}

/// Where descriptions are, the person's before the administrator's before the distribution's.
const FOLDERS: [&str; 2] = ["/etc/qemu/firmware", "/usr/share/qemu/firmware"];

/// Bytes of a description at most.
const MOST_BYTES: u64 = 1 << 20;

/// Where Debian has the files that it does not describe everywhere.
const UNDESCRIBED: [(Arch, &str, &str); 3] = [
    (Arch::X86_64, "/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    (Arch::X86_64, "/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    (Arch::Aarch64, "/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"),
];

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Description {
    interface_types: Vec<String>,
    mapping: Mapping,
    targets: Vec<Target>,
    features: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mapping {
    device: String,
    executable: Option<Part>,
    nvram_template: Option<Part>,
}

#[derive(Debug, Deserialize)]
struct Part {
    filename: PathBuf,
    format: String,
}

#[derive(Debug, Deserialize)]
struct Target {
    architecture: String,
    machines: Vec<String>,
}

impl Description {
    /// Its files, if they suit a machine of ours: no Secure Boot, which would refuse what is to be
    /// rescued, and raw.
    fn files(self, arch: Arch) -> Option<(PathBuf, Option<PathBuf>)> {
        let machines = match arch {
            Arch::X86_64 => "pc-q35-",
            Arch::Aarch64 => "virt-",
        };
        let suits = self.interface_types.iter().any(|kind| kind == "uefi")
            && self.mapping.device == "flash"
            && self.targets.iter().any(|target| {
                target.architecture == arch.name()
                    && target.machines.iter().any(|machine| machine.starts_with(machines))
            })
            && !self.features.iter().any(|feature| {
                matches!(feature.as_str(), "requires-smm" | "secure-boot" | "enrolled-keys")
            });
        let code = self.mapping.executable?;
        let variables = self.mapping.nvram_template;
        let parts = [Some(&code), variables.as_ref()];
        let raw = parts.into_iter().flatten().all(|part| part.format == "raw");
        let there = parts.into_iter().flatten().all(|part| part.filename.is_file());
        (suits && raw && there).then(|| (code.filename, variables.map(|part| part.filename)))
    }
}

/// Finds EFI firmware for `arch` on this host.
///
/// # Errors
/// [`Kind::NotFound`] with the line that installs it.
pub(super) fn efi(arch: Arch, inherited: &mut Inherited) -> Result<Efi> {
    let described = descriptions().into_iter().find_map(|path| {
        let text = read(&path).ok()?;
        serde_json::from_slice::<Description>(&text).ok()?.files(arch)
    });
    let undescribed = || {
        let known = UNDESCRIBED.iter().find(|(of, code, variables)| {
            *of == arch && Path::new(code).is_file() && Path::new(variables).is_file()
        });
        known.map(|(_, code, variables)| (PathBuf::from(code), Some(PathBuf::from(variables))))
    };
    let (code, variables) = described.or_else(undescribed).ok_or_else(|| {
        let (name, package) = match arch {
            Arch::X86_64 => ("OVMF", "ovmf"),
            Arch::Aarch64 => ("AAVMF", "qemu-efi-aarch64"),
        };
        Error::new(Kind::NotFound, format!("EFI firmware ({name}) is not installed"))
            .with_hint(format!("as root: apt-get install {package}"))
    })?;
    let name = code.to_str().ok_or_else(|| {
        Error::new(Kind::Unsupported, "QEMU takes no name that is not UTF-8")
            .within(code.display().to_string())
    })?;
    let copy = |path: &PathBuf| {
        inherited.add(|| {
            let named = || path.display().to_string();
            let mut copy = memory("variables")?;
            let mut template = File::open(path).within(named)?;
            io::copy(&mut template, &mut copy).within(named)?;
            Ok(copy.into())
        })
    };
    Ok(Efi { code: name.to_owned(), variables: variables.as_ref().map(copy).transpose()? })
}

/// All descriptions, in the order of their names; of two with one name the first folder's counts.
fn descriptions() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    for folder in FOLDERS {
        let entries = Path::new(folder).read_dir().into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            let is_json = path.extension().is_some_and(|extension| extension == "json");
            if is_json && found.iter().all(|other| other.file_name() != path.file_name()) {
                found.push(path);
            }
        }
    }
    found.sort_by(|a, b| a.file_name().cmp(&b.file_name()));
    found
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(MOST_BYTES).read_to_end(&mut text)?;
    Ok(text)
}
