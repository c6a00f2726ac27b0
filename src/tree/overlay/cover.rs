//! Putting all names of copied-up files into the upper.
//!
//! A file with several names in the lower is copied up under one of them; the index tells us of the
//! others. The kernel does not read our index, so before an upper is left to it, every name gets
//! there.

use std::sync::Arc;

use super::host;
use super::node::{Form, Node};
use super::work::Work;
use super::{Alone, Overlay};
use crate::error::Result;

impl Overlay {
    /// Puts all names of files in the index into the upper.
    pub(super) fn cover(&self) -> Result<()> {
        let Some(work) = self.work.as_ref().filter(|_| self.writable) else { return Ok(()) };
        let alone = self.names.write();
        let mut missing: i64 = 0;
        for node in work.all_indexed() {
            if let Some(file) = work.indexed(node)? {
                // The host counts the index, which is no name.
                missing += self.marks.extra_links(&file)? + 1;
            }
        }
        let mut folders = vec![self.node(self.lower.root())?];
        while missing > 0
            && let Some(dir) = folders.pop()
        {
            missing -= self.cover_in(&dir, &mut folders, work, &alone)?;
        }
        Ok(())
    }

    /// The same in one folder; the folders in it are put on `folders`.
    fn cover_in(
        &self,
        dir: &Arc<Node>,
        folders: &mut Vec<Arc<Node>>,
        work: &Work,
        alone: &Alone<'_>,
    ) -> Result<i64> {
        let mut names: Vec<Box<[u8]>> = Vec::new();
        if dir.is_above() {
            let handle = self.handle(dir, alone)?;
            host::list(&handle, &mut |name, kind, _| {
                if kind == rustix::fs::FileType::Directory {
                    names.push(name.into());
                }
            })?;
        }
        if let Some(lower) = dir.lower {
            let mut looked = Ok(());
            self.lower.read_dir(lower, 0, &mut |entry| {
                let folder = self.lower.attr(entry.node);
                match folder {
                    Ok(attr) if attr.kind == crate::tree::FileKind::Directory => {
                        names.push(entry.name.into());
                    }
                    Ok(_) if work.has(Some(entry.node)) => names.push(entry.name.into()),
                    Ok(_) => {}
                    Err(error) => {
                        looked = Err(error);
                        return false;
                    }
                }
                true
            })?;
            looked?;
        }
        names.sort();
        names.dedup();
        let mut covered = 0;
        for name in names {
            let Some(node) = self.find(dir, &name, alone)? else { continue };
            if node.form == Form::Folder {
                folders.push(node);
            } else if node.state.lock().indexed {
                covered += i64::from(self.raise_name(dir, &name, &node, work, alone)?);
                self.settle(node);
            }
        }
        Ok(covered)
    }
}
