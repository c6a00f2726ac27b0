//! POSIX ACLs as `system.posix_acl_access` has them: what the host does with them, where it does not
//! do it for us (`struct posix_acl_xattr_header` of the kernel; acl(5)).

const VERSION: u32 = 2;
const HEADER: usize = 4;
const ENTRY: usize = 8;

const USER_OBJ: u16 = 0x01;
const GROUP_OBJ: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

pub(super) const ACCESS: &[u8] = b"system.posix_acl_access";
pub(super) const DEFAULT: &[u8] = b"system.posix_acl_default";

/// The tags of an ACL's entries with what each permits; `None` if it is none.
fn entries(acl: &[u8]) -> Option<Vec<(u16, u16)>> {
    let (version, rest) = acl.split_first_chunk::<HEADER>()?;
    if u32::from_le_bytes(*version) != VERSION || rest.len() % ENTRY != 0 {
        return None;
    }
    let entry = |entry: &[u8]| match *entry {
        [a, b, c, d, ..] => Some((u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]))),
        _ => None,
    };
    rest.chunks(ENTRY).map(entry).collect()
}

/// `acl` with what each entry permits taken from `permitted`, in the same order.
fn rewritten(acl: &[u8], permitted: &[(u16, u16)]) -> Vec<u8> {
    let mut new = acl.to_vec();
    for (entry, (_, bits)) in
        new.iter_mut().skip(HEADER).collect::<Vec<_>>().chunks_mut(ENTRY).zip(permitted)
    {
        if let [_, _, low, high, ..] = entry {
            [**low, **high] = bits.to_le_bytes();
        }
    }
    new
}

/// The mode and access ACL of a file made with `mode` in a folder of this default ACL. Without an
/// access ACL the mode says it all.
pub(super) fn inherit(default: &[u8], mode: u16) -> (u16, Option<Vec<u8>>) {
    let Some(mut list) = entries(default) else { return (mode, None) };
    let has_mask = list.iter().any(|(tag, _)| *tag == MASK);
    let mut new = mode & 0o7000;
    for (tag, bits) in &mut list {
        let shift = match *tag {
            USER_OBJ => 6,
            MASK => 3,
            GROUP_OBJ if !has_mask => 3,
            OTHER => 0,
            _ => continue,
        };
        *bits &= mode >> shift & 7;
        new |= *bits << shift;
    }
    (new, (list.len() > 3).then(|| rewritten(default, &list)))
}

/// `acl` after `chmod(mode)`.
pub(super) fn with_mode(acl: &[u8], mode: u16) -> Option<Vec<u8>> {
    let mut list = entries(acl)?;
    let has_mask = list.iter().any(|(tag, _)| *tag == MASK);
    for (tag, bits) in &mut list {
        match *tag {
            USER_OBJ => *bits = mode >> 6 & 7,
            MASK => *bits = mode >> 3 & 7,
            GROUP_OBJ if !has_mask => *bits = mode >> 3 & 7,
            OTHER => *bits = mode & 7,
            _ => {}
        }
    }
    Some(rewritten(acl, &list))
}

/// The lower nine bits of the mode of a file with this access ACL.
pub(super) fn mode_of(acl: &[u8]) -> Option<u16> {
    let list = entries(acl)?;
    let of = |wanted: u16| list.iter().find(|(tag, _)| *tag == wanted).map(|(_, bits)| bits & 7);
    Some(of(USER_OBJ)? << 6 | of(MASK).or(of(GROUP_OBJ))? << 3 | of(OTHER)?)
}
