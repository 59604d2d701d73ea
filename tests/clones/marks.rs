//! Firewall marks: ours are in our bits only, and what the node itself says to a clone's machines follows them or is not said.

use super::apart::{strangers_to_each_other, two};
use super::traffic::{hairpin, in_at_once, out_at_once};
use crate::lab::clones::{GATEWAY_MAC, mac};
use crate::lab::{Clones, Snapshot, Steady, Witness, seconds, wait_until};

clones! {
    /// Others mark packets and connections too, in their own bits: kube-proxy so that packets are masqueraded, others to remember a choice.
    fn marks_of_others_survive(shape) in [nft_node, legacy_router] {
        let clones = Clones::new(shape, 2);
        for rule in [
            "raw -A PREROUTING -j MARK --set-xmark 0x4000/0x4000",
            "mangle -A PREROUTING -j CONNMARK --set-xmark 0x100000/0x100000",
            // What is counted here has lost a mark, or gained one that is neither theirs nor within 0xff.
            "mangle -A POSTROUTING -o br+ -d 10.0.0.0/24 -m mark ! --mark 0x4000/0xffffff00 -j RETURN",
            "mangle -A POSTROUTING -o br+ -d 10.0.0.0/24 -m connmark ! --mark 0x100000/0x100000 -j RETURN",
            // Their packets for nobody of ours.
            "nat -A POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
        ] {
            let (table, rule) = rule.split_once(' ').unwrap();
            clones.iptables(&format!("-t {table} {rule}"));
        }
        for k in clones.all() {
            clones.write(k, false, "Allow");
        }
        clones.converge();
        let mut open: Vec<_> = clones.all().map(|k| clones.client.tcp(&format!("{}:80", clones.vip(k, "a"))).unwrap()).collect();
        for k in clones.all() {
            let call = clones.vm(k, "a").tcp("192.168.100.1:80").unwrap();
            assert_eq!(call.seen_as.ip().to_string(), clones.vip(k, "a"));
            open.push(call);
        }
        assert!(open.iter_mut().all(crate::lab::Conversation::works));
        let counted = clones.iptables("-t mangle -S POSTROUTING -v");
        let lost: Vec<_> = counted.lines().filter(|l| l.contains("! --mark")).collect();
        assert!(lost.len() == 2 && lost.iter().all(|l| l.contains("-c 0 0 ")), "marks of others were lost, or foreign bits touched:\n{counted}");
        let marks = clones.gateway.sh("conntrack -L -p tcp 2>/dev/null");
        let theirs = |line: &str| {
            let mark = line.split("mark=").nth(1).and_then(|m| m.split(' ').next()?.parse::<u32>().ok());
            mark.is_some_and(|m| m & 0x10_0000 != 0)
        };
        assert!(marks.lines().count() >= 4 && marks.lines().all(theirs), "{marks}");
    }

    /// The administrator chooses other bits, and others again: with each the clones work and stay apart, open connections go on, and nothing of the bits before
    /// is left.
    fn other_bits_do_as_well_and_leave_nothing_behind(shape) in [nft_node, legacy_router] {
        let clones = two(shape);
        let before = Snapshot::of(&clones.gateway);
        for k in clones.all() {
            clones.write(k, false, "Allow");
        }
        let words = |mask: &str, first: &str| [format!("fwmark {first}/{mask}"), format!("--set-xmark {first}/{mask}")];
        let choices: [(&[&str], [String; 2]); 3] = [
            (&["--fwmark-mask", "0xff0000", "--allow-mark-clash"], words("0xff0000", "0x10000")),
            (&["--fwmark-mask", "0x3f000000", "--fwmark-base", "0x5000000", "--allow-mark-clash"], words("0x3f000000", "0x5000000")),
            (&[], words("0xff", "0x1")),
        ];
        let mut steady: Vec<Steady> = Vec::new();
        for (n, (chosen, own)) in choices.iter().enumerate() {
            let agent = clones.agent(chosen);
            let others = ["/0xff0000", "/0x3f000000", "/0xff"];
            wait_until(seconds(30), &format!("the node to have the marks of {chosen:?} and no others"), || {
                let text = Snapshot::of(&clones.gateway).text().to_owned();
                let has = |mask: &str| text.split([' ', '\n']).any(|word| word.ends_with(mask));
                own.iter().all(|words| text.contains(words.as_str())) && (0..others.len()).all(|other| has(others[other]) == (other == n))
            });
            clones.all().for_each(|k| clones.wait_serves(k));
            in_at_once(&clones);
            out_at_once(&clones);
            if n == 0 {
                hairpin(&clones);
                strangers_to_each_other(&clones);
            }
            let after = format!("with {chosen:?}");
            steady.iter().for_each(|steady| steady.goes_on(&after));
            if steady.is_empty() {
                steady.extend(clones.all().map(|k| Steady::connect(&clones.client, &format!("{}:80", clones.vip(k, "a")))));
                steady.extend(clones.all().map(|k| Steady::connect(&clones.vm(k, "a"), "192.168.100.1:80")));
            }
            assert_eq!(agent.stop("TERM"), Some(0));
        }
        drop(steady);
        clones.cleanup();
        before.assert_same(&Snapshot::of(&clones.gateway));
    }

    /// What the node says to a machine of a clone, such as that a packet has travelled too far, reaches that machine where the kernel reflects marks, and is
    /// never sent elsewhere: main's route for the address may lead to production.
    fn errors_of_the_node_reach_the_right_machine_or_nobody(shape) in [nft_node, legacy_node, nft_shared, legacy_router] {
        let clones = Clones::new(shape, 2);
        if !shape.default_route {
            clones.gateway.sh("ip route add default via 192.168.100.254");
        }
        let mut outside = Witness::on(&clones.segment, "br0", &format!("ether src {GATEWAY_MAC} and net 10.0.0.0/24"));
        // The control: an open router sends it to production.
        clones.gateway.set("ipv4/ip_forward", "1");
        let found = clones.gateway.get("ipv4/conf/all/rp_filter");
        for interface in ["all", "br2"] {
            clones.gateway.set(&format!("ipv4/conf/{interface}/rp_filter"), "0");
        }
        // The administrator's own route would lead into one of the clones.
        clones.gateway.sh("ip route add 10.0.0.3/32 via 192.168.100.254");
        clones.vm(2, "a").sh(&format!("ip neigh replace 10.0.0.1 lladdr {} dev eth0", mac(2)));
        wait_until(seconds(20), "the witness to see what a gateway without us tells production", || {
            clones.vm(2, "a").try_sh("ping -n -c 1 -W 1 -t 1 192.168.100.1");
            outside.seen().iter().any(|l| l.contains("exceeded"))
        });
        clones.gateway.sh("ip route del 10.0.0.3/32");
        clones.vm(2, "a").sh("ip neigh del 10.0.0.1 dev eth0");
        for interface in ["all", "br2"] {
            clones.gateway.set(&format!("ipv4/conf/{interface}/rp_filter"), &found);
        }
        clones.gateway.set("ipv4/ip_forward", "0");
        clones.gateway.forget_flows();
        for k in clones.all() {
            clones.write(k, false, "Allow");
        }
        clones.converge();
        std::thread::sleep(std::time::Duration::from_millis(300));
        outside.forget();
        clones.gateway.sh("ip link set eth0 mtu 1300");
        for k in clones.all() {
            let other = 3 - k;
            let wrong = Witness::on(&clones.gateway, &format!("br{other}"), &format!("ether src {} and icmp", mac(other)));
            let vm = clones.vm(k, "a");
            let far = vm.try_sh("ping -n -c 1 -W 1 -t 1 192.168.100.1").stdout;
            let big = vm.try_sh("ping -n -c 1 -W 1 -M do -s 1400 192.168.100.1").said();
            let echo = if shape.reflect { vm.echoes("10.0.0.1") } else { vm.ping("10.0.0.1") };
            assert_eq!(far.contains("From 10.0.0.") && far.contains("exceeded"), shape.reflect, "{far}");
            assert_eq!(big.to_lowercase().contains("frag needed"), shape.reflect, "{big}");
            assert_eq!(echo, shape.reflect, "the gateway's echo inside clone {k}");
            wrong.saw_nothing("in the other clone");
        }
        outside.end();
        outside.saw_nothing("outside");
    }

    /// A client learns the size of packets that a clone takes, under the virtual address that it dialled.
    fn clients_learn_the_mtu_of_a_clone(shape) in [nft_node, legacy_router] {
        let clones = Clones::new(shape, 2);
        for k in clones.all() {
            clones.write(k, false, "Deny");
        }
        clones.converge();
        clones.gateway.sh("ip link set br2 mtu 1300");
        let answer = |k: usize| clones.client.try_sh(&format!("ping -n -c 1 -W 1 -M do -s 1400 {}", clones.vip(k, "a"))).said().to_lowercase();
        assert!(answer(2).contains("frag needed") && answer(2).contains("1300"), "{}", answer(2));
        assert!(answer(1).contains("1 received"), "{}", answer(1));
        let learned = clones.client.sh(&format!("ip route get {}", clones.vip(2, "a")));
        assert!(learned.contains("mtu 1300"), "{learned}");
    }
}
