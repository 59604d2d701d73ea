//! The administrator's desk: objects read and written over plain HTTP requests, straight to the API server, and what is watched there.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::http::Request;
use futures::StreamExt;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

use crate::claims::Claim;
use crate::lab::Ns;

const GROUP: &str = "/apis/stagenet.dev/v1alpha1";

/// One kind as it was last told.
#[derive(Clone, Debug, Default)]
pub struct Kind {
    /// By name (mappings are all in namespace default).
    pub objects: BTreeMap<String, Told>,
    /// The API server tells nothing at the moment.
    pub blind: bool,
}

/// An object as it was last told.
#[derive(Clone, Debug)]
pub struct Told {
    pub object: Value,
    /// What it claims, or claimed when it could be read last: nobody but a newer version knows more.
    pub claim: Option<Claim>,
    /// When what people look at (the addresses and Ready) last read differently.
    pub changed: Instant,
}

/// What everybody who watches the API server sees.
#[derive(Clone, Debug, Default)]
pub struct Sight {
    pub mappings: Kind,
    pub networks: Kind,
    /// What gateways report.
    pub gateways: Kind,
}

impl Sight {
    /// The node that attracts a network's traffic, as the network says; empty if it says none.
    pub fn gateway(&self, network: &str) -> &str {
        let network = self.networks.objects.get(network);
        let node = network.and_then(|n| n.object["status"]["activeGateway"]["node"].as_str());
        node.unwrap_or_default()
    }
}

/// Talks to the API server from its own host.
pub struct Desk {
    runtime: tokio::runtime::Handle,
    client: Client,
    pub sight: Arc<Mutex<Sight>>,
}

/// What the API server said: a code and a body.
pub type Answer = (u16, Value);

impl Desk {
    pub fn open(host: &Ns, kubeconfig: &str) -> Self {
        let (sender, receiver) = mpsc::channel();
        let (host, file) = (host.clone(), kubeconfig.to_owned());
        // Sockets are of the namespace of the thread that makes them: this one has the runtime for itself.
        std::thread::spawn(move || {
            host.enter(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let read = Kubeconfig::read_from(file).unwrap();
                    let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.unwrap();
                    sender
                        .send((tokio::runtime::Handle::current(), Client::try_from(config).unwrap()))
                        .unwrap();
                    std::future::pending::<()>().await;
                });
            });
        });
        let (runtime, client) = receiver.recv().unwrap();
        let desk = Self {
            runtime,
            client,
            sight: Arc::default(),
        };
        desk.watch("NatMapping", "natmappings", |sight| &mut sight.mappings);
        desk.watch("StagingNetwork", "stagingnetworks", |sight| &mut sight.networks);
        desk.watch("GatewayNode", "gatewaynodes", |sight| &mut sight.gateways);
        desk
    }

    fn watch(&self, kind: &str, plural: &str, of: fn(&mut Sight) -> &mut Kind) {
        let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("stagenet.dev", "v1alpha1", kind), plural);
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
        let sight = self.sight.clone();
        self.runtime.spawn(async move {
            let mut listed = BTreeMap::new();
            let mut events = std::pin::pin!(watcher::watcher(api, watcher::Config::default()));
            while let Some(event) = events.next().await {
                if event.is_err() {
                    of(&mut sight.lock().unwrap()).blind = true;
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
                let mut sight = sight.lock().unwrap();
                let kind = of(&mut sight);
                match event.unwrap() {
                    Event::Init => listed = BTreeMap::new(),
                    Event::InitApply(object) => {
                        let (name, told) = told(kind, object);
                        listed.insert(name, told);
                    }
                    Event::InitDone => {
                        kind.objects = std::mem::take(&mut listed);
                        kind.blind = false;
                    }
                    Event::Apply(object) => {
                        let (name, told) = told(kind, object);
                        kind.objects.insert(name, told);
                        kind.blind = false;
                    }
                    Event::Delete(object) => drop(kind.objects.remove(&object.name_any())),
                }
            }
        });
    }

    /// One request. An API server that is away is asked again, for a while.
    pub fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let until = Instant::now() + crate::lab::seconds(40);
        loop {
            let content = if method == "PATCH" {
                "application/merge-patch+json"
            } else {
                "application/json"
            };
            let request = Request::builder().method(method).uri(path).header("content-type", content);
            let request = request.body(body.map(|b| b.to_string().into_bytes()).unwrap_or_default()).unwrap();
            let client = self.client.clone();
            let (sender, receiver) = mpsc::channel();
            self.runtime.spawn(async move {
                let _ = sender.send(client.request::<Value>(request).await);
            });
            match receiver.recv().unwrap() {
                Ok(value) => return (200, value),
                Err(kube::Error::Api(status)) if status.code < 500 && status.code != 429 => {
                    return (status.code, json!({"message": status.message, "reason": status.reason}));
                }
                Err(error) if Instant::now() > until => panic!("{method} {path}: {error}"),
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(200)),
            }
        }
    }

    fn must(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let (code, answer) = self.ask(method, path, body);
        assert_eq!(code, 200, "{method} {path} {body:?}: {answer}");
        answer
    }

    pub fn mapping_path(name: &str) -> String {
        format!("{GROUP}/namespaces/default/natmappings/{name}")
    }

    pub fn network_path(name: &str) -> String {
        format!("{GROUP}/stagingnetworks/{name}")
    }

    pub fn create_mapping(&self, name: &str, spec: &Value) {
        let object = json!({"apiVersion": "stagenet.dev/v1alpha1", "kind": "NatMapping", "metadata": {"name": name}, "spec": spec});
        self.must("POST", &format!("{GROUP}/namespaces/default/natmappings"), Some(&object));
    }

    pub fn create_network(&self, name: &str, spec: &Value) {
        let object = json!({"apiVersion": "stagenet.dev/v1alpha1", "kind": "StagingNetwork", "metadata": {"name": name}, "spec": spec});
        self.must("POST", &format!("{GROUP}/stagingnetworks"), Some(&object));
    }

    /// Changes a definition of `crds/`; returns it as it was.
    pub fn redefine(&self, plural: &str, change: impl Fn(&mut Value)) -> Value {
        let path = format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{plural}.stagenet.dev");
        loop {
            let before = self.must("GET", &path, None);
            let mut after = before.clone();
            change(&mut after);
            // Its status is written meanwhile, by the API server itself.
            if self.ask("PUT", &path, Some(&after)).0 == 200 {
                return before;
            }
        }
    }

    /// A merge patch (RFC 7386).
    pub fn patch(&self, path: &str, change: &Value) -> Value {
        self.must("PATCH", path, Some(change))
    }

    pub fn delete(&self, path: &str) {
        let (code, answer) = self.ask("DELETE", path, None);
        assert!(code == 200 || code == 404, "DELETE {path}: {answer}");
    }

    pub fn sight(&self) -> Sight {
        self.sight.lock().unwrap().clone()
    }
}

/// What a condition of an object says: status, reason, message. Empty words if it has none.
pub fn condition<'a>(object: &'a Value, kind: &str) -> [&'a str; 3] {
    let all = object["status"]["conditions"].as_array();
    let one = all.and_then(|all| all.iter().find(|c| c["type"] == kind));
    ["status", "reason", "message"].map(|field| one.and_then(|c| c[field].as_str()).unwrap_or_default())
}

/// The status of Ready: True, False, Unknown, or nothing.
pub fn ready(object: &Value) -> &str {
    condition(object, "Ready")[0]
}

fn told(kind: &Kind, object: DynamicObject) -> (String, Told) {
    let name = object.name_any();
    let mut object = serde_json::to_value(object).unwrap();
    object["metadata"]["managedFields"].take();
    let before = kind.objects.get(&name);
    let same = before.filter(|b| ready(&b.object) == ready(&object) && b.object["spec"] == object["spec"]);
    let changed = same.map_or_else(Instant::now, |b| b.changed);
    let claim = Claim::of(&object["spec"]).or_else(|| kind.objects.get(&name)?.claim.clone());
    (name, Told { object, claim, changed })
}
