//! The one piece of work: from everything that is known to the status of every object.
//!
//! All objects are judged together, because claims are judged against each other. One pass does for any number of changes: the first change
//! after a quiet time is worked on at once, further ones wait until the worker has rested at least as long as it has worked.
//! A pass writes a bounded number of objects and then looks again, so that a change made during a big job is not at its end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::jiff::Timestamp;
use kube::{Client, Resource as _, ResourceExt};
use tracing::{debug, info, warn};

use super::aggregate::memory::{Memory as Settled, Objects};
use super::aggregate::{Inputs, Reports, Seen, Statuses};
use super::api_server::{Addresses, Found, Present};
use super::events::Announcer;
use super::gather::{self, Known};
use super::heartbeat::Life;
use super::ledger::{self, Failure, Ledger};
use super::machines::Machines;
use super::namespaces::Labels;
use super::nodes;
use super::patience::{Lacking, Patience};
use super::unread::{Blanks, Unread};
use super::watch::{Stores, decoded, place, unreadable};
use super::write::{Outcome, Reported, write};
use crate::api::reasons::{self, types};
use crate::api::{NatMapping, NatMappingStatus, StagingNetwork, conditions};
use crate::plan::{Borrowed, MappingKey, Memory, NodeFacts, Verdicts, View, isolation, judge_again};
use crate::telemetry::metrics::ReconcileLabels;
use crate::telemetry::{Health, Metrics, object_key};

/// Shortest time between the beginnings of two passes.
const REST: Duration = Duration::from_millis(20);
/// Objects of one kind that a pass writes.
const BATCH: usize = 256;
/// Writes under way at a time.
const CONCURRENCY: usize = 16;
/// After how long a creation that failed is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// How often an idle worker shows that it is alive.
const BEAT: Duration = Duration::from_secs(5);

/// Judges and writes.
pub struct Reconciler {
    client: Client,
    stores: Stores,
    machines: Machines,
    seen: Seen,
    gathered: gather::Memory,
    judged: Memory,
    settled: Settled,
    networks: Ledger<StagingNetwork>,
    mappings: Ledger<NatMapping>,
    namespaces: Labels,
    api_server: Option<Present>,
    addresses: Addresses,
    announcer: Announcer,
    metrics: Arc<Metrics>,
    outages: u32,
    patience: Patience,
    /// Whether anything has been judged yet.
    begun: bool,
    /// Objects of gateways that are there, of those of which the watch has not told so.
    made: BTreeSet<String>,
    /// What the last judgement had to do without.
    lacking: Option<String>,
}

impl Reconciler {
    /// Knows nothing yet.
    pub fn new(client: Client, stores: Stores, machines: Machines, announcer: Announcer, metrics: Arc<Metrics>) -> Self {
        Self {
            client,
            stores,
            machines,
            seen: Seen::default(),
            gathered: gather::Memory::default(),
            judged: Memory::default(),
            settled: Settled::default(),
            networks: Ledger::default(),
            mappings: Ledger::default(),
            namespaces: Labels::none(),
            api_server: None,
            addresses: Addresses::default(),
            announcer,
            metrics,
            outages: 0,
            patience: Patience::default(),
            begun: false,
            made: BTreeSet::new(),
            lacking: None,
        }
    }

    /// Learns labels of namespaces and the API server's addresses from there. Without this no labels are known, and the API server has no addresses.
    #[must_use]
    pub fn asking(self, namespaces: Labels, api_server: Present) -> Self {
        Self {
            namespaces,
            api_server: Some(api_server),
            ..self
        }
    }

    /// Works until the task is dropped.
    pub async fn run(mut self, health: &Health) {
        loop {
            health.beat();
            let begun = Instant::now();
            // Taken before the pass, which may end after somebody has fallen silent whom it still took for alive.
            let lives = self.lives();
            let next = self.reconcile().await;
            if health.hold_up(self.lacking.clone()) {
                if let Some(lacking) = &self.lacking {
                    warn!(lacking, "judging without something that cannot be read; it is tried again");
                } else {
                    info!("everything can be read again");
                }
            }
            let rest = begun + REST.max(begun.elapsed().min(Duration::from_secs(1)));
            self.wait(next, &lives, health).await;
            tokio::time::sleep_until(rest.into()).await;
        }
    }

    /// One pass: gather → judge → aggregate → write. Returns when there is more to do even if nothing changes until then.
    pub async fn reconcile(&mut self) -> Option<Instant> {
        let now = Instant::now();
        self.metrics.reconciling();
        let (unread, mut blanks) = Unread::sort(&unreadable(&self.stores.networks), &unreadable(&self.stores.mappings));
        let known = self.objects(&mut blanks);
        let (nodes, reports) = self.nodes(now);
        let needed = known.networks.iter().any(|network| network.selects_namespaces());
        let labels = self.namespaces.ask(needed);
        let present = self.api_server.as_ref();
        let found = present.map_or_else(Found::nowhere, |present| present.borrow().clone());
        let api_server = self.addresses.count(&found, &known.networks, now);
        let lacking = Lacking {
            namespaces: labels.is_none(),
            api_server: !found.complete,
        };
        // What is on its way ends the wait when it comes. Until then what was said stays said: of everything before the first judgement, later of what depends on labels. Addresses that
        // were known stay known.
        let patience = self.patience.until(lacking, now).filter(|_| lacking.namespaces || !self.begun);
        if patience.is_some() && !self.begun {
            return patience;
        }
        self.begun = true;
        if patience.is_none() {
            self.lacking = lacking.said();
        }
        let namespaces = labels.unwrap_or_default();
        self.seen.observe(&known.mappings);
        let (machines, judged) = self.machines.resolve(&known.networks, &known.mappings);
        let world = View {
            networks: Borrowed::Shared(&known.networks),
            mappings: Borrowed::Shared(&judged),
            nodes: Borrowed::Shared(&nodes),
            namespaces: &namespaces,
        };
        let verdicts = judge_again(world, &mut self.judged);
        let complete = self.make_gateway_nodes(&verdicts).await;
        let now = Timestamp::now();
        let inputs = Inputs {
            world,
            verdicts: &verdicts,
            reports: &reports,
            isolation: &isolation::allocate(world, &verdicts),
            machines: &machines,
            api_server: &api_server,
            seen: &self.seen,
            now,
        };
        let objects = Objects {
            stored: &known.mappings,
            judged: &judged,
        };
        let mut statuses = self.settled.aggregate(&inputs, objects);
        if patience.is_some() {
            statuses.mappings.retain(|_, status| !waits_for_labels(status));
        }
        unread.tell(&known, &blanks, &mut statuses, now);
        let (networks, mappings) = pair(&known, &blanks, statuses);
        // Networks first: which gateway is active is what agents wait for before anything else.
        let mut pass = Pass::new(&self.client, &self.announcer, &self.metrics);
        let mut next = pass.write(networks, &mut self.networks).await;
        next = earliest(next, pass.write(mappings, &mut self.mappings).await);
        let outage = pass.outage;
        let again = (!complete).then(|| Instant::now() + RETRY);
        earliest(earliest(next, patience), earliest(again, self.after_outage(outage)))
    }

    /// Agents that run, and nodes that a network selects, have an object to report to. Returns whether all of them have.
    async fn make_gateway_nodes(&mut self, verdicts: &Verdicts) -> bool {
        let mut wanted = self.stores.agents();
        wanted.extend(verdicts.networks.values().flat_map(|network| network.gateways.iter().cloned()));
        // A Node that is only held may be no more, or another one: what it owned would be collected at once.
        let doubtful = self.stores.held_nodes.names();
        wanted.retain(|node| !doubtful.contains(node));
        // An object that is only held is to be made anew, once.
        let held = self.stores.held_gateways.names();
        self.made.retain(|node| held.contains(node));
        let held: BTreeSet<String> = held.difference(&self.made).cloned().collect();
        // Also those that cannot be decoded.
        let gateways = self.stores.gateways.state();
        let present = gateways.iter().map(|gateway| gateway.name_any());
        let present = present.filter(|node| !held.contains(node)).collect();
        let nodes = self.stores.nodes.state();
        let missing = nodes::missing(nodes.iter().map(AsRef::as_ref), &wanted, &present);
        let sure = nodes.iter().filter(|node| !doubtful.contains(&node.name_any()));
        let strays = nodes::strays(sure.map(AsRef::as_ref), gateways.iter().map(|gateway| gateway.meta()));
        let created = nodes::create(&self.client, missing).await;
        self.made.extend(created.settled);
        // One creation that is refused holds up no adoption.
        let adopted = nodes::adopt(&self.client, strays).await;
        created.complete && adopted.complete
    }

    /// What the stores hold of networks and mappings, with own writes that they have not caught up with.
    fn objects(&mut self, blanks: &mut Blanks) -> Known {
        let mut known = Known {
            networks: decoded(&self.stores.networks),
            mappings: decoded(&self.stores.mappings),
        };
        self.networks.overlay([&mut known.networks, &mut blanks.networks]);
        self.mappings.overlay([&mut known.mappings, &mut blanks.mappings]);
        known
    }

    /// The nodes, and what their agents say.
    fn nodes(&mut self, now: Instant) -> (Vec<Arc<NodeFacts>>, Reports) {
        let gateways = decoded(&self.stores.gateways);
        let labels = self.stores.labels();
        let mut heartbeats = self.stores.heartbeats();
        heartbeats.retain(|node| labels.contains_key(node));
        for gateway in &gateways {
            heartbeats.expect(&gateway.name_any(), now);
        }
        let reports = self.gathered.reports(&gateways, |node| heartbeats.life(node, now));
        drop(heartbeats);
        (self.gathered.nodes(&gateways, &labels), reports)
    }

    /// How long to leave the API server alone.
    fn after_outage(&mut self, error: Option<String>) -> Option<Instant> {
        let Some(error) = error else {
            self.outages = 0;
            self.metrics.reconciled();
            return None;
        };
        let pause = ledger::backoff(self.outages);
        warn!(error, ?pause, "could not write status; trying again");
        self.outages = self.outages.saturating_add(1);
        Some(Instant::now() + pause)
    }

    /// Until something changes, `next` has come, or agents' lives are others than `lives`. During an outage only the time counts: hammering helps nobody.
    async fn wait(&mut self, next: Option<Instant>, lives: &[Life], health: &Health) {
        loop {
            let now = Instant::now();
            if next.is_some_and(|next| next <= now) || self.lives() != lives {
                return;
            }
            let silence = self.stores.heartbeats().next_silence(now);
            let until = earliest(next, silence).unwrap_or(now + BEAT).min(now + BEAT);
            tokio::select! {
                () = self.stores.bell.notified(), if self.outages == 0 => return,
                () = self.namespaces.changed(), if self.outages == 0 => return,
                () = tokio::time::sleep_until(until.into()) => {}
            }
            health.beat();
            self.metrics.rests();
        }
    }

    fn lives(&self) -> Vec<Life> {
        let now = Instant::now();
        let heartbeats = self.stores.heartbeats();
        self.stores
            .gateways
            .state()
            .iter()
            .map(|gateway| heartbeats.life(&gateway.name_any(), now))
            .collect()
    }
}

/// Whether labels of its namespace would decide about a mapping.
fn waits_for_labels(status: &NatMappingStatus) -> bool {
    conditions::find(&status.conditions, types::ACCEPTED).is_some_and(|condition| condition.reason == reasons::NAMESPACE_UNKNOWN)
}

/// What logs call an object.
fn key<K: Reported>(object: &K) -> String {
    object_key(K::KIND, object.namespace().as_deref(), &object.name_any())
}

/// Each object with the status that it should have.
type Wanted<K> = Vec<(Arc<K>, <K as Reported>::Status)>;

fn pair(known: &Known, blanks: &Blanks, mut statuses: Statuses) -> (Wanted<StagingNetwork>, Wanted<NatMapping>) {
    let networks = known.networks.iter().chain(&blanks.networks).filter_map(|object| {
        let status = statuses.networks.remove(&object.name_any())?;
        Some((object.clone(), status))
    });
    let find = |list: &[Arc<NatMapping>], key: &MappingKey| {
        let key = (Some(&*key.namespace), Some(&*key.name));
        let at = list.binary_search_by(|object| place(&**object).cmp(&key)).ok()?;
        list.get(at).cloned()
    };
    let mappings = statuses.mappings.into_iter().filter_map(|(key, status)| {
        let object = find(&known.mappings, &key).or_else(|| find(&blanks.mappings, &key))?;
        Some((object, status))
    });
    (networks.collect(), mappings.collect())
}

fn earliest(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    [a, b].into_iter().flatten().min()
}

/// The writes of one pass.
struct Pass<'a> {
    client: &'a Client,
    announcer: &'a Announcer,
    metrics: &'a Metrics,
    unavailable: AtomicBool,
    outage: Option<String>,
}

impl<'a> Pass<'a> {
    fn new(client: &'a Client, announcer: &'a Announcer, metrics: &'a Metrics) -> Self {
        Self {
            client,
            announcer,
            metrics,
            unavailable: AtomicBool::new(false),
            outage: None,
        }
    }

    /// Writes what differs, and takes note of what came of it.
    async fn write<K: Reported>(&mut self, wanted: Wanted<K>, ledger: &mut Ledger<K>) -> Option<Instant> {
        let todo = ledger.changes(wanted, BATCH, Instant::now());
        let mut next = todo.next;
        let (mut written, mut failed) = (0, 0);
        let (client, unavailable) = (self.client, &self.unavailable);
        let mut outcomes = futures::stream::iter(todo.changes)
            .map(|change| async move {
                let outcome = write(client, &change, unavailable).await;
                (change, outcome)
            })
            .buffer_unordered(CONCURRENCY);
        while let Some((change, outcome)) = outcomes.next().await {
            let (object, now) = (&*change.object, Instant::now());
            match outcome {
                Outcome::Written(answer) => {
                    written += 1;
                    self.announcer
                        .say(K::notices(object.status(), &change.status), &object.object_ref(&()));
                    ledger.wrote(*answer);
                    continue;
                }
                Outcome::Gone => ledger.forget(object),
                Outcome::Conflict => {
                    debug!(object = key(object), "changed meanwhile; judging it anew");
                    next = earliest(next, Some(ledger.failed(object, Failure::Conflict, now)));
                }
                Outcome::Refused(error) => {
                    warn!(object = key(object), error, "the API server refused a status");
                    next = earliest(next, Some(ledger.failed(object, Failure::Refused, now)));
                }
                Outcome::Unavailable(error) => self.outage = Some(error),
                Outcome::Skipped => {}
            }
            failed += 1;
        }
        for (result, count) in [("unchanged", todo.unchanged), ("written", written), ("failed", failed)] {
            self.metrics
                .reconciles
                .get_or_create(&ReconcileLabels { kind: K::KIND, result })
                .inc_by(count);
        }
        next
    }
}
