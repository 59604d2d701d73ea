//! Rules: restored, read, refused; the lock and the tools.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use stagenet::host::linux::BackendChoice;
use stagenet::host::{Backend, Host as _, HostError, Needs};
use stagenet::netfilter::{Family, Hook, Table};

use crate::lab::isolated;
use crate::{FENCE, UNFENCE, World, both, chain, host, look, name, sh};

#[test]
fn rules_are_restored_read_back_counted_and_taken_away() {
    isolated("tables::rules_are_restored_read_back_counted_and_taken_away", || {
        both(|world, backend| {
            sh("iptables-nft -t mangle -A FORWARD -j RETURN");
            if backend == BackendChoice::Legacy {
                sh("iptables-legacy -t mangle -A FORWARD -j RETURN");
            }
            let before = look();
            let mut host = host(backend);
            world.run(async {
                host.restore(Family::V4, FENCE).await.unwrap();
                for chains in [None, Some(BTreeSet::from([chain("FWD"), chain("FO-AABBCCDD")]))] {
                    let seen = host.read_table(Family::V4, Table::Mangle, chains.as_ref()).await.unwrap();
                    if chains.is_none() {
                        assert_eq!(seen.hooks[&Hook::Forward].jumps, [(1, chain("FWD").into())]);
                    }
                    assert_eq!(seen.chains["SNET-FWD"][0].as_ref().unwrap().0, "ba9876543210");
                    assert_eq!(seen.chains.len(), 2);
                }
                let absent = BTreeSet::from([chain("NOT-THERE")]);
                let seen = host.read_table(Family::V4, Table::Mangle, Some(&absent)).await.unwrap();
                assert!(seen.chains.is_empty() && seen.hooks.is_empty(), "{seen:?}");
            });
            // A new flow from inside to outside is dropped and counted.
            sh("echo 1 > /proc/sys/net/ipv4/ip_forward");
            world.inside.sh("ip route add default via 192.168.200.2");
            world.inside.try_sh("ping -c 2 -i 0.2 -W 1 192.168.100.9");
            let absent = chain("NOT-THERE");
            let asked = BTreeSet::from([chain("FWD"), chain("FO-AABBCCDD"), absent.clone()]);
            let counted = world.run(host.counters(Family::V4, Table::Mangle, &asked)).unwrap();
            let [dropped] = &counted[&chain("FO-AABBCCDD")][..] else {
                panic!("{counted:?}")
            };
            assert_eq!(
                (dropped.hash.0.as_str(), dropped.packets, dropped.bytes),
                ("0123456789ab", 2, 168),
                "two requests of 84 bytes"
            );
            assert_eq!(counted[&chain("FWD")][0].packets, 2);
            assert!(!counted.contains_key(&absent));
            let none = world.run(host.counters(Family::V6, Table::Nat, &asked)).unwrap();
            assert!(none.is_empty(), "{none:?}");
            sh("echo 0 > /proc/sys/net/ipv4/ip_forward");
            world.run(host.restore(Family::V4, UNFENCE)).unwrap();
            assert_eq!(look(), before);
            sh("iptables-nft -t mangle -F");
        });
    });
}

#[test]
fn reading_makes_no_tables() {
    isolated("tables::reading_makes_no_tables", || {
        both(|world, backend| {
            let mut host = host(backend);
            world.run(async {
                for table in [Table::Mangle, Table::Nat, Table::Filter] {
                    for family in [Family::V4, Family::V6] {
                        assert!(host.read_table(family, table, None).await.unwrap().chains.is_empty());
                        host.read_table(family, table, Some(&BTreeSet::from([chain("FWD")]))).await.unwrap();
                    }
                }
                let needs = Needs {
                    outside: BTreeSet::from([name("eth0")]),
                    ..Needs::default()
                };
                host.preflight(&needs).await.unwrap();
                let fence = BTreeSet::from([chain("FO-AABBCCDD")]);
                host.counters(Family::V6, Table::Mangle, &fence).await.unwrap();
            });
            assert_eq!(
                sh("cat /proc/net/ip_tables_names /proc/net/ip6_tables_names; iptables-nft-save; ip6tables-nft-save"),
                ""
            );
        });
    });
}

#[test]
fn a_refused_rule_is_named_and_nothing_of_its_table_is_changed() {
    isolated("tables::a_refused_rule_is_named_and_nothing_of_its_table_is_changed", || {
        both(|world, backend| {
            let mut host = host(backend);
            world.run(host.restore(Family::V4, FENCE)).unwrap();
            let before = look();
            for (rule, line) in [
                ("-A SNET-FWD -m nosuchmatch -j DROP", Some(3)),
                ("-A SNET-FWD -j SNET-NOT-THERE", Some(3)),
                ("-A SNET-FWD -d 300.1.1.1/32 -j DROP", Some(3)),
                // The kernel's own refusal: the legacy tool blames the COMMIT.
                ("-A SNET-FWD -j MASQUERADE", (backend == BackendChoice::Nft).then_some(3)),
            ] {
                let text = format!("*mangle\n:SNET-FWD - [0:0]\n{rule}\nCOMMIT\n");
                match world.run(host.restore(Family::V4, &text)) {
                    Err(HostError::RestoreRejected {
                        table,
                        line: at,
                        text,
                        said,
                    }) => {
                        assert_eq!((table.as_str(), at), ("mangle", line.unwrap_or(4)), "{rule}: {said}");
                        assert!(line.is_none() || text == rule, "{rule}: {text}");
                        assert!(!said.is_empty() && !said.contains('\n'), "{said}");
                    }
                    other => panic!("{rule}: {other:?}"),
                }
                assert_eq!(look(), before, "{rule}");
            }
            world.run(host.restore(Family::V4, UNFENCE)).unwrap();
        });
    });
}

#[test]
fn a_held_lock_is_told_with_its_holder_and_nothing_is_changed() {
    isolated("tables::a_held_lock_is_told_with_its_holder_and_nothing_is_changed", || {
        let world = World::new();
        let mut host = host(BackendChoice::Legacy);
        let mut holder = Command::new("flock").args(["/run/xtables.lock", "sleep", "60"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        match world.run(host.restore(Family::V4, FENCE)) {
            Err(HostError::LockHeld { holder: Some(holder), .. }) => assert!(holder.contains("(pid "), "{holder}"),
            other => panic!("{other:?}"),
        }
        let findings = world.run(host.preflight(&Needs::default())).unwrap();
        assert!(
            findings.iter().any(|f| f.reason == "LockHeld" && f.message.contains("(pid ")),
            "{findings:?}"
        );
        holder.kill().unwrap();
        holder.wait().unwrap();
        sh("pid=$(fuser /run/xtables.lock 2>/dev/null || true); [ -z \"$pid\" ] || kill $pid");
        world.run(host.restore(Family::V4, FENCE)).unwrap();
    });
}

#[test]
fn a_missing_tool_is_told_and_found_again_when_it_appears() {
    isolated("tables::a_missing_tool_is_told_and_found_again_when_it_appears", || {
        let world = World::new();
        let mut host = host(BackendChoice::Auto);
        // Files that cannot be run, laid over the tools in this world only.
        for tool in ["iptables-nft", "iptables-legacy"] {
            sh(&format!("mount --bind /dev/null $(readlink -f /usr/sbin/{tool})"));
        }
        let error = world.run(host.restore(Family::V4, FENCE)).unwrap_err();
        assert!(matches!(error, HostError::ToolMissing { .. }), "{error:?}");
        assert_eq!(host.backend(), None);
        let findings = world.run(host.preflight(&Needs::default())).unwrap();
        assert!(
            findings
                .iter()
                .any(|f| f.condition == "Backend" && !f.ok && f.reason == "ToolMissing"),
            "{findings:?}"
        );
        sh("umount $(readlink -f /usr/sbin/iptables-nft)");
        world.run(host.restore(Family::V4, FENCE)).unwrap();
        assert_eq!(host.backend(), Some(Backend::Nft));
    });
}
