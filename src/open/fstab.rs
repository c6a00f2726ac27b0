//! `/etc/fstab`: which filesystem the guest puts where.
//!
//! Source: fstab(5) and mount(8) of util-linux.

/// Entries taken at most.
const MOST: usize = 1000;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// What is mounted, as written.
    pub(super) what: String,
    /// Where; absolute for a filesystem.
    pub(super) at: Vec<u8>,
    /// Filesystem type, as written.
    pub(super) kind: String,
    options: Vec<String>,
}

/// What an entry is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A filesystem on some disk.
    Filesystem,
    /// Files of another computer or of the host.
    Elsewhere,
    /// A folder shown at another place too.
    Bind,
    /// Swap space, or what the kernel makes up when it runs.
    Transient,
}

/// How a device is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Device {
    /// By the filesystem's identifier.
    Uuid(String),
    /// By the filesystem's label.
    Label(String),
    /// By the partition's identifier.
    PartUuid(String),
    /// By the partition's name.
    PartLabel(String),
    /// By number: partition `number` of the disk the guest called `disk`; 0 is the whole disk.
    Partition {
        /// `vda`, `nvme0n1`.
        disk: String,
        /// From 1.
        number: u32,
    },
    /// In some way that says nothing about one disk: a logical volume, an array.
    Other,
}

/// The entries of a table; lines that are none are left out, and so is what comes after the
/// thousandth.
pub(super) fn parse(text: &[u8]) -> Vec<Entry> {
    text.split(|&byte| byte == b'\n').filter_map(entry).take(MOST).collect()
}

fn entry(line: &[u8]) -> Option<Entry> {
    let mut fields =
        line.split(|byte| byte.is_ascii_whitespace()).filter(|field| !field.is_empty());
    let what = fields.next().filter(|field| field.first() != Some(&b'#'))?;
    let at = unescape(fields.next()?);
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    let kind = text(fields.next()?);
    let options = fields.next().map(text).unwrap_or_default();
    let options = options.split(',').map(str::to_owned).collect();
    Some(Entry { what: text(what), at, kind, options })
}

/// `\040` is a blank.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if let (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) =
            (byte, tail)
        {
            bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
            rest = tail;
        } else {
            bytes.push(byte);
        }
    }
    bytes
}

impl Entry {
    /// What the entry is for.
    pub(super) fn purpose(&self) -> Purpose {
        const TRANSIENT: &[&str] = &[
            "swap",
            "ignore",
            "proc",
            "sysfs",
            "tmpfs",
            "ramfs",
            "devtmpfs",
            "devpts",
            "cgroup",
            "cgroup2",
            "debugfs",
            "tracefs",
            "securityfs",
            "hugetlbfs",
            "mqueue",
            "binfmt_misc",
            "configfs",
            "fusectl",
            "pstore",
            "efivarfs",
            "bpf",
            "rpc_pipefs",
            "nfsd",
            "autofs",
            "usbfs",
            "usbdevfs",
            "selinuxfs",
            "functionfs",
        ];
        const ELSEWHERE: &[&str] = &[
            "nfs",
            "nfs4",
            "cifs",
            "smb3",
            "smbfs",
            "ncpfs",
            "afs",
            "ceph",
            "9p",
            "virtiofs",
            "glusterfs",
            "fuse.glusterfs",
            "lustre",
            "davfs",
            "sshfs",
            "fuse.sshfs",
            "vboxsf",
            "vmhgfs",
            "fuse.vmhgfs-fuse",
            "overlay",
            "aufs",
            "unionfs",
        ];
        let kind = self.kind.as_str();
        if self.options.iter().any(|option| matches!(option.as_str(), "bind" | "rbind")) {
            Purpose::Bind
        } else if TRANSIENT.contains(&kind) || !self.at.starts_with(b"/") {
            Purpose::Transient
        } else if ELSEWHERE.contains(&kind) || self.what.starts_with("//") {
            Purpose::Elsewhere
        } else {
            Purpose::Filesystem
        }
    }

    /// Whether the guest mounts it only when asked to.
    pub(super) fn is_noauto(&self) -> bool {
        self.options.iter().any(|option| option == "noauto")
    }

    /// Whether it is the root.
    pub(super) fn is_root(&self) -> bool {
        self.depth() == 0 && self.at.starts_with(b"/")
    }

    /// Names in the mount point: a filesystem is mounted after those above it.
    pub(super) fn depth(&self) -> usize {
        self.at.split(|&byte| byte == b'/').filter(|name| !name.is_empty()).count()
    }

    /// How the device is named.
    pub(super) fn device(&self) -> Device {
        let what = self.what.as_str();
        if let Some((tag, value)) = what.split_once('=') {
            let value = value.trim_matches('"').to_owned();
            match tag {
                "UUID" => return Device::Uuid(value),
                "LABEL" => return Device::Label(value),
                "PARTUUID" => return Device::PartUuid(value),
                "PARTLABEL" => return Device::PartLabel(value),
                _ => {}
            }
        }
        let Some(path) = what.strip_prefix("/dev/") else { return Device::Other };
        if let Some((by, value)) = path.strip_prefix("disk/by-").and_then(|by| by.split_once('/')) {
            let value = udev_unescape(value);
            match by {
                "uuid" => return Device::Uuid(value),
                "label" => return Device::Label(value),
                "partuuid" => return Device::PartUuid(value),
                "partlabel" => return Device::PartLabel(value),
                _ => {}
            }
        }
        partition(path).unwrap_or(Device::Other)
    }
}

/// `sda2`, `nvme0n1p2`, `disk/by-id/scsi-0QEMU-part2`, `vda`.
fn partition(path: &str) -> Option<Device> {
    let disk = path.trim_end_matches(|letter: char| letter.is_ascii_digit());
    let number = || path[disk.len()..].parse::<u32>().ok();
    let on = |disk: &str, number| Some(Device::Partition { disk: disk.to_owned(), number });
    if let Some(disk) = disk.strip_suffix("-part") {
        return on(disk, number()?);
    }
    if path.contains('/') {
        return None;
    }
    let ends_in_digit = |name: &str| name.ends_with(|letter: char| letter.is_ascii_digit());
    if let Some(disk) = disk.strip_suffix('p').filter(|disk| ends_in_digit(disk)) {
        return on(disk, number()?);
    }
    let lettered = ["sd", "vd", "hd", "xvd", "ubd"].iter().any(|prefix| disk.starts_with(prefix));
    match number() {
        Some(number) if lettered => on(disk, number),
        // nvme0n1 and mmcblk0 end in digits of their own.
        Some(_) if path.starts_with("nvme") || path.starts_with("mmcblk") => on(path, 0),
        None if lettered && disk == path => on(disk, 0),
        _ => None,
    }
}

/// udev writes a blank in a label as `\x20`.
fn udev_unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        let code = tail.strip_prefix(b"x").and_then(|tail| tail.get(..2));
        let code = code.and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(code) if byte == b'\\' => {
                bytes.push(code);
                rest = &tail[3..];
            }
            _ => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests;
