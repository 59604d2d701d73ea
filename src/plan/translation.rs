//! The translations: table nat.
//!
//! - `SNET-DNAT`: virtual address to target, from wherever it comes, so that VMs can use virtual addresses too.
//! - `SNET-SNAT`: what the VM sees as the source. Hidden behind the gateway's inside address (Masquerade), or the client's own (Preserve). A VM that dials a
//!   VM of its own network by a virtual address is hidden in both modes: the answer would otherwise not come back through the gateway.
//! - The mirror: a mapping of all protocols is also the address under which its VM leaves, where egress is allowed. Where it is denied nothing leaves,
//!   and there is no mirror.
//!
//! Every rule that changes a source asks for the outside interface or for a translated destination: on nodes with bridge-nf-call-iptables the VMs'
//! own traffic passes here too.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::MappingKey;
use super::rules::{hook, network_chain};
use super::sites::{Served, Site};
use super::verdict::{Claim, ClaimedPorts};
use crate::api::network::SourceTranslation;
use crate::netfilter::tree::{Entries, Key, dispatch};
use crate::netfilter::{Chain, ChainName, ConnState, Hook, Match, Owner, PortRange, Rule, TableRules, Target};

/// Table nat.
pub(super) fn table(sites: &[Site<'_>]) -> TableRules {
    let mut table = TableRules::default();
    let destinations = hook(&mut table, Hook::Prerouting, "DNAT");
    let sources = hook(&mut table, Hook::Postrouting, "SNAT");

    let mut entries = Entries::new();
    for (key, claim) in sites.iter().flat_map(|site| &site.claims) {
        entries
            .entry(IpNet::from(claim.virtual_address))
            .or_default()
            .extend(to_target(key, claim));
    }
    dispatch(&mut table.chains, &destinations, Key::Destination, &entries);

    let mut chain = Chain::new();
    for (site, served) in sites.iter().filter_map(|site| site.served().map(|served| (site, served))) {
        chain.extend(hide_clients(&mut table.chains, site, served));
        chain.extend(mirror(&mut table.chains, site, served));
    }
    table.chains.insert(sources, chain);
    table
}

/// Which VM may leave under which virtual address, and by which mapping. Empty where egress is denied. Of two mappings of all protocols to one target
/// the older counts.
pub(super) fn egress_sources<'a>(site: &Site<'a>) -> BTreeMap<IpAddr, (&'a MappingKey, IpAddr)> {
    let mut found: BTreeMap<IpAddr, (&MappingKey, &Claim)> = BTreeMap::new();
    if site.served().is_some_and(|s| s.network.egress_allowed) {
        for (key, claim) in site.claims.iter().filter(|(_, claim)| claim.ports.is_empty()) {
            let entry = found.entry(claim.target).or_insert((key, claim));
            if (claim.created, *key) < (entry.1.created, entry.0) {
                *entry = (key, claim);
            }
        }
    }
    found
        .into_iter()
        .map(|(target, (key, claim))| (target, (key, claim.virtual_address)))
        .collect()
}

fn owner(key: &MappingKey) -> Owner {
    Owner::Mapping(key.to_string())
}

fn to_target(key: &MappingKey, claim: &Claim) -> Vec<Rule> {
    let address = Match::Destination(IpNet::from(claim.virtual_address));
    if claim.ports.is_empty() {
        let target = Target::Dnat {
            to: claim.target,
            ports: None,
        };
        return vec![Rule::new(owner(key), [address], target)];
    }
    let of_ports = |ports: &ClaimedPorts| {
        let target = Target::Dnat {
            to: claim.target,
            ports: shifted(*ports),
        };
        let matches = [address.clone(), Match::DestinationPorts(ports.transport, ports.ports)];
        Rule::new(owner(key), matches, target)
    };
    claim.ports.iter().map(of_ports).collect()
}

/// The range at the target, if it is another one than at the virtual address.
fn shifted(ports: ClaimedPorts) -> Option<(PortRange, u16)> {
    let (first, base) = (ports.target_first, ports.ports.first());
    let last = first.checked_add(ports.ports.span())?;
    (first != base)
        .then(|| PortRange::new(first, last).map(|range| (range, base)))
        .flatten()
}

fn rule(site: &Site<'_>, matches: impl IntoIterator<Item = Match>, target: Target) -> Rule {
    Rule::new(site.owner(), matches, target)
}

/// What leaves by the inside interface after a mapping translated it. While all mappings hide their clients, one rule a pool prefix does; else those that do
/// have a rule each.
fn hide_clients(chains: &mut BTreeMap<ChainName, Chain>, site: &Site<'_>, served: Served<'_>) -> Chain {
    let Served { network, inside, .. } = served;
    let out = Match::Out(inside.clone());
    let hidden = |claim: &Claim| claim.source_translation == SourceTranslation::Masquerade;
    let mut chain = Chain::new();
    if network.source_translation == SourceTranslation::Masquerade && site.claims.iter().all(|(_, claim)| hidden(claim)) {
        chain.extend(network.pool.iter().map(|pool| {
            let matches = [out.clone(), Match::State(ConnState::Dnat), Match::OriginalDestination(*pool)];
            rule(site, matches, Target::Masquerade)
        }));
        return chain;
    }
    chain.extend(network.inside.iter().map(|from| {
        let matches = [Match::Source(*from), out.clone(), Match::State(ConnState::Dnat)];
        rule(site, matches, Target::Masquerade)
    }));
    let mut entries = Entries::new();
    for (key, claim) in site.claims.iter().filter(|(_, claim)| hidden(claim)) {
        entries.entry(IpNet::from(claim.target)).or_default().extend(hide(key, claim));
    }
    if !entries.is_empty() {
        let name = network_chain("X", site.hash);
        dispatch(chains, &name, Key::Destination, &entries);
        chain.push(rule(site, [out, Match::State(ConnState::Dnat)], Target::Jump(name)));
    }
    chain
}

fn hide(key: &MappingKey, claim: &Claim) -> Vec<Rule> {
    let matches = |ports: Option<&ClaimedPorts>| {
        let address = IpNet::from(claim.virtual_address);
        let common = [
            Match::Destination(IpNet::from(claim.target)),
            Match::State(ConnState::Dnat),
            Match::OriginalDestination(address),
        ];
        common
            .into_iter()
            .chain(ports.map(|p| Match::OriginalDestinationPorts(p.transport, p.ports)))
    };
    if claim.ports.is_empty() {
        return vec![Rule::new(owner(key), matches(None), Target::Masquerade)];
    }
    let of_ports = |ports| Rule::new(owner(key), matches(Some(ports)), Target::Masquerade);
    claim.ports.iter().map(of_ports).collect()
}

/// What VMs start themselves leaves under their virtual address. The fence has let only those through that have one.
fn mirror(chains: &mut BTreeMap<ChainName, Chain>, site: &Site<'_>, served: Served<'_>) -> Chain {
    let entries: Entries = egress_sources(site)
        .into_iter()
        .map(|(source, (key, address))| {
            let matches = [Match::Source(IpNet::from(source))];
            (
                IpNet::from(source),
                vec![Rule::new(owner(key), matches, Target::Snat { to: address })],
            )
        })
        .collect();
    if entries.is_empty() {
        return Chain::new();
    }
    let name = network_chain("M", site.hash);
    dispatch(chains, &name, Key::Source, &entries);
    let to = Match::Out(served.outside.clone());
    let gate = |from: &IpNet| rule(site, [Match::Source(*from), to.clone()], Target::Goto(name.clone()));
    served.network.inside.iter().map(gate).collect()
}
