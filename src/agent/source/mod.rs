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
use crate::plan::{Borrowed, Namespaces, NodeFacts, View, World};

/// Everything that is known at one moment, but for the node's own kernel.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// All networks.
    pub networks: Vec<Arc<StagingNetwork>>,
    /// All mappings. Like everything here, shared with whoever read them, and with the snapshots before and after.
    pub mappings: Vec<Arc<NatMapping>>,
    /// Labels of namespaces; empty while no network asks for any.
    pub namespaces: Arc<Namespaces>,
    /// What other nodes have reported of themselves.
    pub others: Vec<Arc<NodeFacts>>,
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
            networks: self.networks.iter().map(|network| StagingNetwork::clone(network)).collect(),
            mappings: self.mappings.iter().map(|mapping| NatMapping::clone(mapping)).collect(),
            nodes: self.nodes(own).iter().map(|node| NodeFacts::clone(node)).collect(),
            namespaces: self.namespaces.clone(),
        }
    }

    /// What is known of all nodes, with what the node knows of itself.
    pub fn nodes(&self, own: NodeFacts) -> Vec<Arc<NodeFacts>> {
        let mut nodes: Vec<_> = self.others.iter().filter(|n| n.name != own.name).cloned().collect();
        nodes.push(Arc::new(own));
        nodes
    }

    /// [`Snapshot::world`] without a copy of the objects.
    pub fn view<'a>(&'a self, nodes: &'a [Arc<NodeFacts>]) -> View<'a> {
        View {
            networks: Borrowed::Shared(&self.networks),
            mappings: Borrowed::Shared(&self.mappings),
            nodes: Borrowed::Shared(nodes),
            namespaces: &self.namespaces,
        }
    }
}

/// The latest snapshot. None until everything has been delivered once: nothing is written to the kernel before.
pub type Snapshots = watch::Receiver<Option<Arc<Snapshot>>>;
