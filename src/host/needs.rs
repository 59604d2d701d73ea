//! What a plan asks of a node that the agent cannot give itself, and so only looks at.

use std::collections::BTreeSet;

use crate::api::gatewaynode::Role;
use crate::netfilter::{Family, IfName};
use crate::plan::{HostPlan, Verdicts};

/// What preflight looks at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Outside interfaces of this node's networks.
    pub outside: BTreeSet<IfName>,
    /// Inside interfaces of this node's networks.
    pub inside: BTreeSet<IfName>,
    /// Whether a network has addresses of IPv6, so that the node has to forward it.
    pub ipv6: bool,
    /// Interfaces on which neighbour discovery is answered for virtual addresses.
    pub proxy_ndp: BTreeSet<IfName>,
    /// Families in which networks are told apart by marks.
    pub isolated: BTreeSet<Family>,
}

impl Needs {
    /// What `plan`, made from `verdicts`, asks for.
    pub fn of(plan: &HostPlan, verdicts: &Verdicts) -> Self {
        let gateway = || plan.networks.iter().filter(|(_, network)| network.role != Role::Client);
        let ipv6 = |name: &str| {
            let accepted = verdicts.networks.get(name).and_then(|verdict| verdict.accepted.as_ref().ok());
            accepted.is_some_and(|network| network.pool.iter().chain(&network.inside).any(|p| Family::of_net(p) == Family::V6))
        };
        let proxied = plan.proxies.iter().filter(|proxy| proxy.address.is_ipv6());
        Self {
            outside: gateway().filter_map(|(_, network)| network.outside.clone()).collect(),
            inside: gateway().filter_map(|(_, network)| network.inside.clone()).collect(),
            ipv6: gateway().any(|(name, _)| ipv6(name)),
            proxy_ndp: proxied.map(|proxy| proxy.interface.clone()).collect(),
            isolated: plan.policy_rules.iter().map(|rule| rule.family).collect(),
        }
    }
}
