//! Where the members of a tar lie, told by its headers alone: the contents are passed over, so that
//! an archive of many gigabytes is open in milliseconds (POSIX.1-2017, `pax`; GNU tar manual,
//! "Basic Tar Format").
//!
//! Only what archives of images need: names and sizes in all their forms, and links within the
//! archive. A name with `..` in it is nobody's.
//!
//! The reader of layers (`oci/tar`) would take the whole archive: it reads a stream that cannot jump, as
//! layers are compressed, and everything in it counts for a digest.

use std::collections::HashMap;
use std::sync::Arc;

use super::cause::Cause;
use super::compression::Compression;
use super::reference::compressed;
use super::span;
use crate::block::{BlockSource, Window};
use crate::error::{Result, ResultExt};
use crate::wire::Budget;

/// Bytes of a block. Everything in a tar begins at a multiple.
pub(super) const BLOCK: usize = 512;
/// Members of an archive of images at most: each layer takes three, and a thousand are many.
const MAX_MEMBERS: u64 = 200_000;
/// Bytes of a long name or of an extended header at most.
const MAX_EXTENSION: u64 = 1 << 20;
/// Bytes of all names that are kept.
const MAX_NAMES: u64 = 32 << 20;
/// Links that are followed to a member.
const MAX_LINKS: usize = 8;

/// The members of a tar.
#[derive(Debug)]
pub struct Archive {
    source: Arc<dyn BlockSource>,
    members: HashMap<Vec<u8>, Member>,
}

#[derive(Debug, Clone)]
enum Member {
    File {
        at: u64,
        len: u64,
    },
    /// Parts of it lie elsewhere than in one piece.
    Sparse,
    /// The name that it leads to, from the root of the archive.
    Link(Vec<u8>),
}

impl Archive {
    /// Lists the members of `source`. Of several with one name the last one counts, as when the
    /// archive is unpacked.
    ///
    /// # Errors
    /// [`crate::error::Kind::Corrupt`] for what is no whole tar, and those of `source`.
    pub fn open(source: Arc<dyn BlockSource>) -> Result<Self> {
        let mut start = [0; 6];
        if source.len() >= start.len() as u64 {
            source.read_at(0, &mut start)?;
        }
        match span::detect(&start) {
            Compression::None => {}
            other => return Err(compressed(other)),
        }
        let mut archive = Self { source, members: HashMap::new() };
        archive.list(u64::MAX)?;
        Ok(archive)
    }

    /// The first `most` members, or those before the first that is damaged.
    pub(super) fn beginning(source: Arc<dyn BlockSource>, most: usize) -> Self {
        let mut archive = Self { source, members: HashMap::new() };
        // What was listed until then is the answer.
        let _ = archive.list(most as u64);
        archive
    }

    /// The contents of the member of that name, or of what it links to. `None` if there is none,
    /// or it is no file.
    ///
    /// # Errors
    /// [`crate::error::Kind::Corrupt`] for links that go round,
    /// [`crate::error::Kind::Unsupported`] for a sparse member.
    pub fn get(&self, name: &str) -> Result<Option<Arc<Window>>> {
        let Some(mut at) = normal(name.as_bytes()) else { return Ok(None) };
        for _ in 0..MAX_LINKS {
            match self.members.get(&at) {
                None => return Ok(None),
                Some(&Member::File { at, len }) => {
                    return Window::new(Arc::clone(&self.source), at, len).map(Arc::new).map(Some);
                }
                Some(Member::Sparse) => return Err(Cause::ArchiveSparse(name.into()).into()),
                Some(Member::Link(target)) => at = target.clone(),
            }
        }
        Err(Cause::ArchiveLinks(name.into()).into())
    }

    fn list(&mut self, most: u64) -> Result<()> {
        let mut members = Budget::new("members", MAX_MEMBERS);
        let mut names = Budget::new("bytes of names", MAX_NAMES);
        let mut at = 0_u64;
        let (mut global, mut local) = (Extension::default(), Extension::default());
        // Those of GNU tar count for more than those of extended headers, as for `oci/tar`.
        let (mut long_path, mut long_link) = (None, None);
        let mut listed = 0;
        let mut block = [0; BLOCK];
        while listed < most && at.saturating_add(BLOCK as u64) <= self.source.len() {
            self.source.read_at(at, &mut block)?;
            if block.iter().all(|&byte| byte == 0) {
                return Ok(());
            }
            if !is_header(&block) {
                let why = if at == 0 { "is none of a tar" } else { "does not add up" };
                return Err(Cause::ArchiveHeader { at, why }.into());
            }
            members.spend(1)?;
            let data = at + BLOCK as u64;
            let room = self.source.len() - data;
            let (typeflag, size) = (block[156], number(&block[124..136]));
            let is_extension = matches!(typeflag, b'x' | b'X' | b'g' | b'L' | b'K');
            let size = match local.size.or(global.size).filter(|_| !is_extension) {
                Some(size) => size,
                None => size.ok_or(Cause::ArchiveHeader { at, why: "has a size that is none" })?,
            };
            // Links and folders have no contents, whatever their size field says.
            let len = if matches!(typeflag, b'1'..=b'6') { 0 } else { size };
            if len > room {
                return Err(Cause::ArchiveCut { at, len, room }.into());
            }
            if is_extension {
                if len > MAX_EXTENSION {
                    let why = "claims more than 1 MiB of names";
                    return Err(Cause::ArchiveHeader { at, why }.into());
                }
                let mut bytes = vec![0; len as usize];
                self.source.read_at(data, &mut bytes).within(|| "reading a long name")?;
                match typeflag {
                    b'L' => long_path = Some(until_zero(&bytes).to_vec()),
                    b'K' => long_link = Some(until_zero(&bytes).to_vec()),
                    b'g' => global.take(&bytes),
                    _ => {
                        // Of several the last holds.
                        local = Extension::default();
                        local.take(&bytes);
                    }
                }
            } else {
                listed += 1;
                let said = std::mem::take(&mut local);
                let path = long_path.take().or(said.path).or_else(|| global.path.clone());
                let path = path.unwrap_or_else(|| name_of(&block));
                names.spend(path.len() as u64)?;
                let link = long_link.take().or(said.link).or_else(|| global.link.clone());
                let link = link.unwrap_or_else(|| until_zero(&block[157..257]).to_vec());
                let is_sparse = said.sparse || typeflag == b'S';
                self.keep(&path, typeflag, &link, is_sparse, (data, len));
            }
            // Cannot pass what `room` was checked against by more than the last block's padding.
            at = data.saturating_add(len.next_multiple_of(BLOCK as u64));
        }
        Ok(())
    }

    fn keep(&mut self, path: &[u8], typeflag: u8, link: &[u8], sparse: bool, data: (u64, u64)) {
        let Some(path) = normal(path) else { return };
        let member = match typeflag {
            _ if sparse => Member::Sparse,
            b'0' | 0 | b'7' => Member::File { at: data.0, len: data.1 },
            b'1' => match normal(link) {
                Some(target) => Member::Link(target),
                None => return,
            },
            b'2' => {
                // From the folder of the link, and never above the root of the archive.
                let folder = path.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
                let from_root = link.starts_with(b"/");
                let mut parts: Vec<&[u8]> = match path.get(..folder) {
                    Some(folder) if !from_root && !folder.is_empty() => {
                        folder.split(|&byte| byte == b'/').collect()
                    }
                    _ => vec![],
                };
                for part in link.split(|&byte| byte == b'/') {
                    match part {
                        b"" | b"." => {}
                        b".." => drop(parts.pop()),
                        part => parts.push(part),
                    }
                }
                Member::Link(parts.join(&b'/'))
            }
            _ => return,
        };
        self.members.insert(path, member);
    }
}

/// What headers before a member's own say about it.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    sparse: bool,
}

impl Extension {
    /// Takes records `LENGTH KEY=VALUE\n`; what is no record ends them.
    fn take(&mut self, mut records: &[u8]) {
        while let Some(space) = records.iter().position(|&byte| byte == b' ') {
            let len = std::str::from_utf8(records.get(..space).unwrap_or_default());
            let Some(len) = len.ok().and_then(|digits| digits.parse::<usize>().ok()) else {
                return;
            };
            let Some(record) = records.get(space + 1..len) else { return };
            let record = record.strip_suffix(b"\n").unwrap_or(record);
            let Some(equals) = record.iter().position(|&byte| byte == b'=') else { return };
            let (key, value) = record.split_at(equals);
            let value = value.get(1..).unwrap_or_default();
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => {
                    self.size = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                }
                key if key.starts_with(b"GNU.sparse.") => self.sparse = true,
                _ => {}
            }
            records = records.get(len..).unwrap_or_default();
        }
    }
}

/// A path without `.`, empty parts, and slashes at either end; `None` if it has `..`.
fn normal(path: &[u8]) -> Option<Vec<u8>> {
    let parts: Vec<_> =
        path.split(|&byte| byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    (!parts.contains(&b"..".as_slice())).then(|| parts.join(&b'/'))
}

/// Whether `block` is a header: its bytes add up to what it says, those of the sum itself taken
/// for spaces, signed or not.
pub(super) fn is_header(block: &[u8]) -> bool {
    let (Some(before), Some(sum), Some(after)) =
        (block.get(..148), block.get(148..156), block.get(156..BLOCK))
    else {
        return false;
    };
    let others = || before.iter().chain(after);
    let spaces = 8 * i64::from(b' ');
    let unsigned: i64 = others().map(|&byte| i64::from(byte)).sum();
    let signed: i64 = others().map(|&byte| i64::from(byte.cast_signed())).sum();
    let Some(sum) = number(sum).and_then(|sum| i64::try_from(sum).ok()) else { return false };
    unsigned > 0 && (sum == unsigned + spaces || sum == signed + spaces)
}

/// A number of a header: octal digits, or in base 256 if its first bit is set.
fn number(field: &[u8]) -> Option<u64> {
    match field.split_first()? {
        (&first, rest) if first & 0x80 != 0 => {
            if first != 0x80 {
                // Negative, or with bits that no size has.
                return None;
            }
            rest.iter()
                .try_fold(0_u64, |value, &byte| value.checked_mul(256)?.checked_add(byte.into()))
        }
        _ => {
            let text = until_zero(field).trim_ascii();
            let digit = |value: u64, &byte: &u8| match byte {
                b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(byte - b'0')),
                _ => None,
            };
            text.iter().try_fold(0, digit)
        }
    }
}

fn until_zero(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// The name in a header, with its prefix if it is of the form that has one.
pub(super) fn name_of(block: &[u8]) -> Vec<u8> {
    let name = until_zero(block.get(..100).unwrap_or_default());
    let is_ustar = block.get(257..263) == Some(b"ustar\0");
    let prefix = until_zero(block.get(345..500).unwrap_or_default());
    match is_ustar && !prefix.is_empty() {
        true => [prefix, b"/", name].concat(),
        false => name.to_vec(),
    }
}

#[cfg(test)]
pub(super) mod tests;
