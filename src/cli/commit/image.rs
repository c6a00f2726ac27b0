//! An upper becomes one more layer of an image, in an OCI layout.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use jiff::Timestamp;
use serde_json::json;

use super::upper::{self, Tar};
use super::{Args, fill, latest};
use crate::cli::bar::Bar;
use crate::cli::{text, warn, watched};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::oci::reference::Selection;
use crate::oci::write::{self, Added, Committed, Naming};
use crate::oci::{Compression, Digest, Reference};
use crate::open::cow::Cow;
use crate::open::layered::Layered;

pub(super) fn compression_parser() -> impl TypedValueParser<Value = Compression> {
    let known = [Compression::Gzip, Compression::Zstd];
    let find = move |name: String| {
        known.into_iter().find(|known| known.name() == name).ok_or("is neither gzip nor zstd")
    };
    PossibleValuesParser::new(known.map(Compression::name)).try_map(find)
}

/// The image to make: `oci:DIR:NAME`.
pub(super) struct Target {
    dir: PathBuf,
    name: String,
}

impl Target {
    /// What `--to` says, or `None` if it is a path.
    pub(super) fn parse(to: &Path) -> Result<Option<Self>> {
        let words = ["oci:", "oci-archive:", "docker-archive:", "docker://"];
        let bytes = to.as_os_str().as_bytes();
        if !words.iter().any(|word| bytes.starts_with(word.as_bytes())) {
            return Ok(None);
        }
        let wrong = |message: &'static str| {
            Err(Error::new(Kind::Usage, message).within(to.display().to_string()))
        };
        match Reference::parse(to.as_os_str())? {
            None => Ok(None),
            Some(Reference::Layout { dir, image: Selection::Named(name) }) => {
                Ok(Some(Self { dir, name }))
            }
            Some(Reference::Layout { .. }) => {
                wrong("the new image needs a name").map_err(|e: Error| e.with_hint("oci:DIR:NAME"))
            }
            Some(_) => wrong("images are made in a layout, oci:DIR:NAME")
                .map_err(|error: Error| error.with_hint("skopeo copy takes it from there")),
        }
    }

    fn reference(&self) -> Reference {
        Reference::Layout { dir: self.dir.clone(), image: Selection::Named(self.name.clone()) }
    }
}

/// Adds a layer of what an upper changes to the image that it lies over.
pub(super) fn commit(
    args: &Args,
    to: &Target,
    cow: Option<Cow>,
    stop: &Arc<AtomicBool>,
) -> Result<String> {
    if args.layer || args.above.is_some() {
        let message = "--layer and --above are about disk images, and this makes a container image";
        return Err(Error::new(Kind::Usage, message));
    }
    let (dir, below) = match cow {
        Some(Cow::Upper { dir, .. }) => (dir, Some(&args.what)),
        Some(_) => return Err(Error::new(Kind::Usage, "a layer is made of an upper, not a delta")),
        None => (PathBuf::from(&args.what), None),
    };
    if !dir.is_dir() {
        let message = "is no upper: those are folders";
        return Err(Error::new(Kind::Usage, message).within(dir.display().to_string()));
    }
    let latest = latest(args)?;
    let created = match latest {
        Some(seconds) => Timestamp::from_second(seconds).map_err(|_| {
            Error::new(Kind::Usage, format!("there is no date {seconds} seconds from 1970"))
        })?,
        None => Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default(),
    };
    let opener = args.tree.open.opener_until(Arc::clone(stop));
    let below = match below {
        Some(text) => opener.layered_reference(text)?.ok_or_else(|| not_layered(text))?,
        None if !to.dir.join("oci-layout").exists() => {
            let message = "is no layout yet, so the image below the upper must be named";
            return Err(Error::new(Kind::Usage, message)
                .within(to.dir.display().to_string())
                .with_hint("strata commit --cow UPPER/ REF --to oci:DIR:NAME"));
        }
        None => to.reference(),
    };
    // Locked before it is read: two who add to one image must not lose each other's layer.
    let target = write::Target::open(&to.dir, stop)?;
    let layered = watched(&opener, || opener.layered(&below))?;
    warn(&layered.warnings);
    let lower = layered.merged()?;
    let shown = || to.reference().to_string();
    let compression = args.compression.unwrap_or(Compression::Gzip);
    let mut tar = Tar::new(target.layer(compression).within(shown)?, latest);
    let progress = upper::Progress::default();
    fill(args, &dir, Some(&lower), &mut tar, &progress, stop)?;
    let added = tar.into_inner().and_then(write::NewLayer::finish).within(shown)?;
    let naming = Naming { name: &to.name, created: &created.to_string() };
    let committed = assemble(args, &target, &layered, &added, naming, stop)?;
    let entries = progress.files.load(Ordering::Relaxed);
    if args.json {
        let told = json!({
            "reference": shown(),
            "manifest": committed.manifest.to_string(),
            "config": committed.config.to_string(),
            "layers": committed.layers,
            "layer": {
                "digest": added.digest.to_string(),
                "diff_id": added.diff_id.to_string(),
                "size": added.size,
                "entries": entries,
            },
        });
        return Ok(told.to_string());
    }
    let entries = text::count(entries, "entry", "entries");
    let size = text::size(added.size);
    Ok(format!("{}: {entries} in a layer of {size}, manifest {}", shown(), committed.manifest))
}

fn not_layered(text: &OsString) -> Error {
    Error::new(Kind::Usage, "is no layered image that a layer could be added to")
        .within(text.to_string_lossy().into_owned())
        .with_hint("--to NEW.tar.gz makes a layer alone")
}

/// Makes the image, with a progress bar for the blobs that have to be copied.
fn assemble(
    args: &Args,
    target: &write::Target,
    layered: &Layered,
    added: &Added,
    naming: Naming<'_>,
    stop: &AtomicBool,
) -> Result<Committed> {
    let diff_ids = layered.image.layers.iter().zip(&layered.parts).map(|(layer, part)| {
        let known = layer.diff_id.clone().map(Ok);
        known.unwrap_or_else(|| part.index.facts().diff_id.parse())
    });
    let diff_ids: Vec<Digest> = diff_ids.collect::<Result<_>>()?;
    let total = layered.image.layers.iter().map(|layer| layer.size).sum();
    let copied = AtomicU64::new(0);
    let bar = Bar::new(args.quiet, Some(total));
    std::thread::scope(|scope| {
        bar.show(scope, || (copied.load(Ordering::Relaxed), String::new()));
        let done = target.commit(&layered.image, &diff_ids, added, naming, &copied, stop);
        bar.finish();
        done.within(|| layered.to_string())
    })
}
