use super::from_mount_helper;

fn rewritten(args: &[&str]) -> Vec<String> {
    from_mount_helper(args.iter().map(Into::into).collect())
        .into_iter()
        .map(|arg| arg.into_string().unwrap())
        .collect()
}

#[test]
fn a_line_of_fstab_becomes_a_command() {
    assert_eq!(
        rewritten(&[
            "/sbin/mount.fuse.strata",
            "disk.qcow2::a b",
            "/mnt",
            "-n",
            "-sv",
            "-o",
            "rw,noauto,nofail,_netdev,x-systemd.automount,user=joe,allow_other,view=disk,\
             cache_size=64M,allow_path=/a\\,b,frobnicate=1,suid,dev,nodev",
        ]),
        [
            "strata",
            "mount",
            "--allow-other",
            "--view=disk",
            "--cache-size=64M",
            "--allow-path=/a,b",
            "--suid",
            "--",
            "disk.qcow2::a b",
            "/mnt",
        ]
    );
    assert_eq!(
        rewritten(&["mount.fuse.strata", "-f", "-t", "fuse.strata", "-", "/mnt"]),
        ["strata", "mount", "--fake", "--", "-", "/mnt"]
    );
}

#[test]
fn an_unknown_option_is_left_for_the_command_line_to_refuse() {
    assert_eq!(
        rewritten(&["mount.strata", "a", "/mnt", "-o", "frob_nicate=1,allow_root"]),
        ["strata", "mount", "--frob-nicate=1", "--allow-root", "--", "a", "/mnt"]
    );
}

#[test]
fn what_mount_fuse_adds_for_root_does_not_open_the_mount() {
    assert_eq!(
        rewritten(&["strata", "disk.img", "/mnt", "-o", "ro,format=raw,dev,suid"]),
        ["strata", "mount", "--read-only", "--format=raw", "--", "disk.img", "/mnt"]
    );
}

#[test]
fn a_person_may_write_mount_options_too() {
    assert_eq!(
        rewritten(&[
            "strata",
            "-v",
            "mount",
            "-oro,suid",
            "a",
            "b",
            "--options=dev",
            "-o",
            "noexec"
        ]),
        ["strata", "-v", "mount", "--read-only", "--suid", "a", "b", "--dev", "--noexec"]
    );
    assert_eq!(
        rewritten(&["strata", "mount", "--", "-o", "b"]),
        ["strata", "mount", "--", "-o", "b"]
    );
}

#[test]
fn fstab_may_say_where_changes_go() {
    assert_eq!(
        rewritten(&["mount.fuse.strata", "a", "/mnt", "-o", "ro,cow=/x/d.qcow2,size=2G,rw"]),
        ["strata", "mount", "--cow=/x/d.qcow2", "--size=2G", "--", "a", "/mnt"]
    );
    assert_eq!(
        rewritten(&["mount.fuse.strata", "a", "/mnt", "-o", "rw,scratch"]),
        ["strata", "mount", "--scratch", "--", "a", "/mnt"]
    );
}

#[test]
fn other_commands_pass_unchanged() {
    for args in [
        &["strata"][..],
        &["strata", "ls", "a", "-o", "b"],
        &["strata", "unmount", "a", "-o", "b"],
        &["strata", "a", "b"],
        &["strata", "--help", "a", "-o", "b"],
    ] {
        assert_eq!(rewritten(args), args);
    }
}
