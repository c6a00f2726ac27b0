//! Watching over host files that the kernel reads without us.
//!
//! A file that is cut short while it is mounted must not read as if it ended there: whoever copies
//! it would not notice. What is read through us fails with an error. What the kernel reads past us
//! would just end, so its inode is spoilt: asked about it, we tell of a file of another type,
//! upon which the kernel fails whatever is done to that inode, also through files open by then
//! (`fuse_make_bad` of Linux).

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io::Errno;

use crate::tree::{FileTree, NodeId};

/// Host files, and which of them have been cut.
#[derive(Debug)]
pub(super) struct Watch {
    shared: Arc<Shared>,
    /// What the host tells of, and what tells the thread that looks at it to end, by closing.
    listening: OnceLock<(Arc<OwnedFd>, UnixStream)>,
}

#[derive(Debug)]
struct Shared {
    tree: Arc<dyn FileTree>,
    point: PathBuf,
    watched: Mutex<Vec<Watched>>,
    cut: Mutex<HashSet<NodeId>>,
    any_cut: AtomicBool,
}

#[derive(Debug)]
struct Watched {
    node: NodeId,
    file: File,
    len: u64,
}

impl Watch {
    /// Watches nothing yet. `point` is where `tree` is mounted.
    pub(super) fn new(tree: Arc<dyn FileTree>, point: PathBuf) -> Self {
        let shared = Shared {
            tree,
            point,
            watched: Mutex::default(),
            cut: Mutex::default(),
            any_cut: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared), listening: OnceLock::new() }
    }

    /// Watches `file`, which the kernel is to read in place of `node`.
    pub(super) fn over(&self, node: NodeId, file: &File) -> io::Result<()> {
        let metadata = file.metadata()?;
        // A device is not cut.
        if !metadata.is_file() {
            return Ok(());
        }
        let watched = Watched { node, file: file.try_clone()?, len: metadata.len() };
        self.shared.watched.lock().push(watched);
        if self.listening.get().is_none() {
            let listening = self.listen()?;
            let _ = self.listening.set(listening);
        }
        let Some((events, _)) = self.listening.get() else { return Ok(()) };
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        inotify::add_watch(events, path, WatchFlags::MODIFY | WatchFlags::ATTRIB)?;
        Ok(())
    }

    fn listen(&self) -> io::Result<(Arc<OwnedFd>, UnixStream)> {
        let events = Arc::new(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?);
        let (end, ended) = UnixStream::pair()?;
        let (shared, told) = (Arc::clone(&self.shared), Arc::clone(&events));
        thread::Builder::new().name("strata-watch".to_owned()).spawn(move || {
            let mut room = [MaybeUninit::uninit(); 4096];
            loop {
                let mut waiting =
                    [PollFd::new(&*told, PollFlags::IN), PollFd::new(&ended, PollFlags::IN)];
                let polled = rustix::event::poll(&mut waiting, None);
                if !waiting[1].revents().is_empty() || !matches!(polled, Ok(_) | Err(Errno::INTR)) {
                    return;
                }
                // What happened does not matter: whatever it was, look.
                let mut reader = inotify::Reader::new(&*told, &mut room);
                while reader.next().is_ok() {}
                shared.look();
            }
        })?;
        Ok((events, end))
    }

    /// Whether the file behind `node` has been cut.
    pub(super) fn is_cut(&self, node: NodeId) -> bool {
        self.shared.any_cut.load(Ordering::Relaxed) && self.shared.cut.lock().contains(&node)
    }
}

impl Shared {
    /// Finds out which files are shorter than they were, and has the kernel ask about them.
    fn look(&self) {
        let watched = self.watched.lock();
        let short = watched.iter().filter(|watched| {
            watched.file.metadata().is_ok_and(|metadata| metadata.len() < watched.len)
        });
        let fresh: Vec<NodeId> = short
            .map(|watched| watched.node)
            .filter(|&node| self.cut.lock().insert(node))
            .collect();
        drop(watched);
        for node in fresh {
            self.any_cut.store(true, Ordering::Relaxed);
            let mut name = None;
            let _ = self.tree.read_dir(self.tree.root(), 0, &mut |entry| {
                if entry.node == node {
                    name = Some(entry.name.to_vec());
                }
                name.is_none()
            });
            let Some(name) = name else { continue };
            let name = String::from_utf8_lossy(&name).into_owned();
            log::error!("{name}: the image was cut short since it was mounted: it cannot be read");
            // Not from the kernel's memory, but from us.
            let flags = AtFlags::STATX_FORCE_SYNC | AtFlags::SYMLINK_NOFOLLOW;
            let _ = rustix::fs::statx(CWD, self.point.join(name), flags, StatxFlags::ALL);
        }
    }
}
