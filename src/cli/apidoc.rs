//! `docs/api.md`: tables of all fields, made from the definitions. Pure.

use std::fmt::Write as _;

use serde_json::Value;

use super::crd::definitions;

/// The whole page.
pub fn markdown() -> String {
    let mut out = String::from(concat!(
        "# Fields of the three kinds\n\n",
        "Generated from `src/api`; `UPDATE=1 cargo test --test crds` writes it anew. The same texts: `kubectl explain natmapping.spec`.\n\n",
        "Group `stagenet.dev`, version `v1alpha1`. The API server and standalone mode check the same schemas and rules and refuse what breaks one of them; ",
        "nothing is rewritten. Conditions and their reasons: [reasons.md](reasons.md).\n",
    ));
    for (_, crd) in definitions() {
        kind(&mut out, &crd);
    }
    out
}

fn kind(out: &mut String, crd: &Value) {
    let text = |pointer: &str| crd.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let Some(schema) = crd.pointer("/spec/versions/0/schema/openAPIV3Schema") else {
        return;
    };
    let _ = write!(
        out,
        "\n## {}\n\n{}\n\n`kubectl get {}` (short: `{}`), {}.\n",
        text("/spec/names/kind"),
        text("/spec/versions/0/schema/openAPIV3Schema/description"),
        text("/spec/names/plural"),
        text("/spec/names/shortNames/0"),
        match text("/spec/scope") {
            "Namespaced" => "in a namespace",
            _ => "for the whole cluster",
        },
    );
    let mut rules = Vec::new();
    collect_rules(schema, "", &mut rules);
    for part in ["spec", "status"] {
        let mut rows = String::new();
        if let Some(part_schema) = schema.pointer(&format!("/properties/{part}")) {
            fields(&mut rows, part_schema, part);
        }
        if !rows.is_empty() {
            let _ = write!(out, "\n### {part}\n\n| field | type | |\n|---|---|---|\n{rows}");
        }
    }
    if !rules.is_empty() {
        out.push_str("\n### Rules\n\n");
        for rule in rules {
            let _ = writeln!(out, "- {rule}");
        }
    }
}

fn fields(rows: &mut String, schema: &Value, path: &str) {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        return;
    };
    let required = |name: &str| {
        schema
            .get("required")
            .and_then(Value::as_array)
            .is_some_and(|names| names.iter().any(|required| required == name))
    };
    for (name, field) in properties {
        let path = format!("{path}.{name}");
        let description = field.get("description").and_then(Value::as_str).unwrap_or_default();
        let _ = writeln!(
            rows,
            "| `{path}` | {}{} | {} |",
            type_of(field),
            if required(name) { ", required" } else { "" },
            description.replace("\n\n", " ").replace('|', "\\|"),
        );
        // What a condition is made of is the same for every kind of Kubernetes.
        if name != "conditions" {
            fields(rows, field, &path);
            if let Some(items) = field.get("items") {
                fields(rows, items, &format!("{path}[]"));
            }
        }
    }
}

fn type_of(field: &Value) -> String {
    let kind = field.get("type").and_then(Value::as_str).unwrap_or("any");
    match kind {
        "array" => format!("list of {}", field.get("items").map_or_else(|| "any".to_owned(), type_of)),
        "integer" | "string" => match field.get("enum").and_then(Value::as_array) {
            Some(words) => {
                let words: Vec<String> = words.iter().filter_map(Value::as_str).map(|word| format!("`{word}`")).collect();
                words.join(" or ")
            }
            None => kind.to_owned(),
        },
        "object" if field.get("additionalProperties").is_some() => "map".to_owned(),
        other => other.to_owned(),
    }
}

/// `path: message` of every rule, outer ones first.
fn collect_rules(schema: &Value, path: &str, rules: &mut Vec<String>) {
    for rule in schema
        .get("x-kubernetes-validations")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        let message = rule.get("message").and_then(Value::as_str).unwrap_or_default();
        rules.push(if path.is_empty() {
            message.to_owned()
        } else {
            format!("`{path}`: {message}")
        });
    }
    for (name, field) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        collect_rules(field, &path, rules);
    }
    if let Some(items) = schema.get("items") {
        collect_rules(items, &format!("{path}[]"), rules);
    }
}
