//! Images made by umoci and skopeo, and what is in them.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use stratafs::error::{Error, Result};
use stratafs::oci::{self, Algorithm, Compression, Digest, Image, LayerBlob, Options, Reference};

use crate::support::{require_root, run, stdout, tool};

pub(crate) fn skopeo() -> Command {
    tool("skopeo", "skopeo")
}

/// Copies an image, within or out of `dir`.
#[track_caller]
pub(crate) fn copy(dir: &Path, options: &[&str], from: &str, to: &str) {
    let insecure = ["--src-tls-verify=false", "--dest-tls-verify=false"];
    run(skopeo()
        .current_dir(dir)
        .args(["copy", "-q"])
        .args(insecure)
        .args(options)
        .args([from, to]));
}

/// A folder with the layout `L`, whose image `v1` has three layers: files, and more of them, and one
/// removed.
pub(crate) fn layout() -> tempfile::TempDir {
    require_root();
    let dir = tempfile::tempdir().unwrap();
    let umoci = |args: &[&str]| {
        run(tool("umoci", "umoci").current_dir(dir.path()).args(args));
    };
    umoci(&["init", "--layout", "L"]);
    umoci(&["new", "--image", "L:v1"]);
    let words = (0..60_000_u64).map(|n| format!("{} ", n * n)).collect::<String>();
    for (number, names) in [["a", "d/b"], ["c", "d/e"], ["f", ""]].iter().enumerate() {
        umoci(&["unpack", "--image", "L:v1", "B"]);
        let root = dir.path().join("B/rootfs");
        for name in names.iter().filter(|name| !name.is_empty()) {
            fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            fs::write(root.join(name), format!("{name} {words}")).unwrap();
        }
        if number == 2 {
            fs::remove_file(root.join("a")).unwrap();
        }
        umoci(&["repack", "--image", "L:v1", "B"]);
        fs::remove_dir_all(dir.path().join("B")).unwrap();
    }
    umoci(&["config", "--image", "L:v1", "--config.env", "A=b", "--config.label", "of=test"]);
    dir
}

pub(crate) fn parse(text: impl AsRef<OsStr>) -> Result<Option<Reference>> {
    Reference::parse(text.as_ref())
}

#[track_caller]
pub(crate) fn open(text: impl AsRef<OsStr>) -> Result<Image> {
    let text = text.as_ref();
    let reference = parse(text)?.unwrap_or_else(|| panic!("{text:?} is no layered image"));
    oci::open(&reference, &Options::default())
}

/// Reads a layer whole in both ways, holds it against its digests, and gives it decompressed.
#[track_caller]
pub(crate) fn unpacked(layer: &LayerBlob) -> Vec<u8> {
    let mut bytes = vec![];
    layer.blob.stream().unwrap().read_to_end(&mut bytes).map_err(Error::io).unwrap();
    assert_eq!(bytes.len() as u64, layer.size);
    let mut positional = vec![0; bytes.len()];
    let source = layer.blob.source().unwrap();
    assert_eq!(source.len(), layer.size);
    for (at, piece) in positional.chunks_mut(10_007).enumerate() {
        source.read_at(at as u64 * 10_007, piece).unwrap();
    }
    assert!(bytes == positional, "two ways to read a layer differ");
    if let Some(digest) = &layer.digest {
        assert_eq!(Digest::of(digest.algorithm(), &bytes), *digest);
    }
    let mut plain = vec![];
    match layer.compression {
        Compression::None => plain = bytes,
        Compression::Gzip => {
            flate2::read::MultiGzDecoder::new(&*bytes).read_to_end(&mut plain).unwrap();
        }
        Compression::Zstd => plain = zstd::decode_all(&*bytes).unwrap(),
        Compression::Xz | Compression::Bzip2 => panic!("no layer is of these"),
    }
    if let Some(diff_id) = &layer.diff_id {
        assert_eq!(Digest::of(Algorithm::Sha256, &plain), *diff_id);
    }
    plain
}

/// The layers, decompressed.
#[track_caller]
pub(crate) fn layers(image: &Image) -> Vec<Vec<u8>> {
    image.layers.iter().map(unpacked).collect()
}

/// The digest of the manifest as skopeo has it.
#[track_caller]
pub(crate) fn manifest_digest(dir: &Path, reference: &str) -> String {
    let mut inspect = skopeo();
    inspect.current_dir(dir).args(["inspect", "--tls-verify=false", "--raw", reference]);
    let raw = run(&mut inspect).stdout;
    Digest::of(Algorithm::Sha256, &raw).to_string()
}

/// The config as skopeo has it.
#[track_caller]
pub(crate) fn config(dir: &Path, reference: &str) -> serde_json::Value {
    let args = ["inspect", "--tls-verify=false", "--config", "--raw", reference];
    serde_json::from_str(&stdout(skopeo().current_dir(dir).args(args))).unwrap()
}

/// A reference to something in `dir`.
pub(crate) fn at(dir: &Path, word: &str, name: &str) -> String {
    format!("{word}{}/{name}", dir.display())
}

/// A tar of what is in `from`.
pub(crate) fn tar(from: &Path, to: &Path) {
    run(tool("tar", "tar").arg("-cf").arg(to).arg("-C").arg(from).arg("."));
}

/// What a tar holds, in a folder of its own.
pub(crate) fn untar(from: &Path, to: PathBuf) -> PathBuf {
    fs::create_dir(&to).unwrap();
    run(tool("tar", "tar").arg("-xf").arg(from).arg("-C").arg(&to));
    to
}
