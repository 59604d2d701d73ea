//! A thousand random steps end in the same kernel state as a straight way would, and leave nothing behind.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::crowd::{OTHER, OTHER_80};
use crate::lab::{self, Dialler, Manifests, Seed, Snapshot, Steady, VIP, VIP_80, seconds, wait_until};
use crate::second::{SECOND_VIP, Second};

const STEPS: u32 = 1000;
/// Set to a number that a failed run printed, to walk the same way again.
const SEED: &str = "STAGENET_STEPS_SEED";
/// Mappings that come, change and go.
const NAMES: u8 = 24;

/// Steele, Lea, Flood: Fast splittable pseudorandom number generators (OOPSLA 2014).
struct Random(u64);

impl Random {
    fn new() -> (Self, u64) {
        let seed = std::env::var(SEED).ok().and_then(|s| s.parse().ok());
        let seed = seed.unwrap_or_else(|| RandomState::new().build_hasher().finish());
        (Self(seed), seed)
    }

    fn below(&mut self, bound: u8) -> u8 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        u8::try_from((z ^ (z >> 31)) % u64::from(bound)).unwrap()
    }
}

/// What is declared: by mapping its virtual address, target and whether it is of TCP port 80 only.
#[derive(Default)]
struct Declared {
    mappings: BTreeMap<u8, (Ipv4Addr, Ipv4Addr)>,
    second: bool,
    broken: BTreeSet<u8>,
}

impl Declared {
    fn step(&mut self, random: &mut Random, manifests: &Manifests) {
        match random.below(20) {
            0 => {
                let log = [
                    "",
                    "egress: {default: Deny, log: true}",
                    "protected: [10.0.0.0/8]",
                    "gatewayAddresses",
                ];
                let more = log[usize::from(random.below(4))];
                let network = lab::network(
                    "segment-b",
                    "192.168.100.0/25",
                    "192.168.200.0/24",
                    if more == "gatewayAddresses" { "" } else { more },
                );
                let inside = "    interface: eth1\n";
                let text = match more {
                    "gatewayAddresses" => network.replace(inside, &format!("{inside}    gatewayAddresses: [192.168.200.250]\n")),
                    _ => network,
                };
                manifests.write("network.yaml", &text);
            }
            1 => {
                self.second ^= true;
                if self.second {
                    Second::declare(manifests);
                } else {
                    Second::withdraw(manifests);
                }
            }
            2..=6 => {
                let name = random.below(NAMES);
                if self.mappings.remove(&name).is_some() {
                    self.broken.remove(&name);
                    manifests.remove(&format!("m{name}.yaml"));
                }
            }
            // A file that cannot be read: what it said before stays in force.
            7 => {
                let name = random.below(NAMES);
                if self.mappings.contains_key(&name) {
                    self.broken.insert(name);
                    manifests.write(&format!("m{name}.yaml"), "kind: NatMapping\n  spec: : :\n");
                }
            }
            _ => {
                let name = random.below(NAMES);
                self.declare(name, random, manifests);
            }
        }
    }

    fn declare(&mut self, name: u8, random: &mut Random, manifests: &Manifests) {
        self.broken.remove(&name);
        let address = Ipv4Addr::new(192, 168, 100, 10 + name + 40 * random.below(2));
        let target = Ipv4Addr::new(192, 168, 200, 3 + random.below(2));
        let more = [
            "",
            "sourceTranslation: Preserve",
            "ports:\n- {protocol: TCP, port: 80}",
            "ports:\n- {protocol: TCP, port: 80}\n- {protocol: UDP, port: 1000, endPort: 1009, targetPort: 2000}",
        ];
        let more = more[usize::from(random.below(4))];
        self.mappings.insert(name, (address, target));
        manifests.mapping(&format!("m{name}"), &address.to_string(), &target.to_string(), more);
    }
}

/// Flows of the gateway that dial an address of the pool: whom they dial, and who answers.
fn flows(seed: &Seed) -> BTreeSet<(Ipv4Addr, Ipv4Addr)> {
    let listed = seed.vm02.try_sh("conntrack -L").stdout;
    let pair = |line: &str| {
        let field = |key: &str| {
            line.split_whitespace()
                .filter_map(|w| w.strip_prefix(key)?.parse::<Ipv4Addr>().ok())
                .collect::<Vec<_>>()
        };
        let (sources, destinations) = (field("src="), field("dst="));
        (destinations[0], sources[1])
    };
    let pool: Ipv4Addr = [192, 168, 100, 0].into();
    let ours = |(dialled, answers): &(Ipv4Addr, Ipv4Addr)| dialled.octets()[..3] == pool.octets()[..3] && dialled != answers;
    listed.lines().filter(|l| l.contains("src=")).map(pair).filter(ours).collect()
}

labs! {
    fn a_thousand_random_steps_end_as_planned(seed) {
        let (mut random, number) = Random::new();
        println!("{SEED}={number}");
        let second = Second::new(seed);
        let probers = second.probers(seed, &[VIP, OTHER, "192.168.100.10", "192.168.100.33", "192.168.100.60"]);
        let pristine = Snapshot::of(&seed.vm02);
        let manifests = Manifests::empty("steps");
        manifests.write("network.yaml", &lab::network("segment-b", "192.168.100.0/25", "192.168.200.0/24", ""));
        manifests.mapping("steady", VIP, "192.168.200.3", "");
        let mut agent = seed.agent(&manifests, &[]);
        seed.wait_serves("vm03");
        let steady = Steady::connect(&seed.vm01, VIP_80);
        let dialler = Dialler::start(&seed.vm01, &[(VIP_80, "vm03")], Duration::from_millis(20), u64::MAX);

        let start = Instant::now();
        let mut declared = Declared::default();
        let mut step = 0;
        while step < STEPS {
            let burst = 1 + random.below(16).min((STEPS - step - 1).try_into().unwrap_or(u8::MAX));
            for _ in 0..burst {
                declared.step(&mut random, &manifests);
            }
            step += u32::from(burst);
            // Somebody dials, so that there are flows to end.
            if let Some((address, _)) = declared.mappings.get(&random.below(NAMES)) {
                drop(seed.vm01.enter(|| std::net::TcpStream::connect_timeout(&(*address, 80).into(), Duration::from_millis(50))));
            }
            match random.below(20) {
                0 => {
                    agent.stop(["KILL", "TERM"][usize::from(random.below(2))]);
                    agent = seed.agent(&manifests, &[]);
                }
                1..=9 => std::thread::sleep(Duration::from_millis(u64::from(random.below(250)))),
                _ => {}
            }
        }
        for name in declared.broken.clone() {
            declared.declare(name, &mut random, &manifests);
        }
        // What is written last is read last.
        manifests.mapping("zz-last", OTHER, "192.168.200.4", "");
        wait_until(seconds(60), "the last mapping", || seed.vm01.tcp(OTHER_80).is_some());
        let walked = start.elapsed();
        std::thread::sleep(seconds(1));
        let end = Snapshot::of(&seed.vm02);
        steady.goes_on("after all steps");
        dialler.none_failed("during all steps");
        probers.round();
        probers.none_passed("during all steps");
        let planned: BTreeSet<_> = declared.mappings.values().copied().chain(declared.second.then(|| {
            (SECOND_VIP.parse().unwrap(), [192, 168, 201, 5].into())
        })).chain([(VIP.parse().unwrap(), [192, 168, 200, 3].into()), (OTHER.parse().unwrap(), [192, 168, 200, 4].into())]).collect();
        let flows = flows(seed);
        let strange: Vec<_> = flows.difference(&planned).collect();
        let all = || seed.vm02.try_sh("conntrack -L").stdout;
        assert!(strange.is_empty(), "{strange:?} are flows that no mapping makes (second network: {}):\n{}", declared.second, all());
        let passes = agent.log().matches(" pass ").count();
        assert_eq!(agent.stop("TERM"), Some(0));

        seed.cleanup();
        pristine.assert_same(&Snapshot::of(&seed.vm02));
        assert_eq!(self::flows(seed), BTreeSet::new(), "{}", seed.vm02.try_sh("conntrack -L").stdout);
        seed.converge(&manifests);
        end.assert_same(&Snapshot::of(&seed.vm02));
        println!("measured: {STEPS} steps in {walked:?}, {} mappings at the end, {passes} passes of the last agent, {} rounds", planned.len(), probers.end());
    }
}
