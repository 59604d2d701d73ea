//! The definitions of the two kinds that people replace, asked for when objects of them are told to be deleted.

use kube::Client;

use super::topics::News;
use crate::api::{NatMapping, StagingNetwork};
use crate::controller::definitions::{Definition, Standing};

/// Asks for both.
pub(super) struct Definitions {
    networks: Definition,
    mappings: Definition,
}

/// How both stand.
#[derive(Clone, Copy)]
pub(super) struct Standings {
    pub(super) networks: Standing,
    pub(super) mappings: Standing,
}

impl Default for Standings {
    /// Nobody was asked, because nothing was told to be deleted.
    fn default() -> Self {
        Self {
            networks: Standing::Whole,
            mappings: Standing::Whole,
        }
    }
}

impl Definitions {
    /// Of a cluster.
    pub(super) fn of(client: &Client) -> Self {
        Self {
            networks: Definition::of::<StagingNetwork>(client),
            mappings: Definition::of::<NatMapping>(client),
        }
    }

    /// How they stand for what `batch` tells to be deleted.
    pub(super) async fn standing(&mut self, batch: &[News]) -> Standings {
        let oldest = |network: bool| {
            let deleted = batch.iter().filter_map(News::deleted).filter(|(of, _)| *of == network);
            deleted.map(|(_, created)| created).min()
        };
        let mut standing = Standings::default();
        if let Some(created) = oldest(true) {
            standing.networks = self.networks.standing(created).await;
        }
        if let Some(created) = oldest(false) {
            standing.mappings = self.mappings.standing(created).await;
        }
        standing
    }

    /// How those stand, of networks and mappings, for which something is held.
    pub(super) async fn again(&mut self, [networks, mappings]: [bool; 2]) -> Standings {
        let mut standing = Standings::default();
        if networks {
            standing.networks = self.networks.standing(None).await;
        }
        if mappings {
            standing.mappings = self.mappings.standing(None).await;
        }
        standing
    }
}
