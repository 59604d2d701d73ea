//! What was found before settings of an interface were changed, kept in the state directory.
//!
//! One small file, `found.json`, written before the change it is about, under a temporary name and renamed: a crash leaves the old
//! record or the new one. An entry belongs to an interface by name *and* index; an interface that was made anew starts with the
//! kernel's defaults, so an old entry says nothing about it. An entry follows its interface when that is renamed. The directory should not outlive a boot (`/run`), as the settings do not.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::host::HostError;
use crate::netfilter::IfName;
use crate::plan::LinkSettings;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    index: u32,
    /// Whether it led into a closed network.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    inside: bool,
    /// Whether it had another name when it was recorded.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    renamed: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    forwarding: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    send_redirects: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rp_filter: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    proxy_delay: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    proxy_delay_ipv6: Option<u64>,
}

impl Entry {
    fn new(index: u32, found: &LinkSettings) -> Self {
        let LinkSettings {
            forwarding,
            send_redirects,
            rp_filter,
            proxy_delay,
            proxy_delay_ipv6,
        } = found.clone();
        Self {
            index,
            inside: false,
            renamed: false,
            forwarding,
            send_redirects,
            rp_filter,
            proxy_delay,
            proxy_delay_ipv6,
        }
    }

    fn settings(&self) -> LinkSettings {
        LinkSettings {
            forwarding: self.forwarding,
            send_redirects: self.send_redirects,
            rp_filter: self.rp_filter,
            proxy_delay: self.proxy_delay,
            proxy_delay_ipv6: self.proxy_delay_ipv6,
        }
    }
}

/// The record.
#[derive(Debug)]
pub(super) struct Found {
    directory: PathBuf,
    entries: BTreeMap<String, Entry>,
}

impl Found {
    /// Reads the record. One that cannot be read counts as lost: it is said in the log, and putting back then means the safe default.
    pub(super) fn load(directory: &Path) -> Self {
        let path = directory.join("found.json");
        let entries = match fs::read(&path).map(|bytes| serde_json::from_slice(&bytes)) {
            Ok(Ok(entries)) => entries,
            Ok(Err(error)) => {
                tracing::warn!(path = %path.display(), %error, "the record of interface settings is damaged and counts as lost");
                BTreeMap::new()
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the record of interface settings cannot be read and counts as lost");
                BTreeMap::new()
            }
        };
        Self {
            directory: directory.to_owned(),
            entries,
        }
    }

    /// Whether no interface was changed.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What was found on the interface before it was first changed.
    pub(super) fn get(&self, name: &IfName, index: u32) -> Option<LinkSettings> {
        self.entries.get(name.as_str()).filter(|e| e.index == index).map(Entry::settings)
    }

    /// Whether the interface that is recorded under this name was an inside interface.
    pub(super) fn is_inside(&self, name: &IfName) -> bool {
        self.entries.get(name.as_str()).is_some_and(|e| e.inside)
    }

    /// Whether the interface that is recorded under this name had another one.
    pub(super) fn is_renamed(&self, name: &IfName) -> bool {
        self.entries.get(name.as_str()).is_some_and(|e| e.renamed)
    }

    /// Moves entries to the present names of their interfaces: what leads into a closed network does so under any name.
    pub(super) fn follow(&mut self, names: &BTreeMap<u32, IfName>) -> Result<(), HostError> {
        let present = |entry: &Entry, old: &String| names.get(&entry.index).map_or_else(|| old.clone(), ToString::to_string);
        let (moved, kept): (Vec<_>, Vec<_>) =
            (self.entries.iter().map(|(old, entry)| (old, present(entry, old), entry))).partition(|(old, new, _)| *old != new);
        let mut entries: BTreeMap<String, Entry> = kept.into_iter().map(|(_, name, entry)| (name, entry.clone())).collect();
        for (_, name, entry) in moved {
            let renamed = true;
            entries.insert(name, Entry { renamed, ..entry.clone() });
        }
        self.write(entries)
    }

    /// Records what is found on interfaces that have no record yet, and which of them are `inside`. On disk when this returns.
    pub(super) fn record<'a>(
        &mut self,
        found: impl Iterator<Item = (&'a IfName, u32, &'a LinkSettings)>,
        inside: &BTreeSet<&str>,
    ) -> Result<(), HostError> {
        let mut entries = self.entries.clone();
        for (name, index, settings) in found {
            if self.get(name, index).is_none() {
                entries.insert(name.to_string(), Entry::new(index, settings));
            }
            if let Some(entry) = entries.get_mut(name.as_str()) {
                entry.inside |= inside.contains(name.as_str());
            }
        }
        self.write(entries)
    }

    /// Forgets interfaces.
    pub(super) fn forget<'a>(&mut self, names: impl Iterator<Item = &'a IfName>) -> Result<(), HostError> {
        let mut entries = self.entries.clone();
        for name in names {
            entries.remove(name.as_str());
        }
        self.write(entries)
    }

    fn write(&mut self, entries: BTreeMap<String, Entry>) -> Result<(), HostError> {
        if entries == self.entries {
            return Ok(());
        }
        self.replace(&entries).map_err(|error| HostError::Failed {
            action: format!("recording interface settings in {}", self.directory.display()),
            said: error.to_string(),
        })?;
        self.entries = entries;
        Ok(())
    }

    fn replace(&self, entries: &BTreeMap<String, Entry>) -> io::Result<()> {
        let (path, new) = (self.directory.join("found.json"), self.directory.join("found.json.new"));
        fs::create_dir_all(&self.directory)?;
        if entries.is_empty() {
            return match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec_pretty(entries)?)?;
        file.sync_all()?;
        fs::rename(&new, &path)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn name(name: &str) -> IfName {
        IfName::new(name).unwrap()
    }

    fn forwarding(on: bool) -> LinkSettings {
        LinkSettings {
            forwarding: Some(on),
            ..LinkSettings::default()
        }
    }

    #[test]
    fn the_first_finding_is_kept_across_restarts_and_belongs_to_one_interface() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("made/when/needed");
        let mut found = Found::load(&path);
        found
            .record([(&name("eth1"), 3, &forwarding(false))].into_iter(), &BTreeSet::new())
            .unwrap();
        found
            .record([(&name("eth1"), 3, &forwarding(true))].into_iter(), &BTreeSet::new())
            .unwrap();
        let mut again = Found::load(&path);
        assert_eq!(again.get(&name("eth1"), 3), Some(forwarding(false)));
        assert_eq!(again.get(&name("eth1"), 4), None, "made anew under the same name");
        again
            .record([(&name("eth1"), 4, &forwarding(true))].into_iter(), &BTreeSet::new())
            .unwrap();
        assert_eq!(Found::load(&path).get(&name("eth1"), 4), Some(forwarding(true)));
        again.forget([&name("eth1")].into_iter()).unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0, "an empty record is no file");
    }

    #[test]
    fn a_record_follows_an_interface_that_is_renamed() {
        let dir = tempfile::tempdir().unwrap();
        let mut found = Found::load(dir.path());
        let one = [(&name("eth1"), 3, &forwarding(false))];
        found.record(one.into_iter(), &BTreeSet::from(["eth1"])).unwrap();
        found.follow(&BTreeMap::from([(3, name("eth1"))])).unwrap();
        assert!(!found.is_renamed(&name("eth1")));
        found.follow(&BTreeMap::from([(3, name("renamed0")), (4, name("eth1"))])).unwrap();
        let again = Found::load(dir.path());
        assert_eq!(again.get(&name("renamed0"), 3), Some(forwarding(false)));
        assert!(again.is_inside(&name("renamed0")) && again.is_renamed(&name("renamed0")));
        assert_eq!(again.get(&name("eth1"), 4), None, "another interface under the old name");
    }

    #[test]
    fn a_damaged_record_counts_as_lost() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("found.json"), b"{\"eth1\": {\"ind").unwrap();
        assert_eq!(Found::load(dir.path()).get(&name("eth1"), 3), None);
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_an_error_and_nothing_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), b"").unwrap();
        let mut found = Found::load(&dir.path().join("file/state"));
        assert!(
            found
                .record([(&name("eth1"), 3, &forwarding(false))].into_iter(), &BTreeSet::new())
                .is_err()
        );
        assert_eq!(found.get(&name("eth1"), 3), None);
    }
}
