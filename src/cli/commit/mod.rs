//! `strata commit`.

mod image;
mod stored;
mod upper;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::bar::Bar;
use super::copy::{self, Copy, Progress, What};
use super::partial::Partial;
use super::{Outcome, TreeArgs, stop_on_signals, text, warn};
use crate::block::{BlockSink, BlockSource};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::image::ImageInfo;
use crate::image::qcow2::{Backing, Delta, NewDelta};
use crate::oci::Compression;
use crate::open::cow::Cow;
use crate::open::{Disk, Reference};
use crate::tree::FileTree;
use upper::{Layer, Tar, Unpacked};

/// Options of `strata commit`.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "strata commit [OPTIONS] --to NEW.qcow2 DELTA\n       \
                      strata commit [OPTIONS] --to STORE::SERIES DELTA\n       \
                      strata commit [OPTIONS] --to DIR|NEW.tar[.gz|.zst] UPPER/\n       \
                      strata commit [OPTIONS] --to DIR|NEW.tar[.gz|.zst] --cow UPPER/ REF\n       \
                      strata commit [OPTIONS] --to oci:DIR:NAME --cow UPPER/ REF",
    after_help = "Example: strata commit changes.qcow2 --to new.qcow2"
)]
pub(super) struct Args {
    /// A delta, or any other disk image; or an upper
    #[arg(value_name = "DELTA|UPPER/")]
    what: OsString,

    /// What to make: a disk image, a snapshot in a store, a folder, a tar, or an image in an OCI layout
    #[arg(long, value_name = "PATH|STORE::SERIES|oci:DIR:NAME")]
    to: PathBuf,

    /// Make a layer of what the delta itself holds, with the same backing file
    #[arg(long, conflicts_with = "above")]
    layer: bool,

    /// Make a layer of what all images of its chain above this one hold, with this backing file
    #[arg(long, value_name = "BACKING")]
    above: Option<PathBuf>,

    /// Replace what is there; an image of that name in a layout always is
    #[arg(long)]
    overwrite: bool,

    /// Of an image in a layout: how the new layer is compressed [default: gzip]
    #[arg(long, value_name = "gzip|zstd", value_parser = image::compression_parser())]
    compression: Option<Compression>,

    /// Of an image in a layout: print what was made as JSON
    #[arg(long)]
    json: bool,

    /// Of a tar or image: tell no time of modification later than this, in seconds since 1970, and let
    /// an image be made then [default: $SOURCE_DATE_EPOCH]
    #[arg(long, value_name = "SECONDS")]
    source_date_epoch: Option<i64>,

    /// Print neither progress nor summary
    #[arg(short, long)]
    quiet: bool,

    #[command(flatten)]
    tree: TreeArgs,
}

pub(super) fn run(args: &Args) -> Result<Outcome> {
    let stop = stop_on_signals()?;
    let to = Reference::from(args.to.as_os_str());
    let told = match (image::Target::parse(&args.to)?, args.tree.cow(None)) {
        (None, None) if to.is_of_store() => stored::commit(args, &to, &stop)?,
        (Some(to), cow) => image::commit(args, &to, cow, &stop)?,
        (None, _) if args.json || args.compression.is_some() => {
            let message = "--json and --compression are about images in a layout";
            return Err(Error::new(Kind::Usage, message).with_hint("--to oci:DIR:NAME"));
        }
        (None, Some(Cow::Upper { dir, .. })) => {
            let lower = args.tree.files(
                &args.tree.open.opener_until(Arc::clone(&stop)),
                &args.what,
                args.tree.view,
                false,
            )?;
            upper(args, &dir, Some(&*lower), &stop)?
        }
        (None, Some(_)) => {
            return Err(Error::new(Kind::Usage, "a delta names the image below it itself")
                .with_hint("strata commit DELTA --to NEW.qcow2"));
        }
        (None, None) if Path::new(&args.what).is_dir() => {
            upper(args, Path::new(&args.what), None, &stop)?
        }
        (None, None) => disk(args, &stop)?,
    };
    if !args.quiet || args.json {
        let line = format!("{told}\n");
        super::output(std::io::Write::write_all(&mut super::stdout()?, line.as_bytes()))?;
    }
    Ok(Outcome::Done)
}

/// Makes an image of a disk or of some of its layers.
fn disk(args: &Args, stop: &AtomicBool) -> Result<String> {
    if args.source_date_epoch.is_some() {
        let message = "--source-date-epoch is about tars and layers, and this makes a disk image";
        return Err(Error::new(Kind::Usage, message));
    }
    let disk = args.tree.open.opener().disk(&Reference::from(args.what.as_os_str()))?;
    warn(&disk.warnings);
    let above = above(args, &disk)?;
    let partial = Partial::begin(&args.to, args.overwrite)?;
    let backing = match above {
        Some((_, image)) => Some((name_of(image, &args.to)?, image.format.to_string())),
        None => None,
    };
    let new = NewDelta {
        // A qcow2 is made of sectors.
        size: disk.source.len().next_multiple_of(512),
        backing: backing.as_ref().map(|(name, format)| Backing { name, format }),
    };
    let path = partial.path();
    let shown = || args.to.display().to_string();
    Delta::create(&path, &new).within(shown)?;
    let what = match (&disk.layers, above) {
        (Some(chain), Some((layers, _))) => What::Above(chain, layers),
        _ => What::Data,
    };
    let below: Option<Arc<dyn BlockSource>> = match what {
        What::Above(chain, layers) => Some(Arc::new(chain.below(layers)?)),
        What::Data | What::Everything => None,
    };
    let sink = Delta::open(&path, below, None).within(shown)?;
    let progress = Progress::default();
    let bar = Bar::new(args.quiet, Some(disk.source.len()));
    std::thread::scope(|scope| {
        bar.show(scope, || (progress.bytes.load(Ordering::Relaxed), String::new()));
        let (grain, disk) = (copy::GRAIN, &*disk.source);
        let there = !matches!(what, What::Above(..));
        let copy = Copy { disk, what, grain, progress: &progress, stop };
        let done = copy.run(Ok, |piece| copy::write(&piece, there, &sink, &progress));
        bar.finish();
        done
    })?;
    sink.flush().within(shown)?;
    sink.close().within(shown)?;
    File::open(&path).and_then(|file| file.sync_all()).within(shown)?;
    let allocated = std::fs::metadata(&path).within(shown)?.blocks().saturating_mul(512);
    partial.finish(args.overwrite)?;
    let written = text::size(progress.written.load(Ordering::Relaxed));
    let on = backing.map_or(String::new(), |(name, _)| format!(" above {}", name.display()));
    let size = text::size(allocated);
    Ok(format!("{}: {written} of data in {size}{on}", args.to.display()))
}

/// How many layers the new one is made of, and the image it is to have below it.
fn above<'a>(args: &Args, disk: &'a Disk) -> Result<Option<(usize, &'a ImageInfo)>> {
    if let Some(wanted) = &args.above {
        let identity = |path: &Path| {
            let metadata = std::fs::metadata(path).within(|| path.display().to_string())?;
            Ok::<_, Error>((metadata.dev(), metadata.ino()))
        };
        let wanted_identity = identity(wanted)?;
        for (depth, image) in disk.chain.iter().enumerate().skip(1) {
            if identity(&image.path)? == wanted_identity {
                return Ok(Some((depth, image)));
            }
        }
        let message = format!("{} is none of the images below it", wanted.display());
        let error = Error::new(Kind::Usage, message).within(args.what.display().to_string());
        return Err(error.with_hint("strata info tells the chain"));
    }
    if !args.layer {
        return Ok(None);
    }
    match disk.chain.get(1) {
        Some(image) => Ok(Some((1, image))),
        None if disk.stored.is_some() && !disk.chain.is_empty() => {
            let message = "lies above a snapshot of a store, and is the layer that it holds";
            Err(Error::new(Kind::Usage, message).within(args.what.display().to_string()))
        }
        None => Err(Error::new(Kind::Usage, "has no backing file, so there is no layer of it")
            .within(args.what.display().to_string())
            .with_hint("without --layer, the whole disk is written")),
    }
}

/// How the image `to` names `image`: relative to its own folder if that is above it.
fn name_of(image: &ImageInfo, to: &Path) -> Result<OsString> {
    let shown = || image.path.display().to_string();
    let path = image.path.canonicalize().within(shown)?;
    let folder = to.parent().filter(|parent| !parent.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let folder = folder.canonicalize().within(|| folder.display().to_string())?;
    let name: &OsStr = match path.strip_prefix(&folder) {
        Ok(below) => below.as_os_str(),
        Err(_) => path.as_os_str(),
    };
    // What is before a colon would be taken for a protocol.
    if name.as_bytes().contains(&b':') && !name.as_bytes().starts_with(b"/") {
        let mut name_here = OsString::from("./");
        name_here.push(name);
        return Ok(name_here);
    }
    Ok(name.to_owned())
}

/// Makes a folder or a tar of an upper.
fn upper(
    args: &Args,
    dir: &Path,
    lower: Option<&dyn FileTree>,
    stop: &AtomicBool,
) -> Result<String> {
    if args.layer || args.above.is_some() {
        let message = "--layer and --above are about disk images, and this is an upper";
        return Err(Error::new(Kind::Usage, message));
    }
    let shown = || args.to.display().to_string();
    let compression = upper::compression_of(&args.to);
    if compression.is_none() && args.source_date_epoch.is_some() {
        return Err(Error::new(Kind::Usage, "--source-date-epoch is about tars"));
    }
    let partial = Partial::begin(&args.to, args.overwrite)?;
    let path = partial.path();
    let progress = upper::Progress::default();
    match compression {
        Some(compression) => {
            let mut tar = Tar::create(&path, compression, latest(args)?).within(shown)?;
            fill(args, dir, lower, &mut tar, &progress, stop)?;
            tar.finish().within(shown)?;
        }
        None => {
            let mut folder = Unpacked::create(&path).within(shown)?;
            fill(args, dir, lower, &mut folder, &progress, stop)?;
            warn(&folder.finish().within(shown)?);
        }
    }
    partial.finish(args.overwrite)?;
    let files = text::count(progress.files.load(Ordering::Relaxed), "entry", "entries");
    let bytes = text::size(progress.bytes.load(Ordering::Relaxed));
    Ok(format!("{}: {files}, {bytes}", args.to.display()))
}

/// Writes what the upper `dir` changes to `layer`, with a progress bar.
fn fill(
    args: &Args,
    dir: &Path,
    lower: Option<&dyn FileTree>,
    layer: &mut dyn Layer,
    progress: &upper::Progress,
    stop: &AtomicBool,
) -> Result<()> {
    let bar = Bar::new(args.quiet, None);
    std::thread::scope(|scope| {
        bar.show(scope, || {
            let files = progress.files.load(Ordering::Relaxed);
            (progress.bytes.load(Ordering::Relaxed), text::count(files, "file", "files"))
        });
        let done = upper::write(dir, lower, layer, progress, stop);
        bar.finish();
        done.within(|| dir.display().to_string())
    })?;
    let sockets = progress.sockets.load(Ordering::Relaxed);
    if sockets > 0 {
        warn(&[format!("{} left out", text::count(sockets, "socket", "sockets"))]);
    }
    Ok(())
}

/// The latest time a tar may tell: as reproducible builds say it.
fn latest(args: &Args) -> Result<Option<i64>> {
    let Some(told) = std::env::var_os("SOURCE_DATE_EPOCH") else {
        return Ok(args.source_date_epoch);
    };
    let told = told.to_string_lossy();
    match (args.source_date_epoch, told.parse()) {
        (Some(seconds), _) | (None, Ok(seconds)) => Ok(Some(seconds)),
        (None, Err(_)) => {
            let message = format!("SOURCE_DATE_EPOCH is \"{told}\", which is no number of seconds");
            Err(Error::new(Kind::Usage, message))
        }
    }
}
