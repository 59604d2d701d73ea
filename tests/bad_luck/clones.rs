//! SIGKILL at every point between two effects of the agent while a clone comes, changes and goes beside another one.

use std::time::Duration;

use crate::lab::{Backend, Clones, Dialler, End, Escapes, Shape, Snapshot, Steady, in_binary, isolated, killed_at};

// Each takes every other point, so that together they are at every one: what the points are does not depend on the tool.

#[test]
fn nft() {
    isolated(in_binary(concat!(module_path!(), "::nft")), || {
        killed_beside_a_clone(Backend::Nft, 0);
    });
}

#[test]
fn legacy() {
    isolated(in_binary(concat!(module_path!(), "::legacy")), || {
        killed_beside_a_clone(Backend::Legacy, 1);
    });
}

/// A gateway of two clones, probed from inside both: by IPv6 from the one that stays, since nothing fences the other one's interface while it is nobody's.
struct Gateway {
    clones: Clones,
    escapes: Escapes,
}

impl Gateway {
    fn new(backend: Backend) -> Self {
        let clones = Clones::new(Shape::node(backend), 2);
        let mut escapes = Escapes::start(&clones, &[1]);
        clones.write(1, true, "Deny");
        clones.converge();
        escapes.begin(&clones.gateway);
        Self { clones, escapes }
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
    let Some(host) = second else { return clones.erase(2) };
    clones.network(2, true, "egress: {default: Deny}");
    clones.mapping(2, "a", &clones.vip(2, "a"), &format!("10.0.0.{host}"), "");
    clones.mapping(2, "b", &clones.vip(2, "b"), "10.0.0.4", "ports: [{protocol: TCP, port: 80}]");
    clones.mapping(2, "a6", &clones.vip6(2, "a"), &format!("fd00:10::{host}"), "");
}

/// The second clone comes, changes and goes, round after round, and the agent is killed two points later in each. Nobody gets out or across, the first clone's connections go on, and after
/// the next start the kernel is as planned.
fn killed_beside_a_clone(backend: Backend, first_point: usize) {
    let gateway = Gateway::new(backend);
    let (clones, escapes) = (&gateway.clones, &gateway.escapes);
    let states = [Some(3), Some(4), None];
    let planned = states.map(|second| {
        declare(clones, second);
        clones.converge();
        Snapshot::of(&clones.gateway)
    });
    let both = |k: usize| [format!("{}:80", clones.vip(k, "a")), format!("[{}]:80", clones.vip6(k, "a"))];
    let (first, second) = (both(1), both(2));
    let steady = [
        Steady::connect(&clones.client, &first[0]),
        Steady::datagrams(&clones.client, &first[0]),
        Steady::connect(&clones.client, &first[1]),
    ];
    let places = [(first[0].as_str(), "c1a"), (&first[1], "c1a")];
    let dialler = Dialler::start(&clones.client, &places, Duration::from_millis(20), u64::MAX);
    let mut points = [0; 3];
    for at in (first_point..).step_by(2) {
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
                escapes.round();
            }
            escapes.none_passed(&point);
            clones.converge();
            planned[turn].assert_same(&Snapshot::of(&clones.gateway));
            for place in &second {
                let served = clones.client.tcp(place).map(|c| c.server);
                assert_eq!(served.as_deref(), wanted.map(|host| ["c2a", "c2b"][host - 3]), "{place}, {point}");
            }
            for steady in &steady {
                steady.goes_on(&point);
            }
            dialler.none_failed(&point);
            escapes.none_passed(&point);
        }
        if came_through == states.len() {
            break;
        }
    }
    assert!(points.iter().all(|n| *n > 2), "{points:?}");
    let rounds = gateway.escapes.end();
    println!("measured: killed at every other of {points:?} points of coming, changing and going, {rounds} rounds");
}
