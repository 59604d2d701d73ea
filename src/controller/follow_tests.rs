use axum::http::{Request, Response};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::super::watch::Stores;
use super::*;

const GUARD: Duration = Duration::from_mins(1);

fn gateway(name: &str, uid: &str, status: &Value) -> Value {
    let owner = json!([{"apiVersion": "v1", "kind": "Node", "name": name, "uid": "node"}]);
    json!({
        "apiVersion": "stagenet.dev/v1alpha1", "kind": "GatewayNode", "spec": {}, "status": status,
        "metadata": {"name": name, "uid": uid, "resourceVersion": "5", "ownerReferences": owner},
    })
}

/// An API server whose definitions are gone: it lists two gateways, tells that both are deleted, and later that one is made anew.
fn without_definitions(anew: Arc<Notify>) -> Client {
    let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    tokio::spawn(async move {
        let mut open = Vec::new();
        let (mut told, mut told_anew) = (false, false);
        let reported = json!({"syncedResourceVersion": "9", "interfaces": []});
        while let Some((request, send)) = handle.next_request().await {
            let (path, query) = (
                request.uri().path().to_owned(),
                request.uri().query().unwrap_or_default().to_owned(),
            );
            let events = |events: &[(&str, Value)]| {
                let lines = events
                    .iter()
                    .map(|(kind, object)| json!({"type": kind, "object": object}).to_string() + "\n");
                (200, lines.collect::<String>())
            };
            let (code, body) = if path.contains("customresourcedefinitions") {
                let status =
                    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "reason": "NotFound", "message": "no"});
                (404, status.to_string())
            } else if !path.ends_with("gatewaynodes") {
                open.push(send);
                continue;
            } else if !query.contains("watch=true") {
                let items = ["a", "b"].map(|name| gateway(name, "1", &reported));
                let list = json!({"kind": "GatewayNodeList", "apiVersion": "stagenet.dev/v1alpha1", "metadata": {"resourceVersion": "7"}, "items": items});
                (200, list.to_string())
            } else if !std::mem::replace(&mut told, true) {
                events(&["a", "b"].map(|name| ("DELETED", gateway(name, "1", &reported))))
            } else if !std::mem::replace(&mut told_anew, true) {
                let anew = anew.clone();
                tokio::spawn(async move {
                    anew.notified().await;
                    let event = json!({"type": "ADDED", "object": gateway("a", "2", &Value::Null)});
                    send.send_response(Response::new(Body::from((event.to_string() + "\n").into_bytes())));
                });
                continue;
            } else {
                open.push(send);
                continue;
            };
            send.send_response(Response::builder().status(code).body(Body::from(body.into_bytes())).unwrap());
        }
    });
    Client::new(service, "default")
}

async fn until(what: &str, is: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !is() {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Gateways that go with their definition stay as they were known, are known to be held, and keep their report until the agent of the one that is made anew reports.
#[tokio::test]
async fn gateways_that_go_with_their_definition_are_held() {
    let (stores, writers) = Stores::new();
    let anew = Arc::new(Notify::new());
    let client = without_definitions(anew.clone());
    let mut tasks = JoinSet::new();
    stores.follow(writers, &client, "stagenet-system", GUARD, &mut tasks);
    let held = || stores.held_gateways.names().into_iter().collect::<Vec<_>>();
    until("both to be held", || held() == ["a", "b"]).await;
    let reports = || {
        let all = super::super::watch::decoded(&stores.gateways);
        let of = |gateway: &Arc<crate::api::GatewayNode>| (gateway.uid().unwrap_or_default(), gateway.status.is_some());
        all.iter().map(of).collect::<Vec<_>>()
    };
    assert_eq!(reports(), [("1".to_owned(), true), ("1".to_owned(), true)]);
    anew.notify_one();
    until("one to be there again", || held() == ["b"]).await;
    assert_eq!(
        reports(),
        [("2".to_owned(), true), ("1".to_owned(), true)],
        "what it said last counts"
    );
}
