//! What happens to an image while it is open.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::Stdio;

use stratafs::error::Kind;

use crate::compare::*;
use crate::support;

const MIB: u64 = 1 << 20;

#[test]
fn an_image_cut_short_while_open_fails_where_it_is_cut() {
    let bench = Bench::new();
    let image = bench.create("disk.qcow2", "8M", "");
    bench.io(&image, &["write -q -P 1 0 4M".to_owned(), "write -q -P 2 4M 4M".to_owned()]);
    let disk = open(&image);
    let mut buf = vec![0; 65536];
    disk.source.read_at(0, &mut buf).unwrap();
    let len = fs::metadata(&image).unwrap().len();
    fs::File::options().write(true).open(&image).unwrap().set_len(len - MIB).unwrap();
    disk.source.read_at(MIB, &mut buf).unwrap();
    assert_eq!(buf, vec![1; 65536]);
    let error = disk.source.read_at(8 * MIB - 65536, &mut buf).unwrap_err();
    assert_eq!(error.kind(), Kind::Io);
    assert!(error.to_string().contains("cut short"), "{error}");
    // Opened anew, the lost clusters are damage.
    let error = open(&image).source.read_at(8 * MIB - 65536, &mut buf).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.to_string().contains("beyond the end"), "{error}");
}

#[test]
fn an_image_removed_or_replaced_while_open_is_still_the_one_that_was_opened() {
    let bench = Bench::new();
    let base = bench.create("base.qcow2", "2M", "");
    bench.fill(&base, 2 * MIB, 65536, true, 8);
    let top = bench.overlay("top.qcow2", "base.qcow2", "qcow2", None);
    let oracle = converted(&top, None);
    let disk = open(&top);
    fs::remove_file(&top).unwrap();
    fs::remove_file(&base).unwrap();
    bench.create("base.qcow2", "2M", "");
    assert_same(&*disk.source, &oracle, "removed");
    let error = opener().disk(&top.as_path().into()).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
}

#[test]
fn a_backing_file_that_is_gone_is_named() {
    let bench = Bench::new();
    bench.create("base.qcow2", "2M", "");
    let top = bench.overlay("top.qcow2", "base.qcow2", "qcow2", None);
    fs::remove_file(bench.path("base.qcow2")).unwrap();
    let error = opener().disk(&top.as_path().into()).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    let message = format!("{}: backing file: \"base.qcow2\": ", top.display());
    assert!(error.to_string().starts_with(&message), "{error}");
}

#[test]
fn foreign_formats_are_refused_by_name() {
    let bench = Bench::new();
    for (format, name) in [
        ("vmdk", "VMDK"),
        ("vhdx", "VHDX"),
        ("vpc", "VHD"),
        ("vdi", "VDI"),
        ("qed", "QED"),
        ("parallels", "Parallels"),
    ] {
        let path = bench.path("disk");
        crate::support::qemu_img(["create", "-q", "-f", format, path.to_str().unwrap(), "8M"]);
        let error = opener().disk(&path.as_path().into()).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains(name), "{error}");
        let mut forced = opener();
        forced.format = Some(stratafs::image::Format::Raw);
        assert!(forced.disk(&path.as_path().into()).is_ok());
    }
}

#[test]
fn encrypted_images_are_refused_as_such() {
    let bench = Bench::new();
    let path = bench.path("disk.qcow2");
    crate::support::qemu_img([
        "create",
        "-q",
        "-f",
        "qcow2",
        "--object",
        "secret,id=s,data=password",
        "-o",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
        path.to_str().unwrap(),
        "1M",
    ]);
    let error = opener().disk(&path.as_path().into()).unwrap_err();
    assert_eq!(error.kind(), Kind::Encrypted);
    assert!(error.to_string().contains("LUKS"), "{error}");
}

#[test]
fn an_image_that_a_running_qemu_writes_to_is_opened_with_a_warning() {
    let bench = Bench::new();
    let base = bench.create("base.qcow2", "2M", "");
    let top = bench.overlay("top.qcow2", "base.qcow2", "qcow2", None);
    let said = |image: &Path| {
        let warnings = open(image).warnings;
        warnings.iter().any(|warning| warning.contains("open for writing"))
    };
    assert!(!said(&top));
    // It holds the image until its input ends.
    let mut writer = support::tool("qemu-io", "qemu-utils")
        .arg(&top)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut prompt = [0; 1];
    writer.stdout.as_mut().unwrap().read_exact(&mut prompt).unwrap();
    let (top_said, base_said) = (said(&top), said(&base));
    drop(writer.stdin.take());
    writer.wait().unwrap();
    assert!(top_said);
    assert!(!base_said, "what lies below is only read");
    assert!(!said(&top));
}
