//! POSIX access control lists as `SCHILY.acl.access` and `SCHILY.acl.default` tell them: the text
//! form of acl(5), with the number of a named user or group behind the permissions (star,
//! libarchive) or instead of the name (GNU tar, where the host knew no name).

use super::cause::Cause;
use super::number;
use crate::error::Result;

/// The tags of `struct posix_acl_xattr_entry`, in the order the kernel wants.
mod tag {
    pub(super) const USER_OBJ: u16 = 0x01;
    pub(super) const USER: u16 = 0x02;
    pub(super) const GROUP_OBJ: u16 = 0x04;
    pub(super) const GROUP: u16 = 0x08;
    pub(super) const MASK: u16 = 0x10;
    pub(super) const OTHER: u16 = 0x20;
}

const VERSION: u32 = 2;
/// The number of whom the tag alone tells.
const UNDEFINED: u32 = u32::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Ace {
    tag: u16,
    id: u32,
    permissions: u16,
}

/// What a list of access says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Access {
    /// The permission bits (`0o777`) of a file that has it, which are not always those that its header
    /// tells: the mask's in place of the group's.
    pub(super) bits: u16,
    /// The list as an extended attribute; none if it says no more than the bits do, which is when the
    /// kernel keeps none either.
    pub(super) xattr: Option<(Vec<u8>, Vec<u8>)>,
}

/// Reads a list of access; nothing if it is empty.
pub(super) fn access(text: &[u8]) -> Result<Option<Access>> {
    let list = parse(text).ok_or_else(|| Cause::Value("SCHILY.acl.access".to_owned()))?;
    if list.is_empty() {
        return Ok(None);
    }
    let of = |tag| list.iter().find(|ace| ace.tag == tag).map(|ace| ace.permissions);
    let group = of(tag::MASK).or(of(tag::GROUP_OBJ));
    let bits = [of(tag::USER_OBJ), group, of(tag::OTHER)]
        .into_iter()
        .fold(0, |bits, permissions| bits << 3 | permissions.unwrap_or(0));
    let says_more = list.iter().any(|ace| matches!(ace.tag, tag::USER | tag::GROUP | tag::MASK));
    let xattr = says_more.then(|| (b"system.posix_acl_access".to_vec(), binary(&list)));
    Ok(Some(Access { bits, xattr }))
}

/// The list as an extended attribute; none if it is empty.
pub(super) fn default(text: &[u8]) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
    let list = parse(text).ok_or_else(|| Cause::Value("SCHILY.acl.default".to_owned()))?;
    Ok((!list.is_empty()).then(|| (b"system.posix_acl_default".to_vec(), binary(&list))))
}

/// The entries in the kernel's order. A user or group told by name alone is left out: whom that name
/// means, the image's own files say, if anything. Only root is always 0.
fn parse(text: &[u8]) -> Option<Vec<Ace>> {
    let mut list = Vec::new();
    for entry in text.split(|&byte| byte == b',' || byte == b'\n') {
        // The permissions that the mask leaves may be told in a comment.
        let entry = entry.split(|&byte| byte == b'#').next().unwrap_or_default().trim_ascii();
        if entry.is_empty() {
            continue;
        }
        let entry = entry.strip_prefix(b"default:").unwrap_or(entry);
        let mut fields = entry.split(|&byte| byte == b':').map(<[u8]>::trim_ascii);
        let (who, second) = (fields.next()?, fields.next()?);
        // Solaris and star leave the empty name of mask and other out.
        let third = fields.next();
        let (name, permissions) = match third {
            Some(permissions) => (second, permissions),
            None => (&b""[..], second),
        };
        let id = fields.next();
        let tag = match (who, name.is_empty()) {
            (b"user" | b"u", true) => tag::USER_OBJ,
            (b"user" | b"u", false) => tag::USER,
            (b"group" | b"g", true) => tag::GROUP_OBJ,
            (b"group" | b"g", false) => tag::GROUP,
            (b"mask" | b"m", true) => tag::MASK,
            (b"other" | b"o", true) => tag::OTHER,
            _ => return None,
        };
        let permissions = parse_permissions(permissions)?;
        if name.is_empty() {
            list.push(Ace { tag, id: UNDEFINED, permissions });
        } else if let Some(id) = parse_id(name, id)? {
            list.push(Ace { tag, id, permissions });
        }
    }
    list.sort_unstable();
    // Two entries for one are no list.
    let twice = list.windows(2).any(|pair| match pair {
        [a, b] => (a.tag, a.id) == (b.tag, b.id),
        _ => false,
    });
    let has = |tag| list.iter().any(|ace: &Ace| ace.tag == tag);
    let is_whole = has(tag::USER_OBJ) && has(tag::GROUP_OBJ) && has(tag::OTHER);
    (!twice && (is_whole || list.is_empty())).then_some(list)
}

fn parse_permissions(text: &[u8]) -> Option<u16> {
    text.iter().try_fold(0, |bits, letter| match letter {
        b'r' => Some(bits | 4),
        b'w' => Some(bits | 2),
        b'x' => Some(bits | 1),
        b'-' => Some(bits),
        _ => None,
    })
}

/// The number of a user or group; none inside if only the name is told.
fn parse_id(name: &[u8], id: Option<&[u8]>) -> Option<Option<u32>> {
    let small = |text| number::decimal(text).map(|id| u32::try_from(id).ok());
    match (id, small(name)) {
        (Some(id), _) if !id.is_empty() => Some(Some(small(id)??)),
        (_, Some(id)) => Some(Some(id?)),
        _ if name == b"root" => Some(Some(0)),
        _ => Some(None),
    }
}

/// `struct posix_acl_xattr_header` and its entries.
fn binary(list: &[Ace]) -> Vec<u8> {
    let mut bytes = VERSION.to_le_bytes().to_vec();
    for ace in list {
        bytes.extend(ace.tag.to_le_bytes());
        bytes.extend(ace.permissions.to_le_bytes());
        bytes.extend(ace.id.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Option<Vec<(u16, u16, u32)>> {
        let list = parse(text.as_bytes())?;
        Some(list.iter().map(|ace| (ace.tag, ace.permissions, ace.id)).collect())
    }

    const BASE: [(u16, u16, u32); 3] = [(1, 6, UNDEFINED), (4, 4, UNDEFINED), (0x20, 0, UNDEFINED)];

    #[test]
    fn the_forms_of_each_program() {
        let [user, group, other] = BASE;
        let all = vec![user, (2, 7, 502), group, (8, 1, 0), (0x10, 5, UNDEFINED), other];
        for text in [
            // star and libarchive.
            "user::rw-,user:lisa:rwx:502,group::r--,group:wheel:--x:0,mask::r-x,other::---",
            // GNU tar.
            "user::rw-\nuser:502:rwx\t#effective:r-x\ngroup::r--\ngroup:root:--x\nmask::r-x\nother::---\n",
            // Short, in another order.
            "o::,m:r-x,g:0:--x,u:502:rwx,g::r,u::rw",
            "default:user::rw-,default:user:502:rwx,default:group::r--,default:group:0:--x,mask:r-x,other:---",
        ] {
            assert_eq!(list(text), Some(all.clone()), "{text}");
        }
    }

    #[test]
    fn who_is_told_by_name_alone_is_left_out() {
        assert_eq!(list("user::rw-,user:lisa:rwx,group::r--,other::---"), Some(BASE.to_vec()));
    }

    #[test]
    fn no_lists() {
        for text in [
            "user",
            "user:",
            "user::rwz,group::r--,other::---",
            "user::rw-",
            "who::rwx",
            "mask:name:rwx",
            "user::rw-,user::rw-,group::r--,other::r--",
            "user::rw-,user:x:rwx:4294967296,group::r--,other::---",
            "user::rw-,user:4294967296:rwx,group::r--,other::---",
            "user::rw-,user:1:rwx,user:x:r--:1,group::r--,other::---",
        ] {
            assert_eq!(list(text), None, "{text}");
        }
    }

    #[test]
    fn what_the_permission_bits_say_too_is_not_kept() {
        let plain = access(b"user::rw-,group::r--,other::---").unwrap();
        assert_eq!(plain, Some(Access { bits: 0o640, xattr: None }));
        let masked = access(b"user::rw-,group::r--,mask::rwx,other::--x").unwrap().unwrap();
        assert_eq!((masked.bits, masked.xattr.is_some()), (0o671, true));
        assert_eq!(access(b"").unwrap(), None);
        let (name, value) = default(b"user::rw-,group::r--,other::---").unwrap().unwrap();
        assert_eq!(name, b"system.posix_acl_default");
        assert_eq!(value.len(), 4 + 3 * 8);
        assert_eq!(value.get(..12), Some(&b"\x02\0\0\0\x01\0\x06\0\xff\xff\xff\xff"[..]));
        assert_eq!(default(b"").unwrap(), None);
    }
}
