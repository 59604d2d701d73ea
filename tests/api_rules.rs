//! Every schema bound and every CEL rule both ways, with the client-side validator. The same files go to a real API server in the API lab, so that
//! standalone mode and a cluster cannot disagree.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::Path;

use stagenet::api::decode::{Manifests, decode};

/// Thousands of mappings are within what one file holds, and each is checked by schemas that were compiled once.
#[test]
fn many_mappings_are_read_in_one_go() {
    let (_, text) = fixtures("valid").into_iter().find(|(name, _)| name == "mapping-seed.yaml").unwrap();
    let texts: Vec<String> = (0..2_000).map(|n| text.replace("name: vm03", &format!("name: vm{n}"))).collect();
    let got = decode([("all.yaml", texts.join("---\n").as_str())]);
    assert_eq!((got.mappings.len(), got.problems.len()), (2_000, 0));
}

/// Name and text of every fixture, sorted by name.
fn fixtures(kind: &str) -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(kind);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, std::fs::read_to_string(path).unwrap())
        })
        .collect();
    files.sort();
    files
}

fn read(name: &str, text: &str) -> Manifests {
    decode([(name, text)])
}

#[test]
fn good_objects_are_taken() {
    let files = fixtures("valid");
    assert!(files.len() >= 10, "{} fixtures", files.len());
    for (name, text) in files {
        let got = read(&name, &text);
        assert!(got.problems.is_empty(), "{name}: {:?}", got.problems);
        assert_eq!(got.networks.len() + got.mappings.len(), 1, "{name}");
    }
}

#[test]
fn bad_objects_are_refused_and_told_what_must_be() {
    let files = fixtures("invalid");
    assert!(files.len() >= 80, "{} fixtures", files.len());
    let mut wrong = Vec::new();
    for (name, text) in files {
        let expected = text.lines().next().unwrap().strip_prefix("# must say: ").unwrap();
        let got = read(&name, &text);
        let said: Vec<String> = got.problems.iter().map(ToString::to_string).collect();
        if got.networks.len() + got.mappings.len() > 0 || !said.iter().any(|line| line.contains(expected)) {
            wrong.push(format!("{name}: expected {expected:?}, said {said:#?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn one_mistake_is_told_once() {
    for (name, text) in fixtures("invalid") {
        let problems = read(&name, &text).problems;
        // What is wrong at both ends in the same way is said of both.
        let messages: BTreeSet<&str> = problems.iter().map(|problem| problem.message.as_str()).collect();
        // Both ends of a misspelt required field are told: that the right one is missing, and that the wrong one is unknown.
        // 0.0.0.0/0 is wrong in more than one way.
        let most = match () {
            () if text.contains("adress") => 2,
            () if text.contains("0.0.0.0/0") => 3,
            () => 1,
        };
        assert!(messages.len() <= most, "{name}: {problems:#?}");
    }
}

#[test]
fn the_network_of_a_mapping_is_immutable() {
    let (_, text) = fixtures("valid").into_iter().find(|(name, _)| name == "mapping-seed.yaml").unwrap();
    let old = read("a", &text).mappings.remove(0);
    let mut new = old.clone();
    new.spec.target.address = Some("192.168.200.4".into());
    new.validate_cel_update(&old).unwrap();
    new.spec.network_ref.name = "segment-c".into();
    let said = new.validate_cel_update(&old).unwrap_err().to_string();
    assert!(said.contains("spec.networkRef: is immutable"), "{said}");
}

/// Every folder of `examples` with what its files say together.
fn examples() -> Vec<(String, Manifests)> {
    let mut folders: Vec<_> = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    folders.sort();
    let read = |folder: &Path| {
        let mut texts: Vec<(String, String)> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.display().to_string(), std::fs::read_to_string(&path).unwrap()))
            .collect();
        texts.sort();
        decode(texts.iter().map(|(name, text)| (name.as_str(), text.as_str())))
    };
    let name = |folder: &Path| folder.file_name().unwrap().to_string_lossy().into_owned();
    folders.iter().map(|folder| (name(folder), read(folder))).collect()
}

#[test]
fn the_examples_are_good_and_complete() {
    let examples = examples();
    let names: Vec<&str> = examples.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        ["clones", "ftp", "inside-dns", "ipv6", "kubevirt", "prefix", "seed", "tenancy"]
    );
    for (name, got) in &examples {
        assert!(got.problems.is_empty(), "{name}: {:?}", got.problems);
        assert!(!got.mappings.is_empty(), "{name}");
        let networks: BTreeSet<_> = got.networks.iter().filter_map(|n| n.metadata.name.as_deref()).collect();
        let used: BTreeSet<_> = got.mappings.iter().map(|m| m.spec.network_ref.name.as_str()).collect();
        assert_eq!(used, networks, "{name}: each network is used, and each that is used is there");
    }
}

#[test]
fn the_example_of_the_seed_says_what_the_experiment_says() {
    let (_, got) = examples().into_iter().find(|(name, _)| name == "seed").unwrap();
    assert_eq!(got.networks[0].spec.inside.addresses, ["192.168.200.0/24"]);
    assert_eq!(got.mappings[0].spec.r#virtual.text(), "192.168.100.3");
    assert_eq!(got.mappings[0].metadata.namespace.as_deref(), Some("default"));
}
