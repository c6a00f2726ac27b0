//! Tars from elsewhere, if there are any: those in the folder that `STRATA_TARS` names, plain or packed
//! in a way that bsdcat knows, all read to the end or refused with one line. libarchive's own test
//! files (`*.tar*.uu`, decoded) are worth it.

use std::fs;
use std::io::BufReader;
use std::process::Stdio;

use stratafs::oci::tar::Reader;

use crate::support::tool;

#[test]
fn tars_from_elsewhere() {
    let Some(dir) = std::env::var_os("STRATA_TARS") else { return };
    let (mut whole, mut refused) = (0, 0);
    for file in fs::read_dir(dir).unwrap() {
        let path = file.unwrap().path();
        let mut unpack = tool("bsdcat", "libarchive-tools");
        let mut child =
            unpack.arg(&path).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut reader = Reader::new(BufReader::new(child.stdout.take().unwrap()));
        let mut members = 0;
        let error = loop {
            match reader.next() {
                Ok(Some(_)) => members += 1,
                Ok(None) => break None,
                Err(error) => break Some(error),
            }
        };
        drop(reader);
        child.wait().unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        match error {
            None => whole += 1,
            Some(error) => {
                refused += 1;
                let text = error.to_string();
                assert!(!text.contains('\n') && text.len() < 400, "{name}: {text}");
                println!("{name}: after {members} members: {text}");
            }
        }
    }
    println!("{whole} read to the end, {refused} refused");
    assert!(whole > 0);
}
