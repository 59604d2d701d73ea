//! What the objects come to, by rules that were written down once more, without a look at the product's own.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::claims::{Claim, NETWORKS};
use crate::desk::{Sight, condition};
use crate::hosts::GATEWAYS;
use crate::words;

/// What was asked for and what the hosts are like.
#[derive(Clone, Debug, Default)]
pub struct Model {
    pub claims: BTreeMap<String, Claim>,
    /// The networks that exist.
    pub networks: BTreeSet<String>,
    /// No gateway says anything any more.
    pub silent: bool,
    /// A gateway is silent that does not serve: its fence is nobody's word.
    pub silent_standby: bool,
    /// Networks of which an interface of the gateway that serves them is down.
    pub down: BTreeSet<String>,
    /// Mappings that this version cannot read.
    pub unreadable: BTreeSet<String>,
    /// Those of them of which controllers know no earlier version: they do not know what is claimed, gateways do.
    pub forgotten: BTreeSet<String>,
    /// Networks that this version cannot read, and those of them of which controllers know no earlier version.
    pub unreadable_networks: BTreeSet<String>,
    pub forgotten_networks: BTreeSet<String>,
    /// Gateways whose agents report: what the others said last stays as it is.
    pub reporting: BTreeSet<String>,
    /// Gateways whose Nodes are deleted.
    pub departed: BTreeSet<String>,
    /// Somebody else changed kernels, and gateways may say so for a while.
    pub fought: bool,
}

/// What a status must say: Ready and its reason.
pub type Verdict = (&'static str, &'static str);

impl Model {
    /// What every mapping must say. `sight` is asked for the ages of claims, and for nothing else.
    pub fn verdicts(&self, sight: &Sight) -> BTreeMap<String, Verdict> {
        let age = |name: &String| {
            let told = sight.mappings.objects.get(name);
            told.map_or_else(String::new, |t| {
                t.object["metadata"]["creationTimestamp"].as_str().unwrap_or_default().to_owned()
            })
        };
        let mut names: Vec<_> = self.claims.keys().collect();
        names.sort_by_key(|name| (age(name), (*name).clone()));
        let mut standing: Vec<&Claim> = Vec::new();
        let mut forgotten: Vec<&Claim> = Vec::new();
        let verdict = |name: &String| {
            let claim = &self.claims[name];
            let unknown = self.forgotten_networks.contains(&claim.network);
            let verdict = if unknown || self.unreadable.contains(name) {
                let known = if self.forgotten.contains(name) {
                    &mut forgotten
                } else {
                    &mut standing
                };
                known.push(claim);
                ("Unknown", "Unreadable")
            } else if !self.networks.contains(&claim.network) {
                ("False", "NetworkNotFound")
            } else if let Some(reason) = claim.refused() {
                ("False", reason)
            } else if standing.iter().any(|other| other.rivals(claim)) {
                ("False", "Conflict")
            } else if forgotten.iter().any(|other| other.rivals(claim)) {
                // Gateways refuse it.
                ("False", "Pending")
            } else {
                standing.push(claim);
                if self.silent {
                    ("Unknown", "GatewaySilent")
                } else if self.down.contains(&claim.network) {
                    ("False", "LinkDown")
                } else {
                    ("True", "Ready")
                }
            };
            (name.clone(), verdict)
        };
        names.into_iter().map(verdict).collect()
    }

    /// What a network must say.
    fn network(&self, name: &str) -> Verdict {
        if self.unreadable_networks.contains(name) {
            ("Unknown", "Unreadable")
        } else if self.silent || self.silent_standby {
            ("Unknown", "GatewaySilent")
        } else if self.down.contains(name) {
            ("False", "LinkDown")
        } else {
            ("True", "Ready")
        }
    }

    /// What is not yet as it must be. Empty: the objects have settled.
    pub fn unsettled(&self, sight: &Sight) -> Vec<String> {
        let mut open = Vec::new();
        if sight.mappings.blind || sight.networks.blind || sight.gateways.blind {
            open.push("the API server tells nothing".to_owned());
        }
        let wanted = self.verdicts(sight);
        for name in sight.mappings.objects.keys().filter(|name| !wanted.contains_key(*name)) {
            open.push(format!("natmapping/{name} should be gone"));
        }
        for (name, verdict) in wanted {
            let Some(told) = sight.mappings.objects.get(&name) else {
                open.push(format!("natmapping/{name} is not there"));
                continue;
            };
            let claim = &self.claims[&name];
            let asked = self.unreadable.contains(&name) || told.object["spec"] == claim.spec();
            if !asked {
                open.push(format!("natmapping/{name} is not what was asked for: {}", told.object["spec"]));
            }
            open.extend(words::differ(&told.object, words::mapping(verdict)).map(|how| format!("natmapping/{name} {how}")));
            if verdict.0 == "True" {
                let served = sight.gateway(&claim.network);
                let (node, how) = (&told.object["status"]["gateway"], &told.object["status"]["announcement"]);
                if node != served || how != "Neighbour" {
                    open.push(format!(
                        "natmapping/{name} should be announced by {served}, is said to be by {node}, {how}"
                    ));
                }
            }
        }
        for name in NETWORKS.map(|network| network.name) {
            let network = sight.networks.objects.get(name);
            if network.is_some() != self.networks.contains(name) {
                open.push(format!("network {name} should be there: {}", network.is_none()));
            }
            let how = network.and_then(|told| words::differ(&told.object, words::network(self.network(name))));
            open.extend(how.map(|how| format!("network {name} {how}")));
        }
        open.extend(self.unsettled_gateways(sight));
        open
    }

    /// What gateways do not yet say as they must.
    fn unsettled_gateways(&self, sight: &Sight) -> Vec<String> {
        let mut open = Vec::new();
        for name in GATEWAYS {
            let gateway = sight.gateways.objects.get(name);
            if gateway.is_some() == self.departed.contains(name) {
                open.push(format!("GatewayNode {name} should be there: {}", gateway.is_none()));
            }
            let Some(told) = gateway.filter(|_| self.reporting.contains(name)) else {
                continue;
            };
            let unread = !self.unreadable.is_empty() || !self.unreadable_networks.is_empty();
            let how = words::gateway(&told.object, unread, self.fought);
            open.extend(how.map(|how| format!("GatewayNode {name} {how}")));
        }
        open
    }
}

/// What kstatus must call an object whose Ready and Stalled are these.
pub fn kstatus(object: &Value) -> &'static str {
    if condition(object, "Ready")[0] == "True" {
        "Current"
    } else if condition(object, "Stalled")[0] == "True" {
        "Failed"
    } else {
        "InProgress"
    }
}
