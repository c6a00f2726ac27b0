//! The store beside plain copies: random operations on two stores, some of which end in the middle.
//!
//! `STRATA_STORE_OPERATIONS` says how many there are, `STRATA_SEED` where to begin; what fails tells its seed.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failed step is a failed test")]
#![allow(unreachable_pub, reason = "modules are shared between test binaries")]

#[path = "../ext/rng.rs"]
mod rng;

mod disks;
mod model;
mod places;
mod regressions;
mod tight;

use std::sync::Arc;

use model::{Counts, Model};
use places::Memory;

/// Operations on one pair of stores.
const EACH: u64 = 250;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

#[test]
fn every_snapshot_reads_as_its_plain_copy_1() {
    part(0);
}

#[test]
fn every_snapshot_reads_as_its_plain_copy_2() {
    part(1);
}

/// Every second of the pairs of stores.
fn part(part: u64) {
    let all = number("STRATA_STORE_OPERATIONS", 1000);
    let first = number("STRATA_SEED", 1);
    let mut counts = Counts::new();
    let mut done = 0;
    for pair in (part..all.div_ceil(EACH)).step_by(2) {
        let seed = first + pair;
        let run = std::panic::catch_unwind(|| {
            let mut model = Model::new(seed, &mut |_| Arc::new(Memory::default()));
            (0..EACH).for_each(|_| model.step());
            model.finish()
        });
        match run {
            Ok(counted) => counted.iter().for_each(|(kind, count)| {
                *counts.entry(kind).or_default() += count;
            }),
            Err(panic) => {
                eprintln!("STRATA_SEED={seed} STRATA_STORE_OPERATIONS=1 repeats it");
                std::panic::resume_unwind(panic);
            }
        }
        done += EACH;
    }
    println!("{done} operations from seed {}: {counts:#?}", first + part);
}
