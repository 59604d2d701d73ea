//! What an administrator would see of a node's networking, as text to be compared byte for byte.

use std::fmt;

use super::Ns;

/// Tables, routes, policy rules, proxy neighbours, addresses and interface settings of a host.
#[derive(Clone, PartialEq, Eq)]
pub struct Snapshot(String);

impl Snapshot {
    /// Takes one. Counters read as [0:0]. A table in which nothing was ever changed reads as no table: neither tool can take
    /// back that a table was once looked at.
    pub fn of(ns: &Ns) -> Self {
        let mut all = String::new();
        for tool in ["iptables", "ip6tables"] {
            all += &section(&format!("{tool} nft"), &tables(&ns.sh(&format!("{tool}-nft-save"))));
            // Running the legacy tool makes tables, so it is run only where there are some.
            let names = if tool == "iptables" {
                "ip_tables_names"
            } else {
                "ip6_tables_names"
            };
            if !ns.try_sh(&format!("cat /proc/net/{names}")).stdout.is_empty() {
                all += &section(&format!("{tool} legacy"), &tables(&ns.sh(&format!("{tool}-legacy-save"))));
            }
        }
        for family in ["-4", "-6"] {
            for what in ["route show table all | sort", "rule", "neigh show proxy | sort", "-o addr"] {
                let text = ns.sh(&format!("ip {family} {what}"));
                // The kernel's own link-local addresses come when they will, and addresses are tentative for a while.
                let text: String = text
                    .lines()
                    .filter(|l| !l.contains("fe80::") && !l.starts_with("multicast ff00::"))
                    .map(|l| l.replace(" tentative", "") + "\n")
                    .collect();
                all += &section(&format!("ip {family} {what}"), &text);
            }
        }
        all += "# settings\n";
        all += &ns.sh(concat!(
            "cd /proc/sys/net/ipv4 && grep -H . ip_forward conf/*/forwarding conf/*/rp_filter conf/*/send_redirects ",
            "conf/*/proxy_arp conf/*/arp_* conf/*/route_localnet conf/*/accept_local neigh/*/proxy_delay fwmark_reflect ",
            "../ipv6/conf/*/forwarding ../ipv6/conf/*/proxy_ndp ../ipv6/neigh/*/proxy_delay ../ipv6/fwmark_reflect"
        ));
        Self(all)
    }

    /// Fails with the differing lines if `later` is not the same.
    pub fn assert_same(&self, later: &Self) {
        let only = |a: &str, b: &str| {
            a.lines()
                .filter(|l| !b.lines().any(|m| &m == l))
                .map(|l| format!("\n  {l}"))
                .collect::<String>()
        };
        let first = self.0.lines().zip(later.0.lines()).find(|(was, is)| was != is);
        assert!(
            self == later,
            "the host is not as it was. Gone:{}\nLeft behind:{}\nThe first line that differs:\n  {first:?}\nnow:\n{later:?}",
            only(&self.0, &later.0),
            only(&later.0, &self.0)
        );
    }

    /// The same where `from` reads as `to`.
    pub fn reading(&self, from: &str, to: &str) -> Self {
        Self(self.0.replace(from, to))
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn section(title: &str, text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!("# {title}\n{text}")
    }
}

/// `save` output without time stamps and counters, and without tables that hold nothing; tables by name, because nft shows them in the order in which
/// they were made.
fn tables(save: &str) -> String {
    let mut all = Vec::new();
    let mut table = String::new();
    let mut pristine = true;
    for line in save.lines().filter(|l| !l.starts_with('#')) {
        let line = without_counters(line);
        table += &line;
        table.push('\n');
        if let Some(chain) = line.strip_prefix(':') {
            pristine &= chain.contains(" ACCEPT ");
        } else if line == "COMMIT" {
            if !pristine {
                all.push(std::mem::take(&mut table));
            }
            table.clear();
            pristine = true;
        } else if !line.starts_with('*') {
            pristine = false;
        }
    }
    all.sort_unstable();
    all.concat()
}

fn without_counters(line: &str) -> String {
    match (line.rfind('['), line.ends_with(']')) {
        (Some(at), true) if line.starts_with(':') => format!("{}[0:0]", &line[..at]),
        _ => line.to_owned(),
    }
}
