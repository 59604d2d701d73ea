//! The fence: what of a closed network may pass the node. In mangle, where no foreign ACCEPT can stand ahead of it.
//!
//! Every gated chain ends in DROP. Chains are entered by goto, so RETURN in them leaves for the built-in chain, where others' rules go on: it means
//! "may pass". Falling off the end of a chain would mean the same, so none may.
//!
//! How a packet is judged in `SNET-FWD`:
//! 1. Connection mark set: passes. Only flows that the fence itself admitted carry it.
//! 2. To a virtual address by way of lo: a port that no mapping has. Dropped, else it would go round in circles.
//! 3. From inside: judged by its source's network, before anybody asks where it goes, so that one closed network cannot reach another's virtual
//!    addresses. That it is part of a known connection says nothing: what stays in the closed network makes connections too (routed back, or bridged with
//!    bridge-nf-call-iptables), and a VM that has, or takes, a production address there would have its answers carried out to production.
//! 4. Part of a known connection: passes. Bystanders, for the most part.
//! 5. To inside: passes if a mapping translated it, and is marked; all else is dropped.
//! 6. Translated by a mapping, yet not on its way inside (the interface is gone, the route leads elsewhere): dropped, since that way may lead to production.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::HostOptions;
use super::rules::{FORWARD, INPUT, hook, network_chain};
use super::sites::Site;
use super::translation::egress_sources;
use crate::netfilter::tree::{Key, dispatch};
use crate::netfilter::{Chain, ChainName, ConnState, Hook, IfName, Match, Owner, Rule, TableRules, Target};

/// Packets a second that are logged, and at once. They are counted always.
const LOGGED_PER_SECOND: u32 = 5;
/// Longest `--nflog-prefix` (`nflog` in iptables-extensions(8): 64 with the end mark).
const NFLOG_PREFIX_MAX: usize = 63;

/// What no closed network of the node may reach, whatever its egress.
struct Beyond {
    /// Production, as any of the node's networks declares it.
    protected: BTreeSet<IpNet>,
    /// The chain that drops what goes to virtual addresses of other nodes, if there are any.
    elsewhere: Option<ChainName>,
}

/// Table mangle of IPv4.
pub(super) fn ipv4(sites: &[Site<'_>], claimed_elsewhere: &BTreeSet<IpAddr>, options: &HostOptions) -> TableRules {
    let mut table = TableRules::default();
    let forward = hook(&mut table, Hook::Forward, FORWARD);
    let input = hook(&mut table, Hook::Input, INPUT);
    let fenced = || {
        sites
            .iter()
            .flat_map(|site| site.fence.iter().map(move |interface| (site, interface)))
    };

    let established = || Rule::new(Owner::Base, [Match::State(ConnState::EstablishedOrRelated)], Target::Return);
    let admitted = Rule::new(Owner::Base, [Match::ConnMark(options.connmark)], Target::Return);
    let mut chain = vec![admitted];
    chain.extend(unmapped(sites));
    chain.extend(fenced().map(|(site, interface)| gate(site, Match::In(interface.clone()), "FO")));
    chain.push(established());
    chain.extend(fenced().map(|(site, interface)| gate(site, Match::Out(interface.clone()), "FI")));
    chain.extend(sites.iter().flat_map(astray));
    table.chains.insert(forward, chain);

    let mut chain = vec![established()];
    chain.extend(fenced().map(|(site, interface)| gate(site, Match::In(interface.clone()), "N")));
    table.chains.insert(input, chain);

    let beyond = Beyond {
        protected: sites
            .iter()
            .filter_map(|site| site.network)
            .flat_map(|n| n.protected.iter().copied())
            .collect(),
        elsewhere: claimed_by_others(&mut table.chains, claimed_elsewhere),
    };
    for site in sites.iter().filter(|site| !site.fence.is_empty()) {
        from_inside(&mut table.chains, site, &beyond, options);
        to_inside(&mut table.chains, site, options);
        to_node(&mut table.chains, site, options);
        let mut unmapped = Chain::new();
        deny(&mut unmapped, site, "unmapped", options);
        table.chains.insert(network_chain("U", site.hash), unmapped);
    }
    table
}

/// Table mangle of IPv6: what stays in the closed network is its own, nothing leaves or enters, and the node answers neighbour discovery only.
pub(super) fn ipv6(sites: &[Site<'_>]) -> TableRules {
    let mut table = TableRules::default();
    let forward = hook(&mut table, Hook::Forward, FORWARD);
    let input = hook(&mut table, Hook::Input, INPUT);
    let mut through = Chain::new();
    let mut to_node = Chain::new();
    for site in sites {
        for from in &site.fence {
            let stays = site.fence.iter().map(|to| [Match::In(from.clone()), Match::Out(to.clone())]);
            through.extend(stays.map(|stays| rule(site, stays, Target::Return)));
        }
        for inside in &site.fence {
            let (from, to) = (Match::In(inside.clone()), Match::Out(inside.clone()));
            through.push(rule(site, [from.clone()], Target::Drop));
            through.push(rule(site, [to], Target::Drop));
            for kind in [135, 136] {
                to_node.push(rule(site, [from.clone(), Match::Icmp(kind)], Target::Return));
            }
            to_node.push(rule(site, [from], Target::Drop));
        }
    }
    table.chains.insert(forward, through);
    table.chains.insert(input, to_node);
    table
}

/// Table filter: accepts what the fence admitted, ahead of a foreign DROP, both ways.
pub(super) fn accepts(options: &HostOptions) -> TableRules {
    let mut table = TableRules::default();
    let chain = hook(&mut table, Hook::Forward, "ACC");
    let accept = Rule::new(Owner::Base, [Match::ConnMark(options.connmark)], Target::Accept);
    table.chains.insert(chain, vec![accept]);
    table
}

fn rule(site: &Site<'_>, matches: impl IntoIterator<Item = Match>, target: Target) -> Rule {
    Rule::new(site.owner(), matches, target)
}

fn gate(site: &Site<'_>, interface: Match, kind: &str) -> Rule {
    rule(site, [interface], Target::Goto(network_chain(kind, site.hash)))
}

/// Step 2. Longer prefixes first, so that a drop counts for the network whose pool fits closest; of networks with the same prefix, for the oldest.
fn unmapped(sites: &[Site<'_>]) -> Chain {
    let lo = IfName::new("lo");
    let mut first: BTreeMap<(u8, IpNet), &Site<'_>> = BTreeMap::new();
    for (site, served) in sites.iter().filter_map(|site| site.served().map(|s| (site, s))) {
        for prefix in &served.network.pool {
            first.entry((32 - prefix.prefix_len(), *prefix)).or_insert(site);
        }
    }
    first
        .into_iter()
        .filter_map(|((_, prefix), site)| {
            let matches = [Match::Destination(prefix), Match::Out(lo.clone()?)];
            Some(rule(site, matches, Target::Goto(network_chain("U", site.hash))))
        })
        .collect()
}

/// Step 6.
fn astray<'a>(site: &'a Site<'_>) -> impl Iterator<Item = Rule> + 'a {
    let network = site.network.filter(|_| site.served().is_some());
    network.into_iter().flat_map(|network| &network.inside).map(move |inside| {
        let matches = [Match::Destination(*inside), Match::State(ConnState::Dnat)];
        rule(site, matches, Target::Goto(network_chain("U", site.hash)))
    })
}

/// `SNET-V`: drops what goes to virtual addresses that other nodes serve. None if there are none.
fn claimed_by_others(chains: &mut BTreeMap<ChainName, Chain>, addresses: &BTreeSet<IpAddr>) -> Option<ChainName> {
    if addresses.is_empty() {
        return None;
    }
    let name = ChainName::lossy("V");
    let entries = addresses
        .iter()
        .map(|address| {
            let drop = Rule::new(Owner::Base, [Match::Destination(IpNet::from(*address))], Target::Drop);
            (IpNet::from(*address), vec![drop])
        })
        .collect();
    dispatch(chains, &name, Key::Destination, &entries);
    Some(name)
}

/// Step 3, direction "out".
fn from_inside(chains: &mut BTreeMap<ChainName, Chain>, site: &Site<'_>, beyond: &Beyond, options: &HostOptions) {
    let mut chain = Chain::new();
    if let Some(served) = site.served() {
        // By way of a virtual address to a VM of the same network: marked, so that a foreign DROP does not hit it. Without the mark no answer
        // leaves, and the answer goes to whoever the source says it is: so that has to be somebody inside.
        for pool in &served.network.pool {
            chain.extend(served.network.inside.iter().map(|inside| {
                let dialled = [Match::State(ConnState::Dnat), Match::OriginalDestination(*pool)];
                let matches = [Match::Source(*inside), Match::Out(served.inside.clone())]
                    .into_iter()
                    .chain(dialled);
                rule(site, matches, Target::SetConnMark(options.connmark))
            }));
        }
    }
    let stays = site
        .fence
        .iter()
        .map(|inside| rule(site, [Match::Out(inside.clone())], Target::Return));
    chain.extend(stays);
    if let Some(served) = site.served().filter(|s| s.network.egress_allowed) {
        let egress = network_chain("E", site.hash);
        chain.push(rule(site, [Match::Out(served.outside.clone())], Target::Jump(egress.clone())));
        chain.push(rule(site, [Match::ConnMark(options.connmark)], Target::Return));
        leave(chains, &egress, site, beyond, options);
    }
    deny(&mut chain, site, "out", options);
    chains.insert(network_chain("FO", site.hash), chain);
}

/// `SNET-E-H`, entered by jump: marks what may leave. RETURN here means "not decided", and the chain that called denies what has no mark.
fn leave(chains: &mut BTreeMap<ChainName, Chain>, egress: &ChainName, site: &Site<'_>, beyond: &Beyond, options: &HostOptions) {
    let mut chain: Chain = beyond
        .protected
        .iter()
        .map(|prefix| rule(site, [Match::Destination(*prefix)], Target::Return))
        .collect();
    if let Some(elsewhere) = &beyond.elsewhere {
        chain.push(rule(site, [], Target::Jump(elsewhere.clone())));
    }
    chains.insert(egress.clone(), chain);
    let sources = egress_sources(site)
        .into_iter()
        .map(|(source, (key, _))| {
            let matches = [Match::Source(IpNet::from(source))];
            let mark = Rule::new(Owner::Mapping(key.to_string()), matches, Target::SetConnMark(options.connmark));
            (IpNet::from(source), vec![mark])
        })
        .collect();
    dispatch(chains, egress, Key::Source, &sources);
}

/// Step 5, direction "in".
fn to_inside(chains: &mut BTreeMap<ChainName, Chain>, site: &Site<'_>, options: &HostOptions) {
    let mut chain = Chain::new();
    for pool in site.served().into_iter().flat_map(|s| &s.network.pool) {
        let translated = [Match::State(ConnState::Dnat), Match::OriginalDestination(*pool)];
        chain.push(rule(site, translated.clone(), Target::SetConnMark(options.connmark)));
        chain.push(rule(site, translated, Target::Return));
    }
    deny(&mut chain, site, "in", options);
    chains.insert(network_chain("FI", site.hash), chain);
}

/// What may reach the node itself from inside, direction "node".
fn to_node(chains: &mut BTreeMap<ChainName, Chain>, site: &Site<'_>, options: &HostOptions) {
    // The node answers whoever the source says it is, and that has to be somebody inside.
    let inside = site.network.iter().flat_map(|network| &network.inside);
    let mut chain: Chain = inside
        .map(|inside| rule(site, [Match::Source(*inside), Match::Icmp(8)], Target::Return))
        .collect();
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
