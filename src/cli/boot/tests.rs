use std::ffi::OsString;

use super::machine::shell;

#[test]
fn a_command_is_quoted_as_a_shell_reads_it() {
    let words = ["qemu", "a=b,c:/d.e", "", "x y", "it's", "{\"a\":1}", "$HOME"].map(OsString::from);
    let line = String::from_utf8(shell(&words)).unwrap();
    assert_eq!(line, r#"qemu a=b,c:/d.e '' 'x y' 'it'\''s' '{"a":1}' '$HOME'"#);
}
