//! What is in force of each manifest, kept in the state directory, so that an agent that starts while a file is broken knows what it said before.
//!
//! One small JSON file for each manifest in `last-good/`, named by the hash of the manifest's path and replaced whole. A record never adds anything to
//! what a usable file says. One that cannot be read or written costs only this protection and is said in the log. Files of other names are not touched.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::file::Good;
use crate::agent::files;
use crate::api::decode::FILE_MAX;

/// Below the state directory.
const FOLDER: &str = "last-good";
/// Hexadecimal digits of SHA-256 in a record's name.
const DIGITS: usize = 16;
/// Largest record, in bytes: JSON of the largest manifest.
const RECORD_MAX: usize = 2 * FILE_MAX;
/// Most bytes of all records: the state directory is usually in memory.
const TOTAL_MAX: usize = 64 << 20;
/// Most records: each takes a page at least.
const COUNT_MAX: usize = 16_384;

#[derive(Serialize, Deserialize)]
struct Record {
    /// The manifest.
    file: PathBuf,
    /// File system that it was on.
    device: u64,
    #[serde(flatten)]
    good: Good,
}

/// The records of one state directory.
#[derive(Debug)]
pub(super) struct Records {
    folder: PathBuf,
    /// Size of each record, by the manifest it is about.
    known: BTreeMap<PathBuf, usize>,
    /// Whether it has been said that one could not be kept.
    said: bool,
}

impl Records {
    /// Reads all records. The answer is what of the manifests in `directory` was in force, and the file system they were on.
    pub(super) fn load(state_dir: &Path, directory: &Path) -> (Self, BTreeMap<PathBuf, Good>, Option<u64>) {
        let mut records = Self {
            folder: state_dir.join(FOLDER),
            known: BTreeMap::new(),
            said: false,
        };
        let (mut found, mut device) = (BTreeMap::new(), None);
        for path in listed(&records.folder).unwrap_or_default() {
            match read(&path) {
                Ok((record, size)) => {
                    if record.file.parent() == Some(directory) {
                        device = Some(record.device);
                        found.insert(record.file.clone(), record.good);
                    }
                    records.known.insert(record.file, size);
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "the record of a manifest's last good version is damaged and counts as lost");
                    let _ = fs::remove_file(&path);
                }
            }
        }
        (records, found, device)
    }

    /// Records what is in force of a manifest.
    pub(super) fn keep(&mut self, file: &Path, device: u64, good: &Good) {
        let record = Record {
            file: file.to_owned(),
            device,
            good: good.clone(),
        };
        let kept = serde_json::to_vec(&record).map_err(io::Error::other).and_then(|bytes| {
            let others: usize = self.known.iter().filter(|(known, _)| *known != file).map(|(_, size)| size).sum();
            let count = self.known.len() + usize::from(!self.known.contains_key(file));
            if bytes.len() > RECORD_MAX || others + bytes.len() > TOTAL_MAX || count > COUNT_MAX {
                return Err(io::Error::other("there are too many or too large manifests to record them all"));
            }
            fs::create_dir_all(&self.folder)?;
            files::replace(&self.path(file), &bytes)?;
            Ok(bytes.len())
        });
        match kept {
            Ok(size) => {
                self.known.insert(file.to_owned(), size);
            }
            Err(error) => {
                // An older version than the last good one must not come back.
                self.forget(file);
                if !std::mem::replace(&mut self.said, true) {
                    tracing::warn!(
                        state_dir = %self.folder.display(), file = %file.display(), %error,
                        "recording the last good version of a manifest; if the agent is started anew while the file is broken, its objects are lost"
                    );
                }
            }
        }
    }

    /// Forgets manifests that are not in `present`.
    pub(super) fn retain(&mut self, present: impl Fn(&Path) -> bool) {
        let gone: Vec<PathBuf> = self.known.keys().filter(|file| !present(file)).cloned().collect();
        for file in &gone {
            self.forget(file);
        }
    }

    fn forget(&mut self, file: &Path) {
        self.known.remove(file);
        if let Err(error) = fs::remove_file(self.path(file))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(file = %file.display(), %error, "removing the record of a manifest's last good version");
        }
    }

    fn path(&self, file: &Path) -> PathBuf {
        let mut name = String::new();
        for byte in Sha256::digest(file.as_os_str().as_encoded_bytes()).iter().take(DIGITS / 2) {
            // Writing to a string cannot fail.
            let _ = write!(name, "{byte:02x}");
        }
        self.folder.join(name + ".json")
    }
}

fn read(path: &Path) -> io::Result<(Record, usize)> {
    if fs::metadata(path)?.len() > RECORD_MAX as u64 {
        return Err(io::Error::other("it is larger than any record"));
    }
    let bytes = fs::read(path)?;
    Ok((serde_json::from_slice(&bytes)?, bytes.len()))
}

/// All records of a folder, sorted.
fn listed(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let ours = |path: &PathBuf| {
        let digits = |stem: &str| stem.len() == DIGITS && stem.bytes().all(|b| b.is_ascii_hexdigit());
        path.extension().is_some_and(|e| e == "json") && path.file_stem().and_then(|s| s.to_str()).is_some_and(digits)
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder)? {
        paths.extend(Some(entry?.path()).filter(ours));
    }
    paths.sort();
    paths.truncate(COUNT_MAX);
    Ok(paths)
}

/// Removes all records of a state directory. The answer is how many there were.
///
/// # Errors
/// One could not be removed.
pub fn clear(state_dir: &Path) -> io::Result<usize> {
    let folder = state_dir.join(FOLDER);
    let paths = match listed(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        other => other?,
    };
    for path in &paths {
        fs::remove_file(path)?;
    }
    // Somebody else's files keep it there.
    let _ = fs::remove_dir(&folder);
    Ok(paths.len())
}
