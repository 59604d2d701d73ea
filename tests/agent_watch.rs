//! What an agent asks an API server for: of hundreds of nodes most serve nothing, and of fifty networks a gateway serves some.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body as Said;
use axum::http::{Request, Response};
use futures::channel::mpsc::{UnboundedSender, unbounded};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use stagenet::agent::source::{Snapshot, Snapshots, api};
use tower_test::mock::SendResponse;

type Answer = SendResponse<Response<Said>>;

/// What is asked for: `natmappings spec.networkRef.name=a`.
type Topic = String;

/// An API server that lists what a test says, keeps back the lists that it is told to keep back, and tells watchers what the test wants them to hear.
#[derive(Clone, Default)]
struct Server(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    objects: BTreeMap<Topic, Vec<Value>>,
    held: BTreeMap<Topic, Vec<Answer>>,
    watches: BTreeMap<Topic, UnboundedSender<Result<Vec<u8>, std::io::Error>>>,
}

impl Server {
    fn start(objects: &[(&str, Vec<Value>)], held: &[&str]) -> (Self, Snapshots) {
        let server = Self::default();
        {
            let mut inner = server.0.lock().unwrap();
            inner.objects = objects.iter().map(|(topic, list)| ((*topic).to_owned(), list.clone())).collect();
            inner.held = held.iter().map(|topic| ((*topic).to_owned(), Vec::new())).collect();
        }
        let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Said>>();
        let answering = server.clone();
        tokio::spawn(async move {
            while let Some((request, answer)) = handle.next_request().await {
                answering.take(&request, answer);
            }
        });
        let (snapshots, _) = api::watch(&Client::new(service, "default"), "node-a", Duration::from_mins(1));
        (server, snapshots)
    }

    fn take(&self, request: &Request<Body>, answer: Answer) {
        let query = request.uri().query().unwrap_or_default().replace("%3D", "=");
        let fields = query.split('&').find_map(|pair| pair.strip_prefix("fieldSelector="));
        let kind = request.uri().path().rsplit('/').next().unwrap();
        let topic = fields.map_or_else(|| kind.to_owned(), |fields| format!("{kind} {fields}"));
        let mut inner = self.0.lock().unwrap();
        if query.contains("watch=true") {
            let (sender, events) = unbounded();
            inner.watches.insert(topic, sender);
            answer.send_response(Response::new(Said::from_stream(events)));
        } else if let Some(waiting) = inner.held.get_mut(&topic) {
            waiting.push(answer);
        } else {
            answer.send_response(inner.list(&topic));
        }
    }

    /// Answers what was kept back.
    fn release(&self, topic: &str) {
        let mut inner = self.0.lock().unwrap();
        for answer in inner.held.remove(topic).unwrap() {
            answer.send_response(inner.list(topic));
        }
    }

    /// Tells watchers of an object's change.
    fn tell(&self, topic: &str, object: &Value) {
        let event = json!({"type": "MODIFIED", "object": object}).to_string() + "\n";
        let inner = self.0.lock().unwrap();
        inner.watches[topic].unbounded_send(Ok(event.into_bytes())).unwrap();
    }

    /// What is being watched by now.
    fn watched(&self) -> BTreeSet<Topic> {
        let inner = self.0.lock().unwrap();
        let open = inner.watches.iter().filter(|(_, sender)| !sender.is_closed());
        open.map(|(topic, _)| topic.clone()).collect()
    }
}

impl Inner {
    fn list(&self, topic: &str) -> Response<Said> {
        let items = self.objects.get(topic).cloned().unwrap_or_default();
        let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "7"}, "items": items});
        Response::new(Said::from(list.to_string()))
    }
}

fn node(network: &str) -> Value {
    json!({
        "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
        "metadata": {"name": "node-a", "resourceVersion": "5", "labels": {"network": network}},
    })
}

fn network(name: &str, place: u8) -> Value {
    json!({
        "apiVersion": "stagenet.dev/v1alpha1", "kind": "StagingNetwork", "metadata": {"name": name, "uid": name, "resourceVersion": "5"},
        "spec": {
            "gateway": {"nodeSelector": {"matchLabels": {"network": name}}},
            "outside": {"addresses": [format!("192.168.{place}.0/24")]},
            "inside": {"addresses": [format!("10.{place}.0.0/16")]},
        },
    })
}

fn mapping(name: &str, place: u8) -> Value {
    json!({
        "apiVersion": "stagenet.dev/v1alpha1", "kind": "NatMapping",
        "metadata": {"name": name, "namespace": "default", "uid": name, "resourceVersion": "6"},
        "spec": {
            "networkRef": {"name": name},
            "virtual": {"address": format!("192.168.{place}.3")},
            "target": {"address": format!("10.{place}.0.3")},
        },
    })
}

const A: &str = "natmappings spec.networkRef.name=a";
const B: &str = "natmappings spec.networkRef.name=b";
const NODE: &str = "nodes metadata.name=node-a";

/// Two networks, each with a mapping and gateways of its own; the node is labelled for one of them.
fn cluster(labelled: &str) -> Vec<(&'static str, Vec<Value>)> {
    vec![
        ("stagingnetworks", vec![network("a", 1), network("b", 2)]),
        (A, vec![mapping("a", 1)]),
        (B, vec![mapping("b", 2)]),
        (NODE, vec![node(labelled)]),
    ]
}

fn topics(names: &[&str]) -> BTreeSet<Topic> {
    names.iter().map(ToString::to_string).collect()
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..600 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never came: {what}");
}

/// The next snapshot that has these mappings.
async fn told(snapshots: &mut Snapshots, names: &[&str]) -> Arc<Snapshot> {
    let wanted = |snapshot: &Option<Arc<Snapshot>>| {
        let mappings = snapshot.iter().flat_map(|s| &s.mappings);
        let found: Vec<&str> = mappings.map(|m| m.metadata.name.as_deref().unwrap()).collect();
        snapshot.is_some() && found == names
    };
    let seen = tokio::time::timeout(Duration::from_secs(30), snapshots.wait_for(wanted)).await;
    seen.unwrap().unwrap().clone().unwrap()
}

#[tokio::test]
async fn a_node_that_serves_nothing_watches_no_mappings() {
    let (server, mut snapshots) = Server::start(&cluster("none"), &[]);
    let snapshot = told(&mut snapshots, &[]).await;
    assert_eq!(snapshot.networks.len(), 2);
    eventually("both watches", || server.watched() == topics(&["stagingnetworks", NODE])).await;
}

#[tokio::test]
async fn a_gateway_watches_the_mappings_of_its_networks_and_is_told_when_all_are_there() {
    let (server, mut snapshots) = Server::start(&cluster("a"), &[A, "gatewaynodes"]);
    let asked = |topic: &str| !server.0.lock().unwrap().held[topic].is_empty();
    eventually("both lists are asked for", || asked(A) && asked("gatewaynodes")).await;
    assert!(snapshots.borrow().is_none(), "nothing is told while a list is missing");
    server.release("gatewaynodes");
    eventually("reports are watched", || server.watched().contains("gatewaynodes")).await;
    assert!(snapshots.borrow().is_none(), "nothing is told while a list is missing");
    server.release(A);
    told(&mut snapshots, &["a"]).await;
    eventually("the watches of a", || {
        server.watched() == topics(&["stagingnetworks", NODE, "gatewaynodes", A])
    })
    .await;
}

#[tokio::test]
async fn labels_decide_what_is_watched() {
    let (server, mut snapshots) = Server::start(&cluster("a"), &[B]);
    told(&mut snapshots, &["a"]).await;
    eventually("the node is watched", || server.watched().contains(NODE)).await;
    server.tell(NODE, &node("b"));
    eventually("mappings of b are asked for", || !server.0.lock().unwrap().held[B].is_empty()).await;
    // What was told before stays in force until the list is there.
    told(&mut snapshots, &["a"]).await;
    server.release(B);
    told(&mut snapshots, &["b"]).await;
    eventually("the watch of a is closed", || {
        server.watched() == topics(&["stagingnetworks", NODE, "gatewaynodes", B])
    })
    .await;
    server.tell(NODE, &node("none"));
    told(&mut snapshots, &[]).await;
    eventually("nothing but networks and the node", || {
        server.watched() == topics(&["stagingnetworks", NODE])
    })
    .await;
}

#[tokio::test]
async fn what_is_wrong_with_the_own_report_is_told_and_so_is_that_it_is_right_again() {
    let (server, mut snapshots) = Server::start(&cluster("a"), &[]);
    told(&mut snapshots, &["a"]).await;
    eventually("reports are watched", || server.watched().contains("gatewaynodes")).await;
    let own = |status: &Value| {
        json!({
            "apiVersion": "stagenet.dev/v1alpha1", "kind": "GatewayNode", "metadata": {"name": "node-a", "uid": "g", "resourceVersion": "8"},
            "spec": {}, "status": status,
        })
    };
    let problems = || snapshots.borrow().as_ref().map(|snapshot| snapshot.problems.len());
    for (status, wrong) in [(json!("of a newer version"), 1), (json!({}), 0)] {
        server.tell("gatewaynodes", &own(&status));
        eventually("the problem, and that it is gone", || problems() == Some(wrong)).await;
    }
}
