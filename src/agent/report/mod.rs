//! What becomes of a pass's outcome: metrics, the node's status, events, the heartbeat; in a cluster or in a file.

mod budget;
pub mod cluster;
pub mod file;
pub mod lease;
pub mod news;
pub mod status;

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::counters::{Counts, Total, Way};
use super::runner::Report;
use crate::api::gatewaynode::Role;
use crate::api::reasons::types;
use crate::plan::MappingState;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{MappingCount, ResultLabel, RoleLabel, StateLabel, TableLabel, unix_now};

/// Field manager and event reporter.
pub const MANAGER: &str = "stagenet-agent";

/// Puts the counts of the first `most` mappings by name into the metrics.
pub fn measure_mappings(metrics: &Metrics, counts: &Counts, most: usize) {
    let mappings = counts.mappings();
    let left_out = mappings.len().saturating_sub(most);
    let seconds = |at: SystemTime| {
        at.duration_since(UNIX_EPOCH)
            .ok()
            .and_then(|since| i64::try_from(since.as_secs()).ok())
    };
    let count = |mapping: &str, way: Way, total: Total| MappingCount {
        mapping: mapping.to_owned(),
        way: match way {
            Way::Dialled => "dialled",
            Way::Left => "left",
        },
        packets: total.packets,
        bytes: total.bytes,
        last_hit: total.last_hit.and_then(seconds).unwrap_or_default(),
    };
    let first = mappings.into_iter().take(most);
    let shown = first.flat_map(|(mapping, ways)| ways.into_iter().map(move |(way, total)| count(mapping, way, total)));
    metrics.set_mappings(shown, left_out);
}

/// Puts the outcome of a pass into the metrics.
#[allow(clippy::cast_possible_wrap)]
pub fn measure(metrics: &Metrics, report: &Report, took: Duration) {
    let outcome = &report.outcome;
    metrics.apply_duration.observe(took.as_secs_f64());
    metrics.applies.get_or_create(&ResultLabel { result: outcome.label() }).inc();
    for drift in &outcome.drift {
        metrics
            .drift_repairs
            .get_or_create(&TableLabel {
                table: drift.place.to_owned(),
            })
            .inc();
    }
    metrics.flows_deleted.inc_by(outcome.flows_deleted);
    metrics.source_problems.set(report.snapshot.problems.len() as i64);
    if outcome.failed() && !outcome.complete {
        return;
    }
    let failed = outcome.mappings.values().filter(|s| matches!(s, MappingState::Failed(_))).count();
    let refused = outcome.verdicts.mappings.values().filter(|v| v.accepted.is_err()).count();
    for (state, count) in [
        ("programmed", outcome.mappings.len() - failed),
        ("failed", failed),
        ("refused", refused),
    ] {
        metrics.mappings.get_or_create(&StateLabel { state }).set(count as i64);
    }
    let mut roles = BTreeMap::from([("active", 0), ("standby", 0), ("client", 0)]);
    for network in outcome.plan.networks.values() {
        let role = match network.role {
            Role::Active => "active",
            Role::Standby => "standby",
            Role::Client => "client",
        };
        *roles.entry(role).or_default() += 1;
    }
    for (role, count) in roles {
        metrics.networks.get_or_create(&RoleLabel { role }).set(count);
    }
    let fenced = outcome
        .plan
        .networks
        .values()
        .filter(|n| outcome.fenced && n.inside.is_some())
        .count();
    metrics.fenced.set(fenced as i64);
    let quarantined = outcome
        .mappings
        .values()
        .filter(|s| matches!(s, MappingState::Failed(r) if r.reason == crate::api::reasons::RESTORE_REJECTED));
    metrics.quarantined.set(quarantined.count() as i64);
    succeeded(metrics);
}

/// Puts the conditions of the node into the metrics.
pub fn measure_conditions(metrics: &Metrics, report: &Report) {
    let of_a_node = types::ALL.iter().filter(|doc| doc.on.contains("GatewayNode")).map(|doc| doc.name);
    // Of two findings of one type the last counts.
    let present = status::findings(report)
        .iter()
        .map(|finding| (finding.kind, finding.status))
        .collect();
    metrics.set_conditions(of_a_node, &present);
}

/// The node was found as planned just now.
pub fn succeeded(metrics: &Metrics) {
    metrics.last_success.set(unix_now());
}
