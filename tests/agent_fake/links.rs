//! Interfaces, bridges and neighbours: what comes late, changes its master, or has an address already.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::jiff::Timestamp;
use stagenet::agent::kept::Kept;
use stagenet::agent::report::file::{self, Standing};
use stagenet::agent::runner::Report;
use stagenet::api::conditions;
use stagenet::api::reasons::{self, types};
use stagenet::host::Backend;
use stagenet::host::fake::{Call, FakeHost, Write};
use stagenet::netfilter::{Family, Table};
use stagenet::plan::{InterfaceFacts, KernelFacts, MappingState, NodeFacts};

use crate::{NETWORK, assert_never_open, boom, converged, facts, host, interface, mapping, one, pass, snapshot, state, two};

#[tokio::test]
async fn an_interface_may_appear_later() {
    let (host, mut kept) = (host(), Kept::default());
    host.remove_interface("eth1");
    let outcome = pass(&host, &mut kept, &one()).await;
    assert!(outcome.complete, "{:?}", outcome.troubles);
    assert_eq!(
        outcome.plan.networks["segment-b"].problem.as_ref().unwrap().reason,
        reasons::INTERFACE_MISSING
    );
    assert!(host.proxies().is_empty());
    host.add_interface("eth1", facts(3, "192.168.200.2/24"));
    kept.doubt_interfaces();
    pass(&host, &mut kept, &one()).await;
    assert_eq!(host.proxies().len(), 1);
    assert_never_open(&host);
}

#[tokio::test]
async fn an_inside_interface_may_become_a_port_and_be_released() {
    let (host, mut kept) = (host(), Kept::default());
    pass(&host, &mut kept, &one()).await;
    let served = state(&host);
    host.add_interface("br1", InterfaceFacts::default());
    host.enslave("eth1", Some("br1"));
    kept.doubt_interfaces();
    let outcome = pass(&host, &mut kept, &one()).await;
    assert!(outcome.complete, "{:?}", outcome.troubles);
    assert_eq!(
        outcome.plan.networks["segment-b"].problem.as_ref().unwrap().reason,
        reasons::INTERFACE_ENSLAVED
    );
    assert!(host.proxies().is_empty() && host.dump().contains("-i br1 ") && host.dump().contains("-i eth1 "));
    host.enslave("eth1", None);
    kept.doubt_interfaces();
    pass(&host, &mut kept, &one()).await;
    assert_eq!(state(&host), served);
    assert_never_open(&host);
}

#[tokio::test]
async fn what_stays_closed_without_a_network_is_followed_to_its_bridge() {
    let (host, mut kept) = (host(), Kept::default());
    let network = NETWORK.replace("interface: eth1, ", "");
    assert_ne!(network, NETWORK);
    let found = snapshot(&network);
    pass(&host, &mut kept, &found).await;
    host.add_interface("br1", InterfaceFacts::default());
    host.add_interface("eth1", InterfaceFacts::default());
    host.enslave("eth1", Some("br1"));
    kept.doubt_interfaces();
    let outcome = pass(&host, &mut kept, &found).await;
    assert_eq!(outcome.held, BTreeSet::from([interface("br1"), interface("eth1")]));
    assert!(host.dump().contains("-i br1 "));
}

#[tokio::test]
async fn an_address_that_somebody_has_is_not_taken() {
    let (host, mut kept) = (host(), Kept::default());
    let taken = IpAddr::from([192, 168, 100, 4]);
    host.answer(taken, Some("02:aa:00:00:00:01"));
    let outcome = pass(&host, &mut kept, &two()).await;
    assert!(outcome.complete);
    let MappingState::Failed(why) = outcome.mappings.values().nth(1).unwrap() else {
        panic!()
    };
    assert_eq!(why.reason, reasons::ADDRESS_IN_USE);
    assert!(why.message.contains("02:aa:00:00:00:01"), "{}", why.message);
    assert_eq!(state(&host), converged(&[one()]).await);
    assert!(
        !host.journal().iter().any(|w| matches!(w, Write::Announced(_, a) if *a == taken)),
        "never announced"
    );

    let probes = host.count(Call::Probe);
    pass(&host, &mut kept, &two()).await;
    assert_eq!(host.count(Call::Probe), probes, "not asked again before the slow check");
    host.answer(taken, None);
    kept.doubt_all();
    pass(&host, &mut kept, &two()).await;
    assert_eq!(state(&host), converged(&[two()]).await);
}

/// The kernel forgets proxy neighbours of a link that goes down, where nobody can be asked. What an agent found standing when it started was asked for by the one before it.
#[tokio::test]
async fn what_stood_is_not_asked_for_again() {
    let (host, mut kept) = (host(), Kept::default());
    assert!(pass(&host, &mut kept, &one()).await.complete);
    let standing = host.proxies();
    let mut kept = Kept::default();
    assert!(pass(&host, &mut kept, &one()).await.complete);
    kept.doubt_all();
    link(&host, false);
    for proxy in &standing {
        host.remove_proxy(proxy);
    }
    host.fail_next(Call::Probe, boom());
    let outcome = pass(&host, &mut kept, &one()).await;
    assert!(outcome.complete && !outcome.failed(), "{:?}", outcome.troubles);
    assert_eq!(host.proxies(), standing);
    host.mend();

    // Once it is back they are asked for: somebody may have taken them. What cannot be asked is asked again by the next pass.
    link(&host, true);
    kept.doubt_interfaces();
    host.fail_next(Call::Probe, boom());
    assert!(pass(&host, &mut kept, &one()).await.failed());
    let taken = IpAddr::from([192, 168, 100, 3]);
    host.answer(taken, Some("02:00:00:00:00:99"));
    let outcome = pass(&host, &mut kept, &one()).await;
    let [MappingState::Failed(why)] = outcome.mappings.values().collect::<Vec<_>>()[..] else {
        panic!("{:?}", outcome.mappings)
    };
    assert_eq!(why.reason, reasons::ADDRESS_IN_USE);
    assert!(host.proxies().is_empty());
}

/// The outside link goes down or comes up.
fn link(host: &FakeHost, up: bool) {
    let mut facts = facts(2, "192.168.100.2/24");
    facts.up = up;
    host.add_interface("eth0", facts);
}

/// Tables of the other variant of the tools are other tables: what is known of the ones says nothing of the others.
#[tokio::test]
async fn another_variant_of_the_tools_is_read_from_nothing() {
    let (host, mut kept) = (host(), Kept::default());
    assert!(pass(&host, &mut kept, &one()).await.complete);
    let served = state(&host);
    host.set_backend(Some(Backend::Legacy));
    for table in Table::ALL {
        host.flush(Family::V4, table);
        host.flush(Family::V6, table);
    }
    let outcome = pass(&host, &mut kept, &one()).await;
    assert!(outcome.complete && !outcome.drift.is_empty(), "{:?}", outcome.troubles);
    for line in served.lines().filter(|line| line.contains("SNET")) {
        assert!(host.dump().contains(line), "{line}");
    }
}

/// The gateway that served the network until now answers until it has heard of the move.
#[tokio::test]
async fn another_gateway_of_ours_is_nobody_else() {
    let (host, mut kept) = (host(), Kept::default());
    host.answer(IpAddr::from([192, 168, 100, 3]), Some("02:AA:00:00:00:07"));
    let mut snapshot = (*one()).clone();
    let mut other = NodeFacts {
        name: "vm09".to_owned(),
        labels: Some(BTreeMap::new()),
        ..NodeFacts::default()
    };
    other.interfaces.insert("eth0".to_owned(), facts(7, "192.168.100.9/24"));
    other.interfaces.get_mut("eth0").unwrap().mac = "02:aa:00:00:00:07".to_owned();
    snapshot.others = vec![other.into()];
    let outcome = pass(&host, &mut kept, &snapshot).await;
    assert!(
        outcome.mappings.values().all(|s| matches!(s, MappingState::Planned { .. })),
        "{:?}",
        outcome.mappings
    );
    assert_eq!(host.proxies().len(), 1);
}

#[tokio::test]
async fn what_cannot_be_asked_for_is_not_attracted() {
    let (host, mut kept) = (host(), Kept::default());
    host.fail_next(Call::Probe, boom());
    let outcome = pass(&host, &mut kept, &one()).await;
    assert!(outcome.failed());
    assert!(host.proxies().is_empty());
    let MappingState::Failed(why) = outcome.mappings.values().next().unwrap() else {
        panic!()
    };
    assert_eq!(why.reason, reasons::PROBE_FAILED);
    assert!(!pass(&host, &mut kept, &one()).await.failed());
    assert_eq!(host.proxies().len(), 1);
}

/// What the kernel holds stays as it is; only what is said of it changes, there and back.
#[tokio::test]
async fn a_link_that_is_down_is_not_ready_and_takes_nothing_away() {
    let (host, mut kept) = (host(), Kept::default());
    let ready = async |kept: &mut Kept| {
        kept.doubt_interfaces();
        let report = Report {
            outcome: pass(&host, kept, &one()).await,
            snapshot: one(),
            by: None,
            contended: false,
        };
        let standing = file::standing(&report, &Standing::default(), Timestamp::UNIX_EPOCH);
        let status = standing.statuses.mappings.into_values().next().unwrap();
        let find = |kind| {
            let found = conditions::find(&status.conditions, kind).unwrap();
            (found.status.clone(), found.reason.clone(), found.message.clone())
        };
        (find(types::PROGRAMMED), find(types::READY))
    };
    let (_, is) = ready(&mut kept).await;
    assert_eq!(is.0, "True");
    let writes = host.writes();

    let mut down = facts(3, "192.168.200.2/24");
    down.up = false;
    host.add_interface("eth1", down);
    let (programmed, is) = ready(&mut kept).await;
    assert_eq!(
        (programmed.0.as_str(), is.0.as_str(), is.1.as_str()),
        ("True", "False", reasons::LINK_DOWN)
    );
    assert!(is.2.contains("the inside interface eth1 is down"), "{}", is.2);

    host.add_interface("eth1", facts(3, "192.168.200.2/24"));
    assert_eq!(ready(&mut kept).await.1.0, "True");
    assert_eq!(host.writes(), writes, "rules and routes stay as they are");
}

#[tokio::test]
async fn a_helper_that_the_kernel_lacks_is_said_and_the_mapping_works_without() {
    let (host, mut kept) = (host(), Kept::default());
    host.set_kernel(KernelFacts {
        helpers: Some(BTreeSet::new()),
        ..KernelFacts::default()
    });
    let text = format!(
        "{NETWORK}  allowedHelpers: [ftp]\n{}  helpers: [{{name: ftp, port: 21}}]\n",
        crate::mapping("vm03", 3, 3)
    );
    let report = Report {
        outcome: pass(&host, &mut kept, &snapshot(&text)).await,
        snapshot: snapshot(&text),
        by: None,
        contended: false,
    };
    let standing = file::standing(&report, &Standing::default(), Timestamp::UNIX_EPOCH);
    assert_eq!(host.proxies().len(), 1, "{:?}", report.outcome.mappings);
    assert_eq!(standing.node.networks[0].programmed, 1);
    assert_eq!(standing.node.failures[0].reason, reasons::HELPER_MISSING);
    let status = standing.statuses.mappings.into_values().next().unwrap();
    let words: Vec<String> = status.conditions.iter().map(|c| format!("{}={}", c.type_, c.status)).collect();
    assert_eq!(
        words,
        [
            "Accepted=True",
            "ResolvedRefs=False",
            "Programmed=True",
            "Ready=False",
            "Stalled=True"
        ]
    );
}

/// Two networks, two interfaces outside: what cannot be asked on one is asked on the other, and each mapping is told of its own.
#[tokio::test]
async fn an_interface_that_cannot_be_asked_on_spares_the_others() {
    let (host, mut kept) = (host(), Kept::default());
    host.add_interface("eth2", facts(4, "172.16.0.2/24"));
    host.add_interface("eth3", facts(5, "10.9.0.2/24"));
    let second = NETWORK
        .replace("segment-b", "segment-c")
        .replace("interface: eth0", "interface: eth2")
        .replace("192.168.100.0/24", "172.16.0.0/24")
        .replace("interface: eth1", "interface: eth3")
        .replace(
            "addresses: [192.168.200.0/24], gatewayAddresses: [192.168.200.254]",
            "addresses: [10.9.0.0/24]",
        );
    let theirs = mapping("vm09", 9, 9)
        .replace("segment-b", "segment-c")
        .replace("192.168.100.9", "172.16.0.9")
        .replace("192.168.200.9", "10.9.0.9");
    let both = snapshot(&format!("{NETWORK}---{second}{}{theirs}", mapping("vm03", 3, 3)));
    // All together, then eth0 alone; eth2 can be asked on.
    host.fail_next(Call::Probe, boom());
    host.fail_next(Call::Probe, boom());
    let outcome = pass(&host, &mut kept, &both).await;
    let states: Vec<_> = outcome.mappings.iter().map(|(key, state)| (&*key.name, state)).collect();
    let [("vm03", MappingState::Failed(why)), ("vm09", MappingState::Planned { .. })] = states.as_slice() else {
        panic!("{states:?}")
    };
    assert_eq!(why.reason, reasons::PROBE_FAILED);
    assert!(why.message.contains("eth0"), "{}", why.message);
    assert_eq!(
        host.proxies().iter().map(|proxy| proxy.interface.as_str()).collect::<Vec<_>>(),
        ["eth2"]
    );
    assert!(!pass(&host, &mut kept, &both).await.failed());
    assert_eq!(host.proxies().len(), 2);
}
