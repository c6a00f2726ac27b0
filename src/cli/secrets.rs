//! What opens encrypted stores: options, the environment, and a question on the terminal.
//!
//! No secret is ever an argument: those can be seen by everybody.

mod terminal;

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Kind, Result, ResultExt};
use crate::store::{Keyring, PublicKey, Secret, SigningKey};

/// Bytes of a key file or of a file with a passphrase at most.
const MOST: u64 = 1 << 20;

/// How to open encrypted stores.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Encrypted stores")]
pub(crate) struct SecretArgs {
    /// Open an encrypted store with this file of random bytes
    ///
    /// Or $STRATA_KEY_FILE; or a passphrase: --passphrase-file, $STRATA_PASSPHRASE_FILE, $STRATA_PASSPHRASE. If there is
    /// none of these, the passphrase is asked for on the terminal.
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_file")]
    key_file: Option<PathBuf>,

    /// Open an encrypted store with the passphrase that is the first line of this file
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,

    /// What opens it in place of these and of the environment.
    #[arg(skip)]
    instead: Instead,

    /// Open only snapshots that this key has signed, or another one that is named; a PEM file of an Ed25519 key
    ///
    /// Or $STRATA_TRUSTED_KEYS, files with colons between.
    #[arg(long, value_name = "FILE", help_heading = "Signatures")]
    trusted_key: Vec<PathBuf>,
}

/// What opens a store from now on.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct NewSecretArgs {
    /// The new key is this file of random bytes: head -c 32 /dev/urandom > FILE makes one
    #[arg(long, value_name = "FILE", conflicts_with = "new_passphrase_file")]
    new_key_file: Option<PathBuf>,

    /// The new passphrase is the first line of this file [default: $STRATA_NEW_PASSPHRASE, or it is asked for]
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
}

/// Where a secret comes from.
#[derive(Debug, Clone)]
enum Source {
    KeyFile(PathBuf),
    PassphraseFile(PathBuf),
    Passphrase(OsString),
}

/// What opens a store besides what was given for all of them.
#[derive(Debug, Clone, Default)]
enum Instead {
    /// Nothing else.
    #[default]
    AsGiven,
    /// It is not encrypted, and nobody is asked.
    Nothing,
    /// This.
    Only(Source),
}

impl Source {
    fn secret(&self) -> Result<Secret> {
        match self {
            Self::KeyFile(path) => {
                let bytes = read(path).and_then(Secret::key_file);
                bytes.within(|| path.display().to_string())
            }
            Self::PassphraseFile(path) => {
                let secret = read(path).and_then(|mut bytes| {
                    let end = bytes.iter().position(|&byte| byte == b'\n').unwrap_or(bytes.len());
                    bytes.truncate(end);
                    Secret::passphrase(bytes)
                });
                secret.within(|| path.display().to_string())
            }
            Self::Passphrase(text) => Secret::passphrase(text.clone().into_vec()),
        }
    }
}

/// A small file, whatever it is.
fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MOST + 1).read_to_end(&mut bytes))
        .map_err(Error::io)?;
    Ok(bytes)
}

/// A variable of the environment that is set to something.
fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

/// A path that is the same from any folder.
fn absolute(path: PathBuf) -> PathBuf {
    std::path::absolute(&path).unwrap_or(path)
}

impl SecretArgs {
    fn source(&self) -> Option<Source> {
        match &self.instead {
            Instead::Nothing => return None,
            Instead::Only(source) => return Some(source.clone()),
            Instead::AsGiven => {}
        }
        let key_file = |path| Source::KeyFile(absolute(path));
        let passphrase_file = |path| Source::PassphraseFile(absolute(path));
        let file = |name| variable(name).map(PathBuf::from);
        (self.key_file.clone().map(key_file))
            .or_else(|| self.passphrase_file.clone().map(passphrase_file))
            .or_else(|| file("STRATA_KEY_FILE").map(key_file))
            .or_else(|| file("STRATA_PASSPHRASE_FILE").map(passphrase_file))
            .or_else(|| variable("STRATA_PASSPHRASE").map(Source::Passphrase))
    }

    /// The same for the store that is copied from, if something else opens that: these files, or what the environment
    /// has for it; or nothing, if it is not encrypted.
    pub(crate) fn elsewhere(
        &self,
        key_file: Option<&PathBuf>,
        passphrase_file: Option<&PathBuf>,
        unencrypted: bool,
    ) -> Option<Self> {
        let file = |name| variable(name).map(PathBuf::from);
        let only = |given: fn(PathBuf) -> Source, path: PathBuf| Instead::Only(given(path));
        let instead = match unencrypted {
            true => Some(Instead::Nothing),
            false => (key_file.map(|path| only(Source::KeyFile, path.clone())))
                .or_else(|| passphrase_file.map(|path| only(Source::PassphraseFile, path.clone())))
                .or_else(|| file("STRATA_FROM_KEY_FILE").map(|it| only(Source::KeyFile, it)))
                .or_else(|| {
                    file("STRATA_FROM_PASSPHRASE_FILE").map(|it| only(Source::PassphraseFile, it))
                })
                .or_else(|| {
                    let text = variable("STRATA_FROM_PASSPHRASE")?;
                    Some(Instead::Only(Source::Passphrase(text)))
                }),
        };
        Some(Self { instead: instead?, trusted_key: self.trusted_key.clone(), ..Self::default() })
    }

    /// That of these files, if there are any.
    pub(super) fn of_files(key_file: Option<PathBuf>, passphrase_file: Option<PathBuf>) -> Self {
        Self { key_file, passphrase_file, ..Self::default() }
    }

    /// That of stores which are not encrypted, whatever the environment has.
    pub(super) fn unencrypted() -> Self {
        Self { instead: Instead::Nothing, ..Self::default() }
    }

    /// What opens stores as these options say. Nothing is read, and nobody asked, before a store needs it.
    pub(crate) fn keyring(&self) -> Arc<Keyring> {
        let keyring = match self.source() {
            Some(source) => Keyring::given(move || source.secret()),
            None if can_ask() && !matches!(self.instead, Instead::Nothing) => Keyring::asking(ask),
            None => Keyring::default(),
        };
        let trusted = self.trusted();
        Arc::new(match trusted.is_empty() {
            true => keyring,
            false => keyring.trusting(move || {
                let keys = |path: &PathBuf| {
                    let keys = read(path).and_then(|text| PublicKey::from_pem(&text));
                    keys.within(|| path.display().to_string())
                };
                Ok(trusted.iter().map(keys).collect::<Result<Vec<_>>>()?.concat())
            }),
        })
    }

    /// The files of the keys that are trusted.
    fn trusted(&self) -> Vec<PathBuf> {
        let mut paths = self.trusted_key.clone();
        if let Some(named) = variable("STRATA_TRUSTED_KEYS") {
            paths.extend(env::split_paths(&named).filter(|path| !path.as_os_str().is_empty()));
        }
        paths.into_iter().map(absolute).collect()
    }

    /// The secret of a store that is made.
    ///
    /// # Errors
    /// [`Kind::Encrypted`] if there is none, and nobody to be asked.
    pub(crate) fn new_secret(&self) -> Result<Secret> {
        match self.source() {
            Some(source) => source.secret(),
            None => ask_twice(),
        }
    }

    /// Whether a secret was given.
    pub(crate) fn are_given(&self) -> bool {
        self.source().is_some()
    }

    /// The same options for another process of ours.
    pub(crate) fn arguments(&self) -> Vec<OsString> {
        let mut arguments = Vec::new();
        let mut add = |name: &str, path: &PathBuf| {
            let mut argument = OsString::from(name);
            argument.push(absolute(path.clone()));
            arguments.push(argument);
        };
        self.key_file.iter().for_each(|path| add("--key-file=", path));
        self.passphrase_file.iter().for_each(|path| add("--passphrase-file=", path));
        self.trusted_key.iter().for_each(|path| add("--trusted-key=", path));
        arguments
    }
}

impl NewSecretArgs {
    pub(crate) fn secret(&self) -> Result<Secret> {
        let source = (self.new_key_file.clone().map(Source::KeyFile))
            .or_else(|| self.new_passphrase_file.clone().map(Source::PassphraseFile))
            .or_else(|| variable("STRATA_NEW_PASSPHRASE").map(Source::Passphrase));
        match source {
            Some(source) => source.secret(),
            None => ask_twice(),
        }
    }

    /// Whether it is to be a passphrase.
    pub(crate) fn is_passphrase(&self) -> bool {
        self.new_key_file.is_none()
    }
}

/// The key in the PEM file at `path`.
pub(crate) fn signing_key(path: &Path) -> Result<SigningKey> {
    let text = read(path).map(zeroize::Zeroizing::new);
    text.and_then(|text| SigningKey::from_pem(&text)).within(|| path.display().to_string())
}

/// Whether there is somebody at a terminal.
fn can_ask() -> bool {
    io::stderr().is_terminal()
}

fn ask(store: &str) -> Result<Secret> {
    Secret::passphrase(terminal::passphrase(&format!("passphrase of {store}: "))?)
}

fn ask_twice() -> Result<Secret> {
    if !can_ask() {
        let error = Error::new(Kind::Usage, "no new passphrase, and no terminal to ask for one");
        return Err(error.with_hint("give it in a file or in the environment: --help tells how"));
    }
    let first = terminal::passphrase("new passphrase: ")?;
    if terminal::passphrase("once more: ")? != first {
        return Err(Error::new(Kind::Usage, "these are two different passphrases"));
    }
    Secret::passphrase(first)
}
