//! In a cluster: writes the status of this node's `GatewayNode`, on change of meaning only, and events for what a person should see.
//!
//! An API server that is away keeps nothing from working: the latest status is written when it is back, the ones in between never were needed.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::watch_object;
use kube::{Client, Resource, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::news::News;
use super::{MANAGER, status};
use crate::agent::runner::{Report, Reports};
use crate::api::gatewaynode::GatewayNodeStatus;
use crate::api::{GatewayNode, GatewayNodeSpec};
use crate::controller::backoff::WatchBackoff;
use crate::controller::publish::Announcer;
use crate::controller::version::compare;
use crate::telemetry::metrics::{ResultLabel, unix_now};
use crate::telemetry::{Health, Metrics};
use crate::telemetry::{chain, object_key};

/// Least time between two writes: with thousands of changes a second the last one counts.
const MIN_INTERVAL: Duration = Duration::from_millis(200);
/// First wait after a failed write; doubled up to [`RETRY_MAX`].
const RETRY: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Reports until the runner ends. The object is made by the controller: until it is there `health` says what is waited for.
/// News are said of it, and wait for it too.
pub async fn keep(
    client: Client,
    node: String,
    (mut reports, mut told): (Reports, mpsc::Receiver<News>),
    metrics: Arc<Metrics>,
    health: Arc<Health>,
) {
    let api: Api<GatewayNode> = Api::all(client.clone());
    let guarded: Api<DeserializeGuard<GatewayNode>> = Api::all(client.clone());
    let mut news = std::pin::pin!(watch_object(guarded, &node).backoff(WatchBackoff::default()));
    let (announcer, publishing) = Announcer::new(client, MANAGER, &node);
    let mut publishing = std::pin::pin!(publishing);
    let object = object_key("GatewayNode", None, &node);
    let mut own = Own::Unknown;
    let mut altered = Altered::default();
    let mut wait = RETRY;
    // Not before, but then whatever happens: something may have come meanwhile.
    let mut again: Option<Instant> = None;
    loop {
        announce(&own, &node, &health);
        let due = again.unwrap_or_else(|| Instant::now() + Duration::from_hours(1));
        tokio::select! {
            found = news.next() => match found {
                Some(Ok(found)) => own.take(found),
                Some(Err(error)) => tracing::debug!(object, error = chain(&error), "watching; it is tried again"),
                None => return,
            },
            changed = reports.changed() => if changed.is_err() { return },
            Some(news) = told.recv(), if matches!(own, Own::Present(_)) => {
                announcer.publish(news.notice(), &own.reference(&node));
                continue;
            }
            () = &mut publishing => return,
            () = tokio::time::sleep_until(due) => {}
        }
        let latest = reports.borrow_and_update().clone();
        let (Some(report), Some((stored, listed))) = (latest, own.stored()) else {
            continue;
        };
        if again.is_some_and(|at| at > Instant::now()) {
            continue;
        }
        again = None;
        match write(&api, &node, &report, (stored.generation, altered.as_told(&stored.status)), !listed).await {
            Ok(None) => {}
            Ok(Some((wanted, written))) => {
                metrics.reports.get_or_create(&ResultLabel { result: "written" }).inc();
                metrics.api_last_success.set(unix_now());
                let answer = Stored::of(&written);
                altered.note(wanted, &answer.status);
                own = Own::Present(Box::new(answer));
                again = Some(Instant::now() + MIN_INTERVAL);
            }
            Err(kube::Error::Api(refusal)) if refusal.is_not_found() => {
                // Once may be the word of one API server that lags behind.
                own = match own {
                    Own::Present(stored) => Own::Doubtful(stored),
                    _ => Own::Absent,
                };
                again = Some(Instant::now() + wait);
                continue;
            }
            Err(error) => {
                metrics.reports.get_or_create(&ResultLabel { result: "failed" }).inc();
                tracing::warn!(object, error = chain(&error), "writing the status; it is tried again");
                again = Some(Instant::now() + wait);
                wait = (wait * 2).min(RETRY_MAX);
                continue;
            }
        }
        wait = RETRY;
    }
}

/// The object that is reported to.
enum Own {
    /// Nobody has said yet whether there is one.
    Unknown,
    /// There is none.
    Absent,
    /// As last heard of, or written.
    Present(Box<Stored>),
    /// A list lacks it, or it was deleted: the next write will tell.
    Doubtful(Box<Stored>),
}

struct Stored {
    uid: Option<String>,
    generation: i64,
    version: String,
    status: GatewayNodeStatus,
}

impl Stored {
    fn of(object: &GatewayNode) -> Self {
        Self {
            uid: object.uid(),
            generation: object.metadata.generation.unwrap_or_default(),
            version: object.resource_version().unwrap_or_default(),
            status: object.status.clone().unwrap_or_default(),
        }
    }
}

impl Own {
    /// Takes in what the watch says. What it says late of own writes is known already.
    fn take(&mut self, found: Option<DeserializeGuard<GatewayNode>>) {
        let Some(found) = found else {
            *self = match std::mem::replace(self, Self::Absent) {
                Self::Present(stored) | Self::Doubtful(stored) => Self::Doubtful(stored),
                Self::Unknown | Self::Absent => Self::Absent,
            };
            return;
        };
        let stored = match &found.0 {
            Ok(object) => Stored::of(object),
            // Written by another version: written anew.
            Err(_) => Stored {
                uid: found.uid(),
                generation: found.meta().generation.unwrap_or_default(),
                version: found.resource_version().unwrap_or_default(),
                status: GatewayNodeStatus::default(),
            },
        };
        let late = |known: &Stored| known.uid == stored.uid && compare(&stored.version, &known.version) == Some(Ordering::Less);
        if !matches!(self, Self::Present(known) if late(known)) {
            *self = Self::Present(Box::new(stored));
        }
    }

    /// What events are said of. With its identity: `kubectl describe` asks for that.
    fn reference(&self, node: &str) -> ObjectReference {
        let mut object = GatewayNode::new(node, GatewayNodeSpec {});
        if let Some((stored, _)) = self.stored() {
            object.metadata.uid.clone_from(&stored.uid);
        }
        object.object_ref(&())
    }

    /// What a report is compared with, and whether there is no doubt that it is there.
    fn stored(&self) -> Option<(&Stored, bool)> {
        match self {
            Self::Unknown | Self::Absent => None,
            Self::Present(stored) => Some((stored, true)),
            Self::Doubtful(stored) => Some((stored, false)),
        }
    }
}

/// Says, once each time, that the object is waited for, and that it is there.
fn announce(own: &Own, node: &str, health: &Health) {
    let waits = match own {
        Own::Unknown => Some(format!("the API server to say whether there is a GatewayNode {node}")),
        Own::Absent => Some(format!(
            "GatewayNode {node}, which the controller creates for each Node of the cluster whose agent it has heard of"
        )),
        Own::Present(_) | Own::Doubtful(_) => None,
    };
    if !health.hold_up(waits) {
        return;
    }
    let object = object_key("GatewayNode", None, node);
    match own {
        Own::Unknown => {}
        Own::Absent => tracing::warn!(
            object,
            "there is no such object: the status cannot be reported until the controller has created it; the kernel is kept as planned meanwhile"
        ),
        Own::Present(_) | Own::Doubtful(_) => tracing::info!(object, "reporting"),
    }
}

/// A report that the API server stored otherwise than it was sent: it leaves out fields that its definition of the kind does not have yet. Compared with what is stored, the next report
/// would differ again, whatever it says, and be written for ever.
#[derive(Default)]
struct Altered {
    /// What was sent last, and what was stored for it.
    last: Option<(GatewayNodeStatus, GatewayNodeStatus)>,
    warned: bool,
}

impl Altered {
    fn note(&mut self, sent: GatewayNodeStatus, stored: &GatewayNodeStatus) {
        let differs = sent != *stored;
        if differs && !std::mem::replace(&mut self.warned, true) {
            tracing::warn!(
                "the API server does not store the whole report: its definition of GatewayNode is probably of another version than this agent; apply the definitions (crds/) of the agent's version"
            );
        }
        self.last = differs.then(|| (sent, stored.clone()));
    }

    /// What is stored, as it was sent if that is what it comes from.
    fn as_told<'a>(&'a self, stored: &'a GatewayNodeStatus) -> &'a GatewayNodeStatus {
        match &self.last {
            Some((sent, was)) if was == stored => sent,
            _ => stored,
        }
    }
}

/// Writes the status if it says something else than what is stored, or if it is doubtful whether the object is there. The answer, if it was written, is what was sent and the object.
async fn write(
    api: &Api<GatewayNode>,
    node: &str,
    report: &Report,
    (generation, stored): (i64, &GatewayNodeStatus),
    doubtful: bool,
) -> kube::Result<Option<(GatewayNodeStatus, GatewayNode)>> {
    let wanted = status::node(report, generation, Some(stored), Timestamp::now());
    if *stored == wanted && !doubtful {
        return Ok(None);
    }
    let params = PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    };
    // No server-side apply: of that a field that an older definition does not have is refused, and with it the report. Here it is left out.
    let patch = serde_json::from_value(json!([{"op": "add", "path": "/status", "value": wanted}])).map_err(kube::Error::SerdeError)?;
    let written = api.patch_status(node, &params, &Patch::Json::<()>(patch)).await?;
    Ok(Some((wanted, written)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An older definition of the kind has no `refusedCount`: what is stored lacks it.
    #[test]
    fn a_report_that_is_stored_otherwise_is_written_once() {
        let sent = |programmed: u32| GatewayNodeStatus {
            failure_count: programmed,
            refused_count: 3,
            ..GatewayNodeStatus::default()
        };
        let pruned = |programmed: u32| GatewayNodeStatus {
            refused_count: 0,
            ..sent(programmed)
        };
        let mut altered = Altered::default();
        assert_eq!(*altered.as_told(&pruned(1)), pruned(1), "nothing was sent yet");
        altered.note(sent(1), &pruned(1));
        assert_eq!(*altered.as_told(&pruned(1)), sent(1), "the same report differs no more");
        assert_eq!(*altered.as_told(&pruned(2)), pruned(2), "somebody else wrote there");
        altered.note(sent(2), &sent(2));
        assert_eq!(*altered.as_told(&pruned(1)), pruned(1), "the definition is there now");
    }
}
