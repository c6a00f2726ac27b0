//! `strata convert`: a disk written out as an image that stands alone.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::bar::Bar;
use super::copy::{self, Copy, GRAIN, Piece, Progress, What};
use super::partial::Partial;
use super::{OpenArgs, Outcome, output, stop_on_signals, text, warn};
use crate::block::{BlockSink, BlockSource, FileSink, FileSource, FileStorage, is_zero};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::image::Format;
use crate::image::qcow2::{CLUSTER, Compression, Standalone, compress};
use crate::open::{Disk, Reference};

/// Options of `strata convert`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: strata convert /srv/snapshots::web01 web01.qcow2")]
pub(super) struct Args {
    /// The disk
    #[arg(value_name = "REF")]
    reference: OsString,

    /// The image to make, or a block device
    #[arg(value_name = "OUT")]
    out: PathBuf,

    /// Write this format [default: qcow2 if OUT ends so, else raw]
    #[arg(short = 'O', long, value_name = "FORMAT", value_parser = super::format_parser())]
    output_format: Option<Format>,

    /// Of a qcow2: compress its clusters
    #[arg(long, value_name = "zlib|zstd", value_parser = compression_parser())]
    compress: Option<Compression>,

    /// With the changes in this delta, a qcow2 overlay of the disk
    #[arg(long, value_name = "FILE")]
    cow: Option<PathBuf>,

    /// Replace OUT if it is there; write onto the device that it is
    #[arg(long, visible_alias = "force")]
    overwrite: bool,

    /// Print neither progress nor summary
    #[arg(short, long)]
    quiet: bool,

    #[command(flatten)]
    open: OpenArgs,
}

fn compression_parser() -> impl TypedValueParser<Value = Compression> {
    PossibleValuesParser::new(["zlib", "zstd"])
        .map(|name| if name == "zstd" { Compression::Zstd } else { Compression::Deflate })
}

/// What is to be made.
enum Target {
    Stdout,
    Device,
    File(Format),
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    let stop = stop_on_signals()?;
    let target = target(args)?;
    let disk = disk(args)?;
    warn(&disk.warnings);
    check_apart(args, &disk)?;
    let conversion = Conversion { args, disk: &disk, progress: Progress::default(), stop };
    let room = match target {
        Target::Stdout => conversion.stream()?,
        Target::Device => conversion.device()?,
        Target::File(format) => conversion.file(format)?,
    };
    if !args.quiet && !matches!(target, Target::Stdout) {
        let written = text::size(conversion.progress.written.load(Ordering::Relaxed));
        let size = text::size(disk.source.len());
        let room = room.map_or(String::new(), |room| format!(", in {}", text::size(room)));
        let told = format!("{}: {size}, {written} of it data{room}\n", args.out.display());
        let mut out = super::stdout()?;
        output(out.write_all(told.as_bytes()).and_then(|()| out.flush()))?;
    }
    Ok(Outcome::Done)
}

fn target(args: &Args) -> Result<Target> {
    let usage = |message: &'static str| Error::new(Kind::Usage, message);
    let is_stdout = args.out.as_os_str() == "-";
    let is_device = std::fs::metadata(&args.out).is_ok_and(|it| it.file_type().is_block_device());
    let by_name = match args.out.extension() {
        Some(extension) if extension == "qcow2" && !is_device => Format::Qcow2,
        _ if args.compress.is_some() && !is_stdout && !is_device => Format::Qcow2,
        _ => Format::Raw,
    };
    let format = args.output_format.unwrap_or(by_name);
    match (format, is_stdout, is_device) {
        (Format::Raw, ..) if args.compress.is_some() => {
            Err(usage("a raw image is not compressed").with_hint("-O qcow2 --compress zstd"))
        }
        (Format::Qcow2, true, _) => {
            let error = usage("a qcow2 is not written in one go, so not to standard output");
            Err(error.with_hint("-O raw, or the name of a file"))
        }
        (Format::Qcow2, _, true) => Err(usage("onto a device only raw bytes are written")
            .within(args.out.display().to_string())),
        (_, true, _) if io::stdout().is_terminal() => {
            Err(usage("a disk does not belong on a terminal")
                .with_hint("strata convert REF - | ..."))
        }
        (_, true, _) => Ok(Target::Stdout),
        (_, _, true) => Ok(Target::Device),
        (format, ..) => Ok(Target::File(format)),
    }
}

fn disk(args: &Args) -> Result<Disk> {
    let (opener, reference) = (args.open.opener(), Reference::from(args.reference.as_os_str()));
    match &args.cow {
        Some(delta) => opener.disk_below(delta, &reference),
        None => opener.disk(&reference),
    }
}

/// Fails if what is to be written is part of what is read.
fn check_apart(args: &Args, disk: &Disk) -> Result<()> {
    let shown = || args.out.display().to_string();
    let part = |what: &'static str| {
        let error = Error::new(Kind::Refused, what).within(shown());
        Err(error.with_hint("write a new file, and put it in the place of the old one afterwards"))
    };
    let folder = args.out.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new(".")).canonicalize();
    if disk.stored.is_some()
        && let (Ok(folder), Ok(store)) =
            (folder, Reference::from(args.reference.as_os_str()).path.canonicalize())
        && folder.starts_with(store)
    {
        return part("lies in the store that is read");
    }
    let is_there = std::fs::metadata(&args.out).is_ok_and(|it| !it.is_dir());
    if args.out.as_os_str() == "-" || !is_there {
        return Ok(());
    }
    let identity = FileSource::open(&args.out)?.identity();
    let of_chain = disk.layers.as_ref().is_some_and(|chain| chain.lies_in(identity));
    let images = disk.chain.iter().filter_map(|image| FileSource::open(&image.path).ok());
    if of_chain || images.into_iter().any(|image| image.identity() == identity) {
        return part("is part of the disk that is read");
    }
    Ok(())
}

struct Conversion<'a> {
    args: &'a Args,
    disk: &'a Disk,
    progress: Progress,
    stop: Arc<AtomicBool>,
}

impl Conversion<'_> {
    /// Copies, with a progress bar.
    fn copy<T: Send>(
        &self,
        what: What<'_>,
        grain: u64,
        prepare: impl Fn(Piece) -> Result<T> + Sync + Send,
        put: impl FnMut(T) -> Result<()>,
    ) -> Result<()> {
        let Self { disk, progress, stop, .. } = self;
        let disk = &*disk.source;
        let bar = Bar::new(self.args.quiet || !io::stderr().is_terminal(), Some(disk.len()));
        std::thread::scope(|scope| {
            bar.show(scope, || (progress.bytes.load(Ordering::Relaxed), String::new()));
            let done = Copy { disk, what, grain, progress, stop }.run(prepare, put);
            bar.finish();
            done
        })
    }

    /// Makes a file; the room it takes.
    fn file(&self, format: Format) -> Result<Option<u64>> {
        let Self { args, disk, .. } = self;
        let shown = || args.out.display().to_string();
        let partial = Partial::begin(&args.out, args.overwrite)?;
        let path = partial.path();
        let file = File::create_new(&path).within(shown)?;
        match format {
            Format::Raw => {
                file.set_len(disk.source.len()).within(shown)?;
                let sink = FileSink::open(&path).within(shown)?;
                self.raw(What::Data, true, &sink)?;
                sink.flush().within(shown)?;
            }
            Format::Qcow2 => self.qcow2(&FileStorage::open(&path).within(shown)?)?,
        }
        let room = std::os::unix::fs::MetadataExt::blocks(&file.metadata().within(shown)?);
        partial.finish(args.overwrite)?;
        Ok(Some(room.saturating_mul(512)))
    }

    /// Writes each piece to its place; where it is zeros `there` already, nothing. One thread writes: several
    /// that write one file wait for each other, and took twice as long.
    fn raw(&self, what: What<'_>, there: bool, sink: &dyn BlockSink) -> Result<()> {
        self.copy(what, GRAIN, Ok, |piece| copy::write(&piece, there, sink, &self.progress))
    }

    fn qcow2(&self, storage: &FileStorage) -> Result<()> {
        let compression = self.args.compress;
        let mut image = Standalone::begin(storage, self.disk.source.len(), compression)?;
        let prepare = |piece: Piece| clusters(piece, compression);
        self.copy(What::Data, CLUSTER, prepare, |clusters: Vec<Cluster>| {
            clusters.into_iter().try_for_each(|cluster| {
                let (at, bytes) = (cluster.at, &cluster.bytes);
                self.progress.written.fetch_add(cluster.len, Ordering::Relaxed);
                if cluster.compressed {
                    image.put_compressed(at, bytes)
                } else {
                    image.put(at, bytes)
                }
            })
        })?;
        image.finish()
    }

    /// Writes onto a block device.
    fn device(&self) -> Result<Option<u64>> {
        let Self { args, disk, .. } = self;
        let shown = || args.out.display().to_string();
        if !args.overwrite {
            let error = Error::new(Kind::Exists, "is a device, whose contents would be gone");
            return Err(error.within(shown()).with_hint("--overwrite writes onto it"));
        }
        let sink = FileSink::open(&args.out)?;
        let (room, size) = (sink.len(), disk.source.len());
        if room < size {
            let message = format!("has {room} bytes, and the disk has {size}");
            return Err(Error::new(Kind::NoSpace, message).within(shown()));
        }
        self.raw(What::Everything, false, &sink)?;
        sink.flush()?;
        Ok(None)
    }

    /// Writes to standard output.
    fn stream(&self) -> Result<Option<u64>> {
        let mut out = super::stdout()?;
        let zeros = vec![0; 1 << 20];
        self.copy(What::Everything, GRAIN, Ok, |piece: Piece| {
            if !piece.zeros {
                return output(out.write_all(&piece.bytes));
            }
            let mut left = piece.range.end - piece.range.start;
            while left > 0 {
                if self.stop.load(Ordering::Relaxed) {
                    return Err(Error::new(Kind::Io, "interrupted"));
                }
                let len = left.min(zeros.len() as u64);
                output(out.write_all(zeros.get(..len as usize).unwrap_or_default()))?;
                left -= len;
            }
            Ok(())
        })?;
        output(out.flush())?;
        Ok(None)
    }
}

/// A cluster, or several plain ones, as they are to be stored.
struct Cluster {
    /// Where it is on the disk.
    at: u64,
    /// Bytes of the disk.
    len: u64,
    bytes: Vec<u8>,
    compressed: bool,
}

/// What is to be stored of a piece.
fn clusters(piece: Piece, compression: Option<Compression>) -> Result<Vec<Cluster>> {
    let mut clusters: Vec<Cluster> = Vec::new();
    let places = (piece.range.start..).step_by(CLUSTER as usize);
    for (at, bytes) in places.zip(piece.bytes.chunks(CLUSTER as usize)) {
        if is_zero(bytes) {
            continue;
        }
        let len = bytes.len() as u64;
        let mut whole = bytes.to_vec();
        let packed = match compression {
            Some(compression) => {
                whole.resize(CLUSTER as usize, 0);
                compress(compression, &whole)?
            }
            None => None,
        };
        match (packed, clusters.last_mut()) {
            (Some(bytes), _) => clusters.push(Cluster { at, len, bytes, compressed: true }),
            (None, Some(last)) if !last.compressed && last.at + last.len == at => {
                last.bytes.extend_from_slice(bytes);
                last.len += len;
            }
            (None, _) => {
                whole.truncate(bytes.len());
                clusters.push(Cluster { at, len, bytes: whole, compressed: false });
            }
        }
    }
    Ok(clusters)
}
