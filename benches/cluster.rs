//! A cluster of ten thousand mappings: how soon one more is Ready, what controller and agents take, and what the API server is asked for.
//! `make bench-cluster` runs it; docs/performance.md says how to read it.
//!
//! etcd, API server, controller and one gateway's agent are real, the latter with a kernel of its own; the agents of all other nodes are the library's, on hosts in memory.
#![allow(clippy::all, clippy::pedantic)] // figures, not a product
#![allow(missing_docs, unreachable_pub, dead_code)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)] // a bench that cannot run has to end there, saying so
#![allow(clippy::cast_precision_loss)] // milliseconds as f64

#[path = "cluster/mod.rs"]
mod cluster;
#[path = "../tests/lab/mod.rs"]
mod lab;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cluster::Size;

/// The program's: agents in memory are to cost what agents cost.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Set in the inner run: the folder of the control plane.
const INNER: &str = "STAGENET_BENCH_CLUSTER";

fn main() {
    let asked: Vec<usize> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    let size = match asked.as_slice() {
        [mappings, nodes] => Size {
            mappings: *mappings,
            nodes: *nodes,
        },
        _ => Size {
            mappings: 10_000,
            nodes: 500,
        },
    };
    if let Ok(control_plane) = std::env::var(INNER) {
        furnish();
        cluster::run(Path::new(&control_plane), size);
        return;
    }
    // `cargo test --benches` builds and starts benches, too: that is no time to measure.
    if std::env::args().any(|a| a == "--test") {
        return;
    }
    // Outside the world there is a network to fetch modules with.
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/testbed/build.sh");
    let built = Command::new(script).stderr(Stdio::inherit()).output().unwrap();
    assert!(built.status.success(), "tests/testbed/build.sh: {}; it needs Go", built.status);
    let status = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(std::env::args().skip(1))
        .env(INNER, PathBuf::from(String::from_utf8(built.stdout).unwrap().trim()))
        .status()
        .unwrap_or_else(|e| panic!("starting unshare (package util-linux): {e}"));
    assert!(status.success(), "{status}");
}

/// A /run of its own: names of namespaces, the xtables lock, state directories, the control plane's files.
fn furnish() {
    for args in [&["--make-rprivate", "/"][..], &["-t", "tmpfs", "-o", "mode=755", "bench", "/run"]] {
        assert!(Command::new("mount").args(args).status().unwrap().success());
    }
    fs::create_dir("/run/lab").unwrap();
    assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
}
