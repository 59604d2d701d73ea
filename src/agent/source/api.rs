//! In a cluster: objects as the API server tells them. While it is away, the last known state stays.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt, select_all};
use k8s_openapi::api::core::v1::Node;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::Instant;

use super::cache::{Cache, Change};
use super::{Problem, Snapshot, Snapshots};
use crate::api::{GatewayNode, NatMapping, StagingNetwork};
use crate::controller::gather;
use crate::telemetry::chain;

/// Resource versions that mean nothing new are passed on this late: the controller's own status writes come by the thousand.
const VERSION_DELAY: Duration = Duration::from_secs(1);
/// Events taken at once.
const BATCH: usize = 1024;

enum News {
    // Boxed: much larger than the others, and rare.
    Network(Box<Event<DeserializeGuard<StagingNetwork>>>),
    Mapping(Event<DeserializeGuard<NatMapping>>),
    Gateway(Event<DeserializeGuard<GatewayNode>>),
    Node(Event<PartialObjectMeta<Node>>),
    /// A watch that failed; it is tried again by itself.
    Away(&'static str, String),
}

struct State {
    node: String,
    networks: Cache<StagingNetwork>,
    mappings: Cache<NatMapping>,
    gateways: Cache<GatewayNode>,
    /// Labels of the own Node. None: not known yet.
    labels: Option<BTreeMap<String, String>>,
    found: bool,
    away: BTreeMap<&'static str, String>,
}

/// Watches everything that concerns `node`, in a task of its own.
pub fn watch(client: &Client, node: &str) -> (Snapshots, tokio::task::JoinHandle<()>) {
    let (sender, receiver) = watch::channel(None);
    let own = watcher::Config::default().fields(&format!("metadata.name={node}"));
    let nodes = kube::runtime::watcher(Api::<PartialObjectMeta<Node>>::all(client.clone()), own)
        .default_backoff()
        .map(|event| event.map_or_else(|e| News::Away("Node", chain(&e)), News::Node));
    let mut news = select_all([
        stream(client, "StagingNetwork", |event| News::Network(Box::new(event))),
        stream(client, "NatMapping", News::Mapping),
        stream(client, "GatewayNode", News::Gateway),
        nodes.boxed(),
    ])
    .ready_chunks(BATCH);
    let mut state = State::new(node);
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
                    if let Some(snapshot) = state.snapshot() {
                        sender.send_replace(Some(Arc::new(snapshot)));
                    }
                }
            }
        }
    });
    (receiver, task)
}

fn stream<K>(client: &Client, kind: &'static str, news: fn(Event<DeserializeGuard<K>>) -> News) -> BoxStream<'static, News>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + 'static,
{
    let api: Api<DeserializeGuard<K>> = Api::all(client.clone());
    kube::runtime::watcher(api, watcher::Config::default())
        .default_backoff()
        .map(move |event| event.map_or_else(|e| News::Away(kind, chain(&e)), news))
        .boxed()
}

impl State {
    fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            networks: Cache::new(|a, b| a.spec == b.spec && active(a) == active(b)),
            mappings: Cache::new(|a: &NatMapping, b| a.spec == b.spec).trimmed(trim),
            gateways: Cache::new(|a, b| interfaces(a) == interfaces(b)),
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
            News::Mapping(event) => {
                self.back("NatMapping", &event);
                self.mappings.take(event)
            }
            News::Gateway(event) => {
                self.back("GatewayNode", &event);
                let own = matches!(&event, Event::Apply(g) | Event::Delete(g) if g.name_any() == self.node);
                let change = self.gateways.take(event);
                // What this agent itself reported is no news to it.
                if own || change == Change::Version { Change::None } else { change }
            }
            News::Node(event) => {
                self.back("Node", &event);
                self.take_node(event)
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

    /// Everything, once every first list is complete.
    fn snapshot(&self) -> Option<Snapshot> {
        let labels = self.labels.clone()?;
        if !(self.networks.ready && self.mappings.ready && self.gateways.ready) {
            return None;
        }
        let gateways: Vec<GatewayNode> = self.gateways.objects().filter(|g| g.name_any() != self.node).cloned().collect();
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
        undecodable(&mut problems, "NatMapping", &self.mappings.bad);
        undecodable(&mut problems, "GatewayNode", &self.gateways.bad);
        Some(Snapshot {
            networks: self.networks.objects().cloned().collect(),
            mappings: self.mappings.shared().cloned().collect(),
            others,
            labels: Some(labels),
            problems,
        })
    }
}

/// Leaves of a mapping what is judged, and what tells it from its successor: what people note in labels and annotations is often longer than all the rest.
fn trim(mapping: &mut NatMapping) {
    mapping.status = None;
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

fn interfaces(gateway: &GatewayNode) -> Option<&Vec<crate::api::gatewaynode::InterfaceStatus>> {
    gateway.status.as_ref().map(|s| &s.interfaces)
}
