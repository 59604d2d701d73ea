//! The gates in the fence: the chains of one network.
//!
//! Every chain that is entered by goto ends in DROP, and what it drops is counted there by network and direction: "out", "in", "node" (to the node itself) and "unmapped" (to a
//! port of a virtual address that no mapping has).

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::egress::{Leaving, leaving};
use super::rules::{network_chain, rule, rule_of};
use super::sites::Site;
use super::{HostOptions, KernelFacts};
use crate::netfilter::rules::icmp;
use crate::netfilter::tree::{Entries, Key, dispatch};
use crate::netfilter::{Chain, ChainName, ConnState, Family, Match, Target};

/// Packets a second that are logged, and at once. They are counted always.
const LOGGED_PER_SECOND: u32 = 5;
/// Longest `--nflog-prefix` (`nflog` in iptables-extensions(8): 64 with the end mark).
const NFLOG_PREFIX_MAX: usize = 63;

/// What no closed network of the node may reach, whatever its egress.
pub(super) struct Beyond {
    /// Production, as any of the node's networks declares it.
    pub(super) protected: BTreeSet<IpNet>,
    /// The chain that drops what goes to virtual addresses of other nodes, if there are any.
    pub(super) elsewhere: Option<ChainName>,
}

/// All chains of a fenced network in one family.
pub(super) fn network(
    chains: &mut BTreeMap<ChainName, Chain>,
    site: &Site<'_>,
    family: Family,
    beyond: &Beyond,
    kernel: &KernelFacts,
    options: &HostOptions,
) {
    from_inside(chains, site, family, beyond, options);
    to_inside(chains, site, family, options);
    to_node(chains, site, family, kernel, options);
    let mut unmapped = Chain::new();
    deny(&mut unmapped, site, "unmapped", options);
    chains.insert(network_chain("U", site.hash), unmapped);
}

/// Direction "out".
fn from_inside(chains: &mut BTreeMap<ChainName, Chain>, site: &Site<'_>, family: Family, beyond: &Beyond, options: &HostOptions) {
    let mut chain = Chain::new();
    if let Some(served) = site.served() {
        // By way of a virtual address to a VM of the same network: marked, so that a foreign DROP does not hit it. Without the mark no answer
        // leaves, and the answer goes to whoever the source says it is: so that has to be somebody inside.
        for pool in served.network.pool_of(family) {
            chain.extend(served.network.inside_of(family).map(|inside| {
                let way = [Match::Source(inside), Match::Out(served.inside.clone())];
                let dialled = [Match::State(ConnState::Dnat), Match::OriginalDestination(pool)];
                rule(
                    site,
                    way.into_iter().chain(dialled).chain(site.own()),
                    Target::SetConnMark(options.connmark),
                )
            }));
        }
    }
    let stays = site
        .fence
        .iter()
        .map(|inside| rule(site, [Match::Out(inside.clone())], Target::Return));
    chain.extend(stays);
    if let (Some(served), Some(leaving)) = (site.served(), leaving(site, family)) {
        let egress = network_chain("E", site.hash);
        chain.extend(served.network.inside_of(family).map(|inside| {
            let way = [Match::Source(inside), Match::Out(served.outside.clone())];
            rule(site, way.into_iter().chain(site.own()), Target::Jump(egress.clone()))
        }));
        chain.push(rule(site, [Match::ConnMark(options.connmark)], Target::Return));
        leave(chains, &egress, site, &leaving, beyond, options);
    }
    deny(&mut chain, site, "out", options);
    chains.insert(network_chain("FO", site.hash), chain);
}

/// `SNET-E-H`, entered by jump: marks what may leave. RETURN here means "not decided", and the chain that called denies what has no mark.
fn leave(
    chains: &mut BTreeMap<ChainName, Chain>,
    egress: &ChainName,
    site: &Site<'_>,
    leaving: &Leaving<'_>,
    beyond: &Beyond,
    options: &HostOptions,
) {
    let admit = Target::SetConnMark(options.connmark);
    let mut chain: Chain = beyond
        .protected
        .iter()
        .map(|prefix| rule(site, [Match::Destination(*prefix)], Target::Return))
        .collect();
    if let Some(elsewhere) = &beyond.elsewhere {
        chain.push(rule(site, [], Target::Jump(elsewhere.clone())));
    }
    chains.insert(egress.clone(), chain);

    // Who has an address to leave under: everybody, or those with a virtual one.
    let passed = if leaving.source.is_some() {
        admit.clone()
    } else {
        let sources = network_chain("ES", site.hash);
        let mark = |target: &IpNet, key| vec![rule_of(key, [Match::Source(*target)], admit.clone())];
        let entries: Entries = leaving
            .mirrors
            .iter()
            .map(|(target, (key, _))| (*target, mark(target, key)))
            .collect();
        dispatch(chains, &sources, Key::Source, entries);
        Target::Jump(sources)
    };
    // What an Inside mapping translated, whatever else is denied. Its network has a source address.
    let mut entries = Entries::new();
    for (key, claim) in leaving.inward.iter().filter(|_| leaving.source.is_some()) {
        let translated = [
            Match::Destination(claim.target),
            Match::State(ConnState::Dnat),
            Match::OriginalDestination(claim.virtual_prefix),
        ];
        entries
            .entry(claim.target)
            .or_default()
            .push(rule_of(key, translated, admit.clone()));
    }
    dispatch(chains, egress, Key::Destination, entries);
    let mut allowed = Chain::new();
    if leaving.open {
        allowed.push(rule(site, [], passed.clone()));
    }
    for allow in &leaving.rules {
        let to = Match::Destination(allow.to);
        if allow.ports.is_empty() {
            allowed.push(rule(site, [to], passed.clone()));
            continue;
        }
        let of_ports = allow
            .ports
            .iter()
            .map(|(transport, ports)| [to.clone(), Match::DestinationPorts(*transport, *ports)]);
        allowed.extend(of_ports.map(|matches| rule(site, matches, passed.clone())));
    }
    chains.entry(egress.clone()).or_default().extend(allowed);
}

/// Direction "in".
fn to_inside(chains: &mut BTreeMap<ChainName, Chain>, site: &Site<'_>, family: Family, options: &HostOptions) {
    let mut chain = Chain::new();
    for pool in site.served().into_iter().flat_map(|s| s.network.pool_of(family)) {
        let translated = || {
            let dialled = [Match::State(ConnState::Dnat), Match::OriginalDestination(pool)];
            dialled.into_iter().chain(site.own())
        };
        chain.push(rule(site, translated(), Target::SetConnMark(options.connmark)));
        chain.push(rule(site, translated(), Target::Return));
    }
    deny(&mut chain, site, "in", options);
    chains.insert(network_chain("FI", site.hash), chain);
}

/// What may reach the node itself from inside, direction "node".
fn to_node(chains: &mut BTreeMap<ChainName, Chain>, site: &Site<'_>, family: Family, kernel: &KernelFacts, options: &HostOptions) {
    let mut chain = Chain::new();
    if family == Family::V6 {
        let discovery = [icmp::NEIGHBOUR_SOLICITATION, icmp::NEIGHBOUR_ADVERTISEMENT];
        chain.extend(discovery.map(|kind| rule(site, [Match::Icmp(kind)], Target::Return)));
    }
    // What the node dialled itself, unless that may be another network's connection.
    if !site.mistakable() {
        let known = Match::State(ConnState::EstablishedOrRelated);
        chain.push(rule(site, site.own().into_iter().chain([known]), Target::Return));
    }
    // The node answers whoever the source says it is, and that has to be somebody inside. An answer to an isolated network without its mark would be sent by
    // the node's own routes, as would that to one which is not told apart from another yet.
    if !site.mistakable() && (site.separate.is_none() || kernel.fwmark_reflect.contains(&family)) {
        let inside = site.network.into_iter().flat_map(|network| network.inside_of(family));
        let echo = Match::Icmp(icmp::echo_request(family));
        let matches = |from| [Match::Source(from), echo.clone()].into_iter().chain(site.own());
        chain.extend(inside.map(|from| rule(site, matches(from), Target::Return)));
    }
    deny(&mut chain, site, "node", options);
    chains.insert(network_chain("N", site.hash), chain);
}

/// The end of a gated chain: logs if asked to, and drops.
fn deny(chain: &mut Chain, site: &Site<'_>, direction: &str, options: &HostOptions) {
    if site.network.is_some_and(|network| network.log) {
        let limit = Match::Limit {
            per_second: LOGGED_PER_SECOND,
            burst: LOGGED_PER_SECOND,
        };
        let mut prefix = format!("stagenet:{direction}:{}", site.name);
        prefix.truncate(NFLOG_PREFIX_MAX);
        let log = Target::Nflog {
            group: options.nflog_group,
            prefix,
        };
        chain.push(rule(site, [limit], log));
    }
    chain.push(rule(site, [], Target::Drop));
}
