//! `deploy/` and `charts/`: fresh, equal to each other, and such that the program understands them.
//!
//! `UPDATE=1 cargo test --test manifests` writes `deploy/install.yaml` and the chart's copies of the definitions anew.
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)]
#![allow(missing_docs)]
#![allow(clippy::case_sensitive_file_extension_comparisons, clippy::format_push_string)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn updating() -> bool {
    std::env::var_os("UPDATE").is_some()
}

fn names(folder: &str) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(root().join(folder))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".yaml"))
        .collect();
    names.sort();
    names
}

/// The files that `kubectl apply -k deploy/base` takes, in that order.
fn base() -> Vec<String> {
    let kustomization: Value = serde_saphyr::from_str(&read("deploy/base/kustomization.yaml")).unwrap();
    let resources = kustomization["resources"].as_array().unwrap();
    resources
        .iter()
        .map(|name| format!("deploy/base/{}", name.as_str().unwrap()))
        .collect()
}

fn documents(text: &str) -> Vec<Value> {
    let texts = text
        .split("\n---\n")
        .filter(|document| document.lines().any(|line| !line.is_empty() && !line.starts_with('#')));
    texts
        .map(|document| serde_saphyr::from_str(document).unwrap_or_else(|error| panic!("{error}\n{document}")))
        .collect()
}

/// Documents by `kind/namespace/name`.
fn by_name(documents: Vec<Value>) -> BTreeMap<String, Value> {
    let name = |d: &Value| format!("{}/{}/{}", d["kind"], d["metadata"]["namespace"], d["metadata"]["name"]);
    documents.into_iter().map(|document| (name(&document), document)).collect()
}

fn base_documents() -> Vec<Value> {
    base().iter().flat_map(|file| documents(&read(file))).collect()
}

fn find<'a>(documents: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = documents.iter().find(|d| d["kind"] == kind && d["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

fn install() -> String {
    let files = names("crds").into_iter().map(|name| format!("crds/{name}")).chain(base());
    let mut text = String::from(
        "# Everything in one file: the definitions of the kinds, and deploy/base.\n#   kubectl apply --server-side -f deploy/install.yaml\n",
    );
    text.push_str("# Made from those files by `UPDATE=1 cargo test --test manifests`; change them, not this.\n");
    for file in files {
        let body = read(&file);
        text.push_str(&format!("---\n# {file}\n{}", body.strip_prefix("---\n").unwrap_or(&body)));
    }
    text
}

#[test]
fn install_yaml_is_fresh() {
    let path = root().join("deploy/install.yaml");
    if updating() {
        fs::write(&path, install()).unwrap();
    }
    assert!(
        fs::read_to_string(&path).unwrap_or_default() == install(),
        "deploy/install.yaml is out of date: UPDATE=1 cargo test --test manifests"
    );
}

#[test]
fn every_file_of_the_base_is_in_its_kustomization() {
    let mut listed = base();
    listed.push("deploy/base/kustomization.yaml".into());
    listed.sort();
    let present: Vec<String> = names("deploy/base").into_iter().map(|name| format!("deploy/base/{name}")).collect();
    assert_eq!(listed, present);
}

#[test]
fn kubectl_reads_the_base_as_this_test_does() {
    let Ok(output) = Command::new("kubectl")
        .args(["kustomize", "deploy/base"])
        .current_dir(root())
        .output()
    else {
        eprintln!("skipped: there is no kubectl on this machine; the other tests read the same files");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rendered = by_name(documents(&String::from_utf8(output.stdout).unwrap()));
    assert_eq!(rendered, by_name(base_documents()));
}

#[test]
fn the_chart_carries_the_same_definitions() {
    for name in names("crds") {
        let copy = root().join("charts/stagenet/crds").join(&name);
        if updating() {
            fs::copy(root().join("crds").join(&name), &copy).unwrap();
        }
        assert!(
            fs::read_to_string(&copy).unwrap_or_default() == read(format!("crds/{name}")),
            "charts/stagenet/crds/{name} is out of date: UPDATE=1 cargo test --test manifests"
        );
    }
    assert_eq!(names("charts/stagenet/crds"), names("crds"));
}

/// The chart's templates use nothing but values, `toJson`, `if` of a value and the release's namespace, on purpose: so this test can render them without helm, and
/// what it proves (default values make what deploy/base has) holds for helm too.
fn render(template: &str, values: &Value) -> String {
    let mut out = String::new();
    let mut rest = template;
    // Of each `if` that is open, whether it holds.
    let mut conditions: Vec<bool> = Vec::new();
    while let Some((before, after)) = rest.split_once("{{") {
        let (expression, after) = after.split_once("}}").unwrap();
        rest = after;
        let trimming = expression.strip_prefix('-');
        let shown = conditions.iter().all(|holds| *holds);
        if shown {
            out.push_str(if trimming.is_some() { before.trim_end() } else { before });
        }
        let expression = trimming.unwrap_or(expression).trim();
        if expression == "end" {
            conditions.pop().expect("an end of nothing");
        } else if let Some(condition) = expression.strip_prefix("if ") {
            conditions.push(evaluate(&format!("toJson {condition}"), values) == "true");
        } else if shown {
            out.push_str(&evaluate(expression, values));
        }
    }
    assert!(conditions.is_empty(), "an if without end");
    out + rest
}

fn evaluate(expression: &str, values: &Value) -> String {
    if expression == ".Release.Namespace" {
        return "stagenet-system".into();
    }
    let (json, path) = expression.strip_prefix("toJson ").map_or((false, expression), |path| (true, path));
    let path = path
        .strip_prefix(".Values.")
        .unwrap_or_else(|| panic!("a template uses {expression:?}, which this test cannot render"));
    let value = path.split('.').fold(values, |value, field| &value[field]);
    match value {
        Value::Null => panic!("values.yaml has no {path}"),
        _ if json => value.to_string(),
        Value::String(text) => text.clone(),
        _ => value.to_string(),
    }
}

fn values() -> Value {
    serde_saphyr::from_str(&read("charts/stagenet/values.yaml")).unwrap()
}

fn chart(values: &Value) -> BTreeMap<String, Value> {
    let templates = names("charts/stagenet/templates");
    let rendered = templates
        .iter()
        .flat_map(|name| documents(&render(&read(format!("charts/stagenet/templates/{name}")), values)));
    by_name(rendered.collect())
}

/// What the chart has to make: the base, but for the namespace, which is helm's affair (--create-namespace), and these files.
fn wanted(optional: &[&str]) -> BTreeMap<String, Value> {
    let base = base_documents().into_iter().filter(|document| document["kind"] != "Namespace");
    by_name(base.chain(optional.iter().flat_map(|file| documents(&read(file)))).collect())
}

/// What turns on what is off by default, as arguments of helm.
const ALL_ON: &str = "namespacePolicy.enabled=true,agent.leaseDuration=90";
const OPTIONAL: &str = "deploy/optional/namespace-policy.yaml";

#[test]
fn the_chart_with_its_default_values_makes_what_the_base_has() {
    assert_eq!(chart(&values()), wanted(&[]));
}

#[test]
fn values_of_the_chart_say_what_else_there_is() {
    let mut values = values();
    for setting in ALL_ON.split(',') {
        let (path, value) = setting.split_once('=').unwrap();
        let field = path.split('.').fold(&mut values, |value, field| value.get_mut(field).unwrap());
        *field = serde_json::from_str(value).unwrap();
    }
    assert_eq!(chart(&values), with_lease(&wanted(&[OPTIONAL]), 90));
    assert_ne!(wanted(&[OPTIONAL]), wanted(&[]));
}

/// The same objects with another lease of the agents.
fn with_lease(objects: &BTreeMap<String, Value>, seconds: u32) -> BTreeMap<String, Value> {
    let text = serde_json::to_string(objects).unwrap();
    let (before, after) = ("--lease-duration=40", format!("--lease-duration={seconds}"));
    assert!(text.contains(before));
    serde_json::from_str(&text.replace(before, &after)).unwrap()
}

#[test]
fn helm_renders_the_chart_the_same() {
    let helm = std::env::var("HELM").unwrap_or_else(|_| "helm".into());
    let arguments = ["template", "stagenet", "charts/stagenet", "--namespace", "stagenet-system"];
    for (more, wanted) in [(&[][..], wanted(&[])), (&["--set", ALL_ON], with_lease(&wanted(&[OPTIONAL]), 90))] {
        let Ok(output) = Command::new(&helm).args(arguments).args(more).current_dir(root()).output() else {
            eprintln!("skipped: there is no helm on this machine (set HELM); the tests above render the same templates themselves");
            return;
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let rendered = String::from_utf8(output.stdout).unwrap();
        assert_eq!(by_name(documents(rendered.trim_start_matches("---\n"))), wanted);
    }
}

#[test]
fn versions_agree() {
    let chart: Value = serde_saphyr::from_str(&read("charts/stagenet/Chart.yaml")).unwrap();
    let values = values();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!([&chart["version"], &chart["appVersion"], &values["image"]["tag"]], [version; 3]);
}

/// Every flag in a container's arguments is one that the program has.
#[test]
fn the_program_understands_its_arguments() {
    let documents = base_documents();
    for (kind, name) in [("Deployment", "stagenet-controller"), ("DaemonSet", "stagenet-agent")] {
        let container = &find(&documents, kind, name)["spec"]["template"]["spec"]["containers"][0];
        let arguments: Vec<&str> = container["args"].as_array().unwrap().iter().map(|a| a.as_str().unwrap()).collect();
        let help = assert_cmd::Command::cargo_bin("stagenet")
            .unwrap()
            .args([arguments[0], "--help"])
            .output()
            .unwrap();
        let help = String::from_utf8(help.stdout).unwrap();
        for argument in &arguments[1..] {
            let flag = argument.split('=').next().unwrap();
            assert!(
                help.contains(&format!("{flag} <")),
                "stagenet {} has no {flag}:\n{help}",
                arguments[0]
            );
        }
    }
}

#[test]
fn nobody_has_more_rights_than_said() {
    let documents = base_documents();
    let mut rights = Vec::new();
    let own = |d: &&Value| d["metadata"]["labels"]["app.kubernetes.io/component"].is_string();
    for role in documents
        .iter()
        .filter(|d| d["kind"] == "ClusterRole" || d["kind"] == "Role")
        .filter(own)
    {
        for rule in role["rules"].as_array().unwrap() {
            let words = |field: &str| {
                rule[field]
                    .as_array()
                    .map(|a| a.iter().map(|v| v.as_str().unwrap().to_owned()).collect::<Vec<_>>())
            };
            let (resources, verbs) = (words("resources").unwrap(), words("verbs").unwrap());
            rights.push(format!(
                "{} {}: {}",
                role["metadata"]["name"].as_str().unwrap(),
                resources.join(","),
                verbs.join(",")
            ));
        }
    }
    for right in &rights {
        assert!(!right.contains('*') && !right.contains("delete"), "{right}");
        let writes = ["create", "update", "patch"].iter().any(|verb| right.contains(verb));
        let users_objects = right.contains("stagingnetworks") || right.contains("natmappings");
        assert!(
            !(writes && users_objects) || right.starts_with("stagenet-controller stagingnetworks/status,natmappings/status:"),
            "{right}"
        );
    }
    assert!(
        rights.iter().any(|right| right == "stagenet-agent gatewaynodes/status: patch"),
        "{rights:#?}"
    );
}

#[test]
fn pods_run_with_no_more_than_they_need() {
    let documents = base_documents();
    let pod = |kind, name| find(&documents, kind, name)["spec"]["template"]["spec"].clone();
    let agent = pod("DaemonSet", "stagenet-agent");
    let security = &agent["containers"][0]["securityContext"];
    assert_eq!(
        security["capabilities"],
        serde_json::json!({"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]})
    );
    let controller = pod("Deployment", "stagenet-controller");
    assert_eq!(controller["securityContext"]["runAsNonRoot"], true);
    assert_eq!(
        controller["containers"][0]["securityContext"]["capabilities"],
        serde_json::json!({"drop": ["ALL"]})
    );
    for pod in [&agent, &controller] {
        let security = &pod["containers"][0]["securityContext"];
        assert_eq!(
            (&security["readOnlyRootFilesystem"], &security["allowPrivilegeEscalation"]),
            (&true.into(), &false.into())
        );
        assert_eq!(security["privileged"], Value::Null);
        assert_eq!([&pod["hostPID"], &pod["hostIPC"]], [&Value::Null; 2]);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    }
}
