//! What people and other programs do to hosts.

use crate::claims::{Claim, MAIN, NETWORKS, OTHER, POOL};
use crate::cluster::{Cluster, Gateway};
use crate::desk::condition;
use crate::hosts::GATEWAYS;
use crate::lab::{self, Backend, seconds, wait_until};
use crate::steps::{Dice, settle, touch};

pub fn outside_cable(cluster: &mut Cluster, _: &mut Dice) {
    pulled(cluster, "eth0");
}

pub fn inside_cable(cluster: &mut Cluster, _: &mut Dice) {
    pulled(cluster, MAIN.interface);
}

pub fn other_cable(cluster: &mut Cluster, _: &mut Dice) {
    pulled(cluster, OTHER.interface);
}

/// A cable of the gateway that is active for the main network is pulled and plugged. Networks that use it there cannot be reached.
fn pulled(cluster: &mut Cluster, interface: &str) {
    something_stands(cluster);
    let n = cluster.active_gateway();
    let ns = cluster.gateways[n].ns.clone();
    let hit = NETWORKS
        .iter()
        .filter(|network| interface == "eth0" || interface == network.interface);
    let hit = hit.filter(|network| cluster.active(network.name) == ns.name());
    cluster.model.down = hit.map(|network| network.name.to_owned()).collect();
    ns.sh(&format!("ip link set {interface} down"));
    settle(cluster, &format!("{interface} of {} goes down", ns.name()));
    ns.sh(&format!("ip link set {interface} up"));
    cluster.model.down.clear();
    settle(cluster, &format!("{interface} of {} comes up", ns.name()));
}

/// Sees to it that a mapping of the main network is served.
fn something_stands(cluster: &mut Cluster) {
    let verdicts = cluster.model.verdicts(&cluster.desk.sight());
    let stands = |(name, claim): (&String, &Claim)| claim.network == MAIN.name && verdicts[name].0 == "True";
    if !cluster.model.claims.iter().any(stands) {
        for name in ["a", "b"] {
            cluster.delete(name);
        }
        cluster.create("a", Claim::whole(POOL[0], "192.168.200.3"));
        cluster.create("b", Claim::whole(POOL[1], "192.168.200.4"));
        settle(cluster, "a and b are created, so that something stands");
    }
}

/// The tool by which a gateway's kernel is spoken to.
fn tool(gateway: &Gateway) -> &'static str {
    match gateway.backend {
        Backend::Nft => "iptables-nft",
        Backend::Legacy => "iptables-legacy",
    }
}

/// Everything of ours that the tool shows, on both gateways, without counters.
fn rules(cluster: &Cluster) -> Vec<String> {
    let of = |gateway: &Gateway| {
        let saved = gateway
            .ns
            .sh(&format!("for t in nat mangle filter; do {}-save -t $t; done", tool(gateway)));
        let ours = saved.lines().filter(|line| line.contains("SNET-"));
        ours.map(|line| line.split(" [").next().unwrap()).collect::<Vec<_>>().join("\n")
    };
    cluster.gateways.iter().map(of).collect()
}

/// Waits until the gateway that stands by is as far as the one that serves, of which statuses tell.
fn level(cluster: &Cluster) {
    wait_until(seconds(30), "both gateways to be equally far", || {
        let sight = cluster.desk.sight();
        let synced = GATEWAYS.map(|name| {
            let told = &sight.gateways.objects[name].object["status"]["networks"];
            let networks = told.as_array().cloned().unwrap_or_default();
            networks
                .iter()
                .map(|network| (network["name"].to_string(), network["syncedResourceVersion"].to_string()))
                .collect::<Vec<_>>()
        });
        !synced[0].is_empty() && synced[0] == synced[1]
    });
}

/// Somebody else changes kernels, in every way, of the gateway that serves and of the one that stands by: each is put back as it was.
pub fn tampered(cluster: &mut Cluster, dice: &mut Dice) {
    something_stands(cluster);
    cluster.model.fought = true;
    let ways = [
        ("the chain of mappings is flushed", "TOOL -w -t nat -F SNET-DNAT"),
        ("the fence is flushed", "TOOL -w -t mangle -F SNET-FWD"),
        (
            "no address is answered for",
            "for a in $(ip neigh show proxy | cut -d' ' -f1); do ip neigh del proxy $a dev eth0; done",
        ),
    ];
    level(cluster);
    for (way, line) in ways {
        let before = rules(cluster);
        assert!(
            before
                .iter()
                .all(|rules| rules.contains("-A SNET-DNAT") && rules.contains("-A SNET-FWD")),
            "{before:#?}"
        );
        let active = &cluster.gateways[cluster.active_gateway()];
        if active.backend == Backend::Legacy {
            cluster.watchman.excuse.lock().unwrap().unread_tables = Some(active.ns.name().to_owned());
        }
        for gateway in &cluster.gateways {
            gateway.ns.sh(&line.replace("TOOL", tool(gateway)));
        }
        settle(cluster, way);
        wait_until(seconds(30), "both kernels to be as they were", || rules(cluster) == before);
    }
    let said = touch(cluster, dice);
    settle(cluster, &said);
}

/// Somebody goes on to change a kernel: the gateway says so, in words that the judges find no fault with, and puts it back all the same.
pub fn fight(cluster: &mut Cluster, _: &mut Dice) {
    cluster.model.fought = true;
    let drifted = |cluster: &Cluster| {
        let sight = cluster.desk.sight();
        let [status, _, message] = condition(&sight.gateways.objects["vm02"].object, "Drifted");
        status == "True" && message.contains("Another program keeps changing")
    };
    level(cluster);
    let before = rules(cluster);
    wait_until(seconds(60), "the gateway to say that somebody fights it", || {
        // Of the fence, which no mapping needs to work.
        cluster.gateways[0].ns.sh("iptables-nft -w -t mangle -F SNET-FWD");
        cluster.accuse("somebody goes on to flush the fence");
        drifted(cluster)
    });
    cluster.judge("somebody fights a gateway");
    settle(cluster, "somebody flushed the fence again and again");
    wait_until(seconds(30), "the kernel to be as it was", || rules(cluster) == before);
}

/// A restored machine is switched off and on. No gateway can know.
pub fn machine_goes(cluster: &mut Cluster, dice: &mut Dice) {
    let name = *dice.one(&["vm03", "vm04"]);
    let vm = lab::Ns::existing(name);
    cluster.watchman.excuse.lock().unwrap().gone.insert(name.to_owned());
    vm.sh("ip link set eth0 down");
    settle(cluster, &format!("{name} is switched off"));
    vm.sh("ip link set eth0 up && ip route replace default via 192.168.200.254");
    cluster.log(&format!("{name} is switched on"));
    let gateway = cluster.gateways[cluster.active_gateway()].ns.clone();
    let number = name.trim_start_matches("vm0");
    wait_until(seconds(20), "the machine to be back", || {
        let reached = |address: String| gateway.try_sh(&format!("ping -c1 -W1 {address}")).code == 0;
        reached(format!("192.168.200.{number}")) && reached(format!("fd00:200::{number}"))
    });
    cluster.watchman.excuse.lock().unwrap().gone.clear();
    settle(cluster, &format!("{name} is back"));
}
