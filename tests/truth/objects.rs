//! Troubles with objects: networks that go, lists that lack what nobody deleted, everything deleted at once.

use std::time::Instant;

use serde_json::json;

use crate::claims::{Claim, MAIN, NETWORKS, POOL};
use crate::cluster::{Cluster, GUARD};
use crate::desk::Desk;
use crate::hosts::GATEWAYS;
use crate::lab::{seconds, wait_until};
use crate::steps::{Dice, settle, touch};
use crate::trouble::pause;

/// The network is deleted under its mappings, and comes back.
pub fn network_goes(cluster: &mut Cluster, dice: &mut Dice) {
    cluster.desk.delete(&Desk::network_path(MAIN.name));
    cluster.model.networks.remove(MAIN.name);
    let said = format!("the network is deleted; {}", touch(cluster, dice));
    settle(cluster, &said);
    cluster.create_network(MAIN);
    settle(cluster, "the network is created anew");
}

/// An API server that forgot everything: nothing is taken away until it has said so for a while, and it remembers before.
pub fn empty_lists(cluster: &mut Cluster, dice: &mut Dice) {
    cluster.create("kept", Claim::whole(POOL[1], "192.168.200.4"));
    settle(cluster, "kept is created");
    let empty = json!({"empty": ["natmappings", "stagingnetworks", "gatewaynodes", "nodes"], "expire": true, "cut": true});
    cluster.faults.order(&empty);
    cluster.log("every list is empty");
    let begun = Instant::now();
    let lacks = format!("list of StagingNetworks lacks {}", MAIN.name);
    // Nobody is excused: what is Ready goes on to be so, and to work.
    for gateway in GATEWAYS {
        wait_until(seconds(GUARD - 2), "the gateways to say what they hold", || {
            cluster.accuse("every list is empty");
            let told = cluster
                .api
                .field(&format!("gwnode/{gateway}"), ".status.conditions[?(@.type==\"Ready\")].message");
            told.contains(&lacks) && told.contains("--mass-removal-guard")
        });
    }
    let leader = cluster.controllers.iter().any(|c| c.log().contains("list of NatMappings lacks"));
    assert!(leader, "a controller says that it does not believe it");
    pause(1500);
    assert!(begun.elapsed() < seconds(GUARD), "this machine is too slow to tell");
    cluster.faults.order(&json!({"cut": true}));
    cluster.faults.none();
    cluster.wait_watched();
    settle(cluster, "lists are whole again");
    for gateway in GATEWAYS {
        wait_until(seconds(20), "the gateways to be content", || {
            cluster
                .api
                .field(&format!("gwnode/{gateway}"), ".status.conditions[?(@.type==\"Ready\")].status")
                == "True"
        });
    }
    let said = touch(cluster, dice);
    settle(cluster, &said);
}

/// What is told to be deleted is believed at once, be it everything.
pub fn all_deleted(cluster: &mut Cluster, _: &mut Dice) {
    for (name, n) in [("p", 2), ("q", 3), ("r", 4)] {
        if !cluster.model.claims.values().any(|c| c.place == POOL[n]) {
            cluster.create(name, Claim::whole(POOL[n], "192.168.200.3"));
        }
    }
    settle(cluster, "there is something to delete");
    let begun = Instant::now();
    cluster.api.kubectl("delete natmappings --all --wait=false");
    cluster.model.claims.clear();
    settle(cluster, "all mappings are deleted");
    assert!(
        begun.elapsed() < seconds(GUARD),
        "nothing that was told to be deleted is held: {:?}",
        begun.elapsed()
    );
}

/// Definitions are deleted, and every object with them, while no program can hear of it; then they are applied again, and what people keep elsewhere.
/// What gateways hold works all the while: an API server that does not know the kinds tells nobody anything, and what its lists lack then is not believed at once.
pub fn definitions_go(cluster: &mut Cluster, dice: &mut Dice) {
    let ours = "natmappings.stagenet.dev stagingnetworks.stagenet.dev";
    let sight = cluster.desk.sight();
    let stand: Vec<String> = cluster
        .model
        .verdicts(&sight)
        .into_iter()
        .filter(|(_, v)| v.0 == "True")
        .map(|(n, _)| n)
        .collect();
    let before = cluster.watchman.answers();
    cluster.faults.order(&json!({"down": true}));
    // Nobody is told what becomes of any of them. That everything answers as before is looked at here.
    cluster
        .watchman
        .excuse
        .lock()
        .unwrap()
        .unheard
        .extend(cluster.model.claims.values().cloned());
    cluster.api.kubectl(&format!("delete crd {ours} --timeout=120s"));
    cluster.faults.none();
    // Two agents and two controllers, each of which watches several kinds: all of them ask, and more than once.
    wait_until(seconds(60), "everybody to be told that there are no such kinds", || {
        cluster.supervise();
        cluster.faults.order(&json!({"look": true}))["requests"].as_u64() > Some(40)
    });
    assert_eq!(
        cluster.watchman.answers(),
        before,
        "the API server does not know the kinds any more"
    );

    cluster.api.kubectl(&format!("apply -f {}/crds", env!("CARGO_MANIFEST_DIR")));
    cluster.api.wait_established(ours);
    let claims = std::mem::take(&mut cluster.model.claims);
    cluster.model.networks.clear();
    for network in NETWORKS {
        cluster.create_network(network);
    }
    // Who stood before is older again.
    let (first, second): (Vec<_>, Vec<_>) = claims.into_iter().partition(|(name, _)| stand.contains(name));
    for (name, claim) in first {
        cluster.create(&name, claim);
    }
    assert_eq!(cluster.watchman.answers(), before, "what is applied again is what stood");
    pause(1100);
    for (name, claim) in second {
        cluster.create(&name, claim);
    }
    cluster.wait_watched();
    settle(cluster, "definitions and objects are back");
    assert_eq!(cluster.watchman.answers(), before, "nothing has changed");
    let said = touch(cluster, dice);
    settle(cluster, &said);
}
