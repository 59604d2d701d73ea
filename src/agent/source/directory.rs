//! Standalone: objects from the YAML files of a directory.
//!
//! A file that cannot be used keeps its last good objects in force and is named as a problem; the other files are not affected. A file
//! that is deleted takes its objects with it; a directory that is gone takes nothing, because that is a mount that comes back or a mistake.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kube::ResourceExt;
use notify::{RecursiveMode, Watcher as _};
use tokio::sync::{mpsc, watch};

use super::{Problem, Snapshot, Snapshots};
use crate::agent::AgentError;
use crate::api::decode::{self, Manifests};
use crate::api::{NatMapping, StagingNetwork};

/// How long the directory must be quiet before it is read: editors and `cp` write a file in several steps, and half a file may be valid.
const QUIET: Duration = Duration::from_millis(100);
/// The directory is read at least this long after the first sign, however unquiet it is.
const QUIET_MAX: Duration = Duration::from_secs(1);
/// Read without any sign at this interval: network file systems and bind mounts give none.
const RESCAN: Duration = Duration::from_secs(10);

/// What a file looked like when it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
}

#[derive(Clone, Debug)]
struct File {
    stamp: Stamp,
    good: Good,
    problems: Vec<Problem>,
}

/// The objects of a file, each from the last version of it that could be used.
#[derive(Clone, Debug, Default)]
struct Good {
    networks: Vec<StagingNetwork>,
    mappings: Vec<NatMapping>,
}

/// A directory of manifests, as last read.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    files: BTreeMap<PathBuf, File>,
    gone: Option<String>,
}

impl Directory {
    /// Nothing is read yet.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            files: BTreeMap::new(),
            gone: None,
        }
    }

    /// Reads what has changed since the last call and tells whether anything had.
    ///
    /// # Errors
    /// The directory itself cannot be listed. What was read before stays.
    pub fn scan(&mut self) -> io::Result<bool> {
        let listed = match list(&self.path) {
            Ok(listed) => listed,
            Err(error) => {
                self.gone = Some(error.to_string());
                return Err(error);
            }
        };
        let mut changed = self.gone.take().is_some();
        let before = self.files.len();
        self.files.retain(|path, _| listed.contains_key(path));
        changed |= self.files.len() != before;
        for (path, stamp) in listed {
            if self.files.get(&path).is_some_and(|f| f.stamp == stamp) {
                continue;
            }
            changed = true;
            let name = path.display().to_string();
            let before = self.files.remove(&path).map(|f| f.good).unwrap_or_default();
            let file = match fs::read_to_string(&path) {
                Ok(text) => take(&name, &decode::decode([(name.as_str(), text.as_str())]), before, stamp),
                Err(error) => File {
                    stamp,
                    good: before,
                    problems: vec![Problem {
                        place: name,
                        message: format!("reading it: {error}; what it said before stays in force"),
                    }],
                },
            };
            self.files.insert(path, file);
        }
        Ok(changed)
    }

    /// All objects in force and all problems. Of two objects of one kind and name, the one in the first file by name counts.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        let mut owners: BTreeMap<String, &Path> = BTreeMap::new();
        if let Some(why) = &self.gone {
            snapshot.problems.push(Problem {
                place: self.path.display().to_string(),
                message: format!("{why}; what was read before stays in force"),
            });
        }
        for (path, file) in &self.files {
            snapshot.problems.extend(file.problems.iter().cloned());
            let mut first = |id: String, problems: &mut Vec<Problem>| match owners.get(&id) {
                Some(first) => {
                    problems.push(Problem {
                        place: path.display().to_string(),
                        message: format!("{id} is in {} already; this one is ignored", first.display()),
                    });
                    false
                }
                None => owners.insert(id, path).is_none(),
            };
            for network in &file.good.networks {
                if first(network_id(network), &mut snapshot.problems) {
                    snapshot.networks.push(network.clone());
                }
            }
            for mapping in &file.good.mappings {
                if first(mapping_id(mapping), &mut snapshot.problems) {
                    snapshot.mappings.push(mapping.clone());
                }
            }
        }
        snapshot
    }
}

fn network_id(network: &StagingNetwork) -> String {
    format!("StagingNetwork {}", network.name_any())
}

fn mapping_id(mapping: &NatMapping) -> String {
    format!("NatMapping {}/{}", mapping.namespace().unwrap_or_default(), mapping.name_any())
}

/// What of a file is in force now: what it says, and the last good version of what it says wrongly.
fn take(name: &str, now: &Manifests, before: Good, stamp: Stamp) -> File {
    let lost = now.unreadable.contains(name);
    // A misspelt kind takes nothing away either, and a problem of an object that nobody can name may be anyone's.
    let called = |object: &str, name: &str| object.is_empty() || object.rsplit([' ', '/']).next() == Some(name);
    let wrong = |name: &str| lost || now.problems.iter().any(|p| called(&p.object, name));
    let mut good = Good {
        networks: now.networks.clone(),
        mappings: now.mappings.clone(),
    };
    let mut kept = 0_usize;
    for old in before.networks {
        if wrong(&old.name_any()) && !good.networks.iter().any(|n| n.name_any() == old.name_any()) {
            good.networks.push(old);
            kept += 1;
        }
    }
    let present: BTreeSet<String> = good.mappings.iter().map(mapping_id).collect();
    for old in before.mappings {
        if wrong(&old.name_any()) && !present.contains(&mapping_id(&old)) {
            good.mappings.push(old);
            kept += 1;
        }
    }
    let mut problems: Vec<Problem> = now.problems.iter().map(|p| problem(name, p)).collect();
    if now.more_problems > 0 {
        problems.push(Problem {
            place: name.to_owned(),
            message: format!("{} more problems", now.more_problems),
        });
    }
    if kept > 0 {
        problems.push(Problem {
            place: name.to_owned(),
            message: format!("the last good version of {kept} of its objects stays in force"),
        });
    }
    File { stamp, good, problems }
}

fn problem(file: &str, found: &decode::Problem) -> Problem {
    let text = found.to_string();
    Problem {
        place: file.to_owned(),
        message: text.strip_prefix(&format!("{file}: ")).unwrap_or(&text).to_owned(),
    }
}

fn list(path: &Path) -> io::Result<BTreeMap<PathBuf, Stamp>> {
    let mut listed = BTreeMap::new();
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        let yaml = path.extension().is_some_and(|e| e == "yaml" || e == "yml");
        // A file that vanished between the two calls is deleted: it will not be listed next time either.
        let Ok(meta) = fs::metadata(&path) else { continue };
        if yaml && !hidden && meta.is_file() {
            let stamp = Stamp {
                modified: meta.modified().ok(),
                length: meta.len(),
            };
            listed.insert(path, stamp);
        }
    }
    Ok(listed)
}

/// Reads `path` once.
pub fn read(path: &Path) -> Result<Snapshot, AgentError> {
    let mut directory = Directory::new(path);
    directory.scan().map_err(|source| AgentError::Manifests {
        path: path.to_owned(),
        source,
    })?;
    Ok(directory.snapshot())
}

/// Reads `path` and keeps reading it, in a task of its own that ends with the receiver.
pub fn watch(path: &Path) -> Result<(Snapshots, tokio::task::JoinHandle<()>), AgentError> {
    let (signs, mut seen) = mpsc::channel(1);
    // A full channel holds a sign already; more say nothing new.
    let mut watcher = notify::recommended_watcher(move |_| {
        let _ = signs.try_send(());
    })
    .map_err(|source| AgentError::Watch {
        path: path.to_owned(),
        source,
    })?;
    let mut directory = Directory::new(path);
    directory.scan().map_err(|source| AgentError::Manifests {
        path: path.to_owned(),
        source,
    })?;
    let mut watching = watcher.watch(path, RecursiveMode::NonRecursive).is_ok();
    let (sender, receiver) = watch::channel(Some(Arc::new(directory.snapshot())));
    let path = path.to_owned();
    let task = tokio::spawn(async move {
        let mut reread = !watching;
        loop {
            let sign = tokio::time::timeout(RESCAN, seen.recv()).await.is_ok();
            if sender.is_closed() {
                return;
            }
            if sign {
                settle(&mut seen).await;
            }
            match directory.scan() {
                Ok(changed) if changed || reread => drop(sender.send_replace(Some(Arc::new(directory.snapshot())))),
                Ok(_) => {}
                Err(error) => {
                    if watching {
                        tracing::warn!(directory = %path.display(), %error, "the manifests cannot be read; what was read before stays in force");
                        sender.send_replace(Some(Arc::new(directory.snapshot())));
                    }
                    // The directory that comes back is another one to the kernel.
                    let _ = watcher.unwatch(&path);
                    watching = false;
                    continue;
                }
            }
            reread = false;
            if !watching {
                watching = watcher.watch(&path, RecursiveMode::NonRecursive).is_ok();
            }
        }
    });
    Ok((receiver, task))
}

async fn settle(seen: &mut mpsc::Receiver<()>) {
    let latest = tokio::time::Instant::now() + QUIET_MAX;
    while tokio::time::Instant::now() < latest && tokio::time::timeout(QUIET, seen.recv()).await.is_ok_and(|sign| sign.is_some()) {}
}
