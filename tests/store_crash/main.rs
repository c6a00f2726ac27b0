//! A store in a folder through power cuts, failing disks and full ones.
//!
//! `STRATA_STORE_CRASHES` says how many states after a power cut are looked at, `STRATA_SEED` where to begin.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failed step is a failed test")]
#![allow(unreachable_pub, reason = "modules are shared between test binaries")]

#[path = "../ext/rng.rs"]
mod rng;

mod crashes;
mod faults;
mod power;
mod recorded;
mod session;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}
