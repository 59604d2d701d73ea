//! The controller's memory of the cluster: one store a kind, fed by watches, and a bell that rings when something changed that matters.
//!
//! Objects that cannot be decoded are kept as such, logged and left out of everything; they never stop a watch.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::{ObjectRef, Store, store};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::warn;

use super::heartbeat::{Heartbeats, LEASE_PREFIX};
use crate::api::{GatewayNode, NatMapping, StagingNetwork};
use crate::telemetry::{Health, chain, object_key};

/// A store of objects of which some may be undecodable.
pub type Guarded<K> = Store<DeserializeGuard<K>>;
/// Feeds a [`Guarded`] store.
type GuardedWriter<K> = kube::runtime::reflector::store::Writer<DeserializeGuard<K>>;

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

    /// Starts the watches. None of them ends by itself.
    pub fn follow(&self, writers: Writers, client: &Client, namespace: &str, tasks: &mut JoinSet<()>) {
        let bell = &self.bell;
        tasks.spawn(follow(Api::all(client.clone()), writers.networks, bell.clone(), any_change));
        tasks.spawn(follow(Api::all(client.clone()), writers.mappings, bell.clone(), any_change));
        tasks.spawn(follow(Api::all(client.clone()), writers.gateways, bell.clone(), any_change));
        tasks.spawn(follow(Api::all(client.clone()), writers.nodes, bell.clone(), |old, new| {
            old.is_none_or(|old: &PartialObjectMeta<Node>| old.labels() != new.labels())
        }));
        let stores = self.clone();
        let leases = Api::namespaced(client.clone(), namespace);
        tasks.spawn(follow(leases, writers.leases, bell.clone(), move |_, lease| {
            stores.hear(lease, Instant::now())
        }));
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

/// The objects of a store that could be decoded.
pub fn decoded<K: Resource<DynamicType = ()> + Clone>(store: &Guarded<K>) -> Vec<K> {
    store.state().iter().filter_map(|guard| guard.0.as_ref().ok().cloned()).collect()
}

/// Feeds a store from a watch, and rings when `matters` says so of an object's old and new state, when one is gone, and after every list.
async fn follow<K>(
    api: Api<K>,
    mut writer: kube::runtime::reflector::store::Writer<K>,
    bell: Arc<Notify>,
    matters: impl Fn(Option<&K>, &K) -> bool,
) where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Default + Eq + Hash + Clone,
{
    let kind = K::kind(&K::DynamicType::default()).into_owned();
    let reader = writer.as_reader();
    // managedFields are half of an object and nothing to us.
    let events = watcher(api, watcher::Config::default()).modify(|object| object.meta_mut().managed_fields = None);
    let mut events = std::pin::pin!(events.default_backoff());
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                warn!(kind, error = %chain(&error), "watching failed; trying again");
                continue;
            }
        };
        let ring = match &event {
            Event::Apply(object) => matters(reader.get(&ObjectRef::from_obj(object)).as_deref(), object),
            Event::InitApply(object) => {
                matters(None, object);
                false
            }
            Event::Delete(_) | Event::InitDone => true,
            Event::Init => false,
        };
        writer.apply_watcher_event(&event);
        if ring {
            bell.notify_one();
        }
    }
}

/// For the kinds of our own every change matters; what cannot be decoded is logged.
fn any_change<K: Resource<DynamicType = ()>>(_: Option<&DeserializeGuard<K>>, new: &DeserializeGuard<K>) -> bool {
    if let Err(invalid) = &new.0 {
        let (namespace, name) = (invalid.metadata.namespace.as_deref(), invalid.metadata.name.as_deref());
        let object = object_key(&K::kind(&()), namespace, name.unwrap_or_default());
        warn!(object, error = %invalid.error, "object cannot be decoded; it is left out, others are not affected");
    }
    true
}
