//! Where objects come from: a directory of manifests, or the API server. Both deliver snapshots of everything that concerns the node.

pub mod api;
mod cache;
mod definitions;
pub mod directory;
mod matter;
mod own_node;
mod topics;

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use crate::api::{NatMapping, StagingNetwork};
use crate::plan::{Mappings, Namespaces, NodeFacts, View, World};

/// Everything that is known at one moment, but for the node's own kernel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// All networks.
    pub networks: Vec<StagingNetwork>,
    /// All mappings. Shared with whoever read them, and with the snapshots before and after.
    pub mappings: Vec<Arc<NatMapping>>,
    /// Labels of namespaces; empty while no network asks for any.
    pub namespaces: Arc<Namespaces>,
    /// What other nodes have reported of themselves.
    pub others: Vec<NodeFacts>,
    /// Labels of the own Node. None: standalone.
    pub labels: Option<BTreeMap<String, String>>,
    /// What could not be read. The last good version is in force where there is one.
    pub problems: Vec<Problem>,
}

/// Something that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// A file, or `Kind namespace/name`.
    pub place: String,
    /// What is, why, what next.
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

impl Snapshot {
    /// The world as the planner takes it, with what the node knows of itself.
    pub fn world(&self, own: NodeFacts) -> World {
        World {
            networks: self.networks.clone(),
            mappings: self.mappings.iter().map(|mapping| NatMapping::clone(mapping)).collect(),
            nodes: self.nodes(own),
            namespaces: self.namespaces.clone(),
        }
    }

    /// What is known of all nodes, with what the node knows of itself.
    pub fn nodes(&self, own: NodeFacts) -> Vec<NodeFacts> {
        let mut nodes: Vec<NodeFacts> = self.others.iter().filter(|n| n.name != own.name).cloned().collect();
        nodes.push(own);
        nodes
    }

    /// [`Snapshot::world`] without a copy of the objects.
    pub fn view<'a>(&'a self, nodes: &'a [NodeFacts]) -> View<'a> {
        View {
            networks: &self.networks,
            mappings: Mappings::Shared(&self.mappings),
            nodes,
            namespaces: &self.namespaces,
        }
    }
}

/// The latest snapshot. None until everything has been delivered once: nothing is written to the kernel before.
pub type Snapshots = watch::Receiver<Option<Arc<Snapshot>>>;
