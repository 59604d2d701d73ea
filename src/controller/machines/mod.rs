//! Virtual machines that mappings name: what `KubeVirt` says of them, and the address that each such mapping leads to.
//!
//! The controller alone reads `KubeVirt`'s kinds and writes what it found to `status.target`; the gateways' agents need no right on them. Nothing here ever touches a mapping
//! with an explicit address, and while no mapping names a machine nothing is watched.
//!
//! | module | does | pure |
//! |---|---|---|
//! | [`kinds`] | what is looked at of a machine | yes |
//! | [`resolve`] | the address, or why there is none | yes |
//! | [`store`] | what is known, and whether a change of it concerns a mapping | yes |
//! | [`watch`] | feeds the store; kinds that appear and disappear | |

mod kinds;
mod resolve;
mod store;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kube::{Client, ResourceExt};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use self::kinds::{Instance, Machine};
pub use self::resolve::{Found, Resolved};
use self::resolve::{Wish, resolve};
use self::store::{Key, Shelf};
use crate::api::{NatMapping, StagingNetwork};
use crate::netfilter::Family;
use crate::plan::MappingKey;
use crate::plan::validate::{self, ValidNetwork};

/// What is known of machines. Clones share it.
#[derive(Clone)]
pub struct Machines {
    known: Arc<Mutex<Known>>,
    /// Whether any mapping names a machine.
    wanted: tokio::sync::watch::Sender<bool>,
    /// Rings when something changed that concerns a mapping.
    bell: Arc<Notify>,
}

#[derive(Default)]
struct Known {
    machines: Shelf<Machine>,
    instances: Shelf<Instance>,
    /// Machines that mappings name.
    named: BTreeSet<Key>,
}

/// Where mappings that name a machine lead, by key. Others are absent.
pub type Resolutions = BTreeMap<MappingKey, Resolved>;

impl Machines {
    /// Nothing is known and nothing watched.
    pub fn new(bell: Arc<Notify>) -> Self {
        Self {
            known: Arc::default(),
            wanted: tokio::sync::watch::Sender::new(false),
            bell,
        }
    }

    /// Starts the watches, which wait until a mapping names a machine. They do not end by themselves. `guard`: how long what a list lacks is held when it lacks more than half.
    pub fn follow(&self, client: &Client, guard: Duration, tasks: &mut JoinSet<()>) {
        tasks.spawn(watch::follow::<Machine>(self.clone(), client.clone(), guard));
        tasks.spawn(watch::follow::<Instance>(self.clone(), client.clone(), guard));
    }

    /// Decides where every mapping that names a machine leads. The second answer are the mappings as they are to be judged: with that in their status.
    pub fn resolve(&self, networks: &[Arc<StagingNetwork>], mappings: &[Arc<NatMapping>]) -> (Resolutions, Vec<Arc<NatMapping>>) {
        let mut resolutions = Resolutions::new();
        let mut judged = mappings.to_vec();
        let named: BTreeSet<Key> = mappings.iter().filter_map(|mapping| machine_of(mapping)).collect();
        let mut known = self.known();
        let any = !named.is_empty();
        known.named = named;
        let networks = if any { valid(networks) } else { BTreeMap::new() };
        let naming = |mapping: &&mut Arc<NatMapping>| mapping.spec.target.virtual_machine_ref.is_some();
        for mapping in judged.iter_mut().filter(naming) {
            let network = networks.get(&mapping.spec.network_ref.name);
            let Some(resolved) = network.and_then(|network| known.resolve(mapping, network)) else {
                continue;
            };
            let before = mapping.status.as_ref().and_then(|status| status.target.as_deref());
            if resolved.target.as_ref() != before {
                let status = Arc::make_mut(mapping).status.get_or_insert_default();
                status.target = resolved.target.clone().map(Box::new);
            }
            resolutions.insert(super::seen::key(mapping), resolved);
        }
        drop(known);
        self.wanted.send_if_modified(|wanted| std::mem::replace(wanted, any) != any);
        (resolutions, judged)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// None: nothing can be said before the spec is corrected, and what the status says stays.
    fn resolve(&self, mapping: &NatMapping, network: &ValidNetwork) -> Option<Resolved> {
        let machine = mapping.spec.target.virtual_machine_ref.as_ref()?;
        let address = mapping.spec.r#virtual.address.as_ref()?.parse().ok()?;
        let before = mapping.status.as_ref().and_then(|status| status.target.as_deref());
        let wish = Wish {
            machine,
            family: Family::of(address),
            network,
            before: before.filter(|before| before.is_of(machine)),
        };
        Some(resolve(&wish, self.of(&machine_of(mapping)?)))
    }

    fn of(&self, key: &Key) -> resolve::Known<'_> {
        match (&self.machines, &self.instances) {
            (Shelf::Absent(why), _) | (_, Shelf::Absent(why)) => resolve::Known::Absent(why),
            (Shelf::Unreadable(why), _) | (_, Shelf::Unreadable(why)) => resolve::Known::Unreadable(why),
            (Shelf::Complete(machines), Shelf::Complete(instances)) => machines.get(key).map_or(resolve::Known::Nothing, |machine| {
                resolve::Known::Machine(machine, instances.get(key))
            }),
            _ => resolve::Known::NotYet,
        }
    }
}

/// Namespace and name of the machine that a mapping names.
fn machine_of(mapping: &NatMapping) -> Option<Key> {
    let machine = mapping.spec.target.virtual_machine_ref.as_ref()?;
    Some((mapping.namespace().unwrap_or_default(), machine.name.clone()))
}

fn valid(objects: &[Arc<StagingNetwork>]) -> BTreeMap<String, ValidNetwork> {
    let valid = objects.iter().filter_map(|object| validate::network(object).ok());
    valid.map(|network| (network.name.clone(), network)).collect()
}
