use std::os::unix::fs::{FileExt, PermissionsExt};

use super::*;

#[test]
fn files_without_names() {
    let dir = tempfile::tempdir().unwrap();
    // Somebody has taken the first name.
    let taken = dir.path().join(format!(".strata-{}-0", std::process::id()));
    std::os::unix::fs::symlink("/etc/passwd", &taken).unwrap();
    for make in [nameless, unlinked] {
        let file = make(dir.path()).unwrap();
        file.write_all_at(b"x", 3).unwrap();
        let mut buf = [1; 4];
        file.read_exact_at(&mut buf, 0).unwrap();
        let metadata = file.metadata().unwrap();
        assert_eq!((buf, metadata.nlink()), (*b"\0\0\0x", 0));
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
    let gone = dir.path().join("gone");
    assert_eq!(nameless(&gone).unwrap_err().kind(), io::ErrorKind::NotFound);
}
