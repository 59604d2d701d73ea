//! What an agent with 10 000 mappings costs while nothing happens, and how fast flows end when their mapping goes. `make bench` runs it.
#![allow(clippy::all, clippy::pedantic)] // figures, not a product
#![allow(missing_docs, unreachable_pub, dead_code)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)] // a bench that cannot run has to end there, saying so
#![allow(clippy::cast_precision_loss)] // milliseconds as f64

#[path = "../tests/lab/mod.rs"]
mod lab;
#[path = "packet/mod.rs"]
mod packet;

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::process::Command;
use std::time::Duration;

use lab::{Agent, Backend, Ns, crowd, heard, last_heard, seconds, wait_until};
use packet::world::{Rules, Served, World, manifests, mapping, virtual_address};

/// Set in the inner run: what to measure, and with which tools.
const INNER: &str = "STAGENET_BENCH_STANDING";
const MAPPINGS: usize = 10_000;
/// How long an idle agent is watched.
const WATCHED: Duration = Duration::from_mins(2);
/// Clock ticks a second in /proc/PID/stat (USER_HZ, the same on every Linux).
const TICKS: f64 = 100.0;
/// Entries of the connection table, and the mappings that they are spread over.
const FLOWS: usize = 60_000;
const SPREAD: usize = 60;
const REMOVALS: usize = 5;
const DIR: &str = "/run/lab/manifests";

fn main() {
    if let Ok(case) = std::env::var(INNER) {
        furnish();
        let (what, backend) = case.split_once(' ').unwrap();
        let backend = if backend == "nft" { Backend::Nft } else { Backend::Legacy };
        match what {
            "idle" => idle(backend, false),
            "idle-status" => idle(backend, true),
            _ => removal(backend),
        }
        return;
    }
    // `cargo test --benches` builds and starts benches, too: that is no time to measure.
    if std::env::args().any(|a| a == "--test") {
        return;
    }
    println!("\n### Standing\n");
    println!("| what | tools | measured |");
    println!("|---|---|---:|");
    let chosen: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    for what in ["idle", "idle-status", "removal"] {
        for backend in ["nft", "legacy"] {
            if chosen.is_empty() || chosen.iter().any(|c| c == what) {
                isolated(&format!("{what} {backend}"));
            }
        }
    }
}

/// Runs a case in namespaces of its own; what it makes there ends with it.
fn isolated(case: &str) {
    let status = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(std::env::current_exe().unwrap())
        .env(INNER, case)
        // As the image has it.
        .env("MIMALLOC_PURGE_DELAY", "0")
        .status()
        .unwrap_or_else(|e| panic!("starting unshare (package util-linux): {e}"));
    assert!(status.success(), "{case}: {status}");
}

/// A /run of its own: names of namespaces, the xtables lock, state directories.
fn furnish() {
    for args in [&["--make-rprivate", "/"][..], &["-t", "tmpfs", "-o", "mode=755", "bench", "/run"]] {
        assert!(Command::new("mount").args(args).status().unwrap().success());
    }
    fs::create_dir("/run/lab").unwrap();
}

/// An agent that follows the manifests, after its first complete pass.
fn agent(gateway: &Ns, backend: Backend, status: bool) -> Agent {
    let args = ["--manifests", DIR, "--node", "bench", "--backend", backend.name()];
    let agent = if status {
        Agent::start(gateway, &args)
    } else {
        // Without a kubeconfig and without a status file.
        Agent::run(gateway, "agent", "", &args)
    };
    wait_until(seconds(180), "the first complete pass", || {
        gateway.http(9469, "readyz").contains("200 OK")
    });
    agent
}

fn idle(backend: Backend, status: bool) {
    let world = World::new("idle", backend, Rules::Plain);
    manifests(DIR, Served::plain(1, MAPPINGS));
    let agent = agent(&world.gateway, backend, status);
    // Reports, records and the answers to its own changes are behind it by then.
    std::thread::sleep(Duration::from_secs(10));
    let before = ticks(agent.pid());
    std::thread::sleep(WATCHED);
    let share = (ticks(agent.pid()) - before) / TICKS / WATCHED.as_secs_f64();
    let lines = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let mib = |name: &str| -> f64 {
        let line = lines.lines().find_map(|l| l.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1024.0
    };
    let with = if status { ", with --status-file" } else { "" };
    println!(
        "| idle at {MAPPINGS}{with}: share of a core over {} s, tools it starts included | {} | {:.3} % |",
        WATCHED.as_secs(),
        backend.name(),
        share * 100.0
    );
    println!(
        "| idle at {MAPPINGS}{with}: resident memory (of it pages of the program file; most so far) | {} | {:.1} MB ({:.1}; {:.1}) |",
        backend.name(),
        mib("VmRSS:"),
        mib("RssFile:"),
        mib("VmHWM:")
    );
}

/// Processor time of a process and of its children that have ended, in clock ticks.
fn ticks(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit(')').next().unwrap().split_whitespace();
    fields.skip(11).take(4).map(|n| n.parse::<f64>().unwrap()).sum()
}

/// From a manifest's removal until the last packet of a flow of its mapping.
fn removal(backend: Backend) {
    let world = World::new("removal", backend, Rules::Plain);
    world.gateway.exec("ping", &["-c", "1", "-W", "1", "10.128.255.2"]);
    manifests(DIR, Served::plain(1, SPREAD));
    let mut agent = agent(&world.gateway, backend, false);
    let listening = world.server.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 7)).unwrap());
    listening.set_nonblocking(true).unwrap();
    let mut took = Vec::new();
    for round in 0..REMOVALS {
        let doomed = SPREAD + round;
        let file = format!("{DIR}/doomed.yaml");
        fs::write(&file, mapping(0, 128, doomed)).unwrap();
        fill(&world);
        let client = world.client.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
        let to = SocketAddrV4::new(virtual_address(0, doomed), 7);
        // A flow that began too early stays untranslated, so the mapping has to be there first.
        wait_until(seconds(20), "the mapping", || {
            world
                .gateway
                .sh(&format!("iptables-{}-save -t nat", backend.name()))
                .contains(&format!("{}/32", to.ip()))
        });
        wait_until(seconds(20), "a flow through the mapping", || heard(&client, to, &listening));
        let entries: usize = world.gateway.get("netfilter/nf_conntrack_count").parse().unwrap();
        assert!(entries >= FLOWS, "only {entries} entries in the connection table");
        fs::remove_file(&file).unwrap();
        took.push(last_heard(&client, to, &listening).as_secs_f64() * 1000.0);
    }
    agent.assert_alive();
    println!(
        "| a mapping's flows end after its manifest went, at {FLOWS} entries in the connection table | {} | {:.0} ms |",
        backend.name(),
        packet::rounds::median(took)
    );
}

/// Fills the connection table with flows to the mappings that stay.
fn fill(world: &World) {
    let client = *world.flow(0).client.ip();
    world.gateway.forget_flows();
    for to in 0..SPREAD {
        let pairs = (0..FLOWS / SPREAD + 20).map(|n| {
            let from = SocketAddrV4::new(client, 20_000 + u16::try_from(n).unwrap());
            (from, SocketAddrV4::new(virtual_address(0, to), 9))
        });
        crowd(&world.client, pairs);
    }
}
