//! Which network has which identifier, kept in the state directory: what a cluster keeps in the networks' status.
//!
//! An identifier is in force only once it is on disk: an agent that is started anew must not give it to another network, whose packets would then be led
//! where the first one's are. The identifier of a deleted network is free again when a pass was completed without the network. A record that is damaged is
//! said to be, and all identifiers are given anew: never one to two networks, but open connections of isolated networks may end.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use serde::{Deserialize, Serialize};

use crate::agent::files;
use crate::agent::source::{Problem, Snapshot};
use crate::api::StagingNetwork;
use crate::api::network::Isolation;
use crate::plan::{self, Borrowed, NodeFacts, View, isolation};

/// In the state directory.
const FILE: &str = "identifiers.json";
/// Largest record, in bytes: every identifier given, to networks with the longest names.
const RECORD_MAX: u64 = 4 << 20;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    networks: BTreeMap<String, Isolation>,
    /// Networks that were there before: of those that come to share addresses, they have connections already. Manifests have no creation time that could tell.
    #[serde(default)]
    known: BTreeSet<String>,
}

/// The identifiers of one state directory.
#[derive(Debug, Default)]
pub(super) struct Identifiers {
    /// None: there is no state directory, and they are kept in memory only.
    path: Option<PathBuf>,
    given: Record,
    /// Why the record could not be read, or not be written.
    problem: Option<String>,
}

impl Identifiers {
    /// Reads what an earlier agent recorded.
    pub(super) fn load(state_dir: &Path) -> Self {
        let path = state_dir.join(FILE);
        let (given, problem) = match read(&path) {
            Ok(given) => (given, None),
            Err(error) => {
                let problem = format!(
                    "the record of the networks' identifiers is damaged ({error}); they are given anew, and open connections of networks that share their inside \
                     addresses with others may end"
                );
                (Record::default(), Some(problem))
            }
        };
        if let Some(problem) = &problem {
            tracing::warn!(path = %path.display(), "{problem}");
        }
        Self {
            path: Some(path),
            given,
            problem,
        }
    }

    /// Gives the networks of `snapshot` what they have or need. One whose identifier cannot be recorded gets none: it is fenced, and not served.
    pub(super) fn assign(&mut self, snapshot: &mut Snapshot) {
        isolate(snapshot, &self.given.networks);
        let wanted = self.wanted(snapshot);
        let mut said = self.problem.take();
        if wanted != self.given || said.is_some() {
            match self.record(&wanted) {
                Ok(()) => self.given = wanted,
                // Nothing is lost but who came first, should this agent end before the next network comes.
                Err(error) if wanted.networks == self.given.networks && said.is_none() => {
                    tracing::debug!(%error, "recording which networks there are");
                    self.given = wanted;
                }
                Err(error) => {
                    self.problem = Some(format!(
                        "recording the networks' identifiers: {error}; networks that share their inside addresses with others and have none yet are not served"
                    ));
                    said.clone_from(&self.problem);
                }
            }
            isolate(snapshot, &self.given.networks);
        }
        if let (Some(path), Some(message)) = (&self.path, said) {
            let place = path.display().to_string();
            snapshot.problems.push(Problem { place, message });
        }
    }

    /// Whether the last try to record them failed.
    pub(super) fn unrecorded(&self) -> bool {
        self.problem.is_some()
    }

    /// What is given already, and to networks without what they need. Identifiers of networks that are gone stay taken.
    fn wanted(&self, snapshot: &Snapshot) -> Record {
        let networks: Vec<_> = snapshot.networks.iter().map(|network| self.aged(network)).collect();
        let view = View {
            networks: Borrowed::Owned(&networks),
            mappings: Borrowed::default(),
            // Standalone, the one node is the gateway of every network, whatever its name and interfaces.
            nodes: Borrowed::Owned(&[NodeFacts::default()]),
            namespaces: &snapshot.namespaces,
        };
        let mut wanted = self.given.networks.clone();
        let mut taken: BTreeSet<u32> = wanted.values().map(|isolation| isolation.identifier).collect();
        for (name, mut isolation) in isolation::allocate(view, &plan::judge(view)) {
            if wanted.contains_key(&name) {
                continue;
            }
            if !taken.insert(isolation.identifier) {
                let Some(free) = (1..=isolation::IDENTIFIER_MAX).find(|n| taken.insert(*n)) else {
                    continue;
                };
                isolation.identifier = free;
                if isolation.zone != 0 {
                    isolation.zone = u16::try_from(free).unwrap_or(u16::MAX);
                }
            }
            wanted.insert(name, isolation);
        }
        let here = networks.iter().map(ResourceExt::name_any);
        Record {
            networks: wanted,
            known: self.given.known.iter().cloned().chain(here).collect(),
        }
    }

    /// The network, older than all that were not there before if it was.
    fn aged(&self, network: &StagingNetwork) -> StagingNetwork {
        let mut network = network.clone();
        let known = self.given.known.contains(&network.name_any());
        network.metadata.creation_timestamp = Some(Time(if known { Timestamp::MIN } else { Timestamp::UNIX_EPOCH }));
        network
    }

    /// Nothing of other networks than these is in the kernel or declared: what others had is free again.
    pub(super) fn release(&mut self, networks: &BTreeSet<String>) {
        let mut left = self.given.clone();
        left.networks.retain(|name, _| networks.contains(name));
        left.known.retain(|name| networks.contains(name));
        if left == self.given {
            return;
        }
        match self.record(&left) {
            Ok(()) => self.given = left,
            Err(error) => tracing::warn!(%error, "recording that identifiers of deleted networks are free; it is tried again"),
        }
    }

    fn record(&self, record: &Record) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        files::replace(path, &serde_json::to_vec(record).map_err(io::Error::other)?)
    }
}

/// Puts identifiers where a cluster has them. What a manifest says itself counts for nothing.
fn isolate(snapshot: &mut Snapshot, given: &BTreeMap<String, Isolation>) {
    for network in &mut snapshot.networks {
        let isolation = given.get(&network.name_any()).copied();
        if isolation.is_some() || network.status.is_some() {
            Arc::make_mut(network).status.get_or_insert_default().isolation = isolation;
        }
    }
}

fn read(path: &Path) -> io::Result<Record> {
    match fs::metadata(path) {
        // No state directory, no record. Whether there can be one shows when there is something to record.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(Record::default()),
        Ok(meta) if meta.len() > RECORD_MAX => return Err(io::Error::other("it is larger than any record")),
        Err(error) => return Err(error),
        Ok(_) => {}
    }
    let record: Record = serde_json::from_slice(&fs::read(path)?)?;
    let mut taken = BTreeSet::new();
    for (name, isolation) in &record.networks {
        let own_zone = isolation.zone == 0 || u32::from(isolation.zone) == isolation.identifier;
        let usable = (1..=isolation::IDENTIFIER_MAX).contains(&isolation.identifier) && own_zone;
        if !usable || !taken.insert(isolation.identifier) {
            return Err(io::Error::other(format!(
                "identifier {} of network {name} cannot be, or is another network's too",
                isolation.identifier
            )));
        }
    }
    Ok(record)
}

/// Removes the record of a state directory. The answer is how many networks were in it.
///
/// # Errors
/// It could not be removed.
pub fn clear(state_dir: &Path) -> io::Result<usize> {
    let path = state_dir.join(FILE);
    let count = read(&path).map_or(1, |record| record.networks.len());
    match fs::remove_file(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        other => other.map(|()| count),
    }
}
