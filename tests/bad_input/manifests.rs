//! Manifests that say something wrong, files that break, directories that are missing.

use std::fs;

use crate::lab::{Backend, Manifests, Seed, Snapshot, VIP, VIP_80, isolated, mapping, network, seconds, stagenet};

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
            "IPv6 that leads to IPv4",
            claim("").replace("192.168.100.5", "2001:db8::5"),
            &["default/bad", "target.address must be of the family of virtual.address"],
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
    isolated("manifests::each_mistake_is_named_and_harms_nothing_else", || {
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
    isolated("manifests::a_file_that_breaks_keeps_its_last_good_state", || {
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
    isolated("manifests::an_agent_started_on_a_broken_file_takes_nothing_away", || {
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
    isolated("manifests::a_directory_that_is_missing_takes_nothing_away", || {
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
