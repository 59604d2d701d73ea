//! Who reaches whom, and under which address.

use crate::lab::clones::MACHINES;
use crate::lab::{Clones, Conversation, Inside, Snapshot, bridge, seconds, wait_until};

/// Greeted by the right machine, which sees the address expected.
fn met(conversation: Option<Conversation>, server: &str, seen_as: &[&str], what: &str) -> Conversation {
    let conversation = conversation.unwrap_or_else(|| panic!("{what}: nobody answers"));
    let seen = conversation.seen_as.ip().to_string();
    assert!(
        conversation.server == server && (seen_as.is_empty() || seen_as.contains(&seen.as_str())),
        "{what}: {} answers and sees {seen}, instead of {server} and {seen_as:?}",
        conversation.server
    );
    conversation
}

/// From one port of the client to the same machine, inside address and port of every clone, all at the same time.
pub(crate) fn in_at_once(clones: &Clones) {
    // The gateway's own: which of them is the administrator's affair.
    let gateway = ["10.0.0.1", "10.0.0.250"];
    let mut open = Vec::new();
    for machine in MACHINES {
        for k in clones.all() {
            let (to, who) = (format!("{}:80", clones.vip(k, machine)), format!("c{k}{machine}"));
            open.push(met(
                clones.client.tcp_from("192.168.100.1:40000", &to),
                &who,
                &gateway,
                &format!("{to} from one port"),
            ));
            let (server, seen) = clones
                .client
                .udp_from("192.168.100.1:40000", &to)
                .unwrap_or_else(|| panic!("{to} over UDP"));
            assert!(
                server == who && gateway.contains(&seen.ip().to_string().as_str()),
                "{to}: {server} sees {seen}"
            );
        }
        assert!(clones.client.echoes(&clones.vip(1, "a")), "echo");
    }
    assert!(open.iter_mut().all(Conversation::works), "all of them go on side by side");
}

/// The same machine of every clone calls the same server from the same port at the same time.
pub(crate) fn out_at_once(clones: &Clones) {
    let mut open = Vec::new();
    for (machine, from, under) in [("a", "10.0.0.3:5000", 3), ("b", "10.0.0.4:5000", 1)] {
        for k in clones.all() {
            let (vm, under) = (clones.vm(k, machine), clones.address(k, under));
            let what = format!("{} calls out", vm.name());
            let call = met(vm.tcp_from(from, "192.168.100.1:80"), "client", &[&under], &what);
            open.push(call);
            let (_, seen) = vm.udp_from(from, "192.168.100.1:80").unwrap_or_else(|| panic!("{what} over UDP"));
            assert_eq!(seen.ip().to_string(), under, "{what} over UDP");
            assert!(vm.echoes("192.168.100.1"), "{what} by echo");
        }
    }
    assert!(open.iter_mut().all(Conversation::works), "all of them go on side by side");
}

/// A machine reaches its neighbour, and itself, by virtual address.
pub(crate) fn hairpin(clones: &Clones) {
    let mut open = Vec::new();
    for k in clones.all() {
        for (from, to) in [("a", "b"), ("b", "a")] {
            let what = format!("c{k}{from} calls its neighbour by the virtual address");
            let call = clones.vm(k, from).tcp(&format!("{}:80", clones.vip(k, to)));
            open.push(met(call, &format!("c{k}{to}"), &[], &what));
            let answer = clones.vm(k, from).udp(&format!("{}:80", clones.vip(k, to)));
            assert_eq!(answer.map(|a| a.0), Some(format!("c{k}{to}")), "{what} over UDP");
        }
    }
    assert!(open.iter_mut().all(Conversation::works));
}

/// What a machine says to itself by its virtual address comes back by the port that it came in by, which a bridge does only if told to where bridged
/// packets pass netfilter.
pub(crate) fn hairpin_to_oneself(clones: &Clones) {
    let shape = clones.shape;
    for k in clones.all() {
        let vm = clones.vm(k, "a");
        let to = format!("{}:80", clones.vip(k, "a"));
        if shape.inside == Inside::Bridges && shape.bridge_netfilter {
            assert!(
                vm.tcp_is_dropped(&to),
                "without hairpin on the port: if this works now, the documentation is to be changed"
            );
            bridge::hairpin(&clones.gateway, &clones.port(k, "a"));
        }
        assert!(met(vm.tcp(&to), vm.name(), &[], "a machine calls itself").works());
    }
}

/// Neighbours see each other as they are, whatever passes iptables, also where both clones have the same conversation.
pub(crate) fn direct(clones: &Clones) {
    let mut open = Vec::new();
    for k in clones.all() {
        let (vm, neighbour) = (clones.vm(k, "a"), format!("c{k}b"));
        let what = format!("{} calls its neighbour", vm.name());
        open.push(met(vm.tcp_from("10.0.0.3:6000", "10.0.0.4:80"), &neighbour, &["10.0.0.3"], &what));
        let (server, seen) = vm
            .udp_from("10.0.0.3:6000", "10.0.0.4:80")
            .unwrap_or_else(|| panic!("{what} over UDP"));
        assert_eq!(
            (server, seen.to_string()),
            (neighbour, "10.0.0.3:6000".to_owned()),
            "{what} over UDP"
        );
        assert!(vm.echoes("10.0.0.4") && vm.echoes("fd00:10::4"), "{what} by echo");
    }
    assert!(open.iter_mut().all(Conversation::works));
}

clones! {
    /// Two clones do all that one network can do, at the same time, and the gateway is afterwards as before.
    fn two_clones_work_side_by_side(shape) in [nft_node, legacy_node, nft_router, legacy_router, nft_shared, legacy_cables] {
        let clones = Clones::new(shape, 2);
        let before = Snapshot::of(&clones.gateway);
        for k in clones.all() {
            clones.write(k, false, "Allow");
        }
        clones.converge();
        in_at_once(&clones);
        out_at_once(&clones);
        direct(&clones);
        hairpin(&clones);
        hairpin_to_oneself(&clones);
        direct(&clones);
        // What the node itself answers a machine finds its way only where the kernel gives it the mark of what it answers.
        for k in clones.all() {
            let vm = clones.vm(k, "a");
            let echo = if shape.reflect { vm.echoes("10.0.0.1") } else { vm.ping("10.0.0.1") };
            assert_eq!(echo, shape.reflect, "the gateway's echo inside clone {k}");
        }
        clones.cleanup();
        before.assert_same(&Snapshot::of(&clones.gateway));
    }

    /// Machines that see their clients' own addresses answer the right one of them, although both clones have the same conversation.
    fn clients_keep_their_address_where_asked_for(shape) in [nft_node, legacy_router] {
        let clones = Clones::new(shape, 2);
        for k in clones.all() {
            clones.network(k, false, "sourceTranslation: Preserve");
            clones.mapping(k, "a", &clones.vip(k, "a"), "10.0.0.3", "");
        }
        clones.converge();
        let mut open: Vec<_> = clones
            .all()
            .map(|k| {
                let to = format!("{}:80", clones.vip(k, "a"));
                met(clones.client.tcp_from("192.168.100.1:40000", &to), &format!("c{k}a"), &["192.168.100.1"], &to)
            })
            .collect();
        assert!(open.iter_mut().all(Conversation::works));
        for k in clones.all() {
            let vm = clones.vm(k, "a");
            assert!(vm.tcp_is_dropped("192.168.100.1:80"), "nothing may leave by itself");
        }
    }

    /// The same over IPv6, with both families in one network.
    fn two_clones_work_side_by_side_over_both_families(shape) in [nft_node, legacy_node, nft_router, legacy_router] {
        let clones = Clones::new(shape, 2);
        let before = Snapshot::of(&clones.gateway);
        for k in clones.all() {
            clones.write(k, true, "Allow");
        }
        clones.converge();
        in_at_once(&clones);
        let mut open = Vec::new();
        for machine in MACHINES {
            for k in clones.all() {
                let (to, who) = (format!("[{}]:80", clones.vip6(k, machine)), format!("c{k}{machine}"));
                let call = clones.client.tcp_from("[2001:db8:a::1]:40000", &to);
                open.push(met(call, &who, &["fd00:10::1", "fd00:10::fa"], &to));
                assert_eq!(clones.client.udp_from("[2001:db8:a::1]:40000", &to).map(|a| a.0), Some(who), "{to} over UDP");
            }
        }
        for (machine, from, under) in [("a", "[fd00:10::3]:5000", 3), ("b", "[fd00:10::4]:5000", 1)] {
            for k in clones.all() {
                let vm = clones.vm(k, machine);
                let call = vm.tcp_from(from, "[2001:db8:a::1]:80");
                open.push(met(call, "client", &[&clones.address6(k, under)], &format!("{} calls out", vm.name())));
            }
        }
        for k in clones.all() {
            for (from, to) in [("a", "b"), ("b", "a")] {
                let call = clones.vm(k, from).tcp(&format!("[{}]:80", clones.vip6(k, to)));
                open.push(met(call, &format!("c{k}{to}"), &[], &format!("c{k}{from} calls its neighbour by the virtual address")));
            }
            let call = clones.vm(k, "a").tcp_from("[fd00:10::3]:6000", "[fd00:10::4]:80");
            open.push(met(call, &format!("c{k}b"), &["fd00:10::3"], "directly"));
        }
        assert!(open.iter_mut().all(Conversation::works));
        clones.cleanup();
        wait_until(seconds(10), "the gateway to be as it was", || Snapshot::of(&clones.gateway) == before || std::env::var("SHOW").is_ok());
        before.assert_same(&Snapshot::of(&clones.gateway));
    }
}
