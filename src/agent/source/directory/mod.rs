//! Standalone: objects from the YAML files of a directory.
//!
//! A file that cannot be used keeps its last good objects in force and is named as a problem; the other files are not affected. A file
//! that is deleted takes its objects with it; a directory that is gone takes nothing, because that is a mount that comes back or a mistake.
//! What is in force is recorded in the state directory, so that all this is so for an agent that was started anew, too.

mod file;
mod identifiers;
mod records;

pub use identifiers::clear as clear_identifiers;
pub use records::clear;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecursiveMode, Watcher as _};
use tokio::sync::{mpsc, watch};

use super::{Problem, Snapshot, Snapshots};
use crate::agent::AgentError;
use crate::agent::runner::{Report, Reports};
use crate::api::decode;
use crate::plan::{self, Namespaces};
use file::{File, Stamp, mapping_id, namespace_id, network_id};
use identifiers::Identifiers;
use records::Records;

/// How long the directory must be quiet before it is read: editors and `cp` write a file in several steps, and half a file may be valid.
const QUIET: Duration = Duration::from_millis(100);
/// The directory is read at least this long after the first sign, however unquiet it is.
const QUIET_MAX: Duration = Duration::from_secs(1);
/// Read without any sign at this interval: network file systems and bind mounts give none.
const RESCAN: Duration = Duration::from_secs(10);
/// A directory that cannot be read is tried again at this interval.
const RETRY: Duration = Duration::from_secs(1);

/// A directory of manifests, as last read.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    files: BTreeMap<PathBuf, File>,
    /// Why it cannot be listed.
    gone: Option<String>,
    /// The file system that it was on when there was something in it.
    device: Option<u64>,
    records: Option<Records>,
    identifiers: Identifiers,
    /// Files of which something else is in force than is recorded.
    unrecorded: BTreeSet<PathBuf>,
}

impl Directory {
    /// Nothing is read yet, and nothing is known of what was in force before.
    pub fn new(path: &Path) -> Self {
        Self {
            // A relative path would be another file's for an agent that is started elsewhere.
            path: std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
            files: BTreeMap::new(),
            gone: None,
            device: None,
            records: None,
            identifiers: Identifiers::default(),
            unrecorded: BTreeSet::new(),
        }
    }

    /// Nothing is read yet but what an earlier agent recorded in the state directory.
    pub fn remembering(path: &Path, state_dir: &Path) -> Self {
        let mut directory = Self::new(path);
        let (records, found, device) = Records::load(state_dir, &directory.path);
        let unread = |(path, good)| {
            let file = File { good, ..File::default() };
            (path, file)
        };
        directory.files = found.into_iter().map(unread).collect();
        directory.device = device;
        directory.records = Some(records);
        directory.identifiers = Identifiers::load(state_dir);
        directory
    }

    /// Reads what has changed since the last call and tells whether anything had.
    ///
    /// # Errors
    /// The directory itself cannot be listed. What was read before stays.
    pub fn scan(&mut self) -> io::Result<bool> {
        let (listed, device) = match list(&self.path).and_then(|listed| self.mounted(listed)) {
            Ok(found) => found,
            Err(error) => {
                self.gone = Some(error.to_string());
                return Err(error);
            }
        };
        if !listed.is_empty() {
            self.device = Some(device);
        }
        let (mut changed, mut read) = (self.gone.take().is_some(), false);
        let before = self.files.len();
        self.files.retain(|path, _| listed.contains_key(path));
        changed |= self.files.len() != before;
        for (path, stamp) in listed {
            if self.files.get(&path).is_some_and(|f| f.stamp.as_ref() == Some(&stamp)) {
                continue;
            }
            changed = true;
            let before = self.files.remove(&path).map(|f| f.good);
            let file = File::read(&path, stamp, before.clone().unwrap_or_default());
            if before.as_ref() != Some(&file.good) {
                self.unrecorded.insert(path.clone());
            }
            self.files.insert(path, file);
            read = true;
        }
        if read {
            decode::rest();
        }
        Ok(changed)
    }

    /// An empty directory is a wish, an unmounted volume is none: what is left of it is an empty directory on another file system.
    fn mounted(&self, (listed, device): (BTreeMap<PathBuf, Stamp>, u64)) -> io::Result<(BTreeMap<PathBuf, Stamp>, u64)> {
        if listed.is_empty() && !self.files.is_empty() && self.device.is_some_and(|before| before != device) {
            return Err(io::Error::other(
                "another file system is there now, without any manifest: a volume was unmounted",
            ));
        }
        Ok((listed, device))
    }

    /// Whether anything is known of the directory's content: it could be listed, or an earlier agent recorded something.
    pub fn is_known(&self) -> bool {
        self.gone.is_none() || !self.files.is_empty()
    }

    /// Records what is in force, for the next agent. Not needed for this one, so it may come late.
    pub fn record(&mut self) {
        if self.gone.is_some() {
            return;
        }
        let Some(records) = &mut self.records else { return };
        records.retain(|path| self.files.contains_key(path));
        for path in std::mem::take(&mut self.unrecorded) {
            if let Some(file) = self.files.get(&path) {
                records.keep(&path, self.device.unwrap_or_default(), &file.good);
            }
        }
    }

    /// All objects in force and all problems. Of two objects of one kind and name, the one in the first file by name counts.
    /// Networks with the same inside are told apart by identifiers that the state directory keeps.
    pub fn snapshot(&mut self) -> Snapshot {
        let mut snapshot = self.said();
        self.identifiers.assign(&mut snapshot);
        snapshot
    }

    /// A pass came to its end. What its snapshot did not have is gone from the kernel.
    pub fn done(&mut self, report: &Report) {
        if report.outcome.complete && report.outcome.held.is_empty() {
            let present = self.files.values().flat_map(|file| &file.good.networks);
            let served = report.snapshot.networks.iter().map(AsRef::as_ref);
            let networks = present.chain(served).map(ResourceExt::name_any);
            self.identifiers.release(&networks.collect());
        }
    }

    fn said(&self) -> Snapshot {
        let mut snapshot = Snapshot::default();
        let mut namespaces = Namespaces::new();
        let mut owners: BTreeMap<String, &Path> = BTreeMap::new();
        if let Some(why) = &self.gone {
            snapshot.problems.push(Problem {
                place: self.path.display().to_string(),
                message: format!(
                    "{why}; what was last read there stays in force; put the directory back, or run `stagenet cleanup` to remove everything"
                ),
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
                    snapshot.networks.push(Arc::new(network.clone()));
                }
            }
            for (name, labels) in &file.good.namespaces {
                if first(namespace_id(name), &mut snapshot.problems) {
                    namespaces.insert(name.clone(), labels.clone());
                }
            }
            for mapping in &file.good.mappings {
                if first(mapping_id(mapping), &mut snapshot.problems) {
                    snapshot.mappings.push(mapping.clone());
                }
            }
        }
        // Nobody looks at labels that nobody asks for.
        if snapshot.networks.iter().any(|network| network.selects_namespaces()) {
            snapshot.namespaces = plan::declared(namespaces, snapshot.mappings.iter().map(AsRef::as_ref));
        }
        snapshot
    }
}

/// The manifests of a directory, and the file system that it is on.
///
/// # Errors
/// The directory cannot be listed, or holds manifests in sub-directories only: the wrong one was named, and taking that for the wish to remove
/// everything would open what is closed.
fn list(path: &Path) -> io::Result<(BTreeMap<PathBuf, Stamp>, u64)> {
    let mut listed = BTreeMap::new();
    let mut folders = Vec::new();
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        // A file that vanished between the two calls is deleted: it will not be listed next time either.
        let Ok(meta) = fs::metadata(&path) else { continue };
        if is_hidden(&path) {
            continue;
        }
        if meta.is_dir() {
            folders.push(path);
        } else if meta.is_file() && is_yaml(&path) {
            listed.insert(path, Stamp::new(&meta));
        }
    }
    let has_yaml = |folder: &PathBuf| fs::read_dir(folder).is_ok_and(|mut found| found.any(|e| e.is_ok_and(|e| is_yaml(&e.path()))));
    if listed.is_empty()
        && let Some(folder) = folders.iter().find(|folder| has_yaml(folder))
    {
        let folder = folder.display();
        return Err(io::Error::other(format!(
            "there is no manifest in it, but in {folder}: sub-directories are not read, name that one"
        )));
    }
    Ok((listed, fs::metadata(path)?.dev()))
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

fn is_yaml(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "yaml" || e == "yml")
}

/// Reads `path` once. What is in force of its files is taken from the state directory where they are broken, and recorded there.
///
/// # Errors
/// The directory cannot be listed. Nothing is recorded then.
pub fn read(path: &Path, state_dir: &Path) -> Result<Directory, AgentError> {
    let mut directory = Directory::remembering(path, state_dir);
    directory.scan().map_err(|source| AgentError::Manifests {
        path: path.to_owned(),
        source,
    })?;
    directory.record();
    Ok(directory)
}

/// Reads `path` and keeps reading it, in a task of its own that ends with the receiver. A directory that is not there (yet) is waited for: until it is,
/// what an earlier agent recorded is in force, or nothing is delivered if there is no such record. `reports` tell what is gone from the kernel.
///
/// # Errors
/// The kernel gives no signs of changes.
pub fn watch(path: &Path, state_dir: &Path, reports: Reports) -> Result<(Snapshots, tokio::task::JoinHandle<()>), AgentError> {
    let (signs, mut seen) = mpsc::channel(1);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading is told, too, and each scan would be the sign for the next.
        let read = event.is_ok_and(|e| e.kind.is_access() && e.kind != EventKind::Access(AccessKind::Close(AccessMode::Write)));
        if !read {
            // A full channel holds a sign already; more say nothing new.
            let _ = signs.try_send(());
        }
    })
    .map_err(|source| AgentError::Watch {
        path: path.to_owned(),
        source,
    })?;
    let path = path.to_owned();
    let mut directory = Directory::remembering(&path, state_dir);
    // Watched before it is read: what changes in between gives a sign.
    let mut watching = watcher.watch(&path, RecursiveMode::NonRecursive).is_ok();
    let mut listed = directory.scan();
    let (sender, receiver) = watch::channel(None);
    let task = tokio::spawn(async move {
        let mut readable = true;
        loop {
            if let Some(report) = reports.borrow().as_deref() {
                directory.done(report);
            }
            match listed {
                Ok(changed) => {
                    if changed || sender.borrow().is_none() || directory.identifiers.unrecorded() {
                        sender.send_replace(Some(Arc::new(directory.snapshot())));
                    }
                    if !readable {
                        tracing::info!(directory = %path.display(), "the manifests can be read again");
                    }
                    readable = true;
                    directory.record();
                }
                Err(error) => {
                    if readable {
                        let stays = if directory.is_known() {
                            sender.send_replace(Some(Arc::new(directory.snapshot())));
                            "what was last read there"
                        } else {
                            "whatever the node holds now"
                        };
                        tracing::warn!(directory = %path.display(), %error, "the manifests cannot be read; {stays} stays in force, it is tried again");
                    }
                    readable = false;
                    // The directory that comes back is another one to the kernel.
                    let _ = watcher.unwatch(&path);
                    watching = false;
                }
            }
            let pause = if readable { RESCAN } else { RETRY };
            let sign = tokio::time::timeout(pause, seen.recv()).await.is_ok();
            if sender.is_closed() {
                return;
            }
            if sign {
                settle(&mut seen).await;
            }
            if !watching {
                watching = watcher.watch(&path, RecursiveMode::NonRecursive).is_ok();
            }
            listed = directory.scan();
        }
    });
    Ok((receiver, task))
}

async fn settle(seen: &mut mpsc::Receiver<()>) {
    let latest = tokio::time::Instant::now() + QUIET_MAX;
    while tokio::time::Instant::now() < latest && tokio::time::timeout(QUIET, seen.recv()).await.is_ok_and(|sign| sign.is_some()) {}
}
