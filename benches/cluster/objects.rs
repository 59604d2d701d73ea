//! What people make, and when it is Ready.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt};
use kube::api::{ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Config, ResourceExt};
use serde_json::json;
use stagenet::api::conditions::is_true;
use stagenet::api::{GatewayNode, NatMapping, StagingNetwork};
use tokio::sync::Notify;

use super::{NETWORKS, REAL, group};

/// Requests under way at the same time while many objects are made.
const CONCURRENCY: usize = 32;
/// So long something becomes Ready while anything is waited for.
const STANDSTILL: Duration = Duration::from_mins(2);

/// A client with all rights and a connection of its own.
pub async fn client() -> Client {
    let kubeconfig = Kubeconfig::read_from("/run/lab/admin.kubeconfig").unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .unwrap();
    Client::try_from(config).unwrap()
}

pub struct Objects(Client);

impl Objects {
    pub async fn new() -> Self {
        Self(client().await)
    }

    pub fn client(&self) -> Client {
        self.0.clone()
    }

    pub async fn networks(&self) {
        let api: Api<StagingNetwork> = Api::all(self.0.clone());
        for n in 0..NETWORKS {
            let object = json!({
                "apiVersion": "stagenet.dev/v1alpha1", "kind": "StagingNetwork", "metadata": {"name": format!("net-{n:02}")},
                "spec": {
                    "gateway": {"nodeSelector": {"matchLabels": {"group": group(n).to_string()}}},
                    "outside": {"interface": "out0", "addresses": [format!("10.{}.0.0/16", 64 + n)], "announce": false},
                    "inside": {"interface": format!("in{n}"), "addresses": [format!("10.{}.0.0/16", 128 + n)]},
                },
            });
            api.create(&PostParams::default(), &serde_json::from_value(object).unwrap())
                .await
                .unwrap();
        }
    }

    pub async fn mappings(&self, range: Range<usize>) {
        stream::iter(range)
            .for_each_concurrent(CONCURRENCY, |i| async move {
                self.mapping(i, i % NETWORKS).await;
            })
            .await;
    }

    /// One more mapping of a network whose gateway is real. Returns its name.
    pub async fn one_more(&self, i: usize) -> String {
        let networks: Vec<usize> = (0..NETWORKS).filter(|n| group(*n) == REAL).collect();
        self.mapping(i, networks[i % networks.len()]).await
    }

    async fn mapping(&self, i: usize, network: usize) -> String {
        let name = format!("vm-{i:05}");
        let (high, low) = (1 + i / 200, 2 + i % 200);
        let object = json!({
            "apiVersion": "stagenet.dev/v1alpha1", "kind": "NatMapping", "metadata": {"name": name},
            "spec": {
                "networkRef": {"name": format!("net-{network:02}")},
                "virtual": {"address": format!("10.{}.{high}.{low}", 64 + network)},
                "target": {"address": format!("10.{}.{high}.{low}", 128 + network)},
            },
        });
        let api: Api<NatMapping> = Api::namespaced(self.0.clone(), "default");
        api.create(&PostParams::default(), &serde_json::from_value(object).unwrap())
            .await
            .unwrap();
        name
    }

    /// A page of the API server.
    pub async fn page(&self, path: &str) -> String {
        let request = axum::http::Request::get(path).body(Vec::new()).unwrap();
        self.0.request_text(request).await.unwrap()
    }

    /// Fails unless `node` is the active gateway of every network of the group.
    pub async fn served_by(&self, of: usize, node: &str) {
        let api: Api<StagingNetwork> = Api::all(self.0.clone());
        for n in (0..NETWORKS).filter(|n| group(*n) == of) {
            let network = api.get_status(&format!("net-{n:02}")).await.unwrap();
            let active = network.status.and_then(|status| status.active_gateway).map(|active| active.node);
            assert_eq!(active.as_deref(), Some(node), "net-{n:02}");
        }
    }

    /// Bytes of the largest report.
    pub async fn reports(&self) -> usize {
        let api: Api<GatewayNode> = Api::all(self.0.clone());
        let sizes = api.list(&ListParams::default()).await.unwrap().items.into_iter();
        sizes.map(|object| serde_json::to_vec(&object).unwrap().len()).max().unwrap()
    }

    /// How many watches are open.
    pub async fn watches(&self) {
        let page = self.page("/metrics").await;
        for line in page
            .lines()
            .filter(|l| l.starts_with("apiserver_longrunning_requests") && l.contains("verb=\"WATCH\""))
        {
            let resource = line
                .split("resource=\"")
                .nth(1)
                .and_then(|rest| rest.split('"').next())
                .unwrap_or_default();
            if ["natmappings", "stagingnetworks", "gatewaynodes", "nodes", "leases", "namespaces"].contains(&resource) {
                println!("- watches of {resource}: {}", line.rsplit(' ').next().unwrap());
            }
        }
    }
}

/// Which mappings are Ready for the present generation, and since when.
pub struct Ready {
    seen: Arc<Mutex<BTreeMap<String, Instant>>>,
    bell: Arc<Notify>,
}

impl Ready {
    pub fn watch(client: Client) -> Self {
        let (seen, bell) = (Arc::default(), Arc::new(Notify::new()));
        let this = Self { seen, bell };
        let (seen, bell) = (this.seen.clone(), this.bell.clone());
        tokio::spawn(async move {
            let mut events = std::pin::pin!(watcher(Api::<NatMapping>::all(client), watcher::Config::default()));
            while let Some(event) = events.next().await {
                if let Ok(Event::Apply(object) | Event::InitApply(object)) = event {
                    let status = object.status.as_ref();
                    if status.is_some_and(|s| s.observed_generation == object.metadata.generation && is_true(&s.conditions, "Ready")) {
                        seen.lock().unwrap().entry(object.name_any()).or_insert_with(Instant::now);
                        bell.notify_one();
                    }
                }
            }
        });
        this
    }

    /// Waits until so many are.
    pub async fn count(&mut self, number: usize) {
        while self.seen.lock().unwrap().len() < number {
            self.next().await;
        }
    }

    /// Waits until one more is. A controller that loses its Lease ends, and here nobody starts it again.
    async fn next(&self) {
        let heard = tokio::time::timeout(STANDSTILL, self.bell.notified()).await;
        heard.expect("nothing became Ready: see /run/lab/controller-1.log, or is the machine busy with other things?");
    }

    /// Waits until that one is. Returns since when.
    pub async fn named(&mut self, name: &str) -> Instant {
        loop {
            if let Some(since) = self.seen.lock().unwrap().get(name) {
                return *since;
            }
            self.next().await;
        }
    }
}
