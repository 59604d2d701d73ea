//! The definitions of our kinds, which people replace, asked for when objects of them are told to be deleted.

use kube::Client;

use super::topics::{Kind, News};
use crate::api::{GatewayNode, NatMapping, StagingNetwork};
use crate::controller::definitions::{Definition, Standing};

/// Asks for all of them.
pub(super) struct Definitions {
    networks: Definition,
    mappings: Definition,
    gateways: Definition,
}

/// How they stand.
#[derive(Clone, Copy)]
pub(super) struct Standings {
    pub(super) networks: Standing,
    pub(super) mappings: Standing,
    pub(super) gateways: Standing,
}

impl Default for Standings {
    /// Nobody was asked, because nothing was told to be deleted.
    fn default() -> Self {
        Self {
            networks: Standing::Whole,
            mappings: Standing::Whole,
            gateways: Standing::Whole,
        }
    }
}

impl Definitions {
    /// Of a cluster.
    pub(super) fn of(client: &Client) -> Self {
        Self {
            networks: Definition::of::<StagingNetwork>(client),
            mappings: Definition::of::<NatMapping>(client),
            gateways: Definition::of::<GatewayNode>(client),
        }
    }

    /// How they stand for what `batch` tells to be deleted.
    pub(super) async fn standing(&mut self, batch: &[News]) -> Standings {
        let oldest = |kind: Kind| {
            let deleted = batch.iter().filter_map(News::deleted).filter(|(of, _)| *of == kind);
            deleted.map(|(_, created)| created).min()
        };
        let mut standing = Standings::default();
        if let Some(created) = oldest(Kind::Network) {
            standing.networks = self.networks.standing(created).await;
        }
        if let Some(created) = oldest(Kind::Mapping) {
            standing.mappings = self.mappings.standing(created).await;
        }
        if let Some(created) = oldest(Kind::Gateway) {
            standing.gateways = self.gateways.standing(created).await;
        }
        standing
    }

    /// How those stand, of networks, mappings and gateways, for which something is held.
    pub(super) async fn again(&mut self, [networks, mappings, gateways]: [bool; 3]) -> Standings {
        let mut standing = Standings::default();
        if networks {
            standing.networks = self.networks.standing(None).await;
        }
        if mappings {
            standing.mappings = self.mappings.standing(None).await;
        }
        if gateways {
            standing.gateways = self.gateways.standing(None).await;
        }
        standing
    }
}
