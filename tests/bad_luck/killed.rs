//! SIGKILL at every point between two effects of the agent: after a restart the kernel is as planned, no connection is lost, and nothing ever passes
//! the fence.

use std::time::Duration;

use crate::crowd::{OTHER, OTHER_80, OTHER6_80, two_mappings};
use crate::lab::{Dialler, End, Manifests, Probers, Seed, Snapshot, Steady, VIP, VIP_80, VIP6, VIP6_80, killed_at};
use crate::second::{Inside, SECOND_VIP, Second};

/// The agent's arguments for one pass.
fn once<'a>(seed: &Seed, manifests: &'a Manifests) -> Vec<&'a str> {
    let backend = seed.backend.name();
    vec![
        "agent",
        "--manifests",
        manifests.path(),
        "--node",
        "vm02",
        "--backend",
        backend,
        "--once",
    ]
}

/// Runs `args` killed at one point after the other, each time after `prepare`, until it comes through. `killed` is told the point.
fn at_every_point(seed: &Seed, args: &[&str], mut prepare: impl FnMut(), mut killed: impl FnMut(&str)) -> Vec<String> {
    for at in 0.. {
        prepare();
        match killed_at(&seed.vm02, args, at) {
            End::Killed(point) => killed(&format!("killed at point {at}, {point}")),
            End::Exited(0, points) => return points,
            End::Exited(code, _) => panic!(
                "exit status {code} of {args:?}: {}",
                std::fs::read_to_string("/run/lab/killed.log").unwrap()
            ),
        }
    }
    unreachable!("it comes through after finitely many points")
}

/// Gives everybody time to use what is open; or, if a tool goes on by itself, none, so that the next agent meets it at work.
fn linger(probers: &Probers, point: &str) {
    if !point.contains(", after ") {
        probers.round();
    }
    probers.none_passed(point);
}

fn told(points: &[Vec<String>]) -> String {
    let counts: Vec<_> = points.iter().map(Vec::len).collect();
    format!("killed at {counts:?} points")
}

labs! {
    /// The first start on a node, and `cleanup`, which undoes it.
    fn killed_at_every_point_of_the_start_and_of_cleanup(seed) {
        let _ssh = seed.vm02.serve(22);
        let probers = Probers::start(seed, &[VIP, OTHER]);
        let pristine = Snapshot::of(&seed.vm02);
        // What nobody asked us to look after goes on.
        let node = Steady::connect(&seed.vm01, "192.168.100.2:22");
        let manifests = two_mappings();
        seed.converge(&manifests);
        let planned = Snapshot::of(&seed.vm02);
        let cleaned = || {
            seed.cleanup();
            pristine.assert_same(&Snapshot::of(&seed.vm02));
        };

        let started = at_every_point(seed, &once(seed, &manifests), cleaned, |point| {
            linger(&probers, point);
            seed.converge(&manifests);
            planned.assert_same(&Snapshot::of(&seed.vm02));
            assert_eq!(seed.vm01.tcp(VIP_80).unwrap_or_else(|| panic!("{point}: a connection")).server, "vm03");
            node.goes_on(point);
            probers.none_passed(point);
        });
        assert!(started.iter().any(|p| p.starts_with("before a netlink request")) && started.iter().any(|p| p.contains("*mangle")), "{started:#?}");

        let cleaned = at_every_point(seed, &["cleanup"], || seed.converge(&manifests), |point| {
            linger(&probers, point);
            cleaned();
            node.goes_on(point);
            probers.none_passed(point);
        });
        println!("measured: {}, {} rounds", told(&[started, cleaned]), probers.end());
    }

    /// A mapping of either family that comes, moves to another target and goes, beside ones that stay.
    fn killed_at_every_point_of_a_change_of_a_mapping(seed) {
        seed.dual_stack();
        let probers = Probers::start(seed, &[VIP, OTHER, VIP6]);
        let manifests = Manifests::empty("changes");
        manifests.dual_network("");
        manifests.mapping("other", OTHER, "192.168.200.4", "");
        manifests.mapping("other6", "fd00:100::4", "fd00:200::4", "");
        let declare = |host: &str| {
            for (name, address, inside) in [("changes", VIP, "192.168.200."), ("changes6", VIP6, "fd00:200::")] {
                match host {
                    "" => drop(std::fs::remove_file(format!("{}/{name}.yaml", manifests.path()))),
                    host => manifests.mapping(name, address, &format!("{inside}{host}"), ""),
                }
            }
        };
        seed.converge_dual(&manifests);
        let states = [("", None), ("3", Some("vm03")), ("4", Some("vm04"))];
        let planned = states.map(|(host, _)| {
            declare(host);
            seed.converge(&manifests);
            Snapshot::of(&seed.vm02)
        });
        let steady = [OTHER_80, OTHER6_80].map(|to| Steady::connect(&seed.vm01, to));
        let dialler = Dialler::start(&seed.vm01, &[(OTHER_80, "vm04"), (OTHER6_80, "vm04")], Duration::from_millis(20), u64::MAX);
        let mut points = Vec::new();
        for (from, to) in [(0, 1), (1, 2), (2, 0)] {
            let (host, server) = states[to];
            let prepare = || {
                declare(states[from].0);
                seed.converge(&manifests);
                declare(host);
            };
            points.push(at_every_point(seed, &once(seed, &manifests), prepare, |point| {
                linger(&probers, point);
                seed.converge(&manifests);
                planned[to].assert_same(&Snapshot::of(&seed.vm02));
                if server.is_none() {
                    assert_eq!(seed.vm02.flows(VIP), Vec::<String>::new(), "{point}");
                } else {
                    for to in [VIP_80, VIP6_80] {
                        assert_eq!(seed.vm01.tcp(to).map(|c| c.server).as_deref(), server, "{to}, {point}");
                    }
                }
                for steady in &steady {
                    steady.goes_on(point);
                }
                dialler.none_failed(point);
                probers.none_passed(point);
            }));
        }
        let slowest = steady.iter().map(|steady| steady.account().1).max();
        println!("measured: {}, slowest line {slowest:?}, {} rounds", told(&points), probers.end());
    }

    /// A whole network that comes and goes, beside one that stays.
    fn killed_at_every_point_of_the_coming_and_going_of_a_network(seed) {
        let second = Second::new(seed);
        let probers = second.probers(seed, &[VIP, OTHER]);
        let manifests = two_mappings();
        seed.converge(&manifests);
        let alone = Snapshot::of(&seed.vm02);
        Second::declare(&manifests, Inside::Own);
        seed.converge(&manifests);
        let both = Snapshot::of(&seed.vm02);
        let remove = || Second::withdraw(&manifests);
        let steady = Steady::connect(&seed.vm01, OTHER_80);
        let dialler = Dialler::start(&seed.vm01, &[(OTHER_80, "vm04")], Duration::from_millis(20), u64::MAX);
        let check = |point: &str, planned: &Snapshot| {
            linger(&probers, point);
            seed.converge(&manifests);
            planned.assert_same(&Snapshot::of(&seed.vm02));
            steady.goes_on(point);
            dialler.none_failed(point);
            probers.none_passed(point);
        };

        let came = at_every_point(
            seed,
            &once(seed, &manifests),
            || {
                remove();
                seed.converge(&manifests);
                Second::declare(&manifests, Inside::Own);
            },
            |point| {
                check(point, &both);
                assert_eq!(seed.vm01.tcp("192.168.100.130:80").unwrap_or_else(|| panic!("{point}: a connection")).server, "vm05");
            },
        );
        let went = at_every_point(
            seed,
            &once(seed, &manifests),
            || {
                Second::declare(&manifests, Inside::Own);
                seed.converge(&manifests);
                remove();
            },
            |point| {
                check(point, &alone);
                assert_eq!(seed.vm02.flows(SECOND_VIP), Vec::<String>::new(), "{point}");
            },
        );
        assert!(second.vm05.tcp_is_dropped("192.168.100.1:80"));
        println!("measured: {}, {} rounds", told(&[came, went]), probers.end());
    }
}
