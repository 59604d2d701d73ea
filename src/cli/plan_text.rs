//! `stagenet plan -o text`.

use std::fmt::Write as _;

use super::plan::{Planned, restore};
use super::table;
use crate::netfilter::Family;
use crate::plan::{LinkSettings, MappingState, egress_limited, written};

/// The plan for people.
pub(super) fn text(planned: &Planned) -> String {
    let mut out = format!("Plan for node {}\n", planned.node);
    if !planned.trusted.is_empty() {
        let names: Vec<&str> = planned.trusted.iter().map(String::as_str).collect();
        let _ = writeln!(out, "Interfaces taken on trust (not given with --interface): {}", names.join(", "));
    }
    networks(planned, &mut out);
    mappings(planned, &mut out);
    links(planned, &mut out);
    rules(planned, &mut out);
    out
}

fn networks(planned: &Planned, out: &mut String) {
    let mut rows = vec![["NETWORK", "OUTSIDE", "INSIDE", "ROLE", "RESULT"].map(str::to_owned)];
    let mut why = Vec::new();
    for (name, verdict) in &planned.verdicts.networks {
        let here = planned.plan.networks.get(name);
        let refusal = verdict.accepted.as_ref().err().or_else(|| here.and_then(|n| n.problem.as_ref()));
        let interface = |i: Option<&crate::netfilter::IfName>| i.map_or_else(|| "-".to_owned(), ToString::to_string);
        rows.push([
            name.clone(),
            interface(here.and_then(|n| n.outside.as_ref())),
            interface(here.and_then(|n| n.inside.as_ref())),
            here.map_or_else(|| "-".to_owned(), |n| format!("{:?}", n.role)),
            refusal.map_or("served", |r| r.reason).to_owned(),
        ]);
        why.extend(refusal.map(|r| format!("{name}: {}", r.message)));
        let limited = verdict.accepted.as_ref().ok().and_then(egress_limited);
        why.extend(limited.map(|limited| format!("{name}: {}", limited.message)));
        why.extend(here.and_then(|n| n.isolated).map(|isolated| {
            format!(
                "{name}: shares inside addresses with another network, told apart by identifier {} (conntrack zone {}, firewall mark {}, routing table {})",
                isolated.identifier, isolated.zone, isolated.mark, isolated.table
            )
        }));
    }
    section(out, "Networks", &rows, &why);
}

fn mappings(planned: &Planned, out: &mut String) {
    let mut rows = vec![["MAPPING", "NETWORK", "VIRTUAL", "TARGET", "RESULT"].map(str::to_owned)];
    let mut why = Vec::new();
    for (key, verdict) in planned.verdicts.mappings.iter() {
        let state = planned.plan.mappings.get(key);
        let refusal = match (&verdict.accepted, state) {
            (Err(refusal), _) | (_, Some(MappingState::Failed(refusal))) => Some(refusal),
            _ => None,
        };
        let (from, to) = match &verdict.accepted {
            Ok(claim) => (written(claim.virtual_prefix), written(claim.target)),
            Err(_) => ("-".to_owned(), "-".to_owned()),
        };
        let result = refusal.map_or(if state.is_some() { "programmed" } else { "not here" }, |r| r.reason);
        rows.push([key.to_string(), verdict.network.to_string(), from, to, result.to_owned()]);
        why.extend(refusal.map(|r| format!("{key}: {}", r.message)));
    }
    section(out, "Mappings", &rows, &why);
}

fn section<const N: usize>(out: &mut String, title: &str, rows: &[[String; N]], why: &[String]) {
    let _ = writeln!(out, "\n{title}");
    if rows.len() == 1 {
        out.push_str("  none\n");
        return;
    }
    for line in table(rows).lines().chain(why.iter().map(String::as_str)) {
        let _ = writeln!(out, "  {line}");
    }
}

fn links(planned: &Planned, out: &mut String) {
    let plan = &planned.plan;
    out.push_str("\nInterfaces, routes, neighbours\n");
    if plan.links.is_empty() && plan.addresses.is_empty() && plan.routes.is_empty() && plan.proxies.is_empty() {
        out.push_str("  none\n");
    }
    for (interface, settings) in &plan.links {
        let _ = writeln!(out, "  {interface}: {}", self::settings(settings));
    }
    for address in &plan.addresses {
        let _ = writeln!(
            out,
            "  ip address add {} dev {}",
            ipnet::IpNet::from(address.address),
            address.interface
        );
    }
    for route in &plan.routes {
        let _ = writeln!(out, "  ip route add {route}");
    }
    for rule in &plan.policy_rules {
        let _ = writeln!(out, "  ip {}rule add {rule}", if rule.family == Family::V6 { "-6 " } else { "" });
    }
    for proxy in &plan.proxies {
        let _ = writeln!(out, "  ip neigh add proxy {} dev {}", proxy.address, proxy.interface);
    }
}

fn settings(settings: &LinkSettings) -> String {
    let LinkSettings {
        forwarding,
        send_redirects,
        rp_filter,
        proxy_delay,
        proxy_delay_ipv6,
    } = settings;
    let parts = [
        forwarding.map(|v| format!("forwarding={}", u8::from(v))),
        send_redirects.map(|v| format!("send_redirects={}", u8::from(v))),
        rp_filter.map(|v| format!("rp_filter={v}")),
        proxy_delay.map(|v| format!("proxy_delay={v}ms")),
        proxy_delay_ipv6.map(|v| format!("ipv6.proxy_delay={v}ms")),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

fn rules(planned: &Planned, out: &mut String) {
    for (family, tool) in [(Family::V4, "iptables"), (Family::V6, "ip6tables")] {
        let _ = writeln!(out, "\nRules ({tool})");
        match restore(&planned.plan.ruleset, family) {
            Ok(text) if text.is_empty() => out.push_str("  none\n"),
            Ok(text) => text.lines().for_each(|line| {
                let _ = writeln!(out, "  {line}");
            }),
            Err(error) => {
                let _ = writeln!(out, "  {error}");
            }
        }
    }
}
