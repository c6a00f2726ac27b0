//! Layers applied to a map of paths, naively: what the merged tree must be.

use std::collections::BTreeMap;

/// An entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    File(String, String),
    Folder(String),
    Symlink(String, String),
    Link(String, String),
    Fifo(String),
    /// The path of what it hides.
    Whiteout(String),
    /// The path of the folder.
    Opaque(String),
}

impl Op {
    /// Its path in the tar.
    pub fn path(&self) -> String {
        match self {
            Op::File(path, _) | Op::Folder(path) | Op::Symlink(path, _) => path.clone(),
            Op::Link(path, _) | Op::Fifo(path) => path.clone(),
            Op::Whiteout(path) => {
                let (parent, name) = split(path);
                join(parent, &format!(".wh.{name}"))
            }
            Op::Opaque(path) => join(path, ".wh..wh..opq"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum File {
    Folder,
    Text(String),
    Symlink(String),
    Fifo,
    /// A hard link to what is not there yet.
    Waiting(String),
}

/// One file, with its mode and its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub file: File,
    pub mode: u16,
    pub time: i64,
    /// Whether no entry told of it.
    pub made_up: bool,
}

#[derive(Debug, Clone, Default)]
pub struct Model {
    pub nodes: Vec<Node>,
    /// By their paths, each with the layer that put it there. The root is not among them.
    pub paths: BTreeMap<String, (usize, usize)>,
    pub layers: usize,
    /// Only what a tool can do that goes through the tar once.
    pub once: bool,
}

/// What cannot be unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wrong;

pub fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") }
}

impl Model {
    /// Applies a layer; its entries are as old as their place in it says.
    pub fn apply(&mut self, ops: &[Op]) -> Result<(), Wrong> {
        self.layers += 1;
        let below: Vec<Option<usize>> = ops
            .iter()
            .map(|op| match op {
                Op::Link(_, target) => self.find(target),
                _ => None,
            })
            .collect();
        let mut late = Vec::new();
        for op in ops {
            let (parent, hidden) = match op {
                Op::Whiteout(path) => (split(path).0, path),
                Op::Opaque(path) => (path.as_str(), path),
                _ => continue,
            };
            if !self.is_literal_folder(parent) {
                late.push(op);
                continue;
            }
            if matches!(op, Op::Whiteout(_)) {
                self.paths.remove(hidden);
            }
            self.remove_below(hidden);
        }
        for (index, op) in ops.iter().enumerate() {
            self.entry(
                op,
                below[index],
                time(self.layers, index),
                time(self.layers, ops.len() - 1),
            )?;
        }
        self.bind()?;
        for op in late {
            self.late(op);
        }
        Ok(())
    }

    fn entry(
        &mut self,
        op: &Op,
        below: Option<usize>,
        time: i64,
        newest: i64,
    ) -> Result<(), Wrong> {
        let (file, mode) = match op {
            Op::File(_, text) => (File::Text(text.clone()), 0o644),
            Op::Folder(_) => (File::Folder, 0o711),
            Op::Symlink(_, target) => (File::Symlink(target.clone()), 0o777),
            Op::Fifo(_) => (File::Fifo, 0o600),
            Op::Link(_, target) => (File::Waiting(target.clone()), 0o644),
            Op::Whiteout(_) | Op::Opaque(_) => return Ok(()),
        };
        let path = op.path();
        let (parent, name) = split(&path);
        let parent = self.resolve(parent, Some(newest)).ok_or(Wrong)?;
        let path = join(&parent, name);
        let new = Node { file, mode, time, made_up: false };
        let mut node = self.nodes.len();
        if let Op::Link(_, target) = op {
            let found = self.find(target);
            if self.once
                && (found.is_none() || self.paths.get(&path).map(|(node, _)| *node) == found)
            {
                return Err(Wrong);
            }
            if let Some(found) = found.or(below) {
                if self.nodes[found].file == File::Folder {
                    return Err(Wrong);
                }
                node = found;
            }
        } else if new.file == File::Folder
            && let Some((there, layer)) = self.paths.get_mut(&path)
            && self.nodes[*there].file == File::Folder
        {
            *layer = self.layers;
            self.nodes[*there] = new;
            return Ok(());
        }
        if node == self.nodes.len() {
            self.nodes.push(new);
        }
        self.remove_below(&path);
        self.paths.remove(&path);
        if let Op::Link(_, target) = op
            && self.once
            && self.find(target) != Some(node)
        {
            return Err(Wrong);
        }
        self.paths.insert(path, (node, self.layers));
        Ok(())
    }

    /// Follows the links that were made before their targets.
    fn bind(&mut self) -> Result<(), Wrong> {
        let mut found = Vec::new();
        for (path, (node, _)) in self.paths.clone() {
            let mut node = node;
            let mut steps = 0;
            while let File::Waiting(target) = self.nodes[node].file.clone() {
                node = self.find(&target).ok_or(Wrong)?;
                steps += 1;
                if steps > self.nodes.len() || self.nodes[node].file == File::Folder {
                    return Err(Wrong);
                }
            }
            found.push((path, node));
        }
        for (path, node) in found {
            self.paths.get_mut(&path).unwrap().0 = node;
        }
        Ok(())
    }

    fn late(&mut self, op: &Op) {
        let top = match op {
            Op::Whiteout(path) => {
                let (parent, name) = split(path);
                self.resolve(parent, None).map(|parent| join(&parent, name))
            }
            Op::Opaque(path) => self.resolve(path, None),
            _ => None,
        };
        let Some(top) = top else { return };
        let within =
            |path: &str, folder: &str| folder.is_empty() || path.starts_with(&format!("{folder}/"));
        let own: Vec<String> = self
            .paths
            .iter()
            .filter(|(_, (_, layer))| *layer == self.layers)
            .map(|(path, _)| path.clone())
            .collect();
        self.paths.retain(|path, (_, layer)| {
            let named = matches!(op, Op::Whiteout(_)) && *path == top;
            !(named || within(path, &top))
                || *layer == self.layers
                || own.iter().any(|own| within(own, path))
        });
    }

    fn remove_below(&mut self, path: &str) {
        let below = format!("{path}/");
        self.paths.retain(|other, _| !(path.is_empty() || other.starts_with(&below)));
    }

    /// The path without links of the folder at `path`; with `make`, missing ones are made as old as
    /// that.
    fn resolve(&mut self, path: &str, make: Option<i64>) -> Option<String> {
        let mut ahead: Vec<String> = names(path);
        let mut here = String::new();
        let mut links = 0;
        while let Some(name) = ahead.pop() {
            if name == ".." {
                here = split(&here).0.to_owned();
                continue;
            }
            let path = join(&here, &name);
            if let (None, Some(time)) = (self.paths.get(&path), make) {
                let node = Node { file: File::Folder, mode: 0o755, time, made_up: true };
                self.paths.insert(path.clone(), (self.nodes.len(), self.layers));
                self.nodes.push(node);
            }
            match &self.nodes[self.paths.get(&path)?.0].file {
                File::Folder => here = path,
                File::Symlink(target) => {
                    links += 1;
                    if links > 255 {
                        return None;
                    }
                    if target.starts_with('/') {
                        here.clear();
                    }
                    ahead.extend(names(target));
                }
                _ => return None,
            }
        }
        Some(here)
    }

    fn find(&mut self, path: &str) -> Option<usize> {
        let (parent, name) = split(path);
        let parent = self.resolve(parent, None)?;
        self.paths.get(&join(&parent, name)).map(|(node, _)| *node)
    }

    fn is_literal_folder(&self, path: &str) -> bool {
        let mut path = path;
        while !path.is_empty() {
            let node = self.paths.get(path).map(|(node, _)| &self.nodes[*node].file);
            if node != Some(&File::Folder) {
                return false;
            }
            path = split(path).0;
        }
        true
    }

    /// How many names a node has.
    pub fn links(&self, node: usize) -> usize {
        self.paths.values().filter(|(other, _)| *other == node).count()
    }
}

/// When an entry was changed last.
pub fn time(layer: usize, index: usize) -> i64 {
    (layer * 1000 + index) as i64
}

fn names(path: &str) -> Vec<String> {
    let names = path.rsplit('/').filter(|name| !name.is_empty() && *name != ".");
    names.map(str::to_owned).collect()
}
