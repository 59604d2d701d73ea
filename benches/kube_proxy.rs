//! The agent beside kube-proxy, on one real API server: how long after an object is there its rule is in force, and how long a cold start takes.
//! `make bench-kube-proxy` runs it; docs/performance.md says how to read it.
//!
//! Both are asked for the same: N addresses outside that lead to one address inside each. For kube-proxy these are Services with an external address and
//! one endpoint, for the agent mappings of a network whose pool is routed to the gateway (`announce: false`), because kube-proxy answers no ARP either.
//! What counts is a packet: a stream of datagrams is sent to the new address, and the clock stops when one arrives.
#![allow(clippy::all, clippy::pedantic)] // figures, not a product
#![allow(missing_docs, unreachable_pub, dead_code)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)] // a bench that cannot run has to end there, saying so
#![allow(clippy::cast_precision_loss)] // milliseconds as f64

#[path = "kube_proxy/mod.rs"]
mod kube_proxy;
#[path = "../tests/lab/mod.rs"]
mod lab;
#[path = "packet/mod.rs"]
mod packet;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use kube_proxy::objects::Objects;
use kube_proxy::subject::{Kind, Subject};
use lab::{Api, Backend};

/// Set in the inner run: the folders of the control plane and of kube-proxy.
const INNER: &str = "STAGENET_BENCH_KUBE_PROXY";
/// Objects that exist already, if the command line names no other numbers.
const SIZES: [usize; 2] = [1_000, 10_000];
/// Single additions and cold starts that the medians are taken of.
const ADDITIONS: usize = 7;
const STARTS: usize = 3;
/// Longer than kube-proxy's longest pause between two passes.
const REST: Duration = Duration::from_millis(2_500);

fn main() {
    if let Ok(folders) = std::env::var(INNER) {
        furnish();
        let (control_plane, kube_proxy) = folders.split_once(' ').unwrap();
        let asked: Vec<usize> = std::env::args().filter_map(|a| a.parse().ok()).collect();
        let sizes = if asked.is_empty() { SIZES.to_vec() } else { asked };
        compare(Path::new(control_plane), Path::new(kube_proxy), &sizes);
        return;
    }
    // `cargo test --benches` builds and starts benches, too: that is no time to measure.
    if std::env::args().any(|a| a == "--test") {
        return;
    }
    // Outside the world there is a network to fetch modules with.
    let folders = format!("{} {}", built("build.sh").display(), built("kube-proxy.sh").display());
    let status = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(std::env::args().skip(1))
        .env(INNER, folders)
        .status()
        .unwrap_or_else(|e| panic!("starting unshare (package util-linux): {e}"));
    assert!(status.success(), "{status}");
}

/// Runs a script of the testbed and returns the folder that it prints.
fn built(script: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/testbed").join(script);
    let built = Command::new(path).stderr(Stdio::inherit()).output().unwrap();
    assert!(built.status.success(), "tests/testbed/{script}: {}; it needs Go", built.status);
    PathBuf::from(String::from_utf8(built.stdout).unwrap().trim())
}

/// A /run of its own: names of namespaces, the xtables lock, state directories, the control plane's files.
fn furnish() {
    for args in [&["--make-rprivate", "/"][..], &["-t", "tmpfs", "-o", "mode=755", "bench", "/run"]] {
        assert!(Command::new("mount").args(args).status().unwrap().success());
    }
    fs::create_dir("/run/lab").unwrap();
    assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
}

fn compare(control_plane: &Path, kube_proxy: &Path, sizes: &[usize]) {
    let api = Api::start(control_plane);
    println!("\n### Beside kube-proxy\n");
    println!("| objects | who | one more, ms | cold start, ms |");
    println!("|---:|---|---:|---:|");
    let subjects = [
        Kind::KubeProxy {
            mode: "iptables",
            hurry: false,
        },
        Kind::KubeProxy {
            mode: "iptables",
            hurry: true,
        },
        Kind::KubeProxy {
            mode: "nftables",
            hurry: false,
        },
        Kind::KubeProxy {
            mode: "nftables",
            hurry: true,
        },
        Kind::Stagenet(Backend::Nft),
        Kind::Stagenet(Backend::Legacy),
    ];
    // Sockets belong to the namespace of the thread that makes them, so the whole conversation with the API server is held there.
    api.host.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut objects = Objects::new(&api).await;
            let mut gateways = Gateways {
                api: &api,
                kube_proxy,
                count: 0,
            };
            for &size in sizes {
                objects.grow(size).await;
                for kind in subjects {
                    let (one_more, cold) = figures(&mut gateways, kind, &objects, size).await;
                    println!("| {size} | {} | {one_more:.0} | {cold:.0} |", kind.name());
                }
            }
        });
    });
}

/// Makes gateways, each with a name and an address of its own.
struct Gateways<'a> {
    api: &'a Api,
    kube_proxy: &'a Path,
    count: u8,
}

impl Gateways<'_> {
    fn fresh(&mut self, kind: Kind) -> Subject {
        self.count += 1;
        Subject::new(self.api, self.kube_proxy, self.count, kind)
    }
}

/// Medians, in milliseconds: one more object, and a cold start.
async fn figures(gateways: &mut Gateways<'_>, kind: Kind, objects: &Objects, size: usize) -> (f64, f64) {
    let mut cold = Vec::new();
    for _ in 1..STARTS {
        let mut subject = gateways.fresh(kind);
        cold.push(subject.start(size - 1).await);
    }
    let mut subject = gateways.fresh(kind);
    cold.push(subject.start(size - 1).await);
    let mut one_more = Vec::new();
    for extra in size..size + ADDITIONS {
        tokio::time::sleep(REST).await;
        let asked = objects.add(kind, extra).await;
        one_more.push(subject.arrival(extra, asked).await);
    }
    for extra in size..size + ADDITIONS {
        objects.remove(kind, extra).await;
    }
    (median(one_more), median(cold))
}

fn median(mut values: Vec<Duration>) -> f64 {
    values.sort();
    values[values.len() / 2].as_secs_f64() * 1000.0
}
