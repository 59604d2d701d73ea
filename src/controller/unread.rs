//! What is said of objects that this version cannot read. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::aggregate::{Statuses, key, unreadable};
use super::gather::Known;
use super::stored::Stored;
use super::write::Reported;
use crate::api::{NatMapping, StagingNetwork};

/// Objects that cannot be read: why, and of which generation they are.
#[derive(Default)]
pub(super) struct Unread {
    networks: BTreeMap<String, (String, i64)>,
    mappings: BTreeMap<String, (String, i64)>,
}

/// Those of them of which no spec was ever known: what a status is written to.
#[derive(Default)]
pub(super) struct Blanks {
    pub(super) networks: Vec<Arc<StagingNetwork>>,
    pub(super) mappings: Vec<Arc<NatMapping>>,
}

impl Unread {
    /// Sorts what the stores have.
    pub(super) fn sort(networks: &[Arc<Stored<StagingNetwork>>], mappings: &[Arc<Stored<NatMapping>>]) -> (Self, Blanks) {
        let unread = Self {
            networks: networks
                .iter()
                .map(|n| (n.name_any(), (n.error.clone().unwrap_or_default(), n.unread_generation())))
                .collect(),
            mappings: mappings
                .iter()
                .map(|m| (full_name(&**m), (m.error.clone().unwrap_or_default(), m.unread_generation())))
                .collect(),
        };
        let blanks = Blanks {
            networks: networks
                .iter()
                .filter(|n| n.object.is_none())
                .filter_map(|n| Some(Arc::new(n.dressed(StagingNetwork::blank()?))))
                .collect(),
            mappings: mappings
                .iter()
                .filter(|m| m.object.is_none())
                .filter_map(|m| Some(Arc::new(m.dressed(NatMapping::blank()?))))
                .collect(),
        };
        (unread, blanks)
    }

    /// Puts into `statuses` what is to be said of all of them, and of mappings in a network of which nothing is known.
    pub(super) fn tell(&self, known: &Known, blanks: &Blanks, statuses: &mut Statuses, now: Timestamp) {
        if self.networks.is_empty() && self.mappings.is_empty() {
            return;
        }
        for network in known.networks.iter().chain(&blanks.networks) {
            if let Some((error, generation)) = self.networks.get(&network.name_any()) {
                let status = unreadable::network(network.status.as_ref(), *generation, error, now);
                statuses.networks.insert(network.name_any(), status);
            }
        }
        for mapping in known.mappings.iter().chain(&blanks.mappings) {
            let network = &mapping.spec.network_ref.name;
            let unknown = blanks.networks.iter().any(|blank| blank.name_any() == *network);
            let known = mapping.metadata.generation.unwrap_or_default();
            let (what, error, generation) = match (self.mappings.get(&full_name(&**mapping)), self.networks.get(network)) {
                (Some((error, generation)), _) => ("the object".to_owned(), error, *generation),
                (None, Some((error, _))) if unknown => (format!("StagingNetwork {network}"), error, known),
                _ => continue,
            };
            let status = unreadable::mapping(mapping.status.as_ref(), generation, &what, error, now);
            statuses.mappings.insert(key(mapping), status);
        }
    }
}

fn full_name<K: kube::Resource>(object: &K) -> String {
    format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any())
}
