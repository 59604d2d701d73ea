//! What the objects come to, by rules that were written down once more, without a look at the product's own.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::desk::{Sight, condition};

/// The virtual addresses that mappings choose from.
pub const POOL: [&str; 5] = [
    "192.168.100.11",
    "192.168.100.12",
    "192.168.100.13",
    "192.168.100.14",
    "192.168.100.15",
];
/// The network that all mappings are in.
pub const NETWORK: &str = "segment-b";

/// The restored machine that has an address.
pub fn server(target: &str) -> &'static str {
    match target {
        "192.168.200.3" => "vm03",
        "192.168.200.4" => "vm04",
        _ => "nobody",
    }
}

/// One claim as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub address: String,
    pub target: String,
}

impl Claim {
    pub fn spec(&self) -> Value {
        json!({"networkRef": {"name": NETWORK}, "virtual": {"address": self.address}, "target": {"address": self.target}})
    }
}

/// What was asked for and what the hosts are like.
#[derive(Clone, Debug, Default)]
pub struct Model {
    pub claims: BTreeMap<String, Claim>,
    /// Whether the network exists.
    pub network: bool,
    /// Why nothing gets through although everything is programmed (`LinkDown`), or nobody knows (`GatewaySilent`).
    pub trouble: Option<&'static str>,
    /// A gateway that does not serve is silent: its fence is nobody's word.
    pub silent_standby: bool,
    /// Mappings that this version cannot read.
    pub unreadable: BTreeSet<String>,
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
        let mut taken = BTreeSet::new();
        let verdict = |name: &String| {
            let claim = &self.claims[name];
            let verdict = if self.unreadable.contains(name) {
                taken.insert(claim.address.as_str());
                ("Unknown", "Unreadable")
            } else if !self.network {
                ("False", "NetworkNotFound")
            } else if !claim.address.starts_with("192.168.100.") {
                ("False", "OutsidePool")
            } else if !claim.target.starts_with("192.168.200.") {
                ("False", "TargetOutside")
            } else if !taken.insert(claim.address.as_str()) {
                ("False", "Conflict")
            } else {
                match self.trouble {
                    None => ("True", "Ready"),
                    Some(reason @ "GatewaySilent") => ("Unknown", reason),
                    Some(reason) => ("False", reason),
                }
            };
            (name.clone(), verdict)
        };
        names.into_iter().map(verdict).collect()
    }

    /// What is not yet as it must be. Empty: the objects have settled.
    pub fn unsettled(&self, sight: &Sight) -> Vec<String> {
        let mut open = Vec::new();
        if sight.mappings.blind || sight.networks.blind {
            open.push("the API server tells nothing".to_owned());
        }
        let wanted = self.verdicts(sight);
        for name in sight.mappings.objects.keys().filter(|name| !wanted.contains_key(*name)) {
            open.push(format!("natmapping/{name} should be gone"));
        }
        for (name, (status, reason)) in wanted {
            let Some(told) = sight.mappings.objects.get(&name) else {
                open.push(format!("natmapping/{name} is not there"));
                continue;
            };
            let [is, why, message] = condition(&told.object, "Ready");
            let looked_at = told.object["status"]["observedGeneration"] == told.object["metadata"]["generation"];
            let asked = self.unreadable.contains(&name) || told.object["spec"] == self.claims[&name].spec();
            if (is, why) != (status, reason) || !looked_at || !asked {
                open.push(format!(
                    "natmapping/{name} should be Ready={status} {reason}, is {is} {why} ({message}), generation looked at: {looked_at}, as asked for: {asked}"
                ));
            }
        }
        let network = sight.networks.objects.get(NETWORK);
        if network.is_some() != self.network {
            open.push(format!("the network should be there: {}", self.network));
        }
        if let Some(network) = network {
            let wanted = match self.trouble {
                Some("GatewaySilent") => "Unknown",
                None if self.silent_standby => "Unknown",
                None => "True",
                Some(_) => "False",
            };
            let [is, why, message] = condition(&network.object, "Ready");
            if is != wanted || network.object["status"]["observedGeneration"] != network.object["metadata"]["generation"] {
                open.push(format!("the network should be Ready={wanted}, is {is} {why} ({message})"));
            }
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
