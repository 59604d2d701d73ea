//! Writes the status of networks and mappings, and makes a `GatewayNode` for each node that needs one. Nothing else: no spec, no finalizer, no object of its own but the
//! leader Lease and Events.
//!
//! ```text
//! watches → stores ─┐
//! agents' Leases ───┴→ gather → judge → aggregate → write what differs → events
//! ```
//!
//! | module | does | pure |
//! |---|---|---|
//! | [`leader`] | one leader among the replicas | the decision |
//! | [`watch`] | stores, fed by watches; the bell | |
//! | [`follow`] | feeds a store from a watch, and holds what is in doubt | |
//! | [`heartbeat`] | which agents are silent | yes |
//! | [`namespaces`] | labels of namespaces, while some network asks for them | |
//! | [`nodes`] | makes `GatewayNode`s for agents to report to | which are missing |
//! | [`api_server`] | under which addresses the API server is to be had | which ones count |
//! | [`patience`] | how long a judgement waits for labels and these | yes |
//! | [`backoff`] | how long a watch that failed rests | all but the clock |
//! | [`definitions`] | whether an object was deleted by somebody, or went with its kind | the decision |
//! | [`doubt`] | whether a list that lacks a lot may be believed | yes |
//! | [`stored`] | objects that this version cannot read | yes |
//! | [`seen`] | from which resource version on a report counts | yes |
//! | [`machines`] | virtual machines that mappings name | all but the watches |
//! | [`gather`] | the world, from stored objects | yes |
//! | [`aggregate`] | the status of every object; the standalone agent calls it too | yes |
//! | [`ledger`] | what was written and what failed | yes |
//! | [`write`](mod@write) | one patch | |
//! | [`reconcile`] | the pass that ties these together | |
//! | [`events`] | what a person should see | yes |
//! | `count` | what is Ready, for the metrics | |
//! | [`publish`] | one Event a happening, with a count | all but the writes |
//!
//! Every replica watches; only the leader writes. A replica that stops leading exits, and agents go on without it: nothing in a kernel depends on
//! this program, except which gateway is active when one falls silent.

pub mod aggregate;
pub mod api_server;
pub mod backoff;
mod count;
pub mod definitions;
pub mod doubt;
pub mod events;
pub mod follow;
pub mod gather;
pub mod heartbeat;
pub mod leader;
pub mod ledger;
pub mod machines;
pub mod namespaces;
pub mod nodes;
pub mod patience;
pub mod publish;
pub mod reconcile;
pub mod seen;
pub mod stored;
#[cfg(test)]
pub(crate) mod testing;
mod unread;
pub mod version;
pub mod watch;
pub mod write;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinError, JoinSet};
use tracing::info;

use self::events::Announcer;
use self::leader::{Elector, Lost, Timing};
use self::machines::Machines;
use self::namespaces::Labels;
use self::reconcile::Reconciler;
use self::watch::Stores;
use crate::telemetry::{Health, Metrics, Program, ServeError, chain, serve};

/// How long the worker may be silent before `/livez` fails: a pass writes 256 objects a kind, and a write that gets no answer gives up after 10 s.
const PATIENCE: Duration = Duration::from_mins(1);

/// How to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerOptions {
    /// The operator's namespace: the leader Lease and the agents' Leases are there.
    pub namespace: String,
    /// Name of this replica, different from all others: the pod's name.
    pub identity: String,
    /// Where probes and metrics are served; None: nowhere.
    pub listen: Option<SocketAddr>,
    /// Times of the election.
    pub timing: Timing,
    /// How long objects are held that a list lacks when it lacks more than half of what was there.
    pub guard: Duration,
}

/// Why the controller ended.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// There is no way to the API server.
    #[error("finding the API server: {0}")]
    Connect(String),
    /// Another replica may lead now. The process exits, so that nothing of the old leader lives on; it is started again and follows.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// Probes and metrics cannot be served.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Signals cannot be received.
    #[error("waiting for signals: {0}")]
    Signal(std::io::Error),
    /// A task that must not end has ended.
    #[error("a background task ended: {0}")]
    Ended(String),
}

/// Runs until SIGTERM or SIGINT. Everything else that ends it is an error.
pub async fn run(options: ControllerOptions) -> Result<(), ControllerError> {
    let client = Client::try_default()
        .await
        .map_err(|error| ControllerError::Connect(chain(&error)))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(ControllerError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ControllerError::Signal)?;
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    run_until(client, options, shutdown).await
}

/// Runs until `shutdown`, then gives the leader Lease away.
pub async fn run_until(client: Client, options: ControllerOptions, shutdown: impl Future<Output = ()>) -> Result<(), ControllerError> {
    let metrics = Arc::new(Metrics::new(Program::Controller));
    let health = Arc::new(Health::new("starting", PATIENCE));
    let (stores, writers) = Stores::new();
    let mut watches = JoinSet::new();
    stores.follow(writers, &client, &options.namespace, options.guard, &mut watches);
    let machines = Machines::new(stores.bell.clone());
    machines.follow(&client, options.guard, &mut watches);
    let (announcer, publishing) = Announcer::new(client.clone(), events::REPORTER, &options.identity);
    watches.spawn(publishing);
    let mut servers = JoinSet::new();
    if let Some(address) = options.listen {
        servers.spawn(serve(address, health.clone(), metrics.clone(), None));
    }
    let mut elector = Elector::new(client.clone(), &options.namespace, &options.identity, options.timing);
    let (namespaces, labelling) = Labels::new(client.clone());
    watches.spawn(labelling);
    let (api_server, locating) = api_server::follow(client.clone(), stores.bell.clone());
    watches.spawn(locating);
    let reconciler = Reconciler::new(client, stores.clone(), machines, announcer, metrics.clone()).asking(namespaces, api_server);
    let end = tokio::select! {
        () = shutdown => Ok(()),
        Some(ended) = watches.join_next() => Err(ControllerError::Ended(describe(ended.err()))),
        Some(ended) = servers.join_next() => Err(match ended {
            Ok(Err(error)) => error.into(),
            Ok(Ok(())) => ControllerError::Ended(describe(None)),
            Err(error) => ControllerError::Ended(describe(Some(error))),
        }),
        error = lead(&mut elector, reconciler, &stores, &health, &metrics) => Err(error),
    };
    info!("stopping");
    // Lost means that it is not ours to give away.
    if !matches!(end, Err(ControllerError::Lost(_))) {
        elector.release().await;
    }
    end
}

/// Follows, then leads, until leadership is lost. The work runs in a task of its own, so that a long pass never delays a renewal, and ends with
/// this future.
async fn lead(elector: &mut Elector, reconciler: Reconciler, stores: &Stores, health: &Arc<Health>, metrics: &Metrics) -> ControllerError {
    let acquired = tokio::select! {
        acquired = elector.acquire() => acquired,
        never = follow(stores, health) => match never {},
    };
    metrics.leader.set(1);
    let counted = stores.clone();
    metrics.count_objects(move || count::objects(&counted));
    let mut work = JoinSet::new();
    let (stores, health) = (stores.clone(), health.clone());
    work.spawn(async move {
        synced(&stores, &health).await;
        reconciler.run(&health).await;
    });
    tokio::select! {
        lost = elector.hold(acquired) => lost.into(),
        ended = work.join_next() => ControllerError::Ended(describe(ended.and_then(Result::err))),
    }
}

/// A follower is ready as soon as it could take over.
async fn follow(stores: &Stores, health: &Health) -> Infallible {
    synced(stores, health).await;
    loop {
        health.beat();
        tokio::time::sleep(PATIENCE / 4).await;
    }
}

/// Waits for the first lists. However long that takes, it is no reason to be restarted.
async fn synced(stores: &Stores, health: &Health) {
    let mut ready = std::pin::pin!(stores.ready(health));
    loop {
        health.beat();
        tokio::select! {
            () = &mut ready => return,
            () = tokio::time::sleep(PATIENCE / 4) => {}
        }
    }
}

fn describe(error: Option<JoinError>) -> String {
    error.map_or_else(|| "it returned".to_owned(), |error| error.to_string())
}
