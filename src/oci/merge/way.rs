//! Paths of entries, found in what the layers have made so far. No path leaves the image: `..` stops
//! at its root, and symbolic links lead where they would for someone inside.

use super::apply::Applying;
use super::cause::Cause;
use super::files::Body;
use super::names::NONE;

/// Symbolic links followed on the way to one entry at most, as in containerd.
const MOST_LINKS: u32 = 255;

/// The folders on the way to the entry before: the next one is mostly in the same.
#[derive(Debug, Default)]
pub(super) struct Way {
    path: Vec<u8>,
    /// Each folder with where its name ends in the path.
    folders: Vec<(usize, u32)>,
    /// The last path that led through symbolic links, and its folder.
    linked: Option<(Vec<u8>, u32)>,
}

impl Way {
    /// Forgets it all: a folder or link on the way may have gone.
    pub(super) fn clear(&mut self) {
        self.path.clear();
        self.folders.clear();
        self.linked = None;
    }

    /// Keeps what is also on the way to `path`: that folder, and where the rest of the path begins.
    fn common(&mut self, path: &[u8]) -> (u32, usize) {
        // Mostly all of it.
        let shared = match path.starts_with(&self.path) {
            true => self.path.len(),
            false => self.path.iter().zip(path).take_while(|(one, other)| one == other).count(),
        };
        let is_on_way = |end: usize| end <= shared && matches!(path.get(end), None | Some(b'/'));
        while self.folders.last().is_some_and(|&(end, _)| !is_on_way(end)) {
            self.folders.pop();
        }
        let (end, folder) = self.folders.last().copied().unwrap_or((0, 0));
        self.path.truncate(end);
        (folder, end)
    }
}

/// What a path leads to if it is taken as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Literal {
    Folder(u32),
    /// A symbolic link is on the way.
    Link,
    Nothing,
    /// What the first so many bytes of the path lead to is no folder.
    Other(usize),
}

impl Applying<'_> {
    /// The folder at `path`, made up with all on the way if it is missing.
    pub(super) fn folder(&mut self, path: &[u8]) -> Result<u32, Cause> {
        match self.literal(path, true)? {
            Literal::Folder(folder) => Ok(folder),
            // Nothing is missing that is made up.
            Literal::Link | Literal::Nothing => {
                self.through_links(path, true)?.ok_or(Cause::Loop(MOST_LINKS))
            }
            Literal::Other(end) => {
                let at = path.get(..end).unwrap_or_default();
                Err(Cause::Parent(String::from_utf8_lossy(at).into_owned()))
            }
        }
    }

    /// The folder at `path`, if there is one.
    pub(super) fn folder_if_there(&mut self, path: &[u8]) -> Result<Option<u32>, Cause> {
        match self.literal(path, false)? {
            Literal::Folder(folder) => Ok(Some(folder)),
            Literal::Link => self.through_links(path, false),
            Literal::Nothing | Literal::Other(_) => Ok(None),
        }
    }

    /// Follows `path` without following links.
    pub(super) fn literal(&mut self, path: &[u8], make: bool) -> Result<Literal, Cause> {
        let (mut folder, mut at) = self.way.common(path);
        while at < path.len() {
            self.step()?;
            let rest = path.get(at..).unwrap_or_default();
            let start = at + usize::from(rest.first() == Some(&b'/'));
            let rest = path.get(start..).unwrap_or_default();
            let end = start + memchr::memchr(b'/', rest).unwrap_or(rest.len());
            let name = path.get(start..end).unwrap_or_default();
            let node = match self.child(folder, name) {
                NONE if make => self.make_up(folder, name)?,
                NONE => return Ok(Literal::Nothing),
                node => node,
            };
            match self.body(node) {
                Body::Folder { .. } => folder = node,
                Body::Symlink { .. } => return Ok(Literal::Link),
                _ => return Ok(Literal::Other(end)),
            }
            self.way.path.extend_from_slice(path.get(at..end).unwrap_or_default());
            self.way.folders.push((end, folder));
            at = end;
        }
        Ok(Literal::Folder(folder))
    }

    /// Follows `path` and the links on its way. Without `make`, what leads nowhere is `None`.
    fn through_links(&mut self, path: &[u8], make: bool) -> Result<Option<u32>, Cause> {
        if let Some((before, folder)) = &self.way.linked
            && before == path
        {
            return Ok(Some(*folder));
        }
        // The folders passed, without the root; the names ahead, the next one last.
        let mut way: Vec<u32> = Vec::new();
        let mut ahead: Vec<Vec<u8>> = Vec::new();
        push_names(&mut ahead, path);
        let mut links = 0;
        while let Some(name) = ahead.pop() {
            self.step()?;
            if name == b".." {
                way.pop();
                continue;
            }
            let here = way.last().copied().unwrap_or(0);
            let node = match self.child(here, &name) {
                NONE if make => self.make_up(here, &name)?,
                NONE => return Ok(None),
                node => node,
            };
            match self.body(node) {
                Body::Folder { .. } => way.push(node),
                Body::Symlink { text, len } => {
                    links += 1;
                    if links > MOST_LINKS {
                        return if make { Err(Cause::Loop(MOST_LINKS)) } else { Ok(None) };
                    }
                    let target = self.names.text.bytes(text, len);
                    if target.first() == Some(&b'/') {
                        way.clear();
                    }
                    push_names(&mut ahead, target);
                }
                _ if make => {
                    let name = String::from_utf8_lossy(&name).into_owned();
                    return Err(Cause::Parent(name));
                }
                _ => return Ok(None),
            }
        }
        let folder = way.last().copied().unwrap_or(0);
        self.way.linked = Some((path.to_vec(), folder));
        Ok(Some(folder))
    }
}

/// Puts the names of `path` in front of those ahead. A symbolic link's target may hold names longer
/// than any file has: they lead nowhere, and must not be made up.
fn push_names(ahead: &mut Vec<Vec<u8>>, path: &[u8]) {
    let names = path.split(|&byte| byte == b'/').rev();
    ahead.extend(names.filter(|name| !matches!(*name, b"" | b".")).map(<[u8]>::to_vec));
}
