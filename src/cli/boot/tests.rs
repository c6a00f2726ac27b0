use std::ffi::OsString;

use super::machine::{Bus, shell};

#[test]
fn a_command_is_quoted_as_a_shell_reads_it() {
    let words = ["qemu", "a=b,c:/d.e", "", "x y", "it's", "{\"a\":1}", "$HOME"].map(OsString::from);
    let line = String::from_utf8(shell(&words)).unwrap();
    assert_eq!(line, r#"qemu a=b,c:/d.e '' 'x y' 'it'\''s' '{"a":1}' '$HOME'"#);
}

#[test]
fn linux_finds_its_root_on_every_bus() {
    let names = |number| [Bus::Virtio, Bus::Sata, Bus::Nvme].map(|bus| bus.linux_name(number));
    assert_eq!(names(0), ["/dev/vda", "/dev/sda", "/dev/nvme0n1"]);
    assert_eq!(names(2), ["/dev/vda2", "/dev/sda2", "/dev/nvme0n1p2"]);
}
