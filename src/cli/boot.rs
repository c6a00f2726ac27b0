//! `strata boot`: a virtual machine from an image, whose writes are thrown away or kept.
//!
//! This program makes all that QEMU needs and then becomes QEMU. What the machine has on the host
//! lasts as long as that one process: its files have no names any more, and the disk is served for
//! as long as a lock is held that it inherits. So there is nothing to clean up, whatever ends it.

mod changes;
mod firmware;
mod inherited;
mod kernel;
mod lease;
mod machine;
mod shared;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::OpenArgs;
use crate::error::{Error, Kind, Result, ResultExt};
use crate::open::bootable::{Bootable, Processor, bootable};
use crate::open::{Disk, Opener, Reference};
use inherited::Inherited;
use kernel::Kernel;
use machine::{Accel, Arch, Bus, Firmware, Machine, Network};
use shared::Shared;

pub(super) use lease::Lease;

/// Options of `strata boot`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: strata boot --cow fix.qcow2 --ssh 2222 disk.qcow2")]
pub(super) struct Args {
    /// What to boot
    #[arg(value_name = "REF")]
    reference: OsString,

    /// Keep what the machine writes in this file, a qcow2 overlay, and go on from what it holds
    #[arg(long, value_name = "FILE")]
    cow: Option<PathBuf>,

    /// Memory of the machine (M and G are powers of 1024)
    #[arg(short, long, value_name = "SIZE", default_value = "1G", value_parser = memory_parser)]
    memory: u64,

    /// Processors of the machine [default: 2, or 1 where the host has no more]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    cpus: Option<u16>,

    /// Let this port of 127.0.0.1 lead to the guest's SSH
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    ssh: Option<u16>,

    /// What the guest sees its disk at
    #[arg(long, default_value = "virtio")]
    bus: Bus,

    /// How the guest reaches the network
    #[arg(long, default_value = "user")]
    network: Network,

    /// Give it a screen, in a window
    #[arg(long)]
    display: bool,

    /// Start this Linux kernel instead of a boot loader; image:/vmlinuz is the image's own
    ///
    /// A kernel of the image comes with the initial RAM disk beside it. The kernel is told root= and
    /// console=, and then what --append says.
    #[arg(long, value_name = "FILE")]
    kernel: Option<OsString>,

    /// The initial RAM disk; image:/PATH is one of the image
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<OsString>,

    /// More for the kernel's command line
    #[arg(long, value_name = "ARGS", requires = "kernel", allow_hyphen_values = true)]
    append: Option<String>,

    /// bios, efi, or a file [default: what the disk is made for]
    #[arg(long, value_name = "FIRMWARE")]
    firmware: Option<PathBuf>,

    /// Processor of the machine [default: what the image's programs are for]
    #[arg(long)]
    arch: Option<Arch>,

    /// What runs it [default: kvm where that can be, else tcg]
    #[arg(long)]
    accel: Option<Accel>,

    /// The QEMU to run [default: qemu-system-ARCH]
    #[arg(long, value_name = "PROGRAM")]
    qemu: Option<PathBuf>,

    /// Print the command that would be run, and do nothing
    #[arg(long)]
    dry_run: bool,

    #[command(flatten)]
    open: OpenArgs,

    /// Options of QEMU's own, which come last
    #[arg(last = true, value_name = "QEMU ARGS")]
    more: Vec<OsString>,
}

fn memory_parser(text: &str) -> Result<u64, String> {
    match super::parse_size(text)? {
        bytes if bytes < 1 << 20 => Err("less than 1M".into()),
        bytes => Ok(bytes),
    }
}

/// Becomes QEMU; returns only from a dry run, or with an error.
///
/// # Errors
/// What keeps the image from being opened or shared, and what is missing on this host.
pub(super) fn run(args: &Args) -> Result<()> {
    if args.ssh.is_some() && args.network == Network::None {
        return Err(Error::new(Kind::Usage, "--ssh needs a network"));
    }
    let reference = Reference::from(args.reference.as_os_str()).absolute()?;
    let opener = args.open.opener();
    // The newest snapshot is another one tomorrow: neither a delta nor who shares the disk may follow it.
    let reference = opener.pinned(&reference)?.into_owned();
    let disk = opener.disk(&reference)?;
    super::warn(&disk.warnings);
    let changed = args.cow.as_deref().and_then(|delta| changed(delta, &opener, &reference));
    let found = bootable(changed.as_ref().unwrap_or(&disk), &opener.cache);
    drop(changed);
    let mut notes = Notes::default();
    let arch = arch(args, &found)?;
    let shared = Shared::new(&reference, &disk, &args.open)?;
    let base = shared.disk();
    let mut inherited = Inherited::new(args.dry_run);

    let program = match &args.qemu {
        Some(program) => program.clone(),
        None => machine::qemu(arch)?,
    };
    let accel = args.accel.unwrap_or_else(|| best_accel(arch, &mut notes));
    let wanted = args.kernel.as_deref().map(|kernel| kernel::Wanted {
        kernel,
        initrd: args.initrd.as_deref(),
        append: args.append.as_deref(),
        console: arch.console(),
        bus: args.bus,
        emulated: accel == Accel::Tcg,
    });
    let kernel = wanted.map(|wanted| Kernel::find(&wanted, &found, &mut inherited)).transpose()?;
    let firmware = firmware(args, arch, &found, &mut inherited, &mut notes)?;
    notes.tell();
    let lock = match args.dry_run {
        true => None,
        false => Some(shared.join(&reference, &args.open, &opener.stores.keyring)?),
    };
    let delta = match &args.cow {
        Some(path) => changes::kept(path, &opener, &reference, &disk, args.dry_run)?,
        None => inherited.add(|| changes::throw_away(&disk))?,
    };
    let machine = Machine {
        program,
        arch,
        accel,
        firmware,
        kernel,
        memory: args.memory,
        cpus: args.cpus.unwrap_or_else(|| {
            std::thread::available_parallelism().map_or(1, |cpus| cpus.get().min(2) as u16)
        }),
        base: &base,
        delta,
        keep: args.cow.is_some(),
        bus: args.bus,
        network: args.network,
        ssh: args.ssh,
        display: args.display,
        more: &args.more,
    };
    let command = machine.command();
    let Some(lock) = lock else {
        let mut line = machine::shell(&command);
        line.push(b'\n');
        let mut out = super::stdout()?;
        return super::output(out.write_all(&line).and_then(|()| out.flush()));
    };
    log::info!("running {}", String::from_utf8_lossy(&machine::shell(&command)));
    inherited.add(|| Ok(lock.into()))?;
    become_program(&command, &inherited)
}

/// The disk with the changes that `delta` holds already: a guest may have got a new kernel since.
fn changed(delta: &Path, opener: &Opener, reference: &Reference) -> Option<Disk> {
    if !delta.is_file() {
        return None;
    }
    let opened = opener.disk_with(delta, reference);
    opened.inspect_err(|error| log::info!("looking at the image without its changes: {error}")).ok()
}

/// Puts `command` in the place of this process.
fn become_program(command: &[OsString], inherited: &Inherited) -> Result<()> {
    let Some((program, arguments)) = command.split_first() else { return Ok(()) };
    inherited.leave_open()?;
    let error = Command::new(program).args(arguments).exec();
    Err(Error::io(error).within(program.display().to_string()))
}

/// The processor the machine gets.
fn arch(args: &Args, found: &Bootable) -> Result<Arch> {
    if let Some(arch) = args.arch {
        return Ok(arch);
    }
    match found.processor {
        Some(processor @ Processor::Other(number)) => Arch::of(processor).ok_or_else(|| {
            let message = format!("programs for a processor of ELF machine number {number}");
            Error::new(Kind::Unsupported, message)
                .within(args.reference.display().to_string())
                .with_hint("machines can be of x86_64 and aarch64; --arch insists on one")
        }),
        Some(processor) => Ok(Arch::of(processor).unwrap_or(Arch::X86_64)),
        None => Ok(Arch::of_host().unwrap_or(Arch::X86_64)),
    }
}

fn best_accel(arch: Arch, notes: &mut Notes) -> Accel {
    match Accel::best(arch) {
        Ok(()) => {
            notes.add("running on KVM");
            Accel::Kvm
        }
        Err((why, hint)) => {
            notes.add(format!("without KVM, so slowly: {why}"));
            notes.hint(hint);
            Accel::Tcg
        }
    }
}

/// What starts the guest: EFI only for a disk that a BIOS could not start, as it may not be
/// installed.
fn firmware(
    args: &Args,
    arch: Arch,
    found: &Bootable,
    inherited: &mut Inherited,
    notes: &mut Notes,
) -> Result<Firmware> {
    if let Some(firmware) = &args.firmware {
        return match firmware.to_str() {
            Some("bios") => Ok(Firmware::Builtin),
            Some("efi") => Ok(Firmware::Efi(firmware::efi(arch, inherited)?)),
            _ => {
                firmware.metadata().within(|| firmware.display().to_string())?;
                Ok(Firmware::File(firmware.clone()))
            }
        };
    }
    // A kernel given to the machine is started without asking the disk.
    if args.kernel.is_some() {
        return Ok(Firmware::Builtin);
    }
    if arch == Arch::X86_64 && (found.boot_code || !found.esp) {
        if !found.boot_code {
            notes.add("this disk may not start: neither boot code nor an EFI system partition");
            notes.hint(Some("to start the kernel of its system: --kernel image:/vmlinuz".into()));
        }
        return Ok(Firmware::Builtin);
    }
    let efi = firmware::efi(arch, inherited);
    Ok(Firmware::Efi(efi.within(|| "this disk starts by EFI alone")?))
}

/// What a person should know before the machine has the terminal.
#[derive(Debug, Default)]
struct Notes(String);

impl Notes {
    fn add(&mut self, note: impl AsRef<str>) {
        self.0.push_str(&format!("strata: {}\n", note.as_ref()));
    }

    fn hint(&mut self, hint: Option<String>) {
        self.0.extend(hint.map(|hint| format!("hint: {hint}\n")));
    }

    fn tell(mut self) {
        if io::stdin().is_terminal() {
            self.add("Ctrl-A X ends the machine");
        }
        // With standard error gone there is nobody left to tell.
        let _ = io::stderr().write_all(self.0.as_bytes());
    }
}

#[cfg(test)]
mod tests;
