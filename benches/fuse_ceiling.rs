//! The fastest a user-space server can serve one file without passthrough: `disk.img` over one
//! `pread` per request, each thread on its own cloned channel with its own reply buffer. What
//! `strata mount` reaches is measured against it.
//!
//! `fuse_ceiling FILE DIR [THREADS]` serves until DIR is unmounted.
#![allow(clippy::print_stderr, missing_docs, reason = "a measuring program")]

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, Request, Session,
};

const FILE: INodeNo = INodeNo(2);
const TTL: Duration = Duration::from_secs(1 << 20);

thread_local! {
    static REPLY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

struct Ceiling {
    file: File,
    size: u64,
    background: u16,
    max_write: u32,
}

impl Ceiling {
    fn attr(&self, ino: INodeNo) -> FileAttr {
        let root = ino == INodeNo::ROOT;
        FileAttr {
            ino,
            size: if root { 0 } else { self.size },
            blocks: self.size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if root { FileType::Directory } else { FileType::RegularFile },
            perm: if root { 0o755 } else { 0o644 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Ceiling {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = InitFlags::FUSE_ASYNC_DIO | InitFlags::FUSE_PARALLEL_DIROPS;
        let _ = config.add_capabilities(wanted & config.capabilities());
        let _ = config.set_max_background(self.background);
        let _ = config.set_max_write(self.max_write);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && name == "disk.img" {
            reply.entry(&TTL, &self.attr(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attr(ino));
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        REPLY.with_borrow_mut(|buffer| {
            let size = size as usize;
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            match self.file.read_at(&mut buffer[..size], offset) {
                Ok(len) => reply.data(&buffer[..len]),
                Err(_) => reply.error(Errno::EIO),
            }
        });
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn readdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if offset == 0 {
            let _ = reply.add(FILE, 1, FileType::RegularFile, "disk.img");
        }
        reply.ok();
    }
}

fn serve(file: &str, dir: &str, threads: usize) -> io::Result<()> {
    let file = File::open(file)?;
    let size = file.metadata()?.size();
    let from_env = |name: &str, default: u32| {
        std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
    };
    let ceiling = Ceiling {
        file,
        size,
        background: from_env("MAX_BACKGROUND", 64) as u16,
        max_write: from_env("MAX_WRITE", 1 << 20),
    };
    let mut config = Config::default();
    config.mount_options = vec![MountOption::RO, MountOption::FSName("fuse_ceiling".to_owned())];
    config.n_threads = Some(threads);
    config.clone_fd = std::env::var_os("NO_CLONE_FD").is_none();
    Session::new(ceiling, dir, &config)?.run()
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let (file, dir, threads) = match args.as_slice() {
        [file, dir] => (file, dir, Ok(4)),
        [file, dir, threads] => (file, dir, threads.parse()),
        // `cargo bench` runs every bench without arguments: nothing to measure then.
        _ => {
            eprintln!("usage: fuse_ceiling FILE DIR [THREADS]");
            return if args.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(2) };
        }
    };
    let served = match threads {
        Ok(threads) => serve(file, dir, threads),
        Err(error) => Err(io::Error::other(error)),
    };
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fuse_ceiling: {error}");
            ExitCode::FAILURE
        }
    }
}
