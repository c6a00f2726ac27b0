use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;
use crate::block::{Cache, Fault, FaultSource, MemorySource};
use crate::error::Kind;

/// What one block of a [`FakeLayer`] is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Block {
    Absent,
    Zero,
    Raw,
    Encoded,
    Damaged,
}

const BLOCK: u64 = 512;

/// A layer of 512-byte blocks whose encoding is "every byte plus one".
#[derive(Debug)]
struct FakeLayer {
    blocks: Vec<Block>,
    size: u64,
    sources: Vec<Arc<dyn BlockSource>>,
    maps: AtomicUsize,
    decodes: AtomicUsize,
}

impl FakeLayer {
    fn new(seed: u8, blocks: Vec<Block>, cut: u64) -> Self {
        let bytes = (0..blocks.len() * BLOCK as usize)
            .map(|at| (at as u8).wrapping_mul(31).wrapping_add((at >> 9) as u8) ^ seed)
            .collect();
        let size = (blocks.len() as u64 * BLOCK).saturating_sub(cut).max(1);
        let sources: Vec<Arc<dyn BlockSource>> = vec![Arc::new(MemorySource::new(bytes))];
        Self { blocks, size, sources, maps: AtomicUsize::new(0), decodes: AtomicUsize::new(0) }
    }

    fn stored(&self, at: u64) -> u8 {
        let mut byte = [0];
        self.sources[0].read_at(at, &mut byte).unwrap();
        byte[0]
    }

    /// The byte at `at`: found, lost, or to be asked of the layer below.
    fn model(&self, at: u64) -> Option<Result<u8, ()>> {
        if at >= self.size {
            return Some(Ok(0));
        }
        match self.blocks[(at / BLOCK) as usize] {
            Block::Absent => None,
            Block::Zero => Some(Ok(0)),
            Block::Raw => Some(Ok(self.stored(at))),
            Block::Encoded => Some(Ok(self.stored(at).wrapping_add(1))),
            Block::Damaged => Some(Err(())),
        }
    }
}

impl Layer for FakeLayer {
    fn virtual_size(&self) -> u64 {
        self.size
    }

    fn parent(&self) -> Option<&ParentLocator> {
        None
    }

    fn sources(&self) -> &[Arc<dyn BlockSource>] {
        &self.sources
    }

    fn map(&self, guest: Range<u64>, emit: &mut dyn FnMut(u64, Place)) -> Result<()> {
        self.maps.fetch_add(1, Ordering::Relaxed);
        let mut at = guest.start;
        while at < guest.end {
            let len = (BLOCK - at % BLOCK).min(guest.end - at);
            let place = match self.blocks[(at / BLOCK) as usize] {
                Block::Absent => Place::Absent,
                Block::Zero => Place::Zero,
                Block::Raw => Place::Raw { source: 0, offset: at },
                Block::Encoded => {
                    let unit = EncodedUnit {
                        host: at - at % BLOCK,
                        stored: BLOCK as u32,
                        decoded: BLOCK as u32,
                    };
                    Place::Encoded { unit, within: (at % BLOCK) as u32 }
                }
                Block::Damaged => Place::Damaged(Error::new(Kind::Corrupt, "lost")),
            };
            emit(len, place);
            at += len;
        }
        Ok(())
    }

    fn decode(&self, unit: EncodedUnit, out: &mut [u8]) -> Result<()> {
        self.decodes.fetch_add(1, Ordering::Relaxed);
        self.sources[0].read_at(unit.host, out)?;
        out.iter_mut().for_each(|byte| *byte = byte.wrapping_add(1));
        Ok(())
    }
}

fn model(layers: &[Arc<FakeLayer>], at: u64) -> Result<u8, ()> {
    layers.iter().find_map(|layer| layer.model(at)).unwrap_or(Ok(0))
}

fn stack(layers: &[Arc<FakeLayer>]) -> Chain {
    let layers = layers.iter().map(|layer| Arc::clone(layer) as Arc<dyn Layer>).collect();
    Chain::new(layers, Cache::new(0)).unwrap()
}

fn any_layer(blocks: usize) -> impl Strategy<Value = Arc<FakeLayer>> {
    let block = prop_oneof![
        4 => Just(Block::Absent),
        1 => Just(Block::Zero),
        2 => Just(Block::Raw),
        2 => Just(Block::Encoded),
        1 => Just(Block::Damaged),
    ];
    (any::<u8>(), prop::collection::vec(block, 1..blocks), 0..1200u64)
        .prop_map(|(seed, blocks, cut)| Arc::new(FakeLayer::new(seed, blocks, cut)))
}

proptest! {
    // The same in every run.
    #![proptest_config(ProptestConfig {
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn reads_what_a_walk_down_the_layers_finds(
        layers in prop::collection::vec(any_layer(40), 1..6),
        reads in prop::collection::vec((any::<prop::sample::Index>(), 0..5000usize), 1..20),
    ) {
        let chain = stack(&layers);
        for (start, len) in reads {
            let start = start.index(chain.len() as usize) as u64;
            let len = len.min((chain.len() - start) as usize);
            let expected: Result<Vec<u8>, ()> =
                (start..start + len as u64).map(|at| model(&layers, at)).collect();
            let mut buf = vec![0x55; len];
            match chain.read_at(start, &mut buf) {
                Ok(()) => prop_assert_eq!(Ok(buf), expected),
                Err(error) => {
                    prop_assert_eq!(error.kind(), Kind::Corrupt);
                    prop_assert!(expected.is_err());
                }
            }
        }
        let mut at = 0;
        while at < chain.len() {
            let extent = chain.extent_at(at).unwrap();
            prop_assert!(extent.len > 0 && at + extent.len <= chain.len());
            if extent.hole {
                for byte in at..at + extent.len {
                    prop_assert_eq!(model(&layers, byte), Ok(0));
                }
            }
            at += extent.len;
        }
    }
}

proptest! {
    // The same in every run.
    #![proptest_config(ProptestConfig {
        rng_seed: RngSeed::Fixed(1),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_top_layers_hold_what_hides_those_below(
        layers in prop::collection::vec(any_layer(40), 1..6),
        top in any::<prop::sample::Index>(),
    ) {
        let chain = stack(&layers);
        let top = top.index(layers.len() + 1);
        let mut held = vec![None; chain.len() as usize];
        let mut end = 0;
        chain.held(top, &mut |run, what| {
            assert!(run.start >= end && run.end > run.start, "in order");
            end = run.end;
            held[run.start as usize..run.end as usize].fill(Some(what));
            Ok(())
        }).unwrap();
        for (at, held) in held.into_iter().enumerate() {
            let found = layers[..top].iter().find_map(|layer| layer.model(at as u64));
            match held {
                None => prop_assert_eq!(found, None),
                Some(Held::Zeros) => prop_assert_eq!(found, Some(Ok(0))),
                Some(Held::Data) => prop_assert!(found.is_some()),
            }
        }
    }
}

#[test]
fn depth_costs_one_walk_and_then_nothing() {
    let base = FakeLayer::new(1, vec![Block::Raw; 64], 0);
    let mut layers: Vec<_> =
        (0..500).map(|_| Arc::new(FakeLayer::new(0, vec![Block::Absent; 64], 0))).collect();
    layers.push(Arc::new(base));
    let chain = stack(&layers);
    for _ in 0..10 {
        chain.read_at(5, &mut [0; 1000]).unwrap();
    }
    for layer in &layers {
        assert_eq!(layer.maps.load(Ordering::Relaxed), 1);
    }
}

#[test]
fn a_unit_is_decoded_once_however_many_read_it() {
    let layer = Arc::new(FakeLayer::new(1, vec![Block::Encoded; 2], 0));
    let chain = stack(std::slice::from_ref(&layer));
    std::thread::scope(|scope| {
        for at in 0..16 {
            let chain = &chain;
            scope.spawn(move || chain.read_at(at, &mut [0; 100]).unwrap());
        }
    });
    assert_eq!(layer.decodes.load(Ordering::Relaxed), 1);
}

#[test]
fn contiguous_blocks_are_one_read() {
    let layer = FakeLayer::new(1, vec![Block::Raw; 64], 0);
    let counted = Arc::new(FaultSource::new(Arc::clone(&layer.sources[0]), |_, _, _| None));
    let layer = FakeLayer { sources: vec![Arc::clone(&counted) as _], ..layer };
    let chain = stack(&[Arc::new(layer)]);
    chain.read_at(0, &mut vec![0; 64 * 512]).unwrap();
    assert_eq!(counted.reads(), 1);
}

#[test]
fn a_passing_fault_is_not_remembered() {
    let layer = FakeLayer::new(1, vec![Block::Raw; 4], 0);
    let plan = |number, _, _| (number == 0).then_some(Fault::Errno(libc::EIO));
    let faulty = FaultSource::new(Arc::clone(&layer.sources[0]), plan);
    let chain = stack(&[Arc::new(FakeLayer { sources: vec![Arc::new(faulty)], ..layer })]);
    assert_eq!(chain.read_at(0, &mut [0; 10]).unwrap_err().kind(), Kind::Io);
    chain.read_at(0, &mut [0; 10]).unwrap();
}

/// Half of the blocks of the upper layer are absent, one by one: the layer below is still asked
/// once, and the one below that.
#[test]
fn fragments_are_asked_for_at_once() {
    let blocks =
        |first, second| (0..64).map(|at| if at % 2 == 0 { first } else { second }).collect();
    let upper = Arc::new(FakeLayer::new(1, blocks(Block::Raw, Block::Absent), 0));
    let middle = Arc::new(FakeLayer::new(2, blocks(Block::Damaged, Block::Absent), 0));
    let lower = Arc::new(FakeLayer::new(3, vec![Block::Encoded; 64], 0));
    let layers = [upper, middle, lower];
    let chain = stack(&layers);
    let mut buf = vec![0; 64 * 512];
    chain.read_at(0, &mut buf).unwrap();
    let expected: Vec<u8> = (0..64 * BLOCK).map(|at| model(&layers, at).unwrap()).collect();
    assert!(buf == expected);
    for layer in &layers {
        assert_eq!(layer.maps.load(Ordering::Relaxed), 1);
    }
}

/// A layer whose tables cannot be read for one block.
#[derive(Debug)]
struct Unreadable(FakeLayer, u64);

impl Layer for Unreadable {
    fn virtual_size(&self) -> u64 {
        self.0.virtual_size()
    }

    fn parent(&self) -> Option<&ParentLocator> {
        None
    }

    fn sources(&self) -> &[Arc<dyn BlockSource>] {
        self.0.sources()
    }

    fn map(&self, guest: Range<u64>, emit: &mut dyn FnMut(u64, Place)) -> Result<()> {
        let bad = self.1;
        if guest.contains(&bad) {
            self.0.map(guest.start..bad, emit)?;
            return Err(Error::new(crate::error::Kind::Io, "unreadable"));
        }
        self.0.map(guest, emit)
    }

    fn decode(&self, unit: EncodedUnit, out: &mut [u8]) -> Result<()> {
        self.0.decode(unit, out)
    }
}

/// What lies between the fragments and cannot be read is not needed.
#[test]
fn an_unreadable_table_between_fragments_spoils_nothing() {
    let mut blocks = vec![Block::Absent; 9];
    blocks[4] = Block::Raw;
    let upper = Arc::new(FakeLayer::new(1, blocks, 0));
    let lower = FakeLayer::new(2, vec![Block::Raw; 9], 0);
    let expected: Vec<u8> = (0..9 * BLOCK)
        .map(|at| if at / BLOCK == 4 { upper.stored(at) } else { lower.stored(at) })
        .collect();
    let lower = Arc::new(Unreadable(lower, 4 * BLOCK));
    let chain = Chain::new(vec![upper, lower], Cache::new(0)).unwrap();
    let mut buf = vec![0; 9 * 512];
    chain.read_at(0, &mut buf).unwrap();
    assert!(buf == expected);
}
