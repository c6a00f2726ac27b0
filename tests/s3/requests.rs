//! How many requests operations take, and how many bytes: counted by a proxy, and shown as the table of
//! `docs/object-storage.md` is.
//!
//! `STRATA_S3_DISK` says how many MiB the disk has (96), of which half do not compress, and `STRATA_S3_DELAY` how many
//! milliseconds each request takes longer (0).

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Instant;

use super::ceph::Ceph;
use super::proxy::{Proxy, Tally};
use super::{Place, noise};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

struct Counted<'a> {
    place: &'a Place,
    proxy: &'a Proxy,
}

impl Counted<'_> {
    /// Runs a command and shows what it asked for.
    fn run(&self, what: &str, args: &[&str]) -> Tally {
        self.doing(what, || drop(self.place.told(args)))
    }

    fn doing(&self, what: &str, doing: impl FnOnce()) -> Tally {
        self.proxy.take_tally();
        let began = Instant::now();
        doing();
        let seconds = began.elapsed().as_secs_f64();
        let tally = self.proxy.take_tally();
        let methods: Vec<String> =
            tally.methods.iter().map(|(method, count)| format!("{count} {method}")).collect();
        println!(
            "| {what} | {}: {} | {} | {} | {seconds:.2} |",
            tally.requests(),
            methods.join(", "),
            bytes(tally.received),
            bytes(tally.sent)
        );
        tally
    }
}

fn bytes(count: u64) -> String {
    match count {
        0 => "0".to_owned(),
        1..1000 => format!("{:.1} KB", count as f64 / 1e3),
        1000..1_000_000 => format!("{:.0} KB", count as f64 / 1e3),
        _ => format!("{:.1} MB", count as f64 / 1e6),
    }
}

/// No operation asks for more than it has to.
#[test]
fn requests_and_bytes_of_each_operation() {
    let ceph = Ceph::start();
    ceph.make_bucket("counted");
    let proxy = Proxy::start(ceph.port(), 0);
    proxy.delay(number("STRATA_S3_DELAY", 0));
    let place = Place::new(proxy.endpoint());
    let counted = Counted { place: &place, proxy: &proxy };
    let size = number("STRATA_S3_DISK", 96) << 20;
    let (raw, data) = (place.path("disk.raw"), size / 2);
    let file = File::create(&raw).unwrap();
    file.set_len(size).unwrap();
    for at in (0..data).step_by(1 << 20) {
        file.write_all_at(&noise(at, 1 << 20), at).unwrap();
    }
    let raw = raw.to_str().unwrap();
    let (store, web) = ("s3://counted/st", "s3://counted/st::web");
    let create = ["snapshot", "create", store, "web", raw];
    println!("| operation | requests | received | sent | s |");
    counted.run("`store init`", &["store", "init", store]);
    let first = counted.run("`snapshot create`, the first", &create);
    assert!(first.sent > data && first.sent < data + data / 50, "{first:?}");
    let again = counted.run("the same disk again", &create);
    assert!(again.sent < 10_000 && again.requests() < 20, "{again:?}");
    let changed = noise(1 << 40, size as usize / 100);
    file.write_all_at(&changed, 1 << 20).unwrap();
    let third = counted.run("1 % of it changed", &create);
    assert!(third.sent < changed.len() as u64 * 13 / 10 + 300_000, "{third:?}");
    counted.run("`store info`", &["store", "info", store]);
    counted.run("`snapshot list`", &["snapshot", "list", store]);
    let check = counted.run("`store check`", &["store", "check", store]);
    assert!(check.received < data / 20 + 2_000_000, "{check:?}");
    let all = counted.run("`store check --read-data`", &["store", "check", "--read-data", store]);
    assert!(all.received < data * 12 / 10 + 2_000_000, "{all:?}");
    mounted(&counted, web, data);
    let out = place.path("out.raw");
    let convert = ["convert", "--overwrite", web, out.to_str().unwrap()];
    place.told_alone(&["cache", "prune"]);
    let read = counted.run("`convert` of all of it", &convert);
    assert!(read.received < data * 12 / 10 + 2_000_000, "{read:?}");
    let kept = counted.run("again", &convert);
    assert!(kept.received < 200_000, "{kept:?}");
    assert!(fs::read(&out).unwrap() == fs::read(raw).unwrap());

    // Nothing is to be given back, then a hundredth, by writing its pack anew.
    let collect = ["store", "collect", "--grace=0s", store];
    let nothing = counted.run("`store collect`, nothing to do", &collect);
    assert!(nothing.sent < 10_000 && nothing.requests() < 40, "{nothing:?}");
    let shown = place.json(&["snapshot", "show", web]);
    let id = shown["id"].as_str().unwrap();
    let gone = format!("{store}::{id}");
    counted.run("`snapshot remove`", &["snapshot", "remove", &gone]);
    let done = counted.run("`store collect`, a pack of it to go", &collect);
    assert!(done.sent < 2_000_000 && done.requests() < 80, "{done:?}");

    let copy = ["store", "copy", store, "s3://counted/copy"];
    let copied = counted.run("`store copy` into a new store of the same bucket", &copy);
    assert!(copied.sent < data * 11 / 10 && copied.received < data * 12 / 10, "{copied:?}");
    let again = counted.run("again", &copy);
    assert!(again.sent < 1000 && again.requests() < 30, "{again:?}");
}

/// The first byte of a mount, and all of them.
fn mounted(counted: &Counted<'_>, web: &str, data: u64) {
    let Counted { place, .. } = counted;
    let mnt = place.path("mnt");
    fs::create_dir(&mnt).unwrap();
    place.told_alone(&["cache", "prune"]);
    let first = counted.doing("first byte of a mount", || {
        place.told(&["mount", "--view=disk", web, mnt.to_str().unwrap()]);
        File::open(mnt.join("disk.img")).unwrap().read_exact_at(&mut [0], 5).unwrap();
    });
    let all = counted.doing("reading all of it", || drop(fs::read(mnt.join("disk.img")).unwrap()));
    place.told_alone(&["unmount", mnt.to_str().unwrap()]);
    assert!(first.requests() < 40 && first.received < 5_000_000, "{first:?}");
    assert!(all.received < data * 12 / 10 + 2_000_000, "{all:?}");
}
