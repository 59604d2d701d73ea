//! `Namespace` objects in manifests: where there is no cluster, their labels say whether its mappings may claim. Nothing else of them is read.

use std::collections::BTreeMap;

use serde_json::Value;

use super::strict::FieldProblem;

/// Whether an object says that it is one.
pub(super) fn is_one(object: &Value) -> bool {
    object.get("kind").and_then(Value::as_str) == Some("Namespace") && object.get("apiVersion").and_then(Value::as_str) == Some("v1")
}

/// Name and labels.
///
/// # Errors
/// It has no name, or labels that are no map of strings.
pub(super) fn read(object: &Value) -> Result<(String, BTreeMap<String, String>), FieldProblem> {
    let name = object
        .pointer("/metadata/name")
        .and_then(Value::as_str)
        .filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| FieldProblem::new("metadata.name", "must be given, as a string"))?;
    let mut labels = BTreeMap::new();
    match object.pointer("/metadata/labels") {
        None | Some(Value::Null) => {}
        Some(Value::Object(found)) => {
            for (key, value) in found {
                let Some(text) = value.as_str() else {
                    let field = format!("metadata.labels[{key}]");
                    return Err(FieldProblem::new(field, "must be a string: put it into quotation marks"));
                };
                labels.insert(key.clone(), text.to_owned());
            }
        }
        Some(_) => return Err(FieldProblem::new("metadata.labels", "must be label names with their values")),
    }
    Ok((name.to_owned(), labels))
}
