//! The command line: help, plans from files, what is said about bad input, exit codes. Nothing here needs a kernel or privileges.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use assert_cmd::Command;

fn stagenet(args: &[&str]) -> (i32, String, String) {
    stagenet_reads("", args)
}

/// The same, with something on standard input.
fn stagenet_reads(input: &str, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::cargo_bin("stagenet").unwrap();
    for name in [
        "NODE_NAME",
        "POD_NAMESPACE",
        "POD_NAME",
        "STAGENET_BACKEND",
        "STAGENET_LOG_LEVEL",
        "STAGENET_LOG_FORMAT",
        "KUBECONFIG",
    ] {
        command.env_remove(name);
    }
    command.env("HOME", "/nonexistent").env("COLUMNS", "100");
    let output = command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(args)
        .write_stdin(input)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn help_says_what_it_does_and_shows_examples() {
    for (command, more) in [
        ("agent", "everything stays in force"),
        ("controller", "Several replicas"),
        ("plan", "without privileges"),
        ("cleanup", "Stop the agent first"),
    ] {
        let (code, out, _) = stagenet(&[command, "--help"]);
        assert_eq!(code, 0);
        assert!(out.contains(more), "the long text: {out}");
        let short = stagenet(&[command, "-h"]).1;
        assert!(!short.contains(more) && short.lines().count() < out.lines().count(), "{short}");
        assert!(out.contains("Examples:") && out.contains(&format!("stagenet {command}")), "{out}");
        for line in out.lines().filter(|l| l.trim_start().starts_with("--") && l.contains('<')) {
            assert!(line.contains('>'), "{line}");
        }
    }
    let (code, out, _) = stagenet(&["--help"]);
    assert_eq!(code, 0);
    for word in ["agent", "controller", "plan", "cleanup", "crd", "Exit status"] {
        assert!(out.contains(word), "{word} is not in:\n{out}");
    }
    assert_eq!(stagenet(&["--version"]).1.trim(), format!("stagenet {}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn crd_prints_what_is_committed() {
    let (code, out, _) = stagenet(&["crd"]);
    assert_eq!(code, 0);
    for kind in ["GatewayNode", "NatMapping", "StagingNetwork"] {
        assert!(out.contains(&format!("kind: {kind}")), "{kind}");
    }
}

/// The exact input that programs the seed experiment.
#[test]
fn the_seeds_plan_is_golden() {
    let (code, out, err) = stagenet(&["plan", "-f", "examples/seed", "--node", "vm02", "-o", "restore"]);
    assert_eq!((code, err.as_str()), (0, ""));
    let (_, v6, _) = stagenet(&["plan", "-f", "examples/seed", "--node", "vm02", "-o", "restore", "--family", "ipv6"]);
    for (path, text) in [("tests/golden/seed.restore", &out), ("tests/golden/seed.restore6", &v6)] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, text).unwrap();
        }
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            *text,
            "run UPDATE=1 cargo test --test cli if this is wanted"
        );
    }
}

#[test]
fn text_and_json_name_what_is_planned_and_on_what_trust() {
    let (code, out, _) = stagenet(&["plan", "-f", "examples/seed", "--node", "vm02"]);
    assert_eq!(code, 0);
    for part in [
        "taken on trust",
        "eth0, eth1",
        "default/vm03",
        "192.168.100.3",
        "ip neigh add proxy 192.168.100.3 dev eth0",
        "-A SNET-DNAT",
    ] {
        assert!(out.contains(part), "{part} is not in:\n{out}");
    }
    let given = ["--interface", "eth0=192.168.100.2/24", "--interface", "eth1=192.168.200.2/24"];
    let (code, out, _) = stagenet(&[&["plan", "-f", "examples/seed", "--node", "vm02", "-o", "json"], &given[..]].concat());
    assert_eq!(code, 0);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["mappings"]["default/vm03"]["programmed"], true);
    assert_eq!(json["interfacesTakenOnTrust"], serde_json::json!([]));
    assert_eq!(json["proxyNeighbours"][0]["address"], "192.168.100.3");
    assert!(json["iptablesRestore"].as_str().unwrap().contains("*nat"));
}

#[test]
fn a_node_that_owns_the_address_is_told_apart() {
    let interfaces = ["--interface", "eth0=192.168.100.3/24", "--interface", "eth1=192.168.200.2/24"];
    let (code, out, _) = stagenet(&[&["plan", "-f", "examples/seed", "--node", "vm02"], &interfaces[..]].concat());
    assert_eq!(code, 2);
    assert!(out.contains("AddressOwnedByNode"), "{out}");
    assert!(!out.contains("-A SNET-DNAT -d"), "{out}");
}

const NETWORK: &str = "apiVersion: stagenet.dev/v1alpha1\nkind: StagingNetwork\nmetadata: {name: net}\nspec:\n  gateway: {nodeSelector: {}}\n  \
    outside: {interface: eth0, addresses: [192.168.100.0/24]}\n  inside: {interface: eth1, addresses: [192.168.200.0/24]}\n";

fn claim(name: &str, from: &str, to: &str, more: &str) -> String {
    format!(
        "---\napiVersion: stagenet.dev/v1alpha1\nkind: NatMapping\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  networkRef: {{name: net}}\n  \
        virtual: {{address: {from}}}\n  target: {{address: {to}}}\n{more}"
    )
}

#[test]
fn a_plan_is_made_of_standard_input() {
    let seed: String = ["network.yaml", "mapping.yaml"]
        .map(|name| format!("---\n{}", std::fs::read_to_string(format!("examples/seed/{name}")).unwrap()))
        .concat();
    let read = stagenet_reads(&seed, &["plan", "-f", "-", "--node", "vm02", "-o", "restore"]);
    assert_eq!(read, stagenet(&["plan", "-f", "examples/seed", "--node", "vm02", "-o", "restore"]));
    assert_eq!(read.0, 0);
    // Beside a file, and with a mistake: that is named where it is.
    let vm04 = claim("vm04", "192.168.100.4", "192.168.200.4", "prots: []\n").replace("name: net}", "name: segment-b}");
    let (code, out, err) = stagenet_reads(&vm04, &["plan", "-f", "examples/seed", "-f", "-", "--node", "vm02"]);
    assert_eq!(code, 2, "{out}{err}");
    assert!(out.contains("default/vm03"), "{out}");
    assert!(err.contains("standard input") && err.contains("prots"), "{err}");
}

/// What an example says it does is planned in full, in every family that it is of. Where a machine is that is named no file says.
#[test]
fn every_example_is_planned_whole() {
    let mut names: Vec<_> = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(names.len() >= 6, "{names:?}");
    for name in names {
        let (code, out, err) = stagenet(&["plan", "-f", &format!("examples/{name}"), "--node", "vm02", "-o", "json"]);
        if name == "kubevirt" {
            assert!(
                code == 2 && out.contains("must not be used without a cluster"),
                "{name}: {out}{err}"
            );
            continue;
        }
        assert_eq!((code, err.as_str()), (0, ""), "{name}");
        let plan: serde_json::Value = serde_json::from_str(&out).unwrap();
        let mappings = plan["mappings"].as_object().unwrap();
        assert!(!mappings.is_empty(), "{name}");
        for (mapping, state) in mappings {
            assert_eq!(state["programmed"], true, "{name}: {mapping}: {state}");
        }
    }
}

/// Bad input gets a clear answer, and the good claim beside it is programmed all the same.
#[test]
fn bad_input_is_named_and_harms_nobody_else() {
    let bad = |from: &str, to: &str, more: &str| claim("bad", from, to, more);
    let cases: Vec<(&str, String, &[&str])> = vec![
        ("unparsable", "---\nspec: [unclosed\n".to_owned(), &["bad.yaml"]),
        (
            "unknown field",
            bad("192.168.100.4", "192.168.200.4", "  colour: red\n"),
            &["bad", "colour"],
        ),
        (
            "unknown kind",
            bad("192.168.100.4", "192.168.200.4", "").replace("NatMapping", "NatMaping"),
            &["NatMaping", "NatMapping"],
        ),
        (
            "IPv6 to IPv4",
            bad("'2001:db8::4'", "192.168.200.4", ""),
            &["bad", "family of virtual.address"],
        ),
        (
            "port 0",
            bad("192.168.100.4", "192.168.200.4", "  ports: [{protocol: TCP, port: 0}]\n"),
            &["bad", "port"],
        ),
        (
            "reversed range",
            bad(
                "192.168.100.4",
                "192.168.200.4",
                "  ports: [{protocol: TCP, port: 90, endPort: 80}]\n",
            ),
            &["bad", "endPort"],
        ),
        (
            "long name",
            bad("192.168.100.4", "192.168.200.4", "").replace("name: bad", &format!("name: {}", "b".repeat(300))),
            &["name"],
        ),
        (
            "outside the pool",
            bad("10.0.0.4", "192.168.200.4", ""),
            &["default/bad", "OutsidePool"],
        ),
        (
            "target outside",
            bad("192.168.100.4", "10.0.0.4", ""),
            &["default/bad", "TargetOutside"],
        ),
        (
            "no such network",
            bad("192.168.100.4", "192.168.200.4", "").replace("{name: net}", "{name: other}"),
            &["default/bad", "NetworkNotFound"],
        ),
        ("overlap", bad("192.168.100.3", "192.168.200.4", ""), &["Conflict"]),
    ];
    for (what, text, parts) in cases {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("good.yaml"),
            format!("{NETWORK}{}", claim("aaa", "192.168.100.3", "192.168.200.3", "")),
        )
        .unwrap();
        std::fs::write(dir.path().join("bad.yaml"), text).unwrap();
        let (code, out, err) = stagenet(&["plan", "-f", dir.path().to_str().unwrap(), "--node", "gw"]);
        assert_eq!(code, 2, "{what}:\n{out}{err}");
        for part in parts {
            assert!(format!("{out}{err}").contains(part), "{what}: {part} is not said:\n{out}{err}");
        }
        assert!(
            out.contains("-A SNET-DNAT -d 192.168.100.3/32") && out.contains("--to-destination 192.168.200.3"),
            "{what}: the good claim is lost:\n{out}{err}"
        );
    }
}

#[test]
fn host_bits_in_a_prefix_are_refused_not_rewritten() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("net.yaml"), NETWORK.replace("192.168.100.0/24", "192.168.100.7/24")).unwrap();
    let (code, out, err) = stagenet(&["plan", "-f", dir.path().to_str().unwrap(), "--node", "gw"]);
    assert_eq!(code, 2);
    assert!(format!("{out}{err}").contains("addresses"), "{out}{err}");
}

#[test]
fn wrong_command_lines_exit_2_and_say_what_would_be_right() {
    let cases: &[(&[&str], &str)] = &[
        (&[], "Usage"),
        (&["agnet"], "agent"),
        (
            &["agent", "--manifests", "/nonexistent-dir", "--node", "vm02", "--once"],
            "/nonexistent-dir",
        ),
        (&["agent", "--manifests", "."], "--node"),
        (&["agent", "--node", "VM_02", "--manifests", "."], "lower-case"),
        (&["agent", "--node", "vm02", "--once"], "--manifests"),
        (&["agent", "--node", "vm02", "--connmark", "0"], "0x2000"),
        (&["agent", "--node", "vm02", "--listen", "9469"], "none"),
        (&["agent", "--node", "vm02", "--backend", "ipset"], "legacy"),
        (&["agent", "--node", "vm02", "--log-level", "=="], "debug"),
        (&["plan", "--node", "vm02"], "--filename"),
        (&["plan", "-f", "/nonexistent.yaml", "--node", "vm02"], "/nonexistent.yaml"),
        (
            &["plan", "-f", ".", "--node", "vm02", "--interface", "eth0"],
            "eth0=192.168.100.2/24",
        ),
    ];
    for (args, part) in cases {
        let (code, out, err) = stagenet(args);
        assert_eq!(code, 2, "{args:?}: {out}{err}");
        assert!(err.contains(part), "{args:?}: {part} is not said: {err}");
    }
}

#[test]
fn without_a_cluster_the_agent_says_how_to_go_on() {
    let (code, _, err) = stagenet(&["agent", "--node", "vm02", "--listen", "none"]);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("--manifests") && err.contains("KUBECONFIG"), "{err}");
}

/// One sentence: what was tried, why it failed, how to go on. Not the same cause again from every layer that it came through.
#[test]
fn a_cause_is_said_once() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let missing = "No such file or directory";
    let cases: [(&[&str], &str); 4] = [
        (&["agent", "--manifests", "/nonexistent-dir", "--node", "vm02", "--once"], missing),
        (&["plan", "-f", "/nonexistent.yaml", "--node", "vm02"], missing),
        (&["agent", "--node", "vm02", "--listen", "none"], "finding the API server"),
        (
            &["controller", "--namespace", "stagenet", "--listen", &address],
            "finding the API server",
        ),
    ];
    for (args, cause) in cases {
        let (_, _, err) = stagenet(args);
        assert_eq!(err.matches(cause).count(), 1, "{args:?}: {err}");
        assert_eq!(
            err.matches("failed to infer config").count(),
            usize::from(cause != missing),
            "{args:?}: {err}"
        );
    }
}
