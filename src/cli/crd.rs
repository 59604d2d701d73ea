//! The custom resource definitions as text. Pure; `crds/` holds the same, and a test proves it.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

use crate::api::{GatewayNode, NatMapping, StagingNetwork};

/// All definitions, sorted by name.
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![GatewayNode::crd(), NatMapping::crd(), StagingNetwork::crd()]
}

/// All definitions as JSON, each with its plural name, descriptions as `kubectl explain` shows them best: a paragraph is one line.
pub fn definitions() -> Vec<(String, Value)> {
    crds()
        .iter()
        .map(|crd| {
            let mut value = serde_json::to_value(crd).unwrap_or_default();
            unwrap_descriptions(&mut value);
            (crd.spec.names.plural.clone(), value)
        })
        .collect()
}

/// File name under `crds/` and content, one for each kind.
pub fn crd_files() -> Vec<(String, String)> {
    definitions()
        .into_iter()
        .map(|(plural, value)| (format!("{plural}.yaml"), yaml(&value)))
        .collect()
}

/// What `stagenet crd` prints: all definitions in one stream.
pub fn crds_yaml() -> String {
    crd_files().into_iter().flat_map(|(_, text)| ["---\n".to_owned(), text]).collect()
}

/// YAML; or JSON, which is YAML too, if the emitter should refuse it.
fn yaml(value: &Value) -> String {
    serde_saphyr::to_string(value).unwrap_or_else(|_| value.to_string())
}

/// Joins the lines of a paragraph; an empty line still separates paragraphs.
fn unwrap_descriptions(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, child) in map {
                match child {
                    Value::String(text) if key == "description" => {
                        let paragraphs: Vec<String> = text.split("\n\n").map(|paragraph| paragraph.replace('\n', " ")).collect();
                        *text = paragraphs.join("\n\n");
                    }
                    _ => unwrap_descriptions(child),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(unwrap_descriptions),
        _ => {}
    }
}
