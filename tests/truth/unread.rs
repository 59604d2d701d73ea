//! Objects that a newer version wrote and this one cannot read: their last good version stays in force, and status says that nobody knows.

use serde_json::{Value, json};

use crate::claims::{Claim, MAIN, POOL};
use crate::cluster::Cluster;
use crate::desk::{Desk, condition};
use crate::hosts::GATEWAYS;
use crate::lab::{seconds, wait_until};
use crate::steps::{Dice, settle, touch};
use crate::trouble::touch_unseen;

/// Lets the API server take anything for these fields of a spec. Returns the definition as it was.
fn loosen(cluster: &Cluster, plural: &str, fields: &[&str]) -> Value {
    cluster.desk.redefine(plural, |definition| {
        for version in definition["spec"]["versions"].as_array_mut().unwrap() {
            let schema = &mut version["schema"]["openAPIV3Schema"];
            schema.as_object_mut().unwrap().remove("x-kubernetes-validations");
            let spec = &mut schema["properties"]["spec"];
            spec.as_object_mut().unwrap().remove("x-kubernetes-validations");
            for field in fields {
                spec["properties"][*field] = json!({"x-kubernetes-preserve-unknown-fields": true});
            }
        }
    })
}

/// Puts a definition back.
fn restore(cluster: &Cluster, plural: &str, before: &Value) {
    cluster
        .desk
        .redefine(plural, |definition| definition["spec"] = before["spec"].clone());
}

/// Writes what the definition did not allow before: it takes a moment until it does.
fn patch_once_allowed(cluster: &Cluster, path: &str, change: &Value) {
    wait_until(seconds(30), "the API server to take what no rule allows", || {
        cluster.desk.ask("PATCH", path, Some(change)).0 == 200
    });
}

/// Both gateways say which object they cannot read.
fn gateways_say(cluster: &Cluster, object: &str) {
    let sight = cluster.desk.sight();
    for gateway in GATEWAYS {
        let [_, _, message] = condition(&sight.gateways.objects[gateway].object, "Ready");
        assert!(message.contains(&format!("{object}: cannot be decoded")), "{gateway}: {message}");
    }
}

/// Controllers end and are started anew by whoever waits next: they know what is stored and nothing else.
fn renew_controllers(cluster: &mut Cluster) {
    for n in 0..cluster.controllers.len() {
        cluster.controllers[n].signal("TERM");
        wait_until(seconds(20), "the controller to end", || cluster.controllers[n].has_ended());
    }
}

/// A mapping: nobody takes its address.
pub fn mapping(cluster: &mut Cluster, dice: &mut Dice) {
    let address = POOL[0].to_owned();
    let rivals: Vec<String> = cluster
        .model
        .claims
        .iter()
        .filter(|(_, c)| c.place == address)
        .map(|(n, _)| n.clone())
        .collect();
    for name in &rivals {
        cluster.delete(name);
    }
    let claim = Claim::whole(&address, "192.168.200.3");
    cluster.create("newer", claim.clone());
    settle(cluster, "newer is created");

    let before = loosen(cluster, "natmappings", &["virtual", "target", "ports"]);
    let unheard_of = json!({"spec": {"virtual": {"address": {"from": "a newer version"}}}});
    patch_once_allowed(cluster, &Desk::mapping_path("newer"), &unheard_of);
    cluster.model.unreadable.insert("newer".to_owned());
    settle(cluster, "newer cannot be read any more");
    let sight = cluster.desk.sight();
    let [_, _, message] = condition(&sight.mappings.objects["newer"].object, "Ready");
    assert!(
        message.contains("cannot read the object: invalid type: map, expected a string"),
        "{message}"
    );
    gateways_say(cluster, "NatMapping default/newer");
    restore(cluster, "natmappings", &before);
    // The rules are back and what breaks them is stored: its status can be written all the same, also by a controller that never could read it.
    renew_controllers(cluster);
    cluster.model.forgotten.insert("newer".to_owned());
    let said = touch_unseen(cluster, dice);
    settle(cluster, &format!("controllers are started anew; {said}"));
    cluster.desk.patch(&Desk::mapping_path("newer"), &claim.patch());
    cluster.model.unreadable.clear();
    cluster.model.forgotten.clear();
    settle(cluster, "newer is mended");
    cluster.delete("newer");
    settle(cluster, "newer is deleted");
}

/// A network: its mappings go on by what it was, and new ones with them, as long as anybody remembers. Traffic goes on in any case.
pub fn network(cluster: &mut Cluster, dice: &mut Dice) {
    cluster.create("within", Claim::whole(POOL[1], "192.168.200.4"));
    settle(cluster, "within is created");
    let before = loosen(cluster, "stagingnetworks", &["inside"]);
    let path = Desk::network_path(MAIN.name);
    patch_once_allowed(
        cluster,
        &path,
        &json!({"spec": {"inside": {"addresses": {"from": "a newer version"}}}}),
    );
    cluster.model.unreadable_networks.insert(MAIN.name.to_owned());
    settle(cluster, "the network cannot be read any more");
    let sight = cluster.desk.sight();
    let [_, _, message] = condition(&sight.networks.objects[MAIN.name].object, "Ready");
    assert!(
        message.contains("cannot read the object: invalid type: map, expected a sequence"),
        "{message}"
    );
    gateways_say(cluster, &format!("StagingNetwork {}", MAIN.name));
    cluster.wait_watched();
    let said = touch(cluster, dice);
    settle(cluster, &said);

    restore(cluster, "stagingnetworks", &before);
    let answers = cluster.watchman.answers();
    renew_controllers(cluster);
    cluster.model.forgotten_networks.insert(MAIN.name.to_owned());
    settle(cluster, "controllers are started anew");
    assert_eq!(cluster.watchman.answers(), answers, "what stands goes on to work");
    let inside = json!({"spec": {"inside": {"addresses": MAIN.inside}}});
    cluster.desk.patch(&path, &inside);
    cluster.model.unreadable_networks.clear();
    cluster.model.forgotten_networks.clear();
    cluster.wait_watched();
    settle(cluster, "the network is mended");
    assert_eq!(cluster.watchman.answers(), answers, "what stood stands");
    cluster.delete("within");
    let said = touch(cluster, dice);
    settle(cluster, &format!("within is deleted; {said}"));
}
