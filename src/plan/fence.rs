//! The fence: what of a closed network may pass the node. In mangle, where no foreign ACCEPT can stand ahead of it. The same in both address families.
//!
//! Chains are entered by goto, so RETURN in them leaves for the built-in chain, where others' rules go on: it means "may pass". The chains of single networks
//! ([`super::gates`]) end in DROP: falling off their end would mean the same as RETURN.
//!
//! How a packet is judged in `SNET-FWD`:
//! 1. Connection mark set: passes. Only flows that the fence itself admitted carry it.
//! 2. To a virtual address by way of lo: a port that no mapping has. Dropped, else it would go round in circles. In IPv6 such a packet ends in a blackhole before it comes here.
//! 3. From inside: judged by its source's network, before anybody asks where it goes, so that one closed network cannot reach another's virtual
//!    addresses. That it is part of a known connection says nothing: what stays in the closed network makes connections too (routed back, or bridged with
//!    bridge-nf-call-iptables), and a VM that has, or takes, a production address there would have its answers carried out to production.
//! 4. To inside: passes if a mapping translated it, and is marked; all else is dropped.
//! 5. Translated by a mapping, yet not on its way inside (the interface is gone, the route leads elsewhere): dropped, since that way may lead to production.
//!
//! Bystanders, packets of no network, walk all of `SNET-FWD`: it has few rules however many networks there are, and none but the first asks conntrack anything before an
//! address or an interface fits. Interfaces are compared by how their names begin first; a packet whose interface only begins like an inside interface goes on in
//! `SNET-FWD2` (behind 3) or `SNET-FWD3` (behind 4).

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::gates::{self, Beyond};
use super::rules::{FORWARD, INPUT, hook, local_sources, network_chain, rule};
use super::sites::Site;
use super::{HostOptions, KernelFacts};
use crate::netfilter::names::{self, Way};
use crate::netfilter::rules::icmp;
use crate::netfilter::tree::{Entries, Key, dispatch, guarded};
use crate::netfilter::{Chain, ChainName, ConnState, Family, Hook, HookRule, IfName, Match, Owner, Rule, TableRules, Target};

/// Table mangle of one family. `meanwhile`: with the mark that reverse path filters are to replace which are not strict yet.
pub(super) fn table(
    sites: &[Site<'_>],
    family: Family,
    claimed_elsewhere: &BTreeSet<IpNet>,
    kernel: &KernelFacts,
    options: &HostOptions,
    meanwhile: bool,
) -> TableRules {
    let mut table = TableRules::default();
    forward(&mut table, sites, family, options);
    let marked = |site: &&Site<'_>| site.marks_nobody(family, kernel) || meanwhile && site.marks_meanwhile(family);
    nobody(&mut table, &sites.iter().filter(marked).collect::<Vec<_>>(), family, options);
    clamp(&mut table, sites, family);
    input(&mut table, sites, family);
    errors(&mut table, sites, family, kernel, options);
    let protected = sites.iter().filter_map(|site| site.network).flat_map(|n| &n.protected);
    let beyond = Beyond {
        protected: protected.filter(|prefix| Family::of_net(prefix) == family).copied().collect(),
        elsewhere: claimed_by_others(&mut table.chains, family, claimed_elsewhere),
    };
    for site in sites.iter().filter(|site| !site.fence.is_empty()) {
        gates::network(&mut table.chains, site, family, &beyond, kernel, options);
    }
    table
}

/// Table filter: accepts what the fence admitted, ahead of a foreign DROP, both ways.
pub(super) fn accepts(options: &HostOptions) -> TableRules {
    TableRules {
        hooks: [(Hook::Forward, HookRule::AcceptMarked(options.connmark))].into(),
        chains: BTreeMap::new(),
    }
}

fn forward(table: &mut TableRules, sites: &[Site<'_>], family: Family, options: &HostOptions) {
    let root = hook(table, Hook::Forward, FORWARD);
    let (second, third) = (ChainName::lossy("FWD2"), ChainName::lossy("FWD3"));
    let chains = &mut table.chains;
    let mut chain = vec![Rule::new(Owner::Base, [Match::ConnMark(options.connmark)], Target::Return).bare()];
    chain.extend(unmapped(chains, sites, family));
    names::dispatch(chains, &mut chain, "FN", Way::In, &by_name(sites, "FO"), &second);

    let mut rest = Chain::new();
    names::dispatch(chains, &mut rest, "FT", Way::Out, &by_name(sites, "FI"), &third);
    let last = astray(chains, sites, family);
    rest.extend(last.iter().cloned());
    chain.extend(rest.iter().cloned());
    chains.insert(root, chain);
    for (name, rules) in [(second, rest), (third, last)] {
        let led = |rule: &Rule| rule.target == Target::Goto(name.clone());
        if chains.values().flatten().any(led) || rules.iter().any(led) {
            chains.insert(name, rules);
        }
    }
}

/// `SNET-PRE`: marks what comes from inside under a source that is nobody's inside. The node answers a packet that it cannot pass on before FORWARD, and answers whoever the source says it is.
/// In IPv4 the strict reverse path filter drops such packets, or table raw marks them where it has to be loose; IPv6 has none. A network that is not served has neither filter nor labels;
/// if another one may have the same addresses, nobody of it is answered.
fn nobody(table: &mut TableRules, concerned: &[&Site<'_>], family: Family, options: &HostOptions) {
    if concerned.is_empty() {
        return;
    }
    let root = hook(table, Hook::Prerouting, "PRE");
    let rest = ChainName::lossy("PRE2");
    let chains = &mut table.chains;
    let mut names = BTreeMap::new();
    for site in concerned {
        let own = network_chain("P", site.hash);
        names.extend(site.fence.iter().map(|name| (name.clone(), (site.owner(), own.clone()))));
        let answered = local_sources(site, family).filter(|_| !site.mistakable());
        let mut chain: Chain = answered.map(|from| rule(site, [Match::Source(from)], Target::Return)).collect();
        chain.push(rule(site, [], Target::SetMark(options.marks.nobody())));
        chains.insert(own, chain);
    }
    let mut chain = Chain::new();
    names::dispatch(chains, &mut chain, "PN", Way::In, &names, &rest);
    if chains
        .values()
        .flatten()
        .chain(&chain)
        .any(|rule| rule.target == Target::Goto(rest.clone()))
    {
        chains.insert(rest, Chain::new());
    }
    chains.insert(root, chain);
}

/// To the node itself. What a mapping of a prefix translated to one of the node's own addresses is for no client either. Names come first: what is part of a known connection
/// may be another clone's, as long as the labels of this one are missing.
fn input(table: &mut TableRules, sites: &[Site<'_>], family: Family) {
    let root = hook(table, Hook::Input, INPUT);
    let rest = ChainName::lossy("IN2");
    let chains = &mut table.chains;
    let mut last = vec![Rule::new(
        Owner::Base,
        [Match::State(ConnState::EstablishedOrRelated)],
        Target::Return,
    )];
    last.extend(astray(chains, sites, family));
    let mut chain = Chain::new();
    names::dispatch(chains, &mut chain, "IN", Way::In, &by_name(sites, "N"), &rest);
    chain.extend(last.iter().cloned());
    if chains.values().flatten().any(|rule| rule.target == Target::Goto(rest.clone())) {
        chains.insert(rest, last);
    }
    chains.insert(root, chain);
}

/// `SNET-OUT`: what the node itself says about packets that it cannot pass on.
///
/// About those of isolated networks it goes by the node's own routes, and those may lead to production, unless the kernel marks it like the packet it is about.
///
/// That there is no way at all is said whoever asks: the kernel asks the reverse path filter only where it found one (`ip_route_input_slow` in `net/ipv4/route.c`). From whom
/// the packet came is not known here, so nobody is told but those inside and those who dialled a mapping. A node with a default route has nothing to say.
fn errors(table: &mut TableRules, sites: &[Site<'_>], family: Family, kernel: &KernelFacts, options: &HostOptions) {
    let base = |matches: Vec<Match>, target| Rule::new(Owner::Base, matches, target);
    let mut chain = Chain::new();
    if !kernel.fwmark_reflect.contains(&family) {
        let isolated = sites.iter().filter(|site| site.separate.is_some());
        let towards: BTreeSet<IpNet> = isolated.filter_map(|site| site.network).flat_map(|n| n.inside_of(family)).collect();
        let unmarked = Match::Mark(options.marks.none());
        chain.extend(towards.iter().flat_map(|prefix| {
            let about = icmp::errors(family).iter();
            about.map(|kind| {
                base(
                    vec![Match::Destination(*prefix), Match::Icmp(*kind), unmarked.clone()],
                    Target::Drop,
                )
            })
        }));
    }
    let plain: Vec<_> = sites.iter().filter(|s| s.separate.is_none()).filter_map(Site::served).collect();
    if family == Family::V4 && !plain.is_empty() {
        let inside: BTreeSet<IpNet> = plain.iter().flat_map(|s| s.network.inside_of(family)).collect();
        let told = inside.into_iter().map(Match::Destination).chain([Match::State(ConnState::Dnat)]);
        chain.extend(told.map(|told| base(vec![Match::NoRoute, told], Target::Return)));
        chain.push(base(vec![Match::NoRoute], Target::Drop));
    }
    if !chain.is_empty() {
        let name = hook(table, Hook::Output, "OUT");
        table.chains.insert(name, chain);
    }
}

/// Each fenced interface, and the chain of this kind of its network.
fn by_name(sites: &[Site<'_>], kind: &str) -> BTreeMap<IfName, (Owner, ChainName)> {
    let fenced = sites.iter().flat_map(|site| site.fence.iter().map(move |name| (site, name)));
    fenced
        .map(|(site, name)| (name.clone(), (site.owner(), network_chain(kind, site.hash))))
        .collect()
}

/// `SNET-MSS`: tells both ends of a connection how long the segments are that get through. Behind the routing, where both ways' MTUs are known, and before the source is
/// translated.
fn clamp(table: &mut TableRules, sites: &[Site<'_>], family: Family) {
    let clamped = sites
        .iter()
        .filter_map(|site| site.served().filter(|s| s.network.clamp_mss).map(|s| (site, s)));
    let rules: Chain = clamped
        .flat_map(|(site, served)| {
            let to_inside = vec![Match::Out(served.inside.clone())];
            let inside = served.network.inside_of(family);
            let from_inside = inside.map(|from| vec![Match::Source(from), Match::Out(served.outside.clone())]);
            std::iter::once(to_inside).chain(from_inside).map(move |way| (site, way))
        })
        .map(|(site, way)| rule(site, way.into_iter().chain([Match::TcpSyn]), Target::ClampMss))
        .collect();
    if !rules.is_empty() {
        let name = hook(table, Hook::Postrouting, "MSS");
        table.chains.insert(name, rules);
    }
}

/// Step 2, of IPv4 (IPv6: [`super::translation`]): whatever leaves by lo towards addresses of ours. Addresses are compared first: that costs bystanders a quarter of what a name does. Of networks with the same prefix, the oldest counts the drop.
fn unmapped(chains: &mut BTreeMap<ChainName, Chain>, sites: &[Site<'_>], family: Family) -> Chain {
    let Some(lo) = IfName::new("lo").filter(|_| family == Family::V4) else {
        return Chain::new();
    };
    let mut entries = Entries::new();
    for (site, served) in sites.iter().filter_map(|site| site.served().map(|s| (site, s))) {
        for prefix in served.network.pool_of(family).chain(served.network.inside_of(family)) {
            let to = Target::Goto(network_chain("U", site.hash));
            entries
                .entry(prefix)
                .or_insert_with(|| vec![rule(site, [Match::Destination(prefix), Match::Out(lo.clone())], to)]);
        }
    }
    guarded(chains, "LO", Key::Destination, entries)
}

/// Step 5.
fn astray(chains: &mut BTreeMap<ChainName, Chain>, sites: &[Site<'_>], family: Family) -> Chain {
    let mut entries = Entries::new();
    for (site, served) in sites.iter().filter_map(|site| site.served().map(|s| (site, s))) {
        for inside in served.network.inside_of(family) {
            let to = Target::Goto(network_chain("U", site.hash));
            let translated = [Match::Destination(inside), Match::State(ConnState::Dnat)];
            entries.entry(inside).or_insert_with(|| vec![rule(site, translated, to)]);
        }
    }
    guarded(chains, "AST", Key::Destination, entries)
}

/// `SNET-V`: drops what goes to virtual addresses that other nodes serve. None if there are none.
fn claimed_by_others(chains: &mut BTreeMap<ChainName, Chain>, family: Family, addresses: &BTreeSet<IpNet>) -> Option<ChainName> {
    let drop = |prefix: &IpNet| vec![Rule::new(Owner::Base, [Match::Destination(*prefix)], Target::Drop)];
    let of_family = addresses.iter().filter(|prefix| Family::of_net(prefix) == family);
    let entries: Entries = of_family.map(|prefix| (*prefix, drop(prefix))).collect();
    if entries.is_empty() {
        return None;
    }
    let name = ChainName::lossy("V");
    dispatch(chains, &name, Key::Destination, entries);
    Some(name)
}
