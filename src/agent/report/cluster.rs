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
    let mut told: Vec<(String, String)> = Vec::new();
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
                tell(&recorder, &node, &report, &mut told).await;
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

/// Events of a pass: drift, addresses in use, failures. What was told and still holds is not told again.
async fn tell(recorder: &Recorder, node: &str, report: &Report, told: &mut Vec<(String, String)>) {
    let outcome = &report.outcome;
    let mut events: Vec<(EventType, &str, String)> = Vec::new();
    for drift in outcome.drift.iter().take(8).filter(|_| outcome.complete) {
        let by = report.by.as_ref().map(|by| format!(", by {by}")).unwrap_or_default();
        events.push((EventType::Warning, reasons::DRIFT_REPAIRED, format!("{}{by}; put back", drift.what)));
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
    let news: Vec<(String, String)> = lasting.iter().filter(|l| !told.contains(l)).cloned().collect();
    *told = lasting;
    for (reason, message) in &news {
        events.push((EventType::Warning, reason, message.clone()));
    }
    let reference = GatewayNode::new(node, GatewayNodeSpec {}).object_ref(&());
    for (type_, reason, message) in events {
        let mut text = conditions::shorten(&message);
        while text.len() > NOTE_MAX {
            text.pop();
        }
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(text),
            action: "Programming".to_owned(),
            secondary: None,
        };
        if let Err(error) = recorder.publish(&event, &reference).await {
            tracing::debug!(error = chain(&error), reason, "publishing an event");
        }
    }
}
