//! The addresses of the cluster's API server: those of the Service `default/kubernetes` and of what stands behind it. Nobody may claim them.
//!
//! One of several API servers that is being restarted has left its `EndpointSlice` for that time, and a claim that waits for its address must not get it then. So an address
//! stays for [`KEPT`] after it was last there; the networks' statuses bring it over a restart of this program.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::select;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::watch_object;
use kube::{Api, Client};
use tokio::sync::{Notify, watch};
use tracing::{debug, warn};

use super::backoff::WatchBackoff;
use crate::api::StagingNetwork;
use crate::api::schema::API_SERVER_MAX;
use crate::telemetry::chain;

/// Where the Service and its `EndpointSlice` are, and how both are called: the API server itself writes them.
const NAMESPACE: &str = "default";
const NAME: &str = "kubernetes";
/// How long an address counts after it was last heard of.
const KEPT: Duration = Duration::from_hours(1);

/// Addresses that are there now, as far as is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Whether both objects have been read. Until then what is not among the addresses may be there all the same.
    pub complete: bool,
}

impl Found {
    /// Where there is no API server that anybody could claim the address of.
    pub fn nowhere() -> Self {
        Self {
            addresses: BTreeSet::new(),
            complete: true,
        }
    }
}

/// What is known now.
pub type Present = watch::Receiver<Found>;

/// Follows the two objects and rings when addresses change.
pub fn follow(client: Client, bell: Arc<Notify>) -> (Present, impl Future<Output = ()> + Send + 'static) {
    let (tell, present) = watch::channel(Found::default());
    (present, keep(client, tell, bell))
}

async fn keep(client: Client, tell: watch::Sender<Found>, bell: Arc<Notify>) {
    let services: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
    let slices: Api<EndpointSlice> = Api::namespaced(client, NAMESPACE);
    let services = watch_object(services, NAME)
        .backoff(WatchBackoff::default())
        .map(|s| (0, s.map(|s| s.map(of_service))));
    let slices = watch_object(slices, NAME)
        .backoff(WatchBackoff::default())
        .map(|s| (1, s.map(|s| s.as_ref().map(of_slice))));
    let mut news = std::pin::pin!(select(services, slices));
    let mut known: [Option<BTreeSet<IpAddr>>; 2] = [None, None];
    let mut away = false;
    while let Some((which, found)) = news.next().await {
        match found {
            Ok(found) => {
                away = false;
                if let Some(known) = known.get_mut(which) {
                    *known = Some(found.unwrap_or_default());
                }
            }
            Err(error) if std::mem::replace(&mut away, true) => debug!(error = %chain(&error), "watching for the API server's addresses"),
            Err(error) => warn!(
                error = %chain(&error),
                "watching for the API server's addresses (Service and EndpointSlice {NAMESPACE}/{NAME}); those known stay in force, it is tried again"
            ),
        }
        // One of the two is better than none.
        let found = Found {
            addresses: known.iter().flatten().flatten().copied().collect(),
            complete: known.iter().all(Option::is_some),
        };
        let changed = |told: &mut Found| {
            let differs = *told != found;
            *told = found;
            differs
        };
        if tell.send_if_modified(changed) {
            bell.notify_one();
        }
    }
}

fn of_service(service: Service) -> BTreeSet<IpAddr> {
    let addresses = service.spec.and_then(|spec| spec.cluster_ips).unwrap_or_default();
    addresses.iter().filter_map(|a| a.parse().ok()).collect()
}

fn of_slice(slice: &EndpointSlice) -> BTreeSet<IpAddr> {
    let addresses = slice.endpoints.iter().flatten().flat_map(|endpoint| &endpoint.addresses);
    addresses.filter_map(|a| a.parse().ok()).collect()
}

/// All addresses that count, and since when those are gone that are.
#[derive(Debug, Default)]
pub struct Addresses(BTreeMap<IpAddr, Option<Instant>>);

impl Addresses {
    /// What counts at `now`, given what is there and what the networks' statuses say from before.
    pub fn count(&mut self, present: &Found, networks: &[Arc<StagingNetwork>], now: Instant) -> BTreeSet<IpAddr> {
        let stored = networks.iter().filter_map(|network| network.status.as_ref());
        for address in stored
            .flat_map(|status| &status.api_server_addresses)
            .filter_map(|a| a.parse().ok())
        {
            self.0.entry(address).or_insert(Some(now));
        }
        for (address, gone) in &mut self.0 {
            *gone = match gone {
                _ if present.addresses.contains(address) => None,
                Some(since) if present.complete => Some(*since),
                // As long as not everything can be read, nothing is known to be gone.
                _ => Some(now),
            };
        }
        self.0.extend(present.addresses.iter().map(|address| (*address, None)));
        let counts = |gone: &Option<Instant>| gone.is_none_or(|gone| now.saturating_duration_since(gone) < KEPT);
        // Those that are there first, should there be too many.
        let mut all: Vec<_> = self
            .0
            .iter()
            .filter(|(_, gone)| counts(gone))
            .map(|(a, gone)| (gone.is_some(), *a))
            .collect();
        all.sort_unstable();
        all.into_iter().take(API_SERVER_MAX).map(|(_, address)| address).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::api::StagingNetworkStatus;
    use crate::controller::testing::network;

    fn set(of: &[&str]) -> BTreeSet<IpAddr> {
        of.iter().map(|a| a.parse().unwrap()).collect()
    }

    fn found(addresses: &[&str]) -> Found {
        Found {
            addresses: set(addresses),
            complete: true,
        }
    }

    #[test]
    fn an_address_that_goes_counts_for_an_hour() {
        let (mut addresses, start) = (Addresses::default(), Instant::now());
        let mut count = |present: &[&str], after: Duration| addresses.count(&found(present), &[], start + after);
        assert_eq!(count(&["10.96.0.1", "192.0.2.1"], Duration::ZERO), set(&["10.96.0.1", "192.0.2.1"]));
        assert_eq!(count(&["10.96.0.1"], Duration::from_mins(10)).len(), 2);
        assert_eq!(count(&["10.96.0.1"], Duration::from_mins(69)).len(), 2);
        assert_eq!(count(&["10.96.0.1", "192.0.2.1"], Duration::from_mins(69)).len(), 2, "it is back");
        assert_eq!(count(&["10.96.0.1"], Duration::from_hours(2)).len(), 2);
        assert_eq!(count(&["10.96.0.1"], Duration::from_hours(3)), set(&["10.96.0.1"]));
    }

    #[test]
    fn what_a_status_says_is_believed_until_the_hour_is_over() {
        let (mut addresses, start) = (Addresses::default(), Instant::now());
        let mut object = network("segment-b");
        object.status = Some(StagingNetworkStatus {
            api_server_addresses: vec!["192.0.2.1".into(), "rubbish".into()],
            ..StagingNetworkStatus::default()
        });
        let objects = [Arc::new(object)];
        let nothing = Found::default();
        assert_eq!(
            addresses.count(&nothing, &objects, start),
            set(&["192.0.2.1"]),
            "nothing is heard yet"
        );
        let partly = Found {
            complete: false,
            ..found(&["10.96.0.1"])
        };
        let both = set(&["10.96.0.1", "192.0.2.1"]);
        assert_eq!(addresses.count(&partly, &objects, start), both);
        assert_eq!(
            addresses.count(&partly, &objects, start + 3 * KEPT),
            both,
            "the other object could not be read yet"
        );
        let begun = start + 3 * KEPT;
        assert_eq!(addresses.count(&found(&["10.96.0.1"]), &objects, begun), both);
        assert_eq!(addresses.count(&found(&["10.96.0.1"]), &objects, begun + KEPT), set(&["10.96.0.1"]));
    }
}
