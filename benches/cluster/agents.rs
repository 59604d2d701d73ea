//! Agents of the library on hosts in memory: all nodes but one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::PostParams;
use serde_json::json;
use stagenet::agent::pass::Settings;
use stagenet::agent::report::{cluster, lease};
use stagenet::agent::runner::{Runner, RunnerOptions};
use stagenet::agent::source;
use stagenet::host::fake::FakeHost;
use stagenet::plan::{InterfaceFacts, Marks};
use stagenet::telemetry::{Health, Metrics, Program};

use super::objects::client;
use super::{GROUPS, NETWORKS, REAL, group};

/// Makes the nodes and starts their agents. Returns how many nodes there are with the real one.
pub async fn start(nodes: usize, real: &str) -> usize {
    let api: Api<Node> = Api::all(client().await);
    let others = nodes.max(GROUPS * 2) - 1;
    for n in 0..others {
        // Two gateways a group, but for the real one's.
        let of = (0..GROUPS * 2).filter(|g| *g != REAL * 2).nth(n).map(|g| g / 2);
        let name = format!("node-{n:03}");
        assert_ne!(name, real);
        let labels = of.map_or(json!({}), |group| json!({"group": group.to_string()}));
        let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}});
        api.create(&PostParams::default(), &serde_json::from_value(object).unwrap())
            .await
            .unwrap();
        agent(name, of, n).await;
    }
    others + 1
}

async fn agent(node: String, of: Option<usize>, number: usize) {
    let host = FakeHost::new();
    let facts = |index: u32, address: String| InterfaceFacts {
        index,
        mtu: 1500,
        up: true,
        mac: "02:00:00:00:00:01".into(),
        addresses: BTreeSet::from([address.parse().unwrap()]),
        ..InterfaceFacts::default()
    };
    host.add_interface("out0", facts(2, format!("192.0.{}.{}/16", 3 + number / 200, 2 + number % 200)));
    for n in (0..NETWORKS).filter(|n| Some(group(*n)) == of) {
        host.add_interface(
            &format!("in{n}"),
            facts(3 + n as u32, format!("10.{}.0.{}/16", 128 + n, 2 + number)),
        );
    }
    let client = client().await;
    let (metrics, health) = (
        Arc::new(Metrics::new(Program::Agent)),
        Arc::new(Health::new("starting", Duration::from_secs(60))),
    );
    let options = RunnerOptions {
        settings: Settings {
            node: node.clone(),
            connmark: 0x2000,
            marks: Marks::default(),
            nflog_group: 5,
        },
        resync: Duration::from_secs(60),
        min_interval: Duration::from_millis(100),
        mapping_series: 0,
    };
    let mut runner = Runner::new(host, options, metrics.clone(), health.clone());
    let (snapshots, _) = source::api::watch(&client, &node, Duration::from_mins(1));
    tokio::spawn(cluster::keep(
        client.clone(),
        node.clone(),
        (runner.reports(), runner.news()),
        metrics.clone(),
        health.clone(),
    ));
    tokio::spawn(lease::keep(client, "stagenet-system".to_owned(), node, 40, (metrics, health)));
    tokio::spawn(runner.run(snapshots, std::future::pending()));
}
