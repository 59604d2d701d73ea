//! The controller against an API server that says what a test wants: what is asked of it, how often, and what happens when it says no.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::http::{Request, Response};
use k8s_openapi::api::core::v1::Node;
use kube::client::Body;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::Event;
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use stagenet::controller::events::Announcer;
use stagenet::controller::leader::{Elector, Lost, Timing};
use stagenet::controller::machines::Machines;
use stagenet::controller::reconcile::Reconciler;
use stagenet::controller::stored::Stored;
use stagenet::controller::watch::{Stores, Writers};
use stagenet::telemetry::{Health, Metrics, Program};

/// `METHOD /path` and the body of every request, in the order in which they came.
type Log = Arc<Mutex<Vec<(String, Value)>>>;

/// A client of an API server that answers with what `answer` makes of a request, and the log of what it was asked.
/// None: never answers that request.
fn api_server(answer: impl Fn(&str, &Value) -> Option<(u16, Value)> + Send + 'static) -> (Client, Log) {
    let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    let log = Log::default();
    let written = log.clone();
    tokio::spawn(async move {
        let mut unanswered = Vec::new();
        while let Some((request, send)) = handle.next_request().await {
            let line = format!("{} {}", request.method(), request.uri().path());
            let body = request.into_body().collect_bytes().await.unwrap();
            let body: Value = serde_json::from_slice(&body).unwrap_or_default();
            written.lock().unwrap().push((line.clone(), body.clone()));
            let Some((code, body)) = answer(&line, &body) else {
                unanswered.push(send);
                continue;
            };
            let response = Response::builder()
                .status(code)
                .body(Body::from(serde_json::to_vec(&body).unwrap()));
            send.send_response(response.unwrap());
        }
    });
    (Client::new(service, "default"), log)
}

#[allow(clippy::unnecessary_wraps)] // the type of an answer
fn refusal(code: u16, reason: &str) -> Option<(u16, Value)> {
    Some((
        code,
        json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": reason}),
    ))
}

fn lines(log: &Log) -> Vec<String> {
    log.lock().unwrap().iter().map(|(line, _)| line.clone()).collect()
}

const NETWORK_STATUS: &str = "PATCH /apis/stagenet.dev/v1alpha1/stagingnetworks/segment-b/status";
const MAPPING_STATUS: &str = "PATCH /apis/stagenet.dev/v1alpha1/namespaces/default/natmappings/vm03/status";

fn network(version: &str) -> Value {
    json!({
        "apiVersion": "stagenet.dev/v1alpha1", "kind": "StagingNetwork",
        "metadata": {"name": "segment-b", "uid": "u1", "generation": 1, "resourceVersion": version, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "gateway": {"nodeSelector": {"matchLabels": {"gateway": "true"}}},
            "outside": {"interface": "eth0", "addresses": ["192.168.100.0/24"]},
            "inside": {"interface": "eth1", "addresses": ["192.168.200.0/24"]},
        },
    })
}

fn mapping(version: &str) -> Value {
    json!({
        "apiVersion": "stagenet.dev/v1alpha1", "kind": "NatMapping",
        "metadata": {
            "name": "vm03", "namespace": "default", "uid": "u2", "generation": 1, "resourceVersion": version,
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {
            "networkRef": {"name": "segment-b"},
            "virtual": {"address": "192.168.100.3"},
            "target": {"address": "192.168.200.3"},
        },
    })
}

fn gateway() -> Value {
    let interface = |name: &str, address: &str| json!({"name": name, "index": 2, "mtu": 1500, "up": true, "addresses": [address]});
    json!({
        "apiVersion": "stagenet.dev/v1alpha1", "kind": "GatewayNode", "metadata": {"name": "node-a", "resourceVersion": "3"}, "spec": {},
        "status": {
            "interfaces": [interface("eth0", "192.168.100.2/24"), interface("eth1", "192.168.200.2/24")],
            "networks": [{
                "name": "segment-b", "role": "Active", "observedGeneration": 1, "fenced": true, "programmed": 1, "syncedResourceVersion": "20",
            }],
        },
    })
}

fn with_status(mut object: Value, patch: &Value, version: &str) -> Value {
    object["status"] = patch["status"].clone();
    // A merge patch takes away what it names as null (RFC 7386).
    object["status"].as_object_mut().unwrap().retain(|_, value| !value.is_null());
    object["metadata"]["resourceVersion"] = version.into();
    object
}

fn decode<K: DeserializeOwned>(object: Value) -> K {
    serde_json::from_value(object).unwrap()
}

fn event<K: DeserializeOwned + Resource<DynamicType = ()>>(object: Value) -> Event<Stored<K>> {
    Event::Apply(decode(object))
}

/// A controller that knows the seed's objects at version 10, and one gateway that holds them.
fn controller(client: &Client) -> (Reconciler, Writers) {
    let (stores, writers) = Stores::new();
    knowing(client, &stores, writers)
}

fn knowing(client: &Client, stores: &Stores, mut writers: Writers) -> (Reconciler, Writers) {
    writers.networks.apply_watcher_event(&event(network("10")));
    writers.mappings.apply_watcher_event(&event(mapping("10")));
    writers.gateways.apply_watcher_event(&event(gateway()));
    let node: PartialObjectMeta<Node> = decode(json!({"metadata": {"name": "node-a", "labels": {"gateway": "true"}}}));
    writers.nodes.apply_watcher_event(&Event::Apply(node));
    // Events are not looked at here: nobody publishes them.
    let (announcer, _) = Announcer::new(client.clone(), "stagenet-controller", "test");
    (
        Reconciler::new(
            client.clone(),
            stores.clone(),
            Machines::new(stores.bell.clone()),
            announcer,
            Arc::new(Metrics::new(Program::Controller)),
        ),
        writers,
    )
}

#[allow(clippy::unnecessary_wraps)] // the type of an answer
fn accept(line: &str, body: &Value) -> Option<(u16, Value)> {
    let object = if line == NETWORK_STATUS { network("10") } else { mapping("10") };
    Some((200, with_status(object, body, "11")))
}

fn ready(status: &Value) -> &Value {
    let conditions = status["conditions"].as_array().unwrap();
    conditions.iter().find(|condition| condition["type"] == "Ready").unwrap()
}

#[tokio::test]
async fn a_status_is_patched_once_and_not_again() {
    let (client, log) = api_server(accept);
    let (mut reconciler, mut writers) = controller(&client);
    assert_eq!(reconciler.reconcile().await, None);
    assert_eq!(lines(&log), [NETWORK_STATUS, MAPPING_STATUS]);
    let patches: Vec<Value> = log.lock().unwrap().iter().map(|(_, body)| body.clone()).collect();
    let (network_patch, mapping_patch) = (&patches[0], &patches[1]);
    assert_eq!(
        network_patch["status"]["activeGateway"],
        json!({"node": "node-a", "address": "192.168.100.2"})
    );
    assert_eq!(mapping_patch["metadata"], json!({"resourceVersion": "10"}));
    assert_eq!(mapping_patch["status"]["gateway"], "node-a");
    assert_eq!(ready(&mapping_patch["status"])["status"], "True", "{mapping_patch}");
    assert_eq!(mapping_patch.get("spec"), None);

    // The stores still hold version 10; then the watch echoes the writes.
    reconciler.reconcile().await;
    writers
        .networks
        .apply_watcher_event(&event(with_status(network("10"), network_patch, "11")));
    writers
        .mappings
        .apply_watcher_event(&event(with_status(mapping("10"), mapping_patch, "11")));
    reconciler.reconcile().await;
    assert_eq!(lines(&log).len(), 2);

    // Somebody wipes the status: that is put right.
    writers.mappings.apply_watcher_event(&event(mapping("12")));
    reconciler.reconcile().await;
    assert_eq!(lines(&log)[2..], [MAPPING_STATUS]);
}

/// A gateway's Lease runs out while a write is under way, and nothing happens after it.
#[tokio::test]
async fn a_silence_that_begins_during_a_pass_is_told() {
    let slow = Mutex::new(Some(Duration::from_millis(1300)));
    let (client, log) = api_server(move |line, body| {
        slow.lock().unwrap().take().into_iter().for_each(std::thread::sleep);
        accept(line, body)
    });
    let (stores, writers) = Stores::new();
    for version in ["1", "2"] {
        let mut lease = lease("node-a", version);
        lease["metadata"]["name"] = "stagenet-agent-node-a".into();
        lease["spec"]["leaseDurationSeconds"] = 1.into();
        stores.hear(&decode(lease), Instant::now());
    }
    let (reconciler, _writers) = knowing(&client, &stores, writers);
    let health = Health::new("starting", Duration::from_mins(1));
    tokio::spawn(async move { reconciler.run(&health).await });
    let told = || {
        let log = log.lock().unwrap();
        let of_mapping: Vec<String> = log
            .iter()
            .filter(|(line, _)| line == MAPPING_STATUS)
            .map(|(_, body)| ready(&body["status"])["reason"].to_string())
            .collect();
        of_mapping
    };
    let until = Instant::now() + Duration::from_secs(20);
    while told().len() < 2 {
        assert!(Instant::now() < until, "told so far: {:?}", told());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(told(), ["\"Ready\"", "\"GatewaySilent\""]);
}

/// Labels that cannot be read hold up nothing but what depends on them.
#[tokio::test]
async fn after_the_first_judgement_only_what_depends_on_labels_waits_for_them() {
    let (client, log) = api_server(|line, body| {
        let object = if line.contains("stagingnetworks") {
            network("12")
        } else {
            mapping("12")
        };
        Some((200, with_status(object, body, "13")))
    });
    let (mut reconciler, mut writers) = controller(&client);
    assert_eq!(reconciler.reconcile().await, None);
    let before = lines(&log).len();
    let mut selecting = network("20");
    selecting["spec"]["allowedNamespaces"] = json!({"from": "Selector", "selector": {"matchLabels": {"team": "staging"}}});
    writers.networks.apply_watcher_event(&event(selecting));
    let mut other = mapping("21");
    (other["metadata"]["name"], other["metadata"]["uid"]) = ("other".into(), "u3".into());
    other["spec"]["networkRef"]["name"] = "segment-z".into();
    writers.mappings.apply_watcher_event(&event(other));
    let next = reconciler.reconcile().await.unwrap();
    assert!(next > Instant::now() + Duration::from_secs(5), "labels are waited for");
    let written = lines(&log)[before..].join("\n");
    assert!(written.contains("natmappings/other/status"), "{written}");
    assert!(!written.contains("natmappings/vm03/status"), "what was said stays said: {written}");
}

/// An object that is held for the guard's sake is made anew, once; a Node that is only held gets none.
#[tokio::test]
async fn gateway_nodes_are_made_of_nodes_that_are_there() {
    const CREATE: &str = "POST /apis/stagenet.dev/v1alpha1/gatewaynodes";
    let (client, log) = api_server(|line, body| {
        if line == CREATE {
            return Some((201, body.clone()));
        }
        accept(line, body)
    });
    let (stores, writers) = Stores::new();
    let (mut reconciler, mut writers) = knowing(&client, &stores, writers);
    let node = json!({"metadata": {"name": "node-a", "uid": "n1", "labels": {"gateway": "true"}}});
    writers
        .nodes
        .apply_watcher_event(&Event::Apply(decode::<PartialObjectMeta<Node>>(node)));
    let mut owned = gateway();
    owned["metadata"]["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "Node", "name": "node-a", "uid": "n1"}]);
    writers.gateways.apply_watcher_event(&event(owned));
    let created = || lines(&log).iter().filter(|line| *line == CREATE).count();
    let held = ["node-a".to_owned()].into();
    reconciler.reconcile().await;
    assert_eq!(created(), 0);
    for (nodes_held, wanted) in [(true, 0), (false, 1), (false, 1)] {
        stores.held_gateways.are(&held);
        stores.held_nodes.are(&if nodes_held { held.clone() } else { [].into() });
        reconciler.reconcile().await;
        assert_eq!(created(), wanted, "the Node is only held: {nodes_held}");
    }
    assert!(
        lines(&log)
            .iter()
            .all(|line| !line.starts_with("PATCH") || line.ends_with("/status")),
        "nothing is given to a Node that is only held"
    );
}

#[tokio::test]
async fn a_conflict_waits_for_the_newer_object() {
    let (client, log) = api_server(|line, body| match body["metadata"]["resourceVersion"].as_str() {
        Some("10") if line == MAPPING_STATUS => refusal(409, "Conflict"),
        _ => accept(line, body),
    });
    let (mut reconciler, mut writers) = controller(&client);
    assert!(
        reconciler.reconcile().await.is_some(),
        "a second try must be due even if no newer object comes"
    );
    assert_eq!(lines(&log), [NETWORK_STATUS, MAPPING_STATUS]);
    let mut newer = mapping("12");
    newer["metadata"]["labels"] = json!({"edited": "meanwhile"});
    writers.mappings.apply_watcher_event(&event(newer));
    assert_eq!(reconciler.reconcile().await, None);
    assert_eq!(lines(&log)[2..], [MAPPING_STATUS]);
    assert_eq!(log.lock().unwrap()[2].1["metadata"]["resourceVersion"], "12");
}

#[tokio::test]
async fn an_api_server_in_trouble_is_left_alone_for_a_while() {
    let broken = Arc::new(Mutex::new(true));
    let state = broken.clone();
    let (client, log) = api_server(move |line, body| {
        if *state.lock().unwrap() {
            refusal(503, "ServiceUnavailable")
        } else {
            accept(line, body)
        }
    });
    let (mut reconciler, _writers) = controller(&client);
    let first = reconciler.reconcile().await.unwrap() - Instant::now();
    assert_eq!(
        lines(&log),
        [NETWORK_STATUS],
        "after the first refusal nothing else is tried in the same pass"
    );
    let mut second = first;
    for _ in 0..4 {
        second = reconciler.reconcile().await.unwrap() - Instant::now();
    }
    assert!(second > first, "{second:?} after {first:?}");
    *broken.lock().unwrap() = false;
    assert_eq!(reconciler.reconcile().await, None);
    assert_eq!(lines(&log)[5..], [NETWORK_STATUS, MAPPING_STATUS]);
}

#[tokio::test]
async fn an_object_that_is_gone_or_cannot_be_decoded_harms_nobody() {
    let (client, log) = api_server(|line, body| {
        if line == NETWORK_STATUS {
            refusal(404, "NotFound")
        } else {
            accept(line, body)
        }
    });
    let (mut reconciler, mut writers) = controller(&client);
    let mut broken = mapping("10");
    broken["metadata"]["name"] = "from-the-future".into();
    broken["spec"] = json!({"virtual": 7});
    writers.mappings.apply_watcher_event(&event(broken));
    reconciler.reconcile().await;
    let unread = MAPPING_STATUS.replace("vm03", "from-the-future");
    assert_eq!(lines(&log), [NETWORK_STATUS, &unread, MAPPING_STATUS]);
    let said = log.lock().unwrap()[1].1["status"]["conditions"].to_string();
    assert!(said.contains("cannot read the object") && !said.contains("\"True\""), "{said}");
}

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/ns/leases";

fn lease(holder: &str, version: &str) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "stagenet-controller", "namespace": "ns", "resourceVersion": version},
        "spec": {"holderIdentity": holder, "leaseDurationSeconds": 15},
    })
}

fn quick() -> Timing {
    Timing {
        duration: Duration::from_secs(15),
        renew_deadline: Duration::from_millis(400),
        retry: Duration::from_millis(20),
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future)
        .await
        .unwrap_or_else(|_| panic!("waited in vain"))
}

#[tokio::test]
async fn the_first_replica_creates_the_lease_and_renews_it() {
    let stored = Arc::new(Mutex::new(None::<Value>));
    let (client, log) = api_server(move |line, body| {
        let mut stored = stored.lock().unwrap();
        if line.starts_with("GET") {
            return stored.clone().map_or_else(|| refusal(404, "NotFound"), |lease| Some((200, lease)));
        }
        let mut new = body.clone();
        new["metadata"]["resourceVersion"] = "1".into();
        *stored = Some(new.clone());
        Some((201, new))
    });
    let mut elector = Elector::new(client, "ns", "me", quick());
    let acquired = soon(elector.acquire()).await;
    assert_eq!(lines(&log), [format!("GET {LEASES}/stagenet-controller"), format!("POST {LEASES}")]);
    // It goes on leading for longer than it may without renewal.
    assert!(tokio::time::timeout(Duration::from_secs(1), elector.hold(acquired)).await.is_err());
    elector.release().await;
    let log = log.lock().unwrap();
    let (line, released) = log.last().unwrap();
    assert!(
        line.starts_with("PUT") && released["spec"]["holderIdentity"].is_null(),
        "{line} {released}"
    );
}

#[tokio::test]
async fn a_replica_follows_while_another_leads() {
    let (client, log) = api_server(|_, _| Some((200, lease("other", "7"))));
    let mut elector = Elector::new(client, "ns", "me", quick());
    assert!(tokio::time::timeout(Duration::from_millis(500), elector.acquire()).await.is_err());
    assert!(lines(&log).iter().all(|line| line.starts_with("GET")));
}

#[tokio::test]
async fn of_two_that_try_at_once_the_one_with_the_conflict_follows() {
    let tried = Arc::new(Mutex::new(false));
    let (client, _) = api_server(move |line, _| {
        let mut tried = tried.lock().unwrap();
        match (line.starts_with("GET"), *tried) {
            (true, false) => Some((200, lease("", "7"))),
            (true, true) => Some((200, lease("other", "8"))),
            (false, _) => {
                *tried = true;
                refusal(409, "Conflict")
            }
        }
    });
    let mut elector = Elector::new(client, "ns", "me", quick());
    assert!(tokio::time::timeout(Duration::from_millis(500), elector.acquire()).await.is_err());
}

#[tokio::test]
async fn a_leader_whose_lease_was_taken_says_so() {
    let (client, _) = api_server(|_, _| Some((200, lease("other", "8"))));
    let mut elector = Elector::new(client, "ns", "me", quick());
    assert_eq!(soon(elector.hold(Instant::now())).await, Lost::To("other".into()));
}

#[tokio::test]
async fn a_leader_without_api_server_stops_by_its_own_clock() {
    for answer in [None, refusal(500, "InternalError")] {
        let (client, _) = api_server(move |_, _| answer.clone());
        let mut elector = Elector::new(client, "ns", "me", quick());
        assert_eq!(soon(elector.hold(Instant::now())).await, Lost::Expired(quick().renew_deadline));
    }
}
