//! Packets of flows that stand already.

use super::flow::{Sender, conversation, unanswered};
use super::rounds::{Lane, race, steady, timed};
use super::world::{Rules, Served, World};
use crate::lab::Backend;

/// Packets of one measurement, and before it to warm up.
const PACKETS: usize = 512;
const WARM: usize = 64;
const ROUNDS: usize = 600;
/// Mappings of each network.
const MAPPINGS: usize = 4;

struct Entry {
    world: usize,
    name: &'static str,
    flow: &'static str,
}

/// Prints the rows for one variant of the tools.
pub fn table(backend: Backend) {
    let plain = |networks| Served::plain(networks, MAPPINGS);
    let preserve = |served| Served { preserve: true, ..served };
    let clones = |networks| Served {
        clones: true,
        ..plain(networks)
    };
    let worlds = [
        ("routing alone", Rules::Plain),
        ("connection table only", Rules::Tracked),
        ("1 network, Preserve", Rules::Served(preserve(plain(1)))),
        ("50 networks, Preserve", Rules::Served(preserve(plain(50)))),
        ("1 network, Masquerade", Rules::Served(plain(1))),
        ("50 networks, Masquerade", Rules::Served(plain(50))),
        ("10 clones, Preserve", Rules::Served(preserve(clones(10)))),
        ("10 clones, Masquerade", Rules::Served(clones(10))),
        ("50 clones, Masquerade", Rules::Served(clones(50))),
    ];
    let built: Vec<World> = worlds
        .iter()
        .enumerate()
        .map(|(n, (_, rules))| World::new(&format!("w{n}"), backend, *rules))
        .collect();
    steady();
    let mut entries = Vec::new();
    let mut senders: Vec<Vec<Sender>> = Vec::new();
    for (n, (world, (name, _))) in built.iter().zip(worlds).enumerate() {
        world.close_doors();
        let ends = world.flow(1);
        let aside = World::bystander();
        let flows = [
            ("UDP, unanswered", unanswered(&world.client, ends)),
            ("TCP, both ways", conversation(&world.client, &world.server, ends)),
            ("bystander UDP, unanswered", unanswered(&world.client, aside)),
            ("bystander TCP, both ways", conversation(&world.client, &world.server, aside)),
        ];
        for (flow, streams) in flows {
            entries.push(Entry { world: n, name, flow });
            senders.push(streams);
        }
    }
    let before: Vec<u64> = built.iter().map(World::forwarded).collect();
    let mut lanes: Vec<Lane<'_>> = senders.iter_mut().map(|streams| Lane::new(move || burst(streams))).collect();
    race(&mut lanes, ROUNDS);
    for (world, before) in built.iter().zip(before) {
        let (sent, passed) = (4 * ROUNDS * (PACKETS + WARM), world.forwarded() - before);
        assert!(
            passed >= sent as u64 && passed < sent as u64 + 100,
            "of {sent} packets {passed} were forwarded"
        );
    }

    println!("\n### Packets, {}\n", backend.name());
    println!("| flow | rules | ns a packet | ÷ connection table only | ÷ routing alone |");
    println!("|---|---|---:|---:|---:|");
    let find = |world: usize, flow: &str| entries.iter().position(|e| e.world == world && e.flow == flow).unwrap();
    for (entry, lane) in entries.iter().zip(&lanes) {
        println!(
            "| {} | {} | {:.0} | {:.3} | {:.3} |",
            entry.flow,
            entry.name,
            lane.median() / PACKETS as f64,
            lane.over(&lanes[find(1, entry.flow)]),
            lane.over(&lanes[find(0, entry.flow)]),
        );
    }
}

fn burst(streams: &mut [Sender]) -> std::time::Duration {
    let share = |packets| packets / streams.len();
    let (warm, packets) = (share(WARM), share(PACKETS));
    for stream in &mut *streams {
        stream.send(warm);
    }
    timed(|| streams.iter_mut().for_each(|stream| stream.send(packets)))
}
