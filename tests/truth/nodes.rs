//! Nodes that go and come back under the same name, with a garbage collector as every cluster has one.

use serde_json::Value;

use crate::claims::MAIN;
use crate::cluster::Cluster;
use crate::lab::{seconds, wait_until};
use crate::steps::{Dice, settle, touch};

/// Of a gateway's report: its own identity and its owner's.
fn identities(cluster: &Cluster, name: &str) -> (String, String) {
    let sight = cluster.desk.sight();
    let object = sight.gateways.objects.get(name).map(|told| &told.object);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    object.map_or_else(Default::default, |object| {
        let meta = &object["metadata"];
        (text(&meta["uid"]), text(&meta["ownerReferences"][0]["uid"]))
    })
}

fn create(cluster: &Cluster, name: &str) -> String {
    cluster.api.apply(&format!(
        "apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  labels: {{stagenet.dev/gateway: \"true\"}}\n"
    ));
    cluster.api.field(&format!("node/{name}"), ".metadata.uid")
}

/// Its old token was bound to the old Node. A kubelet would start the pod anew.
fn restart_agent(cluster: &mut Cluster, n: usize) {
    cluster.gateways[n].kill();
    cluster.renew_token(n);
    cluster.gateways[n].start();
}

/// The Node goes, and its report with it; the next Node of that name gets a report of its own.
pub fn deleted_and_created(cluster: &mut Cluster, dice: &mut Dice) {
    let n = cluster.active_gateway();
    let name = cluster.gateways[n].ns.name().to_owned();
    let before = identities(cluster, &name);
    cluster.desk.delete(&format!("/api/v1/nodes/{name}"));
    wait_until(seconds(60), "the other gateway to be active", || {
        cluster.supervise();
        cluster.active(MAIN.name) != name
    });
    cluster.model.departed.insert(name.clone());
    settle(cluster, &format!("Node {name} is deleted"));
    let said = touch(cluster, dice);
    settle(cluster, &said);
    let node = create(cluster, &name);
    restart_agent(cluster, n);
    cluster.model.departed.clear();
    let said = touch(cluster, dice);
    settle(cluster, &format!("Node {name} is created anew; {said}"));
    // That what its agent says is in there was waited for: it is Ready.
    let (object, owner) = identities(cluster, &name);
    assert_eq!(owner, node, "{name} belongs to the Node that there is");
    assert_ne!(object, before.0, "{name} went with the Node that is gone");
    assert_ne!(owner, before.1);
}

/// Another Node takes the name before anybody has seen that the first one went: whether its report is collected or adopted, in the end there is one that belongs to
/// the Node that there is, and what the agent says is in there.
pub fn replaced(cluster: &mut Cluster, dice: &mut Dice) {
    let n = 1 - cluster.active_gateway();
    let name = cluster.gateways[n].ns.name().to_owned();
    cluster.desk.delete(&format!("/api/v1/nodes/{name}"));
    let node = create(cluster, &name);
    restart_agent(cluster, n);
    wait_until(seconds(60), "a report that belongs to the Node that there is", || {
        cluster.supervise();
        identities(cluster, &name).1 == node
    });
    let said = touch(cluster, dice);
    settle(cluster, &format!("another Node is called {name}; {said}"));
    assert_eq!(identities(cluster, &name).1, node);
}
