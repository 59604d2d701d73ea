//! What of the cluster a node has to know to plan for itself: of hundreds of nodes few serve a network, and of fifty networks a gateway serves some.
//!
//! What is left out changes nothing in the node's plan (a property test plans random worlds both ways, `tests/plan_properties/concern.rs`). It is decided from networks,
//! the node's labels and the mappings known so far; the more of those are known the more may turn out to matter, so it is asked again after every change.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::prefixes::meet;
use super::validate::{self, ValidNetwork};
use super::{Borrowed, NodeFacts, Verdicts, View, judge, links, selector};
use crate::api::mapping::Side;

/// What one node has to know besides the networks and its own labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Concern {
    /// Networks whose mappings it has to know, by name.
    pub mappings: BTreeSet<String>,
    /// Whether it has to know the addresses of other nodes, which nobody may claim.
    pub nodes: bool,
    /// Whether it has to know the labels of namespaces, because networks say by them who may claim.
    pub namespaces: bool,
    /// Whether it takes routes to pools, and so has to know which subnets are its own.
    pub client: bool,
}

/// What node `own` has to know. Of its facts labels are looked at and, where it takes routes to pools, interfaces; none, if they are not known yet. `world` is what is known so far; its nodes do not matter.
pub fn concern(world: View<'_>, own: &NodeFacts) -> Concern {
    let nobody = View {
        mappings: Borrowed::default(),
        nodes: Borrowed::Owned(std::slice::from_ref(own)),
        ..world
    };
    let verdicts = judge(nobody);
    let serving = |name: &str| {
        verdicts
            .networks
            .get(name)
            .is_some_and(|network| network.gateways.contains(&own.name))
    };
    let mut wanted: BTreeSet<&str> = verdicts.networks.keys().map(String::as_str).filter(|name| serving(name)).collect();
    let gateway = !wanted.is_empty();
    let (reachable, everything) = reachable(world, &verdicts, &serving);
    let standing = || accepted(&verdicts);
    if everything {
        wanted.extend(standing().map(|(name, _)| name));
    }
    let reached = standing().filter(|(_, network)| touches(network, &reachable));
    wanted.extend(reached.map(|(name, _)| name));
    let client = own.labels.as_ref().is_some_and(|labels| {
        let mut routes = world.networks.iter().filter_map(|n| n.spec.outside.client_routes.as_ref());
        routes.any(|routes| selector::matches(&routes.node_selector, labels))
    });
    let routed = if own.interfaces.is_empty() {
        links::clients_of(nobody, &verdicts, own)
    } else {
        links::routed_by_claim(nobody, &verdicts, own)
    };
    wanted.extend(standing().map(|(name, _)| name).filter(|name| routed.contains(*name)));
    close(&mut wanted, &verdicts);
    let selects = |name: &&str| {
        let network = verdicts.networks.get(*name).and_then(|network| network.accepted.as_ref().ok());
        network.is_some_and(|network| network.allowed_namespaces.is_some())
    };
    Concern {
        namespaces: wanted.iter().any(selects),
        nodes: gateway || !wanted.is_empty(),
        mappings: wanted.into_iter().map(str::to_owned).collect(),
        client,
    }
}

fn accepted(verdicts: &Verdicts) -> impl Iterator<Item = (&str, &ValidNetwork)> {
    let networks = verdicts.networks.iter();
    networks.filter_map(|(name, verdict)| Some((name.as_str(), verdict.accepted.as_ref().ok()?)))
}

/// Where machines of the networks that are served here may get to, so that virtual addresses of other nodes there have to be kept from them; and whether that is everywhere.
fn reachable(world: View<'_>, verdicts: &Verdicts, serving: &impl Fn(&str) -> bool) -> (Vec<IpNet>, bool) {
    let served = || accepted(verdicts).filter(|(name, _)| serving(name)).map(|(_, network)| network);
    let allowed = served().flat_map(|network| network.egress.iter().map(|rule| rule.to));
    let targets = world
        .mappings
        .iter()
        .filter(|mapping| mapping.spec.side == Some(Side::Inside) && serving(&mapping.spec.network_ref.name));
    let targets = targets.filter_map(|mapping| validate::mapping(mapping).ok()?.target);
    (allowed.chain(targets).collect(), served().any(|network| network.egress_allowed))
}

fn touches(network: &ValidNetwork, prefixes: &[IpNet]) -> bool {
    network.pool.iter().any(|pool| prefixes.iter().any(|prefix| meet(*pool, *prefix)))
}

/// Adds networks whose pools meet those of wanted ones, and so on: their claims may be the older ones.
fn close<'a>(wanted: &mut BTreeSet<&'a str>, verdicts: &'a Verdicts) {
    // Names come from the verdicts, which outlive the set.
    let all: Vec<(&str, &ValidNetwork)> = accepted(verdicts).collect();
    let mut todo: Vec<&ValidNetwork> = all.iter().filter(|(name, _)| wanted.contains(name)).map(|(_, n)| *n).collect();
    while let Some(network) = todo.pop() {
        let pools: Vec<IpNet> = network.pool.iter().copied().collect();
        for (name, other) in &all {
            if touches(other, &pools) && wanted.insert(name) {
                todo.push(other);
            }
        }
    }
}
