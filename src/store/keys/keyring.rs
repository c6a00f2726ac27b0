//! What a person gives to open stores, and the keys that it has opened.

use std::fmt;

use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::slot::{self, KeyKind};
use super::{KEY, Keys};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::store::cause::Cause;
use crate::store::id::Id;
use crate::store::objects::{Object, Objects, Sort};
use crate::store::{PublicKey, whole};

/// Slots of a store that are looked at; each may take its time.
const MOST_SLOTS: usize = 32;
/// Bytes of a key file: it is to be as good as a key, and is hashed whole.
const KEY_FILE: std::ops::RangeInclusive<usize> = KEY..=1 << 20;

/// What opens a store: a passphrase, or the bytes of a key file.
#[derive(Clone)]
pub enum Secret {
    /// What somebody remembers; its bytes as they were typed.
    Passphrase(Zeroizing<Vec<u8>>),
    /// The hash of a key file.
    KeyFile(Zeroizing<[u8; KEY]>),
}

impl Secret {
    /// A passphrase.
    ///
    /// # Errors
    /// [`Kind::Usage`] if it is empty.
    pub fn passphrase(bytes: Vec<u8>) -> Result<Self> {
        let bytes = Zeroizing::new(bytes);
        match bytes.is_empty() {
            true => Err(Error::new(Kind::Usage, "an empty passphrase")),
            false => Ok(Self::Passphrase(bytes)),
        }
    }

    /// The bytes of a key file: as random as a key, 32 at least.
    ///
    /// # Errors
    /// [`Kind::Usage`] if there are fewer, or more than 1 MiB.
    pub fn key_file(bytes: Vec<u8>) -> Result<Self> {
        let bytes = Zeroizing::new(bytes);
        if !KEY_FILE.contains(&bytes.len()) {
            let message = format!("a key file of {} bytes: 32 to 1 MiB are allowed", bytes.len());
            let error = Error::new(Kind::Usage, message);
            return Err(error.with_hint("head -c 32 /dev/urandom > FILE makes one"));
        }
        let digest = blake3::derive_key("stratafs store 2026-11-22 key file", &bytes);
        Ok(Self::KeyFile(Zeroizing::new(digest)))
    }

    /// What it is.
    pub fn kind(&self) -> KeyKind {
        match self {
            Self::Passphrase(_) => KeyKind::Passphrase,
            Self::KeyFile(_) => KeyKind::KeyFile,
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({:?})", self.kind())
    }
}

/// Where the secret of the store that is named comes from.
type Source = Box<dyn Fn(&str) -> Result<Secret> + Send + Sync>;

/// Where the keys come from that are trusted.
type Trusted = Box<dyn Fn() -> Result<Vec<PublicKey>> + Send + Sync>;

/// What opens encrypted stores, and what it has opened already; and whose snapshots may be opened.
#[derive(Default)]
pub struct Keyring {
    secret: Option<Source>,
    /// Whether somebody wants an encrypted store to be opened, and no other.
    is_given: bool,
    trusted: Option<Trusted>,
    asked: Mutex<Option<Secret>>,
    opened: Mutex<Vec<Opened>>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring").field("is_given", &self.is_given).finish_non_exhaustive()
    }
}

/// The keys of a store, and the slot that they were in.
#[derive(Debug, Clone)]
pub(in crate::store) struct Opened {
    number: [u8; 16],
    pub(in crate::store) keys: Keys,
    pub(in crate::store) slot: Option<Id>,
}

impl Opened {
    /// The keys of a new store.
    pub(in crate::store) fn new(number: [u8; 16], keys: Keys) -> Self {
        Self { number, keys, slot: None }
    }
}

impl Keyring {
    /// Of a secret that was given. A store that is not encrypted is then refused: it may have taken the place of one
    /// that is. `secret` is called when a store is opened.
    pub fn given(secret: impl Fn() -> Result<Secret> + Send + Sync + 'static) -> Self {
        Self { secret: Some(Box::new(move |_| secret())), is_given: true, ..Self::default() }
    }

    /// Asks for the secret of a store, by the store's name, once it is found to be encrypted.
    pub fn asking(ask: impl Fn(&str) -> Result<Secret> + Send + Sync + 'static) -> Self {
        Self { secret: Some(Box::new(ask)), ..Self::default() }
    }

    /// The same, opening only snapshots that one of these keys has signed. `keys` is called when a store is opened, and
    /// gives one at least.
    #[must_use]
    pub fn trusting(
        mut self,
        keys: impl Fn() -> Result<Vec<PublicKey>> + Send + Sync + 'static,
    ) -> Self {
        self.trusted = Some(Box::new(keys));
        self
    }

    /// Who must have signed what is opened; nobody if it does not matter.
    pub(in crate::store) fn trusted(&self) -> Result<Vec<PublicKey>> {
        let Some(trusted) = &self.trusted else { return Ok(Vec::new()) };
        match trusted()? {
            none if none.is_empty() => Err(Error::new(Kind::Usage, "no key is trusted")),
            keys => Ok(keys),
        }
    }

    /// What was last answered, for another process of ours.
    pub fn asked(&self) -> Option<Secret> {
        self.asked.lock().clone()
    }

    /// The keys of the store in `objects`, as far as its config is not encrypted by itself; `fits` says whether they are.
    ///
    /// # Errors
    /// [`Kind::Encrypted`] if nothing was given, [`Kind::Denied`] if it opens no slot, [`Kind::Refused`] if the store
    /// is not encrypted and something was given.
    pub(in crate::store) fn open(
        &self,
        objects: &dyn Objects,
        number: [u8; 16],
        is_encrypted: bool,
        fits: &dyn Fn(&Keys) -> Result<(), Cause>,
    ) -> Result<Opened> {
        if !is_encrypted {
            if self.is_given {
                let error = Error::from(Cause::NotEncrypted);
                return Err(error.with_hint(
                    "if that is as it should be, leave --key-file and --passphrase-file out, and STRATA_KEY_FILE, \
                     STRATA_PASSPHRASE_FILE and STRATA_PASSPHRASE unset",
                ));
            }
            return Ok(Opened { number, keys: Keys::default(), slot: None });
        }
        let mut all = self.opened.lock();
        if let Some(opened) = all.iter().find(|opened| opened.number == number) {
            fits(&opened.keys)?;
            return Ok(opened.clone());
        }
        let Some(secret) = &self.secret else {
            return Err(Error::from(Cause::NoKey).with_hint(
                "--key-file or --passphrase-file, or STRATA_KEY_FILE, STRATA_PASSPHRASE_FILE or STRATA_PASSPHRASE in the \
                 environment; on a terminal it is asked for",
            ));
        };
        let secret = secret(&objects.name())?;
        let (keys, slot) = unlock(objects, &secret, fits)?;
        let opened = Opened { number, keys, slot: Some(slot) };
        all.push(opened.clone());
        if !self.is_given {
            *self.asked.lock() = Some(secret);
        }
        Ok(opened)
    }
}

/// The first slot that `secret` opens and whose keys fit.
fn unlock(
    objects: &dyn Objects,
    secret: &Secret,
    fits: &dyn Fn(&Keys) -> Result<(), Cause>,
) -> Result<(Keys, Id)> {
    let mut listed = objects.list(Sort::Keys)?;
    if listed.len() > MOST_SLOTS {
        return Err(Cause::Slots(listed.len()).into());
    }
    listed.sort_by_key(|listed| listed.id);
    let (mut tried, mut failed) = (0, None);
    for listed in listed {
        let object = Object::Key(listed.id);
        let mut open = || -> Result<Option<Keys>> {
            let bytes = whole(objects, object)?;
            let (said, payload) = slot::parse(&bytes)?;
            if said.kind != secret.kind() {
                return Ok(None);
            }
            tried += 1;
            let Some(keys) = slot::unwrap(&said, &payload, secret)? else { return Ok(None) };
            fits(&keys).map_err(Error::from).within(|| Object::Config.to_string())?;
            Ok(Some(keys))
        };
        match open() {
            Ok(Some(keys)) => return Ok((keys, listed.id)),
            Ok(None) => {}
            // Another slot may be whole.
            Err(error) => {
                failed = failed.or(Some(error.within(object.to_string())));
            }
        }
    }
    Err(failed.unwrap_or_else(|| Cause::WrongKey { kind: secret.kind(), tried }.into()))
}
