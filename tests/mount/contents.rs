//! What is in the tree: names, attributes, bytes.

use super::*;

#[test]
fn every_attribute_of_every_file_is_shown() {
    let fixture = Fixture::new(model(), &options());
    let model = &fixture.model;
    let mut listed = 0;
    for entry in fs::read_dir(fixture.dir.path()).unwrap() {
        use std::os::unix::fs::DirEntryExt;
        let entry = entry.unwrap();
        listed += 1;
        let name = entry.file_name();
        let number = model.lookup(NodeId(2), name.as_bytes()).unwrap().unwrap();
        let attr = model.attr(number).unwrap();
        let metadata = fs::symlink_metadata(entry.path()).unwrap();
        assert_eq!(entry.ino(), metadata.ino(), "{name:?}");
        if number.0 > 1 {
            assert_eq!(metadata.ino(), number.0, "{name:?}");
        }
        assert_eq!(entry.file_type().unwrap(), metadata.file_type());
        let kind = metadata.file_type();
        assert!(
            match attr.kind {
                FileKind::Regular => kind.is_file(),
                FileKind::Directory => kind.is_dir(),
                FileKind::Symlink => kind.is_symlink(),
                FileKind::Fifo => kind.is_fifo(),
                FileKind::Socket => kind.is_socket(),
                FileKind::CharDevice(_) => kind.is_char_device(),
                FileKind::BlockDevice(_) => kind.is_block_device(),
            },
            "{name:?}: {kind:?}"
        );
        assert_eq!(metadata.mode() & 0o7777, u32::from(attr.mode), "{name:?}");
        assert_eq!((metadata.uid(), metadata.gid()), (attr.uid, attr.gid), "{name:?}");
        assert_eq!(metadata.nlink(), u64::from(attr.links), "{name:?}");
        assert_eq!((metadata.size(), metadata.blocks()), (attr.size, attr.blocks), "{name:?}");
        let times = [attr.accessed, attr.modified, attr.changed]
            .map(|time| (time.seconds, i64::from(time.nanos)));
        assert_eq!(seconds(&metadata), times, "{name:?}");
        if let FileKind::CharDevice(device) | FileKind::BlockDevice(device) = attr.kind {
            let shown = metadata.rdev();
            let shown = (rustix::fs::major(shown), rustix::fs::minor(shown));
            assert_eq!(shown, (device.major, device.minor));
        }
    }
    assert_eq!(listed, model.entries(NodeId(2)).unwrap().len());
    let inos = ["zero", "one", "large"].map(|name| fs::metadata(fixture.path(name)).unwrap().ino());
    assert_eq!(inos.iter().collect::<HashSet<_>>().len(), 3);
    assert_eq!(inos[2], fs::metadata(fixture.path("large too")).unwrap().ino());
    assert_eq!(fs::metadata(fixture.dir.path()).unwrap().ino(), 2);
    assert_eq!(fs::read_link(fixture.path("link")).unwrap().as_os_str().as_bytes(), b"no\xffwhere");
    let missing = fs::metadata(fixture.path("missing")).unwrap_err();
    assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
}

#[test]
fn the_kernel_asks_for_what_it_knows_only_once() {
    let fixture = Fixture::new(model(), &options());
    let counts = || {
        [
            &fixture.model.lookups,
            &fixture.model.attrs,
            &fixture.model.links_read,
            &fixture.model.reads,
        ]
        .map(|count| count.load(Ordering::Relaxed))
    };
    let look = || {
        for entry in fs::read_dir(fixture.path("many")).unwrap() {
            fs::symlink_metadata(entry.unwrap().path()).unwrap();
        }
        assert!(fs::metadata(fixture.path("many/missing")).is_err());
        fs::read_link(fixture.path("link")).unwrap();
        fs::read(fixture.path("large")).unwrap();
    };
    look();
    let first = counts();
    assert!(first[0] < 10, "listing brings the attributes along: {} look-ups", first[0]);
    look();
    assert_eq!(counts(), first);
}

/// Name, number and position of the entries of an open folder from here to its end.
fn entries(dir: &rustix::fd::OwnedFd) -> Vec<(Vec<u8>, u64, u64)> {
    let mut buffer = Vec::with_capacity(32 << 10);
    let mut raw = rustix::fs::RawDir::new(dir, buffer.spare_capacity_mut());
    let mut all = Vec::new();
    while let Some(entry) = raw.next() {
        let entry = entry.unwrap();
        let cookie = entry.next_entry_cookie();
        all.push((entry.file_name().to_bytes().to_vec(), entry.ino(), cookie));
    }
    all
}

#[test]
fn a_large_folder_lists_whole_and_from_any_position() {
    let fixture = Fixture::new(model(), &options());
    let dir = File::open(fixture.path("many")).unwrap().into();
    let all = entries(&dir);
    assert_eq!(all.len(), MANY + 2);
    assert_eq!((all[0].0.as_slice(), all[0].1), (&b"."[..], 25));
    assert_eq!((all[1].0.as_slice(), all[1].1), (&b".."[..], 2));
    for (n, (name, ino, _)) in all[2..].iter().enumerate() {
        assert_eq!(*name, format!("entry-{n:05}").into_bytes());
        assert_eq!(*ino, 1000 + n as u64);
    }
    for at in [0, 1, 2, 3, 77, 9_999, MANY, MANY + 1] {
        rustix::fs::seek(&dir, SeekFrom::Start(all[at].2)).unwrap();
        assert_eq!(entries(&dir), all[at + 1..], "after entry {at}");
    }
}

#[test]
fn an_unreadable_entry_leaves_the_others_in_sight() {
    let fixture = Fixture::new(model(), &options());
    let names: Vec<_> = fs::read_dir(fixture.path("damaged"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names, ["before", "lost", "after"]);
    fs::metadata(fixture.path("damaged/after")).unwrap();
    assert!(fs::metadata(fixture.path("damaged/lost")).is_err());
}

#[test]
fn reads_give_the_right_bytes_at_any_offset() {
    let fixture = Fixture::new(model(), &options());
    let size = 3 << 20;
    let mut expected = vec![0; size];
    pattern(10, 0, 0, &mut expected);
    assert_eq!(fs::read(fixture.path("large")).unwrap(), expected);
    let direct = fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(fixture.path("large"))
        .unwrap();
    for file in [File::open(fixture.path("large")).unwrap(), direct] {
        for (offset, len) in
            [(0, 1), (1, 4095), (4095, 2), (131_071, 131_073), (1 << 20, 1 << 20), (7, size)]
        {
            let mut buf = vec![0; len];
            let read = file.read_at(&mut buf, offset as u64).unwrap();
            assert_eq!(read, len.min(size - offset));
            assert_eq!(buf[..read], expected[offset..offset + read], "{len} at {offset}");
        }
        assert_eq!(file.read_at(&mut [0; 10], size as u64).unwrap(), 0);
    }
    // cmp maps nothing; grep does not either: the loader of a shared library does, and so do we.
    let mut mapped = run(tool("python3", "python3").args([
        "-c",
        "import mmap,sys; f=open(sys.argv[1],'rb'); m=mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ); \
         sys.stdout.buffer.write(m[5000:2000000])",
    ])
    .arg(fixture.path("large")));
    assert!(std::mem::take(&mut mapped.stdout) == expected[5000..2_000_000]);
}

#[test]
fn a_thousand_readers_at_once_get_their_own_bytes() {
    let fixture = Fixture::new(model(), &options());
    let start = Barrier::new(1000);
    std::thread::scope(|scope| {
        for reader in 0..1000u64 {
            let (fixture, start) = (&fixture, &start);
            scope.spawn(move || {
                let number = 1000 + reader * 17;
                let path = fixture.path(format!("many/entry-{:05}", reader * 17));
                start.wait();
                let got = fs::read(path).unwrap();
                let mut expected = vec![0; number as usize * 3];
                pattern(number, 0, 0, &mut expected);
                assert!(got == expected, "reader {reader}");
            });
        }
    });
}

#[test]
fn holes_are_seen_by_seeking() {
    let fixture = Fixture::new(model(), &options());
    let file = File::open(fixture.path("sparse")).unwrap();
    let seek = |from| rustix::fs::seek(&file, from);
    assert_eq!(seek(SeekFrom::Data(0)), Ok(HOLE));
    assert_eq!(seek(SeekFrom::Hole(0)), Ok(0));
    assert_eq!(seek(SeekFrom::Hole(HOLE)), Ok(HOLE + 8192));
    assert_eq!(seek(SeekFrom::Data(HOLE + 5)), Ok(HOLE + 5));
    assert_eq!(seek(SeekFrom::Data(HOLE + 8192)), Err(Errno::NXIO));
    assert_eq!(seek(SeekFrom::Hole(HOLE + 8192)), Err(Errno::NXIO));
    let mut tail = Vec::new();
    (&file).seek(std::io::SeekFrom::Start(HOLE - 1)).unwrap();
    (&file).read_to_end(&mut tail).unwrap();
    let mut expected = vec![0; 8193];
    pattern(11, HOLE, HOLE - 1, &mut expected);
    assert_eq!(tail, expected);
}

#[test]
fn extended_attributes_come_whole_or_with_their_size() {
    let fixture = Fixture::new(model(), &options());
    let path = fixture.path("attributed");
    let get = |name: &str, room: usize| {
        let mut value = vec![0; room];
        rustix::fs::getxattr(&path, name, &mut value).map(|len| {
            value.truncate(len);
            value
        })
    };
    assert_eq!(get("user.comment", 100).unwrap(), b"a\0b");
    assert_eq!(get("user.comment", 3).unwrap(), b"a\0b");
    assert_eq!(get("user.comment", 2), Err(Errno::RANGE));
    assert_eq!(get("user.empty", 10).unwrap(), b"");
    assert_eq!(get("user.missing", 10), Err(Errno::NODATA));
    assert_eq!(get("user.large", 4096).unwrap(), [7; 3000]);
    assert_eq!(rustix::fs::getxattr_query(&path, "user.large"), Ok(3000));
    assert_eq!(get(ACL, 100).unwrap(), acl());
    let mut names = vec![0; 1000];
    let len = rustix::fs::listxattr(&path, &mut names).unwrap();
    let names: HashSet<_> = names[..len].split(|&byte| byte == 0).collect();
    let expected = [ACL, "user.comment", "user.empty", "user.large", ""].map(str::as_bytes);
    assert_eq!(names, expected.into_iter().collect());
    assert_eq!(rustix::fs::listxattr(&path, &mut [0u8; 3]), Err(Errno::RANGE));
    assert_eq!(rustix::fs::listxattr_query(&path), Ok(len));
    assert_eq!(rustix::fs::listxattr(fixture.path("one"), &mut [0u8; 3]), Ok(0));
}

#[test]
fn a_failure_or_a_panic_is_eio_and_passes() {
    let fixture = Fixture::new(model(), &options());
    for (name, number) in [("failing", 23), ("panicking", 24)] {
        for _ in 0..2 {
            let error = fs::read(fixture.path(name)).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EIO), "{name}");
        }
        assert_eq!(fs::read(fixture.path("one")).unwrap().len(), 10);
        let _ = number;
    }
    fixture.model.broken.store(false, Ordering::Relaxed);
    for (name, number) in [("failing", 23), ("panicking", 24)] {
        let mut expected = vec![0; 100_000];
        pattern(number, 0, 0, &mut expected);
        assert!(fs::read(fixture.path(name)).unwrap() == expected, "{name}");
    }
}

#[test]
fn sizes_of_the_filesystem_are_its_own() {
    let fixture = Fixture::new(model(), &options());
    let fs = rustix::fs::statvfs(fixture.dir.path()).unwrap();
    assert_eq!((fs.f_bsize, fs.f_frsize, fs.f_blocks), (1024, 1024, 1_000_003));
    assert_eq!((fs.f_bfree, fs.f_bavail), (500_001, 400_001));
    assert_eq!((fs.f_files, fs.f_ffree, fs.f_namemax), (77_777, 55_555, 255));
}
