//! Asking for a passphrase on the terminal, without showing it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use crate::error::{Error, Kind, Result, ResultExt};

/// Bytes of a passphrase that is typed.
const MOST: usize = 4096;

/// What the terminal sends for keys that mean something. It sends them to us: a signal would end this program with
/// what is typed afterwards not shown.
const INTERRUPT: u8 = 0x03;
const END: u8 = 0x04;
const BACKSPACE: [u8; 2] = [0x08, 0x7f];
const KILL_LINE: u8 = 0x15;

/// A terminal that does not show what is typed, until it goes out of scope.
struct Quiet {
    file: File,
    before: Termios,
}

impl Quiet {
    fn new(file: File) -> io::Result<Self> {
        let before = tcgetattr(&file)?;
        let mut modes = before.clone();
        modes.local_modes &= !(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
        tcsetattr(&file, OptionalActions::Flush, &modes)?;
        Ok(Self { file, before })
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // A terminal that is gone shows nothing anyway.
        let _ = tcsetattr(&self.file, OptionalActions::Flush, &self.before);
    }
}

/// What somebody types up to the end of a line, after `prompt`.
///
/// # Errors
/// The terminal's, and that they gave up.
pub(super) fn passphrase(prompt: &str) -> Result<Vec<u8>> {
    let typed = || -> io::Result<Option<Vec<u8>>> {
        let file = OpenOptions::new().read(true).write(true).open("/dev/tty")?;
        let quiet = Quiet::new(file)?;
        (&quiet.file).write_all(prompt.as_bytes())?;
        let typed = line(&mut &quiet.file);
        (&quiet.file).write_all(b"\n")?;
        typed
    };
    let typed = typed().within(|| "terminal")?;
    typed.ok_or_else(|| Error::new(Kind::Io, "interrupted before a passphrase was typed"))
}

/// A line, with the corrections that were typed made; `None` if it was given up.
fn line(from: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        if from.read(&mut byte)? == 0 {
            return Ok(None);
        }
        match byte[0] {
            b'\n' | b'\r' => return Ok(Some(line)),
            END if line.is_empty() => return Ok(None),
            INTERRUPT => return Ok(None),
            KILL_LINE => line.clear(),
            key if BACKSPACE.contains(&key) => {
                // A character, which may be several bytes.
                while line.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {}
            }
            byte if line.len() < MOST => line.push(byte),
            _ => return Err(io::Error::other("a passphrase of more than 4096 bytes")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(keys: &[u8]) -> Option<Vec<u8>> {
        line(&mut &keys[..]).unwrap()
    }

    #[test]
    fn corrections_are_made_and_giving_up_is_heard() {
        assert_eq!(typed(b"pass\nmore").unwrap(), b"pass");
        assert_eq!(typed(b"pax\x7fss\r").unwrap(), b"pass");
        assert_eq!(typed("pä\x7fass\n".as_bytes()).unwrap(), b"pass");
        assert_eq!(typed(b"\x7f\x08pass\n").unwrap(), b"pass");
        assert_eq!(typed(b"wrong\x15pass\n").unwrap(), b"pass");
        assert_eq!(typed(b"pass\x04\n").unwrap(), b"pass\x04");
        for given_up in [&b"pa\x03ss\n"[..], b"\x04", b"pass", b""] {
            assert_eq!(typed(given_up), None);
        }
        assert!(line(&mut &[b'x'; MOST + 1][..]).is_err());
    }
}
