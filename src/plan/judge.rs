//! The judgement: which networks and claims stand.
//!
//! Every check but the last looks at one claim and the networks and nodes, so its answer cannot depend on other claims. Only claims that pass all
//! of them compete for addresses, oldest first: what is refused for another reason blocks nobody.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::claims::{self, Claimed, Taken};
use super::conflicts::losers;
use super::memory::{ByKey, Memory};
use super::tenancy::{self, Namespaces};
use super::validate;
use super::verdict::{MappingKey, MappingVerdict, NetworkVerdict, Refusal, Verdicts};
use super::{Borrowed, View, selector};
use crate::api::{NatMapping, StagingNetwork, reasons};

/// See [`super::judge_again`].
pub(super) fn judge(world: View<'_>, memory: &mut Memory) -> Verdicts {
    let networks = networks(world);
    memory.begin(&networks, Taken::new(world, &networks), world.namespaces);
    let names: BTreeMap<&str, Arc<str>> = networks.keys().map(|name| (name.as_str(), name.as_str().into())).collect();
    let alone = |object: &NatMapping, taken: &Taken| {
        let key = key(object);
        let verdict = mapping(&key, object, false, &networks, &names, taken, world.namespaces);
        (key, Arc::new(verdict))
    };
    let judged = |(object, (key, verdict))| Judged { key, object, verdict };
    let all: Vec<Judged<'_>> = match world.mappings {
        Borrowed::Owned(objects) => {
            let all = objects.iter().map(|object| (object, alone(object, memory.taken())));
            all.map(judged).collect()
        }
        Borrowed::Shared(objects) => match memory.recall(objects, alone) {
            (_, Some(by_key)) => return undisputed(networks, by_key),
            (all, None) => objects.iter().map(AsRef::as_ref).zip(all.iter().cloned()).map(judged).collect(),
        },
    };
    let by_key = decisive(all, |key, object| {
        Arc::new(mapping(key, object, true, &networks, &names, memory.taken(), world.namespaces))
    });
    undisputed(networks, Arc::new(by_key))
}

/// Of several objects with one key the one that counts. `twice` says what becomes of objects that say different things.
fn decisive(mut all: Vec<Judged<'_>>, twice: impl Fn(&MappingKey, &NatMapping) -> Arc<MappingVerdict>) -> ByKey {
    all.sort_by(|a, b| a.key.cmp(&b.key));
    // The API server has one object a key; a directory of files may have several.
    let decisive = all.chunk_by_mut(|a, b| a.key == b.key).filter_map(|objects| {
        if objects.len() > 1 {
            objects.sort_by_cached_key(|m| rank(&m.object.metadata, &m.object.spec));
        }
        let differ = objects
            .windows(2)
            .any(|pair| matches!(pair, [a, b] if a.object.spec != b.object.spec));
        let Judged { key, object, verdict } = objects.first()?;
        let verdict = if differ { twice(key, object) } else { verdict.clone() };
        Some((key.clone(), verdict))
    });
    decisive.collect()
}

/// All verdicts, given what each mapping comes to by itself: of claims that meet, the oldest stands.
fn undisputed(networks: BTreeMap<String, NetworkVerdict>, mut mappings: Arc<ByKey>) -> Verdicts {
    let claims = mappings
        .iter()
        .filter_map(|(key, verdict)| verdict.standing().map(|claim| (claim.created, key, claim)));
    for (key, refusal) in losers(claims.collect()) {
        if let Some(verdict) = Arc::make_mut(&mut mappings).get_mut(&key) {
            let verdict = Arc::make_mut(verdict);
            verdict.conflicted = true;
            verdict.accepted = Err(refusal);
            verdict.waiting = None;
        }
    }
    Verdicts { networks, mappings }
}

/// A mapping and what is said of it by itself.
struct Judged<'a> {
    key: MappingKey,
    object: &'a NatMapping,
    verdict: Arc<MappingVerdict>,
}

fn networks(world: View<'_>) -> BTreeMap<String, NetworkVerdict> {
    let mut by_name: BTreeMap<&str, Vec<&StagingNetwork>> = BTreeMap::new();
    for network in world.networks.iter() {
        by_name
            .entry(network.metadata.name.as_deref().unwrap_or_default())
            .or_default()
            .push(network);
    }
    by_name
        .into_iter()
        .filter_map(|(name, mut objects)| {
            objects.sort_by_cached_key(|n| rank(&n.metadata, &n.spec));
            let twice = differ(&objects, |a, b| a.spec == b.spec);
            let raw = objects.first()?;
            let accepted = if twice {
                Err(declared_twice("StagingNetwork", name))
            } else {
                validate::network(raw)
            };
            let verdict = NetworkVerdict {
                generation: raw.metadata.generation.unwrap_or(0),
                accepted,
                isolation: raw.status.as_ref().and_then(|s| s.isolation),
                gateways: gateways(raw, world),
                active: raw.status.as_ref().and_then(|s| s.active_gateway.clone()),
            };
            Some((name.to_owned(), verdict))
        })
        .collect()
}

/// Names of the nodes that the network's selector matches. A node whose labels nobody knows is the one node of standalone mode.
fn gateways(network: &StagingNetwork, world: View<'_>) -> Vec<String> {
    let selector = &network.spec.gateway.node_selector;
    let mut names: Vec<String> = world
        .nodes
        .iter()
        .filter(|node| node.labels.as_ref().is_none_or(|labels| selector::matches(selector, labels)))
        .map(|node| node.name.clone())
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// The name of a mapping, the way it is judged.
fn key(mapping: &NatMapping) -> MappingKey {
    let meta = &mapping.metadata;
    MappingKey {
        namespace: meta.namespace.as_deref().unwrap_or("default").into(),
        name: meta.name.as_deref().unwrap_or_default().into(),
    }
}

type Metadata = k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// An order among objects of one name that does not depend on where they were found.
fn rank(meta: &Metadata, spec: &impl std::fmt::Debug) -> (Option<Timestamp>, std::cmp::Reverse<Option<i64>>, Option<String>, String) {
    (
        meta.creation_timestamp.as_ref().map(|t| t.0),
        std::cmp::Reverse(meta.generation),
        meta.resource_version.clone(),
        format!("{spec:?}"),
    )
}

fn differ<T>(objects: &[&T], same: impl Fn(&T, &T) -> bool) -> bool {
    objects.windows(2).any(|pair| matches!(pair, [a, b] if !same(a, b)))
}

/// Whether the object's status says that it is not accepted.
fn refused(mapping: &NatMapping) -> bool {
    let mut conditions = mapping.status.iter().flat_map(|status| &status.conditions);
    conditions.any(|condition| condition.type_ == reasons::types::ACCEPTED && condition.status == "False")
}

fn declared_twice(kind: &str, name: &str) -> Refusal {
    Refusal {
        reason: reasons::INVALID,
        message: format!(
            "metadata.name must be unique: there are several objects {kind} {name:?} that say different things; keep one of them"
        ),
    }
}

fn mapping(
    key: &MappingKey,
    raw: &NatMapping,
    twice: bool,
    networks: &BTreeMap<String, NetworkVerdict>,
    names: &BTreeMap<&str, Arc<str>>,
    taken: &Taken,
    namespaces: &Namespaces,
) -> MappingVerdict {
    let name = raw.spec.network_ref.name.as_str();
    let network = networks.get(name);
    // One for all mappings of the network.
    let name = names.get(name).cloned().unwrap_or_else(|| name.into());
    let not_found = || Refusal {
        reason: reasons::NETWORK_NOT_FOUND,
        message: format!(
            "spec.networkRef.name must be the name of a StagingNetwork: there is none named {:?}; the mapping takes effect when there is",
            name.chars().take(64).collect::<String>()
        ),
    };
    let valid = if twice {
        Err(declared_twice("NatMapping", &key.to_string()))
    } else {
        validate::mapping(raw)
    };
    let claimed = valid.and_then(|valid| match network.map(|n| &n.accepted) {
        None => Err(not_found()),
        Some(Err(refusal)) => Err(Refusal {
            reason: reasons::NETWORK_NOT_ACCEPTED,
            message: format!("network {name} is not accepted itself: {}: {}", refusal.reason, refusal.message),
        }),
        Some(Ok(network)) => match tenancy::refusal(&key.namespace, network, namespaces) {
            // What nobody knows yet is nobody else's meanwhile, or what stands would go to others because labels cannot be read just now. Nothing is told of what others have.
            Some(unknown) if unknown.reason == reasons::NAMESPACE_UNKNOWN && !refused(raw) => {
                let claimed = claims::claim(raw, name.clone(), valid, network, taken);
                claimed.map_or_else(|_| Err(unknown.clone()), |claimed| Ok(claimed.waiting(unknown.clone())))
            }
            // Whoever may not claim here is told nothing of what others have.
            Some(refusal) => Err(refusal),
            None => claims::claim(raw, name.clone(), valid, network, taken),
        },
    });
    let (accepted, waiting) = match claimed {
        Ok(Claimed::Complete(claim)) => (Ok(claim), None),
        Ok(Claimed::Waiting(claim, why)) => (Err(why), Some(claim)),
        Err(refusal) => (Err(refusal), None),
    };
    let unresolved = waiting.as_ref().and(accepted.as_ref().err()).cloned();
    MappingVerdict {
        generation: raw.metadata.generation.unwrap_or(0),
        resource_version: raw.metadata.resource_version.clone().unwrap_or_default(),
        resolved_refs: network.ok_or_else(not_found).and(unresolved.map_or(Ok(()), Err)),
        network: name,
        accepted,
        waiting,
        conflicted: false,
    }
}
