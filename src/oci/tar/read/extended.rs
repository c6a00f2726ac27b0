//! Extended headers: POSIX.1-2017, `pax`, "pax Extended Header", with the records that GNU tar, star,
//! libarchive and Solaris have added.

use super::cause::Cause;
use super::sparse::Records as SparseRecords;
use super::{NAME_LIMIT, acl, number, xattr};
use crate::error::Result;
use crate::tree::Time;

/// Bytes of a name that a header may give to all members: more than that, times the number of
/// members, would be a bomb.
const GLOBAL_NAME_LIMIT: u64 = 4096;
/// Digits of a record's length, and the space behind them.
const LENGTH_DIGITS: usize = 20;

/// What extended headers say in place of one field of a header.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Said<T> {
    /// Nothing.
    #[default]
    Nothing,
    /// That nothing said before holds: an empty value.
    Deleted,
    /// This.
    This(T),
}

impl<T> Said<T> {
    /// What holds where `self` was said about one member and `global` about all.
    fn or(self, global: &Self) -> Self
    where
        T: Clone,
    {
        match self {
            Self::Nothing => global.clone(),
            said => said,
        }
    }

    /// The value, or that of the header.
    pub(super) fn or_header(self, header: impl FnOnce() -> Result<T>) -> Result<T> {
        match self {
            Self::This(value) => Ok(value),
            Self::Nothing | Self::Deleted => header(),
        }
    }
}

/// What an extended header says.
#[derive(Debug, Clone, Default)]
pub(super) struct Extended {
    pub(super) path: Said<Vec<u8>>,
    pub(super) linkpath: Said<Vec<u8>>,
    pub(super) size: Said<u64>,
    pub(super) uid: Said<u32>,
    pub(super) gid: Said<u32>,
    pub(super) mtime: Said<Time>,
    pub(super) devmajor: Said<u32>,
    pub(super) devminor: Said<u32>,
    /// The permission bits that a list of access leaves (`0o777`).
    pub(super) permissions: Option<u16>,
    /// Each name once.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: SparseRecords,
}

impl Extended {
    /// Reads the records of an extended header.
    pub(super) fn parse(records: &[u8]) -> Result<Self> {
        let mut extended = Self::default();
        let mut acls = Vec::new();
        let mut escaped = xattr::Escaped::default();
        let mut rest = records;
        while !rest.is_empty() {
            let at = (records.len() - rest.len()) as u64;
            let (key, value, after) = record(rest).ok_or(Cause::Record(at))?;
            match key {
                b"SCHILY.acl.access" => {
                    if let Some(access) = acl::access(value)? {
                        extended.permissions = Some(access.bits);
                        acls.extend(access.xattr);
                    }
                }
                b"SCHILY.acl.default" => acls.extend(acl::default(value)?),
                _ => {
                    escaped.note(key, extended.xattrs.len());
                    extended.record(key, value)?;
                }
            }
            rest = after;
        }
        escaped.drop_copies(&mut extended.xattrs);
        // Where a list is there in the kernel's own form too, that one says more.
        acls.append(&mut extended.xattrs);
        extended.xattrs = xattr::each_once(acls);
        Ok(extended)
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let wrong = || Cause::Value(shown(key));
        match key {
            b"path" => self.path = name(value, "the path of an extended header")?,
            b"linkpath" => self.linkpath = name(value, "the linkpath of an extended header")?,
            b"size" => self.size = said(value, size).ok_or_else(wrong)?,
            b"uid" => self.uid = said(value, small).ok_or_else(wrong)?,
            b"gid" => self.gid = said(value, small).ok_or_else(wrong)?,
            b"mtime" => self.mtime = said(value, number::time).ok_or_else(wrong)?,
            b"SCHILY.devmajor" => self.devmajor = said(value, small).ok_or_else(wrong)?,
            b"SCHILY.devminor" => self.devminor = said(value, small).ok_or_else(wrong)?,
            b"RHT.security.selinux" => {
                self.xattrs.push((b"security.selinux".to_vec(), value.to_vec()));
            }
            _ => {
                if let Some(name) = key.strip_prefix(xattr::STAR) {
                    self.xattrs.push((xattr::name(name)?, value.to_vec()));
                } else if let Some(name) = key.strip_prefix(xattr::LIBARCHIVE) {
                    let value = xattr::base64(value).ok_or_else(wrong)?;
                    self.xattrs.push((xattr::url_name(name)?, value));
                } else if key.starts_with(b"GNU.sparse.") {
                    self.sparse.record(key, value)?;
                }
                // The rest says nothing that can be shown: comments, other times, names of users, the
                // encoding of names.
            }
        }
        Ok(())
    }

    /// Takes over what a header for all members, `self`, says after what others have said.
    pub(super) fn after(self, earlier: &Self) -> Result<Self> {
        // What members have each of their own; to hand it to all of them would be a bomb.
        if let Some((name, _)) = self.xattrs.first() {
            return Err(Cause::Global(format!("of extended attribute {}", shown(name))).into());
        }
        if self.sparse != SparseRecords::default() {
            return Err(Cause::Global("of a sparse file".to_owned()).into());
        }
        for name in [&self.path, &self.linkpath] {
            if let Said::This(name) = name {
                limit("the name in a header for all members", name, GLOBAL_NAME_LIMIT)?;
            }
        }
        Ok(self.over(earlier))
    }

    /// What holds for a member that `self` is about.
    pub(super) fn over(self, global: &Self) -> Self {
        Self {
            path: self.path.or(&global.path),
            linkpath: self.linkpath.or(&global.linkpath),
            size: self.size.or(&global.size),
            uid: self.uid.or(&global.uid),
            gid: self.gid.or(&global.gid),
            mtime: self.mtime.or(&global.mtime),
            devmajor: self.devmajor.or(&global.devmajor),
            devminor: self.devminor.or(&global.devminor),
            permissions: self.permissions,
            xattrs: self.xattrs,
            sparse: self.sparse,
        }
    }
}

/// The first record of `records`, `LENGTH KEY=VALUE` and a line feed, and what follows it.
fn record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = records.iter().take(LENGTH_DIGITS).position(|&byte| byte == b' ')?;
    let (digits, _) = records.split_at_checked(space)?;
    let len = usize::try_from(number::decimal(digits)?).ok()?;
    let (record, rest) = records.split_at_checked(len)?;
    let record = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|&byte| byte == b'=')?;
    let (key, value) = record.split_at_checked(equals)?;
    if key.is_empty() {
        return None;
    }
    Some((key, value.get(1..)?, rest))
}

fn said<T>(value: &[u8], parse: impl FnOnce(&[u8]) -> Option<T>) -> Option<Said<T>> {
    if value.is_empty() {
        return Some(Said::Deleted);
    }
    parse(value).map(Said::This)
}

fn name(value: &[u8], what: &'static str) -> Result<Said<Vec<u8>>> {
    limit(what, value, NAME_LIMIT)?;
    if value.contains(&0) {
        return Err(Cause::Nul(what).into());
    }
    Ok(if value.is_empty() { Said::Deleted } else { Said::This(value.to_vec()) })
}

fn limit(what: &'static str, name: &[u8], limit: u64) -> Result<()> {
    let len = name.len() as u64;
    if len > limit { Err(Cause::TooLong { what, len, limit }.into()) } else { Ok(()) }
}

/// The size of a file, which the host holds as a signed number.
pub(super) fn size(value: &[u8]) -> Option<u64> {
    number::decimal(value).filter(|&size| i64::try_from(size).is_ok())
}

fn small(value: &[u8]) -> Option<u32> {
    u32::try_from(number::decimal(value)?).ok()
}

/// The start of a key, for a message.
pub(super) fn shown(key: &[u8]) -> String {
    key.get(..64).unwrap_or(key).escape_ascii().to_string()
}
