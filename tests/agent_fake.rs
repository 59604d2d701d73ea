//! The agent over a host in memory: it converges, writes nothing twice, survives a failure at every single call, and never has a translation or
//! forwarding without the fence.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::too_many_lines,
    clippy::format_collect,
    clippy::items_after_statements,
    clippy::duration_suboptimal_units,
    clippy::semicolon_if_nothing_returned
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use stagenet::agent::kept::Kept;
use stagenet::agent::outcome::Outcome;
use stagenet::agent::pass::{self, Settings};
use stagenet::agent::report::file::{Standing, standing};
use stagenet::agent::runner::{Report, Reports, Runner, RunnerOptions};
use stagenet::agent::source::Snapshot;
use stagenet::agent::{cleanup, source};
use stagenet::api::conditions;
use stagenet::api::decode::decode;
use stagenet::api::reasons::{self, types};
use stagenet::host::fake::{Call, FakeHost, Write};
use stagenet::host::{HostError, LinkChange};
use stagenet::netfilter::{Family, IfName, Table};
use stagenet::plan::{InterfaceFacts, LinkSettings, MappingState, NodeFacts};
use stagenet::telemetry::{Health, Metrics};

const NETWORK: &str = "
apiVersion: stagenet.dev/v1alpha1
kind: StagingNetwork
metadata: {name: segment-b}
spec:
  gateway: {nodeSelector: {}}
  outside: {interface: eth0, addresses: [192.168.100.0/24]}
  inside: {interface: eth1, addresses: [192.168.200.0/24], gatewayAddresses: [192.168.200.254]}
";

fn mapping(name: &str, from: u8, to: u8) -> String {
    format!(
        "---
apiVersion: stagenet.dev/v1alpha1
kind: NatMapping
metadata: {{name: {name}, namespace: default}}
spec:
  networkRef: {{name: segment-b}}
  virtual: {{address: 192.168.100.{from}}}
  target: {{address: 192.168.200.{to}}}
"
    )
}

fn snapshot(text: &str) -> Arc<Snapshot> {
    let read = decode([("test.yaml", text)]);
    assert_eq!(read.problems, []);
    Arc::new(Snapshot {
        networks: read.networks,
        mappings: read.mappings,
        ..Snapshot::default()
    })
}

fn nothing() -> Arc<Snapshot> {
    Arc::new(Snapshot::default())
}

fn one() -> Arc<Snapshot> {
    snapshot(&format!("{NETWORK}{}", mapping("vm03", 3, 3)))
}

fn two() -> Arc<Snapshot> {
    snapshot(&format!("{NETWORK}{}{}", mapping("vm03", 3, 3), mapping("vm04", 4, 4)))
}

fn moved() -> Arc<Snapshot> {
    snapshot(&format!("{NETWORK}{}", mapping("vm03", 3, 9)))
}

fn facts(index: u32, address: &str) -> InterfaceFacts {
    InterfaceFacts {
        index,
        mtu: 1500,
        up: true,
        mac: format!("02:00:00:00:00:0{index}"),
        addresses: BTreeSet::from([address.parse().unwrap()]),
        rp_filter: 0,
        master: None,
    }
}

fn host() -> FakeHost {
    let host = FakeHost::new();
    host.add_interface("eth0", facts(2, "192.168.100.2/24"));
    host.add_interface("eth1", facts(3, "192.168.200.2/24"));
    host.edit_chain(Family::V4, Table::Filter, "FORWARD", |rules| rules.push("-j DROP".to_owned()));
    host.edit_chain(Family::V4, Table::Nat, "POSTROUTING", |rules| {
        rules.push("-o eth9 -j MASQUERADE".to_owned());
    });
    // The kernel has all tables once a tool has looked.
    host.edit_chain(Family::V4, Table::Mangle, "FORWARD", |_| ());
    host.edit_chain(Family::V6, Table::Mangle, "FORWARD", |_| ());
    host
}

fn settings() -> Settings {
    Settings {
        node: "vm02".to_owned(),
        connmark: 0x2000,
        nflog_group: 5,
    }
}

async fn pass(host: &FakeHost, kept: &mut Kept, snapshot: &Snapshot) -> Outcome {
    pass::run(&mut host.clone(), kept, snapshot, &settings()).await
}

/// Everything that a node holds, as one comparable value.
fn state(host: &FakeHost) -> String {
    let settings: Vec<_> = ["eth0", "eth1"].iter().map(|i| host.settings(&interface(i))).collect();
    format!(
        "{}\n{:?}\n{:?}\n{:?}\n{settings:?}",
        host.dump(),
        host.routes(),
        host.proxies(),
        host.addresses()
    )
}

fn interface(name: &str) -> IfName {
    IfName::new(name).unwrap()
}

fn boom() -> HostError {
    HostError::Failed {
        action: "doing it".to_owned(),
        said: "boom".to_owned(),
    }
}

/// Follows every write in order: translations, forwarding inside and what attracts traffic exist only while the fence stands.
fn assert_never_open(host: &FakeHost) {
    let (mut fence, mut nat, mut forwarding) = (false, false, false);
    for write in host.journal() {
        match &write {
            Write::Restore { family: Family::V4, text } => {
                let mangle = text.contains("*mangle");
                fence |= mangle && text.contains("-I FORWARD 1") && text.contains("SNET-FWD");
                if mangle && text.contains("-X SNET-FWD") {
                    fence = false;
                }
                if text.contains("*nat") {
                    nat = text.contains("-I PREROUTING") || (nat && !text.contains("-X SNET-DNAT"));
                }
            }
            Write::Link(LinkChange::Set(name, settings)) if name.as_str() == "eth1" => forwarding |= settings.forwarding == Some(true),
            Write::Link(LinkChange::PutBack(name)) if name.as_str() == "eth1" => forwarding = false,
            Write::Link(LinkChange::AddProxy(_) | LinkChange::AddAddress(_)) => {
                assert!(fence && nat, "attracting without fence or translation: {write:?}");
            }
            _ => {}
        }
        assert!(fence || !(nat || forwarding), "open after {write:?}");
    }
}

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

async fn converged(history: &[Arc<Snapshot>]) -> String {
    let (host, mut kept) = (host(), Kept::default());
    for snapshot in history {
        assert!(!pass(&host, &mut kept, snapshot).await.failed());
    }
    assert_never_open(&host);
    state(&host)
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
    let cleaned = cleanup::run(&mut host.clone(), false).await;
    assert_eq!(cleaned.errors, Vec::<String>::new());
    assert!(
        cleaned.removed.iter().any(|r| r.contains("proxy neighbour 192.168.100.3")),
        "{cleaned}"
    );
    assert_eq!(state(&host), before);
    assert_never_open(&host);
    let again = cleanup::run(&mut host.clone(), false).await;
    assert_eq!(again.to_string(), "nothing of stagenet found\n");
}

#[tokio::test]
async fn cleanup_goes_on_after_every_failure() {
    for number in 1..=8 {
        let (host, mut kept) = (host(), Kept::default());
        pass(&host, &mut kept, &one()).await;
        host.fail_at(number, boom());
        let cleaned = cleanup::run(&mut host.clone(), false).await;
        assert_eq!(cleaned.errors.len(), 1, "call {number}: {cleaned:?}");
        assert!(!cleaned.removed.is_empty());
    }
}

#[tokio::test]
async fn a_refused_mapping_is_left_out_and_harms_nobody() {
    let (host, mut kept) = (host(), Kept::default());
    host.refuse("192.168.200.4", "No such file or directory");
    let outcome = pass(&host, &mut kept, &two()).await;
    assert!(outcome.complete && outcome.troubles.is_empty(), "{:?}", outcome.troubles);
    let states: Vec<_> = outcome.mappings.values().collect();
    assert!(matches!(states[0], MappingState::Planned { .. }));
    let MappingState::Failed(why) = states[1] else {
        panic!("{states:?}")
    };
    assert_eq!(why.reason, reasons::RESTORE_REJECTED);
    assert!(
        why.message.contains("line") && why.message.contains("192.168.200.4"),
        "the line is named: {}",
        why.message
    );
    assert_eq!(state(&host), converged(&[one()]).await);

    let writes = host.writes();
    pass(&host, &mut kept, &two()).await;
    assert_eq!(host.writes(), writes, "it is not tried again and again");
    host.mend();
    kept.doubt_all();
    pass(&host, &mut kept, &two()).await;
    assert_eq!(state(&host), converged(&[two()]).await, "the slow check tries it again");
}

/// Mappings of 192.168.100.10 and the following addresses, all to the same last octet inside.
fn many(count: u8) -> Arc<Snapshot> {
    let mappings: String = (10..10 + count).map(|n| mapping(&format!("vm{n}"), n, n)).collect();
    snapshot(&format!("{NETWORK}{}{mappings}", mapping("vm03", 3, 3)))
}

fn failed(outcome: &Outcome) -> Vec<(&str, &str)> {
    let failed = outcome.mappings.iter().filter_map(|(key, state)| match state {
        MappingState::Failed(why) => Some((key.name.as_str(), why.message.as_str())),
        MappingState::Planned { .. } => None,
    });
    failed.collect()
}

/// The legacy tools say that a table was refused, and not for which rule.
#[tokio::test]
async fn a_mapping_that_the_kernel_refuses_without_naming_it_is_found() {
    let (host, mut kept) = (host(), Kept::default());
    pass(&host, &mut kept, &one()).await;
    host.refuse_table("192.168.200.37", "Invalid argument");
    let (restores, writes) = (host.count(Call::Restore), host.writes());
    let outcome = pass(&host, &mut kept, &many(40)).await;
    assert!(outcome.complete && outcome.troubles.is_empty(), "{:?}", outcome.troubles);
    let [("vm37", why)] = failed(&outcome)[..] else {
        panic!("{:?}", failed(&outcome))
    };
    assert!(
        why.contains("-A SNET-") && why.contains("--to-destination 192.168.200.37") && why.contains("Invalid argument"),
        "the rule is named: {why}"
    );
    let spent = host.count(Call::Restore) - restores;
    assert!(
        spent <= 2 * 6 + 2 + 2,
        "{spent} restores: a refused one, 13 trials at most, the clearing up, and one that is taken"
    );
    assert_eq!(outcome.mappings.len(), 41);
    assert!(!host.dump().contains("SNET-TRY") && !host.dump().contains("192.168.200.37"));
    assert_never_open(&host);
    for write in host.journal().into_iter().skip(writes) {
        let Write::Restore { text, .. } = write else { continue };
        let live = text.lines().filter(|l| l.starts_with(':')).any(|l| !l.starts_with(":SNET-TRY"));
        assert!(
            !live || text.contains("--to-destination 192.168.200.3\n"),
            "what is in force is not touched by a trial:\n{text}"
        );
    }

    host.mend();
    kept.doubt_all();
    pass(&host, &mut kept, &many(40)).await;
    assert_eq!(state(&host), converged(&[many(40)]).await);
}

#[tokio::test]
async fn several_unnamed_culprits_are_found_in_a_few_bounded_passes() {
    let (host, mut kept) = (host(), Kept::default());
    for culprit in [11, 12, 29, 45] {
        host.refuse_table(&format!("-to-destination 192.168.200.{culprit}"), "Invalid argument");
    }
    for number in 1.. {
        let restores = host.count(Call::Restore);
        let outcome = pass(&host, &mut kept, &many(40)).await;
        assert!(host.count(Call::Restore) - restores <= 40, "the work of one pass is bounded");
        assert_never_open(&host);
        if !outcome.failed() {
            let names: Vec<_> = failed(&outcome).into_iter().map(|(name, _)| name.to_owned()).collect();
            assert_eq!(names, ["vm11", "vm12", "vm29", "vm45"]);
            break;
        }
        assert!(number < 5, "{:?}", outcome.troubles);
    }
}

#[tokio::test]
async fn an_unnamed_refusal_that_is_no_mappings_fault_keeps_the_last_good_state() {
    let (host, mut kept) = (host(), Kept::default());
    pass(&host, &mut kept, &one()).await;
    let good = state(&host);
    host.refuse_table(":SNET-DNAT", "Cannot allocate memory");
    let outcome = pass(&host, &mut kept, &two()).await;
    assert!(outcome.failed() && outcome.quarantined.is_empty());
    let trouble = &outcome.troubles[0].message;
    assert!(
        trouble.contains("Cannot allocate memory") && trouble.contains("no rule of a mapping"),
        "{trouble}"
    );
    assert_eq!(state(&host), good);
}

/// A kernel out of memory names the rule at which it had none left. If that rule stands already, its mapping has done nothing and keeps what it has.
#[tokio::test]
async fn a_refusal_that_names_a_rule_that_stands_takes_nothing_away() {
    let (host, mut kept) = (host(), Kept::default());
    pass(&host, &mut kept, &one()).await;
    let good = state(&host);
    host.refuse("-to-destination 192.168.200.3", "Cannot allocate memory");
    let outcome = pass(&host, &mut kept, &two()).await;
    assert!(outcome.failed() && outcome.quarantined.is_empty(), "{:?}", outcome.quarantined);
    assert!(
        outcome.troubles[0].message.contains("Cannot allocate memory"),
        "{:?}",
        outcome.troubles
    );
    assert_eq!(state(&host), good);
    host.mend();
    assert!(pass(&host, &mut kept, &two()).await.complete);
    assert_eq!(state(&host), converged(&[two()]).await);
}

/// The agent dies or the kernel fails in another way in the midst of looking for a culprit.
#[tokio::test]
async fn a_search_for_a_culprit_that_is_cut_short_leaves_nothing() {
    let wanted = converged(&[many(3)]).await;
    for number in 1..=40 {
        let (host, mut kept) = (host(), Kept::default());
        pass(&host, &mut kept, &one()).await;
        host.refuse_table("192.168.200.11", "Invalid argument");
        host.fail_at(number, boom());
        pass(&host, &mut kept, &many(3)).await;
        assert_never_open(&host);
        host.mend();
        let healed = pass(&host, &mut Kept::default(), &many(3)).await;
        assert!(!healed.failed(), "call {number}: {:?}", healed.troubles);
        assert_eq!(state(&host), wanted, "call {number}");
    }
}

#[tokio::test]
async fn a_refused_rule_of_the_product_keeps_the_last_good_state() {
    let (host, mut kept) = (host(), Kept::default());
    pass(&host, &mut kept, &one()).await;
    let good = state(&host);
    host.refuse(":SNET-DNAT", "Operation not supported");
    let outcome = pass(&host, &mut kept, &two()).await;
    assert!(outcome.failed() && !outcome.complete);
    assert_eq!(outcome.troubles[0].reason, reasons::RESTORE_REJECTED);
    assert!(outcome.troubles[0].message.contains("line"), "{}", outcome.troubles[0].message);
    assert_eq!(state(&host), good);
}

#[tokio::test]
async fn a_held_lock_is_waited_for_and_named() {
    let (host, mut kept) = (host(), Kept::default());
    host.hold_lock("firewalld (pid 7)");
    let outcome = pass(&host, &mut kept, &one()).await;
    assert!(!outcome.complete);
    assert_eq!(outcome.troubles[0].reason, reasons::LOCK_HELD);
    assert!(outcome.troubles[0].message.contains("firewalld (pid 7)"));
    assert_eq!(
        host.settings(&interface("eth1")).unwrap().forwarding,
        Some(false),
        "no fence, no forwarding"
    );
    host.mend();
    assert!(pass(&host, &mut kept, &one()).await.complete);
}

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
    let taken = Ipv4Addr::new(192, 168, 100, 4);
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
    host.answer(Ipv4Addr::new(192, 168, 100, 3), Some("02:AA:00:00:00:07"));
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

/// A runner at work, with its host and its reports.
struct Running {
    host: FakeHost,
    reports: Reports,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<Result<(), String>>,
    objects: tokio::sync::watch::Sender<Option<Arc<Snapshot>>>,
}

impl Running {
    fn start(host: FakeHost, snapshot: Option<Arc<Snapshot>>) -> Self {
        let options = RunnerOptions {
            settings: settings(),
            resync: Duration::from_hours(1),
            min_interval: Duration::from_millis(10),
        };
        let health = Arc::new(Health::new("a pass", Duration::from_mins(1)));
        let runner = Runner::new(host.clone(), options, Arc::new(Metrics::new()), health);
        let (objects, source) = tokio::sync::watch::channel(snapshot);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let reports = runner.reports();
        let task = tokio::spawn(runner.run(source, async move { drop(stopped.await) }));
        Self {
            host,
            reports,
            stop: Some(stop),
            task,
            objects,
        }
    }

    /// The first report that `wanted` is true of; a generous limit, for a loaded machine.
    async fn until(&mut self, wanted: impl Fn(&Report) -> bool) -> Arc<Report> {
        let found = tokio::time::timeout(Duration::from_secs(20), async {
            loop {
                let latest = self.reports.borrow_and_update().clone();
                if let Some(report) = latest.filter(|r| wanted(r)) {
                    return report;
                }
                self.reports.changed().await.unwrap();
            }
        });
        found.await.unwrap()
    }

    async fn end(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        assert_eq!(self.task.await.unwrap(), Ok(()));
    }
}

#[tokio::test]
async fn nothing_is_touched_before_the_first_list_and_nothing_removed_at_the_end() {
    let mut running = Running::start(host(), None);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(running.host.writes(), 0);
    running.objects.send(Some(one())).unwrap();
    running.until(|r| r.outcome.complete).await;
    let host = running.host.clone();
    let standing = state(&host);
    running.end().await;
    assert_eq!(state(&host), standing);
}

#[tokio::test]
async fn every_kind_of_drift_is_repaired_and_told() {
    let wanted = converged(&[one()]).await;
    let eth1_off = LinkSettings {
        forwarding: Some(false),
        ..LinkSettings::default()
    };
    type Meddle = Box<dyn Fn(&FakeHost)>;
    let kinds: Vec<(&str, Meddle)> = vec![
        ("mangle", Box::new(|h| h.flush(Family::V4, Table::Mangle))),
        ("nat", Box::new(|h| h.flush(Family::V4, Table::Nat))),
        (
            "filter",
            Box::new(|h| h.edit_chain(Family::V4, Table::Filter, "FORWARD", |r| r.retain(|r| !r.contains("SNET")))),
        ),
        (
            "mangle",
            Box::new(|h| h.edit_chain(Family::V4, Table::Mangle, "SNET-FWD", |r| r.insert(0, "-j ACCEPT".to_owned()))),
        ),
        (
            "mangle",
            Box::new(|h| h.edit_chain(Family::V4, Table::Mangle, "SNET-FWD", |r| r.reverse())),
        ),
        (
            "mangle",
            Box::new(|h| h.edit_chain(Family::V4, Table::Mangle, "FORWARD", |r| r.insert(0, "-j ACCEPT".to_owned()))),
        ),
        ("mangle", Box::new(|h| h.flush(Family::V6, Table::Mangle))),
        ("route", Box::new(|h| h.remove_route(&h.routes().into_iter().next().unwrap()))),
        ("proxy", Box::new(|h| h.remove_proxy(&h.proxies().into_iter().next().unwrap()))),
        ("link", Box::new(move |h| h.meddle_settings(&interface("eth1"), &eth1_off))),
    ];
    for (number, (place, meddle)) in kinds.into_iter().enumerate() {
        let mut running = Running::start(host(), Some(one()));
        running.until(|r| r.outcome.complete).await;
        meddle(&running.host);
        let report = running.until(|r| r.outcome.complete && !r.outcome.drift.is_empty()).await;
        assert_eq!(report.outcome.drift[0].place, place, "{number}: {:?}", report.outcome.drift);
        if ["mangle", "nat", "filter"].contains(&place) {
            assert_eq!(report.by.as_deref(), Some("iptables (pid 4711)"));
        }
        let mut now = state(&running.host);
        // The stranger's own rule stays where it is.
        now = now
            .lines()
            .filter(|l| *l != "V4 mangle -A FORWARD -j ACCEPT")
            .map(|l| format!("{l}\n"))
            .collect();
        let mut expected: String = wanted.lines().map(|l| format!("{l}\n")).collect();
        if number == 0 || number == 1 || number == 6 {
            // A flush takes foreign rules with it, which are not ours to put back.
            expected = expected.lines().filter(|l| !l.contains("eth9")).map(|l| format!("{l}\n")).collect();
            now = now.lines().filter(|l| !l.contains("eth9")).map(|l| format!("{l}\n")).collect();
        }
        assert_eq!(now, expected, "{number}");
        running.end().await;
    }
}

#[tokio::test]
async fn a_fight_is_bounded_and_reported() {
    let mut running = Running::start(host(), Some(one()));
    running.until(|r| r.outcome.complete).await;
    let begin = Instant::now();
    let mut repairs = 0_u32;
    while begin.elapsed() < Duration::from_secs(3) {
        if !running.host.rules(Family::V4, Table::Nat, "SNET-DNAT").unwrap().is_empty() {
            running.host.flush(Family::V4, Table::Nat);
            repairs += 1;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(
        (5..=12).contains(&repairs),
        "{repairs} repairs in 3 s: five at once, then one a second"
    );
    let report = running.until(|r| r.contended).await;
    let standing = standing(&report, &Standing::default(), k8s_openapi::jiff::Timestamp::now());
    let drifted = conditions::find(&standing.node.conditions, types::DRIFTED).unwrap();
    assert!(drifted.message.contains("iptables (pid 4711)"), "{}", drifted.message);
    running.end().await;
}

#[tokio::test]
async fn a_lost_tool_or_permission_is_reported_and_healed() {
    for (error, reason) in [
        (
            HostError::ToolMissing {
                tool: "iptables".to_owned(),
            },
            reasons::TOOL_MISSING,
        ),
        (
            HostError::Denied {
                action: "restoring".to_owned(),
            },
            reasons::NOT_PERMITTED,
        ),
    ] {
        let host = host();
        host.break_down(Call::Restore, error);
        let mut running = Running::start(host.clone(), Some(one()));
        let report = running.until(|r| r.outcome.failed()).await;
        let standing = standing(&report, &Standing::default(), k8s_openapi::jiff::Timestamp::now());
        let ready = conditions::find(&standing.node.conditions, types::READY).unwrap();
        assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", reason));
        host.mend();
        running.until(|r| r.outcome.complete).await;
        running.end().await;
    }
}

#[tokio::test]
async fn statuses_say_what_a_cluster_would_show() {
    let (host, mut kept) = (host(), Kept::default());
    let snapshot = one();
    let outcome = pass(&host, &mut kept, &snapshot).await;
    let report = Report {
        snapshot,
        outcome,
        by: None,
        contended: false,
    };
    let now = k8s_openapi::jiff::Timestamp::now();
    let first = standing(&report, &Standing::default(), now);
    let status = first.statuses.mappings.values().next().unwrap();
    assert!(conditions::is_true(&status.conditions, types::READY), "{status:?}");
    assert_eq!(status.gateway.as_deref(), Some("vm02"));
    assert_eq!(first.node.networks[0].programmed, 1);
    let later = k8s_openapi::jiff::Timestamp::from_second(now.as_second() + 100).unwrap();
    assert_eq!(standing(&report, &first, later), first, "time alone changes nothing");
}

#[test]
fn a_broken_file_keeps_its_last_good_objects_and_harms_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("network.yaml", NETWORK);
    write("a.yaml", &mapping("a", 3, 3));
    write("b.yaml", &mapping("b", 4, 4));
    write("ignored.txt", "rubbish: [");
    let mut directory = source::directory::Directory::new(dir.path());
    assert!(directory.scan().unwrap());
    assert!(!directory.scan().unwrap(), "nothing has changed");
    let names = |d: &source::directory::Directory| {
        d.snapshot()
            .mappings
            .iter()
            .map(|m| m.metadata.name.clone().unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (names(&directory), directory.snapshot().problems),
        (vec!["a".to_owned(), "b".to_owned()], vec![])
    );

    for broken in ["spec: [unclosed", "", "x: 1"] {
        write(
            "a.yaml",
            &format!(
                "{}{broken}\n",
                mapping("a", 3, 3).replace(
                    "kind: NatMapping",
                    if broken.is_empty() { "kind: Nonsense" } else { "kind: NatMapping" }
                )
            ),
        );
        assert!(directory.scan().unwrap());
        let now = directory.snapshot();
        assert_eq!(names(&directory), ["a", "b"], "after {broken:?}: {:?}", now.problems);
        assert!(
            now.problems.iter().all(|p| p.place.ends_with("a.yaml")) && !now.problems.is_empty(),
            "{:?}",
            now.problems
        );
    }
    write("a.yaml", &mapping("a", 3, 8));
    directory.scan().unwrap();
    assert_eq!(directory.snapshot().problems, []);
    assert_eq!(directory.snapshot().mappings[0].spec.target.address, "192.168.200.8");
    std::fs::remove_file(dir.path().join("a.yaml")).unwrap();
    assert!(directory.scan().unwrap());
    assert_eq!(names(&directory), ["b"], "a deleted file takes its objects with it");
    write("c.yaml", &mapping("b", 5, 5));
    directory.scan().unwrap();
    assert_eq!(names(&directory), ["b"]);
    assert!(
        directory.snapshot().problems[0].to_string().contains("already"),
        "{:?}",
        directory.snapshot().problems
    );
    std::fs::remove_dir_all(dir.path()).unwrap();
    assert!(directory.scan().is_err());
    assert_eq!(names(&directory), ["b"], "a directory that is gone takes nothing");
}

/// A folder of manifests and a state directory, as an agent that is started anew finds them.
struct Started {
    dir: tempfile::TempDir,
    state: tempfile::TempDir,
}

impl Started {
    fn new() -> Self {
        let started = Self {
            dir: tempfile::tempdir().unwrap(),
            state: tempfile::tempdir().unwrap(),
        };
        started.write("network.yaml", NETWORK);
        started
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), text).unwrap();
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.dir.path().join(name)).unwrap();
    }

    /// What an agent that starts now puts in force, as `NAME → TARGET`, and what it says is wrong.
    fn read(&self) -> (Vec<String>, Vec<String>) {
        let snapshot = source::directory::read(self.dir.path(), self.state.path()).unwrap();
        (in_force(&snapshot), snapshot.problems.iter().map(ToString::to_string).collect())
    }
}

fn in_force(snapshot: &Snapshot) -> Vec<String> {
    let line = |m: &stagenet::api::NatMapping| format!("{} → {}", m.metadata.name.as_deref().unwrap(), m.spec.target.address);
    snapshot.mappings.iter().map(line).collect()
}

#[test]
fn an_agent_that_starts_while_a_file_is_broken_knows_its_last_good_version() {
    let started = Started::new();
    started.write("a.yaml", &mapping("a", 3, 3));
    started.write("b.yaml", &mapping("b", 4, 4));
    assert_eq!(started.read().1, Vec::<String>::new());

    started.write("a.yaml", "apiVersion: [");
    for _ in 0..3 {
        let (mappings, problems) = started.read();
        assert_eq!(mappings, ["a → 192.168.200.3", "b → 192.168.200.4"]);
        assert!(
            problems.iter().any(|p| p.contains("a.yaml: cannot be used as it is since 20")
                && p.contains("the last good version of 20")
                && p.contains("NatMapping default/a")),
            "{problems:?}"
        );
    }

    started.write("a.yaml", &mapping("a", 3, 8));
    assert_eq!(
        started.read(),
        (vec!["a → 192.168.200.8".to_owned(), "b → 192.168.200.4".to_owned()], vec![])
    );
    started.remove("a.yaml");
    assert_eq!(started.read().0, ["b → 192.168.200.4"], "a deleted file is not brought back");
    started.write("a.yaml", "apiVersion: [");
    assert_eq!(started.read().0, ["b → 192.168.200.4"], "not even by a broken file of its name");
}

/// One of two objects of a file is wrong, the other one changes: both are in force as each was last good.
#[test]
fn of_a_file_that_is_half_wrong_each_object_is_remembered_by_itself() {
    let started = Started::new();
    started.write("both.yaml", &format!("{}{}", mapping("a", 3, 3), mapping("b", 4, 4)));
    started.read();
    let half = format!("{}{}", mapping("a", 3, 3).replace("target", "tarket"), mapping("b", 4, 9));
    started.write("both.yaml", &half);
    let expected = ["a → 192.168.200.3", "b → 192.168.200.9"];
    let sorted = |mut m: Vec<String>| {
        m.sort();
        m
    };
    assert_eq!(sorted(started.read().0), expected);
    started.write("both.yaml", "[");
    assert_eq!(sorted(started.read().0), expected, "b in the version that was good last");
}

#[test]
fn records_are_bounded_to_what_is_there_and_a_damaged_one_harms_nothing() {
    let started = Started::new();
    started.write("a.yaml", &mapping("a", 3, 3));
    started.read();
    let folder = started.state.path().join("last-good");
    let records = || {
        std::fs::read_dir(&folder)
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(records().len(), 2);
    for record in records() {
        std::fs::write(record, "{").unwrap();
    }
    assert_eq!(started.read(), (vec!["a → 192.168.200.3".to_owned()], vec![]));
    assert_eq!(records().len(), 2, "written anew");
    std::fs::write(folder.join("foreign.json"), "kept").unwrap();
    assert_eq!(source::directory::clear(started.state.path()).unwrap(), 2);
    assert_eq!(records(), BTreeSet::from([folder.join("foreign.json")]));
    assert_eq!(source::directory::clear(started.state.path()).unwrap(), 0);
    started.write("a.yaml", "[");
    assert_eq!(started.read().0, Vec::<String>::new(), "nothing is remembered after a cleanup");
}

#[test]
fn without_a_state_directory_files_are_read_all_the_same() {
    let started = Started::new();
    started.write("a.yaml", &mapping("a", 3, 3));
    let file = started.state.path().join("file");
    std::fs::write(&file, "").unwrap();
    let snapshot = source::directory::read(started.dir.path(), &file.join("state")).unwrap();
    assert_eq!(
        (in_force(&snapshot), snapshot.problems),
        (vec!["a → 192.168.200.3".to_owned()], vec![])
    );
}

async fn next(snapshots: &mut source::Snapshots, wanted: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
    let found = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            if let Some(snapshot) = snapshots.borrow_and_update().clone().filter(|s| wanted(s)) {
                return snapshot;
            }
            snapshots.changed().await.unwrap();
        }
    });
    found.await.unwrap()
}

/// A volume that is not mounted yet, or no longer, takes nothing away; an emptied directory does.
#[tokio::test]
async fn a_directory_that_is_gone_takes_nothing_and_an_empty_one_everything() {
    let started = Started::new();
    started.write("a.yaml", &mapping("a", 3, 3));
    let (path, away) = (started.dir.path().to_owned(), started.dir.path().with_extension("away"));
    let expected = ["a → 192.168.200.3"];

    std::fs::rename(&path, &away).unwrap();
    let (mut snapshots, task) = source::directory::watch(&path, started.state.path()).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(
        snapshots.borrow().is_none(),
        "nothing is known, so nothing is delivered and no pass is run"
    );
    std::fs::rename(&away, &path).unwrap();
    let found = next(&mut snapshots, |_| true).await;
    assert_eq!((in_force(&found), &found.problems), (expected.map(str::to_owned).to_vec(), &vec![]));

    std::fs::rename(&path, &away).unwrap();
    let found = next(&mut snapshots, |s| !s.problems.is_empty()).await;
    assert_eq!(in_force(&found), expected);
    assert!(found.problems[0].message.contains("stays in force"), "{:?}", found.problems);
    drop(snapshots);
    task.abort();

    let (mut snapshots, task) = source::directory::watch(&path, started.state.path()).unwrap();
    let found = next(&mut snapshots, |_| true).await;
    assert_eq!(in_force(&found), expected, "an agent that starts now knows it from its predecessor");
    assert!(!found.problems.is_empty());
    std::fs::create_dir(&path).unwrap();
    let found = next(&mut snapshots, |s| s.problems.is_empty()).await;
    assert_eq!(in_force(&found), Vec::<String>::new(), "an empty directory is a wish");
    task.abort();
    std::fs::remove_dir_all(&away).unwrap();
}
