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
    pub status: Arc<GatewayNodeStatus>,
    /// Whether they still count.
    pub life: Life,
}

/// Reports by name of the node. A node that never reported is absent.
pub type Reports = BTreeMap<String, Report>;

/// What was made of each node and report last: of hundreds mostly none has changed. An object is taken for the same only if it is the very same piece of memory.
#[derive(Debug, Default)]
pub struct Memory {
    nodes: BTreeMap<String, (Option<Arc<GatewayNode>>, Arc<NodeFacts>)>,
    reports: BTreeMap<String, (Arc<GatewayNode>, Arc<GatewayNodeStatus>)>,
}

impl Memory {
    /// Puts together what is known of nodes, by name. `labels` are the cluster's nodes: a `GatewayNode` whose node has left the cluster is left out, and a
    /// node without report is in with its labels alone, so that a selected node without agent is missed instead of overlooked.
    pub fn nodes(&mut self, gateways: &[Arc<GatewayNode>], labels: &BTreeMap<String, BTreeMap<String, String>>) -> Vec<Arc<NodeFacts>> {
        let by_name: BTreeMap<&str, &Arc<GatewayNode>> = gateways.iter().filter_map(|g| Some((g.metadata.name.as_deref()?, g))).collect();
        self.nodes.retain(|name, _| labels.contains_key(name));
        let one = |(name, labels): (&String, &BTreeMap<String, String>)| {
            let gateway = by_name.get(name.as_str()).copied();
            let known = self
                .nodes
                .get(name)
                .filter(|(of, facts)| of.as_ref().map(Arc::as_ptr) == gateway.map(Arc::as_ptr) && facts.labels.as_ref() == Some(labels));
            if let Some((_, facts)) = known {
                return facts.clone();
            }
            let facts = Arc::new(node(name, labels, gateway.map(AsRef::as_ref)));
            self.nodes.insert(name.clone(), (gateway.cloned(), facts.clone()));
            facts
        };
        labels.iter().map(one).collect()
    }

    /// What the agents say. `life` judges by the name of the node.
    pub fn reports(&mut self, gateways: &[Arc<GatewayNode>], life: impl Fn(&str) -> Life) -> Reports {
        let mut before = std::mem::take(&mut self.reports);
        let report = |gateway: &Arc<GatewayNode>| {
            let name = gateway.name_any();
            let known = before.remove(&name).filter(|(of, _)| Arc::ptr_eq(of, gateway));
            let status = match known {
                Some((_, status)) => status,
                None => Arc::new(gateway.status.clone()?),
            };
            let life = life(&name);
            self.reports.insert(name.clone(), (gateway.clone(), status.clone()));
            Some((name, Report { status, life }))
        };
        gateways.iter().filter_map(report).collect()
    }
}

/// What is known of one node.
pub fn node(name: &str, labels: &BTreeMap<String, String>, gateway: Option<&GatewayNode>) -> NodeFacts {
    let reported = gateway.and_then(|gateway| gateway.status.as_ref());
    NodeFacts {
        name: name.to_owned(),
        labels: Some(labels.clone()),
        interfaces: reported.map(|status| facts(&status.interfaces)).unwrap_or_default(),
        ..NodeFacts::default()
    }
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
        let mut memory = Memory::default();
        let gateways = [a, gateway("left-the-cluster")].map(Arc::new);
        let nodes = memory.nodes(&gateways, &labels(&["node-a", "without-agent"]));
        let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names, ["node-a", "without-agent"]);
        let eth0 = &nodes[0].interfaces["eth0"];
        assert_eq!(eth0.addresses, BTreeSet::from(["192.168.100.2/24".parse().unwrap()]));
        assert_eq!((eth0.index, eth0.mtu, eth0.up), (2, 1500, true));
        assert_eq!(nodes[1].labels.as_ref().unwrap()["k"], "v");
        assert!(nodes[1].interfaces.is_empty());
        let again = memory.nodes(&gateways, &labels(&["node-a", "without-agent"]));
        assert!(again.iter().zip(&nodes).all(|(now, before)| Arc::ptr_eq(now, before)));
        let mut other = labels(&["node-a"]);
        other.entry("node-a".into()).or_default().insert("k".into(), "w".into());
        assert_eq!(memory.nodes(&gateways, &other)[0].labels.as_ref().unwrap()["k"], "w");
        assert!(memory.nodes(&[], &other)[0].interfaces.is_empty(), "its report is gone");
    }

    #[test]
    fn a_gateway_that_never_reported_has_no_report() {
        let mut fresh = gateway("node-b");
        fresh.status = None;
        let mut memory = Memory::default();
        let gateways = [gateway("node-a"), fresh].map(Arc::new);
        let said = memory.reports(&gateways, |_| Life::Alive);
        assert_eq!(said.keys().collect::<Vec<_>>(), ["node-a"]);
        let later = memory.reports(&gateways, |_| Life::Silent);
        assert!(Arc::ptr_eq(&said["node-a"].status, &later["node-a"].status) && later["node-a"].life == Life::Silent);
        let mut news = gateway("node-a");
        news.status.as_mut().unwrap().networks.clear();
        let last = memory.reports(&[Arc::new(news)], |_| Life::Alive);
        assert!(last["node-a"].status.networks.is_empty());
    }
}
