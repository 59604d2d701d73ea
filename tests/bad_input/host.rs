//! What a host lacks, and what its tools and kernel refuse.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::lab::{Backend, Manifests, Ran, Seed, Snapshot, VIP_80, isolated, mapping, network, seconds, wait_until};

/// Runs the agent once with a PATH of its own.
fn once_with_path(seed: &Seed, manifests: &Manifests, path: &str) -> Ran {
    let backend = seed.backend.name();
    let line = format!(
        "PATH={path} exec {} agent --manifests {} --node vm02 --backend {backend} --once",
        crate::lab::BINARY,
        manifests.path()
    );
    seed.vm02.try_sh(&line)
}

#[test]
fn a_missing_iptables_tool_is_named() {
    isolated("host::a_missing_iptables_tool_is_named", || {
        let seed = Seed::new(Backend::Nft);
        let manifests = Manifests::seed();
        fs::create_dir("/run/lab/empty").unwrap();
        let before = Snapshot::of(&seed.vm02);
        let ran = once_with_path(&seed, &manifests, "/run/lab/empty");
        assert_eq!(ran.code, 1, "{}", ran.said());
        assert!(ran.said().contains("iptables-nft") && ran.said().contains("PATH"), "{}", ran.said());
        before.assert_same(&Snapshot::of(&seed.vm02));

        // It goes missing later: what stands goes on.
        seed.converge(&manifests);
        let good = Snapshot::of(&seed.vm02);
        manifests.mapping("later", "192.168.100.4", "192.168.200.4", "");
        let ran = once_with_path(&seed, &manifests, "/run/lab/empty");
        assert_eq!(ran.code, 1, "{}", ran.said());
        assert_eq!(seed.vm01.tcp(VIP_80).expect("what stood").server, "vm03");
        good.assert_same(&Snapshot::of(&seed.vm02));
    });
}

labs! {
    fn without_net_admin_nothing_is_half_done(seed) {
        let manifests = Manifests::seed();
        let backend = seed.backend.name();
        let fails_and_changes_nothing = || {
            let before = Snapshot::of(&seed.vm02);
            let ran = seed.vm02.try_sh(&format!(
                "exec setpriv --bounding-set -net_admin,-net_raw --inh-caps -net_admin,-net_raw timeout 60 {} agent --manifests {} --node vm02 --backend {backend} --once",
                crate::lab::BINARY,
                manifests.path()
            ));
            assert_eq!(ran.code, 1, "{}", ran.said());
            assert!(ran.said().contains("NET_ADMIN"), "{}", ran.said());
            before.assert_same(&Snapshot::of(&seed.vm02));
        };
        fails_and_changes_nothing();
        seed.converge(&manifests);
        manifests.mapping("later", "192.168.100.4", "192.168.200.4", "");
        fails_and_changes_nothing();
        assert_eq!(seed.vm01.tcp(VIP_80).expect("what stood").server, "vm03");
    }

    /// A restore that the kernel refuses: its line is named, the claim that it came from is left out, and all others are served.
    fn a_rule_that_the_kernel_refuses_is_named_and_left_out(seed) {
        let manifests = Manifests::seed();
        seed.converge(&manifests);
        let path = refusing(seed.backend, "^-A.*192.168.100.66");
        manifests.mapping("poison", "192.168.100.66", "192.168.200.66", "");
        manifests.mapping("later", "192.168.100.4", "192.168.200.4", "");
        let ran = once_with_path(seed, &manifests, &path);
        assert_eq!(ran.code, 2, "{}", ran.said());
        assert!(ran.said().contains("poison") && ran.said().contains("192.168.100.66"), "{}", ran.said());
        assert!(ran.said().contains("line "), "the line is named: {}", ran.said());
        assert_eq!(seed.vm01.tcp(VIP_80).expect("what stood").server, "vm03");
        assert_eq!(seed.vm01.tcp("192.168.100.4:80").expect("what came with it").server, "vm04");
        assert!(!seed.rules().contains("192.168.100.66"), "nothing of it is there");
    }

    /// A kernel that refuses the whole of every change, as a full or broken one does: the last good state keeps serving.
    fn a_kernel_that_refuses_all_leaves_the_last_good_state(seed) {
        let manifests = Manifests::seed();
        seed.converge(&manifests);
        let good = Snapshot::of(&seed.vm02);
        let path = refusing(seed.backend, "^COMMIT");
        manifests.mapping("later", "192.168.100.4", "192.168.200.4", "");
        let ran = once_with_path(seed, &manifests, &path);
        assert_eq!(ran.code, 1, "{}", ran.said());
        assert!(seed.vm01.tcp(VIP_80).expect("what stood").works());
        assert!(seed.vm03.tcp_is_dropped("192.168.100.1:80"));
        let now = Snapshot::of(&seed.vm02);
        let tables = |s: &Snapshot| s.text().lines().take_while(|l| !l.starts_with("# ip ")).map(|l| format!("{l}\n")).collect::<String>();
        assert_eq!(tables(&good), tables(&now), "nothing half-applied");
    }
}

/// The legacy tools hand over a whole table, and when the kernel refuses it they name nothing but the COMMIT. The rule is found by trying.
#[test]
fn a_rule_that_the_legacy_kernel_refuses_is_found_among_others() {
    isolated("host::a_rule_that_the_legacy_kernel_refuses_is_found_among_others", || {
        let seed = Seed::new(Backend::Legacy);
        let manifests = Manifests::seed();
        seed.converge(&manifests);
        for n in 60..80 {
            let name = if n == 66 { "poison".to_owned() } else { format!("vm{n}") };
            manifests.mapping(&name, &format!("192.168.100.{n}"), &format!("192.168.200.{n}"), "");
        }
        manifests.mapping("later", "192.168.100.4", "192.168.200.4", "");
        // To the tool this is fine; the kernel has no TCP ports to match where the protocol is not TCP.
        let path = rewriting(seed.backend, "s|-d 192.168.100.66/32|& -m tcp --dport 80|");
        let ran = once_with_path(&seed, &manifests, &path);
        assert_eq!(ran.code, 2, "{}", ran.said());
        let said = ran.said();
        let line = said
            .lines()
            .find(|l| l.starts_with("default/poison: "))
            .unwrap_or_else(|| panic!("{said}"));
        assert!(
            line.contains("the kernel refused") && line.contains("-d 192.168.100.66/32"),
            "{line}"
        );
        assert_eq!(seed.vm01.tcp(VIP_80).expect("what stood").server, "vm03");
        assert_eq!(seed.vm01.tcp("192.168.100.4:80").expect("what came with it").server, "vm04");
        let rules = seed.rules();
        assert!(
            !rules.contains("192.168.100.66") && !rules.contains("SNET-TRY"),
            "nothing of it is there:\n{rules}"
        );
        assert_eq!(seed.once(&manifests).code, 0, "a kernel that takes it gets it");
        assert!(seed.rules().contains("192.168.100.66"));
    });
}

/// A PATH on which the restore tool is given its input changed by a sed script.
fn rewriting(backend: Backend, script: &str) -> String {
    let dir = "/run/lab/rewriting";
    fs::create_dir_all(dir).unwrap();
    let name = format!("{}-restore", backend.iptables());
    tool(dir, &name, &format!("sed -e '{script}' | {name} \"$@\""));
    format!("{dir}:/usr/sbin:/sbin:/usr/bin:/bin")
}

/// Puts a shell script in the place of a tool.
fn tool(dir: &str, name: &str, script: &str) {
    fs::write(
        format!("{dir}/{name}"),
        format!("#!/bin/sh\nPATH=/usr/sbin:/sbin:/usr/bin:/bin\n{script}\n"),
    )
    .unwrap();
    fs::set_permissions(format!("{dir}/{name}"), fs::Permissions::from_mode(0o755)).unwrap();
}

/// A PATH on which the restore tool refuses input with a line like `pattern`, as the kernel does with a rule it lacks a module for:
/// the number of the line is named, and nothing is changed.
fn refusing(backend: Backend, pattern: &str) -> String {
    let dir = "/run/lab/refusing";
    fs::create_dir_all(dir).unwrap();
    let name = format!("{}-restore", backend.iptables());
    tool(
        dir,
        &name,
        &format!(
            "input=$(mktemp -p /run/lab)\ncat >\"$input\"\nline=$(grep -n -m 1 -e '{pattern}' \"$input\" | cut -d : -f 1)\n\
             if [ -n \"$line\" ]; then echo \"{name} v1.8.9: line $line failed\" >&2; exit 1; fi\nexec {name} \"$@\" <\"$input\""
        ),
    );
    format!("{dir}:/usr/sbin:/sbin:/usr/bin:/bin")
}

/// An interface that nobody has, in one network, while another network is served.
#[test]
fn an_interface_that_does_not_exist_stops_only_its_own_network() {
    isolated("host::an_interface_that_does_not_exist_stops_only_its_own_network", || {
        let seed = Seed::new(Backend::Nft);
        let manifests = Manifests::seed();
        manifests.write(
            "bad.yaml",
            &network("bad", "192.168.101.0/24", "192.168.201.0/24", "").replace("eth1", "eth9"),
        );
        manifests.write("bad-mapping.yaml", &mapping("lost", "bad", "192.168.101.3", "192.168.201.3", ""));
        let ran = seed.once(&manifests);
        assert_eq!(ran.code, 2, "{}", ran.said());
        assert!(
            ran.said().contains("InterfaceMissing") && ran.said().contains("eth9"),
            "{}",
            ran.said()
        );
        wait_until(seconds(5), "the other network", || seed.vm01.tcp(VIP_80).is_some());
    });
}
