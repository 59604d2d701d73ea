//! The one list of metrics: name, kind, labels, meaning. Registration and documentation both read it.

use std::fmt::Write as _;

use super::groups::{self, GROUPS, Group};

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; its sample carries the suffix `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Observations in buckets.
    Histogram,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Where it is documented.
    pub group: &'static Group,
    /// Name without the prefix `stagenet_`, and without the counters' suffix.
    pub name: &'static str,
    /// Kind.
    pub kind: Kind,
    /// Labels; bounded in number by what they name, or by an option where they name objects of users.
    pub labels: &'static [&'static str],
    /// What it tells.
    pub help: &'static str,
}

impl Descriptor {
    /// The name as it is scraped.
    pub fn scraped_name(&self) -> String {
        let suffix = if self.kind == Kind::Counter { "_total" } else { "" };
        format!("stagenet_{}{suffix}", self.name)
    }

    fn label_list(&self) -> String {
        if self.labels.is_empty() {
            return "none".to_owned();
        }
        format!("`{}`", self.labels.join("`, `"))
    }
}

/// Duration of passes.
pub const APPLY_DURATION: Descriptor = Descriptor {
    group: &groups::KERNEL,
    name: "agent_apply_duration_seconds",
    kind: Kind::Histogram,
    labels: &[],
    help: "Time one pass of the agent took, from observing the kernel to reading it back",
};
/// Passes by result.
pub const APPLIES: Descriptor = Descriptor {
    group: &groups::KERNEL,
    name: "agent_applies",
    kind: Kind::Counter,
    labels: &["result"],
    help: "Passes of the agent: result is unchanged (nothing to write), changed (all written and read back) or failed",
};
/// Repairs.
pub const DRIFT_REPAIRS: Descriptor = Descriptor {
    group: &groups::KERNEL,
    name: "agent_drift_repairs",
    kind: Kind::Counter,
    labels: &["table"],
    help: "Changes by others that were repaired; table is mangle, raw, nat, filter, route, rule, proxy, address or link",
};
/// Mappings.
pub const MAPPINGS: Descriptor = Descriptor {
    group: &groups::MAPPINGS,
    name: "agent_mappings",
    kind: Kind::Gauge,
    labels: &["state"],
    help: "Mappings that concern this node: state is programmed (read back from the kernel), failed or refused",
};
/// Networks.
pub const NETWORKS: Descriptor = Descriptor {
    group: &groups::MAPPINGS,
    name: "agent_networks",
    kind: Kind::Gauge,
    labels: &["role"],
    help: "Networks that concern this node, by its role: active, standby or client",
};
/// Fences.
pub const FENCED: Descriptor = Descriptor {
    group: &groups::KERNEL,
    name: "agent_fenced_networks",
    kind: Kind::Gauge,
    labels: &[],
    help: "Networks whose fence stands on this node, as read back from the kernel",
};
/// Quarantine.
pub const QUARANTINED: Descriptor = Descriptor {
    group: &groups::MAPPINGS,
    name: "agent_quarantined_mappings",
    kind: Kind::Gauge,
    labels: &[],
    help: "Mappings left out because the kernel refused a rule of theirs",
};
/// Last success.
pub const LAST_SUCCESS: Descriptor = Descriptor {
    group: &groups::KERNEL,
    name: "agent_last_success_timestamp_seconds",
    kind: Kind::Gauge,
    labels: &[],
    help: "Unix time at which the node was last found or made as planned; 0 until then",
};
/// Denied packets.
pub const DENIED: Descriptor = Descriptor {
    group: &groups::TRAFFIC,
    name: "agent_denied_packets",
    kind: Kind::Counter,
    labels: &["network", "direction"],
    help: "Packets that were denied, read from the kernel every 15 seconds; direction is in, out, node or unmapped",
};
/// Packets of mappings.
pub const MAPPING_PACKETS: Descriptor = Descriptor {
    group: &groups::TRAFFIC,
    name: "agent_mapping_packets",
    kind: Kind::Counter,
    labels: &["mapping", "way"],
    help: "New connections of a mapping: the first packet of each; way is dialled (to its virtual address) or left (from its target). Only with --metrics-per-mapping",
};
/// Bytes of mappings.
pub const MAPPING_BYTES: Descriptor = Descriptor {
    group: &groups::TRAFFIC,
    name: "agent_mapping_bytes",
    kind: Kind::Counter,
    labels: &["mapping", "way"],
    help: "Bytes of the first packets of a mapping's connections. Only with --metrics-per-mapping",
};
/// Last hits.
pub const MAPPING_LAST_HIT: Descriptor = Descriptor {
    group: &groups::TRAFFIC,
    name: "agent_mapping_last_hit_timestamp_seconds",
    kind: Kind::Gauge,
    labels: &["mapping", "way"],
    help: "Unix time at which a reading, every 15 seconds, last found new connections of a mapping; 0 until then. Only with --metrics-per-mapping",
};
/// Mappings left out.
pub const MAPPINGS_WITHOUT_SERIES: Descriptor = Descriptor {
    group: &groups::TRAFFIC,
    name: "agent_mappings_without_series",
    kind: Kind::Gauge,
    labels: &[],
    help: "Mappings that --metrics-per-mapping left out, because there are more than it allows; 0 without the option",
};
/// Deleted flows.
pub const FLOWS_DELETED: Descriptor = Descriptor {
    group: &groups::TRAFFIC,
    name: "agent_flows_deleted",
    kind: Kind::Counter,
    labels: &[],
    help: "Connection table entries deleted because the plan no longer agrees with them",
};
/// Source problems.
pub const SOURCE_PROBLEMS: Descriptor = Descriptor {
    group: &groups::CLUSTER,
    name: "agent_source_problems",
    kind: Kind::Gauge,
    labels: &[],
    help: "Files or objects that cannot be decoded at present, whose last good version stays in force where there is one, and lists that lack what nobody told to be deleted",
};
/// Reports.
pub const REPORTS: Descriptor = Descriptor {
    group: &groups::CLUSTER,
    name: "agent_reports",
    kind: Kind::Counter,
    labels: &["result"],
    help: "Status reports written to the API server or the status file: result is written or failed",
};
/// Reconciles of the controller.
pub const RECONCILES: Descriptor = Descriptor {
    group: &groups::CONTROLLER,
    name: "controller_reconciles",
    kind: Kind::Counter,
    labels: &["kind", "result"],
    help: "Reconciles of the controller: kind is NatMapping or StagingNetwork, result is unchanged, written or failed",
};
/// Leadership.
pub const LEADER: Descriptor = Descriptor {
    group: &groups::CONTROLLER,
    name: "controller_leader",
    kind: Kind::Gauge,
    labels: &[],
    help: "1 while this controller holds the leader Lease, else 0",
};
/// Conditions.
pub const CONDITION: Descriptor = Descriptor {
    group: &groups::CONDITIONS,
    name: "agent_condition",
    kind: Kind::Gauge,
    labels: &["condition", "status"],
    help: "1 for the status that a condition of the node's GatewayNode has, else 0; status is true, false or unknown. All three are 0 while the node has no such condition",
};
/// Entries of the connection table.
pub const CONNTRACK_ENTRIES: Descriptor = Descriptor {
    group: &groups::TRAFFIC,
    name: "agent_conntrack_entries",
    kind: Kind::Gauge,
    labels: &[],
    help: "Entries of the node's connection table, those of bystanders too, read every 15 seconds; 0 while connection tracking is not in use",
};
/// Size of the connection table.
pub const CONNTRACK_LIMIT: Descriptor = Descriptor {
    group: &groups::TRAFFIC,
    name: "agent_conntrack_entries_limit",
    kind: Kind::Gauge,
    labels: &[],
    help: "How many entries the connection table may have (net.netfilter.nf_conntrack_max); 0 while connection tracking is not in use",
};
/// Last contact with the API server.
pub const API_LAST_SUCCESS: Descriptor = Descriptor {
    group: &groups::CLUSTER,
    name: "agent_api_last_success_timestamp_seconds",
    kind: Kind::Gauge,
    labels: &[],
    help: "Unix time at which the API server last took a heartbeat or a report of this agent; 0 until then, and without a cluster",
};
/// Objects by their Ready.
pub const OBJECTS: Descriptor = Descriptor {
    group: &groups::CONTROLLER,
    name: "controller_objects",
    kind: Kind::Gauge,
    labels: &["kind", "ready", "reason"],
    help: "Objects of the cluster by what their condition Ready says: kind is NatMapping, StagingNetwork or GatewayNode, ready is True, False or Unknown, reason is the condition's. Those without a status have ready Unknown and no reason",
};
/// Last pass of the controller.
pub const CONTROLLER_LAST_SUCCESS: Descriptor = Descriptor {
    group: &groups::CONTROLLER,
    name: "controller_last_success_timestamp_seconds",
    kind: Kind::Gauge,
    labels: &[],
    help: "Unix time at which the leader last had judged all objects and the API server was there to take what had to be written; it moves on while nothing changes; 0 until then, and on a follower",
};
/// Build.
pub const BUILD_INFO: Descriptor = Descriptor {
    group: &groups::CLUSTER,
    name: "build_info",
    kind: Kind::Gauge,
    labels: &["version"],
    help: "Always 1; the label tells the version",
};

/// All metrics, in the order in which they are documented.
pub const ALL: &[Descriptor] = &[
    BUILD_INFO,
    APPLY_DURATION,
    APPLIES,
    LAST_SUCCESS,
    DRIFT_REPAIRS,
    MAPPINGS,
    NETWORKS,
    FENCED,
    QUARANTINED,
    DENIED,
    CONNTRACK_ENTRIES,
    CONNTRACK_LIMIT,
    MAPPING_PACKETS,
    MAPPING_BYTES,
    MAPPING_LAST_HIT,
    MAPPINGS_WITHOUT_SERIES,
    FLOWS_DELETED,
    CONDITION,
    API_LAST_SUCCESS,
    REPORTS,
    SOURCE_PROBLEMS,
    OBJECTS,
    CONTROLLER_LAST_SUCCESS,
    RECONCILES,
    LEADER,
];

/// `docs/metrics.md`: all of them, and where each is explained.
pub fn index() -> String {
    let mut out = String::from(
        "# Metrics\n\n\
         <!-- Made from src/telemetry/describe.rs; a test compares the two. Write it anew with `UPDATE=1 cargo test --test pages`. -->\n\n\
         `stagenet agent` and `stagenet controller` serve these at `/metrics` of their `--listen` address, in base units (seconds, packets):\n\
         the agent those named `stagenet_agent_`, the controller those named `stagenet_controller_`.\n\
         A metric with labels appears once there is something to tell. No label names a mapping unless `--metrics-per-mapping N` asks for it, and then\n\
         of the first N by name: the number of series does not grow with the number of claims.\n\n\
         | page | tells |\n|---|---|\n",
    );
    for group in GROUPS {
        let _ = writeln!(out, "| [{0}](metrics/{0}.md) | {1} |", group.name, group.tells);
    }
    out.push_str("\nEach page has expressions worth an alert, and what to do when one fires.\n\n| metric | kind | labels | page |\n|---|---|---|---|\n");
    for d in ALL {
        let page = d.group.name;
        let _ = writeln!(
            out,
            "| `{}` | {} | {} | [{page}](metrics/{page}.md) |",
            d.scraped_name(),
            d.kind.as_str(),
            d.label_list()
        );
    }
    out
}

/// The table of a group, which its page has.
pub fn table(group: &Group) -> String {
    let mut out = String::from("| metric | kind | labels | tells |\n|---|---|---|---|\n");
    for d in ALL.iter().filter(|d| d.group == group) {
        let _ = writeln!(
            out,
            "| `{}` | {} | {} | {} |",
            d.scraped_name(),
            d.kind.as_str(),
            d.label_list(),
            d.help
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What promtool's linter asks for, and that no unit but the base units is used.
    #[test]
    fn names_are_distinct_and_as_prometheus_has_them() {
        let names: std::collections::BTreeSet<_> = ALL.iter().map(Descriptor::scraped_name).collect();
        assert_eq!(names.len(), ALL.len());
        for d in ALL {
            let name = d.scraped_name();
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            assert!(name.chars().all(plain) && !name.contains("__"), "{name}");
            assert_eq!(name.ends_with("_total"), d.kind == Kind::Counter, "{name}");
            for word in [
                "milli", "micro", "_ms", "minutes", "hours", "kilo", "mega", "percent", "_count", "_sum", "_bucket",
            ] {
                assert!(!name.contains(word), "{name}: {word}");
            }
            assert!(!d.name.contains("duration") || name.ends_with("_seconds"), "{name}");
            assert!(!d.name.contains("timestamp") || name.ends_with("_timestamp_seconds"), "{name}");
            assert!(!d.help.is_empty() && !d.help.ends_with('.'), "{name}");
            assert!(d.labels.iter().all(|label| label.chars().all(plain)), "{name}");
        }
    }
}
