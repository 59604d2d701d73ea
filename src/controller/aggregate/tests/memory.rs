//! A pass from memory says what a pass from nothing says.

use proptest::prelude::*;
use proptest::sample::select;

use super::super::memory::{Memory, Objects};
use super::*;
use crate::plan::{self, Borrowed};

const NODES: [&str; 2] = ["node-a", "node-b"];
const NETWORKS: [&str; 2] = ["segment-b", "segment-c"];

#[derive(Clone, Debug)]
enum Step {
    /// The mapping is created, or its spec edited: another address.
    Claim(usize, u8),
    Delete(usize),
    /// The controller's status is stored, of every mapping or of one.
    Written(Option<usize>),
    /// A person wipes a status.
    Wiped(usize),
    /// A gateway's agent has seen everything.
    Synced(usize),
    /// It begins anew and has seen nothing.
    Restarted(usize),
    Life(usize, Life),
    Failure(usize, usize, bool),
    Refused(usize, usize, bool),
    LinkDown(usize, bool),
    /// The network's spec changes; the gateways have not seen that yet.
    Network(usize),
    NetworkGone(usize),
    Machine(usize, u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (mapping, node) = (0..4_usize, 0..2_usize);
    let one = prop_oneof![
        4 => (mapping.clone(), 3..6_u8).prop_map(|(m, a)| Step::Claim(m, a)),
        1 => mapping.clone().prop_map(Step::Delete),
        6 => proptest::option::of(mapping.clone()).prop_map(Step::Written),
        1 => mapping.clone().prop_map(Step::Wiped),
        5 => node.clone().prop_map(Step::Synced),
        1 => node.clone().prop_map(Step::Restarted),
        2 => (node.clone(), select(vec![Life::Alive, Life::Silent, Life::Unproven])).prop_map(|(n, l)| Step::Life(n, l)),
        2 => (node.clone(), mapping.clone(), any::<bool>()).prop_map(|(n, m, y)| Step::Failure(n, m, y)),
        2 => (node.clone(), mapping.clone(), any::<bool>()).prop_map(|(n, m, y)| Step::Refused(n, m, y)),
        1 => (node.clone(), any::<bool>()).prop_map(|(n, y)| Step::LinkDown(n, y)),
        1 => (0..2_usize).prop_map(Step::Network),
        1 => (0..2_usize).prop_map(Step::NetworkGone),
        1 => (mapping, 3..6_u8).prop_map(|(m, a)| Step::Machine(m, a)),
    ];
    proptest::collection::vec(one, 1..40)
}

/// A cluster of which nothing but what the API server stores is remembered.
struct Cluster {
    networks: Vec<StagingNetwork>,
    mappings: BTreeMap<String, Arc<NatMapping>>,
    reports: Reports,
    machines: BTreeMap<String, u8>,
    version: u64,
}

impl Cluster {
    fn new() -> Self {
        let networks = NETWORKS.map(|name| {
            let mut object = network(name);
            object.spec.inside.addresses = vec![
                if name == "segment-b" {
                    "192.168.200.0/24"
                } else {
                    "192.168.201.0/24"
                }
                .into(),
            ];
            object
        });
        let reports = NODES.map(|node| {
            let role = if node == "node-a" { Role::Active } else { Role::Standby };
            let mut report = says(NETWORKS.map(|name| super::report(name, role, "1")).to_vec());
            report.words().interfaces.push(interface("eth2", "192.168.201.2/24"));
            (node.to_owned(), report)
        });
        Self {
            networks: networks.to_vec(),
            mappings: BTreeMap::new(),
            reports: BTreeMap::from(reports),
            machines: BTreeMap::new(),
            version: 1,
        }
    }

    fn name(number: usize) -> String {
        format!("vm-{number}")
    }

    fn edit(&mut self, name: &str, change: impl FnOnce(&mut NatMapping)) {
        self.version += 1;
        if let Some(object) = self.mappings.get_mut(name) {
            let mut edited = NatMapping::clone(object);
            change(&mut edited);
            edited.metadata.resource_version = Some(self.version.to_string());
            *object = Arc::new(edited);
        }
    }

    fn step(&mut self, step: &Step, said: &BTreeMap<MappingKey, NatMappingStatus>) {
        match step {
            Step::Claim(number, address) => {
                let name = Self::name(*number);
                self.mappings.entry(name.clone()).or_insert_with(|| {
                    let mut object = mapping("default", &name);
                    object.spec.network_ref.name = NETWORKS[number % 2].into();
                    object.spec.target.address = Some(format!("192.168.{}.3", 200 + number % 2));
                    object.metadata.generation = Some(0);
                    Arc::new(object)
                });
                self.edit(&name, |object| {
                    object.spec.r#virtual.address = Some(format!("192.168.100.{address}"));
                    object.metadata.generation = object.metadata.generation.map(|g| g + 1);
                });
            }
            Step::Delete(number) => drop(self.mappings.remove(&Self::name(*number))),
            Step::Written(number) => {
                let chosen = |key: &MappingKey| number.is_none_or(|number| *key.name == *Self::name(number));
                for (key, status) in said.iter().filter(|(key, _)| chosen(key)) {
                    self.edit(&key.name, |object| object.status = Some(status.clone()));
                }
            }
            Step::Wiped(number) => self.edit(&Self::name(*number), |object| object.status = None),
            Step::Synced(node) => {
                let version = self.version.to_string();
                let networks: Vec<_> = self
                    .networks
                    .iter()
                    .map(|n| (n.name_any(), n.metadata.generation.unwrap()))
                    .collect();
                for told in &mut self.report(*node).words().networks {
                    told.synced_resource_version = version.clone();
                    told.programmed += 1;
                    if let Some((_, generation)) = networks.iter().find(|(name, _)| *name == told.name) {
                        told.observed_generation = *generation;
                    }
                }
            }
            Step::Restarted(node) => {
                for told in &mut self.report(*node).words().networks {
                    told.synced_resource_version = String::new();
                }
            }
            Step::Life(node, life) => self.report(*node).life = *life,
            Step::Failure(node, number, there) => {
                let status = self.report(*node).words();
                status.failures.retain(|f| f.name != Self::name(*number));
                if *there {
                    status.failures.push(FailureReport {
                        namespace: "default".into(),
                        name: Self::name(*number),
                        reason: reasons::APPLY_FAILED.into(),
                        message: "no".into(),
                    });
                }
                status.failure_count = u32::try_from(status.failures.len()).unwrap();
            }
            Step::Refused(node, number, there) => {
                let status = self.report(*node).words();
                status.refused.retain(|r| r.name != Self::name(*number));
                if *there {
                    status.refused.push(crate::api::gatewaynode::RefusedReport {
                        namespace: "default".into(),
                        name: Self::name(*number),
                        reason: reasons::CONFLICT.into(),
                    });
                }
            }
            Step::LinkDown(node, down) => {
                for told in &mut self.report(*node).words().networks {
                    told.reason = if *down { reasons::LINK_DOWN } else { "" }.into();
                }
            }
            Step::Network(number) => {
                if let Some(network) = self.networks.get_mut(*number) {
                    network.metadata.generation = network.metadata.generation.map(|g| g + 1);
                }
            }
            Step::NetworkGone(number) => {
                if *number < self.networks.len() {
                    self.networks.remove(*number);
                }
            }
            Step::Machine(number, address) => {
                self.machines.insert(Self::name(*number), *address);
            }
        }
    }

    fn report(&mut self, node: usize) -> &mut Report {
        self.reports.get_mut(NODES[node]).unwrap()
    }

    /// What the machines watch would say: only that some are found where they were, in other words each time.
    fn resolutions(&self) -> Resolutions {
        let one = |(name, address): (&String, &u8)| {
            let object = self.mappings.get(name)?;
            let resolved = crate::controller::machines::Resolved {
                target: None,
                found: crate::controller::machines::Found::Yes(format!("found {address} times")),
            };
            Some((key(object), resolved))
        };
        self.machines.iter().filter_map(one).collect()
    }
}

fn play(steps: &[Step]) -> Result<usize, TestCaseError> {
    let mut cluster = Cluster::new();
    let (mut memory, mut judged, mut seen) = (Memory::default(), plan::Memory::default(), Seen::default());
    let mut said = BTreeMap::new();
    let mut spared = 0;
    for (n, step) in steps.iter().enumerate() {
        cluster.step(step, &said);
        let objects: Vec<Arc<NatMapping>> = cluster.mappings.values().cloned().collect();
        seen.observe(&objects);
        let labels = NODES.map(|name| (name.to_owned(), BTreeMap::new())).into();
        let nodes = gather::Memory::default().nodes(&gateways(&cluster.reports), &labels);
        let namespaces = Arc::default();
        let world = View {
            networks: Borrowed::Owned(&cluster.networks),
            mappings: Borrowed::Shared(&objects),
            nodes: Borrowed::Shared(&nodes),
            namespaces: &namespaces,
        };
        let verdicts = plan::judge_again(world, &mut judged);
        let machines = cluster.resolutions();
        let inputs = Inputs {
            world,
            verdicts: &verdicts,
            isolation: &BTreeMap::new(),
            api_server: &BTreeSet::new(),
            reports: &cluster.reports,
            machines: &machines,
            seen: &seen,
            now: Timestamp::from_second(1_700_000_000 + i64::try_from(n).unwrap()).unwrap(),
        };
        let whole = aggregate(&inputs);
        let short = memory.aggregate(
            &inputs,
            Objects {
                stored: &objects,
                judged: &objects,
            },
        );
        prop_assert_eq!(&short.networks, &whole.networks);
        for (key, status) in &whole.mappings {
            if let Some(told) = short.mappings.get(key) {
                prop_assert_eq!(told, status);
            } else {
                spared += 1;
                let stored = cluster.mappings[&*key.name].status.as_ref();
                prop_assert_eq!(stored, Some(status), "{} was left out after {:?}", key, step);
            }
        }
        prop_assert!(short.mappings.keys().all(|key| whole.mappings.contains_key(key)));
        // The networks' statuses are stored at once: how a gateway is chosen is not what this is about.
        for network in &mut cluster.networks {
            network.status = whole.networks.get(&network.name_any()).cloned();
        }
        said = whole.mappings;
    }
    Ok(spared)
}

#[test]
fn a_pass_from_memory_says_what_a_pass_from_nothing_says() {
    let mut spared = 0;
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 256,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let outcome = runner.run(&steps(), |steps| play(&steps).map(|_| ()));
    outcome.unwrap();
    // What is served and at rest is left out, or this shows nothing.
    let at_rest = [
        Step::Claim(0, 3),
        Step::Synced(0),
        Step::Written(None),
        Step::Synced(0),
        Step::Synced(0),
    ];
    spared += play(&at_rest).unwrap();
    assert!(spared >= 2, "{spared}");
}
