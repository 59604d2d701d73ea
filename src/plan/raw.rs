//! Table raw: what conntrack has to know of a packet before it looks at it. Absent on a node without isolated networks and without helpers.
//!
//! Packets of an isolated network get its conntrack zone and its firewall mark, whichever way they go: from inside by the name of the interface, from outside by the virtual
//! address. Where a pool is one network's alone, the pool says whose; where networks share a pool, the claimed addresses do. A helper is asked for where the packet still
//! has the virtual address; zone and helper are one rule, because conntrack takes the first only.
//!
//! Every packet of the node walks this table, so bystanders must get out quickly: names by their beginnings, addresses behind one guard for neighbouring prefixes. And every packet of an
//! isolated network meets what leads to its zone and mark, so those rules are bare.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::prefixes::meet;
use super::rules::{hook, local_sources, network_chain, rule, rule_of};
use super::sites::Site;
use super::values::kernel_helpers;
use super::{HostOptions, KernelFacts};
use crate::api::helper::HelperName;
use crate::api::mapping::Side;
use crate::netfilter::names::{self, Way};
use crate::netfilter::tree::{Entries, Key, dispatch, guarded};
use crate::netfilter::{Chain, ChainName, Family, Helper, Hook, Match, Owner, Rule, TableRules, Target};

/// None if there is nothing to say.
pub(super) fn table(sites: &[Site<'_>], family: Family, kernel: &KernelFacts, options: &HostOptions) -> Option<TableRules> {
    let mut table = TableRules::default();
    let isolated = || {
        sites
            .iter()
            .filter(|site| site.separate.is_some() && site.served().is_some() && site.has(family))
    };
    for site in isolated() {
        network(&mut table.chains, site, family, kernel, options);
    }
    let entries = destinations(sites, family, kernel);
    if table.chains.is_empty() && entries.is_empty() {
        return None;
    }
    let root = hook(&mut table, Hook::Prerouting, "RAW");
    let rest = ChainName::lossy("RAWDST");
    let by_address = guarded(&mut table.chains, "RAWA", Key::Destination, entries);
    let names: BTreeMap<_, _> = isolated()
        .flat_map(|site| {
            site.fence
                .iter()
                .map(move |name| (name.clone(), (site.owner(), network_chain("CI", site.hash))))
        })
        .collect();
    let mut chain = Chain::new();
    names::dispatch(&mut table.chains, &mut chain, "RN", Way::In, &names, &rest);
    let led = table
        .chains
        .values()
        .flatten()
        .any(|rule| rule.target == Target::Goto(rest.clone()));
    if led {
        table.chains.insert(rest, by_address.clone());
    }
    chain.extend(by_address);
    table.chains.insert(root, chain);
    if kernel.fwmark_reflect.contains(&family) && isolated().any(|site| site.zone().is_some()) {
        let answers = hook(&mut table, Hook::Output, "RAWOUT");
        let mut chain = vec![Rule::new(Owner::Base, [Match::Mark(options.marks.none())], Target::Return).bare()];
        chain.extend(isolated().filter_map(|site| Some(rule(site, site.own(), tracked(site, None)?))));
        table.chains.insert(answers, chain);
    }
    Some(table)
}

/// What goes to the network's zone. None for zone 0 without a helper.
fn tracked(site: &Site<'_>, helper: Option<Helper>) -> Option<Target> {
    let zone = site.zone();
    (zone.is_some() || helper.is_some()).then_some(Target::Track { zone, helper })
}

/// `SNET-C-H`: helpers, zone, mark.
fn network(chains: &mut BTreeMap<ChainName, Chain>, site: &Site<'_>, family: Family, kernel: &KernelFacts, options: &HostOptions) {
    let name = network_chain("C", site.hash);
    let Some(separate) = site.separate else { return };
    chains.insert(name.clone(), Chain::new());
    dispatch(chains, &name, Key::Destination, helpers(site, family, kernel));
    let chain = chains.entry(name).or_default();
    chain.extend(tracked(site, None).map(|target| rule(site, [], target).bare()));
    chain.push(rule(site, [], Target::SetMark(separate.mark)).bare());
    from_inside(chains, site, family, options);
}

/// `SNET-CI-H`: what comes from inside. The node itself answers a packet that it cannot pass on, or deliver, and answers whoever the source says it is: if that is nobody
/// inside, it may be production. Such packets are not dropped here, because with bridge-nf-call-iptables what machines of the closed network say to each other passes here too: they are marked
/// for a routing table that drops what is routed. No reverse path filter does, since it must be loose.
fn from_inside(chains: &mut BTreeMap<ChainName, Chain>, site: &Site<'_>, family: Family, options: &HostOptions) {
    let known = Target::Goto(network_chain("C", site.hash));
    let mut chain: Chain = local_sources(site, family)
        .map(|from| rule(site, [Match::Source(from)], known.clone()).bare())
        .collect();
    chain.extend(tracked(site, None).map(|target| rule(site, [], target)));
    chain.push(rule(site, [], Target::SetMark(options.marks.nobody())));
    chains.insert(network_chain("CI", site.hash), chain);
}

/// Helpers that mappings ask for and the kernel has.
fn helpers(site: &Site<'_>, family: Family, kernel: &KernelFacts) -> Entries {
    let mut entries = Entries::new();
    for (key, claim) in site.claims.iter().filter(|(_, claim)| claim.family() == family) {
        for helper in claim.helpers.iter().filter(|helper| available(kernel, helper.name)) {
            for (transport, kernel) in kernel_helpers(helper.name) {
                let inside = site.inside.clone().filter(|_| claim.side == Side::Inside).map(Match::In);
                let dialled = [
                    Match::Destination(claim.virtual_prefix),
                    Match::DestinationPorts(*transport, helper.port),
                ];
                let target = Target::Track {
                    zone: site.zone(),
                    helper: Some(*kernel),
                };
                let rules = entries.entry(claim.virtual_prefix).or_default();
                rules.push(rule_of(key, inside.into_iter().chain(dialled), target));
            }
        }
    }
    entries
}

/// Whether the kernel has a helper. One of which nothing is known is tried: the kernel refuses what it has not.
pub(super) fn available(kernel: &KernelFacts, name: HelperName) -> bool {
    kernel.lacks(name).next().is_none()
}

/// What is told by the address outside: isolated networks' packets, and helpers of the others.
fn destinations(sites: &[Site<'_>], family: Family, kernel: &KernelFacts) -> Entries {
    let mut entries = Entries::new();
    for site in sites {
        let Some(network) = site.network.filter(|_| site.served().is_some()) else {
            continue;
        };
        if site.separate.is_none() {
            for (prefix, rules) in helpers(site, family, kernel) {
                entries.entry(prefix).or_default().extend(rules);
            }
            continue;
        }
        let mut lead = |prefix: IpNet| {
            let to = rule(site, [Match::Destination(prefix)], Target::Goto(network_chain("C", site.hash))).bare();
            entries.entry(prefix).or_default().push(to);
        };
        let shared = |pool: IpNet| {
            let others = sites
                .iter()
                .filter(|other| other.name != site.name)
                .filter_map(|other| other.network);
            others.flat_map(|other| &other.pool).any(|other| meet(*other, pool))
        };
        for pool in network.pool_of(family) {
            if !shared(pool) {
                lead(pool);
                continue;
            }
            let outside = site.claims.iter().filter(|(_, claim)| claim.side == Side::Outside);
            let claimed: BTreeSet<IpNet> = outside.map(|(_, claim)| claim.virtual_prefix).collect();
            claimed.into_iter().filter(|prefix| pool.contains(prefix)).for_each(&mut lead);
            let source = site.sources.get(&family).copied().map(IpNet::from);
            source.into_iter().filter(|prefix| pool.contains(prefix)).for_each(&mut lead);
        }
    }
    entries
}
