//! One round, inside its namespaces: either side prints its figures, a line each, in microseconds.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use stagenet::agent::kept::Kept;
use stagenet::agent::pass::{self, Settings};
use stagenet::agent::runner::{Report, Runner, RunnerOptions};
use stagenet::agent::source::Snapshot;
use stagenet::host::Host;
use stagenet::host::linux::{BackendChoice, LinuxHost, LinuxOptions};
use stagenet::netfilter::dump::ObservedTable;
use stagenet::netfilter::{Family, Ruleset, Table, TableRules, diff, render};
use stagenet::plan::{self, HostOptions, HostPlan, NodeFacts, Via};
use stagenet::telemetry::{Health, Metrics, Program};
use tokio::sync::watch;

use super::timed::Timed;
use super::world::{INSIDE, OUTSIDE, mapping, snapshot};

/// Single changes that the median and the worst of a hundred are taken of.
const CHANGES: usize = 100;
/// Passes without a change that the median is taken of.
const REPEATS: usize = 15;
/// Repairs that the median is taken of.
const FLUSHES: usize = 5;

pub fn run(case: &str) {
    let mut words = case.split(' ');
    let (side, backend, size) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap().parse().unwrap());
    interfaces();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    match side {
        "bare" => runtime.block_on(bare(backend, size)),
        _ => runtime.block_on(agent(backend, size)),
    }
}

fn report(key: &str, took: Duration) {
    println!("{key} {}", took.as_micros());
}

fn median(mut values: Vec<Duration>) -> Duration {
    values.sort();
    values[values.len() / 2]
}

/// The one that one of a hundred is as slow as.
fn worst_of_hundred(mut values: Vec<Duration>) -> Duration {
    values.sort();
    values[values.len() * 99 / 100]
}

/// An outside with somebody at the other end, and an inside.
fn interfaces() {
    let run = |command: &str, args: &[&str]| assert!(Command::new(command).args(args).status().unwrap().success(), "{command} {args:?}");
    run("mount", &["-t", "tmpfs", "bench", "/run"]);
    for line in [
        "link set lo up",
        "link add out0 type veth peer name peer0",
        "link add in0 type veth peer name peer1",
        "link set peer1 up",
        "link set peer0 up",
        "link set out0 up",
        "link set in0 up",
    ] {
        run("ip", &line.split(' ').collect::<Vec<_>>());
    }
    for (name, address) in [OUTSIDE, INSIDE] {
        run("ip", &["address", "add", address, "dev", name]);
    }
}

fn host(backend: &str) -> LinuxHost {
    let backend = if backend == "nft" {
        BackendChoice::Nft
    } else {
        BackendChoice::Legacy
    };
    LinuxHost::new(LinuxOptions {
        backend,
        state_dir: "/run/stagenet".into(),
    })
}

async fn agent(backend: &str, size: usize) {
    let mut host = Timed {
        host: host(backend),
        waits: Duration::ZERO,
    };
    let mut kept = Kept::default();
    let settings = Settings {
        node: "bench".into(),
        connmark: 0x2000,
        marks: stagenet::plan::Marks::default(),
        nflog_group: 5,
    };
    let mut objects = snapshot(size);

    report("cold", timed(&mut host, &mut kept, &objects, &settings).await);
    report("waits", host.waits);
    report("second", median(repeat(&mut host, &mut kept, &objects, &settings).await));
    kept.doubt_all();
    report("full", timed(&mut host, &mut kept, &objects, &settings).await);
    let mut took = Vec::new();
    for version in 1..=CHANGES {
        let i = size / 2;
        objects.mappings[i] = Arc::new(mapping(i, version));
        took.push(timed(&mut host, &mut kept, &objects, &settings).await);
    }
    report("change", median(took.clone()));
    report("change99", worst_of_hundred(took));
    report("drift", drift(backend, host, objects, settings).await);
}

/// From a foreign flush of our jump into table nat until the running agent has put it back and read it back.
async fn drift(backend: &str, host: Timed, objects: Snapshot, settings: Settings) -> Duration {
    let options = RunnerOptions {
        mapping_series: 0,
        settings,
        resync: Duration::from_mins(10),
        min_interval: Duration::from_millis(50),
    };
    let health = Arc::new(Health::new("the first pass", Duration::from_mins(10)));
    let runner = Runner::new(host, options, Arc::new(Metrics::new(Program::Agent)), health);
    let mut reports = runner.reports();
    let (_objects, source) = watch::channel(Some(Arc::new(objects)));
    let work = tokio::spawn(runner.run(source, std::future::pending()));
    reports.wait_for(|r| r.as_ref().is_some_and(|r| r.outcome.complete)).await.unwrap();
    let mut took = Vec::new();
    // Legacy tables are looked at once a minute when they are large.
    let flushes = if backend == "nft" { FLUSHES } else { 1 };
    for _ in 0..flushes {
        tokio::time::sleep(Duration::from_millis(300)).await;
        reports.mark_unchanged();
        let start = Instant::now();
        feed(&format!("iptables-{backend}"), &["-w", "5", "-t", "nat", "-F", "PREROUTING"], "");
        loop {
            reports.changed().await.unwrap();
            let repaired = |r: &Arc<Report>| r.outcome.complete && !r.outcome.drift.is_empty();
            if reports.borrow_and_update().as_ref().is_some_and(repaired) {
                break;
            }
        }
        took.push(start.elapsed());
    }
    work.abort();
    median(took)
}

async fn repeat(host: &mut Timed, kept: &mut Kept, objects: &Snapshot, settings: &Settings) -> Vec<Duration> {
    let mut took = Vec::new();
    for _ in 0..REPEATS {
        took.push(timed(host, kept, objects, settings).await);
    }
    took
}

/// One pass, without its waits on the segment.
async fn timed(host: &mut Timed, kept: &mut Kept, objects: &Snapshot, settings: &Settings) -> Duration {
    let (start, waited) = (Instant::now(), host.waits);
    let outcome = pass::run(host, kept, objects, settings).await;
    let took = start.elapsed().saturating_sub(host.waits.saturating_sub(waited));
    assert!(outcome.complete, "{:?}", outcome.troubles);
    took
}

async fn bare(backend: &str, size: usize) {
    let mut host = host(backend);
    let facts = NodeFacts {
        kernel: stagenet::plan::KernelFacts::default(),
        name: "bench".into(),
        labels: None,
        interfaces: host.interfaces().await.unwrap(),
    };
    let plan = |objects: &Snapshot| {
        let world = objects.world(facts.clone());
        let verdicts = plan::judge(&world);
        plan::host_plan(&world, &verdicts, "bench", &HostOptions::default())
    };
    let mut objects = snapshot(size);
    let first = plan(&objects);
    assert_eq!(first.proxies.len(), size, "every mapping is planned");

    let texts = whole(&first.ruleset);
    let netlink = batch(&first);
    let start = Instant::now();
    for (family, text) in &texts {
        restore(backend, *family, text);
    }
    report("restore", start.elapsed());
    feed("ip", &["-batch", "-"], &netlink);
    report("cold", start.elapsed());

    let (mut took, mut before) = (Vec::new(), Arc::new(first.ruleset));
    for version in 1..=CHANGES {
        let i = size / 2;
        objects.mappings[i] = Arc::new(mapping(i, version));
        let after = Arc::new(plan(&objects).ruleset);
        let text = difference(&before, &after);
        let start = Instant::now();
        restore(backend, Family::V4, &text);
        took.push(start.elapsed());
        before = after;
    }
    report("change", median(took));
}

/// Complete restore input, a text a family.
fn whole(ruleset: &Ruleset) -> BTreeMap<Family, String> {
    let mut texts: BTreeMap<Family, String> = BTreeMap::new();
    for ((family, table), rules) in &ruleset.tables {
        let text = render::table(*family, *table, rules).unwrap();
        texts.entry(*family).or_default().push_str(&text.text);
    }
    texts
}

/// The restore input of the chains of table nat that differ.
fn difference(before: &Ruleset, after: &Ruleset) -> String {
    let at = (Family::V4, Table::Nat);
    let (before, after) = (&before.tables[&at], &after.tables[&at]);
    let chains = after.chains.iter().filter(|(name, rules)| before.chains.get(*name) != Some(*rules));
    let changed = TableRules {
        hooks: BTreeMap::new(),
        chains: chains.map(|(name, rules)| (name.clone(), rules.clone())).collect(),
    };
    let change = diff::diff(&changed, &ObservedTable::default());
    render::changes(Family::V4, &BTreeMap::from([(Table::Nat, change)])).unwrap().text
}

/// The same routes and neighbours as `ip -batch` takes them.
fn batch(plan: &HostPlan) -> String {
    let routes = plan.routes.iter().map(|route| match &route.via {
        Via::Loopback => format!("route add {} dev lo\n", route.destination),
        Via::Blackhole => format!("route add blackhole {} metric 4294967295\n", route.destination),
        other => panic!("no {other:?} is expected here"),
    });
    let proxies = plan
        .proxies
        .iter()
        .map(|proxy| format!("neigh add proxy {} dev {}\n", proxy.address, proxy.interface));
    routes.chain(proxies).collect()
}

fn restore(backend: &str, family: Family, text: &str) {
    let six = if family == Family::V6 { "6" } else { "" };
    feed(&format!("ip{six}tables-{backend}-restore"), &["--noflush", "-w", "5"], text);
}

fn feed(command: &str, args: &[&str], text: &str) {
    let mut child = Command::new(command)
        .args(args)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{command}: {e}"));
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{command} {args:?}");
}
