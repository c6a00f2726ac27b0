use super::*;
use crate::fs::Info;
use crate::tree::tests::{contents, contract, names, tree};
use crate::volume::Scheme;

/// A filesystem of these files; its UUID is `uuid-LABEL`.
fn filesystem(label: &str, files: &[&str]) -> Found {
    Found::Filesystem(Filesystem {
        tree: Arc::new(tree(files)),
        info: Info {
            kind: "ext4".into(),
            label: Some(label.into()),
            uuid: Some(format!("uuid-{label}")),
            size: 0,
            used: 0,
            block_size: 4096,
            files: 0,
            files_free: 0,
            features: vec![],
            clean: true,
            warnings: vec![],
        },
    })
}

/// A disk whose partitions, from 1 on, hold this; partition N is named `nameN`.
fn disk(found: Vec<Found>) -> Contents {
    let places = (1..).zip(found).map(|(number, found)| Place {
        volume: Some(Volume {
            number,
            start: 0,
            len: 1,
            kind: "Linux filesystem".into(),
            type_id: "0fc63daf-8483-4772-8e79-3d69d8477de4".into(),
            name: Some(format!("name{number}")),
            uuid: Some(format!("part-{number}")),
            active: false,
        }),
        found,
    });
    let places = places.collect();
    let table = Table {
        scheme: Scheme::Gpt,
        sector_size: 512,
        id: "id".into(),
        volumes: vec![],
        warnings: vec![],
    };
    Contents { table: Some(table), places }
}

fn shown(contents: &Contents) -> (Arc<dyn FileTree>, Vec<String>) {
    let mut warnings = Vec::new();
    let tree = contents.files(&mut warnings).expect("files").into_tree();
    (tree, warnings)
}

fn root(fstab: &str) -> Found {
    let fstab = format!("etc/fstab = {fstab}");
    filesystem("root", &[&fstab, "boot/", "home/", "var/log/", "srv/", "mnt/a b/", "data -> srv"])
}

#[test]
fn a_single_filesystem_is_just_that() {
    let contents = disk(vec![filesystem("data", &["some/file"])]);
    let (tree, warnings) = shown(&contents);
    assert_eq!(names(&*tree, "/"), ["some"]);
    assert_eq!(warnings, [""; 0]);
    let Found::Filesystem(only) = &contents.places[0].found else { unreachable!() };
    assert!(Arc::ptr_eq(&tree, &only.tree), "nothing stands between");
    assert_eq!(contents.system_name(), None);
}

#[test]
fn several_filesystems_without_a_system_are_no_files_view() {
    let contents = disk(vec![filesystem("a", &["x"]), filesystem("b", &["y"])]);
    assert!(contents.files(&mut Vec::new()).is_none());
}

#[test]
fn what_has_no_reader_is_told() {
    let contents =
        disk(vec![filesystem("a", &["x"]), Found::Unknown(Some("LUKS")), Found::Unknown(None)]);
    assert_eq!(
        shown(&contents).1,
        ["not shown: volume 2 (Linux filesystem) holds LUKS, volume 3 (Linux filesystem) \
          (--view disk has the bytes)"]
    );
}

#[test]
fn fstab_is_composed_by_every_name_a_device_can_have() {
    for (boot, home, log, odd) in [
        ("UUID=uuid-boot", "UUID=UUID-HOME", "LABEL=log", "PARTLABEL=name5"),
        ("PARTUUID=part-2", "PARTUUID=PART-3", "/dev/vda4", "/dev/vda5"),
        ("/dev/disk/by-uuid/uuid-boot", "/dev/disk/by-label/home", "/dev/nvme0n1p4", "/dev/sda5"),
    ] {
        let fstab = format!(
            "# deep before shallow\n\
             {log} /home/log ext4 defaults 0 2\n\
             {home} /home/ ext4 defaults 0 2\n\
             UUID=uuid-root / ext4 errors=remount-ro 0 1\n\
             {boot} /boot ext2 noauto 0 2\n\
             {odd} /mnt/a\\040b ext4\n\
             UUID=5 none swap sw 0 0\n\
             tmpfs /tmp tmpfs\n\
             /dev/sr0 /media/cdrom0 udf,iso9660 user,noauto 0 0\n"
        );
        let contents = disk(vec![
            root(&fstab),
            filesystem("boot", &["vmlinuz"]),
            filesystem("home", &["me/file", "log/"]),
            filesystem("log", &["syslog"]),
            filesystem("odd", &["strange"]),
        ]);
        let (tree, warnings) = shown(&contents);
        assert_eq!(warnings, [""; 0]);
        assert_eq!(names(&*tree, "boot"), ["vmlinuz"]);
        assert_eq!(contents_of(&*tree, "home/me/file"), "me/file");
        assert_eq!(names(&*tree, "home/log"), ["syslog"]);
        assert_eq!(names(&*tree, "mnt/a b"), ["strange"]);
        contract::check(&*tree);
    }
}

fn contents_of(tree: &dyn FileTree, path: &str) -> String {
    contents(tree, path)
}

#[test]
fn partitions_of_other_disks_are_not_taken_for_ours() {
    // The root says what this disk is called.
    let contents = disk(vec![
        root("/dev/vdb1 / ext4\n/dev/vdb2 /boot ext4\n/dev/vda2 /home ext4"),
        filesystem("two", &["two"]),
    ]);
    let (tree, warnings) = shown(&contents);
    assert_eq!(names(&*tree, "boot"), ["two"]);
    assert_eq!(names(&*tree, "home"), [""; 0]);
    assert_eq!(
        warnings,
        [
            "/home of /etc/fstab is not shown: no filesystem that can be read here is /dev/vda2 (ext4)"
        ]
    );

    // It does not: then only the first disk is meant.
    let contents = disk(vec![
        root("UUID=uuid-root / ext4\n/dev/sdb2 /boot ext4\n/dev/sda2 /home ext4"),
        filesystem("two", &["two"]),
    ]);
    let (tree, warnings) = shown(&contents);
    assert_eq!((names(&*tree, "boot").len(), names(&*tree, "home").len()), (0, 1));
    assert_eq!(warnings.len(), 1);
}

#[test]
fn what_cannot_be_mounted_is_told_and_the_rest_shown() {
    let contents = disk(vec![
        root(
            "UUID=gone\\040\x1b /srv ext4\n\
             LABEL=boot /boot ext4\n\
             LABEL=boot /no/such/folder ext4\n\
             LABEL=boot /etc/fstab ext4\n\
             nas:/x /home nfs ro\n\
             /boot /var/log none bind\n\
             LABEL=boot /data ext4",
        ),
        filesystem("boot", &["vmlinuz"]),
    ]);
    let (tree, warnings) = shown(&contents);
    assert_eq!(names(&*tree, "boot"), ["vmlinuz"]);
    assert_eq!(names(&*tree, "srv"), ["vmlinuz"], "by way of the link /data");
    assert_eq!(
        warnings,
        [
            "/srv of /etc/fstab is not shown: no filesystem that can be read here is UUID=gone \\u{1b} (ext4)",
            "/home of /etc/fstab is not shown: nas:/x is not on this disk",
            "/etc/fstab of /etc/fstab is not shown: not a folder",
            "/var/log of /etc/fstab is not shown: it is /boot, which is shown there",
            "/no/such/folder of /etc/fstab is not shown: /no: no such file or folder",
        ]
    );
}

#[test]
fn mount_points_do_not_leave_the_tree() {
    let contents = disk(vec![
        filesystem(
            "root",
            &[
                "etc/fstab = LABEL=x /link ext4\nLABEL=x /../up ext4",
                "link -> ../../../in",
                "in/",
                "up/",
            ],
        ),
        filesystem("x", &["x"]),
    ]);
    let (tree, warnings) = shown(&contents);
    assert_eq!((names(&*tree, "in"), names(&*tree, "up")), (vec!["x".into()], vec!["x".into()]));
    assert_eq!(warnings, [""; 0]);
}

#[test]
fn of_several_systems_the_one_that_says_so_is_shown() {
    let old = filesystem("old", &["etc/fstab = UUID=uuid-new / ext4", "old"]);
    let new = filesystem("new", &["etc/fstab = UUID=uuid-new / ext4", "new"]);
    let contents = disk(vec![old, new]);
    let (tree, warnings) = shown(&contents);
    assert!(names(&*tree, "/").contains(&"new".into()));
    assert_eq!(
        warnings,
        ["showing the system on volume 2 (Linux filesystem); there is another on \
          volume 1 (Linux filesystem) (--view volumes shows all)"]
    );

    // No fstab says anything: the type of the partition does.
    let system = |name| filesystem(name, &["etc/os-release = NAME=x", name]);
    let mut contents = disk(vec![system("one"), system("two"), system("three")]);
    contents.places[1].volume.as_mut().unwrap().type_id =
        "4f68bce3-e8cd-4db1-96e7-fbcaf984b709".into();
    assert!(names(&*shown(&contents).0, "/").contains(&"two".into()));

    let contents = disk(vec![system("one"), system("two")]);
    assert!(names(&*shown(&contents).0, "/").contains(&"one".into()));
}

#[test]
fn a_system_is_told_by_its_files() {
    let is = |files: &[&str]| {
        let Found::Filesystem(found) = filesystem("x", files) else { unreachable!() };
        is_system(&found)
    };
    assert!(is(&["etc/fstab"]) && is(&["etc/os-release -> ../usr/lib/os-release"]));
    assert!(
        is(&["usr/lib/os-release"]) && is(&["etc/x", "usr/x"]) && is(&["etc/x", "bin -> usr/bin"])
    );
    assert!(!is(&["etc/x"]) && !is(&["usr/bin/sh"]) && !is(&[]) && !is(&["etc", "usr"]));
}

#[test]
fn the_system_says_its_name() {
    let name = |text: &str| {
        let file = format!("usr/lib/os-release = {text}");
        let files = ["etc/os-release -> ../usr/lib/os-release", file.as_str()];
        disk(vec![filesystem("x", &[]), filesystem("root", &files)]).system_name()
    };
    let debian =
        "NAME=\"Debian GNU/Linux\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian";
    assert_eq!(name(debian).as_deref(), Some("Debian GNU/Linux 12 (bookworm)"));
    assert_eq!(name("NAME=Arch").as_deref(), Some("Arch"));
    assert_eq!(name("PRETTY_NAME='a\\$b\\\\c'").as_deref(), Some("a$b\\c"));
    assert_eq!(name("PRETTY_NAME=\"\"\nNAME=x").as_deref(), Some("x"));
    assert_eq!(name("PRETTY_NAMES=x"), None);
    assert_eq!(name("NAME=\"\x1b]0;x\"").as_deref(), Some("\\u{1b}]0;x"));
}

#[test]
fn a_disk_of_which_nothing_is_known_says_what_was_seen() {
    let unknown = disk(vec![Found::Unknown(Some("vfat")), Found::Unknown(None)]).nothing_known();
    assert_eq!(unknown.kind(), Kind::Unsupported);
    assert_eq!(
        unknown.to_string(),
        "no filesystem that can be read: volume 1 (Linux filesystem) holds vfat (not supported)"
    );
    assert!(unknown.hint().unwrap().contains("--view disk"));

    let empty = Contents { table: None, places: vec![] }.nothing_known();
    assert_eq!(empty.kind(), Kind::NotFound);

    let failed = Found::Failed(Error::new(Kind::Corrupt, "superblock: block size is 3"));
    let error = disk(vec![Found::Unknown(Some("vfat")), failed]).nothing_known();
    assert_eq!(
        error.to_string(),
        "volume 2 (Linux filesystem): superblock: block size is 3 (corrupt image)"
    );
}

#[test]
fn damage_of_one_volume_is_told_and_the_others_shown() {
    let failed = Found::Failed(Error::new(Kind::Corrupt, "superblock"));
    let contents = disk(vec![failed, filesystem("a", &["x"])]);
    assert_eq!(contents.warnings(), ["volume 1 (Linux filesystem): superblock (corrupt image)"]);
    assert_eq!(names(&*shown(&contents).0, "/"), ["x"]);
}
