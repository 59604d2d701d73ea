//! What the agent costs beside the bare tools, at 1 to 10 000 mappings. `make bench` runs it and prints the table of docs/performance.md.
//!
//! Every figure is a ratio of two medians taken in one run: the real agent pass on the real kernel, and `iptables-restore` fed with just the
//! text that this pass needs (and `ip -batch` with just its routes and neighbours). Each round has namespaces of its own, the two sides by turns.
//! Probing and announcing addresses on the segment are waits by design: they are shown by themselves and left out of the ratios.
#![allow(clippy::all, clippy::pedantic)] // figures, not a product
#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)] // a bench that cannot run has to end there, saying so
#![allow(clippy::similar_names)] // a side and its size
#![allow(clippy::cast_precision_loss)] // microseconds as f64

mod scale {
    pub mod inner;
    pub mod timed;
    pub mod world;
}

use std::collections::BTreeMap;
use std::process::Command;

use scale::inner;

/// The program's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Set in the inner run: `SIDE BACKEND MAPPINGS`.
const INNER: &str = "STAGENET_BENCH";

/// Mappings, and rounds: fewer where one takes longer.
const SIZES: [(usize, usize); 4] = [(1, 5), (100, 5), (1000, 5), (10_000, 3)];

fn main() {
    if let Ok(case) = std::env::var(INNER) {
        inner::run(&case);
        return;
    }
    // `cargo test --benches` builds and starts benches, too: that is no time to measure.
    if std::env::args().any(|a| a == "--test") {
        return;
    }
    machine();
    for backend in ["nft", "legacy"] {
        println!("\n### {backend}\n");
        println!(
            "| mappings | cold start, ms | ÷ bare | one change, ms | ÷ bare | p99, ms | second pass, ms | ÷ bare restore | full check, ms | drift repaired, ms | probe and announce, ms |"
        );
        println!("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
        for (size, rounds) in SIZES.into_iter().filter(|(size, _)| wanted(&size.to_string())) {
            row(backend, size, rounds);
        }
    }
}

/// Whether a size is asked for: with none on the command line, all are.
fn wanted(size: &str) -> bool {
    let mut asked = std::env::args().skip(1).filter(|a| a.parse::<usize>().is_ok()).peekable();
    asked.peek().is_none() || asked.any(|a| a == size)
}

fn row(backend: &str, size: usize, rounds: usize) {
    let mut figures: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for _ in 0..rounds {
        for side in ["bare", "agent"] {
            for (key, micros) in round(side, backend, size) {
                figures.entry(key).or_default().push(micros);
            }
        }
    }
    let ms = |key: &str| median(figures.get_mut(key).unwrap_or_else(|| panic!("no figure {key}"))) / 1000.0;
    let mut ms = ms;
    let (cold, bare_cold, bare_restore) = (ms("agent.cold"), ms("bare.cold"), ms("bare.restore"));
    let (change, bare_change, worst) = (ms("agent.change"), ms("bare.change"), ms("agent.change99"));
    let (second, full, drift, waits) = (ms("agent.second"), ms("agent.full"), ms("agent.drift"), ms("agent.waits"));
    println!(
        "| {size} | {cold:.1} | {:.2} | {change:.1} | {:.2} | {worst:.1} | {second:.2} | {:.3} | {full:.1} | {drift:.0} | {waits:.0} |",
        cold / bare_cold,
        change / bare_change,
        second / bare_restore,
    );
}

/// One round in namespaces of its own: figure → microseconds.
fn round(side: &str, backend: &str, size: usize) -> Vec<(String, f64)> {
    let output = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(std::env::current_exe().unwrap())
        .env(INNER, format!("{side} {backend} {size}"))
        .output()
        .unwrap_or_else(|e| panic!("starting unshare (package util-linux): {e}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{side} {backend} {size}: {said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let figure = |line: &str| {
        let (key, micros) = line.split_once(' ')?;
        Some((format!("{side}.{key}"), micros.parse().ok()?))
    };
    said.lines().filter_map(figure).collect()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What it was measured on: figures of different machines must not be compared.
fn machine() {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|l| l.strip_prefix("model name"))
        .map_or("unknown", |m| m.trim_start_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let tool = Command::new("iptables")
        .arg("--version")
        .output()
        .map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
        .unwrap_or_default();
    println!(
        "Linux {}, {cores} cores of {model}, {tool}",
        read("/proc/sys/kernel/osrelease").trim()
    );
}
