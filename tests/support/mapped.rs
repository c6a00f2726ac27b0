//! A file mapped into memory, to write and read through the page cache as programs do.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};

/// A shared, writable mapping of the start of a file.
#[derive(Debug)]
pub struct Mapped {
    start: NonNull<u8>,
    len: usize,
}

impl Mapped {
    /// Maps `len` bytes of `file`, which is open for both.
    pub fn new(file: &File, len: usize) -> Self {
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        #[allow(unsafe_code, reason = "the standard library cannot map files")]
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe { libc::mmap(ptr::null_mut(), len, access, flags, file.as_raw_fd(), 0) };
        assert!(start != libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        Self { start: NonNull::new(start.cast()).expect("a mapping"), len }
    }

    pub fn write(&self, offset: usize, data: &[u8]) {
        assert!(offset + data.len() <= self.len);
        #[allow(unsafe_code, reason = "the mapping is shared with the kernel: no reference to it")]
        // SAFETY: the range lies in the mapping, which lives as long as `self`.
        unsafe {
            ptr::copy_nonoverlapping(data.as_ptr(), self.start.as_ptr().add(offset), data.len());
        }
    }

    pub fn read(&self, offset: usize, data: &mut [u8]) {
        assert!(offset + data.len() <= self.len);
        #[allow(unsafe_code, reason = "the mapping is shared with the kernel: no reference to it")]
        // SAFETY: the range lies in the mapping, which lives as long as `self`.
        unsafe {
            ptr::copy_nonoverlapping(
                self.start.as_ptr().add(offset),
                data.as_mut_ptr(),
                data.len(),
            );
        }
    }

    pub fn sync(&self) {
        #[allow(unsafe_code, reason = "the standard library cannot map files")]
        // SAFETY: the range is exactly the mapping.
        let result = unsafe { libc::msync(self.start.as_ptr().cast(), self.len, libc::MS_SYNC) };
        assert_eq!(result, 0, "msync: {}", std::io::Error::last_os_error());
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        #[allow(unsafe_code, reason = "the standard library cannot map files")]
        // SAFETY: the range is exactly the mapping, and nobody refers to it.
        unsafe {
            libc::munmap(self.start.as_ptr().cast(), self.len);
        }
    }
}
