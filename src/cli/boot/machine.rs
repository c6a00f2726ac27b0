//! The machine, as QEMU's command line says it.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::firmware::Efi;
use super::kernel::Kernel;
use crate::error::{Error, Kind};
use crate::open::bootable::Processor;

/// A processor that machines can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Arch {
    /// x86 with 64 bits
    #[value(name = "x86_64", alias = "amd64")]
    X86_64,
    /// ARM with 64 bits
    #[value(name = "aarch64", alias = "arm64")]
    Aarch64,
}

impl Arch {
    /// QEMU's name for it, and Rust's.
    pub(super) fn name(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "aarch64",
        }
    }

    /// That of this host, if machines can have it.
    pub(super) fn of_host() -> Option<Self> {
        [Arch::X86_64, Arch::Aarch64].into_iter().find(|arch| arch.name() == std::env::consts::ARCH)
    }

    /// That of a program.
    pub(super) fn of(processor: Processor) -> Option<Self> {
        match processor {
            Processor::X86_64 => Some(Arch::X86_64),
            Processor::Aarch64 => Some(Arch::Aarch64),
            Processor::Other(_) => None,
        }
    }

    /// What a Linux guest calls its first serial port.
    pub(super) fn console(self) -> &'static str {
        match self {
            Arch::X86_64 => "ttyS0",
            Arch::Aarch64 => "ttyAMA0",
        }
    }

    fn package(self) -> &'static str {
        match self {
            Arch::X86_64 => "qemu-system-x86",
            Arch::Aarch64 => "qemu-system-arm",
        }
    }
}

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Accel {
    /// The host's processor, through /dev/kvm
    Kvm,
    /// QEMU itself
    Tcg,
}

impl Accel {
    /// The best there is for guests of `arch`, or else why it is not KVM, and what to do.
    pub(super) fn best(arch: Arch) -> Result<(), (String, Option<String>)> {
        if Arch::of_host() != Some(arch) {
            let host = std::env::consts::ARCH;
            return Err((format!("the image is for {} and this is {host}", arch.name()), None));
        }
        if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
            let why = Error::io(error).within("/dev/kvm");
            let hint = (why.kind() == Kind::Denied)
                .then(|| "as root: adduser NAME kvm, and log in again".to_owned());
            return Err((why.to_string(), hint));
        }
        // Some hosts have the device without what it needs: there it hangs.
        if arch == Arch::X86_64 {
            let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
            let mut flags = info.lines().filter(|line| line.starts_with("flags"));
            let mut words = flags.next().unwrap_or_default().split_ascii_whitespace();
            if !words.any(|flag| flag == "vmx" || flag == "svm") {
                let why = "this processor virtualises nothing (neither vmx nor svm)".to_owned();
                return Err((why, Some("to try it all the same: --accel kvm".into())));
            }
        }
        Ok(())
    }
}

/// What starts the guest.
#[derive(Debug)]
pub(super) enum Firmware {
    /// QEMU's BIOS, or whatever the machine has without being told.
    Builtin,
    /// EFI firmware of the host.
    Efi(Efi),
    /// A file of the person's.
    File(PathBuf),
}

/// What the guest sees its disk at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Bus {
    /// The fastest, and vda for Linux
    Virtio,
    /// For guests that know nothing of virtual machines, and sda for Linux
    Sata,
    /// Another such, and nvme0n1 for Linux
    Nvme,
}

impl Bus {
    /// The disk as QEMU's device.
    fn device(self) -> &'static str {
        match self {
            Bus::Virtio => "virtio-blk-pci,drive=disk,bootindex=1",
            Bus::Sata => "ide-hd,drive=disk,bus=sata.0,bootindex=1",
            Bus::Nvme => "nvme,drive=disk,serial=strata,bootindex=1",
        }
    }

    /// What a Linux guest calls a partition of its disk, or the disk as a whole for number 0.
    pub(super) fn linux_name(self, number: u32) -> String {
        let disk = match self {
            Bus::Virtio => "/dev/vda",
            Bus::Sata => "/dev/sda",
            Bus::Nvme => "/dev/nvme0n1",
        };
        match (number, self) {
            (0, _) => disk.to_owned(),
            (number, Bus::Nvme) => format!("{disk}p{number}"),
            (number, _) => format!("{disk}{number}"),
        }
    }
}

/// How the guest reaches the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Network {
    /// Not at all
    None,
    /// Through this user's connections; nobody reaches the guest
    User,
}

/// A machine to start.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    /// The QEMU to run.
    pub program: PathBuf,
    pub arch: Arch,
    pub accel: Accel,
    pub firmware: Firmware,
    /// Instead of a boot loader.
    pub kernel: Option<Kernel>,
    /// Bytes.
    pub memory: u64,
    pub cpus: u16,
    /// The disk as the image has it: a raw file, only read.
    pub base: &'a Path,
    /// The delta above it, a qcow2 file.
    pub delta: String,
    /// Whether the delta is kept: what the guest flushes is then flushed.
    pub keep: bool,
    pub bus: Bus,
    pub network: Network,
    /// The port of this host's loopback that leads to the guest's port 22.
    pub ssh: Option<u16>,
    /// Whether it has a screen, in a window.
    pub display: bool,
    /// Whatever else QEMU is told.
    pub more: &'a [OsString],
}

impl Machine<'_> {
    /// The command that starts it: the program and its arguments.
    pub(super) fn command(&self) -> Vec<OsString> {
        let mut command = vec![self.program.clone().into_os_string()];
        let mut add = |words: &[&str]| command.extend(words.iter().map(OsString::from));
        // Nothing but what stands here, whatever the host's defaults are.
        add(&["-no-user-config", "-nodefaults"]);
        let accel = match self.accel {
            Accel::Kvm => "kvm",
            Accel::Tcg => "tcg",
        };
        let machine = match self.arch {
            Arch::X86_64 => "q35",
            Arch::Aarch64 => "virt",
        };
        let mut machine = format!("{machine},accel={accel}");
        // Without a screen, a BIOS and what it starts write to the serial port.
        if !self.display && self.arch == Arch::X86_64 {
            machine.push_str(",graphics=off");
        }
        match &self.firmware {
            Firmware::Builtin => {}
            Firmware::File(file) => add(&["-bios", &file.to_string_lossy()]),
            Firmware::Efi(efi) => {
                add(&["-blockdev", &plain_file("code", &efi.code, true)]);
                machine.push_str(",pflash0=code");
                if let Some(variables) = &efi.variables {
                    add(&["-blockdev", &plain_file("variables", variables, false)]);
                    machine.push_str(",pflash1=variables");
                }
            }
        }
        let cpu = match (self.accel, self.arch) {
            (Accel::Kvm, _) => "host",
            // Some firmware hangs in five levels of page tables.
            (Accel::Tcg, Arch::X86_64) => "max,la57=off",
            // Pointers are signed in QEMU's own way: ARM's is slow to emulate.
            (Accel::Tcg, Arch::Aarch64) => "max,pauth-impdef=on",
        };
        add(&["-machine", &machine, "-cpu", cpu, "-smp", &self.cpus.to_string()]);
        add(&["-m", &format!("{}M", self.memory.div_ceil(1 << 20))]);
        add(&["-blockdev", &plain_file("base", &self.base.to_string_lossy(), true)]);
        add(&["-blockdev", &self.disk()]);
        if self.bus == Bus::Sata {
            // The machine for x86 has one too, which none of ARM has.
            add(&["-device", "ich9-ahci,id=sata"]);
        }
        add(&["-device", self.bus.device()]);
        add(&["-device", "virtio-rng-pci"]);
        if self.network == Network::User {
            let mut user = "user,id=net".to_owned();
            if let Some(port) = self.ssh {
                user.push_str(&format!(",hostfwd=tcp:127.0.0.1:{port}-:22"));
            }
            // No boot from the network: it would only make a broken disk wait.
            add(&["-netdev", &user, "-device", "virtio-net-pci,netdev=net,romfile="]);
        }
        if let Some(Kernel { kernel, initrd, append }) = &self.kernel {
            add(&["-kernel", kernel]);
            if let Some(initrd) = initrd {
                add(&["-initrd", initrd]);
            }
            add(&["-append", append]);
        }
        match (self.display, self.arch) {
            (false, _) => add(&["-display", "none"]),
            (true, Arch::X86_64) => add(&["-device", "VGA"]),
            (true, Arch::Aarch64) => add(&["-device", "virtio-gpu-pci"]),
        }
        if self.display {
            // Absolute, so that the pointer is not caught in the window.
            add(&["-device", "qemu-xhci", "-device", "usb-kbd", "-device", "usb-tablet"]);
        }
        // Shared with the monitor, which leaves every key but Ctrl-A to the guest.
        add(&["-serial", "mon:stdio"]);
        command.extend(self.more.iter().cloned());
        command
    }

    /// The delta with the shared disk below it, whatever its header names.
    fn disk(&self) -> String {
        json!({
            "node-name": "disk",
            "driver": "qcow2",
            "discard": "unmap",
            "detect-zeroes": "unmap",
            "file": {
                "driver": "file",
                "filename": self.delta,
                "discard": "unmap",
                "cache": {"no-flush": !self.keep},
            },
            "backing": "base",
        })
        .to_string()
    }
}

/// A file of the host as a node that a device or another node can use.
fn plain_file(node: &str, file: &str, read_only: bool) -> String {
    json!({
        "node-name": node,
        "driver": "raw",
        "read-only": read_only,
        "file": {"driver": "file", "filename": file},
    })
    .to_string()
}

/// Finds the QEMU for `arch`.
///
/// # Errors
/// [`Kind::NotFound`] with the line that installs it.
pub(super) fn qemu(arch: Arch) -> Result<PathBuf, Error> {
    let name = format!("qemu-system-{}", arch.name());
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|dir| dir.join(&name).is_file()) {
        return Ok(name.into());
    }
    // Where Red Hat's distributions have the one for their own processor.
    let kvm = Path::new("/usr/libexec/qemu-kvm");
    if Arch::of_host() == Some(arch) && kvm.is_file() {
        return Ok(kvm.into());
    }
    Err(Error::new(Kind::NotFound, format!("{name} is not installed"))
        .with_hint(format!("as root: apt-get install {}", arch.package())))
}

/// A command as a shell reads it, in one line.
pub(super) fn shell(command: &[OsString]) -> Vec<u8> {
    let mut line = Vec::new();
    for word in command {
        if !line.is_empty() {
            line.push(b' ');
        }
        let word = word.as_bytes();
        let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_@%+=:,./-".contains(byte);
        if !word.is_empty() && word.iter().all(is_plain) {
            line.extend_from_slice(word);
            continue;
        }
        line.push(b'\'');
        for &byte in word {
            match byte {
                b'\'' => line.extend_from_slice(br"'\''"),
                byte => line.push(byte),
            }
        }
        line.push(b'\'');
    }
    line
}
