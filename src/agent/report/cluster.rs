//! In a cluster: writes the status of this node's `GatewayNode`, on change of meaning only, and events for what a person should see.
//!
//! An API server that is away keeps nothing from working: the latest status is written when it is back, the ones in between never were needed.

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::watcher::watch_object;
use kube::{Client, Resource, ResourceExt};
use serde_json::json;
use tokio::time::Instant;

use super::{MANAGER, status};
use crate::agent::runner::{Report, Reports};
use crate::api::gatewaynode::GatewayNodeStatus;
use crate::api::{GatewayNode, GatewayNodeSpec, conditions, reasons};
use crate::controller::version::compare;
use crate::telemetry::chain;
use crate::telemetry::metrics::ResultLabel;
use crate::telemetry::{Health, Metrics};

/// Least time between two writes: with thousands of changes a second the last one counts.
const MIN_INTERVAL: Duration = Duration::from_millis(200);
/// First wait after a failed write; doubled up to [`RETRY_MAX`].
const RETRY: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Longest note of an event, in bytes (events.k8s.io/v1).
const NOTE_MAX: usize = 1000;

/// Reports until the runner ends. The object is made by the controller: until it is there `health` says what is waited for.
pub async fn keep(client: Client, node: String, mut reports: Reports, metrics: Arc<Metrics>, health: Arc<Health>) {
    let api: Api<GatewayNode> = Api::all(client.clone());
    let guarded: Api<DeserializeGuard<GatewayNode>> = Api::all(client.clone());
    let mut news = std::pin::pin!(watch_object(guarded, &node).default_backoff());
    let recorder = Recorder::new(
        client,
        Reporter {
            controller: MANAGER.to_owned(),
            instance: Some(node.clone()),
        },
    );
    let mut own = Own::Unknown;
    let mut told = Told::default();
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
                Some(Err(error)) => tracing::debug!(error = chain(&error), "watching GatewayNode {node}; it is tried again"),
                None => return,
            },
            changed = reports.changed() => if changed.is_err() { return },
            () = tokio::time::sleep_until(due) => {}
        }
        let latest = reports.borrow_and_update().clone();
        let (Some(report), Own::Present(stored)) = (latest, &own) else {
            continue;
        };
        if again.is_some_and(|at| at > Instant::now()) {
            continue;
        }
        again = None;
        match write(&api, &node, &report, altered.as_told(&stored.status)).await {
            Ok(None) => {}
            Ok(Some((wanted, written))) => {
                metrics.reports.get_or_create(&ResultLabel { result: "written" }).inc();
                let answer = Stored::of(&written);
                altered.note(wanted, &answer.status);
                own = Own::Present(Box::new(answer));
                again = Some(Instant::now() + MIN_INTERVAL);
            }
            Err(error) => {
                metrics.reports.get_or_create(&ResultLabel { result: "failed" }).inc();
                tracing::warn!(error = chain(&error), "writing the status of GatewayNode {node}; it is tried again");
                again = Some(Instant::now() + wait);
                wait = (wait * 2).min(RETRY_MAX);
                continue;
            }
        }
        wait = RETRY;
        publish(&recorder, &node, told.news(&report)).await;
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
}

struct Stored {
    uid: Option<String>,
    version: String,
    status: GatewayNodeStatus,
}

impl Stored {
    fn of(object: &GatewayNode) -> Self {
        Self {
            uid: object.uid(),
            version: object.resource_version().unwrap_or_default(),
            status: object.status.clone().unwrap_or_default(),
        }
    }
}

impl Own {
    /// Takes in what the watch says. What it says late of own writes is known already.
    fn take(&mut self, found: Option<DeserializeGuard<GatewayNode>>) {
        let Some(found) = found else {
            *self = Self::Absent;
            return;
        };
        let stored = match &found.0 {
            Ok(object) => Stored::of(object),
            // Written by another version: written anew.
            Err(_) => Stored {
                uid: found.uid(),
                version: found.resource_version().unwrap_or_default(),
                status: GatewayNodeStatus::default(),
            },
        };
        let late = |known: &Stored| known.uid == stored.uid && compare(&stored.version, &known.version) == Some(Ordering::Less);
        if !matches!(self, Self::Present(known) if late(known)) {
            *self = Self::Present(Box::new(stored));
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
        Own::Present(_) => None,
    };
    if !health.hold_up(waits) {
        return;
    }
    match own {
        Own::Unknown => {}
        Own::Absent => tracing::warn!(
            "there is no GatewayNode {node}: the status cannot be reported until the controller has created it; the kernel is kept as planned meanwhile"
        ),
        Own::Present(_) => tracing::info!("reporting to GatewayNode {node}"),
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

/// Writes the status if it says something else than what is stored. The answer, if it was written, is what was sent and the object.
async fn write(
    api: &Api<GatewayNode>,
    node: &str,
    report: &Report,
    stored: &GatewayNodeStatus,
) -> kube::Result<Option<(GatewayNodeStatus, GatewayNode)>> {
    let wanted = status::node(report, Some(stored), Timestamp::now());
    if *stored == wanted {
        return Ok(None);
    }
    let params = PatchParams::apply(MANAGER).force();
    let patch = json!({
        "apiVersion": GatewayNode::api_version(&()),
        "kind": GatewayNode::kind(&()),
        "metadata": {"name": node},
        "status": wanted,
    });
    let written = api.patch_status(node, &params, &Patch::Apply(&patch)).await?;
    Ok(Some((wanted, written)))
}

/// What a person was told.
#[derive(Default)]
struct Told {
    /// The last report that was told of: what it repaired was repaired once.
    report: Option<Arc<Report>>,
    /// Reason and message of what still holds.
    lasting: Vec<(String, String)>,
}

impl Told {
    /// Reason and message of each event of a pass: drift, addresses in use, failures. What was told and still holds is not told again, and no report is told twice.
    fn news(&mut self, report: &Arc<Report>) -> Vec<(String, String)> {
        if self.report.as_ref().is_some_and(|told| Arc::ptr_eq(told, report)) {
            return Vec::new();
        }
        self.report = Some(report.clone());
        let outcome = &report.outcome;
        let mut events = Vec::new();
        for drift in outcome.drift.iter().take(8).filter(|_| outcome.complete) {
            let by = report.by.as_ref().map(|by| format!(", by {by}")).unwrap_or_default();
            events.push((reasons::DRIFT_REPAIRED.to_owned(), format!("{}{by}; put back", drift.what)));
        }
        let mut lasting: Vec<(String, String)> = outcome.troubles.iter().map(|t| (t.reason.to_owned(), t.message.clone())).collect();
        for (key, state) in &outcome.mappings {
            if let crate::plan::MappingState::Failed(why) = state
                && (why.reason == reasons::ADDRESS_IN_USE || why.reason == reasons::RESTORE_REJECTED)
                && lasting.len() < 16
            {
                lasting.push((why.reason.to_owned(), format!("NatMapping {key}: {}", why.message)));
            }
        }
        events.extend(lasting.iter().filter(|l| !self.lasting.contains(l)).cloned());
        self.lasting = lasting;
        events
    }
}

/// Publishes warnings about this node.
async fn publish(recorder: &Recorder, node: &str, events: Vec<(String, String)>) {
    let reference = GatewayNode::new(node, GatewayNodeSpec {}).object_ref(&());
    for (reason, message) in events {
        let mut text = conditions::shorten(&message);
        while text.len() > NOTE_MAX {
            text.pop();
        }
        let event = Event {
            type_: EventType::Warning,
            reason: reason.clone(),
            note: Some(text),
            action: "Programming".to_owned(),
            secondary: None,
        };
        if let Err(error) = recorder.publish(&event, &reference).await {
            tracing::debug!(error = chain(&error), reason, "publishing an event");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::outcome::{Drift, Outcome, Trouble};
    use crate::agent::source::Snapshot;

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

    #[test]
    fn a_repair_is_told_once_and_what_lasts_is_not_told_again() {
        let report = |drift: &[&str], trouble: &[&str]| {
            let outcome = Outcome {
                complete: true,
                drift: drift
                    .iter()
                    .map(|what| Drift {
                        place: "mangle",
                        what: (*what).to_owned(),
                    })
                    .collect(),
                troubles: trouble
                    .iter()
                    .map(|said| Trouble {
                        reason: reasons::APPLY_FAILED,
                        message: (*said).to_owned(),
                    })
                    .collect(),
                ..Outcome::default()
            };
            Arc::new(Report {
                snapshot: Arc::new(Snapshot::default()),
                outcome,
                by: None,
                contended: false,
            })
        };
        let reasons_of = |news: Vec<(String, String)>| news.into_iter().map(|(reason, _)| reason).collect::<Vec<_>>();
        let mut told = Told::default();
        let first = report(&["a chain is gone"], &["no"]);
        assert_eq!(reasons_of(told.news(&first)), [reasons::DRIFT_REPAIRED, reasons::APPLY_FAILED]);
        assert_eq!(told.news(&first), [], "the status is looked at again while nothing happens");
        let again = report(&["a chain is gone"], &["no"]);
        assert_eq!(reasons_of(told.news(&again)), [reasons::DRIFT_REPAIRED], "undone and repaired anew");
        assert_eq!(told.news(&report(&[], &[])), []);
        assert_eq!(
            reasons_of(told.news(&report(&[], &["no"]))),
            [reasons::APPLY_FAILED],
            "it failed anew"
        );
    }
}
