//! Standalone: the statuses that a cluster would show, computed by the controller's own functions and kept in a file.
//!
//! Ten thousand objects with their statuses are many times as much text as an agent may hold, so nothing of it is kept: each status is made, written and dropped, and of all
//! of them only what the next one depends on is remembered, which is when each condition came to be what it is, and a hash of the whole.

use std::cell::RefCell;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{Hash as _, Hasher as _};
use std::io::{self, BufWriter, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde::ser::{SerializeMap as _, SerializeSeq as _};
use serde::{Serialize, Serializer};

use super::status;
use crate::agent::files;
use crate::agent::runner::{Report, Reports};
use crate::api::gatewaynode::GatewayNodeStatus;
use crate::api::network::Isolation;
use crate::api::{GatewayNode, GatewayNodeSpec, NatMapping, NatMappingStatus, StagingNetwork, StagingNetworkStatus};
use crate::controller::aggregate::{self, Inputs, Life, Resolutions, Seen, Statuses};
use crate::plan::{self, Borrowed, Namespaces, NodeFacts, Verdicts, View};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::ResultLabel;

/// Without a cluster there is no API server.
static NO_API_SERVER: BTreeSet<IpAddr> = BTreeSet::new();

/// Everything that a cluster would store as status.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// Of networks and mappings.
    pub statuses: Statuses,
    /// Of the node.
    pub node: GatewayNodeStatus,
}

/// What statuses are made from.
struct Parts {
    /// With the statuses that they had.
    networks: Vec<StagingNetwork>,
    nodes: Vec<Arc<NodeFacts>>,
    namespaces: Arc<Namespaces>,
    isolation: BTreeMap<String, Isolation>,
    verdicts: Verdicts,
    reports: aggregate::Reports,
    machines: Resolutions,
    seen: Seen,
    now: Timestamp,
}

impl Parts {
    fn new(report: &Report, node: &GatewayNodeStatus, networks: &BTreeMap<String, StagingNetworkStatus>, now: Timestamp) -> Self {
        let given = |network: &Arc<StagingNetwork>| Some((network.name_any(), network.status.as_ref()?.isolation?));
        let facts = report.outcome.facts.clone();
        let told = aggregate::Report {
            status: Arc::new(node.clone()),
            life: Life::Alive,
        };
        let with_status = |network: &Arc<StagingNetwork>| StagingNetwork {
            status: networks.get(&network.name_any()).cloned(),
            ..StagingNetwork::clone(network)
        };
        let nodes = report.snapshot.nodes(facts.clone());
        // The pass has judged them, too, but verdicts on ten thousand mappings are not kept for whoever may want them. None were made without facts.
        let verdicts = if facts.name.is_empty() {
            Verdicts::default()
        } else {
            plan::judge(report.snapshot.view(&nodes))
        };
        Self {
            verdicts,
            isolation: report.snapshot.networks.iter().filter_map(given).collect(),
            reports: BTreeMap::from([(facts.name, told)]),
            networks: report.snapshot.networks.iter().map(with_status).collect(),
            nodes,
            namespaces: report.snapshot.namespaces.clone(),
            // Without a cluster there are none.
            machines: Resolutions::new(),
            seen: Seen::default(),
            now,
        }
    }

    fn inputs(&self) -> Inputs<'_> {
        Inputs {
            world: View {
                networks: Borrowed::Owned(&self.networks),
                mappings: Borrowed::default(),
                nodes: Borrowed::Shared(&self.nodes),
                namespaces: &self.namespaces,
            },
            verdicts: &self.verdicts,
            reports: &self.reports,
            isolation: &self.isolation,
            machines: &self.machines,
            api_server: &NO_API_SERVER,
            seen: &self.seen,
            now: self.now,
        }
    }
}

/// What the objects' statuses are after a pass, given what they were.
pub fn standing(report: &Report, before: &Standing, now: Timestamp) -> Standing {
    let node = status::node(report, 0, Some(&before.node), now);
    let parts = Parts::new(report, &node, &before.statuses.networks, now);
    let inputs = parts.inputs();
    let networks = aggregate::networks(&inputs);
    let one = |mapping: &Arc<NatMapping>| {
        let mut mapping = NatMapping::clone(mapping);
        mapping.status = before.statuses.mappings.get(&aggregate::key(&mapping)).cloned();
        aggregate::mapping(&inputs, &networks, &mapping)
    };
    let mappings = report.snapshot.mappings.iter().filter_map(one).collect();
    Standing {
        statuses: Statuses { networks, mappings },
        node,
    }
}

/// When the conditions of a mapping came to be what they are: type, status, time.
type Since = Arc<[(String, String, Timestamp)]>;

/// What is remembered from one status to the next.
#[derive(Debug, Default)]
pub struct Memory {
    node: GatewayNodeStatus,
    networks: BTreeMap<String, StagingNetworkStatus>,
    /// By the hash of a mapping's name. Most have all in common, and share it.
    mappings: HashMap<u64, Since>,
    /// Hash of what was written.
    written: Option<u64>,
}

impl Memory {
    /// Writes the objects with their statuses after a pass into a file, as a `List` that `kubectl` could read: whole or not at all, JSON, or YAML if its name says
    /// so. The answer is whether there was anything new to write.
    pub fn write(&mut self, path: &Path, report: &Report, now: Timestamp) -> io::Result<bool> {
        let node = status::node(report, 0, Some(&self.node), now);
        let parts = Parts::new(report, &node, &self.networks, now);
        let inputs = parts.inputs();
        let networks = aggregate::networks(&inputs);
        let list = List {
            report,
            inputs: &inputs,
            node: &node,
            networks: &networks,
            before: &self.mappings,
            after: RefCell::default(),
        };
        let yaml = path.extension().is_some_and(|e| e == "yaml" || e == "yml");
        let mut written = self.written;
        let replaced = files::replace_with(path, |file| {
            let mut out = Hashing {
                hasher: DefaultHasher::new(),
                inner: BufWriter::new(file),
            };
            if yaml {
                serde_saphyr::to_io_writer(&mut out, &list).map_err(io::Error::other)?;
            } else {
                serde_json::to_writer_pretty(&mut out, &list)?;
                out.write_all(b"\n")?;
            }
            out.flush()?;
            let hash = Some(out.hasher.finish());
            Ok(std::mem::replace(&mut written, hash) != hash)
        })?;
        let mappings = list.after.into_inner().mappings;
        *self = Self {
            node,
            networks,
            mappings,
            written,
        };
        Ok(replaced)
    }
}

fn named(mapping: &NatMapping) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&mapping.metadata.namespace, &mapping.metadata.name).hash(&mut hasher);
    hasher.finish()
}

/// What the next status depends on.
fn since(status: &NatMappingStatus) -> Since {
    let one = |c: &Condition| (c.type_.clone(), c.status.clone(), c.last_transition_time.0);
    status.conditions.iter().map(one).collect()
}

/// A status of which no more is known than what the next one depends on.
fn remembered(since: &Since) -> NatMappingStatus {
    let one = |(kind, status, time): &(String, String, Timestamp)| Condition {
        type_: kind.clone(),
        status: status.clone(),
        last_transition_time: Time(*time),
        message: String::new(),
        reason: String::new(),
        observed_generation: None,
    };
    NatMappingStatus {
        conditions: since.iter().map(one).collect(),
        ..NatMappingStatus::default()
    }
}

/// What is found while a list is written.
#[derive(Default)]
struct After {
    mappings: HashMap<u64, Since>,
    different: BTreeSet<Since>,
}

impl After {
    fn take(&mut self, mapping: u64, since: Since) {
        let shared = self.different.get(&since).cloned();
        let since = shared.unwrap_or_else(|| {
            self.different.insert(since.clone());
            since
        });
        self.mappings.insert(mapping, since);
    }
}

/// The file. Statuses of mappings are made as they are written.
struct List<'a> {
    report: &'a Report,
    inputs: &'a Inputs<'a>,
    node: &'a GatewayNodeStatus,
    networks: &'a BTreeMap<String, StagingNetworkStatus>,
    before: &'a HashMap<u64, Since>,
    after: RefCell<After>,
}

impl Serialize for List<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(None)?;
        map.serialize_entry("apiVersion", "v1")?;
        map.serialize_entry("kind", "List")?;
        map.serialize_entry("items", &Items(self))?;
        let problems: Vec<String> = self.report.snapshot.problems.iter().map(ToString::to_string).collect();
        if !problems.is_empty() {
            map.serialize_entry("problems", &problems)?;
        }
        map.end()
    }
}

struct Items<'a>(&'a List<'a>);

impl Serialize for Items<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let Self(list) = self;
        let mut items = to.serialize_seq(None)?;
        for network in &list.report.snapshot.networks {
            let mut network = StagingNetwork::clone(network);
            network.status = list.networks.get(&network.name_any()).cloned();
            items.serialize_element(&network)?;
        }
        for mapping in &list.report.snapshot.mappings {
            let name = named(mapping);
            let mut mapping = NatMapping::clone(mapping);
            mapping.status = list.before.get(&name).map(remembered);
            mapping.status = aggregate::mapping(list.inputs, list.networks, &mapping).map(|(_, status)| status);
            if let Some(status) = &mapping.status {
                list.after.borrow_mut().take(name, since(status));
            }
            items.serialize_element(&mapping)?;
        }
        let mut node = GatewayNode::new(&list.report.outcome.facts.name, GatewayNodeSpec {});
        node.status = Some(list.node.clone());
        items.serialize_element(&node)?;
        items.end()
    }
}

/// Hashes what goes through.
struct Hashing<W> {
    hasher: DefaultHasher,
    inner: W,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.write(bytes.get(..count).unwrap_or_default());
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Keeps `path` up to date until the runner ends.
pub async fn keep(path: PathBuf, mut reports: Reports, metrics: Arc<Metrics>) {
    let mut memory = Memory::default();
    while reports.changed().await.is_ok() {
        let Some(report) = reports.borrow_and_update().clone() else {
            continue;
        };
        let result = match memory.write(&path, &report, Timestamp::now()) {
            Ok(false) => continue,
            Ok(true) => "written",
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "writing the status file; it is tried again with the next pass");
                "failed"
            }
        };
        metrics.reports.get_or_create(&ResultLabel { result }).inc();
    }
}
