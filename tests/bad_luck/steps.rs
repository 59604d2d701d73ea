//! A thousand random steps end in the same kernel state as a straight way would, and leave nothing behind.

use std::collections::BTreeSet;
use std::net::{IpAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::crowd::{OTHER, OTHER_80};
use crate::lab::{Dialler, Manifests, Seed, Snapshot, Steady, VIP, VIP_80, VIP6, VIP6_80, seconds, wait_until};
use crate::second::Second;
use crate::wishes::{self, Random, Wishes};

const STEPS: u32 = 1000;

/// Flows of the gateway whose destination is translated: whom they dial, and who answers.
fn flows(seed: &Seed) -> BTreeSet<(IpAddr, IpAddr)> {
    let pair = |line: &str| {
        let field = |key: &str| {
            line.split_whitespace()
                .filter_map(|w| w.strip_prefix(key)?.parse().ok())
                .collect::<Vec<IpAddr>>()
        };
        let (sources, destinations) = (field("src="), field("dst="));
        (destinations[0], sources[1])
    };
    let listed = listed(seed);
    let all = listed.lines().filter(|l| l.contains("src=")).map(pair);
    all.filter(|(dialled, answers)| dialled != answers).collect()
}

fn listed(seed: &Seed) -> String {
    seed.vm02.try_sh("conntrack -L; conntrack -L -f ipv6").stdout
}

labs! {
    fn a_thousand_random_steps_end_as_planned(seed) {
        let (mut random, number) = Random::new();
        println!("{}={number}", wishes::SEED);
        seed.dual_stack();
        let second = Second::new(seed);
        let virtual_addresses = [VIP, VIP6, OTHER, "192.168.100.10", "192.168.100.33", "192.168.100.60", "192.168.100.67", "fd00:100::28", "fd00:100::83"];
        let probers = second.probers(seed, &virtual_addresses);
        let pristine = Snapshot::of(&seed.vm02);
        let manifests = Manifests::empty("steps");
        wishes::first_network(&mut random, &manifests, 0);
        manifests.mapping("steady", VIP, "192.168.200.3", "");
        manifests.mapping("steady6", VIP6, "fd00:200::3", "");
        let mut agent = seed.agent(&manifests, &[]);
        seed.wait_serves("vm03");
        seed.route_ipv6(true);
        wait_until(seconds(20), "the mapping of IPv6", || seed.vm01.tcp(VIP6_80).is_some());
        let steady = [VIP_80, VIP6_80].map(|to| Steady::connect(&seed.vm01, to));
        let dialler = Dialler::start(&seed.vm01, &[(VIP_80, "vm03"), (VIP6_80, "vm03")], Duration::from_millis(20), u64::MAX);

        let start = Instant::now();
        let mut wishes = Wishes::default();
        let mut step = 0;
        while step < STEPS {
            let burst = 1 + random.below(16).min((STEPS - step - 1).try_into().unwrap_or(u8::MAX));
            for _ in 0..burst {
                wishes.step(&mut random, &manifests);
            }
            step += u32::from(burst);
            // Somebody dials, so that there are flows to end.
            if let Some((address, from_inside)) = wishes.dialled(&mut random) {
                let from = if from_inside { &seed.vm03 } else { &seed.vm01 };
                drop(from.enter(|| TcpStream::connect_timeout(&(address, 80).into(), Duration::from_millis(50))));
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
        wishes.settle(&mut random, &manifests);
        // What is written last is read last.
        manifests.mapping("zz-last", OTHER, "192.168.200.4", "");
        wait_until(seconds(60), "the last mapping", || seed.vm01.tcp(OTHER_80).is_some());
        let walked = start.elapsed();
        std::thread::sleep(seconds(1));
        let end = Snapshot::of(&seed.vm02);
        for steady in &steady {
            steady.goes_on("after all steps");
        }
        dialler.none_failed("during all steps");
        probers.round();
        probers.none_passed("during all steps");
        let strange: Vec<_> = flows(seed).into_iter().filter(|(dialled, answers)| !wishes.lead(*dialled, *answers)).collect();
        assert!(strange.is_empty(), "{strange:?} are flows that no mapping makes:\n{}", listed(seed));
        let passes = agent.log().matches(" pass ").count();
        assert_eq!(agent.stop("TERM"), Some(0));

        seed.route_ipv6(false);
        seed.cleanup();
        pristine.assert_same(&Snapshot::of(&seed.vm02));
        assert_eq!(flows(seed), BTreeSet::new(), "{}", listed(seed));
        seed.converge_dual(&manifests);
        // Where the reverse path filter must not be strict, what it was before decides whether it is loose or off.
        let not_strict = |snapshot: &Snapshot| snapshot.reading("/rp_filter:2", "/rp_filter:0");
        not_strict(&end).assert_same(&not_strict(&Snapshot::of(&seed.vm02)));
        let mappings = wishes.mappings();
        println!("measured: {STEPS} steps in {walked:?}, {mappings} mappings at the end, {passes} passes of the last agent, {} rounds", probers.end());
    }
}
