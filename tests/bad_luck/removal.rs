//! A mapping goes while the connection table is crowded: its flows end soon, and no other is touched.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use crate::crowd::{OTHER, OTHER_80};
use crate::lab::{Dialler, Manifests, Seed, Steady, VIP, VIP_80, crowd, heard, last_heard, seconds, wait_until};

/// Entries of the connection table that are to stay.
const FLOWS: u16 = 60_000;
/// Ports of the target that they are spread over.
const PORTS: u16 = 4;
/// Ten times what is promised. `make bench` shows the true figure.
const BOUND: Duration = Duration::from_secs(5);

/// Identifiers of the flows to [`OTHER`]: the kernel gives each entry one for its life.
fn others(seed: &Seed) -> BTreeSet<String> {
    let listed = seed.vm02.sh(&format!("conntrack -L -p udp -o id -d {OTHER} 2>/dev/null"));
    let id = |line: &str| Some(line.rsplit_once("id=")?.1.to_owned());
    listed.lines().filter_map(id).collect()
}

labs! {
    fn removing_a_mapping_ends_its_flows_and_no_others(seed) {
        // None of them may come to its own end meanwhile.
        seed.vm02.set("netfilter/nf_conntrack_udp_timeout", "600");
        let manifests = Manifests::seed();
        manifests.mapping("other", OTHER, "192.168.200.4", "");
        let mut agent = seed.agent(&manifests, &[]);
        seed.wait_serves("vm03");
        wait_until(seconds(20), "the other mapping", || seed.vm01.tcp(OTHER_80).is_some());
        // A few more: of so many at once some may be lost.
        let pairs = (0..FLOWS + 1000).map(|n| {
            let from = SocketAddrV4::new([192, 168, 100, 1].into(), 20_000 + n / PORTS);
            (from, SocketAddrV4::new(OTHER.parse().unwrap(), 1000 + n % PORTS))
        });
        crowd(&seed.vm01, pairs);
        let before = others(seed);
        assert!(before.len() >= FLOWS.into(), "only {} entries in the connection table", before.len());

        let steady = [Steady::connect(&seed.vm01, OTHER_80), Steady::datagrams(&seed.vm01, OTHER_80)];
        let dialler = Dialler::start(&seed.vm01, &[(OTHER_80, "vm04")], Duration::from_millis(20), u64::MAX);
        let any = |ns: &crate::lab::Ns, port| ns.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap();
        let (client, listening) = (any(&seed.vm01, 0), any(&seed.vm03, 7));
        listening.set_nonblocking(true).unwrap();
        let to = SocketAddrV4::new(VIP.parse().unwrap(), 7);
        wait_until(seconds(20), "a flow of datagrams", || heard(&client, to, &listening));
        let mut open = seed.vm01.tcp(VIP_80).expect("a connection");
        assert!(open.works());

        manifests.remove("mapping.yaml");
        let took = last_heard(&client, to, &listening);
        assert!(took < BOUND, "datagrams got through for {took:?}");
        assert!(open.is_cut(), "a connection has ended, too");
        // Who goes on dialling makes flows that lead nowhere.
        let translated: Vec<_> = seed.vm02.flows(VIP).into_iter().filter(|flow| flow.contains("=192.168.200.")).collect();
        assert_eq!(translated, Vec::<String>::new());
        for steady in &steady {
            steady.goes_on("after the removal");
        }
        dialler.none_failed("during the removal");
        let gone: Vec<_> = before.difference(&others(seed)).cloned().collect();
        assert!(gone.is_empty(), "{} other flows are gone", gone.len());
        agent.assert_alive();
        println!("measured: with {} entries, datagrams got through for {took:?}", before.len());
    }
}
