//! Wall clocks that jump. Lives are told by monotonic clocks, and nobody compares those of two machines.

use std::fs;

use crate::cluster::{Cluster, LEASE, clock_of};
use crate::hosts::GATEWAYS;
use crate::lab::{seconds, wait_until};
use crate::steps::{Dice, settle, touch};
use crate::trouble::leader;

/// By how many seconds clocks are wrong, one after the other. Further than what any Lease lasts.
const JUMPS: [i64; 3] = [1800, -1800, 0];

/// When a Lease was renewed, by its holder's clock.
fn renewed(cluster: &Cluster, lease: &str) -> String {
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/stagenet-system/leases/{lease}");
    let (_, lease) = cluster.desk.ask("GET", &path, None);
    lease["spec"]["renewTime"].as_str().unwrap_or_default().to_owned()
}

/// Lets the clocks of `holders` jump, of each of which there is a Lease: nothing comes of it, and Leases bear the time that the clocks show.
fn jump(cluster: &mut Cluster, dice: &mut Dice, holders: &[(&str, String)], still: impl Fn(&Cluster)) {
    for offset in JUMPS {
        let times = |cluster: &Cluster| -> Vec<String> { holders.iter().map(|(_, lease)| renewed(cluster, lease)).collect() };
        let before = times(cluster);
        for (name, _) in holders {
            fs::write(clock_of(name), offset.to_string()).unwrap();
        }
        let said = touch(cluster, dice);
        // A whole Lease's time, by which whoever lived by the clock would be dead.
        wait_until(seconds(LEASE * 4), "heartbeats by the clock that jumped", || {
            let mut pairs = before.iter().zip(times(cluster));
            pairs.all(|(before, now)| if offset < 0 { now < *before } else { now > *before })
        });
        settle(cluster, &format!("clocks are {offset} s off; {said}"));
        still(cluster);
    }
}

pub fn of_nodes(cluster: &mut Cluster, dice: &mut Dice) {
    let holders = GATEWAYS.map(|name| (name, format!("stagenet-agent-{name}")));
    let active = cluster.active_gateway();
    jump(cluster, dice, &holders, |cluster| assert_eq!(cluster.active_gateway(), active));
}

/// The leader goes on to lead, and no gateway seems silent to it, or alive for ever.
pub fn of_the_leader(cluster: &mut Cluster, dice: &mut Dice) {
    let leads = leader(cluster);
    let active = cluster.active_gateway();
    jump(cluster, dice, &[(&leads, "stagenet-controller".to_owned())], |cluster| {
        assert_eq!(leader(cluster), leads);
        assert_eq!(cluster.active_gateway(), active);
    });
}
