//! The keys that open a store: adding, listing and removing them. Nothing else is written anew.

use jiff::Timestamp;
use serde::Serialize;

use super::keyring::Secret;
use super::slot::{self, KeyKind};
use crate::error::{Error, Kind, Result, ResultExt};
use crate::store::cause::Cause;
use crate::store::check::is_damage;
use crate::store::id::Id;
use crate::store::objects::{Object, Sort};
use crate::store::{Store, whole};

/// A key that opens a store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyInfo {
    /// The id of its slot.
    pub id: Id,
    /// What it is.
    pub kind: KeyKind,
    /// What it was called.
    pub name: String,
    /// When it was added.
    pub created: Timestamp,
    /// Whether the store was opened with it.
    pub used: bool,
}

impl Store {
    /// Whether it is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.keys.are_there()
    }

    /// The keys that open it, the oldest first.
    ///
    /// # Errors
    /// [`Kind::Usage`] if it is not encrypted, [`Kind::Corrupt`] if a slot is damaged, and the host's.
    pub fn keys(&self) -> Result<Vec<KeyInfo>> {
        self.fail_if_plain()?;
        let mut keys = Vec::new();
        for listed in self.objects.list(Sort::Keys)? {
            let object = Object::Key(listed.id);
            let read = || -> Result<_> { Ok(slot::parse(&whole(&*self.objects, object)?)?.0) };
            let said = read().within(|| format!("{}: {object}", self.name()))?;
            let used = self.slot == Some(listed.id);
            let slot::Said { kind, name, created, .. } = said;
            keys.push(KeyInfo { id: listed.id, kind, name, created, used });
        }
        keys.sort_by_key(|key| (key.created, key.id));
        Ok(keys)
    }

    /// Adds a key that opens it; its id. What is stored stays as it is.
    ///
    /// # Errors
    /// [`Kind::Usage`] if it is not encrypted, and the host's.
    pub fn add_key(&self, secret: &Secret, name: &str) -> Result<Id> {
        self.fail_if_plain()?;
        if !name.is_empty() {
            crate::store::check_name("key", name)?;
        }
        let bytes = slot::wrap(&self.keys, secret, name)?;
        let id = Id::of_object(&bytes);
        self.objects.put(Object::Key(id), &[&bytes])?;
        Ok(id)
    }

    /// Removes a key: it opens the store no more. Whoever has opened the store with it before may have kept the
    /// master key.
    ///
    /// # Errors
    /// [`Kind::Refused`] if it is the last one, [`Kind::NotFound`] if it is not there, and the host's.
    pub fn remove_key(&self, id: Id) -> Result<()> {
        self.fail_if_plain()?;
        let listed = self.objects.list(Sort::Keys)?;
        if !listed.iter().any(|listed| listed.id == id) {
            return Err(Error::new(Kind::NotFound, format!("no key {id}")).within(self.name()));
        }
        // What cannot be read opens nothing.
        let others = listed.iter().filter(|listed| listed.id != id);
        let opens =
            |id| whole(&*self.objects, Object::Key(id)).is_ok_and(|it| slot::parse(&it).is_ok());
        if !others.into_iter().any(|listed| opens(listed.id)) {
            let error = Error::new(Kind::Refused, "the last key of a store is not removed");
            return Err(error.within(self.name()).with_hint("add another one first"));
        }
        self.objects.remove(Object::Key(id))
    }

    /// The slots that cannot be read.
    pub(in crate::store) fn check_keys(&self, step: &dyn Fn()) -> Result<Vec<(Object, Error)>> {
        let mut wrong = Vec::new();
        for listed in self.objects.list(Sort::Keys)? {
            step();
            let object = Object::Key(listed.id);
            let read = || -> Result<()> {
                let bytes = whole(&*self.objects, object)?;
                slot::parse(&bytes)?;
                match Id::of_object(&bytes) {
                    found if found == listed.id => Ok(()),
                    found => Err(Cause::Name(found).into()),
                }
            };
            match read() {
                Ok(()) => {}
                Err(error) if is_damage(&error) => wrong.push((object, error)),
                Err(error) => return Err(error),
            }
        }
        Ok(wrong)
    }

    fn fail_if_plain(&self) -> Result<()> {
        match self.keys.are_there() {
            true => Ok(()),
            false => Err(Error::new(Kind::Usage, "is not encrypted, and has no keys")
                .within(self.name())
                .with_hint("strata store init --encrypt makes one that is")),
        }
    }
}
