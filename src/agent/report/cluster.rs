//! In a cluster: writes the status of this node's `GatewayNode`, on change of meaning only, and events for what a person should see.
//!
//! An API server that is away keeps nothing from working: the latest status is written when it is back, the ones in between never were needed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use serde_json::json;
use tokio::time::timeout;

use super::{MANAGER, status};
use crate::agent::runner::{Report, Reports};
use crate::api::gatewaynode::GatewayNodeStatus;
use crate::api::{GatewayNode, GatewayNodeSpec, conditions, reasons};
use crate::telemetry::Metrics;
use crate::telemetry::chain;
use crate::telemetry::metrics::ResultLabel;

/// Least time between two writes: with thousands of changes a second the last one counts.
const MIN_INTERVAL: Duration = Duration::from_millis(200);
/// First wait after a failed write; doubled up to [`RETRY_MAX`].
const RETRY: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// What was written is compared with what is stored this often.
const REREAD: Duration = Duration::from_secs(50);
/// Longest note of an event, in bytes (events.k8s.io/v1).
const NOTE_MAX: usize = 1000;

/// Reports until the runner ends.
pub async fn keep(client: Client, node: String, mut reports: Reports, metrics: Arc<Metrics>) {
    let api: Api<GatewayNode> = Api::all(client.clone());
    let recorder = Recorder::new(
        client,
        Reporter {
            controller: MANAGER.to_owned(),
            instance: Some(node.clone()),
        },
    );
    let mut written: Option<GatewayNodeStatus> = None;
    let mut read = Instant::now();
    let mut told = Told::default();
    let mut wait = RETRY;
    loop {
        let Some(report) = reports.borrow_and_update().clone() else {
            if reports.changed().await.is_err() {
                return;
            }
            continue;
        };
        if read.elapsed() > REREAD {
            // Somebody may have deleted or changed the object meanwhile.
            written = None;
            read = Instant::now();
        }
        let pause = match write(&api, &node, &report, &mut written).await {
            Ok(changed) => {
                if changed {
                    metrics.reports.get_or_create(&ResultLabel { result: "written" }).inc();
                }
                wait = RETRY;
                publish(&recorder, &node, told.news(&report)).await;
                MIN_INTERVAL
            }
            Err(error) => {
                metrics.reports.get_or_create(&ResultLabel { result: "failed" }).inc();
                tracing::warn!(error = chain(&error), "writing the status of GatewayNode {node}; it is tried again");
                // Somebody may have deleted or changed the object: what is there is read again.
                written = None;
                let pause = wait;
                wait = (wait * 2).min(RETRY_MAX);
                tokio::time::sleep(pause).await;
                continue;
            }
        };
        tokio::time::sleep(pause).await;
        // What was written is looked at again also while nothing happens.
        if matches!(timeout(REREAD, reports.changed()).await, Ok(Err(_))) {
            return;
        }
    }
}

/// Writes the status if it says something else than what was written. Tells whether it wrote.
async fn write(api: &Api<GatewayNode>, node: &str, report: &Report, written: &mut Option<GatewayNodeStatus>) -> kube::Result<bool> {
    let present = match written.take() {
        Some(present) => Some(present),
        None => api.get_opt(node).await?.map(|object| object.status.unwrap_or_default()),
    };
    let params = PatchParams::apply(MANAGER).force();
    let wanted = status::node(report, present.as_ref(), Timestamp::now());
    if present.as_ref() == Some(&wanted) {
        *written = present;
        return Ok(false);
    }
    if present.is_none() {
        let object = GatewayNode::new(node, GatewayNodeSpec {});
        api.patch(node, &params, &Patch::Apply(&object)).await?;
    }
    let patch = json!({
        "apiVersion": GatewayNode::api_version(&()),
        "kind": GatewayNode::kind(&()),
        "metadata": {"name": node},
        "status": wanted,
    });
    api.patch_status(node, &params, &Patch::Apply(&patch)).await?;
    *written = Some(wanted);
    Ok(true)
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
