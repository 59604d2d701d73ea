//! The other ways through a clone: from inside to chosen servers, and whole prefixes. Both clones have the same addresses inside, also those that their
//! machines dial.

use crate::lab::{Clones, Conversation, Ns, Pool};

/// Ports of a name server, which the servers of this lab serve at 80.
const NAMES: &str = "ports: [{protocol: TCP, port: 53, targetPort: 80}, {protocol: UDP, port: 53, targetPort: 80}]";
/// What machines call their name servers: within the closed prefix, and beyond it.
const DIALLED: [&str; 4] = ["10.0.0.53", "10.9.9.53", "fd00:10::53", "fd00:99::53"];
/// The machines' own port for all calls, and their hosts' numbers.
const PORT: u16 = 5000;
const HOSTS: [(&str, usize); 2] = [("a", 3), ("b", 4)];

/// The servers outside, of which the first clone's is the client and the second clone's is production's.
fn server(k: usize) -> (&'static str, [&'static str; 2]) {
    match k {
        1 => ("client", ["192.168.100.1", "2001:db8:a::1"]),
        _ => ("production", ["192.168.100.254", "2001:db8:a::fe"]),
    }
}

fn at(address: &str, port: u16) -> String {
    std::net::SocketAddr::new(address.parse().unwrap(), port).to_string()
}

/// The address of the same family as `like` by which a machine of clone `k` is known outside: `a` has one of its own.
fn known_as(clones: &Clones, k: usize, machine: &str, like: &str) -> String {
    let host = if machine == "a" { 3 } else { 1 };
    if like.contains(':') {
        clones.address6(k, host)
    } else {
        clones.address(k, host)
    }
}

/// The machine's own address of that family.
fn own(host: usize, like: &str) -> String {
    if like.contains(':') {
        format!("fd00:10::{host}")
    } else {
        format!("10.0.0.{host}")
    }
}

/// Production knows where the pools are, as the client does.
fn production_knows_the_pools(clones: &Clones) {
    clones
        .production
        .sh("ip route add 172.16.0.0/12 dev eth0 && ip route add fd00:172::/32 dev eth0");
}

/// Machine `a` of clone `k` gets both its virtual addresses, without the clone's network.
fn give_a_its_addresses(clones: &Clones, k: usize) {
    clones.mapping(k, "a", &clones.vip(k, "a"), "10.0.0.3", "");
    clones.mapping(k, "a6", &format!("\"{}\"", clones.vip6(k, "a")), "\"fd00:10::3\"", "");
}

/// Calls, always from the same port, and checks who answers and whom they see.
fn call(vm: &Ns, host: usize, to: &str, port: u16, server: &str, seen_as: &str) -> Conversation {
    let (from, to) = (at(&own(host, to), PORT), at(to, port));
    let what = format!("{} calls {to}", vm.name());
    let call = vm.tcp_from(&from, &to).unwrap_or_else(|| panic!("{what}: nobody answers"));
    assert_eq!(
        (call.server.as_str(), call.seen_as.ip().to_string().as_str()),
        (server, seen_as),
        "{what}"
    );
    let (name, seen) = vm.udp_from(&from, &to).unwrap_or_else(|| panic!("{what} over UDP"));
    assert_eq!(
        (name.as_str(), seen.ip().to_string().as_str()),
        (server, seen_as),
        "{what} over UDP"
    );
    call
}

/// Calls of TCP that get nowhere, all at once: silence takes its time.
fn nobody_answers(calls: impl IntoIterator<Item = (Ns, String)>) {
    std::thread::scope(|scope| {
        for (vm, to) in calls {
            scope.spawn(move || assert!(vm.tcp_fails(&to), "{} reaches {to}", vm.name()));
        }
    });
}

/// The addresses of both families at a place in the virtual prefixes of clone `k`; at 0 those of the prefixes.
fn block(clones: &Clones, k: usize, place: usize) -> [String; 2] {
    let six = 0x40 + place;
    match clones.shape.pool {
        Pool::Own => [format!("172.16.{k}.{}", 32 + place), format!("fd00:172:0:{k:x}::{six:x}")],
        Pool::Shared => [format!("192.168.100.{}", 64 * k + place), format!("2001:db8:a::{k:x}:{six:x}")],
    }
}

clones! {
    /// Machines of both clones dial the same address from the same port and reach each its own clone's server, under their own clone's addresses; what one
    /// clone loses the other keeps.
    fn each_clone_dials_its_own_servers(shape) in [nft_node, legacy_node, legacy_router, nft_shared] {
        let clones = Clones::new(shape, 2);
        production_knows_the_pools(&clones);
        for k in clones.all() {
            clones.network(k, true, "egress: {default: Deny}");
            give_a_its_addresses(&clones, k);
            for (n, dialled) in DIALLED.iter().enumerate() {
                let target = server(k).1[usize::from(dialled.contains(':'))];
                let quoted = |a: &str| format!("\"{a}\"");
                clones.mapping(k, &format!("names{n}"), &quoted(dialled), &quoted(target), &format!("side: Inside\n{NAMES}"));
            }
        }
        clones.converge();
        let mut open = Vec::new();
        for dialled in DIALLED {
            for (machine, host) in HOSTS {
                for k in clones.all() {
                    let seen_as = known_as(&clones, k, machine, dialled);
                    open.push((k, dialled, call(&clones.vm(k, machine), host, dialled, 53, server(k).0, &seen_as)));
                }
            }
        }
        // Neither another port, nor the servers under their own addresses.
        let servers = [server(1).1, server(2).1].concat();
        let others: Vec<_> = DIALLED.into_iter().chain(servers).map(|address| at(address, 80)).collect();
        nobody_answers(clones.all().flat_map(|k| others.iter().map(move |to| (k, to.clone()))).map(|(k, to)| (clones.vm(k, "a"), to)));
        assert!(open.iter_mut().all(|(.., call)| call.works()), "all of them go on side by side");

        // The second clone loses the address within its prefix.
        for n in [0, 2] {
            clones.manifests.remove(&format!("clone-002-names{n}.yaml"));
        }
        clones.converge();
        for (k, dialled, call) in &mut open {
            let lost = *k == 2 && [DIALLED[0], DIALLED[2]].contains(dialled);
            assert!(if lost { call.is_cut() } else { call.works() }, "{dialled} of clone {k}");
        }
        nobody_answers([0, 2].map(|n| (clones.vm(2, "a"), at(DIALLED[n], 53))));
        for n in [0, 2] {
            let answers = clones.vm(1, "a").tcp(&at(DIALLED[n], 53)).map(|c| c.server);
            assert_eq!(answers.as_deref(), Some("client"), "{} of clone 1", DIALLED[n]);
        }
    }

    /// What a clone may call it calls under its own addresses, from one port in both clones; what only the other one may call, or nobody, is out of reach.
    fn each_clone_leaves_where_it_may(shape) in [nft_node, legacy_node, nft_router] {
        let clones = Clones::new(shape, 2);
        production_knows_the_pools(&clones);
        let common = ["192.168.100.253", "2001:db8:a::fd"];
        clones.production.sh("ip addr add 192.168.100.253/24 dev eth0 && ip addr add 2001:db8:a::fd/64 dev eth0 nodad preferred_lft 0");
        let _servers = common.map(|address| clones.production.serve_as("common", address, 81));
        let allow = |k: usize, port: u16| {
            let [four, six] = server(k).1;
            let ports = format!("[{{protocol: TCP, port: {port}}}, {{protocol: UDP, port: {port}}}]");
            let to = |prefix: String, ports: &str| format!("  - {{to: \"{prefix}\"{ports}}}\n");
            let ports = format!(", ports: {ports}");
            let all = [
                to(format!("{four}/32"), &ports),
                to(format!("{six}/128"), &ports),
                to(format!("{}/32", common[0]), ""),
                to(format!("{}/128", common[1]), ""),
            ];
            clones.network(k, true, &format!("egress:\n  default: Deny\n  allow:\n{}", all.concat()));
        };
        for k in clones.all() {
            allow(k, 80);
            give_a_its_addresses(&clones, k);
        }
        clones.converge();
        let (mut open, mut denied) = (Vec::new(), Vec::new());
        for n in [0, 1] {
            for (machine, host) in HOSTS {
                for k in clones.all() {
                    let vm = clones.vm(k, machine);
                    let (name, to) = (server(k).0, server(k).1[n]);
                    let seen_as = known_as(&clones, k, machine, to);
                    open.push((k, call(&vm, host, to, 80, name, &seen_as)));
                    // The same server for both, from the same port.
                    open.push((0, call(&vm, host, common[n], 81, "common", &seen_as)));
                    // What only the other clone may call, and another port.
                    denied.extend([(vm.clone(), at(server(3 - k).1[n], 80)), (vm, at(to, 81))]);
                }
            }
        }
        nobody_answers(denied);
        assert!(open.iter_mut().all(|(_, call)| call.works()), "all of them go on side by side");
        // Taken from one clone it ends there and nowhere else.
        allow(1, 443);
        clones.converge();
        for (k, call) in &mut open {
            assert!(if *k == 1 { call.is_cut() } else { call.works() }, "of clone {k}");
        }
        nobody_answers(server(1).1.map(|address| (clones.vm(1, "b"), at(address, 80))));
    }

    /// A prefix of each clone leads to the same prefix inside, both ways, each machine at its place.
    fn each_clone_has_a_prefix_for_the_same_machines(shape) in [nft_node, legacy_router, nft_shared] {
        let clones = Clones::new(shape, 2);
        for k in clones.all() {
            clones.network(k, true, "egress: {default: Allow}");
            let [four, six] = block(&clones, k, 0);
            clones.manifests.write(&format!("block{k}.yaml"), &prefix(k, "four", &format!("{four}/28"), "10.0.0.0/28"));
            clones.manifests.write(&format!("block{k}6.yaml"), &prefix(k, "six", &format!("{six}/124"), "fd00:10::/124"));
        }
        clones.converge();
        let mut open = Vec::new();
        for (machine, host) in HOSTS {
            for k in clones.all() {
                let (vm, who) = (clones.vm(k, machine), format!("c{k}{machine}"));
                for (known, client) in block(&clones, k, host).into_iter().zip(["192.168.100.1", "2001:db8:a::1"]) {
                    let (from, to) = (at(client, 40_000), at(&known, 80));
                    let inward = clones.client.tcp_from(&from, &to).unwrap_or_else(|| panic!("{to} of clone {k}"));
                    assert_eq!(inward.server, who, "{to}");
                    assert_eq!(clones.client.udp_from(&from, &to).map(|a| a.0).as_ref(), Some(&who), "{to} over UDP");
                    assert!(clones.client.echoes(&known), "{known} by echo");
                    open.push(inward);
                    open.push(call(&vm, host, client, 80, "client", &known));
                }
            }
        }
        assert!(open.iter_mut().all(Conversation::works), "all of them go on side by side");
        nobody_answers(clones.all().flat_map(|k| block(&clones, 3 - k, 3).map(|address| (clones.vm(k, "a"), at(&address, 80)))));
        // One rule each way, family and clone, whatever the size of the prefix.
        let nat = clones.rules("nat");
        let netmaps = |to: &str| nat.lines().filter(|l| l.contains("-j NETMAP") && l.contains(&format!("--to {to}"))).count();
        let inside = [netmaps("10.0.0.0/28"), netmaps("fd00:10::/124")];
        assert_eq!(inside, [2, 2], "in\n{nat}");
        for k in clones.all() {
            let [four, six] = block(&clones, k, 0);
            assert_eq!([netmaps(&format!("{four}/28")), netmaps(&format!("{six}/124"))], [1, 1], "out of clone {k}\n{nat}");
        }
    }
}

/// A mapping of a prefix.
fn prefix(k: usize, name: &str, from: &str, to: &str) -> String {
    format!(
        "apiVersion: stagenet.dev/v1alpha1\nkind: NatMapping\nmetadata: {{name: block{k}-{name}, namespace: default}}\nspec:\n  networkRef: {{name: clone-{k:03}}}\n  \
         virtual: {{prefix: \"{from}\"}}\n  target: {{prefix: \"{to}\"}}\n"
    )
}
