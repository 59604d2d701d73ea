//! Findings about settings and modules of the kernel that only the node's administrator can change. Pure.

use std::collections::BTreeMap;

use super::facts;
use super::preflight::finding;
use crate::api::helper::HelperName;
use crate::api::reasons::{self, types};
use crate::host::{Finding, Needs};
use crate::netfilter::{Family, IfName};
use crate::plan::{InterfaceFacts, KernelFacts};

/// All of them, in a fixed order.
pub(super) fn findings(needs: &Needs, kernel: &KernelFacts, interfaces: &BTreeMap<String, InterfaceFacts>) -> [Finding; 4] {
    [
        ipv6_forwarding(needs, kernel),
        proxy_ndp(needs, interfaces),
        fwmark_reflect(needs, kernel),
        helpers(kernel),
    ]
}

fn ipv6_forwarding(needs: &Needs, kernel: &KernelFacts) -> Finding {
    let good = |message| finding(types::IPV6_FORWARDING, true, reasons::AS_NEEDED, message);
    match (needs.ipv6, kernel.ipv6_forwarding) {
        (false, _) => good("No network of this node has IPv6 addresses."),
        (true, true) => good("net.ipv6.conf.all.forwarding is 1."),
        (true, false) => finding(
            types::IPV6_FORWARDING,
            false,
            reasons::IPV6_FORWARDING_OFF,
            "net.ipv6.conf.all.forwarding is 0, and networks of this node have IPv6 addresses: nothing is forwarded over IPv6, and the node answers \
             neighbour discovery for no virtual address. Set it to 1 on the node; with accept_ra=2 on interfaces whose routes it learns from a router.",
        ),
    }
}

fn proxy_ndp(needs: &Needs, interfaces: &BTreeMap<String, InterfaceFacts>) -> Finding {
    let off = |name: &&IfName| interfaces.get(name.as_str()).is_some_and(|facts| !facts.proxy_ndp);
    let off: Vec<_> = needs.proxy_ndp.iter().filter(off).map(IfName::as_str).collect();
    if off.is_empty() {
        let message = if needs.proxy_ndp.is_empty() {
            "No IPv6 virtual address is answered for on this node."
        } else {
            "Neighbour discovery is answered where there are IPv6 virtual addresses."
        };
        return finding(types::PROXY_NDP, true, reasons::AS_NEEDED, message);
    }
    let switches: Vec<_> = off.iter().map(|name| format!("net.ipv6.conf.{name}.proxy_ndp=1")).collect();
    let message = format!(
        "The kernel does not answer neighbour discovery for virtual addresses on {}: hosts there do not find them, unless they have a route to \
         this node. Set {} on the node.",
        off.join(", "),
        switches.join(" ")
    );
    finding(types::PROXY_NDP, false, reasons::PROXY_NDP_OFF, message)
}

fn fwmark_reflect(needs: &Needs, kernel: &KernelFacts) -> Finding {
    let off: Vec<Family> = needs.isolated.difference(&kernel.fwmark_reflect).copied().collect();
    if off.is_empty() {
        let message = if needs.isolated.is_empty() {
            "No network of this node is told apart from another by marks."
        } else {
            "What the node answers into an isolated network bears its mark."
        };
        return finding(types::FWMARK_REFLECT, true, reasons::AS_NEEDED, message);
    }
    let switches: Vec<_> = off
        .iter()
        .map(|family| match family {
            Family::V4 => "net.ipv4.fwmark_reflect=1",
            Family::V6 => "net.ipv6.fwmark_reflect=1",
        })
        .collect();
    let message = format!(
        "Networks with overlapping prefixes are told apart by marks, and what the node itself answers into them bears none: it is dropped, as it \
         could go elsewhere. Their VMs cannot ping the gateway and do not learn of packets that are too big. Set {} on the node.",
        switches.join(" ")
    );
    finding(types::FWMARK_REFLECT, false, reasons::FWMARK_REFLECT_OFF, message)
}

/// Our names of those helpers of which the kernel has all parts.
fn helpers(kernel: &KernelFacts) -> Finding {
    if kernel.helpers.is_none() {
        return finding(
            types::HELPERS,
            false,
            reasons::NOT_CHECKED,
            "The kernel does not say which connection tracking helpers are built in (/proc/kallsyms is empty), and no module of one is loaded.",
        );
    }
    let (mut has, mut load) = (Vec::new(), Vec::new());
    for name in HelperName::ALL {
        match kernel.lacks(name).find_map(facts::module) {
            None => has.push(name.as_str()),
            Some(module) => load.push(module),
        }
    }
    let has = if has.is_empty() {
        "no connection tracking helper".to_owned()
    } else {
        format!("the connection tracking helpers {}", has.join(", "))
    };
    if load.is_empty() {
        return finding(types::HELPERS, true, reasons::AS_NEEDED, format!("The kernel has {has}."));
    }
    let message = format!("The kernel has {has}. For others load their part in NAT: {}.", load.join(", "));
    finding(types::HELPERS, false, reasons::HELPER_MISSING, message)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::netfilter::Helper;

    #[test]
    fn every_helper_has_parts_that_a_kernel_may_lack() {
        let nothing = KernelFacts {
            helpers: Some(BTreeSet::new()),
            ..KernelFacts::default()
        };
        for name in HelperName::ALL {
            assert!(nothing.lacks(name).next().is_some(), "{name}");
        }
    }

    fn needs() -> Needs {
        Needs {
            ipv6: true,
            proxy_ndp: ["eth0", "eth1"].map(|name| IfName::new(name).unwrap()).into(),
            isolated: Family::ALL.into(),
            ..Needs::default()
        }
    }

    #[test]
    fn nothing_is_amiss_where_nothing_is_needed() {
        let kernel = KernelFacts {
            helpers: Some(Helper::ALL.into()),
            ..KernelFacts::default()
        };
        let found = findings(&Needs::default(), &kernel, &BTreeMap::new());
        assert!(found.iter().all(|f| f.ok && f.reason == reasons::AS_NEEDED), "{found:?}");
    }

    #[test]
    fn what_is_needed_and_off_is_named_with_its_switch() {
        let proxying = |proxy_ndp| InterfaceFacts {
            proxy_ndp,
            ..InterfaceFacts::default()
        };
        let interfaces = BTreeMap::from([("eth0".to_owned(), proxying(true)), ("eth1".to_owned(), proxying(false))]);
        let kernel = KernelFacts {
            fwmark_reflect: BTreeSet::from([Family::V4]),
            helpers: Some(BTreeSet::from([Helper::Ftp, Helper::H323Ras])),
            ..KernelFacts::default()
        };
        let found = findings(&needs(), &kernel, &interfaces);
        assert!(found.iter().all(|f| !f.ok), "{found:?}");
        let reasons: Vec<_> = found.iter().map(|f| f.reason).collect();
        assert_eq!(
            reasons,
            [
                reasons::IPV6_FORWARDING_OFF,
                reasons::PROXY_NDP_OFF,
                reasons::FWMARK_REFLECT_OFF,
                reasons::HELPER_MISSING
            ]
        );
        assert!(
            found[1].message.ends_with("Set net.ipv6.conf.eth1.proxy_ndp=1 on the node."),
            "{}",
            found[1].message
        );
        assert!(
            found[2].message.ends_with("Set net.ipv6.fwmark_reflect=1 on the node."),
            "{}",
            found[2].message
        );
        assert!(
            found[3].message.starts_with("The kernel has the connection tracking helpers ftp. "),
            "{}",
            found[3].message
        );
        assert!(
            found[3].message.contains("nf_nat_h323") && !found[3].message.contains("nf_nat_ftp"),
            "{}",
            found[3].message
        );
    }

    #[test]
    fn what_cannot_be_found_out_is_not_called_missing() {
        let found = findings(&Needs::default(), &KernelFacts::default(), &BTreeMap::new());
        assert_eq!(found[3].reason, reasons::NOT_CHECKED);
    }
}
