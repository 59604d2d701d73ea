//! Manifests: from YAML texts to objects, with a clear answer to everything that is wrong, for standalone mode and `plan -f`.
//!
//! The same verdict as the API server would give, by the same schemas and rules ([`super::strict`]). What is wrong with one object harms no other: a
//! document that cannot be used is left out and named. Pure: texts in, values out; no text makes it panic or take more than bounded time and memory.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::strict::{self, Checker, FieldProblem};
use super::{GROUP, NatMapping, StagingNetwork, VERSION, namespace};

/// Largest file, in bytes: the definition of a network takes some hundreds, so this is room for more than 10 000 mappings.
pub const FILE_MAX: usize = 4 * 1024 * 1024;
/// Most problems that are told; [`Manifests::more_problems`] counts the others.
pub const PROBLEMS_MAX: usize = 256;

/// Namespace of mappings that name none.
const DEFAULT_NAMESPACE: &str = "default";
const KINDS: [&str; 2] = ["StagingNetwork", "NatMapping"];

/// Something wrong with a manifest. Displayed as `FILE: document N: KIND NAME: FIELD: what it must be`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The file, as it was named by the caller.
    pub file: String,
    /// Which of the file's documents that are not empty, from 1. 0: the file as a whole.
    pub document: usize,
    /// Kind and name, as far as they are known.
    pub object: String,
    /// Path such as `spec.ports[0].port`; empty if it is not about one field.
    pub field: String,
    /// What is wrong and what it must be.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.file)?;
        if self.document > 0 {
            write!(f, "document {}: ", self.document)?;
        }
        for part in [&self.object, &self.field] {
            if !part.is_empty() {
                write!(f, "{part}: ")?;
            }
        }
        f.write_str(&self.message)
    }
}

/// What a set of files says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Manifests {
    /// In the order of the files and their documents.
    pub networks: Vec<StagingNetwork>,
    /// In the order of the files and their documents. Each has a namespace.
    pub mappings: Vec<NatMapping>,
    /// Labels of the namespaces that are declared.
    pub namespaces: BTreeMap<String, BTreeMap<String, String>>,
    /// What is wrong, in the same order.
    pub problems: Vec<Problem>,
    /// How many problems there are beyond [`PROBLEMS_MAX`].
    pub more_problems: usize,
    /// Files that are no YAML from some point on or too large: what they would say is not known, so whatever they said before may better be kept.
    pub unreadable: BTreeSet<String>,
}

/// Reads files, given as name and text. Of two objects with the same kind and name the first counts, and the other is a problem.
pub fn decode<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Manifests {
    let mut reader = Reader::default();
    for (file, text) in files {
        reader.file(file, text);
    }
    reader.out
}

#[derive(Default)]
struct Reader {
    out: Manifests,
    /// Kind and name → where it was declared.
    declared: BTreeMap<String, String>,
}

/// Where in the input.
#[derive(Clone, Copy)]
struct Place<'a> {
    file: &'a str,
    document: usize,
}

impl Reader {
    fn file(&mut self, file: &str, text: &str) {
        if text.len() > FILE_MAX {
            let message = format!("is {} bytes long, must be at most {FILE_MAX}: split it", text.len());
            self.unreadable(Place { file, document: 0 }, message);
            return;
        }
        let mut bytes = text.as_bytes();
        let documents = serde_saphyr::read_with_options::<_, Value>(&mut bytes, options());
        for (index, document) in documents.enumerate() {
            let place = Place { file, document: index + 1 };
            match document {
                Ok(value) => self.document(place, value),
                Err(error) => self.unreadable(place, format!("is not usable YAML: {}", first_line(&error.to_string()))),
            }
        }
    }

    fn document(&mut self, place: Place<'_>, value: Value) {
        let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default();
        if kind == "List" || KINDS.iter().any(|known| kind.strip_suffix("List") == Some(known)) {
            match value {
                Value::Object(mut list) => match list.remove("items") {
                    Some(Value::Array(items)) => items.into_iter().for_each(|item| self.object(place, item)),
                    _ => self.problem(place, "List", FieldProblem::new("items", "must be a list of objects")),
                },
                _ => self.problem(place, "", FieldProblem::new("", "must be an object")),
            }
        } else {
            self.object(place, value);
        }
    }

    fn namespace(&mut self, place: Place<'_>, object: &Value) {
        match namespace::read(object) {
            Ok((name, labels)) => match self.out.namespaces.entry(name) {
                Entry::Vacant(free) => {
                    free.insert(labels);
                }
                Entry::Occupied(taken) => {
                    let object = format!("Namespace {}", taken.key());
                    self.problem(place, &object, FieldProblem::new("", "is declared twice: the first one counts"));
                }
            },
            Err(problem) => self.problem(place, "Namespace", problem),
        }
    }

    fn object(&mut self, place: Place<'_>, mut value: Value) {
        if namespace::is_one(&value) {
            return self.namespace(place, &value);
        }
        let (kind, label) = match identify(&value) {
            Ok(known) => known,
            Err((label, problem)) => return self.problem(place, &label, problem),
        };
        if let Some(object) = value.as_object_mut() {
            // Not ours to read: the API server drops it from what people apply, too.
            object.remove("status");
        }
        as_the_server_reads(&mut value);
        let checkers = strict::checkers();
        let decoded = if kind == KINDS[0] {
            decode_one::<StagingNetwork>(&checkers.network, &value).map(Decoded::Network)
        } else {
            decode_one::<NatMapping>(&checkers.mapping, &value).map(Decoded::Mapping)
        };
        let mut decoded = match decoded {
            Ok(decoded) => decoded,
            Err(problems) => {
                for problem in problems {
                    self.problem(place, &label, problem);
                }
                return;
            }
        };
        let key = decoded.settle();
        let here = format!("{}: document {}", place.file, place.document);
        if let Some(there) = self.declared.get(&key) {
            let message = format!("is declared twice: the one in {there} counts");
            return self.problem(place, &label, FieldProblem::new("", message));
        }
        self.declared.insert(key, here);
        match decoded {
            Decoded::Network(network) => self.out.networks.push(network),
            Decoded::Mapping(mapping) => self.out.mappings.push(mapping),
        }
    }

    fn unreadable(&mut self, place: Place<'_>, message: String) {
        self.out.unreadable.insert(place.file.to_owned());
        self.problem(place, "", FieldProblem::new("", message));
    }

    fn problem(&mut self, place: Place<'_>, object: &str, problem: FieldProblem) {
        if self.out.problems.len() >= PROBLEMS_MAX {
            self.out.more_problems += 1;
            return;
        }
        self.out.problems.push(Problem {
            file: place.file.to_owned(),
            document: place.document,
            object: object.to_owned(),
            field: problem.field,
            message: problem.message,
        });
    }
}

/// Frees what decoding keeps for the next file. Worth it where there will be none for long.
pub fn rest() {
    strict::forget();
}

// One at a time, on the stack: its size does not matter.
#[allow(clippy::large_enum_variant)]
enum Decoded {
    Network(StagingNetwork),
    Mapping(NatMapping),
}

impl Decoded {
    /// Puts the object where it belongs; the answer is its kind and name.
    fn settle(&mut self) -> String {
        match self {
            Decoded::Network(network) => {
                network.metadata.namespace = None;
                format!("{} {}", KINDS[0], network.metadata.name.as_deref().unwrap_or_default())
            }
            Decoded::Mapping(mapping) => {
                let name = mapping.metadata.name.as_deref().unwrap_or_default();
                let namespace = mapping.metadata.namespace.get_or_insert_with(|| DEFAULT_NAMESPACE.to_owned());
                format!("{} {namespace}/{name}", KINDS[1])
            }
        }
    }
}

/// Which of our kinds an object says it is, and how to call it in a message.
fn identify(value: &Value) -> Result<(&'static str, String), (String, FieldProblem)> {
    if !value.is_object() {
        let message = "must be an object with apiVersion, kind, metadata and spec";
        return Err((String::new(), FieldProblem::new("", message)));
    }
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(short);
    let (Some(kind), Some(version)) = (text("/kind"), text("/apiVersion")) else {
        let field = if value.get("kind").is_some_and(Value::is_string) {
            "apiVersion"
        } else {
            "kind"
        };
        return Err((String::new(), FieldProblem::new(field, "must be given, as a string")));
    };
    let name = text("/metadata/name").unwrap_or_else(|| "without a name".to_owned());
    let label = match text("/metadata/namespace") {
        Some(namespace) if kind == KINDS[1] => format!("{kind} {namespace}/{name}"),
        _ => format!("{kind} {name}"),
    };
    let Some(known) = KINDS.into_iter().find(|known| *known == kind) else {
        let message = if kind == "GatewayNode" {
            "is written by agents only and must not be given".to_owned()
        } else if let Some(meant) = strict::nearest(&kind, KINDS.into_iter()) {
            format!("unknown kind {kind}; did you mean {meant}?")
        } else {
            format!(
                "kind {kind} of {version} is not used here and is left out; known: {}",
                KINDS.join(", ")
            )
        };
        return Err((label, FieldProblem::new("kind", message)));
    };
    let wanted = format!("{GROUP}/{VERSION}");
    if version != wanted {
        return Err((label, FieldProblem::new("apiVersion", format!("must be {wanted}, is {version}"))));
    }
    Ok((known, label))
}

fn decode_one<T: DeserializeOwned>(checker: &Checker, value: &Value) -> Result<T, Vec<FieldProblem>> {
    let mut problems = metadata_problems(value.get("metadata").unwrap_or(&Value::Null));
    problems.extend(checker.structure(value));
    if problems.is_empty() {
        // Rules take a right structure for granted.
        problems.extend(checker.rules(value));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    T::deserialize(value).map_err(|error| vec![FieldProblem::new("", format!("cannot be read: {error}"))])
}

fn metadata_problems(metadata: &Value) -> Vec<FieldProblem> {
    let mut problems = Vec::new();
    let Some(fields) = metadata.as_object() else {
        return vec![FieldProblem::new("metadata.name", "must be given")];
    };
    for name in fields.keys() {
        if !METADATA.contains(&name.as_str()) {
            let field = strict::join("metadata", name);
            problems.push(FieldProblem::new(field, strict::unknown(name, METADATA.into_iter())));
        }
    }
    match fields.get("name") {
        Some(Value::String(name)) if dns_name(name, 253, true) => {}
        Some(Value::String(_)) => problems.push(FieldProblem::new(
            "metadata.name",
            "must be a name: lower-case letters, digits, '-' and '.', the first and last a letter or digit, at most 253 characters",
        )),
        _ => problems.push(FieldProblem::new("metadata.name", "must be given, as a string")),
    }
    match fields.get("namespace") {
        None | Some(Value::Null) => {}
        Some(Value::String(namespace)) if dns_name(namespace, 63, false) => {}
        Some(_) => problems.push(FieldProblem::new(
            "metadata.namespace",
            "must be the name of a namespace: lower-case letters, digits and '-', at most 63 characters",
        )),
    }
    problems
}

/// RFC 1123 labels, one or, where dots are allowed, several.
fn dns_name(name: &str, longest: usize, dots: bool) -> bool {
    let label = |label: &str| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
    };
    name.len() <= longest && if dots { name.split('.').all(label) } else { label(name) }
}

/// Fields of `metadata`, as in meta/v1. `selfLink` has been without meaning since Kubernetes 1.20, but is still accepted.
const METADATA: [&str; 15] = [
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// What kubectl and the API server read in a value: `field: null` is a field left out wherever the schema does not say `nullable`, as none of ours does,
/// and 443.0 is 443.
fn as_the_server_reads(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, child| !child.is_null());
            fields.values_mut().for_each(as_the_server_reads);
        }
        Value::Array(items) => items.iter_mut().for_each(as_the_server_reads),
        Value::Number(number) if number.is_f64() => {
            // As in JSON itself, a double that has no fraction and no rounding is printed as a whole number.
            if let Some(whole) = number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 9e15) {
                *value = format!("{whole:.0}").parse::<i64>().map_or(Value::Null, Value::from);
            }
        }
        _ => {}
    }
}

fn short(text: &str) -> String {
    let clean = text.chars().map(|c| if c.is_control() { '?' } else { c });
    if text.chars().count() > 80 {
        clean.take(80).chain("...".chars()).collect()
    } else {
        clean.collect()
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// Numbers that different YAML versions read differently (0443, `1_000`) stay strings, and are refused where a number is meant.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_reader_input_bytes: Some(FILE_MAX),
            max_nodes: 1_000_000,
            max_events: 4_000_000,
        },
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
    }
}

#[cfg(test)]
#[path = "decode_tests.rs"]
mod tests;
