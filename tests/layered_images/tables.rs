//! Layers of a registry that bring a table of contents are the same by it as they are whole, and only what
//! is read of them is fetched.
//!
//! zstd:chunked is skopeo's own; eStargz is written by `estargz.py`, as no program of Debian's writes it
//! outside of containerd. What the library of stargz-snapshotter writes is read in the tests of `oci/toc`.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::{Value, json};
use stratafs::oci::layer::Learnt;
use stratafs::open::layered::Layered;
use stratafs::tree::FileTree;

use crate::image::{MANIFEST, Place, Registry};
use crate::seen::{self, beside_umoci, same};
use crate::support::{run, stdout};

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Puts an image of these tars, as eStargz, into the layout.
fn put_estargz(place: &Place, name: &str, tars: &[&str], chunk: usize) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/layered_images/estargz.py");
    let (mut layers, mut diff_ids) = (vec![], vec![]);
    for tar in tars {
        let mut python = place.tool("python3", "python3");
        python.arg(&script).args([tar, "layer", &chunk.to_string()]);
        let said = stdout(&mut python);
        let (toc, diff_id) = said.trim().split_once(' ').unwrap();
        let mut layer = place.put(&fs::read(place.path("layer")).unwrap());
        layer["mediaType"] = GZIP.into();
        layer["annotations"] = json!({ "containerd.io/snapshot/stargz/toc.digest": toc });
        layers.push(layer);
        diff_ids.push(diff_id.to_owned());
    }
    let config = json!({
        "os": "linux", "architecture": stratafs::oci::Platform::host().architecture,
        "rootfs": { "type": "layers", "diff_ids": diff_ids }, "config": {},
    });
    let mut config = place.put(config.to_string().as_bytes());
    config["mediaType"] = "application/vnd.oci.image.config.v1+json".into();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
    });
    let put = place.put(manifest.to_string().as_bytes());
    place.name(name, put, MANIFEST);
}

/// Puts an image of these tars into the layout, each with no more behind its members than it needs: skopeo
/// 1.9 drops that from what it writes as zstd:chunked, and the layer is then not the one that its config names.
fn put_short(place: &Place, name: &str, tars: &[&str]) {
    let image = format!("L:{name}");
    place.umoci(&["new", "--image", &image]);
    for tar in tars {
        let mut bytes = fs::read(place.path(tar)).unwrap();
        let end = bytes.iter().rposition(|&byte| byte != 0).unwrap() + 1;
        bytes.resize(end.next_multiple_of(512) + 1024, 0);
        fs::write(place.path("short.tar"), bytes).unwrap();
        place.umoci(&["raw", "add-layer", "--image", &image, "short.tar"]);
    }
}

/// Writes a ztoc of the blob of a layer, by zlib and flatc.
fn ztoc(place: &Place, blob: &Path, span: usize, lie: &[&str]) -> Vec<u8> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/layered_images");
    let mut python = place.tool("python3", "python3");
    python.arg(here.join("ztoc.py")).arg(blob).args(["ztoc.json", &span.to_string()]);
    run(python.args(lie));
    let mut flatc = place.tool("flatc", "flatbuffers-compiler");
    run(flatc.args(["--allow-non-utf8", "--binary"]).arg(here.join("ztoc.fbs")).arg("ztoc.json"));
    fs::read(place.path("ztoc.bin")).unwrap()
}

/// Writes to where a registry keeps its repositories.
struct Stored<'a> {
    place: &'a Place,
    repository: &'a str,
}

impl Stored<'_> {
    fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.place.path("storage/docker/registry/v2").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// A blob or, with a tag, a manifest: its descriptor.
    fn put(&self, bytes: &[u8], tags: &[&str]) -> Value {
        let put = self.place.put(bytes);
        let digest = put["digest"].as_str().unwrap();
        let hex = digest.strip_prefix("sha256:").unwrap();
        let repository = format!("repositories/{}", self.repository);
        self.write(&format!("blobs/sha256/{}/{hex}/data", &hex[..2]), bytes);
        self.write(&format!("{repository}/_layers/sha256/{hex}/link"), digest.as_bytes());
        for tag in tags {
            let manifests = format!("{repository}/_manifests");
            for link in [
                format!("revisions/sha256/{hex}/link"),
                format!("tags/{tag}/current/link"),
                format!("tags/{tag}/index/sha256/{hex}/link"),
            ] {
                self.write(&format!("{manifests}/{link}"), digest.as_bytes());
            }
        }
        put
    }

    /// A SOCI index of the layers of an image that is in the layout; `lie` is for the last of them.
    fn put_soci(&self, image: &Value, version: u8, span: usize, lie: &[&str]) -> Value {
        let layers = image["layers"].as_array().unwrap();
        let last = layers.len() - 1;
        let ztocs = layers.iter().enumerate().map(|(nth, layer)| {
            let digest = layer["digest"].as_str().unwrap();
            let lie = if nth == last { lie } else { &[] };
            let ztoc = ztoc(self.place, &self.place.blob(digest), span, lie);
            let mut put = self.put(&ztoc, &[]);
            put["mediaType"] = "application/octet-stream".into();
            put["annotations"] = json!({ "com.amazon.soci.image-layer-digest": digest });
            put
        });
        let ztocs: Vec<_> = ztocs.collect();
        let mut config = self.put(b"{}", &[]);
        config["mediaType"] = format!("application/vnd.amazon.soci.index.v{version}+json").into();
        let mut index = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": ztocs,
        });
        if version == 1 {
            index["subject"] = self.place.put(image.to_string().as_bytes());
        }
        self.put(index.to_string().as_bytes(), &["soci"])
    }

    /// The list of what refers to an image, as registries have it that know no other way.
    fn put_referrer(&self, image: &Value, index: &Value) {
        let digest = image["digest"].as_str().unwrap().replace(':', "-");
        let mut index = index.clone();
        index["mediaType"] = MANIFEST.into();
        index["artifactType"] = "application/vnd.amazon.soci.index.v1+json".into();
        let list = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [index],
        });
        self.put(list.to_string().as_bytes(), &[&digest]);
    }
}

fn learnt(layered: &Layered) -> Vec<Learnt> {
    layered.parts.iter().map(|part| part.index.facts().learnt).collect()
}

#[test]
fn by_a_table_of_contents_an_image_is_what_umoci_unpacks() {
    use Learnt::{Estargz, Whole, ZstdChunked};
    let place = Place::new();
    let registry = Registry::start(&place);
    put_estargz(&place, "estargz", &["1.tar", "2.tar", "3.tar", "4.tar"], 100_000);
    let estargz = format!("docker://{}/app:estargz", registry.host);
    place.copy("oci:L:estargz", &estargz);
    let chunked = format!("docker://{}/app:chunked", registry.host);
    put_short(&place, "short", &["1.tar", "2.tar", "3.tar", "4.tar"]);
    place.copy_with(&["--dest-compress-format", "zstd:chunked"], "oci:L:short", &chunked);
    for (reference, image, kind) in
        [(&estargz, "estargz", Estargz), (&chunked, "short", ZstdChunked)]
    {
        let theirs = place.unpacked_of(image);
        let (layered, _) = place.open(reference).unwrap_or_else(|error| panic!("{error}"));
        // A name in the first one is not UTF-8, which JSON cannot tell.
        assert_eq!(learnt(&layered), [Whole, kind, kind, kind]);
        same(&beside_umoci(seen::of_tree(&layered.merged().unwrap()), &theirs), &theirs, reference);
        // The second time all is there but contents.
        let kept = place.kept();
        let (layered, read) = place.open(reference).unwrap();
        assert_eq!((read, place.kept()), (0, kept));
        assert!(layered.image.transferred() < 10_000, "{}", layered.image.transferred());
        assert_eq!(learnt(&layered), [Whole, kind, kind, kind]);
        same(&beside_umoci(seen::of_tree(&layered.merged().unwrap()), &theirs), &theirs, "again");
        // From a folder layers are read whole.
        let (layered, _) = place.open(&place.at("oci:", &format!("L:{image}"))).unwrap();
        assert_eq!(learnt(&layered), [Whole; 4]);
        same(
            &beside_umoci(seen::of_tree(&layered.merged().unwrap()), &theirs),
            &theirs,
            "from a folder",
        );
    }
    let told = stdout(place.strata().args(["info", "--json", &chunked]));
    let told: Value = serde_json::from_str(&told).unwrap();
    let how: Vec<_> = told["layers"].as_array().unwrap().iter().map(|it| &it["read_by"]).collect();
    assert_eq!(how, ["whole", "zstd:chunked", "zstd:chunked", "zstd:chunked"]);
    let told = stdout(place.strata().args(["info", &chunked]));
    assert!(told.contains("zstd:chunked, by its table of contents"), "{told}");
}

/// Mebibytes of the large image: `STRATA_TOC_MB=1024` is one of 1 GiB.
fn mebibytes() -> u64 {
    std::env::var("STRATA_TOC_MB").map_or(48, |size| size.parse().unwrap())
}

#[test]
fn one_file_of_a_large_image_takes_little_of_it() {
    let place = Place::new();
    let registry = Registry::start(&place);
    let make = format!(
        "import io, random, tarfile
rng = random.Random(7)
tar = tarfile.open('big.tar', 'w')
for n in range({}):
    info = tarfile.TarInfo(f'f{{n}}')
    info.size = 1 << 20
    tar.addfile(info, io.BytesIO(rng.randbytes(info.size)))
tar.close()",
        mebibytes()
    );
    run(place.tool("python3", "python3").args(["-c", &make]));
    put_estargz(&place, "big", &["big.tar"], 4 << 20);
    put_short(&place, "plain", &["big.tar"]);
    let estargz = format!("docker://{}/big:estargz", registry.host);
    let chunked = format!("docker://{}/big:chunked", registry.host);
    place.copy("oci:L:big", &estargz);
    place.copy_with(&["--dest-compress-format", "zstd:chunked"], "oci:L:plain", &chunked);
    let wanted = run(place.tool("tar", "tar").args(["-xOf", "big.tar", "f5"])).stdout;
    // The file, once again as much, and the table of contents: 10 MB of a gigabyte.
    let most = (2 << 20) + (500 << 10) + 7 * mebibytes() * 1024;
    for reference in [&estargz, &chunked] {
        let (layered, _) = place.open(reference).unwrap();
        assert!(layered.parts[0].index.facts().learnt != Learnt::Whole, "{reference}");
        let tree = layered.merged().unwrap();
        let table = layered.image.transferred();
        let read =
            stratafs::tree::FileTree::lookup(&tree, stratafs::tree::FileTree::root(&tree), b"f5");
        let mut bytes = vec![0; 1 << 20];
        stratafs::tree::FileTree::read_at(&tree, read.unwrap().unwrap(), 0, &mut bytes).unwrap();
        assert!(bytes == wanted);
        let all = layered.image.transferred();
        println!("{reference}: {table} bytes for the table of contents, {all} with the file");
        assert!(all <= most, "{reference}: {all} bytes");
        // The program does no more.
        let output = run(place.strata().args(["cat", reference, "/f5"]));
        assert!(output.stdout == wanted);
    }
}

#[test]
fn what_a_table_of_contents_does_not_vouch_for_is_not_given_out() {
    let place = Place::new();
    let registry = Registry::start(&place);
    put_estargz(&place, "estargz", &["1.tar", "2.tar"], 100_000);
    let reference = format!("docker://{}/app:estargz", registry.host);
    place.copy("oci:L:estargz", &reference);
    let manifest = place.manifest("estargz");
    let digest = manifest["layers"][1]["digest"].as_str().unwrap().to_owned();
    let hex = digest.strip_prefix("sha256:").unwrap();
    let stored = format!("storage/docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]);
    let good = fs::read(place.path(&stored)).unwrap();
    run(place.strata().args(["cat", &reference, "/opt/app/large.bin"]));

    // Somewhere in the large file.
    let file = OpenOptions::new().write(true).open(place.path(&stored)).unwrap();
    let at = good.len() / 2;
    file.write_all_at(&[!good[at]; 8], at as u64).unwrap();
    let output = place.strata().args(["cat", &reference, "/opt/app/large.bin"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("/opt/app/large.bin") && said.contains("chunk at 0x"), "{said}");
    run(place.strata().args(["cat", &reference, "/opt/app/a05"]));
    file.write_all_at(&good[at..at + 8], at as u64).unwrap();

    // In the table of contents: another one is not used, and the layer, read whole, is not what was asked for.
    let wrong = good.len() - 200;
    file.write_all_at(&[!good[wrong]], wrong as u64).unwrap();
    for kept in place.kept() {
        fs::remove_file(kept).unwrap();
    }
    let output = place.strata().args(["cat", &reference, "/opt/app/a05"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("is read whole, and not by its table of contents"), "{said}");
    assert!(!output.status.success() && said.contains(&digest), "{said}");
}

#[test]
fn by_a_soci_index_an_image_is_what_umoci_unpacks() {
    use Learnt::{Soci, Whole};
    let place = Place::new();
    let registry = Registry::start(&place);
    let theirs = place.unpacked();
    let stored = Stored { place: &place, repository: "app" };
    // As it is, byte for byte, so that its digest is known.
    let manifest = place.manifest("v1");
    let image = stored.put(manifest.to_string().as_bytes(), &["v1"]);
    place.copy("oci:L:v1", &format!("docker://{}/app:other", registry.host));
    let tagged = format!("docker://{}/app:v1", registry.host);
    let by_digest = format!("docker://{}/app@{}", registry.host, image["digest"].as_str().unwrap());
    let opened = |reference: &str, wanted: &[Learnt]| {
        fs::remove_dir_all(place.path("cache")).unwrap();
        for time in ["at first", "again"] {
            let (layered, _) = place.open(reference).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(learnt(&layered), wanted, "{reference} {time}");
            let what = format!("{reference} {time}");
            same(&beside_umoci(seen::of_tree(&layered.merged().unwrap()), &theirs), &theirs, &what);
        }
    };
    opened(&tagged, &[Whole; 4]);
    let index = stored.put_soci(&manifest, 1, 200_000, &[]);
    stored.put_referrer(&image, &index);
    // The others are fetched before anyone could say how they are indexed.
    let large = [Soci, Soci, Whole, Whole];
    opened(&tagged, &large);
    // Nothing that the digest vouches for names the index.
    opened(&by_digest, &[Whole; 4]);

    let index = stored.put_soci(&manifest, 2, 200_000, &[]);
    let mut second = manifest.clone();
    second["annotations"] = json!({ "com.amazon.soci.index-digest": index["digest"] });
    let image = stored.put(second.to_string().as_bytes(), &["second"]);
    let by_digest = format!("docker://{}/app@{}", registry.host, image["digest"].as_str().unwrap());
    opened(&by_digest, &large);
}

#[test]
fn a_soci_index_cannot_move_contents_about() {
    let place = Place::new();
    let registry = Registry::start(&place);
    let make = "import io, random, tarfile
rng = random.Random(7)
tar = tarfile.open('big.tar', 'w')
for n in range(8):
    info = tarfile.TarInfo(f'f{n}')
    info.size = 1 << 20
    tar.addfile(info, io.BytesIO(rng.randbytes(info.size)))
tar.close()";
    run(place.tool("python3", "python3").args(["-c", make]));
    put_short(&place, "plain", &["big.tar"]);
    let manifest = place.manifest("plain");
    place.copy("oci:L:plain", &format!("docker://{}/big:other", registry.host));
    let stored = Stored { place: &place, repository: "big" };
    let index = stored.put_soci(&manifest, 2, 1 << 20, &["f3 f4"]);
    let mut second = manifest.clone();
    second["annotations"] = json!({ "com.amazon.soci.index-digest": index["digest"] });
    stored.put(second.to_string().as_bytes(), &["lie"]);
    let reference = format!("docker://{}/big:lie", registry.host);
    let wanted = run(place.tool("tar", "tar").args(["-xOf", "big.tar", "f5"])).stdout;
    let (layered, _) = place.open(&reference).unwrap();
    assert_eq!(learnt(&layered), [Learnt::Soci]);
    let table = layered.image.transferred();
    assert!(run(place.strata().args(["cat", &reference, "/f5"])).stdout == wanted);
    for moved in ["/f3", "/f4"] {
        let output = place.strata().args(["cat", &reference, moved]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.stdout.is_empty() && !output.status.success(), "{said}");
        assert!(said.contains("the tar has no header at 0x"), "{said}");
    }
    // Two or three spans of the file, the one with its header, and no more.
    let tree = layered.merged().unwrap();
    let mut bytes = vec![0; 1 << 20];
    let file = tree.lookup(tree.root(), b"f5").unwrap().unwrap();
    tree.read_at(file, 0, &mut bytes).unwrap();
    let all = layered.image.transferred();
    println!("{table} bytes for the ztoc, {all} with the file");
    assert!(bytes == wanted && all - table < 4 << 20, "{all} bytes");
}
