//! The metrics themselves. One value is made at start and shared.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};

use super::describe::{self, Descriptor};

/// Label `result`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResultLabel {
    /// How it ended.
    pub result: &'static str,
}

/// Label `table`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TableLabel {
    /// Where.
    pub table: String,
}

/// Label `state`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StateLabel {
    /// Which state.
    pub state: &'static str,
}

/// Label `role`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RoleLabel {
    /// Which role.
    pub role: &'static str,
}

/// Labels of denied packets.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DeniedLabels {
    /// The network's name.
    pub network: String,
    /// in, out, node or unmapped.
    pub direction: String,
}

/// Labels of a mapping's counts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MappingLabels {
    mapping: String,
    way: &'static str,
}

/// What was counted for a mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MappingCount {
    /// `namespace/name`
    pub mapping: String,
    /// dialled or left.
    pub way: &'static str,
    /// New connections.
    pub packets: u64,
    /// Bytes of their first packets.
    pub bytes: u64,
    /// Unix time; 0: none was seen.
    pub last_hit: i64,
}

/// Labels of reconciles.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReconcileLabels {
    /// Kind of the object.
    pub kind: &'static str,
    /// How it ended.
    pub result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    version: &'static str,
}

/// Which program's metrics are shown: nobody should have to know that an agent's `controller_leader 0` means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `stagenet agent`
    Agent,
    /// `stagenet controller`
    Controller,
}

impl Program {
    /// Whether a metric is of this program.
    pub fn has(self, descriptor: &Descriptor) -> bool {
        let of_another = match self {
            Self::Agent => "controller_",
            Self::Controller => "agent_",
        };
        !descriptor.name.starts_with(of_another)
    }
}

/// All metrics of one process, documented in [`describe`]. Those of the other program are never shown.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// [`describe::APPLY_DURATION`]
    pub apply_duration: Histogram,
    /// [`describe::APPLIES`]
    pub applies: Family<ResultLabel, Counter>,
    /// [`describe::DRIFT_REPAIRS`]
    pub drift_repairs: Family<TableLabel, Counter>,
    /// [`describe::MAPPINGS`]
    pub mappings: Family<StateLabel, Gauge>,
    /// [`describe::NETWORKS`]
    pub networks: Family<RoleLabel, Gauge>,
    /// [`describe::FENCED`]
    pub fenced: Gauge,
    /// [`describe::QUARANTINED`]
    pub quarantined: Gauge,
    /// [`describe::LAST_SUCCESS`]
    pub last_success: Gauge<f64, AtomicU64>,
    /// [`describe::DENIED`]
    denied: Family<DeniedLabels, Counter>,
    /// Kernel counters as last read: they restart at 0 when a chain is replaced, a Prometheus counter must not.
    denied_seen: Mutex<BTreeMap<(String, String), u64>>,
    /// Whether the page was asked for.
    asked: AtomicBool,
    /// [`describe::MAPPING_PACKETS`]
    mapping_packets: Family<MappingLabels, Counter>,
    /// [`describe::MAPPING_BYTES`]
    mapping_bytes: Family<MappingLabels, Counter>,
    /// [`describe::MAPPING_LAST_HIT`]
    mapping_last_hit: Family<MappingLabels, Gauge>,
    /// [`describe::MAPPINGS_WITHOUT_SERIES`]
    mappings_without_series: Gauge,
    /// [`describe::FLOWS_DELETED`]
    pub flows_deleted: Counter,
    /// [`describe::SOURCE_PROBLEMS`]
    pub source_problems: Gauge,
    /// [`describe::REPORTS`]
    pub reports: Family<ResultLabel, Counter>,
    /// [`describe::RECONCILES`]
    pub reconciles: Family<ReconcileLabels, Counter>,
    /// [`describe::LEADER`]
    pub leader: Gauge,
}

impl Metrics {
    /// All metrics at their start values.
    pub fn new(program: Program) -> Self {
        // A pass takes 3 ms for one change and 0.5 s for a cold start with 10 000 mappings; a held lock adds up to 5 s.
        let buckets = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
        let build: Family<BuildLabels, Gauge> = Family::default();
        build
            .get_or_create(&BuildLabels {
                version: env!("CARGO_PKG_VERSION"),
            })
            .set(1);
        let mut metrics = Self {
            registry: Registry::with_prefix("stagenet"),
            apply_duration: Histogram::new(buckets),
            applies: Family::default(),
            drift_repairs: Family::default(),
            mappings: Family::default(),
            networks: Family::default(),
            fenced: Gauge::default(),
            quarantined: Gauge::default(),
            last_success: Gauge::default(),
            denied: Family::default(),
            denied_seen: Mutex::default(),
            asked: AtomicBool::default(),
            mapping_packets: Family::default(),
            mapping_bytes: Family::default(),
            mapping_last_hit: Family::default(),
            mappings_without_series: Gauge::default(),
            flows_deleted: Counter::default(),
            source_problems: Gauge::default(),
            reports: Family::default(),
            reconciles: Family::default(),
            leader: Gauge::default(),
        };
        let r = &mut Registrar {
            program,
            registry: &mut metrics.registry,
        };
        register(r, describe::BUILD_INFO, build);
        register(r, describe::APPLY_DURATION, metrics.apply_duration.clone());
        register(r, describe::APPLIES, metrics.applies.clone());
        register(r, describe::DRIFT_REPAIRS, metrics.drift_repairs.clone());
        register(r, describe::MAPPINGS, metrics.mappings.clone());
        register(r, describe::NETWORKS, metrics.networks.clone());
        register(r, describe::FENCED, metrics.fenced.clone());
        register(r, describe::QUARANTINED, metrics.quarantined.clone());
        register(r, describe::LAST_SUCCESS, metrics.last_success.clone());
        register(r, describe::DENIED, metrics.denied.clone());
        register(r, describe::MAPPING_PACKETS, metrics.mapping_packets.clone());
        register(r, describe::MAPPING_BYTES, metrics.mapping_bytes.clone());
        register(r, describe::MAPPING_LAST_HIT, metrics.mapping_last_hit.clone());
        register(r, describe::MAPPINGS_WITHOUT_SERIES, metrics.mappings_without_series.clone());
        register(r, describe::FLOWS_DELETED, metrics.flows_deleted.clone());
        register(r, describe::SOURCE_PROBLEMS, metrics.source_problems.clone());
        register(r, describe::REPORTS, metrics.reports.clone());
        register(r, describe::RECONCILES, metrics.reconciles.clone());
        register(r, describe::LEADER, metrics.leader.clone());
        metrics
    }

    /// Takes over the kernel's counters of denied packets. A counter lower than before has been restarted by the kernel.
    pub fn set_denied(&self, now: &BTreeMap<(String, String), u64>) {
        let mut seen = self.denied_seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (key, &count) in now {
            let before = seen.get(key).copied().unwrap_or(0);
            let grown = if count >= before { count - before } else { count };
            let labels = DeniedLabels {
                network: key.0.clone(),
                direction: key.1.clone(),
            };
            self.denied.get_or_create(&labels).inc_by(grown);
        }
        seen.clone_from(now);
    }

    /// Shows the counts of these mappings, and of no others any more. `left_out` mappings have none.
    pub fn set_mappings(&self, shown: impl Iterator<Item = MappingCount>, left_out: usize) {
        self.mapping_packets.clear();
        self.mapping_bytes.clear();
        self.mapping_last_hit.clear();
        for count in shown {
            let labels = MappingLabels {
                mapping: count.mapping,
                way: count.way,
            };
            self.mapping_packets.get_or_create(&labels).inc_by(count.packets);
            self.mapping_bytes.get_or_create(&labels).inc_by(count.bytes);
            self.mapping_last_hit.get_or_create(&labels).set(count.last_hit);
        }
        self.mappings_without_series.set(i64::try_from(left_out).unwrap_or(i64::MAX));
    }

    /// Whether the page was asked for since this was last asked.
    pub fn take_asked(&self) -> bool {
        self.asked.swap(false, Ordering::Relaxed)
    }

    /// The page that Prometheus scrapes (OpenMetrics text).
    pub fn page(&self) -> Result<String, std::fmt::Error> {
        self.asked.store(true, Ordering::Relaxed);
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &self.registry)?;
        Ok(page)
    }
}

struct Registrar<'r> {
    program: Program,
    registry: &'r mut Registry,
}

fn register(to: &mut Registrar<'_>, descriptor: Descriptor, metric: impl Metric) {
    if to.program.has(&descriptor) {
        to.registry.register(descriptor.name, descriptor.help, metric);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;

    fn value(page: &str, series: &str) -> String {
        let line = page
            .lines()
            .find(|l| l.starts_with(series))
            .unwrap_or_else(|| unreachable_series(page, series));
        line.rsplit(' ').next().unwrap().to_owned()
    }

    #[allow(clippy::panic)]
    fn unreachable_series<'a>(page: &'a str, series: &str) -> &'a str {
        panic!("no series {series} in:\n{page}")
    }

    #[test]
    fn every_descriptor_is_registered_with_its_kind_by_its_program_alone() {
        let mut shown = BTreeSet::new();
        for program in [Program::Agent, Program::Controller] {
            let metrics = Metrics::new(program);
            // A family without a series is left out of the page.
            drop(metrics.applies.get_or_create(&ResultLabel { result: "changed" }));
            drop(metrics.reports.get_or_create(&ResultLabel { result: "written" }));
            drop(metrics.drift_repairs.get_or_create(&TableLabel { table: "nat".into() }));
            drop(metrics.mappings.get_or_create(&StateLabel { state: "failed" }));
            drop(metrics.networks.get_or_create(&RoleLabel { role: "active" }));
            metrics.set_denied(&BTreeMap::from([(("b".to_owned(), "out".to_owned()), 1)]));
            let count = MappingCount {
                mapping: "a/web".to_owned(),
                way: "dialled",
                packets: 3,
                bytes: 180,
                last_hit: 1,
            };
            metrics.set_mappings(std::iter::once(count), 2);
            drop(metrics.reconciles.get_or_create(&ReconcileLabels {
                kind: "NatMapping",
                result: "written",
            }));
            let page = metrics.page().unwrap();
            let own: Vec<_> = describe::ALL.iter().filter(|d| program.has(d)).collect();
            for d in &own {
                let kind = match d.kind {
                    describe::Kind::Counter => "counter",
                    describe::Kind::Gauge => "gauge",
                    describe::Kind::Histogram => "histogram",
                };
                assert!(
                    page.contains(&format!("# TYPE stagenet_{} {kind}", d.name)),
                    "{} is not a {kind} in:\n{page}",
                    d.name
                );
            }
            assert_eq!(page.matches("# TYPE").count(), own.len(), "{program:?}:\n{page}");
            shown.extend(own.into_iter().map(|d| d.name));
        }
        assert_eq!(shown.len(), describe::ALL.len(), "every metric is some program's");
    }

    #[test]
    fn a_mapping_that_is_no_longer_shown_has_no_series() {
        let metrics = Metrics::new(Program::Agent);
        let count = |mapping: &str| MappingCount {
            mapping: mapping.to_owned(),
            way: "left",
            packets: 3,
            bytes: 180,
            last_hit: 7,
        };
        metrics.set_mappings(["a/one", "a/two"].map(count).into_iter(), 0);
        metrics.set_mappings(["a/two"].map(count).into_iter(), 1);
        let page = metrics.page().unwrap();
        assert_eq!(
            value(&page, "stagenet_agent_mapping_packets_total{mapping=\"a/two\",way=\"left\"}"),
            "3"
        );
        assert_eq!(value(&page, "stagenet_agent_mappings_without_series"), "1");
        assert!(!page.contains("a/one"), "{page}");
    }

    #[test]
    fn a_restarted_kernel_counter_never_lowers_ours() {
        let metrics = Metrics::new(Program::Agent);
        let key = ("b".to_owned(), "out".to_owned());
        for count in [5, 9, 2, 2] {
            metrics.set_denied(&BTreeMap::from([(key.clone(), count)]));
        }
        let page = metrics.page().unwrap();
        assert_eq!(
            value(&page, "stagenet_agent_denied_packets_total{network=\"b\",direction=\"out\"}"),
            "11"
        );
    }
}
