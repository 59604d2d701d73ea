//! The metrics themselves. One value is made at start and shared.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

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
struct ConditionLabels {
    condition: &'static str,
    status: &'static str,
}

/// Labels of objects.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, EncodeLabelSet)]
pub struct ObjectLabels {
    /// Kind of the objects.
    pub kind: &'static str,
    /// Status of their Ready.
    pub ready: String,
    /// Its reason.
    pub reason: String,
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

/// Counts what is there at the moment in which the page is asked for.
type Counting = Box<dyn Fn() -> BTreeMap<ObjectLabels, i64> + Send + Sync>;

#[derive(Default)]
struct Counted(OnceLock<Counting>);

impl std::fmt::Debug for Counted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Counted").field(&self.0.get().is_some()).finish()
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
    /// [`describe::CONNTRACK_ENTRIES`]
    pub conntrack_entries: Gauge,
    /// [`describe::CONNTRACK_LIMIT`]
    pub conntrack_limit: Gauge,
    /// [`describe::CONDITION`]
    condition: Family<ConditionLabels, Gauge>,
    /// [`describe::API_LAST_SUCCESS`]
    pub api_last_success: Gauge<f64, AtomicU64>,
    /// [`describe::OBJECTS`]
    objects: Family<ObjectLabels, Gauge>,
    /// Where [`Self::objects`] come from.
    counted: Counted,
    /// [`describe::CONTROLLER_LAST_SUCCESS`]
    controller_last_success: Gauge<f64, AtomicU64>,
    /// Whether the controller's last pass was a success.
    well: AtomicBool,
    /// One page at a time.
    page: Mutex<()>,
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
            conntrack_entries: Gauge::default(),
            conntrack_limit: Gauge::default(),
            condition: Family::default(),
            api_last_success: Gauge::default(),
            objects: Family::default(),
            counted: Counted::default(),
            controller_last_success: Gauge::default(),
            well: AtomicBool::default(),
            page: Mutex::default(),
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
        register(r, describe::CONNTRACK_ENTRIES, metrics.conntrack_entries.clone());
        register(r, describe::CONNTRACK_LIMIT, metrics.conntrack_limit.clone());
        register(r, describe::CONDITION, metrics.condition.clone());
        register(r, describe::API_LAST_SUCCESS, metrics.api_last_success.clone());
        register(r, describe::OBJECTS, metrics.objects.clone());
        register(r, describe::CONTROLLER_LAST_SUCCESS, metrics.controller_last_success.clone());
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
        let mut seen = locked(&self.denied_seen);
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

    /// Shows the statuses of conditions: Some(true), Some(false), or None for Unknown. One that is not there has none of the three.
    pub fn set_conditions(&self, all: impl Iterator<Item = &'static str>, present: &BTreeMap<&str, Option<bool>>) {
        for condition in all {
            let is = present.get(condition).copied();
            for (status, value) in [("true", Some(true)), ("false", Some(false)), ("unknown", None)] {
                let labels = ConditionLabels { condition, status };
                self.condition.get_or_create(&labels).set(i64::from(is == Some(value)));
            }
        }
    }

    /// Counts objects with this, whenever the page is asked for. Only the first call counts.
    pub fn count_objects(&self, counting: impl Fn() -> BTreeMap<ObjectLabels, i64> + Send + Sync + 'static) {
        let _ = self.counted.0.set(Box::new(counting));
    }

    /// The controller looks at everything anew: nothing is known to be well until [`Metrics::reconciled`].
    pub fn reconciling(&self) {
        self.well.store(false, Ordering::Relaxed);
    }

    /// The controller has judged everything and written what was due.
    pub fn reconciled(&self) {
        self.well.store(true, Ordering::Relaxed);
        self.rests();
    }

    /// Nothing has happened since: what was well is well.
    pub fn rests(&self) {
        if self.well.load(Ordering::Relaxed) {
            self.controller_last_success.set(unix_now());
        }
    }

    /// Whether the page was asked for since this was last asked.
    pub fn take_asked(&self) -> bool {
        self.asked.swap(false, Ordering::Relaxed)
    }

    /// The page that Prometheus scrapes (OpenMetrics text).
    pub fn page(&self) -> Result<String, std::fmt::Error> {
        let _one = locked(&self.page);
        self.asked.store(true, Ordering::Relaxed);
        if let Some(count) = self.counted.0.get() {
            self.objects.clear();
            for (labels, number) in count() {
                self.objects.get_or_create(&labels).set(number);
            }
        }
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &self.registry)?;
        Ok(page)
    }
}

/// Seconds since 1970.
pub fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn locked<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
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
            metrics.set_conditions(["Lock"].into_iter(), &BTreeMap::new());
            metrics.count_objects(|| {
                let labels = ObjectLabels {
                    kind: "NatMapping",
                    ready: "True".to_owned(),
                    reason: "Ready".to_owned(),
                };
                BTreeMap::from([(labels, 1)])
            });
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
    fn a_condition_has_one_status_or_none() {
        let metrics = Metrics::new(Program::Agent);
        let show = |present: &[(&'static str, Option<bool>)]| {
            metrics.set_conditions(["Lock", "Drifted"].into_iter(), &present.iter().copied().collect());
            let page = metrics.page().unwrap();
            let of = |condition: &str| {
                ["true", "false", "unknown"].map(|status| {
                    value(
                        &page,
                        &format!("stagenet_agent_condition{{condition=\"{condition}\",status=\"{status}\"}}"),
                    )
                })
            };
            [of("Lock").concat(), of("Drifted").concat()]
        };
        assert_eq!(show(&[("Lock", Some(true))]), ["100", "000"]);
        assert_eq!(show(&[("Lock", None), ("Drifted", Some(true))]), ["001", "100"]);
        assert_eq!(show(&[("Lock", Some(false))]), ["010", "000"]);
    }

    #[test]
    fn objects_are_counted_when_asked_for_and_those_that_are_gone_have_no_series() {
        let metrics = Metrics::new(Program::Controller);
        let there = std::sync::Arc::new(Mutex::new(vec!["Ready", "Ready", "Conflict"]));
        let counted = there.clone();
        metrics.count_objects(move || {
            let mut counts = BTreeMap::new();
            for reason in counted.lock().unwrap().iter() {
                let labels = ObjectLabels {
                    kind: "NatMapping",
                    ready: if *reason == "Ready" { "True" } else { "False" }.to_owned(),
                    reason: (*reason).to_owned(),
                };
                *counts.entry(labels).or_default() += 1;
            }
            counts
        });
        let series =
            |ready: &str, reason: &str| format!("stagenet_controller_objects{{kind=\"NatMapping\",ready=\"{ready}\",reason=\"{reason}\"}}");
        let page = metrics.page().unwrap();
        assert_eq!(value(&page, &series("True", "Ready")), "2");
        assert_eq!(value(&page, &series("False", "Conflict")), "1");
        there.lock().unwrap().retain(|reason| *reason == "Ready");
        assert!(!metrics.page().unwrap().contains("Conflict"));
    }

    #[test]
    fn a_controller_that_does_not_get_on_is_told_by_its_age() {
        let metrics = Metrics::new(Program::Controller);
        let age = |metrics: &Metrics| -> f64 {
            let page = metrics.page().unwrap();
            value(&page, "stagenet_controller_last_success_timestamp_seconds").parse().unwrap()
        };
        metrics.rests();
        assert!(age(&metrics) < 1.0, "nothing has been judged yet");
        metrics.reconciling();
        metrics.reconciled();
        let last = age(&metrics);
        assert!(last > 1e9);
        metrics.reconciling();
        std::thread::sleep(std::time::Duration::from_millis(5));
        metrics.rests();
        assert!(age(&metrics) <= last, "what is not finished is no success");
        metrics.reconciled();
        assert!(age(&metrics) > last);
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
