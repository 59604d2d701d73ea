//! With nothing to do, nobody writes anything.

use std::collections::BTreeMap;

use crate::cluster::{Cluster, GUARD};
use crate::desk::condition;
use crate::lab::{seconds, wait_until};

/// How often each kind of object was asked to be written, by whomever, since the API server started: its own metrics say so.
fn writes(cluster: &Cluster) -> BTreeMap<String, u64> {
    let page = cluster.api.kubectl("get --raw /metrics");
    let mut counts = BTreeMap::new();
    for line in page.lines().filter(|line| line.starts_with("apiserver_request_total{")) {
        let label = |name: &str| {
            line.split_once(&format!("{name}=\""))
                .and_then(|(_, rest)| rest.split('"').next())
                .unwrap_or_default()
        };
        if ["POST", "PUT", "PATCH", "APPLY", "DELETE", "DELETECOLLECTION"].contains(&label("verb")) {
            let what = format!("{} {}/{}", label("verb"), label("resource"), label("subresource"));
            let count: u64 = line.rsplit(' ').next().unwrap().parse().unwrap();
            *counts.entry(what).or_default() += count;
        }
    }
    counts
}

/// A minute in which nothing happens: no write but heartbeats, which are Leases.
pub fn minute(cluster: &mut Cluster) {
    cluster.log("a minute in which nothing happens");
    cluster.model.fought = false;
    cluster.settle("everything");
    wait_until(
        seconds(GUARD + 30),
        "gateways that hold all that is planned, and nothing besides",
        || {
            let sight = cluster.desk.sight();
            sight
                .gateways
                .objects
                .values()
                .all(|told| condition(&told.object, "Ready")[1] == "AsPlanned")
        },
    );
    // What the last step led to is written first: agents report resource versions that mean nothing new a second late.
    let mut before = writes(cluster);
    wait_until(seconds(60), "everybody to have written what there was to write", || {
        std::thread::sleep(seconds(3));
        let now = writes(cluster);
        let rests = |counts: &BTreeMap<String, u64>| {
            counts
                .iter()
                .filter(|(what, _)| !what.contains(" leases/"))
                .map(|(_, count)| count)
                .sum::<u64>()
        };
        let still = rests(&now) == rests(&before);
        before = now;
        still
    });
    assert!(before.values().sum::<u64>() > 0, "writes are counted");
    std::thread::sleep(seconds(60));
    cluster.accuse("a minute in which nothing happened");
    let mut since = writes(cluster);
    for (what, count) in &mut since {
        *count -= before.get(what).copied().unwrap_or_default();
    }
    since.retain(|_, count| *count > 0);
    let (heartbeats, other): (Vec<_>, Vec<_>) = since.iter().partition(|(what, _)| what.contains(" leases/"));
    assert!(other.is_empty(), "written in a minute in which nothing happened: {other:?}");
    assert!(!heartbeats.is_empty(), "agents and controllers were alive");
    println!("measured: 0 writes in a minute, and {heartbeats:?} as heartbeats");
}
