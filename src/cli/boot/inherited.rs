//! Open files that QEMU inherits: what it is given that has no name on the host, and so vanishes
//! with it, however it ends.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::io::FdFlags;

use crate::error::{Result, ResultExt};

/// The least number one gets: above those of the longest chain of images, so that numbers are the
/// same from one run to the next.
const FIRST: RawFd = 600;

/// Files for the program that takes the place of this one.
#[derive(Debug)]
pub(super) struct Inherited {
    files: Vec<OwnedFd>,
    /// In a dry run nothing is opened: the number the next file would get.
    pretended: Option<RawFd>,
}

impl Inherited {
    pub(super) fn new(dry_run: bool) -> Self {
        Self { files: Vec::new(), pretended: dry_run.then_some(FIRST) }
    }

    /// Takes the file that `open` opens; the name QEMU can open it by.
    pub(super) fn add(&mut self, open: impl FnOnce() -> Result<OwnedFd>) -> Result<String> {
        let number = match &mut self.pretended {
            Some(next) => {
                *next += 1;
                *next - 1
            }
            None => {
                let file = rustix::io::fcntl_dupfd_cloexec(open()?, FIRST)
                    .map_err(io::Error::from)
                    .within(|| "handing a file to QEMU")?;
                let number = file.as_raw_fd();
                self.files.push(file);
                number
            }
        };
        Ok(format!("/proc/self/fd/{number}"))
    }

    /// Lets them outlive this program.
    pub(super) fn leave_open(&self) -> Result<()> {
        for file in &self.files {
            rustix::io::fcntl_setfd(file, FdFlags::empty())
                .map_err(io::Error::from)
                .within(|| "handing a file to QEMU")?;
        }
        Ok(())
    }
}
