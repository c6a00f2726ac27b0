//! A key slot: the master key, wrapped by what a passphrase or a key file gives.

use argon2::{Algorithm, Argon2, Params, Version};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::keyring::Secret;
use super::{KEY, Keys, SALT, Salt, TAG, decrypt, encrypt, keyed, random};
use crate::error::{Error, Kind, Result};
use crate::store::cause::Cause;
use crate::store::sealed::Sealed;

/// Bytes of the wrapped key, at the end of a slot's payload.
const WRAPPED: usize = KEY + TAG;

/// What a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyKind {
    /// Something that a person remembers.
    Passphrase,
    /// A file of random bytes.
    KeyFile,
}

/// What a slot says before the wrapped key; `docs/store-format.md`, "Key slot".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Said {
    pub(super) kind: KeyKind,
    pub(super) name: String,
    pub(super) created: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    argon2id: Option<Cost>,
    salt: String,
}

/// What it costs to try a passphrase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cost {
    /// In KiB.
    pub(super) memory: u32,
    pub(super) passes: u32,
    pub(super) lanes: u32,
}

impl Cost {
    /// The second choice of RFC 9106, 4: 64 MiB, about 0.15 s on one core of 2026.
    const DEFAULT: Self = Self { memory: 64 << 10, passes: 3, lanes: 4 };

    /// Most that a slot may ask of whoever opens it: 1 GiB, and what 4 GiB in one pass take.
    const MOST_MEMORY: u32 = 1 << 20;
    const MOST_WORK: u64 = 4 << 20;

    fn check(self) -> Result<Params, Cause> {
        let Self { memory, passes, lanes } = self;
        let fault = || Cause::Argon2 { memory, passes, lanes };
        let work = u64::from(memory) * u64::from(passes);
        if memory > Self::MOST_MEMORY || work > Self::MOST_WORK || lanes > 64 {
            return Err(fault());
        }
        Params::new(memory, passes, lanes, Some(KEY)).map_err(|_| fault())
    }
}

/// The object of a new slot that `secret` opens.
///
/// # Errors
/// The host's.
pub(super) fn wrap(keys: &Keys, secret: &Secret, name: &str) -> Result<Vec<u8>> {
    let Some(derived) = &keys.0 else { return Err(Cause::NotEncrypted.into()) };
    let salt: Salt = random()?;
    let kind = secret.kind();
    let said = Said {
        kind,
        name: name.to_owned(),
        created: Timestamp::now(),
        argon2id: (kind == KeyKind::Passphrase).then_some(Cost::DEFAULT),
        salt: salt.iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    let mut payload =
        serde_json::to_vec(&said).map_err(|error| Error::caused_by(Kind::Io, error))?;
    let wrapping = wrapping(secret, &said, &salt)?;
    let mut wrapped = Zeroizing::new(derived.master);
    let tag = encrypt(&wrapping, 0, &payload, &mut *wrapped)?;
    payload.extend_from_slice(&*wrapped);
    payload.extend_from_slice(&tag);
    keys.seal(Sealed::Slot, &payload)
}

/// What a slot says, and the wrapped key.
pub(super) fn parse(object: &[u8]) -> Result<(Said, Vec<u8>), Cause> {
    let payload = Keys::default().unseal(Sealed::Slot, object)?;
    let (json, _) = payload.split_last_chunk::<WRAPPED>().ok_or(Cause::Magic)?;
    let said: Said =
        serde_json::from_slice(json).map_err(|error| Cause::Json(error.to_string()))?;
    if let Some(cost) = said.argon2id {
        cost.check()?;
    }
    if said.argon2id.is_some() != (said.kind == KeyKind::Passphrase) {
        return Err(Cause::Json("Argon2id is for passphrases".to_owned()));
    }
    Ok((said, payload.into_owned()))
}

/// The keys that a slot holds, if `secret` opens it. `payload` is what [`parse`] gave.
///
/// # Errors
/// [`Kind::Corrupt`] if it says what makes no sense.
pub(super) fn unwrap(said: &Said, payload: &[u8], secret: &Secret) -> Result<Option<Keys>> {
    let (json, wrapped) = payload.split_last_chunk::<WRAPPED>().ok_or(Cause::Magic)?;
    let salt = u128::from_str_radix(&said.salt, 16).ok().filter(|_| said.salt.len() == 2 * SALT);
    let salt = salt.ok_or_else(|| Cause::Json("the salt is no 32 digits".to_owned()))?;
    let wrapping = wrapping(secret, said, &salt.to_be_bytes())?;
    let mut wrapped = Zeroizing::new(*wrapped);
    if decrypt(&wrapping, 0, json, &mut *wrapped).is_none() {
        return Ok(None);
    }
    Ok(wrapped.first_chunk::<KEY>().map(Keys::of_master))
}

/// The key that wraps the master key.
fn wrapping(secret: &Secret, said: &Said, salt: &Salt) -> Result<Zeroizing<[u8; KEY]>> {
    match secret {
        Secret::KeyFile(digest) => Ok(keyed(digest, &[salt])),
        Secret::Passphrase(passphrase) => {
            let params = said.argon2id.unwrap_or(Cost::DEFAULT).check()?;
            let mut key = Zeroizing::new([0; KEY]);
            Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
                .hash_password_into(passphrase, salt, &mut *key)
                .map_err(|error| Error::new(Kind::Io, format!("Argon2id: {error}")))?;
            Ok(key)
        }
    }
}
