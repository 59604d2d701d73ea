//! The one list of metrics: name, kind, labels, meaning. Registration and documentation both read it.

use std::fmt::Write as _;

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
}

/// Duration of passes.
pub const APPLY_DURATION: Descriptor = Descriptor {
    name: "agent_apply_duration_seconds",
    kind: Kind::Histogram,
    labels: &[],
    help: "Time one pass of the agent took, from observing the kernel to reading it back",
};
/// Passes by result.
pub const APPLIES: Descriptor = Descriptor {
    name: "agent_applies",
    kind: Kind::Counter,
    labels: &["result"],
    help: "Passes of the agent: result is unchanged (nothing to write), changed (all written and read back) or failed",
};
/// Repairs.
pub const DRIFT_REPAIRS: Descriptor = Descriptor {
    name: "agent_drift_repairs",
    kind: Kind::Counter,
    labels: &["table"],
    help: "Changes by others that were repaired; table is mangle, raw, nat, filter, route, rule, proxy, address or link",
};
/// Mappings.
pub const MAPPINGS: Descriptor = Descriptor {
    name: "agent_mappings",
    kind: Kind::Gauge,
    labels: &["state"],
    help: "Mappings that concern this node: state is programmed (read back from the kernel), failed or refused",
};
/// Networks.
pub const NETWORKS: Descriptor = Descriptor {
    name: "agent_networks",
    kind: Kind::Gauge,
    labels: &["role"],
    help: "Networks that concern this node, by its role: active, standby or client",
};
/// Fences.
pub const FENCED: Descriptor = Descriptor {
    name: "agent_fenced_networks",
    kind: Kind::Gauge,
    labels: &[],
    help: "Networks whose fence stands on this node, as read back from the kernel",
};
/// Quarantine.
pub const QUARANTINED: Descriptor = Descriptor {
    name: "agent_quarantined_mappings",
    kind: Kind::Gauge,
    labels: &[],
    help: "Mappings left out because the kernel refused a rule of theirs",
};
/// Last success.
pub const LAST_SUCCESS: Descriptor = Descriptor {
    name: "agent_last_success_timestamp_seconds",
    kind: Kind::Gauge,
    labels: &[],
    help: "Unix time at which the node was last found or made as planned; 0 until then",
};
/// Denied packets.
pub const DENIED: Descriptor = Descriptor {
    name: "agent_denied_packets",
    kind: Kind::Counter,
    labels: &["network", "direction"],
    help: "Packets that were denied, read from the kernel every 15 seconds; direction is in, out, node or unmapped",
};
/// Packets of mappings.
pub const MAPPING_PACKETS: Descriptor = Descriptor {
    name: "agent_mapping_packets",
    kind: Kind::Counter,
    labels: &["mapping", "way"],
    help: "New connections of a mapping: the first packet of each; way is dialled (to its virtual address) or left (from its target). Only with --metrics-per-mapping",
};
/// Bytes of mappings.
pub const MAPPING_BYTES: Descriptor = Descriptor {
    name: "agent_mapping_bytes",
    kind: Kind::Counter,
    labels: &["mapping", "way"],
    help: "Bytes of the first packets of a mapping's connections. Only with --metrics-per-mapping",
};
/// Last hits.
pub const MAPPING_LAST_HIT: Descriptor = Descriptor {
    name: "agent_mapping_last_hit_timestamp_seconds",
    kind: Kind::Gauge,
    labels: &["mapping", "way"],
    help: "Unix time at which a reading, every 15 seconds, last found new connections of a mapping; 0 until then. Only with --metrics-per-mapping",
};
/// Mappings left out.
pub const MAPPINGS_WITHOUT_SERIES: Descriptor = Descriptor {
    name: "agent_mappings_without_series",
    kind: Kind::Gauge,
    labels: &[],
    help: "Mappings that --metrics-per-mapping left out, because there are more than it allows; 0 without the option",
};
/// Deleted flows.
pub const FLOWS_DELETED: Descriptor = Descriptor {
    name: "agent_flows_deleted",
    kind: Kind::Counter,
    labels: &[],
    help: "Connection table entries deleted because the plan no longer agrees with them",
};
/// Source problems.
pub const SOURCE_PROBLEMS: Descriptor = Descriptor {
    name: "agent_source_problems",
    kind: Kind::Gauge,
    labels: &[],
    help: "Files or objects that cannot be decoded at present; their last good version stays in force where there is one",
};
/// Reports.
pub const REPORTS: Descriptor = Descriptor {
    name: "agent_reports",
    kind: Kind::Counter,
    labels: &["result"],
    help: "Status reports written to the API server or the status file: result is written or failed",
};
/// Reconciles of the controller.
pub const RECONCILES: Descriptor = Descriptor {
    name: "controller_reconciles",
    kind: Kind::Counter,
    labels: &["kind", "result"],
    help: "Reconciles of the controller: kind is NatMapping or StagingNetwork, result is unchanged, written or failed",
};
/// Leadership.
pub const LEADER: Descriptor = Descriptor {
    name: "controller_leader",
    kind: Kind::Gauge,
    labels: &[],
    help: "1 while this controller holds the leader Lease, else 0",
};
/// Build.
pub const BUILD_INFO: Descriptor = Descriptor {
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
    MAPPING_PACKETS,
    MAPPING_BYTES,
    MAPPING_LAST_HIT,
    MAPPINGS_WITHOUT_SERIES,
    FLOWS_DELETED,
    SOURCE_PROBLEMS,
    REPORTS,
    RECONCILES,
    LEADER,
];

/// What `/counters` is.
const COUNTERS: &str = "
## All counters of a node

The agent serves `/counters` at the same address, for people and tools on the node: JSON, read from the kernel when it is asked for, at most a second old.

```console
$ curl -s http://127.0.0.1:9469/counters
{
  \"denied\": [
    { \"bytes\": 420, \"direction\": \"out\", \"lastHit\": \"2026-03-01T12:00:00Z\", \"network\": \"segment-b\", \"packets\": 7 }
  ],
  \"mappings\": [
    {
      \"dialled\": { \"bytes\": 180, \"lastHit\": \"2026-03-01T12:00:00Z\", \"packets\": 3 },
      \"left\": null,
      \"mapping\": \"tenant-a/web\"
    }
  ],
  \"node\": \"vm02\",
  \"read\": \"2026-03-01T12:00:05Z\"
}
```

- `dialled`: connections to the mapping's virtual address (for `side: Inside`, from inside). `left`: connections that its target opened itself and that left under
  its virtual address; null where it has no such rule.
- A mapping's packets are its **new connections**: the kernel asks rules of table nat for the first packet of each connection only. Its bytes are the sizes of
  those packets. What follows in the same connection is not counted.
- The fence's rules are asked for every packet, so denied packets are all of them, but for one kind: IPv6 packets to ports that no mapping has are counted in
  table nat, without those that conntrack takes for the beginning of nothing (INVALID).
- `lastHit` is when a reading last found more than the one before. Readings are made when `/counters` is asked for, every 15 seconds for metrics, and
  before a chain is written anew. Null: no reading of this agent has seen it grow.
- Counts go on when rules are written anew, and begin again when the mapping or network is removed, or the agent is started after its rules were written
  anew. With legacy tools, which read the whole table for any counter, chains that are written anew are read first only while somebody asks: within ten
  minutes of a request to `/counters`, or with `--metrics-per-mapping`.
";

/// `docs/metrics.md`.
pub fn markdown() -> String {
    let mut out = String::from(
        "# Metrics\n\n\
         <!-- Made from src/telemetry/describe.rs; a test compares the two. Write it anew with `UPDATE=1 cargo test --lib telemetry`. -->\n\n\
         `stagenet agent` and `stagenet controller` serve these at `/metrics` of their `--listen` address, in base units (seconds, packets):\n\
         the agent those named `stagenet_agent_`, the controller those named `stagenet_controller_`.\n\
         A metric with labels appears once there is something to tell. No label names a mapping unless `--metrics-per-mapping N` asks for it, and then\n\
         of the first N by name: the number of series does not grow with the number of claims.\n\n\
         | metric | kind | labels | tells |\n|---|---|---|---|\n",
    );
    for d in ALL {
        let labels = if d.labels.is_empty() {
            "none".to_owned()
        } else {
            format!("`{}`", d.labels.join("`, `"))
        };
        let _ = writeln!(out, "| `{}` | {} | {labels} | {} |", d.scraped_name(), d.kind.as_str(), d.help);
    }
    out.push_str(COUNTERS);
    out.push_str(
        "\n## Worth an alert\n\n\
         | expression | why |\n|---|---|\n\
         | `time() - stagenet_agent_last_success_timestamp_seconds > 300` | the node has not been as planned for five minutes; `kubectl describe gwnode` says why |\n\
         | `rate(stagenet_agent_drift_repairs_total[10m]) > 0.1` | something else on the node keeps changing what stagenet put there; the agent's log names the process |\n\
         | `increase(stagenet_agent_denied_packets_total{direction=\"out\"}[10m]) > 0` | a restored VM tries to leave the closed network (it was stopped) |\n\
         | `stagenet_agent_quarantined_mappings > 0` | the kernel refuses a rule; the mapping's status names the line |\n\
         | `sum(stagenet_controller_leader) != 1` | no controller, or two, believe that they lead |\n",
    );
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_committed_page_is_fresh() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(path, markdown()).unwrap();
        }
        assert_eq!(
            std::fs::read_to_string(path).unwrap_or_default(),
            markdown(),
            "docs/metrics.md is stale: run UPDATE=1 cargo test --lib telemetry"
        );
    }

    #[test]
    fn names_are_distinct_and_in_base_units() {
        let names: std::collections::BTreeSet<_> = ALL.iter().map(Descriptor::scraped_name).collect();
        assert_eq!(names.len(), ALL.len());
        for name in names {
            assert!(!name.ends_with("_ms") && !name.contains("milli"), "{name} is not in base units");
        }
    }
}
