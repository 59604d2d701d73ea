//! The run: the cluster grows, one mapping more at a time, a thousand at once, then nothing for a minute.

mod agents;
mod objects;
mod traffic;

use std::path::Path;
use std::time::{Duration, Instant};

use crate::lab::{Agent, Ns};
use objects::{Objects, Ready};
use traffic::{Requests, usage};

/// How large the cluster is.
#[derive(Clone, Copy)]
pub struct Size {
    pub mappings: usize,
    pub nodes: usize,
}

/// Closed networks, in groups that share gateways.
pub const NETWORKS: usize = 50;
/// Groups of networks; each has two gateways.
pub const GROUPS: usize = 5;
/// The group whose first gateway is real.
pub const REAL: usize = GROUPS - 1;
/// Single additions, and how long everything rests before each.
const ADDITIONS: usize = 100;
const REST: Duration = Duration::from_millis(300);
const AT_ONCE: usize = 1_000;
const IDLE: Duration = Duration::from_secs(60);

/// The group of a network.
pub fn group(network: usize) -> usize {
    network * GROUPS / NETWORKS
}

pub fn run(control_plane: &Path, size: Size) {
    let api = crate::lab::Api::start(control_plane);
    let gateway = Ns::new("agw");
    let kubeconfig = api.join(&gateway, "10.99.0.2", &format!("group: \"{REAL}\""));
    let interface = |name: &str, address: &str| {
        gateway.sh(&format!(
            "ip link add {name} type veth peer name p-{name} && ip addr add {address} dev {name} && ip link set {name} up && ip link set p-{name} up"
        ));
    };
    interface("out0", "192.0.2.1/24");
    for n in (0..NETWORKS).filter(|n| group(*n) == REAL) {
        interface(&format!("in{n}"), &format!("10.{}.0.1/16", 128 + n));
    }
    // As in the image.
    let environment = [("MIMALLOC_PURGE_DELAY", "0")];
    let agent = Agent::run_in(
        &gateway,
        "agent",
        &kubeconfig,
        &["--node", gateway.name(), "--state-dir", "/run/lab/agent.state"],
        &environment,
    );
    let controller = Agent::run_in(
        &api.host,
        "controller",
        &api.controller(),
        &["--namespace", "stagenet-system", "--identity", "one", "--listen", "none"],
        &environment,
    );
    // Sockets belong to the namespace of the thread that makes them: threads of the runtime are made here.
    api.host.enter(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(measure(size, gateway.name(), agent.pid(), controller.pid()));
    });
}

async fn measure(size: Size, gateway: &str, agent: u32, controller: u32) {
    let objects = Objects::new().await;
    let nodes = agents::start(size.nodes, gateway).await;
    let mut ready = Ready::watch(objects.client());
    println!(
        "\n### A cluster: {} mappings in {NETWORKS} networks, {nodes} nodes\n",
        size.mappings
    );
    let begun = Instant::now();
    objects.networks().await;
    objects.mappings(0..size.mappings).await;
    let made = begun.elapsed();
    ready.count(size.mappings).await;
    // Else the real kernel is no part of what is measured.
    objects.served_by(REAL, gateway).await;
    println!(
        "- created in {:.1} s; all Ready {:.1} s after that",
        made.as_secs_f64(),
        (begun.elapsed() - made).as_secs_f64()
    );
    tokio::time::sleep(Duration::from_secs(20)).await;

    let before = Requests::read(&objects).await;
    let mut took = Vec::new();
    for i in size.mappings..size.mappings + ADDITIONS {
        tokio::time::sleep(REST).await;
        let asked = Instant::now();
        let name = objects.one_more(i).await;
        took.push(ready.named(&name).await - asked);
    }
    took.sort();
    let at = |share: usize| took[(took.len() * share / 100).min(took.len() - 1)].as_secs_f64() * 1000.0;
    let mut bounds = Bounds::default();
    bounds.compare("one more, created until Ready is seen, p50, ms", at(50), 100.0);
    bounds.compare("the same, p99, ms", at(99), 300.0);
    before
        .since(&objects, &format!("each of {ADDITIONS} mappings more"), ADDITIONS as f64)
        .await;

    let total = size.mappings + ADDITIONS;
    let asked = Instant::now();
    objects.mappings(total..total + AT_ONCE).await;
    let made = asked.elapsed();
    ready.count(total + AT_ONCE).await;
    println!("- {AT_ONCE} at once: created in {:.1} s", made.as_secs_f64());
    bounds.compare(
        "a thousand at once, first request until all are Ready, s",
        asked.elapsed().as_secs_f64(),
        10.0,
    );
    tokio::time::sleep(Duration::from_secs(30)).await;

    let before = Requests::read(&objects).await;
    let work = [usage(agent), usage(controller)];
    tokio::time::sleep(IDLE).await;
    let written = before
        .since(&objects, &format!("{} s with nothing to do", IDLE.as_secs()), 1.0)
        .await;
    bounds.compare("writes with nothing to do, Leases left out", written, 0.0);
    for (((name, process), before), bound) in [("agent", agent), ("controller", controller)]
        .into_iter()
        .zip(work)
        .zip([40.0, 150.0])
    {
        let now = usage(process);
        println!(
            "- {name}: {:.2} % of a core in that time; at most {:.1} MB were resident at a time",
            (now.processor - before.processor).as_secs_f64() / IDLE.as_secs_f64() * 100.0,
            now.peak as f64 / 1e6,
        );
        bounds.compare(&format!("{name}, resident, MB"), now.resident as f64 / 1e6, bound);
    }
    bounds.compare(
        "largest GatewayNode, managed fields included, KiB",
        objects.reports().await as f64 / 1024.0,
        16.0,
    );
    objects.watches().await;
    println!("\n{bounds}");
}

/// What was measured, beside what it should be.
#[derive(Default)]
struct Bounds(Vec<String>);

impl Bounds {
    fn compare(&mut self, what: &str, measured: f64, bound: f64) {
        let verdict = if measured <= bound { "met" } else { "**missed**" };
        self.0.push(format!("| {what} | ≤ {bound} | {measured:.1} | {verdict} |"));
    }
}

impl std::fmt::Display for Bounds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "| | must be | is | |\n|---|---|---:|---|\n{}", self.0.join("\n"))
    }
}
