//! Status that is true: what objects say is compared with packets all the while, and after every step by judges that are not ours.
//!
//! `STAGENET_SEED=N` plays another scenario, `STAGENET_TROUBLE="409|500"` one with some of the troubles only; a failure names its seed and what was done.

#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub, missing_docs)]

mod claims;
mod clocks;
mod cluster;
mod desk;
mod hands;
mod hosts;
mod idle;
mod judged;
#[path = "../lab/mod.rs"]
mod lab;
mod model;
mod nodes;
mod objects;
mod steps;
mod tools;
mod trouble;
mod unread;
mod watchman;
mod words;

use cluster::Cluster;
use steps::Dice;

/// Steps between two troubles.
const STEPS: usize = 1;

/// A long random scenario, with everything that can go wrong in between.
#[test]
fn status_is_true_whatever_happens() {
    let tools = if lab::without_api() {
        std::path::PathBuf::new()
    } else {
        tools::built()
    };
    lab::isolated_with_api("status_is_true_whatever_happens", |bin| {
        let seed = std::env::var("STAGENET_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
        let mut dice = Dice(seed);
        let mut cluster = Cluster::start(bin, &tools);
        cluster.log(&format!("STAGENET_SEED={seed}"));
        for network in claims::NETWORKS {
            cluster.create_network(network);
        }
        steps::settle(&mut cluster, "the networks are created");
        let mut took = Vec::new();
        let only = std::env::var("STAGENET_TROUBLE").ok();
        for (name, trouble) in dice.shuffled(trouble::ALL.to_vec()) {
            if only
                .as_ref()
                .is_some_and(|only: &String| !only.split('|').any(|one| name.contains(one)))
            {
                continue;
            }
            for _ in 0..STEPS {
                steps::step(&mut cluster, &mut dice);
            }
            cluster.log(name);
            let begun = cluster.watchman.clock();
            trouble(&mut cluster, &mut dice);
            took.push((cluster.watchman.clock() - begun, name));
        }
        if only.as_ref().is_none_or(|only| only.contains("idle")) {
            idle::minute(&mut cluster);
        }
        took.sort_by(|a, b| b.0.total_cmp(&a.0));
        for (seconds, name) in took.iter().take(6) {
            println!("measured: {seconds:.0} s: {name}");
        }
        let (judged, excused) = cluster.watchman.tally();
        println!("measured: seed {seed}: {judged} dials judged, {excused} excused");
        println!("{}", cluster.diary.join("\n"));
        // What troubles excuse is a few mappings for a few seconds: a tenth of all dials, a little more on a machine that is busy.
        let played_all = only.is_none();
        assert!(
            !played_all || excused * 4 < judged + excused,
            "{judged} dials judged, {excused} excused"
        );
    });
}
