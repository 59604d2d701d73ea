//! In a cluster: objects as the API server tells them. While it is away, the last known state stays.
//!
//! Everybody watches networks and the own Node; what else concerns the node follows from these ([`crate::plan::concern`]). Nothing is told before all of that has been listed once,
//! also when more comes to concern it later: until then what was told before stays in force.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::StreamExt;
use kube::core::DeserializeGuard;
use kube::runtime::watcher::Event;
use kube::{Client, ResourceExt};
use tokio::sync::watch;

use super::cache::{Cache, Change};
use super::definitions::{Definitions, Standings};
use super::matter::{active, api_server, interfaces, trim, trim_gateway};
use super::own_node::OwnNode;
use super::topics::{News, Subscriptions, Topic};
use super::{Snapshot, Snapshots};
use crate::api::{GatewayNode, NatMapping, StagingNetwork};
use crate::controller::definitions::ASK;
use crate::controller::doubt::Believed;
use crate::controller::gather;
use crate::controller::namespaces::Heard;
use crate::controller::nodes::keep_report;
use crate::plan::{Borrowed, View, concern};

/// Resource versions that mean nothing new are passed on this late: the controller's own status writes come by the thousand.
const VERSION_DELAY: Duration = Duration::from_secs(1);
/// Events taken at once.
const BATCH: usize = 1024;

struct State {
    node: String,
    guard: Duration,
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
    own: OwnNode,
    /// What was made of other nodes' reports.
    gathered: gather::Memory,
    /// How the definitions stand for what is told now to be deleted.
    definitions: Standings,
    /// What of that cannot be watched just now.
    away: BTreeSet<Topic>,
}

/// Watches everything that concerns `node`, in a task of its own. `guard`: how long stays in force what lists lack and nobody tells to be deleted.
pub fn watch(client: &Client, node: &str, guard: Duration) -> (Snapshots, tokio::task::JoinHandle<()>) {
    let (sender, receiver) = watch::channel(None);
    let mut state = State::new(node, guard);
    let mut news = Subscriptions::new(client, node);
    news.follow(&state.topics);
    let mut news = news.ready_chunks(BATCH);
    let mut definitions = Definitions::of(client);
    let task = tokio::spawn(async move {
        let mut late: Option<Instant> = None;
        let mut asked = Instant::now();
        loop {
            let idle = Instant::now() + Duration::from_hours(1);
            let ask = state.asks().contains(&true).then_some(asked + ASK);
            let deadline = late.into_iter().chain(state.due()).chain(ask).min().unwrap_or(idle);
            let change = tokio::select! {
                batch = news.next() => match batch {
                    Some(batch) => {
                        state.definitions = definitions.standing(&batch).await;
                        batch.into_iter().map(|n| state.take(n, Instant::now())).max().unwrap_or(Change::None)
                    }
                    None => return,
                },
                () = tokio::time::sleep_until(deadline.into()) => {
                    // Nothing that is held for a definition's sake is let go without asking.
                    let standing = definitions.again(state.asks()).await;
                    asked = Instant::now();
                    state.asked(standing, asked);
                    let now = asked;
                    let late = if late.is_some_and(|late| late <= now) { Change::Meaning } else { Change::None };
                    late.max(state.over(now))
                }
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
    fn new(node: &str, guard: Duration) -> Self {
        Self {
            node: node.to_owned(),
            guard,
            // A fence comes down because its network was deleted, and for no other reason.
            networks: Cache::new(|a: &StagingNetwork, b| a.spec == b.spec && active(a) == active(b) && api_server(a) == api_server(b))
                .guarded(guard, Believed::All),
            mappings: BTreeMap::new(),
            gateways: None,
            namespaces: None,
            topics: BTreeSet::from([Topic::Networks, Topic::OwnNode]),
            client: false,
            own: OwnNode::new(node, guard),
            gathered: gather::Memory::default(),
            definitions: Standings::default(),
            away: BTreeSet::new(),
        }
    }

    /// When something that lists lack is to be taken for deleted.
    fn due(&self) -> Option<Instant> {
        let mappings = self.mappings.values().filter_map(Cache::due);
        let gateways = self.gateways.as_ref().and_then(Cache::due);
        mappings.chain(self.networks.due()).chain(gateways).chain(self.own.due()).min()
    }

    /// Of networks, mappings and gateways, whether the definition is to be asked for.
    fn asks(&self) -> [bool; 3] {
        [
            self.networks.asks(),
            self.mappings.values().any(Cache::asks),
            self.gateways.as_ref().is_some_and(Cache::asks),
        ]
    }

    /// The definitions stand like this now.
    fn asked(&mut self, standing: Standings, now: Instant) {
        self.networks.asked(standing.networks, now);
        self.mappings.values_mut().for_each(|cache| cache.asked(standing.mappings, now));
        self.gateways.iter_mut().for_each(|cache| cache.asked(standing.gateways, now));
    }

    /// Takes for deleted what was held long enough.
    fn over(&mut self, now: Instant) -> Change {
        let mut change = self.networks.over(now);
        for cache in self.mappings.values_mut() {
            change = change.max(cache.over(now));
        }
        if let Some(cache) = &mut self.gateways {
            change = change.max(cache.over(now));
        }
        change.max(self.own.over(now))
    }

    fn take(&mut self, news: News, now: Instant) -> Change {
        match news {
            News::Network(event) => {
                self.back(&[Topic::Networks], &event);
                match *event {
                    Event::Delete(object) => self.networks.hold(object, self.definitions.networks, now),
                    event => self.networks.take(event, now),
                }
            }
            News::Mapping(network, event) => {
                self.back(&[Topic::Mappings((*network).to_owned())], &event);
                // None: it has ceased to matter since this was said.
                let Some(cache) = self.mappings.get_mut(&*network) else {
                    return Change::None;
                };
                match event {
                    Event::Delete(object) => cache.hold(object, self.definitions.mappings, now),
                    event => cache.take(event, now),
                }
            }
            News::Gateway(event) => {
                self.back(&[Topic::Gateways, Topic::OwnGateway], &event);
                self.take_gateway(event, now)
            }
            News::Node(event) => {
                self.back(&[Topic::OwnNode], &event);
                self.own.take(event, now)
            }
            News::Namespace(event) => {
                self.back(&[Topic::Namespaces], &event);
                let changed = self.namespaces.as_mut().is_some_and(|heard| heard.take(event));
                if changed { Change::Meaning } else { Change::None }
            }
            News::Away(topic, error) => {
                if self.topics.contains(&topic) && self.away.insert(topic.clone()) {
                    tracing::warn!(kind = %topic, error, "watching; the last known state stays in force, it is tried again");
                }
                Change::None
            }
        }
    }

    /// One of the watches says something again. Its beginning says nothing: it is told before anything was received.
    fn back<K>(&mut self, topics: &[Topic], event: &Event<K>) {
        if self.away.is_empty() || matches!(event, Event::Init) {
            return;
        }
        for topic in topics.iter().filter(|topic| self.away.remove(topic)) {
            tracing::info!(kind = %topic, "watching again");
        }
    }

    fn take_gateway(&mut self, event: Event<DeserializeGuard<GatewayNode>>, now: Instant) -> Change {
        let own = matches!(&event, Event::Apply(g) | Event::Delete(g) if g.name_any() == self.node);
        let one = matches!(&event, Event::Apply(_) | Event::Delete(_));
        let Some(cache) = &mut self.gateways else {
            return Change::None;
        };
        let problems = |cache: &Cache<GatewayNode>| {
            let mut problems = Vec::new();
            cache.problems("GatewayNode", &mut problems);
            problems
        };
        let before = one.then(|| problems(cache));
        let change = match event {
            Event::Delete(object) => cache.hold(object, self.definitions.gateways, now),
            event => cache.take(event, now),
        };
        match change {
            // What is held, or cannot be read, is to be told, whosever it is.
            _ if before.is_some_and(|before| problems(cache) != before) => Change::Meaning,
            // What this agent itself reported is no news to it, unless its subnets decide what it has to know.
            Change::Meaning if own && !self.client => Change::None,
            Change::Version => Change::None,
            change => change,
        }
    }

    /// Chooses what is watched from what is known. Returns whether that is anything else than before.
    fn choose(&mut self) -> bool {
        let (Some(labels), true) = (self.own.labels(), self.networks.ready) else {
            return false;
        };
        let reported = self.gateways.as_ref().and_then(|cache| cache.named(&self.node));
        let own = gather::node(&self.node, labels, reported);
        let networks: Vec<_> = self.networks.shared().cloned().collect();
        let mappings: Vec<Arc<NatMapping>> = self.known_mappings().cloned().collect();
        let known = View {
            networks: Borrowed::Shared(&networks),
            mappings: Borrowed::Shared(&mappings),
            nodes: Borrowed::default(),
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
            self.gateways = watched.then(|| self.guarded_gateways());
        }
        if concern.namespaces != self.namespaces.is_some() {
            self.namespaces = concern.namespaces.then(Heard::default);
        }
        self.mappings.retain(|network, _| concern.mappings.contains(network));
        for network in concern.mappings {
            let cache = || {
                Cache::new(|a: &NatMapping, b| a.spec == b.spec && a.status == b.status)
                    .trimmed(trim)
                    .guarded(self.guard, Believed::Half)
            };
            self.mappings.entry(network).or_insert_with(cache);
        }
        self.away.retain(|topic| topics.contains(topic));
        self.topics = topics;
        true
    }

    fn guarded_gateways(&self) -> Cache<GatewayNode> {
        Cache::new(|a: &GatewayNode, b| interfaces(a) == interfaces(b))
            .trimmed(trim_gateway)
            .keeping(keep_report)
            .guarded(self.guard, Believed::Half)
    }

    fn known_mappings(&self) -> impl Iterator<Item = &Arc<NatMapping>> {
        // One that is held here may have gone to another network.
        let elsewhere = |cache: &Cache<NatMapping>, mapping: &NatMapping| {
            let mut others = self.mappings.values().filter(|other| !std::ptr::eq(*other, cache));
            cache.holds(mapping) && others.any(|other| other.has(mapping) && !other.holds(mapping))
        };
        let of = move |cache: &'_ Cache<NatMapping>, mapping: &&Arc<NatMapping>| !elsewhere(cache, mapping);
        self.mappings
            .values()
            .flat_map(move |cache| cache.shared().filter(move |mapping| of(cache, mapping)))
    }

    /// Everything, once all that is watched has been listed.
    fn snapshot(&mut self) -> Option<Snapshot> {
        let labels = self.own.labels().cloned()?;
        let listed = self.mappings.values().all(|cache| cache.ready) && self.gateways.as_ref().is_none_or(|cache| cache.ready);
        if !(self.networks.ready && listed) {
            return None;
        }
        let namespaces = match &self.namespaces {
            Some(heard) => heard.labels()?.clone(),
            None => Arc::default(),
        };
        let gateways = self.gateways.iter().flat_map(Cache::shared);
        let gateways: Vec<_> = gateways.filter(|g| g.metadata.name.as_ref() != Some(&self.node)).cloned().collect();
        // Nobody looks at other nodes' labels here: whether a node is a gateway it judges by its own.
        let names = gateways.iter().map(|g| (g.name_any(), BTreeMap::new())).collect();
        let others = self.gathered.nodes(&gateways, &names);
        let mut problems = Vec::new();
        self.networks.problems("StagingNetwork", &mut problems);
        for cache in self.mappings.values() {
            cache.problems("NatMapping", &mut problems);
        }
        if let Some(cache) = &self.gateways {
            cache.problems("GatewayNode", &mut problems);
        }
        problems.extend(self.own.problem());
        Some(Snapshot {
            networks: self.networks.shared().cloned().collect(),
            mappings: self.known_mappings().cloned().collect(),
            namespaces,
            others,
            labels: Some(labels),
            problems,
        })
    }
}
