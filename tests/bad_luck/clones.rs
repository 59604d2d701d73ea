//! SIGKILL at every point between two effects of the agent while a clone comes, changes and goes beside another one.

use std::time::Duration;

use crate::lab::clones::{GATEWAY_MAC, mac};
use crate::lab::{
    Backend, Clones, Dialler, End, Prober, Shape, Snapshot, Steady, Witness, fall_silent, hopeless, in_binary, isolated, killed_at,
    packets, seconds, wait_until,
};

#[test]
fn nft() {
    isolated(in_binary(concat!(module_path!(), "::nft")), || {
        killed_beside_a_clone(Backend::Nft, 1)
    });
}

#[test]
fn legacy() {
    isolated(in_binary(concat!(module_path!(), "::legacy")), || {
        killed_beside_a_clone(Backend::Legacy, 3)
    });
}

/// Types of service of the probers in the two clones.
const MARKS: [u8; 2] = [0xb4, 0x34];

/// A gateway of two clones, probed from inside both.
struct Gateway {
    clones: Clones,
    probers: Vec<Prober>,
    witness: Witness,
}

impl Gateway {
    fn new(backend: Backend) -> Self {
        let clones = Clones::new(Shape::node(backend), 2);
        let probers = clones.all().zip(MARKS).map(|(k, mark)| {
            let vips = [clones.vip(3 - k, "a"), clones.vip(3 - k, "b")];
            let to = [
                "192.168.100.1",
                "192.168.100.254",
                "192.168.100.77",
                "198.51.100.7",
                &vips[0],
                &vips[1],
            ];
            let borrowed = ["192.168.100.1", "192.168.100.88"];
            let all = [
                packets(mark, &["10.0.0.66", "10.0.0.3", "10.0.0.4", borrowed[0], borrowed[1]], &to),
                hopeless(mark, &borrowed, &to),
            ];
            Prober::on(&clones.join(k, &format!("probe{k}")), &mac(k), &all.concat())
        });
        let probers = probers.collect();
        let marked = |mark: u8| format!("(ip[1] = {mark} or (icmp and ip[29] = {mark}))");
        let filter = format!("ether src {GATEWAY_MAC} and ({} or {})", marked(MARKS[0]), marked(MARKS[1]));
        let mut witness = Witness::on(&clones.segment, "br0", &filter);
        // The control: an open router lets them out.
        clones.gateway.set("ipv4/ip_forward", "1");
        wait_until(seconds(20), "the witness to see what an open router lets out", || {
            let seen = witness.seen().join("\n");
            ["> 192.168.100.1", "> 198.51.100.7", "UDP", "Flags [S]", "exceeded"]
                .iter()
                .all(|w| seen.contains(w))
        });
        clones.gateway.set("ipv4/ip_forward", "0");
        clones.gateway.forget_flows();
        fall_silent(&clones.gateway, &[&witness]);
        witness.forget();
        Self { clones, probers, witness }
    }

    fn round(&self) {
        self.probers.iter().for_each(Prober::full_round);
    }

    fn none_passed(&self, when: &str) {
        let seen = self.witness.seen();
        assert!(
            seen.is_empty(),
            "{when}: {} packets, such as {:#?}",
            seen.len(),
            &seen[..seen.len().min(8)]
        );
    }

    /// Runs the agent for one pass, killed at a point; what point, or None if it came through first.
    fn killed(&self, at: usize) -> Option<String> {
        let (manifests, backend) = (self.clones.manifests.path(), self.clones.shape.backend.name());
        let args = [
            "agent",
            "--manifests",
            manifests,
            "--node",
            "gateway",
            "--backend",
            backend,
            "--once",
        ];
        match killed_at(&self.clones.gateway, &args, at) {
            End::Killed(point) => Some(format!("killed at point {at}, {point}")),
            End::Exited(0, _) => None,
            End::Exited(code, _) => panic!("exit status {code}: {}", std::fs::read_to_string("/run/lab/killed.log").unwrap()),
        }
    }
}

/// What the second clone's machine `a` leads to, if the clone is there.
fn declare(clones: &Clones, second: Option<usize>) {
    match second {
        Some(host) => {
            clones.network(2, false, "egress: {default: Deny}");
            clones.mapping(2, "a", &clones.vip(2, "a"), &format!("10.0.0.{host}"), "");
            clones.mapping(2, "b", &clones.vip(2, "b"), "10.0.0.4", "ports: [{protocol: TCP, port: 80}]");
        }
        None => clones.erase(2),
    }
}

/// The second clone comes, changes and goes, round after round, and the agent is killed a point later in each. Nobody gets out, the first clone's connections go on, and after the next
/// start the kernel is as planned. `step`: how many points later; what the points are does not depend on the tool, but how long each takes does.
fn killed_beside_a_clone(backend: Backend, step: usize) {
    let gateway = Gateway::new(backend);
    let clones = &gateway.clones;
    clones.write(1, false, "Deny");
    clones.converge();
    let states = [Some(3), Some(4), None];
    let planned = states.map(|second| {
        declare(clones, second);
        clones.converge();
        Snapshot::of(&clones.gateway)
    });
    let first = format!("{}:80", clones.vip(1, "a"));
    let second = format!("{}:80", clones.vip(2, "a"));
    let steady = [Steady::connect(&clones.client, &first), Steady::datagrams(&clones.client, &first)];
    let dialler = Dialler::start(&clones.client, &[(&first, "c1a")], Duration::from_millis(20), u64::MAX);
    let mut points = [0; 3];
    for at in (0..).step_by(step) {
        let mut came_through = 0;
        for (turn, wanted) in states.iter().enumerate() {
            declare(clones, *wanted);
            let Some(point) = gateway.killed(at) else {
                came_through += 1;
                planned[turn].assert_same(&Snapshot::of(&clones.gateway));
                continue;
            };
            points[turn] = at + 1;
            let point = format!("turn {turn}, {point}");
            if !point.contains(", after ") {
                gateway.round();
            }
            gateway.none_passed(&point);
            clones.converge();
            planned[turn].assert_same(&Snapshot::of(&clones.gateway));
            let served = clones.client.tcp(&second).map(|c| c.server);
            let server = wanted.map(|host| ["c2a", "c2b"][host - 3]);
            assert_eq!(served.as_deref(), server, "{point}");
            steady.iter().for_each(|steady| steady.goes_on(&point));
            dialler.none_failed(&point);
            gateway.none_passed(&point);
        }
        if came_through == states.len() {
            break;
        }
    }
    assert!(points.iter().all(|n| *n > 4), "{points:?}");
    let (rounds, mut witness) = (gateway.probers[0].rounds(), gateway.witness);
    witness.end();
    assert!(witness.seen().is_empty(), "{:#?}", witness.seen());
    println!("measured: killed at {points:?} points of coming, changing and going, {rounds} rounds");
}
