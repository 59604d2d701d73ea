//! In a cluster: objects as the API server tells them. While it is away, the last known state stays.
//!
//! Everybody watches networks and the own Node; what else concerns the node follows from these ([`crate::plan::concern`]). Nothing is told before all of that has been listed once,
//! also when more comes to concern it later: until then what was told before stays in force.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::StreamExt;
use k8s_openapi::api::core::v1::Node;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::watcher::Event;
use kube::{Client, ResourceExt};
use tokio::sync::watch;
use tokio::time::Instant;

use super::cache::{Cache, Change};
use super::topics::{News, Subscriptions, Topic};
use super::{Problem, Snapshot, Snapshots};
use crate::api::gatewaynode::GatewayNodeStatus;
use crate::api::mapping::MachineTarget;
use crate::api::{GatewayNode, NatMapping, NatMappingStatus, StagingNetwork};
use crate::controller::gather;
use crate::controller::namespaces::Heard;
use crate::plan::{Mappings, NodeFacts, View, concern};

/// Resource versions that mean nothing new are passed on this late: the controller's own status writes come by the thousand.
const VERSION_DELAY: Duration = Duration::from_secs(1);
/// Events taken at once.
const BATCH: usize = 1024;

struct State {
    node: String,
    networks: Cache<StagingNetwork>,
    /// By the network that they name, for networks that concern the node.
    mappings: BTreeMap<String, Cache<NatMapping>>,
    /// None: none of them concerns the node.
    gateways: Option<Cache<GatewayNode>>,
    /// None: no network that concerns the node asks for labels of namespaces.
    namespaces: Option<Heard>,
    /// What is watched. [`Topic::OwnGateway`] feeds the same cache as [`Topic::Gateways`].
    topics: BTreeSet<Topic>,
    /// Whether the node takes routes to pools.
    client: bool,
    /// Labels of the own Node. None: not known yet.
    labels: Option<BTreeMap<String, String>>,
    found: bool,
    /// Kinds of which a watch fails, with the error.
    away: BTreeMap<&'static str, String>,
}

/// Watches everything that concerns `node`, in a task of its own.
pub fn watch(client: &Client, node: &str) -> (Snapshots, tokio::task::JoinHandle<()>) {
    let (sender, receiver) = watch::channel(None);
    let mut state = State::new(node);
    let mut news = Subscriptions::new(client, node);
    news.follow(&state.topics);
    let mut news = news.ready_chunks(BATCH);
    let task = tokio::spawn(async move {
        let mut late: Option<Instant> = None;
        loop {
            let deadline = late.unwrap_or_else(|| Instant::now() + Duration::from_hours(1));
            let change = tokio::select! {
                batch = news.next() => match batch {
                    Some(batch) => batch.into_iter().map(|n| state.take(n)).max().unwrap_or(Change::None),
                    None => return,
                },
                () = tokio::time::sleep_until(deadline) => Change::Meaning,
                () = sender.closed() => return,
            };
            match change {
                Change::None => {}
                Change::Version => late = Some(late.unwrap_or_else(|| Instant::now() + VERSION_DELAY)),
                Change::Meaning => {
                    late = None;
                    if state.choose() {
                        news.get_mut().follow(&state.topics);
                    }
                    if let Some(snapshot) = state.snapshot() {
                        sender.send_replace(Some(Arc::new(snapshot)));
                    }
                }
            }
        }
    });
    (receiver, task)
}

impl State {
    fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            networks: Cache::new(|a, b| a.spec == b.spec && active(a) == active(b) && api_server(a) == api_server(b)),
            mappings: BTreeMap::new(),
            gateways: None,
            namespaces: None,
            topics: BTreeSet::from([Topic::Networks, Topic::OwnNode]),
            client: false,
            labels: None,
            found: false,
            away: BTreeMap::new(),
        }
    }

    fn take(&mut self, news: News) -> Change {
        match news {
            News::Network(event) => {
                self.back("StagingNetwork", &event);
                self.networks.take(*event)
            }
            News::Mapping(network, event) => {
                self.back("NatMapping", &event);
                // None: it has ceased to matter since this was said.
                self.mappings.get_mut(&*network).map_or(Change::None, |cache| cache.take(event))
            }
            News::Gateway(event) => {
                self.back("GatewayNode", &event);
                self.take_gateway(event)
            }
            News::Node(event) => {
                self.back("Node", &event);
                self.take_node(event)
            }
            News::Namespace(event) => {
                self.back("Namespace", &event);
                let changed = self.namespaces.as_mut().is_some_and(|heard| heard.take(event));
                if changed { Change::Meaning } else { Change::None }
            }
            News::Away(kind, error) => {
                if self.away.insert(kind, error.clone()).is_none() {
                    tracing::warn!(kind, error, "watching; the last known state stays in force, it is tried again");
                }
                Change::None
            }
        }
    }

    /// A watch says something again. Its beginning says nothing: it is told before anything was received.
    fn back<K>(&mut self, kind: &'static str, event: &Event<K>) {
        if !matches!(event, Event::Init) && self.away.remove(kind).is_some() {
            tracing::info!(kind, "watching again");
        }
    }

    fn take_gateway(&mut self, event: Event<DeserializeGuard<GatewayNode>>) -> Change {
        let own = matches!(&event, Event::Apply(g) | Event::Delete(g) if g.name_any() == self.node);
        let Some(cache) = &mut self.gateways else {
            return Change::None;
        };
        match cache.take(event) {
            // What this agent itself reported is no news to it, unless its subnets decide what it has to know.
            Change::Meaning if own && !self.client => Change::None,
            Change::Version => Change::None,
            change => change,
        }
    }

    fn take_node(&mut self, event: Event<PartialObjectMeta<Node>>) -> Change {
        let labels = match event {
            Event::Init => {
                self.found = false;
                return Change::None;
            }
            Event::InitApply(node) | Event::Apply(node) => {
                self.found = true;
                node.labels().clone()
            }
            Event::InitDone if self.found => return Change::None,
            Event::InitDone | Event::Delete(_) => {
                self.found = false;
                BTreeMap::new()
            }
        };
        if self.labels.as_ref() == Some(&labels) {
            return Change::None;
        }
        self.labels = Some(labels);
        Change::Meaning
    }

    /// Chooses what is watched from what is known. Returns whether that is anything else than before.
    fn choose(&mut self) -> bool {
        let (Some(labels), true) = (&self.labels, self.networks.ready) else {
            return false;
        };
        let own = self.own_facts(labels.clone());
        let networks: Vec<StagingNetwork> = self.networks.objects().cloned().collect();
        let mappings: Vec<Arc<NatMapping>> = self.known_mappings().cloned().collect();
        let known = View {
            networks: &networks,
            mappings: Mappings::Shared(&mappings),
            nodes: &[],
            namespaces: &Arc::default(),
        };
        let concern = concern(known, &own);
        let mut topics = BTreeSet::from([Topic::Networks, Topic::OwnNode]);
        topics.extend(concern.mappings.iter().cloned().map(Topic::Mappings));
        if concern.nodes {
            topics.insert(Topic::Gateways);
        } else if concern.client {
            topics.insert(Topic::OwnGateway);
        }
        if concern.namespaces {
            topics.insert(Topic::Namespaces);
        }
        self.client = concern.client;
        if topics == self.topics {
            return false;
        }
        let gateways = |topics: &BTreeSet<Topic>| (topics.contains(&Topic::Gateways), topics.contains(&Topic::OwnGateway));
        if gateways(&topics) != gateways(&self.topics) {
            let watched = concern.nodes || concern.client;
            self.gateways = watched.then(|| Cache::new(|a, b| interfaces(a) == interfaces(b)).trimmed(trim_gateway));
        }
        if concern.namespaces != self.namespaces.is_some() {
            self.namespaces = concern.namespaces.then(Heard::default);
        }
        self.mappings.retain(|network, _| concern.mappings.contains(network));
        for network in concern.mappings {
            let cache = || Cache::new(|a: &NatMapping, b| a.spec == b.spec && a.status == b.status).trimmed(trim);
            self.mappings.entry(network).or_insert_with(cache);
        }
        self.topics = topics;
        true
    }

    /// The own node, with its interfaces as it has reported them.
    fn own_facts(&self, labels: BTreeMap<String, String>) -> NodeFacts {
        let own = self.gateways.iter().flat_map(Cache::objects).find(|g| g.name_any() == self.node);
        let own: Vec<GatewayNode> = own.cloned().into_iter().collect();
        let names = BTreeMap::from([(self.node.clone(), labels)]);
        let mut nodes = gather::world(Vec::new(), Vec::new(), &own, names).nodes;
        nodes.pop().unwrap_or_default()
    }

    fn known_mappings(&self) -> impl Iterator<Item = &Arc<NatMapping>> {
        self.mappings.values().flat_map(Cache::shared)
    }

    /// Everything, once all that is watched has been listed.
    fn snapshot(&self) -> Option<Snapshot> {
        let labels = self.labels.clone()?;
        let listed = self.mappings.values().all(|cache| cache.ready) && self.gateways.as_ref().is_none_or(|cache| cache.ready);
        if !(self.networks.ready && listed) {
            return None;
        }
        let namespaces = match &self.namespaces {
            Some(heard) => heard.labels()?.clone(),
            None => Arc::default(),
        };
        let gateways = self.gateways.iter().flat_map(Cache::objects);
        let gateways: Vec<GatewayNode> = gateways.filter(|g| g.name_any() != self.node).cloned().collect();
        // Nobody looks at other nodes' labels here: whether a node is a gateway it judges by its own.
        let names = gateways.iter().map(|g| (g.name_any(), BTreeMap::new())).collect();
        let others = gather::world(Vec::new(), Vec::new(), &gateways, names).nodes;
        let mut problems = Vec::new();
        if !self.found {
            problems.push(Problem {
                place: format!("Node {}", self.node),
                message: "the cluster has no such Node; --node (NODE_NAME) must be the name that kubectl get nodes shows".to_owned(),
            });
        }
        undecodable(&mut problems, "StagingNetwork", &self.networks.bad);
        for cache in self.mappings.values() {
            undecodable(&mut problems, "NatMapping", &cache.bad);
        }
        if let Some(cache) = &self.gateways {
            undecodable(&mut problems, "GatewayNode", &cache.bad);
        }
        Some(Snapshot {
            networks: self.networks.objects().cloned().collect(),
            mappings: self.known_mappings().cloned().collect(),
            namespaces,
            others,
            labels: Some(labels),
            problems,
        })
    }
}

/// Leaves of a report what is looked at: hundreds of nodes report.
fn trim_gateway(gateway: &mut GatewayNode) {
    let status = gateway.status.take();
    gateway.status = status.map(|status| GatewayNodeStatus {
        interfaces: status.interfaces,
        ..GatewayNodeStatus::default()
    });
    let meta = &mut gateway.metadata;
    (meta.annotations, meta.labels) = (None, None);
}

/// Leaves of a mapping what is judged, and what tells it from its successor: what people note in labels and annotations is often longer than all the rest. Of the status
/// that is the address of the virtual machine that the mapping names: where traffic is delivered to.
fn trim(mapping: &mut NatMapping) {
    let machine = mapping.spec.target.virtual_machine_ref.as_ref();
    let found = mapping.status.take().and_then(|status| status.target);
    mapping.status = found.zip(machine).map(|(found, _)| NatMappingStatus {
        target: Some(Box::new(MachineTarget {
            virtual_machine: found.virtual_machine,
            interface: found.interface,
            address: found.address,
            ..MachineTarget::default()
        })),
        ..NatMappingStatus::default()
    });
    let meta = &mut mapping.metadata;
    (meta.annotations, meta.labels) = (None, None);
    (meta.finalizers, meta.owner_references) = (None, None);
}

fn undecodable(problems: &mut Vec<Problem>, kind: &str, bad: &BTreeMap<(String, String), String>) {
    problems.extend(bad.iter().map(|((namespace, name), error)| Problem {
        place: format!("{kind} {namespace}{}{name}", if namespace.is_empty() { "" } else { "/" }),
        message: format!("cannot be decoded: {error}; its last good version stays in force if there is one"),
    }));
}

fn active(network: &StagingNetwork) -> Option<&crate::api::network::ActiveGateway> {
    network.status.as_ref()?.active_gateway.as_ref()
}

fn api_server(network: &StagingNetwork) -> &[String] {
    network.status.as_ref().map_or(&[], |status| &status.api_server_addresses)
}

fn interfaces(gateway: &GatewayNode) -> Option<&Vec<crate::api::gatewaynode::InterfaceStatus>> {
    gateway.status.as_ref().map(|s| &s.interfaces)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::mapping::AddressState;

    fn after(machine: bool, address: &str, state: AddressState) -> NatMapping {
        let mut object = crate::controller::testing::mapping("default", "vm03");
        object.spec.target.virtual_machine_ref = machine.then(Box::default);
        object.status = Some(NatMappingStatus {
            observed_generation: Some(1),
            target: Some(Box::new(MachineTarget {
                address: Some(address.into()),
                state: Some(state),
                ..MachineTarget::default()
            })),
            ..NatMappingStatus::default()
        });
        trim(&mut object);
        object
    }

    #[test]
    fn of_a_status_only_the_address_of_a_machine_counts() {
        let before = after(true, "192.168.200.3", AddressState::Reported);
        assert_eq!(before, after(true, "192.168.200.3", AddressState::Held));
        assert_ne!(before, after(true, "192.168.200.4", AddressState::Reported));
        assert_eq!(after(false, "192.168.200.3", AddressState::Reported).status, None);
    }
}
