//! Extended attributes in records: `SCHILY.xattr.NAME` has the value as it is (star, GNU tar, Go),
//! `LIBARCHIVE.xattr.NAME` has the name as in a URL and the value in base64.

use std::collections::{HashMap, HashSet};

use super::cause::Cause;
use crate::error::Result;

/// What keys begin with that have a name behind them, and the value as it is.
pub(super) const STAR: &[u8] = b"SCHILY.xattr.";
/// What keys begin with that have a name as in a URL behind them, and the value in base64.
pub(super) const LIBARCHIVE: &[u8] = b"LIBARCHIVE.xattr.";

const NAME: &str = "the name of an extended attribute";

/// libarchive before 3.8 writes each attribute in both forms, and the name as in a URL into both: what
/// it calls `SCHILY.xattr.user.a%20b` is no attribute of that name, if the same stands behind
/// `LIBARCHIVE.xattr.` with the same value.
#[derive(Default)]
pub(super) struct Escaped<'a> {
    /// Names with a percent sign as they are written, and which attribute each gave.
    star: Vec<(&'a [u8], usize)>,
    libarchive: HashMap<&'a [u8], usize>,
}

impl<'a> Escaped<'a> {
    /// Takes the key of a record that gives attribute number `at`, if it gives one.
    pub(super) fn note(&mut self, key: &'a [u8], at: usize) {
        if !key.contains(&b'%') {
        } else if let Some(name) = key.strip_prefix(STAR) {
            self.star.push((name, at));
        } else if let Some(name) = key.strip_prefix(LIBARCHIVE) {
            self.libarchive.insert(name, at);
        }
    }

    /// Drops the attributes that stand there under their right name, too.
    pub(super) fn drop_copies(self, xattrs: &mut Vec<(Vec<u8>, Vec<u8>)>) {
        let value = |at: usize| xattrs.get(at).map(|(_, value)| value);
        let is_copy = |&(name, at): &(&[u8], usize)| {
            self.libarchive.get(name).is_some_and(|&right| value(right) == value(at))
        };
        let copies: HashSet<usize> =
            self.star.iter().copied().filter(is_copy).map(|it| it.1).collect();
        let mut at = 0;
        xattrs.retain(|_| {
            at += 1;
            !copies.contains(&(at - 1))
        });
    }
}

/// The name behind `SCHILY.xattr.`, in which GNU tar writes `%3D` for an equals sign and `%25` for a
/// percent sign.
pub(super) fn name(text: &[u8]) -> Result<Vec<u8>> {
    checked(unescaped(text, |escape| match escape {
        b"3D" => Some(b'='),
        b"25" => Some(b'%'),
        _ => None,
    }))
}

/// The name behind `LIBARCHIVE.xattr.`.
pub(super) fn url_name(text: &[u8]) -> Result<Vec<u8>> {
    checked(unescaped(text, |escape| {
        u8::from_str_radix(std::str::from_utf8(escape).ok()?, 16).ok()
    }))
}

fn checked(name: Vec<u8>) -> Result<Vec<u8>> {
    if name.is_empty() {
        return Err(Cause::Value("of an extended attribute without a name".to_owned()).into());
    }
    if name.contains(&0) {
        return Err(Cause::Nul(NAME).into());
    }
    Ok(name)
}

/// `text` with each percent sign and two characters that `byte` knows replaced by that byte.
fn unescaped(text: &[u8], byte: impl Fn(&[u8]) -> Option<u8>) -> Vec<u8> {
    let mut name = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let escaped = match (first, after.split_at_checked(2)) {
            (b'%', Some((escape, after))) => byte(escape).map(|byte| (byte, after)),
            _ => None,
        };
        let (byte, after) = escaped.unwrap_or((first, after));
        name.push(byte);
        rest = after;
    }
    name
}

/// What `text` stands for in base64, padded or not.
pub(super) fn base64(text: &[u8]) -> Option<Vec<u8>> {
    let end = text.iter().rposition(|&byte| byte != b'=').map_or(0, |last| last + 1);
    let (text, padding) = text.split_at_checked(end)?;
    // One character alone is less than a byte.
    if padding.len() > 2 || text.len() % 4 == 1 {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for group in text.chunks(4) {
        let mut bits = 0_u32;
        for &character in group {
            bits = bits << 6 | sextet(character)?;
        }
        bits <<= 6 * (4 - group.len());
        let [_, all @ ..] = bits.to_be_bytes();
        bytes.extend(all.iter().take(group.len() * 3 / 4));
    }
    Some(bytes)
}

fn sextet(character: u8) -> Option<u32> {
    let value = match character {
        b'A'..=b'Z' => character - b'A',
        b'a'..=b'z' => character - b'a' + 26,
        b'0'..=b'9' => character - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(u32::from(value))
}

/// The attributes with each name once: the last of a name holds.
pub(super) fn each_once(mut xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Vec<(Vec<u8>, Vec<u8>)> {
    if xattrs.len() < 2 {
        return xattrs;
    }
    let last: HashMap<Vec<u8>, usize> =
        xattrs.iter().enumerate().map(|(at, (name, _))| (name.clone(), at)).collect();
    let mut at = 0;
    xattrs.retain(|(name, _)| {
        let holds = last.get(name) == Some(&at);
        at += 1;
        holds
    });
    xattrs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_padded_or_not() {
        for (text, bytes) in [
            (&b""[..], &b""[..]),
            (b"Zg", b"f"),
            (b"Zg==", b"f"),
            (b"Zm8", b"fo"),
            (b"Zm8=", b"fo"),
            (b"Zm9v", b"foo"),
            (b"Zm9vYmFy", b"foobar"),
            (b"AP+/", b"\0\xff\xbf"),
        ] {
            assert_eq!(base64(text).as_deref(), Some(bytes), "{text:?}");
        }
        for text in [&b"Z"[..], b"Zm9vY", b"Zg===", b"Z=g=", b"Zm 8", b"Zm9v\n"] {
            assert_eq!(base64(text), None, "{text:?}");
        }
    }

    #[test]
    fn names() {
        assert_eq!(name(b"user.a%3Db%25%20%3d%").unwrap(), b"user.a=b%%20%3d%");
        assert_eq!(url_name(b"user.a%3Db%20c%zz%4").unwrap(), b"user.a=b c%zz%4");
        assert_eq!(*url_name(b"user.%00").unwrap_err().cause::<Cause>().unwrap(), Cause::Nul(NAME));
        assert!(name(b"").is_err());
    }

    #[test]
    fn the_last_of_a_name_holds() {
        let pair = |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
        let all = vec![pair("a", "1"), pair("b", "2"), pair("a", "3"), pair("c", "4")];
        assert_eq!(each_once(all), [pair("b", "2"), pair("a", "3"), pair("c", "4")]);
    }
}
