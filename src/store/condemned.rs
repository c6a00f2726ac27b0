//! Packs that are to go (`docs/store-format.md`, "Condemned packs").
//!
//! Whoever begins to write after a pack was condemned takes it as gone; whoever began before may still rely on it,
//! and is waited for.

use std::collections::HashMap;
use std::time::SystemTime;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Store;
use super::cause::Cause;
use super::check::is_damage;
use super::id::Id;
use super::objects::{Object, Sort};
use super::sealed::Sealed;
use super::whole;
use crate::error::{Error, Kind, Result, ResultExt};

/// Packs of one object: it stays a small one.
const MOST_PACKS: usize = 100_000;

/// What the object says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Told {
    packs: Vec<ToldPack>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ToldPack {
    id: Id,
    /// Of when it is condemned; null: since this object was written.
    since: Option<Timestamp>,
    why: Why,
}

/// Why a pack is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Why {
    /// Nothing needs it, or all of it that is needed lies elsewhere, too.
    Unused,
    /// It is not what was written; what can be read of it is needed until it lies elsewhere, too.
    Damaged,
}

/// A pack that is to go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sentence {
    /// Since when, by the clock of whoever keeps the objects; none yet if it is new.
    pub(super) since: Option<SystemTime>,
    pub(super) why: Why,
}

/// All packs that are to go, and the objects that say so.
#[derive(Debug, Clone, Default)]
pub(super) struct Condemned {
    pub(super) packs: HashMap<Id, Sentence>,
    objects: Vec<Id>,
}

impl Condemned {
    /// Why a pack is to go, if it is.
    pub(super) fn why(&self, pack: &Id) -> Option<Why> {
        self.packs.get(pack).map(|sentence| sentence.why)
    }
}

impl Store {
    /// Looks at which packs are condemned.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if a list of them is damaged, and the host's.
    pub(super) fn condemned(&self) -> Result<Condemned> {
        let (condemned, damaged) = self.condemned_and_damaged()?;
        match damaged.into_iter().next() {
            None => Ok(condemned),
            Some((object, error)) => {
                let error = error.within(object.to_string()).within(self.name());
                Err(error.with_hint(format!("strata store repair {} removes it", self.name())))
            }
        }
    }

    /// The same of the lists that can be read, and those that are damaged.
    ///
    /// # Errors
    /// The host's.
    pub(super) fn condemned_and_damaged(&self) -> Result<(Condemned, Vec<(Object, Error)>)> {
        let mut condemned = Condemned::default();
        let mut damaged = Vec::new();
        for listed in self.objects.list(Sort::Condemned)? {
            let object = Object::Condemned(listed.id);
            let read = || -> Result<Told> {
                let bytes = whole(&*self.objects, object)?;
                let json = self.keys.unseal(Sealed::Condemned, &bytes)?;
                Ok(serde_json::from_slice(&json).map_err(|error| Cause::Json(error.to_string()))?)
            };
            let told = match read() {
                Ok(told) => told,
                // Its packs are gone, or another tells of them.
                Err(error) if error.kind() == Kind::NotFound => continue,
                Err(error) if is_damage(&error) => {
                    damaged.push((object, error));
                    continue;
                }
                Err(error) => return Err(error).within(|| format!("{}: {object}", self.name())),
            };
            for pack in told.packs {
                let since = Some(pack.since.map_or(listed.written, SystemTime::from));
                let sentence = Sentence { since, why: pack.why };
                // Of two, that it is damaged says more.
                let known = condemned.packs.entry(pack.id).or_insert(sentence);
                if known.why == Why::Unused {
                    *known = sentence;
                }
            }
            condemned.objects.push(listed.id);
        }
        Ok((condemned, damaged))
    }

    /// Makes `packs` the ones that are condemned, in the place of those of `before`.
    ///
    /// # Errors
    /// The host's; more packs may be condemned then.
    pub(super) fn condemn(
        &self,
        before: Condemned,
        packs: HashMap<Id, Sentence>,
    ) -> Result<Condemned> {
        let mut told: Vec<ToldPack> = Vec::with_capacity(packs.len());
        for (id, sentence) in packs {
            let since = sentence.since.map(Timestamp::try_from).transpose();
            let since = since.map_err(|error| Error::caused_by(Kind::Io, error))?;
            told.push(ToldPack { id, since, why: sentence.why });
        }
        told.sort_unstable_by_key(|pack| pack.id);
        let mut objects = Vec::new();
        while !told.is_empty() {
            let rest = told.split_off(told.len().min(MOST_PACKS));
            let json = serde_json::to_vec(&Told { packs: told });
            let json = json.map_err(|error| Error::caused_by(Kind::Io, error))?;
            let bytes = self.keys.seal(Sealed::Condemned, &json)?;
            let id = Id::of_object(&bytes);
            self.objects.put(Object::Condemned(id), &[&bytes])?;
            objects.push(id);
            told = rest;
        }
        for id in before.objects.into_iter().filter(|id| !objects.contains(id)) {
            self.objects.remove(Object::Condemned(id))?;
        }
        // With the times that they have now.
        Ok(self.condemned_and_damaged()?.0)
    }
}
