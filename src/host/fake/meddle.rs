//! What a test does to a [`FakeHost`] behind the agent's back, and what it asks it. Each meddling emits the event that a kernel would
//! (table events only with the nft backend, as legacy tables have none).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use super::tables::FakeTable;
use super::{Call, FakeHost, Refusal, State, Write, overlay};
use crate::host::{Backend, Finding, HostError, HostEvent};
use crate::netfilter::render::HOOK_COMMENT;
use crate::netfilter::rules::CHAIN_PREFIX;
use crate::netfilter::{Family, IfName, Table};
use crate::plan::{FlowTuple, GatewayAddress, InterfaceFacts, KernelFacts, LinkSettings, PolicyRule, ProxyNeighbour, Route, Via};

/// Who is said to have changed a table.
const MEDDLER: &str = "iptables (pid 4711)";

impl State {
    fn tables_changed(&self, table: Table, chains: impl IntoIterator<Item = String>) {
        let mut chains: Vec<_> = chains.into_iter().map(|c| format!("{}/{c}", table.as_str())).collect();
        chains.sort();
        if self.backend == Some(Backend::Nft) && !chains.is_empty() {
            self.emit(HostEvent::Tables {
                by: Some(MEDDLER.to_owned()),
                chains,
            });
        }
    }

    fn table(&mut self, family: Family, table: Table) -> &mut FakeTable {
        self.tables.entry((family, table)).or_insert_with(|| FakeTable::new(table))
    }
}

/// Failure injection and bookkeeping.
impl FakeHost {
    /// Makes the `number`-th call from now (1 = the next one) fail with `error`, before it has any effect.
    pub fn fail_at(&self, number: u64, error: HostError) {
        let mut state = self.lock();
        let at = state.calls + number;
        state.fail_at.insert(at, error);
    }

    /// Makes the next call of this kind fail with `error`. Several queue up.
    pub fn fail_next(&self, call: Call, error: HostError) {
        self.lock().fail_next.entry(call).or_default().push_back(error);
    }

    /// Makes every call of this kind fail with `error` until [`FakeHost::mend`].
    pub fn break_down(&self, call: Call, error: HostError) {
        self.lock().broken.insert(call, error);
    }

    /// Ends all injected failures, refusals and the held lock.
    pub fn mend(&self) {
        let mut state = self.lock();
        state.fail_at.clear();
        state.fail_next.clear();
        state.broken.clear();
        state.refused.clear();
        state.lock_holder = None;
    }

    /// Somebody switches a table off: it stays as it is, and no packet sees it.
    pub fn switch_off(&self, family: Family, table: Table) {
        let mut state = self.lock();
        state.table(family, table).dormant = true;
        state.emit(HostEvent::Tables {
            by: Some("nft (pid 99)".to_owned()),
            chains: vec![format!("{}/*", table.as_str())],
        });
    }

    /// Makes the kernel refuse every restore line that contains `part`, with these words.
    pub fn refuse(&self, part: &str, said: &str) {
        self.push_refusal(part, said, true);
    }

    /// As [`FakeHost::refuse`], but it is the COMMIT of the table that is named, as the legacy tools do.
    pub fn refuse_table(&self, part: &str, said: &str) {
        self.push_refusal(part, said, false);
    }

    fn push_refusal(&self, part: &str, said: &str, named: bool) {
        self.lock().refused.push(Refusal {
            part: part.to_owned(),
            said: said.to_owned(),
            named,
        });
    }

    /// Makes somebody hold the xtables lock: restores fail with [`HostError::LockHeld`].
    pub fn hold_lock(&self, holder: &str) {
        self.lock().lock_holder = Some(holder.to_owned());
    }

    /// Sets or takes away the backend.
    pub fn set_backend(&self, backend: Option<Backend>) {
        self.lock().backend = backend;
    }

    /// How many calls there were, of one kind.
    pub fn count(&self, call: Call) -> u64 {
        self.lock().counts.get(&call).copied().unwrap_or_default()
    }

    /// How many calls there were in all.
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// How many effects there were so far.
    pub fn writes(&self) -> usize {
        self.lock().journal.len()
    }

    /// All effects so far, in order.
    pub fn journal(&self) -> Vec<Write> {
        self.lock().journal.clone()
    }
}

/// Tables.
impl FakeHost {
    /// The rules of a chain, without `-A CHAIN `. None if there is no such chain.
    pub fn rules(&self, family: Family, table: Table, chain: &str) -> Option<Vec<String>> {
        self.lock()
            .tables
            .get(&(family, table))?
            .chains
            .get(chain)
            .map(|rules| Vec::clone(rules))
    }

    /// All tables as text, deterministic: to compare before and after.
    pub fn dump(&self) -> String {
        let mut text = String::new();
        for ((family, table), content) in &self.lock().tables {
            for (chain, rules) in &content.chains {
                for line in std::iter::once(format!(":{chain}")).chain(rules.iter().map(|r| format!("-A {chain} {r}"))) {
                    let _ = writeln!(text, "{family:?} {} {line}", table.as_str());
                }
            }
        }
        text
    }

    /// `iptables -t TABLE -F`: empties every chain and keeps it.
    pub fn flush(&self, family: Family, table: Table) {
        let mut state = self.lock();
        let content = state.table(family, table);
        let mut touched = Vec::new();
        for (name, rules) in &mut content.chains {
            let ours = name.starts_with(CHAIN_PREFIX) || rules.iter().any(|r| r.contains(HOOK_COMMENT) || r.contains(CHAIN_PREFIX));
            if ours && !rules.is_empty() {
                touched.push(name.to_string());
            }
            Arc::make_mut(rules).clear();
        }
        state.tables_changed(table, touched);
    }

    /// Lets `change` rewrite the rules of a chain (made if it is not there): junk inserted, a rule lost, an order changed.
    pub fn edit_chain(&self, family: Family, table: Table, chain: &str, change: impl FnOnce(&mut Vec<String>)) {
        let mut state = self.lock();
        change(Arc::make_mut(state.table(family, table).chains.entry(chain.into()).or_default()));
        state.tables_changed(table, [chain.to_owned()]);
    }
}

/// Interfaces, routes, neighbours, addresses, settings.
impl FakeHost {
    /// Adds an interface or changes its facts. Settings start with forwarding off, redirects on, no filter, 800 ms.
    pub fn add_interface(&self, name: &str, facts: InterfaceFacts) {
        let mut state = self.lock();
        state.interfaces.insert(name.to_owned(), facts);
        if let Some(name) = IfName::new(name) {
            state.settings.entry(name).or_insert(LinkSettings {
                forwarding: Some(false),
                send_redirects: Some(true),
                rp_filter: Some(0),
                proxy_delay: Some(800),
                proxy_delay_ipv6: Some(800),
            });
        }
        state.emit(HostEvent::Links);
    }

    /// What the kernel has and is set to.
    pub fn set_kernel(&self, kernel: KernelFacts) {
        let mut state = self.lock();
        state.kernel = kernel;
        state.emit(HostEvent::Links);
    }

    /// `ip link set NAME master MASTER`; None: `nomaster`.
    pub fn enslave(&self, name: &str, master: Option<&str>) {
        let mut state = self.lock();
        if let Some(facts) = state.interfaces.get_mut(name) {
            facts.master = master.map(str::to_owned);
        }
        state.emit(HostEvent::Links);
    }

    /// Removes an interface, and with it what the kernel removes: routes, proxies, addresses and settings of it.
    pub fn remove_interface(&self, name: &str) {
        let mut state = self.lock();
        state.interfaces.remove(name);
        for port in state.interfaces.values_mut().filter(|i| i.master.as_deref() == Some(name)) {
            port.master = None;
        }
        state.settings.retain(|i, _| i.as_str() != name);
        state.proxies.retain(|p| p.interface.as_str() != name);
        state.addresses.retain(|a| a.interface.as_str() != name);
        state.routes.retain(|r| !matches!(&r.via, Via::Link(i) if i.as_str() == name));
        state.emit(HostEvent::Links);
    }

    /// Present settings of an interface.
    pub fn settings(&self, interface: &IfName) -> Option<LinkSettings> {
        self.lock().settings.get(interface).cloned()
    }

    /// Somebody changes settings of an interface.
    pub fn meddle_settings(&self, interface: &IfName, settings: &LinkSettings) {
        let mut state = self.lock();
        overlay(state.settings.entry(interface.clone()).or_default(), settings);
        state.emit(HostEvent::Links);
    }

    /// Routes of ours.
    pub fn routes(&self) -> BTreeSet<Route> {
        self.lock().routes.clone()
    }

    /// Proxy neighbours of ours.
    pub fn proxies(&self) -> BTreeSet<ProxyNeighbour> {
        self.lock().proxies.clone()
    }

    /// Addresses of ours.
    pub fn addresses(&self) -> BTreeSet<GatewayAddress> {
        self.lock().addresses.clone()
    }

    /// Somebody removes a route of ours.
    pub fn remove_route(&self, route: &Route) {
        let mut state = self.lock();
        state.routes.remove(route);
        state.emit(HostEvent::RouteGone(route.table, route.destination));
    }

    /// Policy routing rules of ours.
    pub fn policy_rules(&self) -> BTreeSet<PolicyRule> {
        self.lock().policy_rules.clone()
    }

    /// Somebody removes a policy routing rule of ours.
    pub fn remove_rule(&self, rule: &PolicyRule) {
        let mut state = self.lock();
        state.policy_rules.remove(rule);
        state.emit(HostEvent::RuleGone(rule.clone()));
    }

    /// Somebody else has a route.
    pub fn add_foreign_route(&self, route: Route) {
        self.lock().foreign_routes.insert(route);
    }

    /// Somebody removes a proxy neighbour of ours.
    pub fn remove_proxy(&self, proxy: &ProxyNeighbour) {
        let mut state = self.lock();
        state.proxies.remove(proxy);
        state.emit(HostEvent::ProxyGone(proxy.address));
    }

    /// The state directory is lost.
    pub fn forget_found(&self) {
        self.lock().found.clear();
    }
}

/// Flows, strangers, findings, counters, events.
impl FakeHost {
    /// Adds an entry to the connection table.
    pub fn add_flow(&self, flow: FlowTuple) {
        self.lock().flows.insert(flow);
    }

    /// How many entries it may have: from now on it is in use.
    pub fn limit_flows(&self, limit: u64) {
        self.lock().flow_limit = Some(limit);
    }

    /// The connection table.
    pub fn flows(&self) -> BTreeSet<FlowTuple> {
        self.lock().flows.clone()
    }

    /// Somebody has `address`, on whatever interface he is asked, with hardware address `mac`. None: no longer.
    pub fn answer(&self, address: IpAddr, mac: Option<&str>) {
        self.answers((None, address), mac);
    }

    /// The same on one interface.
    pub fn answer_on(&self, interface: &IfName, address: IpAddr, mac: Option<&str>) {
        self.answers((Some(interface.clone()), address), mac);
    }

    fn answers(&self, at: (Option<IfName>, IpAddr), mac: Option<&str>) {
        let mut state = self.lock();
        match mac {
            Some(mac) => state.answers.insert(at, mac.to_owned()),
            None => state.answers.remove(&at),
        };
    }

    /// What preflight finds.
    pub fn set_findings(&self, findings: Vec<Finding>) {
        self.lock().findings = findings;
    }

    /// Packets hit every rule of a table that has `part` in its text.
    pub fn hit(&self, family: Family, table: Table, part: &str, packets: u64, bytes: u64) {
        self.lock().table(family, table).hit(part, packets, bytes);
    }

    /// Emits an event.
    pub fn emit(&self, event: HostEvent) {
        self.lock().emit(event);
    }
}
