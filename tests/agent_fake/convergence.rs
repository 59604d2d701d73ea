//! Passes converge, write nothing twice, heal after a failure at any call, and can be taken back.

use stagenet::agent::cleanup;
use stagenet::agent::kept::Kept;
use stagenet::host::fake::{Call, FakeHost, Write};
use stagenet::netfilter::{Family, Table};
use stagenet::plan::{FlowTuple, RuleAction};

use crate::{NETWORK, assert_never_open, boom, converged, host, interface, mapping, moved, nothing, one, pass, snapshot, state, two};

#[tokio::test]
async fn a_mapping_converges_and_the_second_pass_writes_nothing() {
    let (host, mut kept) = (host(), Kept::default());
    let outcome = pass(&host, &mut kept, &one()).await;
    assert!(
        outcome.complete && outcome.fenced && outcome.troubles.is_empty(),
        "{:?}",
        outcome.troubles
    );
    assert_eq!(outcome.label(), "changed");
    assert!(host.rules(Family::V4, Table::Nat, "SNET-DNAT").unwrap()[0].contains("192.168.200.3"));
    assert!(host.rules(Family::V4, Table::Mangle, "FORWARD").unwrap()[0].contains("SNET-FWD"));
    assert_eq!(host.settings(&interface("eth1")).unwrap().forwarding, Some(true));
    assert_eq!(host.proxies().len(), 1);
    assert_never_open(&host);

    let (writes, calls) = (host.writes(), host.calls());
    let again = pass(&host, &mut kept, &one()).await;
    assert_eq!((again.label(), host.writes()), ("unchanged", writes));
    assert_eq!(host.calls(), calls, "nothing is even read after a verified pass");
    let fresh = pass(&host, &mut Kept::default(), &one()).await;
    assert_eq!(
        (fresh.label(), host.writes()),
        ("unchanged", writes),
        "an agent without memory recognises everything"
    );
}

#[tokio::test]
async fn one_change_reads_only_what_it_changed() {
    let (host, mut kept) = (host(), Kept::default());
    pass(&host, &mut kept, &one()).await;
    let (reads, links) = (host.count(Call::ReadTable), host.count(Call::ReadLinks));
    let outcome = pass(&host, &mut kept, &two()).await;
    assert!(outcome.complete);
    assert_eq!(host.count(Call::ReadTable) - reads, 1, "just the changed chains of nat");
    assert_eq!(host.count(Call::ReadLinks), links);
    assert_eq!(state(&host), converged(&[two()]).await);
}

/// Every transition, a failure at every call of it, with and without a restart afterwards.
#[tokio::test]
async fn a_failure_at_any_call_leaves_the_node_closed_and_heals() {
    let transitions = [
        ("start", vec![], one()),
        ("add", vec![one()], two()),
        ("change", vec![one()], moved()),
        ("remove", vec![two()], one()),
        ("remove all", vec![two()], nothing()),
    ];
    for (name, before, after) in transitions {
        let mut history = before.clone();
        history.push(after.clone());
        let wanted = converged(&history).await;
        let mut failures = 0;
        for number in 1.. {
            let mut hit = false;
            for restart in [false, true] {
                let (host, mut kept) = (host(), Kept::default());
                for snapshot in &before {
                    pass(&host, &mut kept, snapshot).await;
                }
                let calls = host.calls();
                host.fail_at(number, boom());
                let outcome = pass(&host, &mut kept, &after).await;
                hit |= host.calls() >= calls + number;
                assert_never_open(&host);
                host.mend();
                if restart {
                    kept = Kept::default();
                }
                let healed = pass(&host, &mut kept, &after).await;
                assert!(!healed.failed(), "{name}, call {number}, restart {restart}: {:?}", healed.troubles);
                assert_eq!(
                    state(&host),
                    wanted,
                    "{name}, call {number}, restart {restart}, was {:?}",
                    outcome.troubles
                );
                assert_never_open(&host);
            }
            if !hit {
                break;
            }
            failures += 1;
        }
        assert!(failures >= 3, "{name}: only {failures} calls were made to fail");
    }
}

#[tokio::test]
async fn removing_the_last_network_puts_everything_back() {
    let before = state(&host());
    let (host, mut kept) = (host(), Kept::default());
    pass(&host, &mut kept, &one()).await;
    let outcome = pass(&host, &mut kept, &nothing()).await;
    assert!(outcome.complete, "{:?}", outcome.troubles);
    assert_eq!(state(&host), before);
    assert_never_open(&host);
}

#[tokio::test]
async fn cleanup_leaves_the_host_as_it_was_found() {
    let before = state(&host());
    let (host, mut kept) = (host(), Kept::default());
    pass(&host, &mut kept, &two()).await;
    let cleaned = cleanup::run(&mut [&mut host.clone()], false, 0x2000).await;
    assert_eq!(cleaned.errors, Vec::<String>::new());
    assert!(
        cleaned.removed.iter().any(|r| r.contains("proxy neighbour 192.168.100.3")),
        "{cleaned}"
    );
    assert_eq!(state(&host), before);
    assert_never_open(&host);
    let again = cleanup::run(&mut [&mut host.clone()], false, 0x2000).await;
    assert_eq!(again.to_string(), "nothing of stagenet found\n");
}

#[tokio::test]
async fn cleanup_goes_on_after_every_failure() {
    for number in 1..=8 {
        let (host, mut kept) = (host(), Kept::default());
        pass(&host, &mut kept, &one()).await;
        host.fail_at(number, boom());
        let cleaned = cleanup::run(&mut [&mut host.clone()], false, 0x2000).await;
        assert_eq!(cleaned.errors.len(), 1, "call {number}: {cleaned:?}");
        assert!(!cleaned.removed.is_empty());
    }
}

/// A network without mappings whose machines leave under the node's own address: nothing but the mark tells their connections from the node's own.
#[tokio::test]
async fn cleanup_ends_everything_that_the_fence_admitted() {
    let network = NETWORK.replace(
        "addresses: [192.168.100.0/24]}",
        "addresses: [192.168.100.0/24], sourceAddress: 192.168.100.2}",
    );
    let open = snapshot(&format!("{network}  egress: {{default: Allow}}\n"));
    let ip = |text: &str| text.parse().unwrap();
    let left = FlowTuple {
        zone: 0,
        protocol: 6,
        source: ip("192.168.200.3"),
        destination: ip("192.168.100.1"),
        destination_port: 443,
        reply_source: ip("192.168.100.1"),
        reply_source_port: 443,
        reply_destination: ip("192.168.100.2"),
        mark: 0x12000,
        master: None,
    };
    let own = FlowTuple {
        source: ip("192.168.100.2"),
        mark: 0x10000,
        ..left.clone()
    };
    for flushed in [false, true] {
        let (host, mut kept) = (host(), Kept::default());
        assert!(!pass(&host, &mut kept, &open).await.failed());
        host.add_flow(left.clone());
        host.add_flow(own.clone());
        if flushed {
            host.edit_chain(Family::V4, Table::Filter, "FORWARD", Vec::clear);
        }
        let cleaned = cleanup::run(&mut [&mut host.clone()], false, 0x2000).await;
        assert_eq!(cleaned.errors, Vec::<String>::new());
        assert_eq!(host.flows(), [own.clone()].into(), "flushed: {flushed}");
    }
}

/// What comes from nobody inside is marked for dropping as long as a network is not served, and met by a strict reverse path filter when it is: at no moment by neither.
#[tokio::test]
async fn the_mark_of_nobody_goes_when_the_reverse_path_filter_stands() {
    let waiting = snapshot(&format!(
        "{}{}",
        NETWORK.replace("interface: eth0", "interface: eth9"),
        mapping("vm03", 3, 3)
    ));
    let (first, mut kept) = (host(), Kept::default());
    let marked = |host: &FakeHost| host.rules(Family::V4, Table::Mangle, "SNET-PRE").is_some();
    let strict = |host: &FakeHost| host.settings(&interface("eth1")).unwrap().rp_filter == Some(1);
    pass(&first, &mut kept, &waiting).await;
    assert!(marked(&first) && !strict(&first));
    let calls = first.calls();
    assert!(!pass(&first, &mut kept, &one()).await.failed());
    let calls = first.calls() - calls;
    assert!(!marked(&first) && strict(&first));
    assert_eq!(state(&first), converged(&[one()]).await);
    for number in 1..=calls {
        let (host, mut kept) = (host(), Kept::default());
        pass(&host, &mut kept, &waiting).await;
        host.fail_at(number, boom());
        pass(&host, &mut kept, &one()).await;
        let nowhere = host.policy_rules().iter().any(|rule| rule.action == RuleAction::Blackhole);
        assert!(strict(&host) || marked(&host) && nowhere, "call {number} failed");
        pass(&host, &mut kept, &one()).await;
        assert_eq!(state(&host), state(&first), "call {number} failed");
    }
}

/// A table that somebody has switched off holds everything, and no packet sees it.
#[tokio::test]
async fn a_table_that_was_switched_off_is_switched_on_or_said_to_be_off() {
    for table in [Table::Mangle, Table::Nat, Table::Filter] {
        let (host, mut kept) = (host(), Kept::default());
        assert!(!pass(&host, &mut kept, &one()).await.failed());
        host.switch_off(Family::V4, table);
        kept.doubt_all();
        host.fail_next(Call::Wake, boom());
        let outcome = pass(&host, &mut kept, &one()).await;
        assert!(
            !outcome.complete && outcome.troubles[0].message.contains("boom"),
            "{:?}",
            outcome.troubles
        );
        assert_eq!(outcome.fenced, table != Table::Mangle);
        assert!(outcome.drift[0].what.contains("switched off"), "{:?}", outcome.drift);
        let before = host.writes();
        let outcome = pass(&host, &mut kept, &one()).await;
        assert!(!outcome.failed(), "{:?}", outcome.troubles);
        let made: Vec<Write> = host.journal().split_off(before);
        assert!(matches!(made[..], [Write::Woke(Family::V4, which)] if which == table), "{made:?}");
        assert_eq!(state(&host), converged(&[one()]).await);
        let before = host.writes();
        kept.doubt_all();
        assert!(!pass(&host, &mut kept, &one()).await.failed());
        assert_eq!(host.writes(), before, "once");
    }
}
