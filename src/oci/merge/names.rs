//! Names in folders, while layers are applied: found by folder and name, in the order they came
//! within each folder.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

use super::cause::Cause;

/// Bytes of names and of symbolic links' targets at most: places among them are 32 bits.
const MOST_TEXT: u64 = u32::MAX as u64;

/// No slot, no node.
pub(super) const NONE: u32 = u32::MAX;

/// Names, each behind its length, and other bytes.
#[derive(Debug, Default)]
pub(super) struct Text(Vec<u8>);

impl Text {
    /// Adds a name of at most 255 bytes; where it is.
    pub(super) fn add(&mut self, name: &[u8]) -> Result<u32, Cause> {
        let at = self.place(name.len() + 1)?;
        self.0.push(name.len().min(255) as u8);
        self.0.extend_from_slice(name);
        Ok(at)
    }

    /// Adds bytes; where they are.
    pub(super) fn add_bytes(&mut self, bytes: &[u8]) -> Result<u32, Cause> {
        let at = self.place(bytes.len())?;
        self.0.extend_from_slice(bytes);
        Ok(at)
    }

    fn place(&self, more: usize) -> Result<u32, Cause> {
        let fault = Cause::Budget(MOST_TEXT, "bytes of names in all layers");
        match u32::try_from(self.0.len() + more) {
            Ok(_) => Ok(self.0.len() as u32),
            Err(_) => Err(fault),
        }
    }

    /// The name at a place that [`Text::add`] gave.
    pub(super) fn get(&self, at: u32) -> &[u8] {
        match self.0.get(at as usize..) {
            Some([len, rest @ ..]) => rest.get(..usize::from(*len)).unwrap_or_default(),
            _ => &[],
        }
    }

    /// The bytes at a place that [`Text::add_bytes`] gave.
    pub(super) fn bytes(&self, at: u32, len: u32) -> &[u8] {
        let at = at as usize;
        self.0.get(at..at + len as usize).unwrap_or_default()
    }

    pub(super) fn shrink(&mut self) {
        self.0.shrink_to_fit();
    }
}

/// A name that a folder has, or had and may have again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    pub(super) text: u32,
    pub(super) folder: u32,
    /// What has the name; [`NONE`] if nothing has it any more.
    pub(super) node: u32,
    /// The slot of the same folder that came before.
    pub(super) next: u32,
    /// The layer that gave the name to what has it.
    pub(super) layer: u16,
}

/// All slots, found by folder and name.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) text: Text,
    pub(super) slots: Vec<Slot>,
    table: HashTable<u32>,
    hasher: RandomState,
}

/// A name in a folder with its hash, which is made once for all that is done with it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key<'a> {
    pub(super) folder: u32,
    pub(super) name: &'a [u8],
    hash: u64,
}

impl Names {
    /// Room for about `count` names.
    pub(super) fn new(count: usize) -> Self {
        Self {
            text: Text::default(),
            slots: Vec::with_capacity(count),
            table: HashTable::with_capacity(count),
            hasher: RandomState::new(),
        }
    }

    pub(super) fn slot(&self, slot: u32) -> Option<&Slot> {
        self.slots.get(slot as usize)
    }

    pub(super) fn slot_mut(&mut self, slot: u32) -> Option<&mut Slot> {
        self.slots.get_mut(slot as usize)
    }

    pub(super) fn key<'a>(&self, folder: u32, name: &'a [u8]) -> Key<'a> {
        Key { folder, name, hash: hash(&self.hasher, folder, name) }
    }

    /// The slot of a name, whether anything has the name or not.
    pub(super) fn find(&self, key: Key<'_>) -> Option<u32> {
        let is_it = |&slot: &u32| {
            self.slot(slot).is_some_and(|slot| {
                slot.folder == key.folder && self.text.get(slot.text) == key.name
            })
        };
        self.table.find(key.hash, is_it).copied()
    }

    /// A slot for a name that has none; `next` is the folder's last one before.
    pub(super) fn add(&mut self, key: Key<'_>, next: u32) -> Result<u32, Cause> {
        let text = self.text.add(key.name)?;
        let number = self.slots.len() as u32;
        self.slots.push(Slot { text, folder: key.folder, node: NONE, next, layer: 0 });
        let Self { text, slots, table, hasher } = self;
        let rehash = |&slot: &u32| {
            let slot = slots.get(slot as usize);
            slot.map_or(0, |slot| hash(hasher, slot.folder, text.get(slot.text)))
        };
        table.insert_unique(key.hash, number, rehash);
        Ok(number)
    }

    pub(super) fn into_parts(self) -> (Text, Vec<Slot>) {
        (self.text, self.slots)
    }
}

/// The names are the image's: a hash that it can foresee would let it make all collide.
fn hash(hasher: &RandomState, folder: u32, name: &[u8]) -> u64 {
    hasher.hash_one((folder, name))
}
