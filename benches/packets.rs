//! What a packet, and a connection, pays on its way through a gateway. `make bench` runs it; docs/performance.md says how to read it.
//!
//! The gateways that are compared exist side by side, with the rules that the real agent put there; they are measured by turns.
#![allow(clippy::all, clippy::pedantic)] // figures, not a product
#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)] // a bench that cannot run has to end there, saying so
#![allow(clippy::cast_precision_loss)] // nanoseconds as f64

#[path = "../tests/lab/mod.rs"]
mod lab;
#[path = "packet/mod.rs"]
mod packet;

use std::fs;
use std::process::Command;

use lab::Backend;

/// Set in the inner run: what to measure, and with which tools.
const INNER: &str = "STAGENET_BENCH_PACKETS";

fn main() {
    if let Ok(case) = std::env::var(INNER) {
        furnish();
        let (what, backend) = case.split_once(' ').unwrap();
        let backend = if backend == "nft" { Backend::Nft } else { Backend::Legacy };
        match what {
            "stream" => packet::stream::table(backend),
            _ => packet::opening::table(backend),
        }
        return;
    }
    // `cargo test --benches` builds and starts benches, too: that is no time to measure.
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    if std::env::args().any(|a| a == "--test") {
        return;
    }
    for what in ["stream", "opening"] {
        for backend in ["nft", "legacy"] {
            let case = format!("{what} {backend}");
            if words.is_empty() || words.iter().all(|w| case.contains(w.as_str())) {
                isolated(&case);
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
