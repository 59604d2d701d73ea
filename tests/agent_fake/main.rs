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

mod clones;
mod convergence;
mod directory;
mod links;
mod refusals;
mod runner;
mod seen;
mod withdrawn;

use std::collections::BTreeSet;
use std::sync::Arc;

use stagenet::agent::kept::Kept;
use stagenet::agent::outcome::Outcome;
use stagenet::agent::pass::{self, Settings};
use stagenet::agent::source::Snapshot;
use stagenet::api::decode::decode;
use stagenet::host::fake::{FakeHost, Write};
use stagenet::host::{HostError, LinkChange};
use stagenet::netfilter::{Family, IfName, Table};
use stagenet::plan::InterfaceFacts;

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
        namespaces: stagenet::plan::declared(read.namespaces, &read.mappings),
        networks: read.networks.into_iter().map(Into::into).collect(),
        mappings: read.mappings.into_iter().map(Arc::new).collect(),
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
        proxy_ndp: false,
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
        marks: stagenet::plan::Marks::default(),
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

async fn converged(history: &[Arc<Snapshot>]) -> String {
    let (host, mut kept) = (host(), Kept::default());
    for snapshot in history {
        assert!(!pass(&host, &mut kept, snapshot).await.failed());
    }
    assert_never_open(&host);
    state(&host)
}
