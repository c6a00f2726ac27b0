//! Random stacks of layers that depend on each other in every way.

use super::model::{File, Model, Op, Wrong};

/// A generator of numbers, the same for the same seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 32) as usize) % most
    }
}

/// A stack, what it makes, and whether it can be made at all.
pub struct Stack {
    pub layers: Vec<Vec<Op>>,
    pub model: Result<Model, Wrong>,
}

fn path(random: &mut Random) -> String {
    let depth = 1 + random.below(3);
    let names: Vec<_> = (0..depth).map(|_| ["a", "b", "c", "d"][random.below(4)]).collect();
    names.join("/")
}

/// A path of something that is there, or any other.
fn known(random: &mut Random, model: &Model) -> String {
    let count = model.paths.len();
    match (count, random.below(4)) {
        (0, _) | (_, 0) => path(random),
        _ => model.paths.keys().nth(random.below(count)).cloned().unwrap_or_default(),
    }
}

fn op(random: &mut Random, model: &Model) -> Op {
    match random.below(16) {
        0..=4 => Op::File(path(random), format!("text {}", random.below(1000))),
        5 | 6 => Op::Folder(path(random)),
        7 => {
            let target = path(random);
            let before = ["", "/", "../", "../../", "./"][random.below(5)];
            Op::Symlink(path(random), format!("{before}{target}"))
        }
        8..=10 => Op::Link(path(random), known(random, model)),
        11 => Op::Fifo(path(random)),
        12..=14 => Op::Whiteout(known(random, model)),
        _ => Op::Opaque(match random.below(6) {
            0 => String::new(),
            _ => known(random, model),
        }),
    }
}

/// Makes one. With `once`, of what a tool can apply that goes through a tar once and removes what a
/// whiteout names when it comes to it: whiteouts come first, and targets before their links.
pub fn stack(seed: u64, once: bool) -> Stack {
    let mut random = Random::new(seed);
    let mut model = Model { once, ..Model::default() };
    let mut layers = Vec::new();
    for _ in 0..2 + random.below(4) {
        let mut layer: Vec<Op> = Vec::new();
        for _ in 0..1 + random.below(14) {
            let mut so_far = model.clone();
            so_far.apply(&layer).unwrap();
            let op = op(&mut random, &so_far);
            let mut more = layer.clone();
            let is_whiteout = |op: &Op| matches!(op, Op::Whiteout(_) | Op::Opaque(_));
            let at = if once && is_whiteout(&op) {
                // What it hides in its own layer such a tool would remove, or not.
                layer.iter().take_while(|op| is_whiteout(op)).count()
            } else {
                layer.len()
            };
            more.insert(at, op);
            if model.clone().apply(&more).is_ok() {
                layer = more;
            } else if !once && random.below(100) == 0 {
                layers.push(more);
                return Stack { layers, model: Err(Wrong) };
            }
        }
        model.apply(&layer).unwrap();
        layers.push(layer);
    }
    assert!(!model.nodes.iter().any(|node| matches!(node.file, File::Waiting(_)) && once));
    Stack { layers, model: Ok(model) }
}
