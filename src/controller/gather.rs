//! From what the API server said to what is decided upon: the nodes and the gateways' [`Reports`]. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kube::ResourceExt;

use super::heartbeat::Life;
use crate::api::gatewaynode::{GatewayNodeStatus, InterfaceStatus};
use crate::api::{GatewayNode, NatMapping, StagingNetwork};
use crate::plan::{InterfaceFacts, NodeFacts};

/// The objects of which a spec is known, by namespace and name.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// All networks.
    pub networks: Vec<Arc<StagingNetwork>>,
    /// All mappings.
    pub mappings: Vec<Arc<NatMapping>>,
}

/// What an agent says, and whether it still says anything.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Its words.
    pub status: GatewayNodeStatus,
    /// Whether they still count.
    pub life: Life,
}

/// Reports by name of the node. A node that never reported is absent.
pub type Reports = BTreeMap<String, Report>;

/// Puts together what is known of nodes. `labels` are the cluster's nodes: a `GatewayNode` whose node has left the cluster is left out, and a
/// node without report is in with its labels alone, so that a selected node without agent is missed instead of overlooked.
pub fn nodes<'a>(
    gateways: impl IntoIterator<Item = &'a GatewayNode>,
    labels: BTreeMap<String, BTreeMap<String, String>>,
) -> Vec<NodeFacts> {
    let reported = |gateway: &GatewayNode| Some((gateway.name_any(), facts(&gateway.status.as_ref()?.interfaces)));
    let mut interfaces: BTreeMap<String, BTreeMap<String, InterfaceFacts>> = gateways.into_iter().filter_map(reported).collect();
    let one = |(name, labels): (String, BTreeMap<String, String>)| NodeFacts {
        interfaces: interfaces.remove(&name).unwrap_or_default(),
        name,
        labels: Some(labels),
        ..NodeFacts::default()
    };
    labels.into_iter().map(one).collect()
}

/// What the agents say. `life` judges by the name of the node.
pub fn reports<'a>(gateways: impl IntoIterator<Item = &'a GatewayNode>, life: impl Fn(&str) -> Life) -> Reports {
    let report = |gateway: &GatewayNode| {
        let name = gateway.name_any();
        let report = Report {
            status: gateway.status.clone()?,
            life: life(&name),
        };
        Some((name, report))
    };
    gateways.into_iter().filter_map(report).collect()
}

/// Interfaces as reported. What is no address with prefix length is left out: it is an agent of another version that wrote it.
/// The reverse path filter and what an interface is a port of are the agent's own affair and not reported.
fn facts(interfaces: &[InterfaceStatus]) -> BTreeMap<String, InterfaceFacts> {
    let one = |interface: &InterfaceStatus| InterfaceFacts {
        index: interface.index,
        mtu: interface.mtu,
        up: interface.up,
        mac: interface.mac.clone(),
        addresses: interface.addresses.iter().filter_map(|a| a.parse().ok()).collect::<BTreeSet<_>>(),
        ..InterfaceFacts::default()
    };
    interfaces
        .iter()
        .map(|interface| (interface.name.clone(), one(interface)))
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::controller::testing::gateway;

    fn labels(names: &[&str]) -> BTreeMap<String, BTreeMap<String, String>> {
        names
            .iter()
            .map(|name| ((*name).to_owned(), BTreeMap::from([("k".to_owned(), "v".to_owned())])))
            .collect()
    }

    #[test]
    fn nodes_have_their_own_labels_and_the_interfaces_they_reported() {
        let mut a = gateway("node-a");
        a.status.as_mut().unwrap().interfaces = vec![InterfaceStatus {
            name: "eth0".into(),
            index: 2,
            mtu: 1500,
            up: true,
            mac: "02:00:00:00:00:01".into(),
            addresses: vec!["192.168.100.2/24".into(), "rubbish".into()],
        }];
        let nodes = nodes(&[a, gateway("left-the-cluster")], labels(&["node-a", "without-agent"]));
        let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["node-a", "without-agent"]);
        let eth0 = &nodes[0].interfaces["eth0"];
        assert_eq!(eth0.addresses, BTreeSet::from(["192.168.100.2/24".parse().unwrap()]));
        assert_eq!((eth0.index, eth0.mtu, eth0.up), (2, 1500, true));
        assert_eq!(nodes[1].labels.as_ref().unwrap()["k"], "v");
        assert!(nodes[1].interfaces.is_empty());
    }

    #[test]
    fn a_gateway_that_never_reported_has_no_report() {
        let mut fresh = gateway("node-b");
        fresh.status = None;
        let reports = reports(&[gateway("node-a"), fresh], |_| Life::Alive);
        assert_eq!(reports.keys().collect::<Vec<_>>(), ["node-a"]);
    }
}
