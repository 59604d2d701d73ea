//! Generated files are fresh: `crds/`, `docs/api.md`. `UPDATE=1 cargo test --test crds` writes them anew.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

/// Compares a committed file with what the code generates, or writes it.
fn fresh(path: &str, wanted: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, wanted).unwrap();
        return;
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == wanted, "{} is stale: run UPDATE=1 cargo test --test crds", path.display());
}

#[test]
fn crds_are_fresh() {
    for (name, text) in stagenet::cli::crd::crd_files() {
        fresh(&format!("crds/{name}"), &text);
    }
}

#[test]
fn nothing_else_is_in_the_folder_that_people_apply() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("crds");
    let mut found: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    found.sort();
    let wanted: Vec<String> = stagenet::cli::crd::crd_files().into_iter().map(|(name, _)| name).collect();
    assert_eq!(found, wanted);
}

#[test]
fn the_printed_stream_is_one_document_a_kind() {
    let text = stagenet::cli::crd::crds_yaml();
    let kinds: Vec<String> = serde_saphyr::from_multiple::<serde_json::Value>(&text)
        .unwrap()
        .iter()
        .map(|crd| crd["spec"]["names"]["kind"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(kinds, ["GatewayNode", "NatMapping", "StagingNetwork"]);
}

/// What the API server refuses to install without: a bound on everything that a person can write, so that rules have a known cost.
#[test]
fn everything_in_a_spec_is_bounded() {
    fn unbounded(schema: &serde_json::Value, path: &str, found: &mut Vec<String>) {
        let bound = |key: &str| schema.get(key).is_some() || schema.get("enum").is_some();
        let well = match schema["type"].as_str() {
            Some("string") => bound("maxLength"),
            Some("array") => bound("maxItems"),
            Some("integer") => bound("maximum") && bound("minimum"),
            Some("object") => schema.get("additionalProperties").is_none() || bound("maxProperties"),
            _ => true,
        };
        if !well {
            found.push(path.to_owned());
        }
        for (name, child) in schema["properties"].as_object().into_iter().flatten() {
            unbounded(child, &format!("{path}.{name}"), found);
        }
        for key in ["items", "additionalProperties"] {
            if let Some(child) = schema.get(key) {
                unbounded(child, &format!("{path}[]"), found);
            }
        }
    }
    let mut found = Vec::new();
    for (name, crd) in stagenet::cli::crd::definitions() {
        let spec = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        assert!(spec.is_object(), "{name}");
        unbounded(spec, &name, &mut found);
    }
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn field_tables_are_fresh() {
    fresh("docs/api.md", &stagenet::cli::apidoc::markdown());
}
