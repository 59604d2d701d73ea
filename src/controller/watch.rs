//! The controller's memory of the cluster: one store a kind, fed by watches, and a bell that rings when something changed that matters.
//!
//! Objects that cannot be decoded keep their last spec that could be, and never stop a watch. A list that lacks too much is not believed at once
//! ([`super::doubt`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::{Store, store};
use kube::{Api, Client, Resource, ResourceExt};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::warn;

use super::follow::{Follow, Held, any_change, follow};
use super::heartbeat::{Heartbeats, LEASE_PREFIX};
use super::nodes::keep_report;
use super::stored::Stored;
use crate::api::{GatewayNode, NatMapping, StagingNetwork};
use crate::telemetry::{Health, object_key};

/// A store of objects of which some may be undecodable.
pub type Guarded<K> = Store<Stored<K>>;
/// Feeds a [`Guarded`] store.
type GuardedWriter<K> = kube::runtime::reflector::store::Writer<Stored<K>>;

/// All stores, and when agents were last heard of.
#[derive(Clone)]
pub struct Stores {
    /// All networks.
    pub networks: Guarded<StagingNetwork>,
    /// All mappings.
    pub mappings: Guarded<NatMapping>,
    /// All gateways' reports.
    pub gateways: Guarded<GatewayNode>,
    /// All nodes, their metadata only.
    pub nodes: Store<PartialObjectMeta<Node>>,
    /// Leases of the operator's namespace.
    leases: Store<Lease>,
    /// What follows from the Leases.
    heartbeats: Arc<Mutex<Heartbeats>>,
    /// Gateways' objects that are in their store for the guard's sake.
    pub held_gateways: Held,
    /// Nodes that are in theirs for it.
    pub held_nodes: Held,
    /// Rings when something changed. Rings once however often it was asked to while nobody listened.
    pub bell: Arc<Notify>,
}

/// What feeds [`Stores`].
pub struct Writers {
    /// Feeds the networks.
    pub networks: GuardedWriter<StagingNetwork>,
    /// Feeds the mappings.
    pub mappings: GuardedWriter<NatMapping>,
    /// Feeds the reports.
    pub gateways: GuardedWriter<GatewayNode>,
    /// Feeds the nodes.
    pub nodes: kube::runtime::reflector::store::Writer<PartialObjectMeta<Node>>,
    leases: kube::runtime::reflector::store::Writer<Lease>,
}

impl Stores {
    /// Empty stores and what feeds them.
    pub fn new() -> (Self, Writers) {
        let (networks, networks_writer) = store();
        let (mappings, mappings_writer) = store();
        let (gateways, gateways_writer) = store();
        let (nodes, nodes_writer) = store();
        let (leases, leases_writer) = store();
        let stores = Self {
            networks,
            mappings,
            gateways,
            nodes,
            leases,
            heartbeats: Arc::default(),
            held_gateways: Held::default(),
            held_nodes: Held::default(),
            bell: Arc::default(),
        };
        let writers = Writers {
            networks: networks_writer,
            mappings: mappings_writer,
            gateways: gateways_writer,
            nodes: nodes_writer,
            leases: leases_writer,
        };
        (stores, writers)
    }

    /// Starts the watches. None of them ends by itself. `guard`: how long what a list lacks is held when it lacks more than half.
    pub fn follow(&self, writers: Writers, client: &Client, namespace: &str, guard: Duration, tasks: &mut JoinSet<()>) {
        let bell = &self.bell;
        let all = || Follow::new(bell, guard);
        let networks = all().defined::<StagingNetwork>(client);
        tasks.spawn(follow(
            Api::all(client.clone()),
            writers.networks,
            networks,
            any_change,
            Stored::keep,
        ));
        let mappings = all().defined::<NatMapping>(client);
        tasks.spawn(follow(
            Api::all(client.clone()),
            writers.mappings,
            mappings,
            any_change,
            Stored::keep,
        ));
        let keep = |new: &mut Stored<GatewayNode>, old: &Stored<GatewayNode>| {
            new.keep(old);
            // A report that cannot be read is one: what was said before it counts no more.
            if let (None, Some(new), Some(old)) = (&new.unread_status, &mut new.object, &old.object) {
                keep_report(Arc::make_mut(new), old);
            }
        };
        let gateways = all().defined::<GatewayNode>(client).telling(&self.held_gateways);
        let reads = |old: Option<&Stored<GatewayNode>>, new: &Stored<GatewayNode>| {
            if let Some(error) = &new.unread_status
                && old.is_none_or(|old| old.unread_status.is_none())
            {
                let object = object_key("GatewayNode", None, &new.name_any());
                warn!(
                    object,
                    error, "its report cannot be read, probably because the agent is newer than this controller; it counts as none"
                );
            }
            any_change(old, new)
        };
        tasks.spawn(follow(Api::all(client.clone()), writers.gateways, gateways, reads, keep));
        let labels =
            |old: Option<&PartialObjectMeta<Node>>, new: &PartialObjectMeta<Node>| old.is_none_or(|old| old.labels() != new.labels());
        let nodes = all().telling(&self.held_nodes);
        tasks.spawn(follow(Api::all(client.clone()), writers.nodes, nodes, labels, |_, _| ()));
        let stores = self.clone();
        let leases = Api::namespaced(client.clone(), namespace);
        let heard = move |_: Option<&Lease>, lease: &Lease| stores.hear(lease, Instant::now());
        // A Lease that is not listed is silent, which is said after its time.
        let believing = Follow::new(bell, Duration::ZERO);
        tasks.spawn(follow(leases, writers.leases, believing, heard, |_, _| ()));
    }

    /// Returns once every watch has delivered its first list. `health` says which one is still waited for.
    pub async fn ready(&self, health: &Health) {
        let wait = |what: &str| health.not_ready(&format!("waiting for the first list of {what}"));
        // An error says that the watch has ended, which its own task reports.
        wait("StagingNetworks");
        let _ = self.networks.wait_until_ready().await;
        wait("NatMappings");
        let _ = self.mappings.wait_until_ready().await;
        wait("GatewayNodes");
        let _ = self.gateways.wait_until_ready().await;
        wait("Nodes");
        let _ = self.nodes.wait_until_ready().await;
        wait("Leases");
        let _ = self.leases.wait_until_ready().await;
        health.ready();
    }

    /// When agents were last heard of.
    pub fn heartbeats(&self) -> MutexGuard<'_, Heartbeats> {
        self.heartbeats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nodes whose agents have, or had, a heartbeat.
    pub fn agents(&self) -> BTreeSet<String> {
        let node = |lease: &Arc<Lease>| lease.name_any().strip_prefix(LEASE_PREFIX).map(str::to_owned);
        self.leases.state().iter().filter_map(node).collect()
    }

    /// Labels of every node of the cluster.
    pub fn labels(&self) -> BTreeMap<String, BTreeMap<String, String>> {
        self.nodes
            .state()
            .iter()
            .map(|node| (node.name_any(), node.labels().clone()))
            .collect()
    }

    /// Takes note of a Lease. Returns whether an agent's life reads differently now; a mere renewal changes nothing.
    pub fn hear(&self, lease: &Lease, now: Instant) -> bool {
        let name = lease.name_any();
        self.heartbeats().heard(now);
        let Some(node) = name.strip_prefix(LEASE_PREFIX) else {
            return false;
        };
        let seconds = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
        let duration = seconds.and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs);
        let version = lease.resource_version().unwrap_or_default();
        self.heartbeats().observe(node, &version, duration, now)
    }
}

/// The objects of a store of which a spec is known, by namespace and name.
pub fn decoded<K: Resource<DynamicType = ()> + Clone>(store: &Guarded<K>) -> Vec<Arc<K>> {
    let mut objects: Vec<Arc<K>> = store.state().iter().filter_map(|stored| stored.object.clone()).collect();
    objects.sort_unstable_by(|a, b| place(&**a).cmp(&place(&**b)));
    objects
}

/// Namespace and name, in the order in which objects are looked at.
pub fn place<K: Resource>(object: &K) -> (Option<&str>, Option<&str>) {
    (object.meta().namespace.as_deref(), object.meta().name.as_deref())
}

/// The objects of a store that this version cannot read, by namespace and name.
pub fn unreadable<K: Resource<DynamicType = ()> + Clone>(store: &Guarded<K>) -> Vec<Arc<Stored<K>>> {
    let mut objects: Vec<Arc<Stored<K>>> = store.state().into_iter().filter(|stored| stored.error.is_some()).collect();
    objects.sort_unstable_by(|a, b| place(&**a).cmp(&place(&**b)));
    objects
}
