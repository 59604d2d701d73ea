//! One manifest: what it says, and what of it is in force.
//!
//! What a file says wrongly keeps its last good version in force. A file that says nothing wrong is in force just as it is.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use serde::{Deserialize, Serialize};

use crate::agent::source::Problem;
use crate::api::decode::{self, Manifests};
use crate::api::{NatMapping, StagingNetwork};
use crate::plan::Namespaces;

/// Objects that a message names; of the others it gives the number.
const NAMED: usize = 3;

/// What a file looked like when it was read. The change time tells of new permissions and of a replacement that kept the old modification time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    modified: Option<SystemTime>,
    changed: (i64, i64),
    length: u64,
}

impl Stamp {
    pub(super) fn new(meta: &Metadata) -> Self {
        Self {
            modified: meta.modified().ok(),
            changed: (meta.ctime(), meta.ctime_nsec()),
            length: meta.len(),
        }
    }
}

/// The objects of a file that are in force, each from the last version of the file in which it could be used.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Good {
    /// When the file was last put there without anything wrong, in seconds of Unix time. None: never since it is known.
    pub(super) version: Option<i64>,
    /// Since when something has been wrong with it, in seconds of Unix time.
    pub(super) wrong: Option<i64>,
    pub(super) networks: Vec<StagingNetwork>,
    #[serde(default)]
    pub(super) namespaces: Namespaces,
    #[serde(with = "each")]
    pub(super) mappings: Vec<Arc<NatMapping>>,
}

/// Shared objects as they are written one by one.
mod each {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<T: Serialize, S: Serializer>(all: &[Arc<T>], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(all.iter().map(AsRef::as_ref))
    }

    pub(super) fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Vec<Arc<T>>, D::Error> {
        let all = Vec::<T>::deserialize(from)?;
        let mut shared = Vec::with_capacity(all.len());
        shared.extend(all.into_iter().map(Arc::new));
        Ok(shared)
    }
}

/// A file as last read.
#[derive(Clone, Debug, Default)]
pub(super) struct File {
    /// None: not read, what is in force was recorded by an earlier agent.
    pub(super) stamp: Option<Stamp>,
    pub(super) good: Good,
    pub(super) problems: Vec<Problem>,
}

impl File {
    /// Reads `path`. What it says wrongly stays as in `before`.
    pub(super) fn read(path: &Path, stamp: Stamp, before: Good) -> Self {
        let name = path.display().to_string();
        let since = stamp.changed.0;
        let (good, problems) = match fs::read_to_string(path) {
            Ok(text) => take(&name, decode::decode([(name.as_str(), text.as_str())]), before, since),
            Err(error) => {
                let mut problems = vec![Problem {
                    place: name.clone(),
                    message: format!("reading it: {error}"),
                }];
                let good = Good {
                    wrong: before.wrong.or(Some(since)),
                    ..before
                };
                let kept = good
                    .networks
                    .iter()
                    .map(network_id)
                    .chain(good.namespaces.keys().map(|name| namespace_id(name)))
                    .chain(good.mappings.iter().map(|mapping| mapping_id(mapping)))
                    .collect();
                problems.extend(still_in_force(&name, &good, kept));
                (good, problems)
            }
        };
        Self {
            stamp: Some(stamp),
            good,
            problems,
        }
    }
}

/// Collecting from the vector itself would reuse its memory, which is that of the objects.
fn shared(all: Vec<NatMapping>) -> Vec<Arc<NatMapping>> {
    let mut shared = Vec::with_capacity(all.len());
    shared.extend(all.into_iter().map(Arc::new));
    shared
}

pub(super) fn namespace_id(name: &str) -> String {
    format!("Namespace {name}")
}

pub(super) fn network_id(network: &StagingNetwork) -> String {
    format!("StagingNetwork {}", network.name_any())
}

pub(super) fn mapping_id(mapping: &NatMapping) -> String {
    format!("NatMapping {}/{}", mapping.namespace().unwrap_or_default(), mapping.name_any())
}

/// What of a file is in force now: what it says, and the last good version of what it says wrongly.
fn take(name: &str, now: Manifests, before: Good, since: i64) -> (Good, Vec<Problem>) {
    let (lost, found) = (now.unreadable.contains(name), now.problems);
    // A misspelt kind takes nothing away either, and a problem of an object that nobody can name may be anyone's.
    let called = |object: &str, name: &str| object.is_empty() || object.rsplit([' ', '/']).next() == Some(name);
    let wrong = |name: &str| lost || found.iter().any(|p| called(&p.object, name));
    let mut good = Good {
        version: Some(since),
        wrong: None,
        networks: now.networks,
        namespaces: now.namespaces,
        mappings: shared(now.mappings),
    };
    let mut kept = Vec::new();
    for old in before.networks {
        if wrong(&old.name_any()) && !good.networks.iter().any(|n| n.name_any() == old.name_any()) {
            kept.push(network_id(&old));
            good.networks.push(old);
        }
    }
    for (old, labels) in before.namespaces {
        // Of a namespace that cannot be read nobody knows which one it is.
        let unnamed = found.iter().any(|p| p.object == "Namespace");
        if (unnamed || wrong(&old)) && !good.namespaces.contains_key(&old) {
            kept.push(namespace_id(&old));
            good.namespaces.insert(old, labels);
        }
    }
    let present: BTreeSet<String> = good.mappings.iter().map(|mapping| mapping_id(mapping)).collect();
    for old in before.mappings {
        let id = mapping_id(&old);
        if wrong(&old.name_any()) && !present.contains(&id) {
            kept.push(id);
            good.mappings.push(old);
        }
    }
    let mut problems: Vec<Problem> = found.iter().map(|p| problem(name, p)).collect();
    if now.more_problems > 0 {
        problems.push(Problem {
            place: name.to_owned(),
            message: format!("{} more problems", now.more_problems),
        });
    }
    if !problems.is_empty() {
        (good.version, good.wrong) = (before.version, before.wrong.or(Some(since)));
    }
    problems.extend(still_in_force(name, &good, kept));
    (good, problems)
}

/// Says what of a file stays in force although the file no longer says it. None: nothing.
fn still_in_force(name: &str, good: &Good, mut kept: Vec<String>) -> Option<Problem> {
    if kept.is_empty() {
        return None;
    }
    kept.sort();
    let more = kept.len().saturating_sub(NAMED);
    kept.truncate(NAMED);
    let mut objects = kept.join(", ");
    if more > 0 {
        objects = format!("{objects} and {more} more");
    }
    let when = |seconds: Option<i64>| seconds.and_then(|s| Timestamp::from_second(s).ok());
    let since = when(good.wrong).map(|t| format!(" since {t}")).unwrap_or_default();
    let version = when(good.version).map(|t| format!(" of {t}")).unwrap_or_default();
    Some(Problem {
        place: name.to_owned(),
        message: format!(
            "cannot be used as it is{since}; the last good version{version} stays in force for {objects}: mend the file, or delete it to remove them"
        ),
    })
}

fn problem(file: &str, found: &decode::Problem) -> Problem {
    let text = found.to_string();
    Problem {
        place: file.to_owned(),
        message: text.strip_prefix(&format!("{file}: ")).unwrap_or(&text).to_owned(),
    }
}
