//! Digests, by which every part of an image is named (OCI image specification, "Digests").

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256, Sha512};

use super::cause::Cause;
use crate::error::{Error, Result};

/// A hash function that the specification registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// What nearly every image uses.
    Sha256,
    /// Allowed, and rare.
    Sha512,
}

impl Algorithm {
    /// Its name as a digest begins with it, and a folder below `blobs` is called.
    pub const fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    const fn hex_len(self) -> usize {
        match self {
            Algorithm::Sha256 => 64,
            Algorithm::Sha512 => 128,
        }
    }
}

/// A hash of some bytes: `sha256:` and 64 digits, or `sha512:` and 128.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    /// Lower case, as many as the algorithm gives: safe as the name of a file and in a URL.
    hex: Box<str>,
}

impl Digest {
    /// The digest of `bytes`.
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The digest that is this SHA-256.
    pub fn of_sha256(hash: &[u8; 32]) -> Self {
        Self { algorithm: Algorithm::Sha256, hex: hex(hash) }
    }

    /// The hash function.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The hash in lower-case hexadecimal digits.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// Holds `bytes` against the digest; `what` they are is for the message.
    ///
    /// # Errors
    /// [`crate::error::Kind::Corrupt`] if they are other bytes.
    pub fn check(&self, what: &'static str, bytes: &[u8]) -> Result<()> {
        let found = Self::of(self.algorithm, bytes);
        if found == *self {
            return Ok(());
        }
        Err(Cause::Digest { what, named: self.clone(), found }.into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let malformed = || Error::from(Cause::DigestSyntax(text.chars().take(200).collect()));
        let (name, hex) = text.split_once(':').ok_or_else(malformed)?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            "" => return Err(malformed()),
            _ if name.len() <= 40 && name.bytes().all(|byte| byte.is_ascii_graphic()) => {
                return Err(Cause::DigestAlgorithm(name.into()).into());
            }
            _ => return Err(malformed()),
        };
        let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if hex.len() != algorithm.hex_len() || !hex.bytes().all(is_hex) {
            return Err(malformed());
        }
        Ok(Self { algorithm, hex: hex.into() })
    }
}

/// Hashes bytes as they come.
#[derive(Debug, Clone)]
pub struct Hasher(State);

#[derive(Debug, Clone)]
enum State {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    /// Of no bytes yet.
    pub fn new(algorithm: Algorithm) -> Self {
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(Sha256::new()),
            Algorithm::Sha512 => State::Sha512(Sha512::new()),
        })
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(state) => state.update(bytes),
            State::Sha512(state) => state.update(bytes),
        }
    }

    /// The digest of all bytes taken.
    pub fn finish(self) -> Digest {
        let (algorithm, hex) = match self.0 {
            State::Sha256(state) => (Algorithm::Sha256, hex(&state.finalize())),
            State::Sha512(state) => (Algorithm::Sha512, hex(&state.finalize())),
        };
        Digest { algorithm, hex }
    }
}

fn hex(bytes: &[u8]) -> Box<str> {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn known_answers() {
        // `printf abc | sha256sum` and `sha512sum`.
        let short = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Digest::of(Algorithm::Sha256, b"abc").to_string(), short);
        assert_eq!(short.parse::<Digest>().unwrap().to_string(), short);
        let long = Digest::of(Algorithm::Sha512, b"abc").to_string();
        assert!(long.starts_with("sha512:ddaf35a193617abacc417349ae204131"), "{long}");
        assert_eq!(long.parse::<Digest>().unwrap().algorithm(), Algorithm::Sha512);
    }

    #[test]
    fn only_what_the_specification_allows() {
        let hex = "0".repeat(64);
        for text in [
            String::new(),
            hex.clone(),
            format!(":{hex}"),
            "sha256:".into(),
            format!("sha256:{}", &hex[1..]),
            format!("sha256:{hex}0"),
            format!("sha512:{hex}"),
            format!("sha256:{}", hex.replace('0', "A")),
            format!("sha256:../../{}", &hex[6..]),
            format!("sha256:{}/", &hex[1..]),
        ] {
            let error = text.parse::<Digest>().unwrap_err();
            assert_eq!(error.cause(), Some(&Cause::DigestSyntax(text)));
        }
        let error = format!("blake3:{hex}").parse::<Digest>().unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert_eq!(error.cause(), Some(&Cause::DigestAlgorithm("blake3".into())));
    }
}
