//! The programs that are compared, each on a gateway of its own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use super::probe::Probe;
use crate::lab::{Api, BINARY, Backend};
use crate::packet::world::{Rules, World};

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// kube-proxy in one of its modes; in a hurry: with a minSyncPeriod of 10 ms.
    KubeProxy { mode: &'static str, hurry: bool },
    /// The agent with one variant of the tools.
    Stagenet(Backend),
}

impl Kind {
    pub fn name(self) -> String {
        match self {
            Self::KubeProxy { mode, hurry: false } => format!("kube-proxy, {mode}"),
            Self::KubeProxy { mode, hurry: true } => format!("kube-proxy, {mode}, minSyncPeriod 10 ms"),
            Self::Stagenet(backend) => format!("stagenet, {}", backend.name()),
        }
    }
}

/// A program on a gateway, and a client that tries its addresses.
pub struct Subject {
    kind: Kind,
    world: World,
    kubeconfig: String,
    program: PathBuf,
    probe: Probe,
    node: String,
    child: Option<Child>,
}

impl Subject {
    /// A gateway that is a node of the cluster, with nothing running on it yet.
    pub fn new(api: &Api, kube_proxy: &Path, number: u8, kind: Kind) -> Self {
        let world = World::new(&format!("k{number}"), Backend::Nft, Rules::Plain);
        // What is not translated goes nowhere, and nobody is asked where it might go.
        world.gateway.sh("ip route add blackhole 10.64.0.0/17");
        world.gateway.exec("ping", &["-c", "1", "-W", "1", "10.128.255.2"]);
        let address = format!("10.99.0.{}", 10 + number);
        let kubeconfig = api.join(&world.gateway, &address, "stagenet.dev/gateway: \"true\"");
        let node = world.gateway.name().to_owned();
        api.kubectl(&format!(
            "patch node {node} --subresource=status --type=merge -p '{{\"status\":{{\"addresses\":[{{\"type\":\"InternalIP\",\"address\":\"{address}\"}}]}}}}'"
        ));
        let program = match kind {
            Kind::KubeProxy { .. } => kube_proxy.join("kube-proxy"),
            Kind::Stagenet(_) => PathBuf::from(BINARY),
        };
        Self {
            kind,
            probe: Probe::new(&world),
            world,
            // kube-proxy's rights are not the point here.
            kubeconfig: if matches!(kind, Kind::Stagenet(_)) {
                kubeconfig
            } else {
                "/run/lab/admin.kubeconfig".to_owned()
            },
            program,
            node,
            child: None,
        }
    }

    /// Starts the program; returns how long it takes until a packet to address number `last` arrives.
    pub async fn start(&mut self, last: usize) -> Duration {
        let args = match self.kind {
            Kind::KubeProxy { mode, hurry } => vec![format!("--config={}", self.config(mode, hurry))],
            Kind::Stagenet(backend) => ["agent", "--node", &self.node, "--backend", backend.name(), "--state-dir"]
                .map(str::to_owned)
                .into_iter()
                .chain([format!("/run/lab/{}.state", self.node)])
                .collect(),
        };
        let log = File::create(format!("/run/lab/{}.log", self.node)).unwrap();
        let mut command = std::process::Command::new(&self.program);
        command
            .args(args)
            .env("KUBECONFIG", &self.kubeconfig)
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let since = Instant::now();
        self.child = Some(self.world.gateway.enter(|| command.spawn().unwrap()));
        self.arrival(last, since).await
    }

    /// How long after `since` a packet to address number `i` arrives.
    pub async fn arrival(&mut self, i: usize, since: Instant) -> Duration {
        self.probe.arrival(i, since).await
    }

    fn config(&self, mode: &str, hurry: bool) -> String {
        let pace = if hurry {
            "iptables: {minSyncPeriod: 10ms}\nnftables: {minSyncPeriod: 10ms}\n"
        } else {
            ""
        };
        let text = format!(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: {mode}\nhostnameOverride: {}\n\
             clientConnection: {{kubeconfig: {}}}\nclusterCIDR: 10.98.0.0/16\noomScoreAdj: 0\n\
             conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}\n{pace}",
            self.node, self.kubeconfig
        );
        let path = format!("/run/lab/{}.yaml", self.node);
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!(
                "---- log of {}\n{}",
                self.node,
                fs::read_to_string(format!("/run/lab/{}.log", self.node)).unwrap_or_default()
            );
        }
    }
}
