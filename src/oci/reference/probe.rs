//! What a path leads to: a layout, an archive of images, a tarball, or none of these.

use std::path::Path;
use std::sync::Arc;

use super::{Reference, Selection};
use crate::block::{BlockSource, FileSource};
use crate::error::{Error, Result};
use crate::oci::archive::{Archive, BLOCK, is_header, name_of};
use crate::oci::cause::Cause;
use crate::oci::compression::Compression;
use crate::oci::{docker, layout, span};

/// Members of a tar that are looked at for what tells an archive of images.
const MEMBERS: usize = 5_000;
/// Compressed bytes that are read for the first block of a tar.
const START: usize = 64 << 10;
/// How tarballs are called that are not decompressed to look what they are.
const XZ: [&str; 2] = [".tar.xz", ".txz"];
const BZIP2: [&str; 3] = [".tar.bz2", ".tbz2", ".tbz"];
/// How tarballs are called that are compressed as nothing here decompresses, and who does.
const OTHERS: [(&str, &str); 8] = [
    (".tar.lz4", "lz4"),
    (".tar.lz", "lzip"),
    (".tlz", "lzip"),
    (".tar.lzma", "lzma"),
    (".tar.lzo", "lzop"),
    (".tar.lrz", "lrzip"),
    (".tar.Z", "uncompress"),
    (".taZ", "uncompress"),
];

/// The layered image at `path`, if there is one.
pub(super) fn probe(path: &Path) -> Result<Option<Reference>> {
    // What is not there, or may not be looked at, is for whoever opens disks to tell about.
    let Ok(metadata) = std::fs::metadata(path) else { return Ok(None) };
    if metadata.is_dir() {
        let is_layout = layout::MARKS.iter().all(|name| path.join(name).is_file());
        let dir = path.to_owned();
        return Ok(is_layout.then_some(Reference::Layout { dir, image: Selection::Only }));
    }
    if !metadata.is_file() {
        return Ok(None);
    }
    let Ok(source) = FileSource::open(path) else { return Ok(None) };
    let mut start = vec![0; usize::try_from(source.len()).unwrap_or(START).min(START)];
    if source.read_at(0, &mut start).is_err() {
        return Ok(None);
    }
    let compression = span::detect(&start);
    let name = path.to_string_lossy();
    let is_tar = match compression {
        Compression::None => start.get(..BLOCK).is_some_and(is_header),
        Compression::Gzip | Compression::Zstd => {
            let block = compression.first(&start, BLOCK);
            if block.get(..BLOCK).is_some_and(|block| is_header(block) && begins_images(block)) {
                return Err(compressed(compression).within(path.display().to_string()));
            }
            is_header(&block)
        }
        Compression::Xz => XZ.iter().any(|ending| name.ends_with(ending)),
        Compression::Bzip2 => BZIP2.iter().any(|ending| name.ends_with(ending)),
    };
    if !is_tar {
        // To take it for a disk, as what is nothing else, would be of no use to anybody.
        return match OTHERS.iter().find(|(ending, _)| name.ends_with(ending)) {
            Some((_, program)) => Err(Error::from(Cause::ArchiveCompressed(program))
                .with_hint(format!("decompress it first: {program} -d FILE"))
                .within(path.display().to_string())),
            None => Ok(None),
        };
    }
    let file = path.to_owned();
    if compression == Compression::None {
        let archive = Archive::beginning(Arc::new(source), MEMBERS);
        let has = |name: &str| matches!(archive.get(name), Ok(Some(_)));
        if layout::MARKS.iter().all(|name| has(name)) {
            return Ok(Some(Reference::OciArchive { file, image: Selection::Only }));
        }
        if docker::is_archive(&archive) {
            return Ok(Some(Reference::DockerArchive { file, image: Selection::Only }));
        }
    }
    Ok(Some(Reference::Tarball { file }))
}

/// An archive of images is of no use compressed: to read a piece of a layer, all before it would
/// have to be decompressed.
pub(in crate::oci) fn compressed(compression: Compression) -> Error {
    Error::from(Cause::ArchiveCompressed(compression.name()))
        .with_hint(format!("decompress it first: {} -d -k FILE", compression.name()))
}

/// Whether a tar that begins with this block is surely an archive of images: what any of them has
/// first. A root filesystem begins with `./`, `bin/` or the like.
fn begins_images(block: &[u8]) -> bool {
    let name = name_of(block);
    let name = name.strip_prefix(b"./").unwrap_or(&name);
    let first = name.split(|&byte| byte == b'/').next().unwrap_or_default();
    let stem = first.strip_suffix(b".json").or(first.strip_suffix(b".tar")).unwrap_or(first);
    let is_id = stem.len() == 64 && stem.iter().all(u8::is_ascii_hexdigit);
    is_id
        || name.starts_with(b"blobs/")
        || matches!(name, b"oci-layout" | b"index.json" | b"manifest.json")
}
