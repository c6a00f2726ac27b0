//! ext2, ext3 and ext4 against the kernel's own mount of the same filesystem, in every entry.
#![allow(unreachable_pub, reason = "modules are shared between test binaries")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod ext;
mod support;

use ext::compare::{Compared, compare};
use ext::populate::{Contents, populate};
use ext::{Image, Mounted, open};

/// Makes a filesystem, fills it through the kernel, and compares what the kernel then shows of it
/// with what we do.
#[track_caller]
fn same_as_the_kernel(args: &[&str], contents: Contents) -> Compared {
    same_as_the_kernel_mounted(args, "", contents)
}

#[track_caller]
fn same_as_the_kernel_mounted(args: &[&str], options: &str, contents: Contents) -> Compared {
    let block_size = contents.block_size.to_string();
    let image = Image::make(512, &[&["-b", &block_size], args].concat());
    populate(image.mount(&format!("rw,{options}")).path(), contents, 0x5eed);
    let mounted = image.mount("ro");
    let ours = image.open();
    assert_eq!(ours.info.warnings, Vec::<String>::new());
    assert!(ours.info.clean);
    let compared = compare(mounted.path(), &*ours.tree);
    println!("{args:?}: {compared:?}");
    assert!(compared.entries > contents.many * 6 / 7);
    assert!(compared.bytes > 4 << 20 && compared.holes > 70 << 20);
    assert!(compared.attributes > 30 && compared.linked >= 5);
    compared
}

#[test]
fn ext4_as_it_is_made_today() {
    let contents = Contents { many: 20_000, ..Contents::new(4096) };
    same_as_the_kernel(&["-t", "ext4", "-N", "40000"], contents);
}

#[test]
fn blocks_of_1_kib() {
    same_as_the_kernel(&["-t", "ext4"], Contents::new(1024));
}

#[test]
fn blocks_of_2_kib() {
    same_as_the_kernel(&["-t", "ext4"], Contents::new(2048));
}

#[test]
fn ext2() {
    let contents = Contents { extents: false, far: 5 << 30, ..Contents::new(4096) };
    same_as_the_kernel(&["-t", "ext2"], contents);
}

#[test]
fn ext2_with_blocks_of_1_kib() {
    let contents = Contents { extents: false, ..Contents::new(1024) };
    same_as_the_kernel(&["-t", "ext2", "-O", "^dir_index"], contents);
}

#[test]
fn ext3() {
    let contents = Contents { extents: false, far: 5 << 30, ..Contents::new(4096) };
    same_as_the_kernel(&["-t", "ext3"], contents);
}

#[test]
fn ext3_with_inodes_of_128_bytes_and_no_sparse_superblocks() {
    let contents = Contents { extents: false, ..Contents::new(1024) };
    let features = "^sparse_super,^resize_inode,^filetype";
    same_as_the_kernel(&["-t", "ext3", "-I", "128", "-O", features], contents);
}

#[test]
fn inline_data() {
    same_as_the_kernel(&["-t", "ext4", "-O", "inline_data"], Contents::new(4096));
}

#[test]
fn inline_data_in_large_inodes() {
    let args = ["-t", "ext4", "-O", "inline_data,^metadata_csum", "-I", "1024"];
    same_as_the_kernel(&args, Contents::new(2048));
}

#[test]
fn bigalloc() {
    let args = ["-t", "ext4", "-O", "bigalloc", "-C", "65536"];
    same_as_the_kernel(&args, Contents::new(4096));
}

#[test]
fn bigalloc_with_blocks_of_1_kib() {
    let args = ["-t", "ext4", "-O", "bigalloc,^resize_inode", "-C", "16384"];
    same_as_the_kernel(&args, Contents::new(1024));
}

#[test]
fn meta_bg() {
    let args = ["-t", "ext4", "-O", "meta_bg,^resize_inode"];
    same_as_the_kernel(&args, Contents::new(1024));
}

#[test]
fn meta_bg_with_small_descriptors() {
    let args = ["-t", "ext4", "-O", "meta_bg,^resize_inode,^64bit,^metadata_csum,uninit_bg"];
    same_as_the_kernel(&args, Contents::new(4096));
}

#[test]
fn no_extents() {
    let contents = Contents { extents: false, far: 5 << 30, ..Contents::new(4096) };
    same_as_the_kernel(&["-t", "ext4", "-O", "^extents,^64bit"], contents);
}

#[test]
fn no_metadata_checksums() {
    same_as_the_kernel(&["-t", "ext4", "-O", "^metadata_csum,^uninit_bg"], Contents::new(4096));
}

#[test]
fn group_checksums_of_the_old_kind() {
    let args = ["-t", "ext4", "-O", "^metadata_csum,uninit_bg,64bit"];
    same_as_the_kernel(&args, Contents::new(1024));
}

#[test]
fn checksums_with_a_seed_of_their_own_and_no_flexible_groups() {
    let args = ["-t", "ext4", "-O", "metadata_csum_seed,^flex_bg,sparse_super2,^resize_inode"];
    same_as_the_kernel(&args, Contents::new(4096));
}

#[test]
fn large_attributes_in_inodes_of_their_own() {
    let contents = Contents { large_attribute: 60_000, ..Contents::new(4096) };
    same_as_the_kernel(&["-t", "ext4", "-O", "ea_inode"], contents);
}

#[test]
fn a_folder_index_of_three_levels() {
    let image = Image::make(256, &["-t", "ext4", "-O", "large_dir", "-b", "1024"]);
    {
        let mounted = image.mount("rw");
        let many = mounted.path().join("many");
        std::fs::create_dir(&many).unwrap();
        std::fs::write(many.join("file"), b"").unwrap();
        for number in 0..48_000 {
            let name = format!("{number:0>250}");
            std::fs::hard_link(many.join("file"), many.join(name)).unwrap();
        }
    }
    let dump = support::stdout(
        support::tool("debugfs", "e2fsprogs").args(["-R", "htree_dump /many"]).arg(&image.path),
    );
    assert!(dump.contains("Indirect levels: 2"), "{}", &dump[..400]);
    let mounted = image.mount("ro");
    assert!(compare(mounted.path(), &*image.open().tree).entries > 48_000);
}

#[test]
fn no_index_in_a_large_folder() {
    let contents = Contents { many: 6000, ..Contents::new(4096) };
    same_as_the_kernel(&["-t", "ext4", "-O", "^dir_index"], contents);
}

#[test]
fn every_hash_function() {
    for function in ["legacy", "half_md4", "tea"] {
        let image = Image::make(64, &["-t", "ext4", "-b", "1024"]);
        support::run(
            support::tool("tune2fs", "e2fsprogs")
                .args(["-E", &format!("hash_alg={function}")])
                .arg(&image.path),
        );
        {
            let mounted = image.mount("rw");
            for number in 0..3000 {
                let name = [b"caf\xe9-".as_slice(), format!("{number}").as_bytes()].concat();
                let name = std::os::unix::ffi::OsStringExt::from_vec(name);
                let name: std::ffi::OsString = name;
                std::fs::write(mounted.path().join(name), b"").unwrap();
            }
        }
        let mounted = image.mount("ro");
        assert!(compare(mounted.path(), &*image.open().tree).entries > 3000);
    }
}

#[test]
fn the_root_of_a_debian_system() {
    use stratafs::block::{BlockSource, Cache, FileSource, Window};
    let path = support::fixture("debian.raw");
    let table = support::stdout(support::tool("sfdisk", "fdisk").arg("-d").arg(&path));
    let field = |line: &str, name: &str| -> u64 {
        let (_, value) = line.split_once(name).unwrap();
        value.split(',').next().unwrap().trim().parse().unwrap()
    };
    let root = table.lines().find(|line| line.contains("name=\"root\"")).expect("a root volume");
    let (start, len) = (field(root, "start=") * 512, field(root, "size=") * 512);
    let options = format!("ro,offset={start},sizelimit={len}");
    support::require_root();
    let mounted = Mounted::new(&path, &options);
    let disk = std::sync::Arc::new(FileSource::open(&path).unwrap());
    let volume: std::sync::Arc<dyn BlockSource> =
        std::sync::Arc::new(Window::new(disk, start, len).unwrap());
    let ours = stratafs::fs::open(volume, &Cache::new(64 << 20)).unwrap().expect("a filesystem");
    let compared = compare(mounted.path(), &*ours.tree);
    println!("{compared:?}");
    assert!(compared.entries > 15_000);
}

#[test]
fn encrypted_folders_as_they_are_shown_without_the_key() {
    let image = Image::make(64, &["-t", "ext4", "-O", "encrypt", "-b", "4096"]);
    {
        let mounted = image.mount("rw");
        let dir = mounted.path().join("secret");
        std::fs::create_dir(&dir).unwrap();
        // A session keyring of its own holds the key for as long as the script runs.
        let script = format!(
            "printf 'correct horse\\n' | e4crypt add_key -S 0x00112233 -q {dir} && cd {dir} \
             && mkdir folder && for i in $(seq 300); do echo $i > file-$i; done \
             && echo deep > folder/deep && ln -s ../some/where link && ln file-1 hard \
             && touch $(printf 'n%.0s' $(seq 255)) && touch $(printf 'm%.0s' $(seq 150))",
            dir = dir.display()
        );
        support::tool("e4crypt", "e2fsprogs");
        support::run(
            support::tool("keyctl", "keyutils").args(["session", "-", "sh", "-c", &script]),
        );
    }
    let mounted = image.mount("ro");
    let ours = image.open();
    let secret = ours.tree.lookup(ours.tree.root(), b"secret").unwrap().unwrap();
    let mut found = 0;
    ours.tree
        .read_dir(secret, 0, &mut |entry| {
            let name: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(entry.name);
            let stat = mounted.path().join("secret").join(name).symlink_metadata().unwrap();
            assert_eq!(std::os::unix::fs::MetadataExt::ino(&stat), entry.node.0);
            assert_eq!(ours.tree.lookup(secret, entry.name).unwrap(), Some(entry.node));
            let attr = ours.tree.attr(entry.node).unwrap();
            assert_eq!(attr.size, stat.len());
            if stat.is_symlink() {
                let target = std::fs::read_link(mounted.path().join("secret").join(name)).unwrap();
                let target = std::os::unix::ffi::OsStringExt::into_vec(target.into_os_string());
                assert_eq!(ours.tree.read_link(entry.node).unwrap(), target);
            }
            if stat.is_file() && stat.len() > 0 {
                let error = ours.tree.read_at(entry.node, 0, &mut [0; 10]).unwrap_err();
                assert_eq!(error.kind(), stratafs::error::Kind::Encrypted);
            }
            found += 1;
            true
        })
        .unwrap();
    let shown = std::fs::read_dir(mounted.path().join("secret")).unwrap().count();
    assert_eq!(found, shown);
    assert_eq!(found, 305);
    assert_eq!(ours.tree.lookup(secret, b"link").unwrap(), None, "the key is known");
}

#[test]
fn folders_where_case_does_not_count() {
    let dir = tempfile::tempdir().unwrap();
    for (folder, count) in [("small", 3), ("large", 2000)] {
        std::fs::create_dir(dir.path().join(folder)).unwrap();
        for number in 0..count {
            std::fs::write(dir.path().join(folder).join(format!("Grüße {number}")), b"").unwrap();
        }
    }
    let path = dir.path().join("image");
    let args = ["-q", "-F", "-t", "ext4", "-O", "casefold,^metadata_csum", "-N", "4096", "-d"];
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(32 << 20).unwrap();
    support::run(support::tool("mke2fs", "e2fsprogs").args(args).arg(dir.path()).arg(image.path()));
    // The kernel of this machine may know no Unicode: the flag alone is what counts here.
    std::fs::write(
        &path,
        "set_inode_field small flags 0x40080000\nset_inode_field large flags 0x40080000\n",
    )
    .unwrap();
    support::run(
        support::tool("debugfs", "e2fsprogs").arg("-w").arg("-f").arg(&path).arg(image.path()),
    );
    let ours = open(image.path());
    for folder in ["small", "large"] {
        let root = ours.tree.root();
        let dir = ours.tree.lookup(root, folder.as_bytes()).unwrap().unwrap();
        let find = |name: &str| ours.tree.lookup(dir, name.as_bytes()).unwrap();
        let exact = find("Grüße 2");
        assert!(exact.is_some());
        assert_eq!(find("gRÜßE 2"), exact);
        assert_eq!(find("Grüße 9999"), None);
        assert_eq!(ours.tree.lookup(root, folder.to_uppercase().as_bytes()).unwrap(), None);
    }
}

#[test]
fn damaged_group_descriptors_are_taken_from_their_copies() {
    for features in ["metadata_csum", "^metadata_csum,uninit_bg"] {
        let image = Image::make(64, &["-t", "ext4", "-b", "1024", "-O", features]);
        populate_groups(&image);
        let mounted = image.mount("ro");
        // All that the first table says of groups is gone.
        let damaged = image.copy("damaged");
        let file = std::fs::File::options().write(true).open(&damaged).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[0x5a; 1024], 2048).unwrap();
        assert!(compare(mounted.path(), &*open(&damaged).tree).entries > 100);
    }
}

fn populate_groups(image: &Image) {
    let mounted = image.mount("rw");
    for number in 0..60 {
        let dir = mounted.path().join(format!("{number}"));
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("file"), [1; 3000]).unwrap();
    }
}

#[test]
fn many_threads_see_the_same() {
    let image = Image::make(512, &["-t", "ext4", "-b", "1024"]);
    populate(image.mount("rw").path(), Contents::new(1024), 0x5eed);
    let mounted = image.mount("ro");
    let ours = image.open();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| compare(mounted.path(), &*ours.tree));
        }
    });
}

mod journal {
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// Changes the filesystem without end: folders and files made, renamed, linked, cut, removed.
    fn write(root: &Path, seed: u64, stop: &AtomicBool) {
        let mut rng = ext::Rng(seed);
        let mut round = 0;
        while !stop.load(Ordering::Relaxed) {
            let dir = root.join(format!("round-{seed}-{round}"));
            std::fs::create_dir(&dir).unwrap();
            for number in 0..30 {
                let path = dir.join(format!("file-{number}"));
                let len = rng.below(20_000) as usize;
                std::fs::write(&path, rng.bytes(len)).unwrap();
                match rng.below(5) {
                    0 => std::fs::remove_file(&path).unwrap(),
                    1 => std::fs::rename(&path, dir.join(format!("renamed-{number}"))).unwrap(),
                    2 => std::fs::hard_link(&path, dir.join(format!("linked-{number}"))).unwrap(),
                    3 => std::fs::File::options()
                        .write(true)
                        .open(&path)
                        .and_then(|file| file.set_len(rng.below(30_000)))
                        .unwrap(),
                    _ => std::fs::File::open(&path).unwrap().sync_all().unwrap(),
                }
            }
            // In journalled data, a block that looks like one of the journal's own.
            std::fs::write(dir.join("magic"), 0xc03b_3998_u32.to_be_bytes().repeat(3000)).unwrap();
            if round >= 6 {
                // Freed folder blocks that are used again need revoke records.
                std::fs::remove_dir_all(root.join(format!("round-{seed}-{}", round - 6))).unwrap();
            }
            std::fs::File::open(&dir).unwrap().sync_all().unwrap();
            round += 1;
        }
    }

    /// Copies the image while it is written to, as a snapshot would: two copies that are equal
    /// are what it was at one moment.
    fn snapshot(image: &Image, root: &Path) -> std::path::PathBuf {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let stop = &stop;
            let writers: Vec<_> =
                (1..=2).map(|seed| scope.spawn(move || write(root, seed, stop))).collect();
            std::thread::sleep(std::time::Duration::from_millis(1500));
            stop.store(true, Ordering::Relaxed);
            writers.into_iter().for_each(|writer| writer.join().unwrap());
        });
        for attempt in 0..50 {
            let first = image.copy(&format!("first-{attempt}"));
            let second = image.copy(&format!("second-{attempt}"));
            if std::fs::read(&first).unwrap() == std::fs::read(&second).unwrap() {
                return first;
            }
            std::fs::remove_file(first).unwrap();
            std::fs::remove_file(second).unwrap();
        }
        panic!("the image does not come to rest");
    }

    fn names(tree: &dyn stratafs::tree::FileTree) -> usize {
        let (mut count, mut todo) = (0, vec![tree.root()]);
        while let Some(node) = todo.pop() {
            tree.read_dir(node, 0, &mut |entry| {
                count += 1;
                if tree.attr(entry.node).unwrap().kind == stratafs::tree::FileKind::Directory {
                    todo.push(entry.node);
                }
                true
            })
            .unwrap();
        }
        count
    }

    #[track_caller]
    fn same_after_replay(args: &[&str], options: &str) {
        let image = Image::make(96, args);
        let mounted = image.mount(&format!("rw,{options}"));
        populate_some(mounted.path());
        rustix::fs::syncfs(std::fs::File::open(mounted.path()).unwrap()).unwrap();
        let dirty = snapshot(&image, mounted.path());
        drop(mounted);
        let before = std::fs::read(&dirty).unwrap();
        let ours = open(&dirty);
        assert!(ours.info.features.iter().any(|name| name == "needs_recovery"), "{:?}", ours.info);
        assert!(!ours.info.clean);
        let warnings: Vec<_> =
            ours.info.warnings.iter().filter(|line| !line.contains("being deleted")).collect();
        assert!(warnings.is_empty(), "{warnings:?}");
        let replayed = dirty.with_extension("replayed");
        std::fs::copy(&dirty, &replayed).unwrap();
        // The kernel replays only what it may write to.
        drop(Mounted::new(&replayed, "rw"));
        let oracle = Mounted::new(&replayed, "ro");
        let compared = compare(oracle.path(), &*ours.tree);
        println!("{args:?} {options}: {compared:?}");
        assert!(compared.entries > 100);
        drop(oracle);
        // Without its journal it is another filesystem: the replay did something.
        let stale = dirty.with_extension("stale");
        std::fs::copy(&dirty, &stale).unwrap();
        let stale = Mounted::new(&stale, "ro,noload");
        let shown = walkdir(stale.path());
        assert_ne!(shown, names(&*ours.tree));
        assert!(std::fs::read(&dirty).unwrap() == before, "the image was written to");
    }

    /// Names below a folder, as far as what is not replayed can be read.
    fn walkdir(root: &Path) -> usize {
        let Ok(entries) = std::fs::read_dir(root) else { return 0 };
        entries
            .flatten()
            .map(|entry| {
                let folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
                1 + if folder { walkdir(&entry.path()) } else { 0 }
            })
            .sum()
    }

    fn populate_some(root: &Path) {
        for number in 0..50 {
            std::fs::write(root.join(format!("{number}")), vec![number; 10_000]).unwrap();
        }
    }

    #[test]
    fn of_ext4() {
        same_after_replay(&["-t", "ext4"], "");
    }

    #[test]
    fn of_ext4_with_blocks_of_4_kib() {
        same_after_replay(&["-t", "ext4", "-b", "4096", "-J", "size=16"], "");
    }

    #[test]
    fn of_ext4_with_journalled_data() {
        same_after_replay(&["-t", "ext4", "-b", "4096"], "data=journal");
    }

    #[test]
    fn of_ext4_with_journalled_data_and_blocks_of_1_kib() {
        same_after_replay(&["-t", "ext4", "-b", "1024"], "data=journal");
    }

    #[test]
    fn of_ext3() {
        same_after_replay(&["-t", "ext3", "-b", "4096"], "");
    }

    #[test]
    fn of_ext3_with_journalled_data_and_a_small_log() {
        same_after_replay(&["-t", "ext3", "-b", "1024", "-J", "size=1"], "data=journal");
    }

    #[test]
    fn with_checksums_of_whole_transactions() {
        same_after_replay(&["-t", "ext4", "-O", "^metadata_csum"], "journal_checksum");
    }

    #[test]
    fn with_asynchronous_commits() {
        same_after_replay(
            &["-t", "ext4", "-O", "^metadata_csum,^64bit"],
            "journal_async_commit,data=writeback",
        );
    }

    #[test]
    fn with_asynchronous_commits_and_block_checksums() {
        same_after_replay(
            &["-t", "ext4", "-O", "metadata_csum"],
            "journal_async_commit,data=writeback",
        );
    }
}
