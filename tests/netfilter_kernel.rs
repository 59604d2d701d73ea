//! The netfilter modules against the real tools and the real kernel, nft and legacy: what is rendered is accepted and read back as it was meant, and the
//! tracer says what the kernel does.

mod lab;
mod netfilter;

use std::net::Ipv4Addr;

use lab::{Backend, Ns, isolated};
use netfilter::gateway::{Gateway, Kind, Probe};
use netfilter::random::{dialled, ruleset};
use netfilter::tool::Tool;
use proptest::prelude::*;
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

fn accepted_and_read_back(backend: Backend) {
    let ns = Ns::new("node");
    let tool = Tool { ns: &ns, backend };
    let checked = runner(30).run(&ruleset(), |rules| {
        tool.apply(&rules);
        prop_assert_eq!(tool.changes(&rules), vec![], "a second pass writes nothing");
        Ok(())
    });
    checked.unwrap();
}

#[test]
fn rules_are_accepted_and_read_back_by_nft() {
    isolated("rules_are_accepted_and_read_back_by_nft", || accepted_and_read_back(Backend::Nft));
}

#[test]
fn rules_are_accepted_and_read_back_by_legacy() {
    isolated("rules_are_accepted_and_read_back_by_legacy", || {
        accepted_and_read_back(Backend::Legacy)
    });
}

fn probe() -> impl Strategy<Value = Probe> {
    let port = 1000..1012_u16;
    let kind = prop_oneof![
        2 => Just(Kind::Echo),
        3 => port.clone().prop_map(Kind::Udp),
        3 => port.clone().prop_map(Kind::Tcp),
        1 => port.prop_map(Kind::Reset),
    ];
    (1..=3_u8, 1..=3_u8, dialled(), kind).prop_map(|(segment, host, destination, kind)| Probe {
        segment,
        source: Ipv4Addr::new(10, segment, 0, host),
        destination,
        kind,
    })
}

fn tracer_agrees(backend: Backend) {
    let mut gateway = Gateway::new();
    let node = Gateway::node();
    let ns = gateway.ns.clone();
    let tool = Tool { ns: &ns, backend };
    let (mut sent, mut through) = (0, 0);
    let cell = std::cell::RefCell::new((&mut gateway, &mut sent, &mut through));
    let checked = runner(40).run(&(ruleset(), prop::collection::vec(probe(), 24)), |(rules, probes)| {
        tool.apply(&rules);
        let (gateway, sent, through) = &mut *cell.borrow_mut();
        **sent += probes.len();
        **through += gateway.compare(&node, &rules, &probes).map_err(TestCaseError::fail)?;
        Ok(())
    });
    checked.unwrap();
    drop(cell);
    // Neither all nor nothing: the comparison has seen both.
    assert!((sent / 20..sent * 19 / 20).contains(&through), "{through} of {sent} came through");
}

#[test]
fn the_tracer_says_what_the_kernel_does_with_nft() {
    isolated("the_tracer_says_what_the_kernel_does_with_nft", || tracer_agrees(Backend::Nft));
}

#[test]
fn the_tracer_says_what_the_kernel_does_with_legacy() {
    isolated("the_tracer_says_what_the_kernel_does_with_legacy", || {
        tracer_agrees(Backend::Legacy)
    });
}
