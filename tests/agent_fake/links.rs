//! Interfaces, bridges and neighbours: what comes late, changes its master, or has an address already.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use stagenet::agent::kept::Kept;
use stagenet::api::reasons;
use stagenet::host::fake::{Call, Write};
use stagenet::plan::{InterfaceFacts, MappingState, NodeFacts};

use crate::{NETWORK, assert_never_open, boom, converged, facts, host, interface, one, pass, snapshot, state, two};

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
    snapshot.others = vec![other];
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
