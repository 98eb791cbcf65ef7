//! Seeds, and what they have found.

use super::*;

/// Runs of an ordinary test. `RINGHORN_SIM_SEEDS` asks for more.
const SEEDS: u64 = 300;

fn with_seed(seed: u64) {
    let outcome = std::panic::catch_unwind(|| run(seed));
    assert!(outcome.is_ok(), "seed {seed} breaks a promise: `RINGHORN_SIM_SEED={seed}` repeats it");
}

#[test]
fn every_client_gets_exactly_what_it_is_owed_under_every_seed() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("RINGHORN_SIM_SEED") {
        return run(seed);
    }
    let first = number("RINGHORN_SIM_FIRST").unwrap_or(0);
    for seed in first..first + number("RINGHORN_SIM_SEEDS").unwrap_or(SEEDS) {
        with_seed(seed);
    }
}
