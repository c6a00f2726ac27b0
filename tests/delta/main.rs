//! The delta: against a plain array, through crashes, with failing hosts, and beside QEMU.
//!
//! `STRATA_DELTA_OPERATIONS` says how many random operations the model tests do,
//! `STRATA_CRASH_STATES` how many crashes are looked into, `STRATA_RANDOM_SEED` where to begin.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failed step is a failed test")]
#![allow(unreachable_pub, reason = "modules are shared between test binaries")]

#[path = "../support/mod.rs"]
mod support;

#[path = "../ext/rng.rs"]
mod rng;

mod crash;
mod create;
mod faults;
mod model;
mod qemu;
mod storage;
mod threads;
mod workload;

/// A number that the environment may set.
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| {
        value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number"))
    })
}
