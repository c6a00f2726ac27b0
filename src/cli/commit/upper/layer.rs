//! What a layer is written to: a tar, or a folder of the same files.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::error::{Error, Kind, Result, ResultExt};
use crate::oci::Compression;
use crate::oci::tar::{Member, MemberKind, Writer};
use crate::oci::write::Encoder;
use crate::tree::Time;

/// Takes the members of a layer, in order. What a folder holds comes after it.
pub(crate) trait Layer {
    /// Begins a member.
    fn begin(&mut self, member: &Member<'_>) -> Result<()>;

    /// Contents of the file begun last.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;
}

/// How a tar of that name is to be compressed; `None` if it is not the name of a tar.
pub(crate) fn compression_of(path: &Path) -> Option<Compression> {
    let name = path.file_name()?.as_bytes().to_ascii_lowercase();
    let ends = |with: &[&[u8]]| with.iter().any(|end| name.ends_with(end));
    if ends(&[b".tar"]) {
        Some(Compression::None)
    } else if ends(&[b".tar.gz", b".tgz"]) {
        Some(Compression::Gzip)
    } else if ends(&[b".tar.zst", b".tar.zstd", b".tzst"]) {
        Some(Compression::Zstd)
    } else {
        None
    }
}

/// A tar.
pub(crate) struct Tar<W: Write> {
    writer: Writer<W>,
    /// No time is later than this.
    latest: Option<i64>,
}

impl<W: Write> Tar<W> {
    /// A tar that is written to `out`, in small pieces.
    pub(crate) fn new(out: W, latest: Option<i64>) -> Self {
        Self { writer: Writer::new(out), latest }
    }

    /// Ends the tar, and gives back what it was written to.
    pub(crate) fn into_inner(self) -> Result<W> {
        self.writer.finish()
    }
}

/// A file that is a compressed tar.
type TarFile = Tar<Encoder<BufWriter<File>>>;

impl TarFile {
    pub(crate) fn create(
        path: &Path,
        compression: Compression,
        latest: Option<i64>,
    ) -> Result<Self> {
        let file = File::create_new(path).map_err(Error::io)?;
        let file = BufWriter::with_capacity(256 << 10, file);
        Ok(Self::new(Encoder::new(file, compression)?, latest))
    }

    /// Puts all of it on stable storage.
    pub(crate) fn finish(self) -> Result<()> {
        let file = self.into_inner()?.finish()?;
        let file = file.into_inner().map_err(|error| Error::io(error.into_error()))?;
        file.sync_all().map_err(Error::io)
    }
}

impl<W: Write> Layer for Tar<W> {
    fn begin(&mut self, member: &Member<'_>) -> Result<()> {
        // Layers leave out their root.
        if member.path.is_empty() {
            return Ok(());
        }
        let mut member = *member;
        if let Some(latest) = self.latest.filter(|latest| member.modified.seconds >= *latest) {
            member.modified = Time { seconds: latest, nanos: 0 };
        }
        self.writer.begin(&member)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write(bytes)
    }
}

/// A folder. It grows where nobody else can reach it, so paths are safe.
pub(crate) struct Unpacked {
    root: PathBuf,
    /// The file being written, how much of it there is, and what it gets in the end.
    open: Option<(File, u64, Given)>,
    /// What the folders get once all that is in them is made.
    folders: Vec<Given>,
    owners: u64,
    devices: u64,
    xattrs: u64,
}

/// What a file is given once its contents are there.
struct Given {
    path: PathBuf,
    link: bool,
    mode: u16,
    uid: u32,
    gid: u32,
    modified: Time,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Unpacked {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        fs::create_dir(path).map_err(Error::io)?;
        Ok(Self {
            root: path.to_owned(),
            open: None,
            folders: Vec::new(),
            owners: 0,
            devices: 0,
            xattrs: 0,
        })
    }

    /// Puts all of it on stable storage. What could not be given as it was, a line each.
    pub(crate) fn finish(mut self) -> Result<Vec<String>> {
        self.close()?;
        // The innermost first: what is made in a folder changes its time.
        while let Some(folder) = self.folders.pop() {
            self.give(&folder)?;
        }
        let root = File::open(&self.root).map_err(Error::io)?;
        rustix::fs::syncfs(&root).map_err(io::Error::from).within(|| "stable storage")?;
        let mut told = Vec::new();
        for (count, what) in [
            (self.owners, "owners not set: that takes root"),
            (self.devices, "devices left out: that takes root"),
            (self.xattrs, "attributes not taken by the destination"),
        ] {
            if count > 0 {
                told.push(format!("{count} {what}"));
            }
        }
        Ok(told)
    }

    fn path(&self, path: &[u8]) -> PathBuf {
        self.root.join(std::ffi::OsStr::from_bytes(path))
    }

    fn close(&mut self) -> Result<()> {
        let Some((file, len, given)) = self.open.take() else { return Ok(()) };
        file.set_len(len).map_err(Error::io)?;
        drop(file);
        self.give(&given)
    }

    fn give(&mut self, given: &Given) -> Result<()> {
        let path = &given.path;
        let owner = (Some(Uid::from_raw(given.uid)), Some(Gid::from_raw(given.gid)));
        let mut mode = given.mode;
        match rustix::fs::chownat(CWD, path, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::PERM | Errno::INVAL) => {
                let stat = rustix::fs::lstat(path).map_err(|errno| Error::io(errno.into()))?;
                if (stat.st_uid, stat.st_gid) != (given.uid, given.gid) {
                    self.owners += 1;
                    // Setuid would serve another user than the one it was meant for.
                    mode &= 0o1777;
                }
            }
            Err(errno) => return Err(Error::io(errno.into()).within("owner")),
        }
        if !given.link {
            let mode = Mode::from_raw_mode(mode.into());
            let done = rustix::fs::chmod(path, mode);
            done.map_err(|errno| Error::io(errno.into()).within("mode"))?;
        }
        for (name, value) in &given.xattrs {
            match rustix::fs::lsetxattr(path, name.as_slice(), value, XattrFlags::empty()) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP | Errno::PERM | Errno::INVAL) => self.xattrs += 1,
                Err(errno) => return Err(Error::io(errno.into()).within("attributes")),
            }
        }
        let time =
            Timespec { tv_sec: given.modified.seconds, tv_nsec: given.modified.nanos.into() };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| Error::io(errno.into()).within("times"))
    }
}

impl Layer for Unpacked {
    fn begin(&mut self, member: &Member<'_>) -> Result<()> {
        self.close()?;
        let path = self.path(member.path);
        let given = Given {
            path: path.clone(),
            link: matches!(member.kind, MemberKind::Symlink(_)),
            mode: member.mode,
            uid: member.uid,
            gid: member.gid,
            modified: member.modified,
            xattrs: member.xattrs.to_vec(),
        };
        let node = |kind, device: crate::tree::Device| {
            let number = rustix::fs::makedev(device.major, device.minor);
            rustix::fs::mknodat(CWD, &path, kind, Mode::from_raw_mode(0o600), number)
        };
        let made = match member.kind {
            MemberKind::File(_) => {
                let file = File::create_new(&path).map_err(Error::io)?;
                self.open = Some((file, 0, given));
                return Ok(());
            }
            MemberKind::Folder => {
                // The root of the layer is there already.
                if !member.path.is_empty() {
                    fs::create_dir(&path).map_err(Error::io)?;
                }
                self.folders.push(given);
                return Ok(());
            }
            MemberKind::HardLink(target) => {
                // A device that was left out has no second name either.
                return match fs::hard_link(self.path(target), &path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound && self.devices > 0 => {
                        Ok(())
                    }
                    done => done.map_err(Error::io),
                };
            }
            MemberKind::Symlink(target) => rustix::fs::symlink(target, &path),
            MemberKind::Fifo => node(FileType::Fifo, crate::tree::Device { major: 0, minor: 0 }),
            MemberKind::CharDevice(device) => node(FileType::CharacterDevice, device),
            MemberKind::BlockDevice(device) => node(FileType::BlockDevice, device),
        };
        match made {
            Ok(()) => self.give(&given),
            Err(Errno::PERM) => {
                self.devices += 1;
                Ok(())
            }
            Err(errno) => Err(Error::io(errno.into())),
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Some((file, len, _)) = &mut self.open else {
            return Err(Error::new(Kind::Usage, "contents of no file"));
        };
        // Zeros become holes.
        for piece in bytes.chunks(4096) {
            if piece.iter().any(|&byte| byte != 0) {
                file.write_all_at(piece, *len).map_err(Error::io)?;
            }
            *len += piece.len() as u64;
        }
        Ok(())
    }
}
