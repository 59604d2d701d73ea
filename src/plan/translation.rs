//! The translations: table nat.
//!
//! - `SNET-DNAT`: virtual address to target, from wherever it comes, so that VMs can use virtual addresses too.
//! - `SNET-SNAT`: what the VM sees as the source. Hidden behind the gateway's inside address (Masquerade), or the client's own (Preserve). A VM that dials a
//!   VM of its own network by a virtual address is hidden in both modes: the answer would otherwise not come back through the gateway.
//! - `SNET-I-H`: what machines of a network dial that looks like production, to its target outside.
//! - The mirror: a mapping of all protocols is also the address under which its VM leaves, where egress is allowed. Where nothing may leave,
//!   there is no mirror. All other machines leave under the network's source address.
//!
//! - IPv6: packets to ports that no mapping has are counted (`SNET-U-H`), because their route ends before the fence could do it, in silence.
//!
//! Every rule that changes a source asks for the outside interface or for a translated destination: on nodes with bridge-nf-call-iptables the VMs'
//! own traffic passes here too.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use ipnet::IpNet;

use super::MappingKey;
use super::egress::leaving;
use super::prefixes::meet;
use super::rules::{hook, network_chain, rule, rule_of};
use super::sites::{Served, Site};
use super::verdict::{Claim, ClaimedPorts};
use crate::api::mapping::Side;
use crate::api::network::SourceTranslation;
use crate::netfilter::tree::{Entries, Key, dispatch, guarded};
use crate::netfilter::{Chain, ChainName, ConnState, Family, Hook, Match, PortRange, Rule, TableRules, Target};

/// Table nat of one family.
pub(super) fn table(sites: &[Site<'_>], family: Family) -> TableRules {
    let mut table = TableRules::default();
    let destinations = hook(&mut table, Hook::Prerouting, "DNAT");
    let sources = hook(&mut table, Hook::Postrouting, "SNAT");

    // What is dialled from inside comes first: the address may be one that another network has outside.
    let mut chain: Chain = sites.iter().filter_map(|site| inward(&mut table.chains, site, family)).collect();
    let mut entries = Entries::new();
    for site in sites {
        for (key, claim) in of(site, family, Side::Outside) {
            add(&mut entries, claim.virtual_prefix, to_target(key, claim, site.own().as_ref()));
        }
    }
    table.chains.entry(destinations.clone()).or_default().append(&mut chain);
    dispatch(&mut table.chains, &destinations, Key::Destination, entries);

    let rest = unmapped(&mut table.chains, sites, family);
    table.chains.entry(destinations).or_default().extend(rest);

    let mut chain = Chain::new();
    for (site, served) in sites.iter().filter_map(|site| site.served().map(|served| (site, served))) {
        chain.extend(hide_clients(&mut table.chains, site, served, family));
        chain.extend(outward(&mut table.chains, site, served, family));
    }
    table.chains.insert(sources, chain);
    table
}

fn of<'a, 's>(site: &'s Site<'a>, family: Family, dialled: Side) -> impl Iterator<Item = (&'a MappingKey, &'a Claim)> + use<'a, 's> {
    let wanted = move |entry: &&(&MappingKey, &Claim)| entry.1.family() == family && entry.1.side == dialled;
    site.claims.iter().filter(wanted).copied()
}

/// The rule that leads packets from inside to the network's mappings of side Inside. None without any.
fn inward(chains: &mut BTreeMap<ChainName, Chain>, site: &Site<'_>, family: Family) -> Option<Rule> {
    let inside = site.served()?.inside.clone();
    let mut entries = Entries::new();
    for (key, claim) in of(site, family, Side::Inside) {
        add(&mut entries, claim.virtual_prefix, to_target(key, claim, None));
    }
    if entries.is_empty() {
        return None;
    }
    let name = network_chain("I", site.hash);
    dispatch(chains, &name, Key::Destination, entries);
    Some(rule(site, [Match::In(inside)], Target::Jump(name)))
}

/// Adds rules of one claim behind those of others for the same prefix. Mostly there are none: then they are taken as they are.
fn add(entries: &mut Entries, prefix: IpNet, mut rules: Vec<Rule>) {
    match entries.entry(prefix) {
        Entry::Vacant(place) => drop(place.insert(rules)),
        Entry::Occupied(mut place) => place.get_mut().append(&mut rules),
    }
}

/// What no rule before has translated of what ends here ([`super::host::Via::Loopback`]). In IPv4 it is the fence that drops and counts it.
fn unmapped(chains: &mut BTreeMap<ChainName, Chain>, sites: &[Site<'_>], family: Family) -> Chain {
    if family == Family::V4 {
        return Chain::new();
    }
    let mut entries = Entries::new();
    for (site, served) in sites.iter().filter_map(|site| site.served().map(|served| (site, served))) {
        let with_ports = site
            .claims
            .iter()
            .filter(|(_, claim)| claim.family() == family && !claim.ports.is_empty());
        let ends = |prefix: IpNet| served.network.inside.iter().any(|inside| meet(*inside, prefix));
        let claimed = with_ports.filter_map(|(_, claim)| match claim.side {
            Side::Outside => Some((claim.virtual_prefix, None)),
            Side::Inside => ends(claim.virtual_prefix).then(|| (claim.virtual_prefix, Some(Match::In(served.inside.clone())))),
        });
        let sources = site.answered.iter().map(|address| (IpNet::from(*address), None));
        let counted = network_chain("U", site.hash);
        for (prefix, from) in claimed.chain(sources.filter(|(prefix, _)| Family::of_net(prefix) == family)) {
            let matches = from.into_iter().chain([Match::Destination(prefix)]);
            let rules = entries.entry(prefix).or_default();
            let count = rule(site, matches, Target::Goto(counted.clone()));
            if !rules.contains(&count) {
                rules.push(count);
            }
            chains.insert(counted.clone(), vec![rule(site, [], Target::Return)]);
        }
    }
    // The chain that counts comes back: what stands in a wider entry would be counted twice.
    let mut widest: Option<IpNet> = None;
    entries.retain(|prefix, _| {
        let within = widest.is_some_and(|wide| wide.contains(prefix));
        if !within {
            widest = Some(*prefix);
        }
        !within
    });
    guarded(chains, "UM", Key::Destination, entries)
}

/// Translates one prefix to another of the same length: one address by DNAT or SNAT, several by NETMAP.
fn translated(from: IpNet, to: IpNet, one: impl FnOnce() -> Target) -> Target {
    if from.prefix_len() == from.max_prefix_len() {
        one()
    } else {
        Target::Netmap { to }
    }
}

fn to_target(key: &MappingKey, claim: &Claim, own: Option<&Match>) -> Vec<Rule> {
    let (from, to) = (claim.virtual_prefix, claim.target);
    let dialled = || std::iter::once(Match::Destination(from)).chain(own.cloned());
    let target = |ports| translated(from, to, || Target::Dnat { to: to.addr(), ports });
    if claim.ports.is_empty() {
        return vec![rule_of(key, dialled(), target(None))];
    }
    let of_ports = |ports: &ClaimedPorts| {
        let matches = dialled().chain([Match::DestinationPorts(ports.transport, ports.ports)]);
        rule_of(key, matches, target(shifted(*ports)))
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

/// What leaves by the inside interface after a mapping translated it. While all mappings hide their clients, one rule a pool prefix does; else those that do
/// have a rule each.
fn hide_clients(chains: &mut BTreeMap<ChainName, Chain>, site: &Site<'_>, served: Served<'_>, family: Family) -> Chain {
    let Served { network, inside, .. } = served;
    let out = Match::Out(inside.clone());
    let hidden = |claim: &Claim| claim.source_translation == SourceTranslation::Masquerade;
    let mut chain = Chain::new();
    if network.source_translation == SourceTranslation::Masquerade && of(site, family, Side::Outside).all(|(_, claim)| hidden(claim)) {
        chain.extend(network.pool_of(family).map(|pool| {
            let matches = [out.clone(), Match::State(ConnState::Dnat), Match::OriginalDestination(pool)];
            rule(site, matches, Target::Masquerade)
        }));
        return chain;
    }
    chain.extend(network.inside_of(family).map(|from| {
        let matches = [Match::Source(from), out.clone(), Match::State(ConnState::Dnat)];
        rule(site, matches, Target::Masquerade)
    }));
    let mut entries = Entries::new();
    for (key, claim) in of(site, family, Side::Outside).filter(|(_, claim)| hidden(claim)) {
        add(&mut entries, claim.target, hide(key, claim));
    }
    if !entries.is_empty() {
        let name = network_chain("X", site.hash);
        dispatch(chains, &name, Key::Destination, entries);
        chain.push(rule(site, [out, Match::State(ConnState::Dnat)], Target::Jump(name)));
    }
    chain
}

fn hide(key: &MappingKey, claim: &Claim) -> Vec<Rule> {
    let matches = |ports: Option<&ClaimedPorts>| {
        let common = [
            Match::Destination(claim.target),
            Match::State(ConnState::Dnat),
            Match::OriginalDestination(claim.virtual_prefix),
        ];
        common
            .into_iter()
            .chain(ports.map(|p| Match::OriginalDestinationPorts(p.transport, p.ports)))
    };
    if claim.ports.is_empty() {
        return vec![rule_of(key, matches(None), Target::Masquerade)];
    }
    let of_ports = |ports| rule_of(key, matches(Some(ports)), Target::Masquerade);
    claim.ports.iter().map(of_ports).collect()
}

/// What machines start themselves leaves under their virtual address, else under the network's source address. The fence has let only those through that
/// have one.
fn outward(chains: &mut BTreeMap<ChainName, Chain>, site: &Site<'_>, served: Served<'_>, family: Family) -> Chain {
    let Some(leaving) = leaving(site, family) else {
        return Chain::new();
    };
    let entries: Entries = leaving
        .mirrors
        .iter()
        .map(|(target, (key, from))| {
            let snat = translated(*target, *from, || Target::Snat { to: from.addr() });
            (*target, vec![rule_of(key, [Match::Source(*target)], snat)])
        })
        .collect();
    let name = network_chain("M", site.hash);
    dispatch(chains, &name, Key::Source, entries);
    let rest = leaving.source.map(|to| rule(site, [], Target::Snat { to }));
    chains.entry(name.clone()).or_default().extend(rest);
    let to = Match::Out(served.outside.clone());
    let gate = |from| {
        rule(
            site,
            [Match::Source(from), to.clone()].into_iter().chain(site.own()),
            Target::Goto(name.clone()),
        )
    };
    served.network.inside_of(family).map(gate).collect()
}
