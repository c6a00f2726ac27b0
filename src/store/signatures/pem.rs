//! Ed25519 keys in PEM files, as OpenSSL reads and writes them (RFC 7468, RFC 8410).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::KEY;
use crate::error::{Error, Kind, Result};

/// All of a PKCS #8 key (version 1) but the 32 bytes at its end: there is only one way to write one.
const SECRET: &[u8] = &[0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
/// The same of a public key.
const PUBLIC: &[u8] = &[0x30, 0x2a, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];

/// The secret key of a file.
///
/// # Errors
/// [`Kind::Usage`] and [`Kind::Encrypted`].
pub(super) fn secret_key(text: &[u8]) -> Result<Zeroizing<[u8; KEY]>> {
    for (label, der) in blocks(text)? {
        match label.as_str() {
            "PRIVATE KEY" => {
                let seed = der.strip_prefix(SECRET).and_then(|seed| seed.try_into().ok());
                return seed.map(Zeroizing::new).ok_or_else(|| none("secret"));
            }
            "ENCRYPTED PRIVATE KEY" => {
                let error = Error::new(Kind::Encrypted, "a signing key with a passphrase");
                return Err(error.with_hint("openssl pkey -in KEY -out PLAIN removes it"));
            }
            _ => {}
        }
    }
    Err(none("secret"))
}

/// The public keys of a file.
///
/// # Errors
/// [`Kind::Usage`].
pub(super) fn public_keys(text: &[u8]) -> Result<Vec<[u8; KEY]>> {
    let mut keys = Vec::new();
    for (label, der) in blocks(text)? {
        let key = der.strip_prefix(PUBLIC).filter(|_| label == "PUBLIC KEY");
        keys.push(key.and_then(|key| key.try_into().ok()).ok_or_else(|| none("public"))?);
    }
    if keys.is_empty() { Err(none("public")) } else { Ok(keys) }
}

fn none(which: &str) -> Error {
    let hint = match which {
        "secret" => {
            "strata snapshot generate-key, or openssl genpkey -algorithm ed25519, makes one"
        }
        _ => "openssl pkey -in KEY -pubout makes one of a secret key",
    };
    Error::new(Kind::Usage, format!("no {which} Ed25519 key in PEM")).with_hint(hint)
}

/// The blocks of a file, each with its label; text around them is passed over.
fn blocks(text: &[u8]) -> Result<Vec<(String, Zeroizing<Vec<u8>>)>> {
    let fault = || Error::new(Kind::Usage, "a PEM file with an end missing, or not of base64");
    let text = Zeroizing::new(String::from_utf8_lossy(text).into_owned());
    let label = |line: &str, edge: &str| {
        Some(line.trim().strip_prefix(edge)?.strip_suffix("-----")?.to_owned())
    };
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(begun) = label(line, "-----BEGIN ") else { continue };
        let mut body = Zeroizing::new(String::new());
        loop {
            let line = lines.next().ok_or_else(fault)?;
            match label(line, "-----END ") {
                Some(ended) if ended == begun => break,
                Some(_) => return Err(fault()),
                None => body.push_str(line.trim()),
            }
        }
        let der = STANDARD.decode(body.as_bytes()).map_err(|_| fault())?;
        blocks.push((begun, Zeroizing::new(der)));
    }
    Ok(blocks)
}

pub(super) fn write_secret_key(seed: &[u8; KEY]) -> Zeroizing<String> {
    write("PRIVATE KEY", &Zeroizing::new([SECRET, seed].concat()))
}

pub(super) fn write_public_key(key: &[u8; KEY]) -> String {
    write("PUBLIC KEY", &[PUBLIC, key].concat()).to_string()
}

/// A block whose base64 is no longer than a line of 64.
fn write(label: &str, der: &[u8]) -> Zeroizing<String> {
    let body = Zeroizing::new(STANDARD.encode(der));
    Zeroizing::new(format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", *body))
}
