//! `strata info` of a layered image.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::Write;

use serde::Serialize;

use super::{plain, section};
use crate::cli::{Outcome, output, stdout, text, warn};
use crate::error::{Error, Kind, Result};
use crate::oci::merge::{LayerNumbers, Merged};
use crate::oci::{Digest, LayerBlob};
use crate::open::layered::Layered;

/// What `--json` prints; `docs/json.md` describes it.
#[derive(Debug, Serialize)]
struct Report<'a> {
    reference: Cow<'a, str>,
    format: &'static str,
    name: Option<&'a str>,
    manifest_digest: Option<String>,
    platform: Option<String>,
    /// The config, as it is.
    config: serde_json::Value,
    layers: Vec<Layer<'a>>,
    entries: u64,
    wasted: u64,
    transferred: u64,
    warnings: &'a [String],
}

#[derive(Debug, Serialize)]
struct Layer<'a> {
    digest: String,
    diff_id: String,
    /// `whole`, or whose table of contents it is read by.
    read_by: &'static str,
    media_type: &'a str,
    size: u64,
    uncompressed: u64,
    created_by: Option<&'a str>,
    #[serde(flatten)]
    numbers: LayerNumbers,
}

/// Tells what `image`, which is called `reference`, is.
pub(super) fn run(reference: &OsStr, image: &Layered, json: bool) -> Result<Outcome> {
    let merged = image.merged()?;
    let report = Report::new(reference, image, &merged);
    let mut out = stdout()?;
    if json {
        let mut json = serde_json::to_vec_pretty(&report)
            .map_err(|error| Error::caused_by(Kind::Io, error))?;
        json.push(b'\n');
        output(out.write_all(&json).and_then(|()| out.flush()))?;
        return Ok(Outcome::Done);
    }
    let told = report.tell(image);
    output(out.write_all(told.as_bytes()).and_then(|()| out.flush()))?;
    warn(&image.warnings);
    Ok(Outcome::Done)
}

impl<'a> Report<'a> {
    fn new(reference: &'a OsStr, image: &'a Layered, merged: &Merged) -> Self {
        let parsed = &image.image;
        let mut steps = parsed.config.history.iter().filter(|step| !step.empty_layer);
        let layers = parsed.layers.iter().zip(&image.parts).zip(merged.layers());
        let layers = layers.map(|((layer, part), numbers)| {
            let facts = part.index.facts();
            Layer {
                digest: facts.blob_digest.clone(),
                diff_id: match &layer.diff_id {
                    Some(said) => said.to_string(),
                    None => facts.diff_id.clone(),
                },
                read_by: facts.learnt.name(),
                media_type: &layer.media_type,
                size: facts.blob_len,
                uncompressed: facts.tar_len,
                created_by: steps.next().and_then(|step| step.created_by.as_deref()),
                numbers: *numbers,
            }
        });
        let config =
            parsed.documents.config.as_deref().and_then(|it| serde_json::from_slice(it).ok());
        Self {
            reference: reference.to_string_lossy(),
            format: "layered",
            name: parsed.name.as_deref(),
            manifest_digest: parsed.manifest_digest.as_ref().map(Digest::to_string),
            platform: parsed.platform().map(|platform| platform.to_string()),
            config: config.unwrap_or_default(),
            layers: layers.collect(),
            entries: merged.entry_count(),
            wasted: merged.wasted(),
            transferred: parsed.transferred(),
            warnings: &image.warnings,
        }
    }

    fn tell(&self, image: &Layered) -> String {
        let config = &image.image.config;
        let (stored, plain_size) =
            self.layers.iter().fold((0_u64, 0_u64), |(stored, size), layer| {
                (stored.saturating_add(layer.size), size.saturating_add(layer.uncompressed))
            });
        let mut facts = vec![("image", self.reference.clone().into_owned())];
        let mut fact = |name, value: Option<String>| {
            facts.extend(value.filter(|value| !value.is_empty()).map(|value| (name, value)));
        };
        fact("name", self.name.map(str::to_owned));
        fact("manifest", self.manifest_digest.clone());
        fact("platform", self.platform.clone());
        fact("created", config.created.clone());
        fact("author", config.author.clone());
        let layers = text::count(self.layers.len() as u64, "layer", "layers");
        fact(
            "size",
            Some(format!("{} in {layers} of {}", text::size(plain_size), text::size(stored))),
        );
        fact("entries", Some(text::number(self.entries)));
        let share = self.wasted.saturating_mul(100).checked_div(plain_size).unwrap_or(0);
        fact("wasted", Some(format!("{} ({share} %) that no file has", text::size(self.wasted))));
        let run = &config.config;
        fact("runs", Some([&*run.entrypoint, &*run.cmd].concat().join(" ")));
        fact("user", run.user.clone());
        fact("folder", run.working_dir.clone());
        fact("ports", Some(run.exposed_ports.join(" ")));
        fact("volumes", Some(run.volumes.join(" ")));
        let facts: Vec<[String; 2]> =
            facts.into_iter().map(|(name, fact)| [format!("{name}:"), fact]).collect();
        let mut told = String::new();
        for line in text::columns(&plain(&facts), [false, false], "  ") {
            let _ = writeln!(told, "{line}");
        }
        let rows = self.layers.iter().zip(&image.image.layers).enumerate();
        let rows: Vec<[String; 7]> =
            rows.map(|(nth, (layer, blob))| row(nth, layer, blob)).collect();
        let right = [true, false, true, true, true, true, false];
        section(&mut told, "layers, lowest first", &rows, right);
        let labels = run.labels.iter().map(|(name, value)| [name.clone(), value.clone()]);
        section(&mut told, "labels", &labels.collect::<Vec<_>>(), [false, false]);
        let env = run.env.iter().map(|variable| [variable.clone()]);
        section(&mut told, "environment", &env.collect::<Vec<_>>(), [false]);
        told
    }
}

/// Number, digest, sizes, what it adds and hides, and how it came to be.
fn row(nth: usize, layer: &Layer<'_>, blob: &LayerBlob) -> [String; 7] {
    let short = layer.digest.get(..19).unwrap_or(&layer.digest);
    let LayerNumbers { entries, hidden_entries, hidden_bytes, .. } = layer.numbers;
    let hides = match hidden_entries {
        0 => String::new(),
        count => format!("hides {} ({})", text::number(count), text::size(hidden_bytes)),
    };
    [
        (nth + 1).to_string(),
        match layer.read_by {
            "whole" => format!("{short} {}", blob.compression.name()),
            table => format!("{short} {table}, by its table of contents"),
        },
        text::size(layer.size),
        format!("{} plain", text::size(layer.uncompressed)),
        text::count(entries, "entry", "entries"),
        hides,
        layer.created_by.unwrap_or_default().to_owned(),
    ]
}
