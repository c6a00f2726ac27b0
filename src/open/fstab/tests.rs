use super::*;

fn one(line: &str) -> Entry {
    let mut entries = parse(line.as_bytes());
    assert_eq!(entries.len(), 1, "{line}");
    entries.remove(0)
}

fn device(what: &str) -> Device {
    one(&format!("{what} / ext4 defaults 0 1")).device()
}

#[test]
fn reads_lines_as_mount_does() {
    let text = b"# a comment\n\n  # another\n\
        UUID=1234-ABCD\t/boot/efi   vfat  umask=0077,noauto 0 1\n\
        /dev/sda1 /mnt/with\\040blank\\134 ext4\n\
        only two\n\
        LABEL=\"a\\040b\" / auto rw";
    let entries = parse(text);
    assert_eq!(entries.len(), 3);
    assert_eq!((entries[0].what.as_str(), &*entries[0].at), ("UUID=1234-ABCD", &b"/boot/efi"[..]));
    assert!(entries[0].is_noauto() && !entries[1].is_noauto());
    assert_eq!(entries[0].depth(), 2);
    assert_eq!(entries[1].at, b"/mnt/with blank\\");
    assert_eq!(entries[2].device(), Device::Label("a b".into()));
    assert!(entries[2].is_root());
}

#[test]
fn a_table_of_any_length_is_cut() {
    let text = "a /b c\n".repeat(5000);
    assert_eq!(parse(text.as_bytes()).len(), 1000);
    assert_eq!(parse(&[0xff; 100_000]).len(), 0);
    parse(b"\\ \\0 \\04 \\999");
}

#[test]
fn knows_what_an_entry_is_for() {
    let purpose = |line: &str| one(line).purpose();
    for line in [
        "UUID=1 none swap sw 0 0",
        "/swapfile swap swap defaults",
        "tmpfs /tmp tmpfs size=1G",
        "proc /proc proc defaults",
        "/dev/sda5 none auto defaults",
    ] {
        assert_eq!(purpose(line), Purpose::Transient, "{line}");
    }
    for line in ["nas:/export /srv nfs4 ro", "//host/share /mnt auto user", "tag /host 9p ro"] {
        assert_eq!(purpose(line), Purpose::Elsewhere, "{line}");
    }
    assert_eq!(purpose("/var/lib /srv none bind 0 0"), Purpose::Bind);
    assert_eq!(purpose("/dev/sda1 / ext4 errors=remount-ro 0 1"), Purpose::Filesystem);
}

#[test]
fn knows_how_a_device_is_named() {
    let on = |disk: &str, number| Device::Partition { disk: disk.into(), number };
    for (what, expected) in [
        ("UUID=aBc", Device::Uuid("aBc".into())),
        ("UUID=\"aBc\"", Device::Uuid("aBc".into())),
        ("LABEL=root", Device::Label("root".into())),
        ("PARTUUID=12-01", Device::PartUuid("12-01".into())),
        ("PARTLABEL=EFI\\040System", Device::PartLabel("EFI System".into())),
        ("/dev/disk/by-uuid/12", Device::Uuid("12".into())),
        ("/dev/disk/by-label/My\\x20Disk", Device::Label("My Disk".into())),
        ("/dev/disk/by-partuuid/12-02", Device::PartUuid("12-02".into())),
        ("/dev/disk/by-partlabel/x", Device::PartLabel("x".into())),
        ("/dev/disk/by-id/scsi-0QEMU-part2", on("disk/by-id/scsi-0QEMU", 2)),
        ("/dev/sda1", on("sda", 1)),
        ("/dev/vdb12", on("vdb", 12)),
        ("/dev/xvda", on("xvda", 0)),
        ("/dev/nvme0n1p3", on("nvme0n1", 3)),
        ("/dev/nvme0n1", on("nvme0n1", 0)),
        ("/dev/mmcblk0p2", on("mmcblk0", 2)),
        ("/dev/mapper/vg-root", Device::Other),
        ("/dev/vg0/home", Device::Other),
        ("/dev/md0", Device::Other),
        ("/dev/sr0", Device::Other),
        ("overlay", Device::Other),
        ("ID=x", Device::Other),
    ] {
        assert_eq!(device(what), expected, "{what}");
    }
    // No number at all: it must not become the whole disk.
    assert_ne!(device("/dev/sda99999999999999999999"), on("sda", 0));
}
