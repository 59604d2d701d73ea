//! Standalone: the statuses that a cluster would show, computed by the controller's own functions and kept in a file.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::status;
use crate::agent::files;
use crate::agent::runner::{Report, Reports};
use crate::api::gatewaynode::GatewayNodeStatus;
use crate::api::{GatewayNode, GatewayNodeSpec, StagingNetwork};
use crate::controller::aggregate::{self, Inputs, Life, Seen, Statuses};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::ResultLabel;

/// Everything that a cluster would store as status.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// Of networks and mappings.
    pub statuses: Statuses,
    /// Of the node.
    pub node: GatewayNodeStatus,
}

/// What the objects' statuses are after a pass, given what they were.
pub fn standing(report: &Report, before: &Standing, now: Timestamp) -> Standing {
    let node = status::node(report, Some(&before.node), now);
    let name = report.outcome.facts.name.clone();
    let mut world = report.snapshot.world(report.outcome.facts.clone());
    let given = |network: &StagingNetwork| Some((network.name_any(), network.status.as_ref()?.isolation?));
    let isolation = world.networks.iter().filter_map(given).collect();
    for network in &mut world.networks {
        network.status = before.statuses.networks.get(&network.name_any()).cloned();
    }
    for mapping in &mut world.mappings {
        mapping.status = before.statuses.mappings.get(&aggregate::key(mapping)).cloned();
    }
    let reports = BTreeMap::from([(
        name,
        aggregate::Report {
            status: node.clone(),
            life: Life::Alive,
        },
    )]);
    let statuses = aggregate::aggregate(&Inputs {
        world: &world,
        verdicts: &report.outcome.verdicts,
        reports: &reports,
        isolation: &isolation,
        seen: &Seen::default(),
        now,
    });
    Standing { statuses, node }
}

/// The objects with their statuses, as a `List` that `kubectl` could read.
pub fn list(report: &Report, standing: &Standing) -> Value {
    let mut items = Vec::new();
    for network in &report.snapshot.networks {
        let mut network = network.clone();
        network.status = standing.statuses.networks.get(&network.name_any()).cloned();
        items.push(json!(network));
    }
    for mapping in &report.snapshot.mappings {
        let mut mapping = mapping.clone();
        mapping.status = standing.statuses.mappings.get(&aggregate::key(&mapping)).cloned();
        items.push(json!(mapping));
    }
    let mut node = GatewayNode::new(&report.outcome.facts.name, GatewayNodeSpec {});
    node.status = Some(standing.node.clone());
    items.push(json!(node));
    let mut list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    if !report.snapshot.problems.is_empty() {
        let problems: Vec<String> = report.snapshot.problems.iter().map(ToString::to_string).collect();
        list["problems"] = json!(problems);
    }
    list
}

/// Writes the file whole or not at all: JSON, or YAML if its name says so.
pub fn write(path: &Path, list: &Value) -> io::Result<()> {
    let yaml = path.extension().is_some_and(|e| e == "yaml" || e == "yml");
    let text = if yaml {
        serde_saphyr::to_string(list).map_err(io::Error::other)?
    } else {
        format!("{list:#}\n")
    };
    files::replace(path, text.as_bytes())
}

/// Keeps `path` up to date until the runner ends.
pub async fn keep(path: PathBuf, mut reports: Reports, metrics: Arc<Metrics>) {
    let mut standing = Standing::default();
    let mut written: Option<Value> = None;
    while reports.changed().await.is_ok() {
        let Some(report) = reports.borrow_and_update().clone() else {
            continue;
        };
        standing = self::standing(&report, &standing, Timestamp::now());
        let now = list(&report, &standing);
        if written.as_ref() == Some(&now) {
            continue;
        }
        let result = match write(&path, &now) {
            Ok(()) => {
                written = Some(now);
                "written"
            }
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "writing the status file; it is tried again with the next pass");
                "failed"
            }
        };
        metrics.reports.get_or_create(&ResultLabel { result }).inc();
    }
}
