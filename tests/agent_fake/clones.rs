//! Networks with the same inside on one node: they come and go, and whatever fails, the kernel ends up as planned and identifiers stay whose they were.

#![allow(clippy::no_effect_replace, clippy::unnecessary_wraps)]

use std::sync::Arc;

use stagenet::agent::kept::Kept;
use stagenet::agent::source::{Snapshot, directory};
use stagenet::agent::{cleanup, pass};
use stagenet::api::network::Isolation;
use stagenet::api::reasons;
use stagenet::host::LinkChange;
use stagenet::host::fake::{Call, FakeHost, Write};
use stagenet::netfilter::{Family, Table};
use stagenet::plan::{InterfaceFacts, MappingState, TABLE_MAIN};

use crate::{boom, host, interface, settings};

/// A clone: the inside of all is the same, the pools are their own.
fn clone(name: &str, inside: &str, pool: u8) -> String {
    format!(
        "---
apiVersion: stagenet.dev/v1alpha1
kind: StagingNetwork
metadata: {{name: {name}}}
spec:
  gateway: {{nodeSelector: {{}}}}
  outside: {{interface: eth0, addresses: [172.16.{pool}.0/24]}}
  inside: {{interface: {inside}, addresses: [192.168.200.0/24], gatewayAddresses: [192.168.200.254]}}
---
apiVersion: stagenet.dev/v1alpha1
kind: NatMapping
metadata: {{name: {name}-vm03, namespace: default}}
spec:
  networkRef: {{name: {name}}}
  virtual: {{address: 172.16.{pool}.3}}
  target: {{address: 192.168.200.3}}
"
    )
}

fn first() -> String {
    clone("a", "eth1", 1)
}

fn second() -> String {
    clone("b", "eth2", 2)
}

fn third() -> String {
    clone("c", "eth3", 3)
}

/// A folder of manifests and a state directory.
struct Files {
    dir: tempfile::TempDir,
    state: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            state: tempfile::tempdir().unwrap(),
        }
    }

    fn write(&self, texts: &[String]) {
        std::fs::write(self.dir.path().join("all.yaml"), texts.concat()).unwrap();
    }

    fn directory(&self) -> directory::Directory {
        directory::read(self.dir.path(), self.state.path()).unwrap()
    }

    fn snapshot(&self, texts: &[String]) -> Arc<Snapshot> {
        self.write(texts);
        let snapshot = self.directory().snapshot();
        assert_eq!(snapshot.problems, []);
        Arc::new(snapshot)
    }
}

fn given(snapshot: &Snapshot) -> Vec<(String, Option<Isolation>)> {
    let one =
        |n: &std::sync::Arc<stagenet::api::StagingNetwork>| (n.metadata.name.clone().unwrap(), n.status.as_ref().and_then(|s| s.isolation));
    snapshot.networks.iter().map(one).collect()
}

#[allow(clippy::unnecessary_wraps)] // as a status has it
fn isolation(identifier: u32, zone: u16) -> Option<Isolation> {
    Some(Isolation { identifier, zone })
}

/// The interfaces have no subnet of their own: what is connected to one would be in the way of the others.
fn gateway() -> FakeHost {
    let host = host();
    for (index, name) in (3..).zip(["eth1", "eth2", "eth3"]) {
        let bare = InterfaceFacts {
            index,
            mtu: 1500,
            up: true,
            ..InterfaceFacts::default()
        };
        host.add_interface(name, bare);
    }
    host
}

async fn pass(host: &FakeHost, kept: &mut Kept, snapshot: &Snapshot) -> stagenet::agent::outcome::Outcome {
    pass::run(&mut host.clone(), kept, snapshot, &settings()).await
}

fn state(host: &FakeHost) -> String {
    let settings: Vec<_> = ["eth0", "eth1", "eth2", "eth3"].map(|i| host.settings(&interface(i))).into();
    format!(
        "{}\n{:?}\n{:?}\n{:?}\n{:?}\n{settings:?}",
        host.dump(),
        host.routes(),
        host.policy_rules(),
        host.proxies(),
        host.addresses()
    )
}

/// Follows every effect: while raw gives a mark, the routing table and the policy rule of that mark are there.
fn assert_labels_are_led(host: &FakeHost) {
    let (mut tables, mut marked) = (0_i32, false);
    for write in host.journal() {
        match &write {
            Write::Link(LinkChange::AddRule(rule)) if rule.mark.is_some_and(|m| m.value != 0) => tables += 1,
            Write::Link(LinkChange::RemoveRule(rule)) if rule.mark.is_some_and(|m| m.value != 0) => {
                tables -= 1;
                assert!(tables > 0 || !marked, "the last table goes while packets bear marks");
            }
            Write::Restore { family: Family::V4, text } if text.contains("*raw") => {
                marked = text.contains("-I PREROUTING") || (marked && !text.contains("-X SNET-RAW"));
                assert!(tables > 0 || !marked, "marks without a table");
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_clone_comes_and_goes_and_the_first_keeps_its_zone() {
    let files = Files::new();
    let (host, mut kept) = (gateway(), Kept::default());
    let before = state(&host);
    let plain = pass(&host, &mut kept, &files.snapshot(&[first()])).await;
    assert!(plain.complete && host.policy_rules().is_empty(), "{:?}", plain.troubles);
    assert!(
        host.rules(Family::V4, Table::Raw, "PREROUTING").is_none(),
        "raw is not even touched"
    );
    let both = files.snapshot(&[first(), second()]);
    assert_eq!(given(&both), [("a".to_owned(), isolation(1, 0)), ("b".to_owned(), isolation(2, 2))]);
    let outcome = pass(&host, &mut kept, &both).await;
    assert!(outcome.complete, "{:?}", outcome.troubles);
    assert!(
        host.routes().iter().any(|route| route.table != TABLE_MAIN),
        "{:?} {:?}",
        outcome.plan.networks,
        outcome.mappings
    );
    let writes = host.writes();
    assert_eq!(pass(&host, &mut Kept::default(), &both).await.label(), "unchanged");
    assert_eq!(host.writes(), writes);

    let outcome = pass(&host, &mut kept, &files.snapshot(&[first()])).await;
    assert!(outcome.complete, "{:?}", outcome.troubles);
    // Its bridge is still there, with the same subnet: the first is kept apart from it.
    assert!(host.routes().iter().all(|route| route.table != 211_002), "{:?}", host.routes());
    pass(&host, &mut kept, &both).await;
    let cleaned = cleanup::run(&mut [&mut host.clone()], false, 0x2000).await;
    assert_eq!(cleaned.errors, Vec::<String>::new());
    assert_eq!(state(&host).replace("V4 raw :OUTPUT\nV4 raw :PREROUTING\n", ""), before);
    assert_labels_are_led(&host);
}

/// A clone added, removed, and changed for another that takes its place; a failure at every call, with and without a restart.
#[tokio::test]
async fn a_failure_at_any_call_keeps_labels_led_and_heals() {
    let files = Files::new();
    let (one, both) = (files.snapshot(&[first()]), files.snapshot(&[first(), second()]));
    let other = files.snapshot(&[first(), third()]);
    let gone = files.snapshot(&[second()]);
    for (name, from, to) in [
        ("add", &one, &both),
        ("remove", &both, &one),
        ("change", &both, &other),
        ("first goes", &both, &gone),
    ] {
        let (clean, mut kept) = (gateway(), Kept::default());
        assert!(!pass(&clean, &mut kept, from).await.failed());
        assert!(!pass(&clean, &mut kept, to).await.failed());
        let wanted = state(&clean);
        assert_eq!(clean.policy_rules().is_empty(), name == "remove", "{name}: networks are isolated");
        let mut failures = 0;
        for number in 1.. {
            let mut hit = false;
            for restart in [false, true] {
                let (host, mut kept) = (gateway(), Kept::default());
                pass(&host, &mut kept, from).await;
                let calls = host.calls();
                host.fail_at(number, boom());
                pass(&host, &mut kept, to).await;
                hit |= host.calls() >= calls + number;
                assert_labels_are_led(&host);
                host.mend();
                if restart {
                    kept = Kept::default();
                }
                let healed = pass(&host, &mut kept, to).await;
                assert!(!healed.failed(), "{name}, call {number}, restart {restart}: {:?}", healed.troubles);
                assert_eq!(state(&host), wanted, "{name}, call {number}, restart {restart}");
                assert_labels_are_led(&host);
            }
            if !hit {
                break;
            }
            failures += 1;
        }
        assert!(failures >= 6, "{name}: only {failures} calls were made to fail");
    }
}

#[tokio::test]
async fn identifiers_are_kept_over_restarts_and_free_when_nothing_of_them_is_left() {
    let files = Files::new();
    let both = files.snapshot(&[first(), second()]);
    let expected = given(&both);
    assert_eq!(given(&files.snapshot(&[second(), first()])).len(), 2);
    assert_eq!(
        given(&files.directory().snapshot()).iter().filter(|g| expected.contains(g)).count(),
        2,
        "after a restart"
    );

    // The identifier of a network that is gone from the files is nobody's before a pass was completed without it.
    let changed = files.snapshot(&[first(), third()]);
    assert_eq!(given(&changed)[1], ("c".to_owned(), isolation(3, 3)));
    assert_eq!(
        given(&files.snapshot(&[first(), second()]))[1],
        ("b".to_owned(), isolation(2, 2)),
        "it came back in time"
    );

    let alone = files.snapshot(&[first()]);
    let (host, mut kept) = (gateway(), Kept::default());
    let mut report = stagenet::agent::runner::Report {
        outcome: pass(&host, &mut kept, &alone).await,
        snapshot: alone,
        by: None,
        contended: false,
    };
    report.outcome.complete = false;
    let mut directory = files.directory();
    directory.done(&report);
    files.write(&[first(), clone("d", "eth3", 4)]);
    assert_eq!(
        given(&files.directory().snapshot())[1].1,
        isolation(4, 4),
        "2 and 3 may be in the kernel yet"
    );
    files.write(&[first()]);
    report.outcome.complete = true;
    let mut directory = files.directory();
    directory.done(&report);
    assert_eq!(given(&files.snapshot(&[first(), third()]))[1].1, isolation(2, 2));
}

#[test]
fn a_damaged_record_is_said_and_never_gives_one_identifier_twice() {
    let files = Files::new();
    files.snapshot(&[first(), second()]);
    let record = files.state.path().join("identifiers.json");
    for damage in [
        "{",
        r#"{"networks":{"a":{"identifier":1,"zone":0},"b":{"identifier":1,"zone":1}}}"#,
        r#"{"networks":{"a":{"identifier":1,"zone":7}}}"#,
    ] {
        std::fs::write(&record, damage).unwrap();
        let snapshot = files.directory().snapshot();
        assert_eq!(snapshot.problems.len(), 1, "{:?}", snapshot.problems);
        assert!(snapshot.problems[0].message.contains("damaged"), "{:?}", snapshot.problems);
        assert_eq!(
            given(&snapshot),
            [("a".to_owned(), isolation(1, 0)), ("b".to_owned(), isolation(2, 2))]
        );
        assert_eq!(files.directory().snapshot().problems, [], "it is whole again");
    }
}

#[test]
fn an_identifier_that_cannot_be_recorded_is_not_in_force() {
    let files = Files::new();
    files.write(&[first(), second()]);
    let file = files.state.path().join("file");
    std::fs::write(&file, "").unwrap();
    let snapshot = directory::read(files.dir.path(), &file.join("state")).unwrap().snapshot();
    assert!(given(&snapshot).iter().all(|(_, isolation)| isolation.is_none()));
    assert!(
        snapshot.problems[0].message.contains("recording the networks' identifiers"),
        "{:?}",
        snapshot.problems
    );
}

/// A mapping that machines of a clone dial within their own prefix: production's name server, say, under the address that it has for them.
fn dialled_inside(network: &str) -> String {
    format!(
        "---
apiVersion: stagenet.dev/v1alpha1
kind: NatMapping
metadata: {{name: {network}-dns, namespace: default}}
spec:
  networkRef: {{name: {network}}}
  side: Inside
  virtual: {{address: 192.168.200.53}}
  target: {{address: 10.9.9.53}}
"
    )
}

/// Clones have one virtual address inside. That a machine of one of them has it says nothing about the other.
#[tokio::test]
async fn an_address_that_somebody_has_in_one_clone_is_free_in_the_other() {
    let files = Files::new();
    let (host, mut kept) = (gateway(), Kept::default());
    let source = |text: String, pool: u8| {
        let pool = format!("addresses: [172.16.{pool}.0/24]");
        let with = format!(
            "{pool}, sourceAddress: {}",
            pool.split(['[', '/']).nth(1).unwrap().replace(".0", ".250")
        );
        text.replacen(&pool, &with, 1)
    };
    let texts = [source(first(), 1), source(second(), 2), dialled_inside("a"), dialled_inside("b")];
    let address = "192.168.200.53".parse().unwrap();
    host.answer_on(&interface("eth1"), address, Some("02:aa:00:00:00:01"));
    let outcome = pass(&host, &mut kept, &files.snapshot(&texts)).await;
    let state_of = |outcome: &stagenet::agent::outcome::Outcome, name: &str| {
        let (_, state) = outcome.mappings.iter().find(|(key, _)| &*key.name == name).unwrap();
        match state {
            MappingState::Planned { .. } => Ok(()),
            MappingState::Failed(why) => Err((why.reason, why.message.clone())),
        }
    };
    let (reason, message) = state_of(&outcome, "a-dns").unwrap_err();
    assert_eq!(reason, reasons::ADDRESS_IN_USE);
    assert!(message.contains("02:aa:00:00:00:01"), "{message}");
    assert_eq!(state_of(&outcome, "b-dns"), Ok(()));
    let answered = |on: &str| {
        let proxies = host.proxies();
        proxies
            .iter()
            .any(|proxy| proxy.interface == interface(on) && proxy.address == address)
    };
    assert!(!answered("eth1") && answered("eth2"));

    host.answer_on(&interface("eth1"), address, None);
    kept.doubt_all();
    // The first clone's interface cannot be asked just now.
    host.fail_next(Call::Probe, boom());
    kept.doubt_all();
    let outcome = pass(&host, &mut kept, &files.snapshot(&texts)).await;
    assert_eq!(state_of(&outcome, "b-dns"), Ok(()));
    kept.doubt_all();
    let outcome = pass(&host, &mut kept, &files.snapshot(&texts)).await;
    assert_eq!((state_of(&outcome, "a-dns"), state_of(&outcome, "b-dns")), (Ok(()), Ok(())));
    assert!(answered("eth1") && answered("eth2"));
}
