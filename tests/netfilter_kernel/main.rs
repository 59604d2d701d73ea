//! The netfilter modules against the real tools and the real kernel, nft and legacy: what is rendered is accepted and read back as it was meant, and the
//! tracer says what the kernel does.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]

mod foreign;
#[path = "../lab/mod.rs"]
mod lab;
#[path = "../netfilter/mod.rs"]
mod netfilter;
mod rules;
mod tracer;

use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// The same cases every time: a failure can be looked at again.
fn runner(cases: u32) -> TestRunner {
    let config = Config {
        cases,
        max_shrink_iters: 40,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
}
