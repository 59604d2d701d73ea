//! Whatever is wrong is named where it is wrong, and everything else keeps working.

#![allow(clippy::unwrap_used, clippy::panic, clippy::format_collect)]

#[macro_use]
mod lab;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use lab::{Backend, Manifests, Ran, Seed, Snapshot, VIP, VIP_80, isolated, mapping, network, seconds, stagenet, wait_until};

/// A file that cannot be used, and words of the answer.
struct Case {
    what: &'static str,
    file: String,
    words: &'static [&'static str],
}

fn claim(more: &str) -> String {
    mapping("bad", "segment-b", "192.168.100.5", "192.168.200.4", more)
}

fn cases() -> Vec<Case> {
    let case = |what, file, words| Case { what, file, words };
    vec![
        case(
            "text that is not YAML",
            "spec: [unclosed\n".into(),
            &["bad.yaml", "not usable YAML", "line 1"],
        ),
        case(
            "an unknown kind",
            claim("").replace("NatMapping", "NatMaping"),
            &["bad.yaml", "NatMaping"],
        ),
        case("an unknown field", claim("prots: []"), &["bad", "prots"]),
        case(
            "host bits in a prefix",
            network("bad", "192.168.101.1/24", "192.168.201.0/24", ""),
            &["bad", "spec.outside.addresses", "host bits"],
        ),
        case(
            "IPv6 where IPv4 is meant",
            claim("").replace("192.168.100.5", "2001:db8::5"),
            &["default/bad", "spec.virtual.address", "IPv4"],
        ),
        case(
            "an overlapping claim",
            mapping("zz-bad", "segment-b", VIP, "192.168.200.4", ""),
            &["zz-bad", "default/vm03"],
        ),
        case(
            "port 0",
            claim("ports:\n- {protocol: TCP, port: 0}"),
            &["bad", "port", "spec.ports[0].port: must be at least 1, is 0"],
        ),
        case(
            "a reversed range",
            claim("ports:\n- {protocol: TCP, port: 90, endPort: 80}"),
            &["bad", "endPort must be at least port"],
        ),
        case(
            "a port that is no port",
            claim("ports:\n- {protocol: TCP, port: 70000}"),
            &["bad", "port"],
        ),
        case(
            "a name of 300 characters",
            claim("").replace("name: bad", &format!("name: {}", "n".repeat(300))),
            &["nnnn", "253"],
        ),
        case(
            "a virtual address outside the pool",
            claim("").replace("192.168.100.5", "192.168.99.5"),
            &["bad", "192.168.99.5"],
        ),
        case(
            "a target outside",
            claim("").replace("192.168.200.4", "192.168.100.9"),
            &["bad", "192.168.100.9"],
        ),
        case(
            "an address that the gateway owns",
            claim("").replace("192.168.100.5", "192.168.100.2"),
            &["bad", "192.168.100.2"],
        ),
        case(
            "a network that does not exist",
            claim("").replace("segment-b", "segment-z"),
            &["bad", "segment-z"],
        ),
    ]
}

/// Each wrong file beside the seed's: one answer with what is wrong, exit status 2, and the seed's mapping works.
#[test]
fn each_mistake_is_named_and_harms_nothing_else() {
    isolated("each_mistake_is_named_and_harms_nothing_else", || {
        let seed = Seed::new(Backend::Nft);
        let manifests = Manifests::seed();
        for case in cases() {
            manifests.write("bad.yaml", &case.file);
            let ran = seed.once(&manifests);
            let what = case.what;
            assert_eq!(ran.code, 2, "{what}: {}", ran.said());
            assert!(!ran.said().contains("panicked"), "{what}: {}", ran.said());
            for word in case.words {
                assert!(
                    ran.said().contains(word),
                    "{what}: nothing of {word:?} in the answer:\n{}",
                    ran.said()
                );
            }
            assert_eq!(
                seed.vm01.tcp(VIP_80).unwrap_or_else(|| panic!("{what}: the good mapping")).server,
                "vm03"
            );
        }
        manifests.remove("bad.yaml");
        assert_eq!(seed.once(&manifests).code, 0);
    });
}

/// A running agent goes on through mistakes: what a broken file said before stays in force, and mending it is enough.
#[test]
fn a_file_that_breaks_keeps_its_last_good_state() {
    isolated("a_file_that_breaks_keeps_its_last_good_state", || {
        let seed = Seed::new(Backend::Nft);
        let manifests = Manifests::seed();
        let mut agent = seed.agent(&manifests, &[]);
        seed.wait_serves("vm03");
        let good = Snapshot::of(&seed.vm02);

        manifests.write("mapping.yaml", "apiVersion: [");
        agent.wait_log(seconds(20), &["mapping.yaml"]);
        good.assert_same(&Snapshot::of(&seed.vm02));
        for case in cases() {
            manifests.write("bad.yaml", &case.file);
            std::thread::sleep(std::time::Duration::from_millis(150));
        }
        assert!(seed.vm01.tcp(VIP_80).is_some());
        agent.assert_alive();

        manifests.remove("bad.yaml");
        manifests.write("mapping.yaml", &mapping("vm03", "segment-b", VIP, "192.168.200.4", ""));
        seed.wait_serves("vm04");
        agent.assert_alive();
    });
}

/// The agent is started anew while a file is broken: what the file said last is in force, and what is wrong is said.
#[test]
fn an_agent_started_on_a_broken_file_takes_nothing_away() {
    isolated("an_agent_started_on_a_broken_file_takes_nothing_away", || {
        let seed = Seed::new(Backend::Nft);
        let manifests = Manifests::seed();
        let agent = seed.agent(&manifests, &[]);
        seed.wait_serves("vm03");
        agent.stop("TERM");
        let good = Snapshot::of(&seed.vm02);
        manifests.write("mapping.yaml", "apiVersion: [");

        let ran = seed.once(&manifests);
        assert_eq!(ran.code, 2, "{}", ran.said());
        for words in ["mapping.yaml", "the last good version of", "NatMapping default/vm03"] {
            assert!(ran.said().contains(words), "nothing of {words:?} in:\n{}", ran.said());
        }
        good.assert_same(&Snapshot::of(&seed.vm02));

        let mut agent = seed.agent(&manifests, &[]);
        agent.wait_status(seconds(20), &["mapping.yaml", "stays in force", "vm03"]);
        good.assert_same(&Snapshot::of(&seed.vm02));
        seed.iptables("-t nat -F SNET-DNAT");
        seed.wait_serves("vm03");
        agent.stop("TERM");

        let cleaned = stagenet(&seed.vm02, &["cleanup"]);
        assert!(cleaned.said().contains("last good version of"), "{}", cleaned.said());
        assert!(!fs::exists("/run/stagenet/last-good").unwrap());
    });
}

/// A directory that is not there, not yet or no longer, takes nothing away; neither does the empty directory below an unmounted volume.
#[test]
fn a_directory_that_is_missing_takes_nothing_away() {
    isolated("a_directory_that_is_missing_takes_nothing_away", || {
        let seed = Seed::new(Backend::Nft);
        let volume = Manifests::empty("volume");
        let (path, sh) = (volume.path().to_owned(), |line: &str| seed.vm02.sh(line));
        let mount = |on: bool| {
            if on {
                sh(&format!("mount -t tmpfs none {path}"));
            } else {
                sh(&format!("umount -l {path}"));
            }
        };
        let fill = || {
            volume.write_in_place("network.yaml", &network("segment-b", "192.168.100.0/24", "192.168.200.0/24", ""));
            volume.write_in_place("vm03.yaml", &mapping("vm03", "segment-b", VIP, "192.168.200.3", ""));
        };
        mount(true);
        fill();
        seed.converge(&volume);
        let good = Snapshot::of(&seed.vm02);

        let parent = Manifests::empty("parent");
        fs::create_dir(format!("{}/below", parent.path())).unwrap();
        parent.write_in_place("below/vm03.yaml", &mapping("vm03", "segment-b", VIP, "192.168.200.3", ""));
        let ran = seed.once(&parent);
        assert_eq!(ran.code, 2, "{}", ran.said());
        assert!(ran.said().contains("sub-directories are not read"), "{}", ran.said());
        good.assert_same(&Snapshot::of(&seed.vm02));

        mount(false);
        let ran = seed.once(&volume);
        assert_eq!(ran.code, 2, "{}", ran.said());
        assert!(
            ran.said().contains("unmounted") && ran.said().contains("nothing was changed"),
            "{}",
            ran.said()
        );
        fs::remove_dir(&path).unwrap();
        let ran = seed.once(&volume);
        assert_eq!(ran.code, 2, "{}", ran.said());
        assert!(ran.said().contains(&path) && ran.said().contains("No such file"), "{}", ran.said());
        good.assert_same(&Snapshot::of(&seed.vm02));

        let mut agent = seed.agent(&volume, &[]);
        agent.wait_log(seconds(20), &["cannot be read", "stays in force"]);
        agent.wait_status(seconds(20), &[&path, "stays in force", "vm03"]);
        good.assert_same(&Snapshot::of(&seed.vm02));
        sh("iptables-nft -t nat -F SNET-DNAT");
        seed.wait_serves("vm03");

        fs::create_dir(&path).unwrap();
        mount(true);
        fill();
        agent.wait_log(seconds(20), &["can be read again"]);
        volume.write_in_place("vm03.yaml", &mapping("vm03", "segment-b", VIP, "192.168.200.4", ""));
        seed.wait_serves("vm04");
        agent.assert_alive();
    });
}

/// Runs the agent once with a PATH of its own.
fn once_with_path(seed: &Seed, manifests: &Manifests, path: &str) -> Ran {
    let backend = seed.backend.name();
    let line = format!(
        "PATH={path} exec {} agent --manifests {} --node vm02 --backend {backend} --once",
        lab::BINARY,
        manifests.path()
    );
    seed.vm02.try_sh(&line)
}

#[test]
fn a_missing_iptables_tool_is_named() {
    isolated("a_missing_iptables_tool_is_named", || {
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
                lab::BINARY,
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
    isolated("a_rule_that_the_legacy_kernel_refuses_is_found_among_others", || {
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
    isolated("an_interface_that_does_not_exist_stops_only_its_own_network", || {
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
