#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use crate::netfilter::Hook;

const RULE: &str = r#"-s 10.0.0.1/32 -m comment --comment "stagenet:0123456789ab:default/a" -j DROP"#;
const HOOK: &str = r#"-m comment --comment "stagenet" -j SNET-FWD"#;

fn fence() -> String {
    format!("*mangle\n:SNET-FWD - [0:0]\n-A SNET-FWD {RULE}\n-I FORWARD 1 {HOOK}\nCOMMIT\n")
}

fn iface(name: &str) -> IfName {
    IfName::new(name).unwrap()
}

fn route(destination: &str, via: Via) -> Route {
    Route {
        table: 254,
        destination: destination.parse().unwrap(),
        via,
    }
}

fn boom() -> HostError {
    HostError::Failed {
        action: "doing".to_owned(),
        said: "boom".to_owned(),
    }
}

#[tokio::test]
async fn restored_rules_are_read_back_by_hash_and_position() {
    let mut host = FakeHost::new();
    host.edit_chain(Family::V4, Table::Mangle, "FORWARD", |rules| rules.push("-j ACCEPT".to_owned()));
    host.restore(Family::V4, &fence()).await.unwrap();
    let seen = host.read_table(Family::V4, Table::Mangle, None).await.unwrap();
    assert_eq!(
        seen.chains["SNET-FWD"],
        [Some(crate::netfilter::dump::RuleHash("0123456789ab".to_owned()))]
    );
    assert_eq!(seen.hooks[&Hook::Forward].jumps, [(1, ChainName::new("FWD").unwrap().into())]);
    assert_eq!(seen.hooks.len(), 1);
    host.edit_chain(Family::V4, Table::Mangle, "SNET-FWD", |rules| {
        rules.insert(0, "-j ACCEPT".to_owned());
    });
    let seen = host.read_table(Family::V4, Table::Mangle, None).await.unwrap();
    assert_eq!(seen.chains["SNET-FWD"][0], None);
    assert!(host.read_table(Family::V6, Table::Mangle, None).await.unwrap().chains.is_empty());
}

#[tokio::test]
async fn a_refused_line_leaves_its_table_untouched_and_earlier_tables_done() {
    let mut host = FakeHost::new();
    host.refuse("-j MASQUERADE", "No such file or directory");
    let text = format!("{}*nat\n:SNET-SNAT - [0:0]\n-A SNET-SNAT -j MASQUERADE\nCOMMIT\n", fence());
    let error = host.restore(Family::V4, &text).await.unwrap_err();
    let HostError::RestoreRejected { table, line, text, .. } = error else {
        panic!("{error}")
    };
    assert_eq!((table.as_str(), line, text.as_str()), ("nat", 8, "-A SNET-SNAT -j MASQUERADE"));
    assert!(host.rules(Family::V4, Table::Mangle, "SNET-FWD").is_some());
    assert_eq!(host.rules(Family::V4, Table::Nat, "SNET-SNAT"), None);
    assert_eq!(host.writes(), 0);
}

#[tokio::test]
async fn what_a_kernel_would_refuse_is_refused() {
    for (text, line) in [
        ("*mangle\n-A SNET-FWD -j DROP\nCOMMIT\n", 2),
        ("*mangle\n:SNET-FWD - [0:0]\n-A SNET-FWD -j SNET-OTHER\nCOMMIT\n", 3),
        ("*mangle\n:FORWARD ACCEPT [0:0]\nCOMMIT\n", 2),
        ("*mangle\n-D FORWARD -j ACCEPT\nCOMMIT\n", 2),
        ("*mangle\n-I FORWARD 2 -j ACCEPT\nCOMMIT\n", 2),
        (
            "*mangle\n:SNET-A - [0:0]\n:SNET-B - [0:0]\n-A SNET-B -g SNET-A\n-X SNET-A\nCOMMIT\n",
            5,
        ),
        ("*mangle\n:SNET-A - [0:0]\n-A SNET-A -j DROP\n-X SNET-A\nCOMMIT\n", 4),
        ("*mangle\n-Z FORWARD\nCOMMIT\n", 2),
        ("*mangle\n:SNET-A - [0:0]\n", 2),
        ("*security\nCOMMIT\n", 1),
    ] {
        let mut host = FakeHost::new();
        match host.restore(Family::V4, text).await {
            Err(HostError::RestoreRejected { line: at, .. }) => assert_eq!(at, line, "{text}"),
            other => panic!("{text}: {other:?}"),
        }
        assert_eq!(host.dump(), "", "{text}");
    }
}

#[tokio::test]
async fn chains_are_replaced_and_removed_as_a_whole() {
    let mut host = FakeHost::new();
    host.restore(Family::V4, &fence()).await.unwrap();
    host.restore(Family::V4, "*mangle\n:SNET-FWD - [0:0]\n-A SNET-FWD -j RETURN\nCOMMIT\n")
        .await
        .unwrap();
    assert_eq!(host.rules(Family::V4, Table::Mangle, "SNET-FWD").unwrap(), ["-j RETURN"]);
    host.restore(
        Family::V4,
        &format!("*mangle\n:SNET-FWD - [0:0]\n-D FORWARD {HOOK}\n-X SNET-FWD\nCOMMIT\n"),
    )
    .await
    .unwrap();
    assert_eq!(
        host.read_table(Family::V4, Table::Mangle, None).await.unwrap(),
        ObservedTable::default()
    );
}

#[tokio::test]
async fn failures_come_when_asked_for_and_have_no_effect() {
    let mut host = FakeHost::new();
    host.fail_at(2, boom());
    host.interfaces().await.unwrap();
    assert_eq!(host.restore(Family::V4, &fence()).await, Err(boom()));
    host.fail_next(Call::Restore, boom());
    assert_eq!(host.restore(Family::V4, &fence()).await, Err(boom()));
    host.break_down(Call::ReadLinks, boom());
    assert!(host.read_links().await.is_err() && host.read_links().await.is_err());
    host.hold_lock("firewalld (pid 7)");
    let held = host.restore(Family::V4, &fence()).await.unwrap_err();
    assert!(held.to_string().contains("by firewalld (pid 7)"), "{held}");
    assert_eq!((host.writes(), host.dump().as_str()), (0, ""));
    host.mend();
    host.restore(Family::V4, &fence()).await.unwrap();
    host.read_links().await.unwrap();
    assert_eq!((host.writes(), host.count(Call::Restore)), (1, 4));
}

#[tokio::test]
async fn links_keep_foreign_routes_and_remember_what_was_found() {
    let mut host = FakeHost::new();
    host.add_interface("eth1", InterfaceFacts::default());
    host.add_foreign_route(route("192.0.2.0/24", Via::Gateway(IpAddr::from([10, 0, 0, 1]))));
    let eth1 = iface("eth1");
    let before = host.settings(&eth1).unwrap();
    let on = LinkSettings {
        forwarding: Some(true),
        ..LinkSettings::default()
    };
    let errors = host
        .change_links(&[
            LinkChange::AddRoute(route("192.0.2.0/24", Via::Loopback)),
            LinkChange::AddRoute(route("192.0.2.3/32", Via::Loopback)),
            LinkChange::Set(iface("eth7"), on.clone()),
            LinkChange::Set(eth1.clone(), on),
        ])
        .await
        .unwrap_err();
    assert_eq!(errors.len(), 2, "{errors:?}");
    let seen = host.read_links().await.unwrap();
    assert_eq!(seen.routes.len(), 1);
    assert_eq!(seen.links[&eth1].forwarding, Some(true));
    assert_eq!(seen.touched, BTreeSet::from([eth1.clone()]));
    host.change_links(&[LinkChange::PutBack(eth1.clone())]).await.unwrap();
    assert_eq!(host.settings(&eth1).unwrap(), before);
    assert!(host.read_links().await.unwrap().touched.is_empty());
}

#[tokio::test]
async fn meddling_is_told_and_our_own_restore_is_not() {
    let mut host = FakeHost::new();
    let mut events = host.events();
    host.restore(Family::V4, &fence()).await.unwrap();
    assert!(events.try_recv().is_err());
    host.flush(Family::V4, Table::Mangle);
    let chains = vec!["mangle/FORWARD".to_owned(), "mangle/SNET-FWD".to_owned()];
    assert_eq!(
        events.try_recv().unwrap(),
        HostEvent::Tables {
            by: Some("iptables (pid 4711)".to_owned()),
            chains
        }
    );
    host.flush(Family::V4, Table::Mangle);
    assert!(events.try_recv().is_err());
    let to_lo = route("192.0.2.3/32", Via::Loopback);
    host.change_links(&[LinkChange::AddRoute(to_lo.clone())]).await.unwrap();
    host.remove_route(&to_lo);
    assert_eq!(events.try_recv().unwrap(), HostEvent::RouteGone(to_lo.table, to_lo.destination));
}

#[tokio::test]
async fn strangers_answer_and_announcements_are_remembered() {
    let mut host = FakeHost::new();
    let taken = IpAddr::from([192, 0, 2, 3]);
    host.answer(taken, Some("02:00:00:00:00:01"));
    host.answer(IpAddr::from([192, 0, 2, 9]), Some("02:00:00:00:00:02"));
    let elsewhere = IpAddr::from([192, 0, 2, 5]);
    host.answer_on(&iface("eth1"), elsewhere, Some("02:00:00:00:00:03"));
    let asked = BTreeMap::from([(iface("eth0"), BTreeSet::from([taken, elsewhere, IpAddr::from([192, 0, 2, 4])]))]);
    let there = ProxyNeighbour {
        interface: iface("eth0"),
        address: taken,
    };
    assert_eq!(
        host.probe(&asked).await.unwrap(),
        BTreeMap::from([(there, "02:00:00:00:00:01".to_owned())])
    );
    host.announce(&asked).await.unwrap();
    assert_eq!(host.journal().len(), 3);
}
