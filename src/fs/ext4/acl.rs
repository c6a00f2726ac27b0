//! POSIX access control lists: stored without the identifiers that say nothing, shown as the
//! kernel's attribute has them.

use zerocopy::little_endian::{U16, U32};

use super::cause::Cause;
use crate::wire;

const STORED_VERSION: u32 = 1;
const KERNEL_VERSION: u32 = 2;
/// Entries for a named user or group carry an identifier.
const USER: u16 = 0x02;
const GROUP: u16 = 0x08;
/// Those for the owner, the owning group, everybody else, and the mask do not.
const UNNAMED: [u16; 4] = [0x01, 0x04, 0x10, 0x20];
const NO_ID: u32 = u32::MAX;

/// Translates a stored list into the form of `system.posix_acl_access`.
pub(super) fn to_kernel(inode: u32, stored: &[u8]) -> Result<Vec<u8>, Cause> {
    let wrong = |what| Cause::Acl { inode, what };
    let version: &U32 = wire::record(stored, 0).ok_or(wrong("cut short"))?;
    if version.get() != STORED_VERSION {
        return Err(wrong("its version"));
    }
    let mut kernel = KERNEL_VERSION.to_le_bytes().to_vec();
    let mut at = 4;
    while at < stored.len() {
        let [tag, permissions]: &[U16; 2] = wire::record(stored, at).ok_or(wrong("cut short"))?;
        at += 4;
        let id = match tag.get() {
            USER | GROUP => {
                let id: &U32 = wire::record(stored, at).ok_or(wrong("cut short"))?;
                at += 4;
                id.get()
            }
            tag if UNNAMED.contains(&tag) => NO_ID,
            _ => return Err(wrong("an entry of unknown kind")),
        };
        kernel.extend_from_slice(&tag.get().to_le_bytes());
        kernel.extend_from_slice(&permissions.get().to_le_bytes());
        kernel.extend_from_slice(&id.to_le_bytes());
    }
    Ok(kernel)
}
