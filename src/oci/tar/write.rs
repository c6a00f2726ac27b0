//! Writing a tar: members in the `ustar` form, with a `pax` extended header for what does not fit it.

use std::io::Write;

use zerocopy::IntoBytes;

use crate::error::{Error, Kind, Result, ResultExt};
use crate::oci::tar::header::{BLOCK, Header, octal, put, typeflag};
use crate::tree::{Device, Time};

/// One member of a tar.
#[derive(Debug, Clone, Copy)]
pub struct Member<'a> {
    /// Where it is, without a slash at either end.
    pub path: &'a [u8],
    /// What it is.
    pub kind: MemberKind<'a>,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of contents.
    pub modified: Time,
    /// Extended attributes, by their full names.
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberKind<'a> {
    /// A regular file of so many bytes, which [`Writer::write`] is given next.
    File(u64),
    /// The same file as the member of that path, which came before.
    HardLink(&'a [u8]),
    /// A symbolic link with that target.
    Symlink(&'a [u8]),
    /// A folder.
    Folder,
    /// A named pipe.
    Fifo,
    /// A character device.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
}

/// Writes a tar.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    /// Bytes the member is still to be given.
    missing: u64,
    /// Bytes that fill its last block.
    padding: usize,
}

impl<W: Write> Writer<W> {
    /// Writes to `out`, in small pieces.
    pub fn new(out: W) -> Self {
        Self { out, missing: 0, padding: 0 }
    }

    /// Begins a member.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for a device number too large, [`Kind::Io`] if the member before is
    /// not whole, and those of the output.
    pub fn begin(&mut self, member: &Member<'_>) -> Result<()> {
        self.end()?;
        let mut records = Records::default();
        let flag = match member.kind {
            MemberKind::File(_) => typeflag::FILE,
            MemberKind::HardLink(_) => typeflag::HARD_LINK,
            MemberKind::Symlink(_) => typeflag::SYMLINK,
            MemberKind::Folder => typeflag::FOLDER,
            MemberKind::Fifo => typeflag::FIFO,
            MemberKind::CharDevice(_) => typeflag::CHAR_DEVICE,
            MemberKind::BlockDevice(_) => typeflag::BLOCK_DEVICE,
        };
        let mut header = Header::new(flag);
        let mut path = member.path.to_vec();
        if member.kind == MemberKind::Folder {
            path.push(b'/');
        }
        records.text(b"path", &mut header.name, &path);
        let size = match member.kind {
            MemberKind::File(size) => size,
            MemberKind::HardLink(target) | MemberKind::Symlink(target) => {
                records.text(b"linkpath", &mut header.linkname, target);
                0
            }
            MemberKind::CharDevice(device) | MemberKind::BlockDevice(device) => {
                if !octal(&mut header.devmajor, device.major.into())
                    || !octal(&mut header.devminor, device.minor.into())
                {
                    let message = format!("device {}:{}", device.major, device.minor);
                    return Err(Error::new(Kind::Unsupported, message));
                }
                0
            }
            MemberKind::Folder | MemberKind::Fifo => 0,
        };
        octal(&mut header.mode, u64::from(member.mode));
        records.number(b"uid", &mut header.uid, member.uid.into());
        records.number(b"gid", &mut header.gid, member.gid.into());
        records.number(b"size", &mut header.size, size);
        records.time(&mut header.mtime, member.modified);
        for (name, value) in member.xattrs {
            records.add(&[b"SCHILY.xattr.".as_slice(), &attribute(name)].concat(), value);
        }
        self.extended(member.path, &records.0)?;
        header.sum();
        self.put(header.as_bytes())?;
        self.expect(size);
        Ok(())
    }

    /// Writes contents of the member that was begun last.
    ///
    /// # Errors
    /// [`Kind::OutOfBounds`] if it was to be shorter, and those of the output.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.missing = self.missing.checked_sub(bytes.len() as u64).ok_or_else(|| {
            Error::new(Kind::OutOfBounds, "a member of a tar became longer than it began")
        })?;
        self.put(bytes)
    }

    /// Ends the tar and gives back what it was written to.
    ///
    /// # Errors
    /// As [`Writer::begin`].
    pub fn finish(mut self) -> Result<W> {
        self.end()?;
        self.put(&[0; 2 * BLOCK])?;
        Ok(self.out)
    }

    fn end(&mut self) -> Result<()> {
        if self.missing > 0 {
            let message = format!("a member of a tar ends {} bytes early", self.missing);
            return Err(Error::new(Kind::Io, message));
        }
        let padding = std::mem::take(&mut self.padding);
        self.put([0; BLOCK].get(..padding).unwrap_or_default())
    }

    fn expect(&mut self, size: u64) {
        self.missing = size;
        // Less than a block.
        self.padding = (size.next_multiple_of(BLOCK as u64) - size) as usize;
    }

    /// Writes `records` as the extended header of the member at `path`.
    fn extended(&mut self, path: &[u8], records: &[u8]) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let mut header = Header::new(typeflag::EXTENDED);
        let last = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        put(&mut header.name, &[b"PaxHeaders/".as_slice(), last].concat());
        octal(&mut header.mode, 0o644);
        octal(&mut header.uid, 0);
        octal(&mut header.gid, 0);
        octal(&mut header.mtime, 0);
        if !octal(&mut header.size, records.len() as u64) {
            return Err(Error::new(Kind::Unsupported, "attributes of more than 8 GiB"));
        }
        header.sum();
        self.put(header.as_bytes())?;
        self.expect(records.len() as u64);
        self.write(records)?;
        self.end()
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).within(|| "cannot write")
    }
}

/// The records of an extended header: `LENGTH KEY=VALUE` and a line feed each, the length being
/// that of the whole record.
#[derive(Default)]
struct Records(Vec<u8>);

impl Records {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut len = rest + 1;
        while rest + len.to_string().len() != len {
            len = rest + len.to_string().len();
        }
        self.0.extend_from_slice(len.to_string().as_bytes());
        for part in [b" ", key, b"=", value, b"\n"] {
            self.0.extend_from_slice(part);
        }
    }

    /// A name: in its field, and in a record too if it is too long for that or is text beyond
    /// ASCII.
    fn text(&mut self, key: &[u8], field: &mut [u8], text: &[u8]) {
        let fits = put(field, text);
        let beyond_ascii = !text.is_ascii() && std::str::from_utf8(text).is_ok();
        if !fits || beyond_ascii {
            self.add(key, text);
        }
    }

    fn number(&mut self, key: &[u8], field: &mut [u8], value: u64) {
        if !octal(field, value) {
            octal(field, 0);
            self.add(key, value.to_string().as_bytes());
        }
    }

    fn time(&mut self, field: &mut [u8], time: Time) {
        let whole = u64::try_from(time.seconds).ok();
        let fits = octal(field, whole.unwrap_or(0));
        if !fits {
            octal(field, 0);
        }
        if fits && whole.is_some() && time.nanos == 0 {
            return;
        }
        // Nanoseconds go on from the second before, the record's digits away from zero.
        let (sign, seconds, nanos) = match (time.seconds, time.nanos) {
            (seconds, 0) => (if seconds < 0 { "-" } else { "" }, seconds.unsigned_abs(), 0),
            (seconds, nanos) if seconds < 0 => {
                ("-", seconds.unsigned_abs() - 1, 1_000_000_000_u32.saturating_sub(nanos))
            }
            (seconds, nanos) => ("", seconds.unsigned_abs(), nanos),
        };
        let digits = format!("{nanos:09}");
        let digits = digits.trim_end_matches('0');
        let point = if digits.is_empty() { "" } else { "." };
        self.add(b"mtime", format!("{sign}{seconds}{point}{digits}").as_bytes());
    }
}

/// The name of an attribute as a key, which an equals sign would end: GNU tar writes `%3D`.
fn attribute(name: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(name.len());
    for &byte in name {
        match byte {
            b'%' => key.extend_from_slice(b"%25"),
            b'=' => key.extend_from_slice(b"%3D"),
            byte => key.push(byte),
        }
    }
    key
}

#[cfg(test)]
mod tests;
