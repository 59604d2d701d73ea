#![allow(clippy::unwrap_used, clippy::panic)]

use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

const NETWORK: &str = include_str!("../../tests/fixtures/valid/network-seed.yaml");
const MAPPING: &str = include_str!("../../tests/fixtures/valid/mapping-seed.yaml");

fn one(text: &str) -> Manifests {
    decode([("a.yaml", text)])
}

/// What is said, line by line.
fn said(text: &str) -> Vec<String> {
    one(text).problems.iter().map(ToString::to_string).collect()
}

#[test]
fn documents_lists_and_empty_documents() {
    let text = format!("---\n# nothing here\n---\n{NETWORK}---\n{MAPPING}---\n");
    let got = one(&text);
    assert_eq!(
        (got.networks.len(), got.mappings.len(), got.problems.len()),
        (1, 1, 0),
        "{:?}",
        got.problems
    );

    let indent = |text: &str| {
        let body: Vec<&str> = text.lines().skip(1).collect();
        format!("- {}\n", body.join("\n  "))
    };
    let list = format!("apiVersion: v1\nkind: List\nitems:\n{}{}", indent(NETWORK), indent(MAPPING));
    let got = one(&list);
    assert_eq!(
        (got.networks.len(), got.mappings.len(), got.problems.len()),
        (1, 1, 0),
        "{:?}",
        got.problems
    );
    assert_eq!(
        said("apiVersion: v1\nkind: List\nitems: 3"),
        ["a.yaml: document 1: List: items: must be a list of objects"]
    );
}

#[test]
fn namespaces_default_and_do_not_cling_to_networks() {
    let got = one(&MAPPING.replace("  namespace: default\n", ""));
    assert_eq!(got.mappings[0].metadata.namespace.as_deref(), Some("default"));
    let got = one(&NETWORK.replace("name: segment-b", "name: segment-b\n  namespace: staging"));
    assert_eq!(got.networks[0].metadata.namespace, None);
}

#[test]
fn what_is_wrong_is_named_and_harms_nobody_else() {
    let text = format!("{}---\n{NETWORK}", MAPPING.replace("address: 192.168.200.3", "address: vm03"));
    let got = one(&text);
    assert_eq!(got.networks.len(), 1);
    assert_eq!(
        said(&text),
        [
            "a.yaml: document 1: NatMapping default/vm03: spec.target.address: must be an IPv4 or IPv6 address, such as 192.168.100.3 or 2001:db8::3"
        ]
    );
}

#[test]
fn broken_yaml_is_named_and_the_file_counts_as_unreadable() {
    let text = format!("{NETWORK}---\nkind: [\n");
    let got = one(&text);
    assert_eq!(got.networks.len(), 1, "what stood before is still known");
    assert!(got.unreadable.contains("a.yaml"));
    assert!(
        said(&text)[0].starts_with("a.yaml: document 2: is not usable YAML: "),
        "{:?}",
        said(&text)
    );
    assert!(!said(&text)[0].contains('\n'));
    for text in ["a: b: c", "\"", "&a [*a]", "\t- x", "{a: 1, a: 2}", "k: !!int x"] {
        assert!(!one(text).problems.is_empty(), "{text:?}");
    }
}

#[test]
fn files_that_are_too_large_are_not_read() {
    let got = one(&"#".repeat(FILE_MAX + 1));
    assert_eq!(
        got.problems[0].to_string(),
        "a.yaml: is 4194305 bytes long, must be at most 4194304: split it"
    );
    assert!(got.unreadable.contains("a.yaml"));
}

#[test]
fn aliases_cannot_blow_up() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let inner = vec![format!("*a{}", level - 1); 10].join(", ");
        let _ = writeln!(bomb, "a{level}: &a{level} [{inner}]");
    }
    let got = one(&bomb);
    assert!(got.problems[0].message.contains("not usable YAML"), "{:?}", got.problems);
    assert!(!one(&"[".repeat(100_000)).problems.is_empty());
}

#[test]
fn other_kinds_and_versions_are_left_out_by_name() {
    let kind = |kind: &str| said(&MAPPING.replace("kind: NatMapping", &format!("kind: {kind}")))[0].clone();
    assert_eq!(
        kind("NatMaping"),
        "a.yaml: document 1: NatMaping vm03: kind: unknown kind NatMaping; did you mean NatMapping?"
    );
    assert!(kind("GatewayNode").ends_with("is written by agents only and must not be given"));
    assert!(kind("ConfigMap").ends_with("is not used here and is left out; known: StagingNetwork, NatMapping"));
    assert_eq!(
        said(&MAPPING.replace("v1alpha1", "v1")),
        ["a.yaml: document 1: NatMapping default/vm03: apiVersion: must be stagenet.dev/v1alpha1, is stagenet.dev/v1"]
    );
    assert_eq!(
        said("just words"),
        ["a.yaml: document 1: must be an object with apiVersion, kind, metadata and spec"]
    );
    assert_eq!(
        said("kind: NatMapping"),
        ["a.yaml: document 1: apiVersion: must be given, as a string"]
    );
    assert_eq!(said("apiVersion: v1"), ["a.yaml: document 1: kind: must be given, as a string"]);
}

#[test]
fn unknown_fields_get_the_name_that_was_meant() {
    let text = MAPPING.replace("  virtual:", "  sourceTranslaton: Preserve\n  virtual:");
    assert_eq!(
        said(&text),
        ["a.yaml: document 1: NatMapping default/vm03: spec.sourceTranslaton: unknown field; did you mean sourceTranslation?"]
    );
    let text = MAPPING.replace("  name: vm03", "  name: vm03\n  lables: {}");
    assert_eq!(
        said(&text),
        ["a.yaml: document 1: NatMapping default/vm03: metadata.lables: unknown field; did you mean labels?"]
    );
}

#[test]
fn names_are_checked_as_the_api_server_does() {
    for (name, good) in [
        ("vm03", true),
        ("a.b-c.d", true),
        ("VM03", false),
        ("-a", false),
        ("a..b", false),
        ("a/b", false),
        ("\"\"", false),
    ] {
        let got = one(&MAPPING.replace("name: vm03", &format!("name: {name}")));
        assert_eq!(got.problems.is_empty(), good, "{name}: {:?}", got.problems);
    }
    assert_eq!(
        said(&MAPPING.replace("  name: vm03\n", "")),
        ["a.yaml: document 1: NatMapping default/without a name: metadata.name: must be given, as a string"]
    );
    let long = said(&MAPPING.replace("name: vm03", &format!("name: {}", "n".repeat(300))));
    assert!(long.iter().all(|line| line.len() < 400), "{long:?}");
    assert!(long.iter().any(|line| line.contains("at most 253 characters")), "{long:?}");
    let namespace = said(&MAPPING.replace("namespace: default", "namespace: a.b"));
    assert!(
        namespace[0].contains("metadata.namespace: must be the name of a namespace"),
        "{namespace:?}"
    );
}

#[test]
fn of_two_with_one_name_the_first_counts() {
    let other = MAPPING.replace("192.168.200.3", "192.168.200.4");
    let got = decode([("a.yaml", MAPPING), ("b.yaml", other.as_str())]);
    assert_eq!(got.mappings.len(), 1);
    assert_eq!(got.mappings[0].spec.target.text(), "192.168.200.3");
    assert_eq!(
        got.problems[0].to_string(),
        "b.yaml: document 1: NatMapping default/vm03: is declared twice: the one in a.yaml: document 1 counts"
    );
    // The same name in another namespace is another object; a refused object does not take a name.
    let elsewhere = MAPPING.replace("namespace: default", "namespace: other");
    let refused = MAPPING.replace("192.168.200.3", "nowhere");
    let got = decode([("a.yaml", refused.as_str()), ("b.yaml", MAPPING), ("c.yaml", elsewhere.as_str())]);
    assert_eq!((got.mappings.len(), got.problems.len()), (2, 1));
}

#[test]
fn what_the_api_server_wrote_can_be_read_back() {
    let text = MAPPING.replace(
        "  name: vm03",
        "  name: vm03\n  uid: 1b2c\n  generation: 3\n  resourceVersion: \"77\"\n  creationTimestamp: 2026-01-02T03:04:05Z",
    ) + "status: {anything: goes}\n";
    let got = one(&text);
    assert!(got.problems.is_empty(), "{:?}", got.problems);
    assert_eq!(got.mappings[0].metadata.generation, Some(3));
    assert!(got.mappings[0].metadata.creation_timestamp.is_some() && got.mappings[0].status.is_none());
}

#[test]
fn numbers_that_yaml_versions_read_differently_are_refused() {
    for port in ["0443", "1_000", "4e2", "0x1bb", "443.0"] {
        let text = format!("{MAPPING}  ports: [{{protocol: TCP, port: {port}}}]\n");
        let got = one(&text);
        // Whatever is taken must be the number that everybody reads.
        if let Some(mapping) = got.mappings.first() {
            assert!(
                matches!((port, mapping.spec.ports[0].port), ("0x1bb" | "443.0", 443) | ("4e2", 400)),
                "{port}: {mapping:?}"
            );
        } else {
            assert!(
                got.problems[0].to_string().contains("spec.ports[0].port"),
                "{port}: {:?}",
                got.problems
            );
        }
    }
}

#[test]
fn null_is_left_out_as_kubectl_create_and_apply_have_it() {
    let got = one(&format!("{MAPPING}  ports:\n  sourceTranslation: null\n"));
    assert!(
        got.problems.is_empty() && got.mappings[0].spec.ports.is_empty(),
        "{:?}",
        got.problems
    );
}

#[test]
fn problems_are_bounded() {
    let got = one(&"---\nx\n".repeat(PROBLEMS_MAX + 10));
    assert_eq!((got.problems.len(), got.more_problems), (PROBLEMS_MAX, 10));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,200}") {
        one(&text);
    }

    #[test]
    fn no_bytes_of_yaml_make_it_panic(text in "[-a-z0-9:{}\\[\\]&*!|>'\"%@`#, \n\t~?]{0,200}") {
        one(&text);
    }

    #[test]
    fn a_mutated_manifest_is_taken_or_named(at in 0usize..600, length in 0usize..40, with in "[-a-z0-9:{}\\[\\]&*!|'\", \n./]{0,20}") {
        let text = format!("{NETWORK}---\n{MAPPING}");
        let start = at.min(text.len());
        let end = (start + length).min(text.len());
        let mutated = format!("{}{with}{}", &text[..start], &text[end..]);
        let got = one(&mutated);
        // Every object that is taken would be taken again: what is decoded is what was written.
        for mapping in &got.mappings {
            let again = one(&serde_json::to_string(mapping).unwrap());
            prop_assert_eq!(&again.mappings, std::slice::from_ref(mapping));
        }
        for network in &got.networks {
            let again = one(&serde_json::to_string(network).unwrap());
            prop_assert_eq!(&again.networks, std::slice::from_ref(network));
        }
    }
}

#[test]
fn labels_of_namespaces_are_read_and_nothing_else_of_them() {
    let namespace = |metadata: &str| {
        format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {metadata}\nspec: {{finalizers: [kubernetes]}}\nstatus: {{}}\n")
    };
    let read = one(&namespace("{name: shop, labels: {team: staging}, annotations: {a: b}}"));
    assert_eq!(read.problems, []);
    assert_eq!(read.namespaces["shop"], [("team".to_owned(), "staging".to_owned())].into());
    let twice = one(&format!(
        "{}{}",
        namespace("{name: shop, labels: {team: staging}}"),
        namespace("{name: shop}")
    ));
    assert_eq!(
        twice.problems[0].to_string(),
        "a.yaml: document 2: Namespace shop: is declared twice: the first one counts"
    );
    assert_eq!(twice.namespaces["shop"].len(), 1);
    for (metadata, says) in [
        ("{labels: {team: staging}}", "metadata.name: must be given, as a string"),
        ("{name: shop, labels: {count: 3}}", "metadata.labels[count]: must be a string"),
        (
            "{name: shop, labels: [team]}",
            "metadata.labels: must be label names with their values",
        ),
    ] {
        let read = one(&namespace(metadata));
        assert!(read.problems[0].to_string().contains(says), "{:?}", read.problems);
        assert!(read.namespaces.is_empty());
    }
}
