//! One object against the schema of its kind, as strictly as the API server does it with `--validate=strict`.
//!
//! The definitions that are generated for the API server are the only source: their schema, their list keys and their CEL rules. So an object that is
//! refused here is refused there, and the other way round. Pure; a schema is compiled when it is first needed, and kept until somebody says that there is nothing more to check.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use jsonschema::error::{TypeKind, ValidationErrorKind};
use kube::CustomResourceExt;
use kube::core::cel::{CompiledSchema, ErrorKind, Validator, compile_schema};
use serde_json::Value;

use super::{NatMapping, StagingNetwork};

/// Most problems that are told of one object: more are of no use to anybody.
const PROBLEMS_MAX: usize = 16;

/// Something wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FieldProblem {
    /// Path such as `spec.ports[0].port`; empty for the object itself.
    pub field: String,
    /// What it must be.
    pub message: String,
}

impl FieldProblem {
    pub(super) fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            message: message.into(),
        }
    }
}

/// A compiled definition.
pub(super) struct Checker {
    schema: Value,
    structure: Option<jsonschema::Validator>,
    rules: CompiledSchema,
    /// Evaluates rules. Making one registers some hundred functions, so there is one for all objects.
    validator: Arc<Validator>,
}

/// What objects are checked against.
pub(super) struct Checkers {
    /// For [`StagingNetwork`].
    pub(super) network: Checker,
    /// For [`NatMapping`].
    pub(super) mapping: Checker,
}

static CHECKERS: Mutex<Option<Arc<Checkers>>> = Mutex::new(None);

/// Compiled now, if they are not already.
pub(super) fn checkers() -> Arc<Checkers> {
    let mut checkers = CHECKERS.lock().unwrap_or_else(PoisonError::into_inner);
    checkers.get_or_insert_with(|| Arc::new(Checkers::compile())).clone()
}

/// Lets go of the compiled schemas: some megabytes, which an agent does without until somebody edits a manifest.
pub(super) fn forget() {
    *CHECKERS.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

impl Checkers {
    fn compile() -> Self {
        let validator = Arc::new(Validator::new());
        Self {
            network: Checker::of::<StagingNetwork>(validator.clone()),
            mapping: Checker::of::<NatMapping>(validator),
        }
    }
}

impl Checker {
    fn of<K: CustomResourceExt>(validator: Arc<Validator>) -> Self {
        let crd = serde_json::to_value(K::crd()).unwrap_or_default();
        let schema = crd.pointer("/spec/versions/0/schema/openAPIV3Schema").cloned().unwrap_or_default();
        Self {
            structure: jsonschema::validator_for(&schema).ok(),
            rules: compile_schema(&schema),
            schema,
            validator,
        }
    }

    /// What is wrong with an object's structure, sorted by field, at most [`PROBLEMS_MAX`] problems.
    pub(super) fn structure(&self, object: &Value) -> Vec<FieldProblem> {
        let mut problems = Vec::new();
        walk(&self.schema, object, "", &mut problems);
        match &self.structure {
            Some(structure) => problems.extend(structure.iter_errors(object).take(PROBLEMS_MAX).map(|error| explain(&error))),
            None => problems.push(FieldProblem::new("", "cannot be checked: the schema of this kind does not compile")),
        }
        bounded(problems)
    }

    /// Which rules an object breaks whose structure and name are right, sorted by field, at most [`PROBLEMS_MAX`] problems.
    pub(super) fn rules(&self, object: &Value) -> Vec<FieldProblem> {
        let Err(errors) = self.validator.validate_compiled(&self.rules, object, None) else {
            return Vec::new();
        };
        let problems = errors.into_iter().map(|error| match error.kind {
            ErrorKind::ValidationFailure => FieldProblem::new(error.field_path, error.message),
            // A rule that cannot be evaluated says nothing about the object: refused all the same, as the API server does it.
            _ => FieldProblem::new(error.field_path, format!("cannot be checked: {}", error.message)),
        });
        bounded(problems.collect())
    }
}

fn bounded(mut problems: Vec<FieldProblem>) -> Vec<FieldProblem> {
    problems.sort();
    problems.dedup();
    problems.truncate(PROBLEMS_MAX);
    problems
}

/// What the schema dialect of Kubernetes adds to JSON Schema: unknown fields, and lists whose entries have a key.
fn walk(schema: &Value, value: &Value, path: &str, problems: &mut Vec<FieldProblem>) {
    if problems.len() >= PROBLEMS_MAX {
        return;
    }
    match value {
        Value::Object(fields) => {
            let known = schema.get("properties").and_then(Value::as_object);
            for (name, child) in fields {
                let here = join(path, name);
                if let Some(child_schema) = known.and_then(|known| known.get(name)) {
                    walk(child_schema, child, &here, problems);
                } else if let (Some(known), None) = (known, schema.get("additionalProperties")) {
                    // The definitions do not describe what every object has.
                    if !(path.is_empty() && matches!(name.as_str(), "apiVersion" | "kind" | "metadata")) {
                        problems.push(FieldProblem::new(here, unknown(name, known.keys().map(String::as_str))));
                    }
                }
            }
        }
        Value::Array(items) => {
            if let Some(item_schema) = schema.get("items") {
                for (index, item) in items.iter().enumerate() {
                    walk(item_schema, item, &format!("{path}[{index}]"), problems);
                }
            }
            repeated(schema, items, path, problems);
        }
        _ => {}
    }
}

/// Entries of a set or keyed list that are there twice.
fn repeated(schema: &Value, items: &[Value], path: &str, problems: &mut Vec<FieldProblem>) {
    let kind = schema.get("x-kubernetes-list-type").and_then(Value::as_str);
    let keys: Vec<&str> = schema
        .get("x-kubernetes-list-map-keys")
        .and_then(Value::as_array)
        .map(|keys| keys.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    let mut seen = BTreeSet::new();
    for (index, item) in items.iter().enumerate() {
        let key = match kind {
            Some("set") => brief(item),
            Some("map") => {
                let values: Vec<String> = keys
                    .iter()
                    .map(|key| format!("{key} {}", item.get(key).map(brief).unwrap_or_default()))
                    .collect();
                values.join(", ")
            }
            _ => return,
        };
        if !seen.insert(key.clone()) {
            problems.push(FieldProblem::new(
                format!("{path}[{index}]"),
                format!("must not be there twice: {key}"),
            ));
        }
    }
}

/// "unknown field", with the known name that was probably meant.
pub(super) fn unknown<'a>(name: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    match nearest(name, known.clone()) {
        Some(meant) => format!("unknown field; did you mean {meant}?"),
        None => format!("unknown field; known here: {}", known.collect::<Vec<_>>().join(", ")),
    }
}

/// The candidate that differs least, if it differs by few letters.
pub(super) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if name.len() > 64 {
        return None;
    }
    let lower = name.to_lowercase();
    candidates
        .map(|candidate| (strsim::damerau_levenshtein(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 5)
        .min()
        .map(|(_, candidate)| candidate)
}

fn explain(error: &jsonschema::ValidationError<'_>) -> FieldProblem {
    let path = dotted(error.instance_path().as_str());
    let is = brief(error.instance());
    let message = match error.kind() {
        ValidationErrorKind::Required { property } => {
            let name = property.as_str().unwrap_or_default();
            return FieldProblem::new(join(&path, name), "must be given");
        }
        ValidationErrorKind::Type {
            kind: TypeKind::Single(wanted),
        } => format!("must be {}, is {is}", article(&wanted.to_string())),
        ValidationErrorKind::Enum { options } => {
            let words: Vec<&str> = options
                .as_array()
                .map(|options| options.iter().filter_map(Value::as_str).collect())
                .unwrap_or_default();
            format!("must be {}, is {is}", words.join(" or "))
        }
        ValidationErrorKind::Minimum { limit } => format!("must be at least {}, is {is}", whole(limit)),
        ValidationErrorKind::Maximum { limit } => format!("must be at most {}, is {is}", whole(limit)),
        ValidationErrorKind::MinLength { .. } => "must not be empty".to_owned(),
        ValidationErrorKind::MaxLength { limit } => format!("must be at most {limit} characters long, is {is}"),
        ValidationErrorKind::MinItems { limit } => format!("must have at least {limit} entries"),
        ValidationErrorKind::MaxItems { limit } | ValidationErrorKind::MaxProperties { limit } => {
            format!("must have at most {limit} entries")
        }
        _ => error.to_string(),
    };
    FieldProblem::new(path, message)
}

/// A bound as a person writes it: schemas carry whole numbers as 1.0, too.
fn whole(limit: &Value) -> String {
    let text = limit.to_string();
    text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
}

fn article(kind: &str) -> String {
    match kind {
        "array" => "a list".to_owned(),
        "object" => "an object".to_owned(),
        "integer" => "a whole number".to_owned(),
        "boolean" => "true or false".to_owned(),
        other => format!("a {other}"),
    }
}

/// A value as it is shown in a message: scalars in short, the rest by their kind.
fn brief(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        Value::String(text) if text.chars().count() > 40 => format!("{:?}...", text.chars().take(40).collect::<String>()),
        Value::String(text) => format!("{text:?}"),
        other => other.to_string(),
    }
}

/// `/spec/ports/0/port` as `spec.ports[0].port`.
fn dotted(pointer: &str) -> String {
    pointer.split('/').skip(1).fold(String::new(), |path, segment| {
        if !path.is_empty() && segment.bytes().all(|b| b.is_ascii_digit()) {
            format!("{path}[{segment}]")
        } else {
            join(&path, &segment.replace("~1", "/").replace("~0", "~"))
        }
    })
}

pub(super) fn join(path: &str, name: &str) -> String {
    let name: String = name.chars().take(80).map(|c| if c.is_control() { '?' } else { c }).collect();
    if path.is_empty() { name } else { format!("{path}.{name}") }
}
