//! Signatures of snapshots: who says that a record is theirs (`docs/store-format.md`, "Signature").

mod pem;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::Serialize;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};
use zeroize::Zeroizing;

use super::cause::Cause;
use super::check::is_damage;
use super::id::{ID, Id};
use super::objects::{Listed, Object, Sort};
use super::record::Snapshot;
use super::sealed::Sealed;
use super::{Store, keys, whole};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::wire;

/// Bytes of an Ed25519 key, public or secret.
const KEY: usize = 32;

/// Of how a signature's id begins and ends with the record's id and the hash of the key.
const HALF: usize = ID / 2;

/// What is signed begins with this, so that no signature made for anything else is one.
const CONTEXT: &[u8] = b"stratafs store 2026-11-22 signature";

/// The payload of a signature object.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Payload {
    record: Id,
    key: [u8; KEY],
    signature: [u8; 64],
}

/// A key that signs snapshots: Ed25519.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public)
    }
}

impl SigningKey {
    /// The key in a PEM file as `openssl genpkey -algorithm ed25519` writes it.
    ///
    /// # Errors
    /// [`Kind::Usage`] if there is none in it, [`Kind::Encrypted`] if it is encrypted.
    pub fn from_pem(text: &[u8]) -> Result<Self> {
        let seed = pem::secret_key(text)?;
        Self::from_seed(&seed)
    }

    fn from_seed(seed: &[u8; KEY]) -> Result<Self> {
        let invalid = || Error::new(Kind::Usage, "no Ed25519 key");
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| invalid())?;
        let public = <[u8; KEY]>::try_from(pair.public_key().as_ref()).map_err(|_| invalid())?;
        Ok(Self { pair, public: PublicKey(public) })
    }

    /// A new key: what goes into its PEM file, and into that of the public key.
    ///
    /// # Errors
    /// The host's, if it has no random numbers.
    pub fn generate() -> Result<(Zeroizing<String>, String)> {
        let seed = Zeroizing::new(keys::random::<KEY>()?);
        let key = Self::from_seed(&seed)?;
        Ok((pem::write_secret_key(&seed), pem::write_public_key(&key.public.0)))
    }

    /// What its signatures are checked with.
    pub fn public(&self) -> PublicKey {
        self.public
    }
}

/// What signatures are checked with. As text, 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; KEY]);

impl PublicKey {
    /// The keys in a PEM file as `openssl pkey -pubout` writes it, one at least.
    ///
    /// # Errors
    /// [`Kind::Usage`] if there is none, or anything else.
    pub fn from_pem(text: &[u8]) -> Result<Vec<Self>> {
        Ok(pem::public_keys(text)?.into_iter().map(Self).collect())
    }

    /// What its signature of a record is called.
    fn signature_of(&self, record: Id) -> Id {
        let hash = Id::of_object(&self.0);
        let mut id = record;
        for (byte, hash) in id.0.iter_mut().skip(HALF).zip(hash.0) {
            *byte = hash;
        }
        id
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for PublicKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A signature of a snapshot that is what it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Signature {
    /// Whose it is.
    pub key: PublicKey,
    /// Whether that key is trusted.
    pub trusted: bool,
}

/// The beginning of the ids of the signatures of a record.
fn stem(id: &Id) -> &[u8] {
    id.0.get(..HALF).unwrap_or_default()
}

impl Store {
    /// What is signed: which record of which store.
    fn signed(&self, record: Id) -> Vec<u8> {
        [CONTEXT, &self.number, &record.0].concat()
    }

    /// Signs a snapshot.
    ///
    /// # Errors
    /// As [`Store::snapshot`], and the host's.
    pub fn sign(&self, snapshot: Id, key: &SigningKey) -> Result<()> {
        self.snapshot(snapshot)?;
        self.put_signature(snapshot, key)
    }

    /// Stores the signature of a record, which need not be there yet.
    pub(super) fn put_signature(&self, record: Id, key: &SigningKey) -> Result<()> {
        let signature = key.pair.sign(&self.signed(record));
        let invalid = || Error::new(Kind::Io, "a signature that has no 64 bytes");
        let signature = signature.as_ref().try_into().map_err(|_| invalid())?;
        let payload = Payload { record, key: key.public.0, signature };
        let bytes = self.keys.seal(Sealed::Signature, payload.as_bytes())?;
        self.objects.put(Object::Signature(key.public.signature_of(record)), &[&bytes])
    }

    /// The key whose signature of `record`, or of whichever it says, the object `id` is.
    fn signature(&self, record: Option<Id>, id: Id) -> Result<PublicKey> {
        let object = Object::Signature(id);
        let read = || -> Result<PublicKey> {
            let bytes = whole(&*self.objects, object)?;
            let payload = self.keys.unseal(Sealed::Signature, &bytes)?;
            if payload.len() != size_of::<Payload>() {
                let (found, said) = (payload.len() as u64, size_of::<Payload>() as u64);
                return Err(Cause::Length { found, said }.into());
            }
            let payload: &Payload = wire::record(&payload, 0).ok_or(Cause::Magic)?;
            let key = PublicKey(payload.key);
            let is_of = record.unwrap_or(payload.record);
            if payload.record != is_of || key.signature_of(is_of) != id {
                return Err(Cause::Name(key.signature_of(payload.record)).into());
            }
            let checked = UnparsedPublicKey::new(&ED25519, &key.0)
                .verify(&self.signed(is_of), &payload.signature);
            checked.map_err(|_| Cause::Signature(key))?;
            Ok(key)
        };
        read().within(|| format!("{}: {object}", self.name()))
    }

    /// The signatures of each of these snapshots. One that is not what it should be counts for nothing.
    ///
    /// # Errors
    /// The host's.
    pub fn signatures(&self, snapshots: &[Snapshot]) -> Result<BTreeMap<Id, Vec<Signature>>> {
        let listed = self.objects.list(Sort::Signatures)?;
        let mut found: BTreeMap<Id, Vec<Signature>> = BTreeMap::new();
        for Snapshot { id: record, .. } in snapshots {
            let signatures = found.entry(*record).or_default();
            for listed in listed.iter().filter(|listed| stem(&listed.id) == stem(record)) {
                match self.signature(Some(*record), listed.id) {
                    Ok(key) => {
                        signatures.push(Signature { key, trusted: self.trusted.contains(&key) });
                    }
                    Err(error) if matches!(error.kind(), Kind::Corrupt | Kind::NotFound) => {
                        log::warn!("{error}");
                    }
                    Err(error) => return Err(error),
                }
            }
            signatures.sort_by_key(|signature| signature.key);
        }
        Ok(found)
    }

    /// The signatures of each of these snapshots of `from`, a store of the same number, that are not here.
    ///
    /// # Errors
    /// The host's.
    pub(super) fn signatures_lacking(
        &self,
        from: &Store,
        snapshots: &[Snapshot],
    ) -> Result<HashMap<Id, Vec<Id>>> {
        let here = self.objects.list(Sort::Signatures)?;
        let here: HashSet<Id> = here.into_iter().map(|listed| listed.id).collect();
        let lacking = |(record, signatures): (Id, Vec<Signature>)| {
            let ids = signatures.iter().map(|signature| signature.key.signature_of(record));
            (record, ids.filter(|id| !here.contains(id)).collect())
        };
        Ok(from.signatures(snapshots)?.into_iter().map(lacking).collect())
    }

    /// Copies signatures of `from`, a store of the same number; how many.
    ///
    /// # Errors
    /// The host's.
    pub(super) fn put_signatures(&self, from: &Store, ids: Option<&Vec<Id>>) -> Result<u64> {
        for id in ids.into_iter().flatten() {
            let object = Object::Signature(*id);
            self.objects.put(object, &[&whole(&*from.objects, object)?])?;
        }
        Ok(ids.map_or(0, |ids| ids.len() as u64))
    }

    /// Fails unless a trusted key has signed the snapshot; if none is named, every snapshot passes.
    ///
    /// # Errors
    /// [`Kind::Refused`] if no trusted key has, and the host's.
    pub fn trust(&self, snapshot: &Snapshot) -> Result<()> {
        if self.trusted.is_empty() {
            return Ok(());
        }
        let mut failed = None;
        for key in &self.trusted {
            match self.signature(Some(snapshot.id), key.signature_of(snapshot.id)) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        let signatures = self.signatures(std::slice::from_ref(snapshot))?;
        let by: Vec<PublicKey> =
            signatures.into_values().flatten().map(|signature| signature.key).collect();
        let cause = if by.is_empty() { Cause::Unsigned } else { Cause::SignedByOthers(by) };
        Err(Error::from(cause).within(format!(
            "{}: {}",
            self.name(),
            Object::Snapshot(snapshot.id)
        )))
    }

    /// The signatures that are none.
    pub(super) fn check_signatures(&self, step: &dyn Fn()) -> Result<Vec<(Object, Error)>> {
        let mut wrong = Vec::new();
        for listed in self.objects.list(Sort::Signatures)? {
            step();
            match self.signature(None, listed.id) {
                Ok(_) => {}
                Err(error) if is_damage(&error) => {
                    wrong.push((Object::Signature(listed.id), error));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(wrong)
    }

    /// Signatures of what is not among `records`: of snapshots that were removed, or that are being made.
    ///
    /// # Errors
    /// The host's.
    pub(super) fn signatures_without(&self, records: &HashSet<Id>) -> Result<Vec<Listed>> {
        let stems: HashSet<&[u8]> = records.iter().map(stem).collect();
        let mut listed = self.objects.list(Sort::Signatures)?;
        listed.retain(|listed| !stems.contains(stem(&listed.id)));
        Ok(listed)
    }
}
