//! The seed's hosts with a second gateway, two controllers, two agents, and everything that they say to the API server led through a proxy.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::claims::{self, Claim, MAIN, Network};
use crate::desk::{Desk, condition};
use crate::hosts;
use crate::lab::{Agent, Api, Backend, Ns, Seed, seconds};
use crate::model::{self, Model};
use crate::tools::{Faults, Judges};
use crate::watchman::Watchman;

/// After how many seconds an agent that says nothing counts as silent.
pub const LEASE: u64 = 8;
/// For how many seconds is held what a list lacks.
pub const GUARD: u64 = 20;
/// How long a step may take to settle: many times what it needs, because API servers start within.
const SETTLES: Duration = seconds(90);

/// A gateway node.
pub struct Gateway {
    pub ns: Ns,
    pub backend: Backend,
    pub kubeconfig: String,
    pub agent: Option<Agent>,
}

impl Gateway {
    pub fn start(&mut self) {
        let state = format!("/run/lab/state-{}", self.ns.name());
        let lease = LEASE.to_string();
        let args = ["--node", self.ns.name(), "--state-dir", &state, "--backend", self.backend.name()];
        let guard = GUARD.to_string();
        let args = [&args[..], &["--lease-duration", &lease, "--mass-removal-guard", &guard]].concat();
        let clock = clock_of(self.ns.name());
        let wrong = [("LD_PRELOAD", "/run/lab/clock.so"), ("LAB_CLOCK", &clock)];
        self.agent = Some(Agent::run_in(&self.ns, "agent", &self.kubeconfig, &args, &wrong));
    }

    /// The agent dies without a word.
    pub fn kill(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.stop("KILL");
        }
    }
}

/// Everything.
pub struct Cluster {
    pub api: Api,
    /// Its hosts serve as long as it is there.
    _seed: Seed,
    pub gateways: [Gateway; 2],
    controller_kubeconfig: String,
    pub controllers: Vec<Agent>,
    pub desk: Desk,
    pub faults: Faults,
    judges: Judges,
    pub watchman: Watchman,
    pub model: Model,
    /// What was done so far, for whoever reads a failure.
    pub diary: Vec<String>,
}

impl Cluster {
    pub fn start(bin: &Path, tools: &Path) -> Self {
        let seed = Seed::new(Backend::Nft);
        let second = hosts::furnish(&seed);
        let clock = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/truth/clock.c");
        seed.vm01
            .sh(&format!("cc -O1 -shared -fPIC -o /run/lab/clock.so {} -ldl", clock.display()));
        let mut api = Api::start(bin);
        api.start_manager();
        let desk = Desk::open(&api.host, "/run/lab/admin.kubeconfig");
        let faults = Faults::between(tools, &api.host);
        let label = "stagenet.dev/gateway: \"true\"";
        let nodes = [(&seed.vm02, "10.99.0.2", Backend::Nft), (&second, "10.99.0.3", Backend::Legacy)];
        let mut gateways = nodes.map(|(ns, address, backend)| Gateway {
            kubeconfig: through_proxy(&api.join(ns, address, label)),
            ns: ns.clone(),
            backend,
            agent: None,
        });
        gateways.iter_mut().for_each(Gateway::start);
        let watchman = Watchman::post(&seed.vm01, &claims::doors(), &desk.sight);
        let mut cluster = Self {
            controller_kubeconfig: through_proxy(&api.controller()),
            controllers: Vec::new(),
            judges: Judges::seated(tools),
            model: Model::default(),
            diary: Vec::new(),
            api,
            _seed: seed,
            gateways,
            desk,
            faults,
            watchman,
        };
        cluster.controllers = vec![cluster.controller(0), cluster.controller(1)];
        cluster
    }

    fn controller(&self, n: usize) -> Agent {
        let identity = format!("replica-{n}");
        let guard = GUARD.to_string();
        let args = ["--listen", "none", "--identity", &identity, "--mass-removal-guard", &guard];
        let clock = clock_of(&identity);
        let wrong = [("LD_PRELOAD", "/run/lab/clock.so"), ("LAB_CLOCK", &clock)];
        Agent::run_in(&self.api.host, "controller", &self.controller_kubeconfig, &args, &wrong)
    }

    /// New tokens for the agents, as a kubelet gets them.
    pub fn renew_token(&mut self, gateway: usize) {
        let name = self.gateways[gateway].ns.name().to_owned();
        self.gateways[gateway].kubeconfig = through_proxy(&self.api.agent_token(&name));
    }

    /// Starts controllers that have ended, as a Deployment does.
    pub fn supervise(&mut self) {
        for n in 0..self.controllers.len() {
            if self.controllers[n].has_ended() {
                self.controllers[n] = self.controller(n);
            }
        }
    }

    /// Waits until every watch that ended by no will of its client is open again: from then on everybody hears of everything. Clients rest before they
    /// try again, longer each time that they fail, so this takes a moment.
    pub fn wait_watched(&mut self) {
        let begun = std::time::Instant::now();
        let mut last = json!([]);
        loop {
            self.supervise();
            let owed = self.faults.owed();
            if owed == json!([]) {
                break;
            }
            last = owed.clone();
            if begun.elapsed() > SETTLES {
                self.fail(
                    "everything goes through again",
                    &format!("not watched any more after {SETTLES:?}: {owed}"),
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.log(&format!(
            "everything is watched again after {:.1} s, last {last}",
            begun.elapsed().as_secs_f64()
        ));
    }

    pub fn log(&mut self, what: &str) {
        let line = format!("{:7.1} s  {what}", self.watchman.clock());
        println!("{line}");
        self.diary.push(line);
    }

    /// The node that attracts a network's traffic.
    pub fn active(&self, network: &str) -> String {
        self.desk.sight().gateway(network).to_owned()
    }

    /// The gateway that is active for the main network, by number.
    pub fn active_gateway(&self) -> usize {
        usize::from(self.active(MAIN.name) == self.gateways[1].ns.name())
    }

    pub fn create_network(&mut self, network: Network) {
        let spec = json!({
            "gateway": {"nodeSelector": {"matchLabels": {"stagenet.dev/gateway": "true"}}},
            "outside": {"interface": "eth0", "addresses": network.pool},
            "inside": {"interface": network.interface, "addresses": network.inside},
        });
        self.desk.create_network(network.name, &spec);
        self.model.networks.insert(network.name.to_owned());
    }

    pub fn create(&mut self, name: &str, claim: Claim) {
        self.desk.create_mapping(name, &claim.spec());
        self.model.claims.insert(name.to_owned(), claim);
    }

    pub fn edit(&mut self, name: &str, claim: Claim) {
        self.desk.patch(&Desk::mapping_path(name), &claim.patch());
        self.model.claims.insert(name.to_owned(), claim);
    }

    pub fn delete(&mut self, name: &str) {
        self.desk.delete(&Desk::mapping_path(name));
        self.model.claims.remove(name);
    }

    /// Waits until every status says what it must, then asks the judges and the packets.
    pub fn settle(&mut self, after: &str) {
        let begun = std::time::Instant::now();
        loop {
            self.supervise();
            self.accuse(after);
            let alive = self.gateways.iter().filter(|gateway| gateway.agent.is_some() && !self.model.silent);
            self.model.reporting = alive.map(|gateway| gateway.ns.name().to_owned()).collect();
            let sight = self.desk.sight();
            let open = self.model.unsettled(&sight);
            if open.is_empty() {
                break;
            }
            if begun.elapsed() > SETTLES {
                self.fail(after, &format!("not settled after {SETTLES:?}:\n  {}", open.join("\n  ")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let took = begun.elapsed();
        self.judge(after);
        self.packets(after);
        self.watchman.excuse_ends();
        self.accuse(after);
        self.log(&format!("settled {:.1} s after {after}", took.as_secs_f64()));
    }

    /// The judges that are not ours.
    pub fn judge(&mut self, after: &str) {
        let sight = self.desk.sight();
        let objects: Vec<Value> = [&sight.mappings, &sight.networks, &sight.gateways]
            .iter()
            .flat_map(|kind| kind.objects.values().map(|told| told.object.clone()))
            .collect();
        for object in objects {
            let wanted = model::kstatus(&object);
            match self.judges.kstatus(&object) {
                Ok(word) if word == wanted => {}
                Ok(word) => self.fail(after, &format!("kstatus says {word}, should say {wanted}, of {object}")),
                Err(why) => self.fail(after, &format!("{why} of {object}")),
            }
        }
    }

    /// What packets find now: exactly what is Ready answers, and nothing else unless nobody knows.
    fn packets(&mut self, after: &str) {
        let gone = self.watchman.excuse.lock().unwrap().gone.clone();
        let begun = std::time::Instant::now();
        loop {
            let answers = self.watchman.answers();
            let sight = self.desk.sight();
            let verdicts = self.model.verdicts(&sight);
            let mut wrong = Vec::new();
            for (door, answer) in &answers {
                // What is most specific counts.
                let servers = |status: &str| {
                    let of = verdicts.iter().filter(|(_, verdict)| verdict.0 == status);
                    let of = of.filter_map(|(name, _)| {
                        let claim = &self.model.claims[name];
                        Some((claim.net().prefix_len(), claim.server_at(*door)?))
                    });
                    of.max().map(|(_, server)| server)
                };
                let right = match (servers("True"), servers("Unknown")) {
                    (Some(server), None) if gone.contains(server) => answer.is_none(),
                    (Some(server), None) => answer.as_deref() == Some(server),
                    (_, Some(_)) => true,
                    (None, None) => answer.is_none(),
                };
                if !right {
                    wrong.push(format!("{door} is answered by {answer:?}"));
                }
            }
            if wrong.is_empty() {
                return;
            }
            // What was deleted while nobody could follow may be held for a while.
            if begun.elapsed() > seconds(GUARD + 10) {
                self.fail(
                    after,
                    &format!("status has settled and packets find otherwise: {}", wrong.join(", ")),
                );
            }
        }
    }

    /// Fails if a lie was proven.
    pub fn accuse(&self, after: &str) {
        let proven = self.watchman.proven();
        if !proven.is_empty() {
            self.fail(
                after,
                &format!("status was untrue for more than two seconds:\n  {}", proven.join("\n  ")),
            );
        }
    }

    pub fn fail(&self, after: &str, why: &str) -> ! {
        let sight = self.desk.sight();
        let ready: BTreeMap<_, _> = sight
            .mappings
            .objects
            .iter()
            .map(|(n, t)| (n, condition(&t.object, "Ready")))
            .collect();
        let nodes = self.api.try_kubectl("get gwnode -o yaml").stdout;
        panic!(
            "{:.1} s, after {after}: {why}\nmappings: {ready:#?}\nmodel: {:?}\nwhat was done:\n{}\n{nodes}",
            self.watchman.clock(),
            self.model,
            self.diary.join("\n")
        );
    }
}

/// The file that says by how many seconds the clock of a node or of a controller is wrong.
pub fn clock_of(name: &str) -> String {
    format!("/run/lab/clock-{name}")
}

/// A copy of a kubeconfig that leads through the proxy.
fn through_proxy(file: &str) -> String {
    let text = fs::read_to_string(file).unwrap().replace(":6443", &format!(":{}", Faults::PORT));
    let copy = format!("{file}.proxied");
    fs::write(&copy, text).unwrap();
    copy
}
