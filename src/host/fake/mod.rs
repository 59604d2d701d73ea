//! A host in memory, with failure injection.
//!
//! [`FakeHost`] is a handle: clones share one state, so that a test can give one to the agent and keep one to look and to meddle with
//! ([`meddle`]). It keeps the promises of the real host (a restore is all or nothing per table, a foreign route is never replaced,
//! what was found is recorded before it is changed) and emits the events that a kernel would. No IO, no clock.

mod meddle;
mod tables;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::{Backend, Connections, Finding, Host, HostError, HostEvent, LinkChange, Needs, ObservedLinks};
use crate::netfilter::dump::{ObservedTable, RuleCount};
use crate::netfilter::{ChainName, Family, IfName, Table};
use crate::plan::{
    FlowPolicy, FlowTuple, GatewayAddress, InterfaceFacts, KernelFacts, LinkSettings, PolicyRule, ProxyNeighbour, Route, Sweep, Via,
};
use tables::{FakeTable, Refusal};

/// Events that wait for the agent; more are lost.
const EVENT_ROOM: usize = 1024;

/// The calls of [`Host`] that can be counted and made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Call {
    /// [`Host::interfaces`]
    Interfaces,
    /// [`Host::preflight`]
    Preflight,
    /// [`Host::read_table`]
    ReadTable,
    /// [`Host::restore`]
    Restore,
    /// [`Host::wake`]
    Wake,
    /// [`Host::read_links`]
    ReadLinks,
    /// [`Host::kernel`]
    Kernel,
    /// [`Host::change_links`]
    ChangeLinks,
    /// [`Host::sweep_flows`]
    SweepFlows,
    /// [`Host::probe`]
    Probe,
    /// [`Host::announce`]
    Announce,
    /// [`Host::counters`]
    Counters,
}

/// One effect on the host, in the order in which they happened. Reading leaves no trace; a failed call leaves none either.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// A table was switched on.
    Woke(Family, Table),
    /// A restore that was committed.
    Restore {
        /// Family.
        family: Family,
        /// The text.
        text: String,
    },
    /// A change over rtnetlink that was made.
    Link(LinkChange),
    /// Flows deleted by a sweep; a sweep that found nothing is no write.
    Swept(BTreeSet<FlowTuple>),
    /// An announcement.
    Announced(IfName, IpAddr),
}

#[derive(Default)]
struct State {
    backend: Option<Backend>,
    interfaces: BTreeMap<String, InterfaceFacts>,
    settings: BTreeMap<IfName, LinkSettings>,
    found: BTreeMap<IfName, LinkSettings>,
    inside: BTreeSet<IfName>,
    tables: BTreeMap<(Family, Table), FakeTable>,
    routes: BTreeSet<Route>,
    policy_rules: BTreeSet<PolicyRule>,
    kernel: KernelFacts,
    foreign_routes: BTreeSet<Route>,
    proxies: BTreeSet<ProxyNeighbour>,
    addresses: BTreeSet<GatewayAddress>,
    flows: BTreeSet<FlowTuple>,
    /// How many flows there may be.
    flow_limit: Option<u64>,
    /// By interface (None: on any) and address.
    answers: BTreeMap<(Option<IfName>, IpAddr), String>,
    findings: Vec<Finding>,
    lock_holder: Option<String>,
    refused: Vec<Refusal>,
    calls: u64,
    counts: BTreeMap<Call, u64>,
    fail_at: BTreeMap<u64, HostError>,
    fail_next: BTreeMap<Call, VecDeque<HostError>>,
    broken: BTreeMap<Call, HostError>,
    journal: Vec<Write>,
    events: Option<mpsc::Sender<HostEvent>>,
}

impl State {
    /// Counts a call, and fails it if it was asked to.
    fn enter(&mut self, call: Call) -> Result<(), HostError> {
        self.calls += 1;
        *self.counts.entry(call).or_default() += 1;
        let at = self.fail_at.remove(&self.calls);
        let next = || self.fail_next.get_mut(&call).and_then(VecDeque::pop_front);
        match at.or_else(next).or_else(|| self.broken.get(&call).cloned()) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn emit(&self, event: HostEvent) {
        if let Some(events) = &self.events {
            // A full stream or a stopped agent loses the event, as with a kernel.
            let _ = events.try_send(event);
        }
    }

    fn need(&self, interface: &IfName, action: &str) -> Result<(), HostError> {
        if self.interfaces.contains_key(interface.as_str()) {
            return Ok(());
        }
        Err(HostError::Netlink {
            action: format!("{action} on {interface}"),
            said: "No such device (os error 19)".to_owned(),
        })
    }

    fn change(&mut self, change: &LinkChange) -> Result<(), HostError> {
        match change {
            LinkChange::RemoveProxy(proxy) => {
                self.proxies.remove(proxy);
            }
            LinkChange::RemoveRoute(route) => {
                self.routes.remove(route);
            }
            LinkChange::RemoveAddress(address) => {
                self.addresses.remove(address);
            }
            LinkChange::RemoveRule(rule) => {
                self.policy_rules.remove(rule);
            }
            LinkChange::AddRule(rule) => {
                self.policy_rules.insert(rule.clone());
            }
            LinkChange::AddAddress(address) => {
                self.need(&address.interface, "adding an address")?;
                self.addresses.insert(address.clone());
            }
            LinkChange::AddRoute(route) => {
                if let Via::Link(interface) = &route.via {
                    self.need(interface, "adding a route")?;
                }
                let place = |r: &Route| (r.table, r.destination, r.via == Via::Blackhole);
                let same = |r: &&Route| place(r) == place(route) && *r != route;
                if self.foreign_routes.iter().any(|r| place(r) == place(route)) || self.routes.iter().any(|r| same(&r)) {
                    return Err(HostError::Netlink {
                        action: format!("adding the route to {}", route.destination),
                        said: "another route to the same destination is there; it is not ours and was left alone".to_owned(),
                    });
                }
                self.routes.insert(route.clone());
            }
            LinkChange::AddProxy(proxy) => {
                self.need(&proxy.interface, "adding a proxy neighbour")?;
                self.proxies.insert(proxy.clone());
            }
            LinkChange::Inside(interface) => {
                self.need(interface, "recording settings")?;
                let present = self.settings.entry(interface.clone()).or_default();
                self.found.entry(interface.clone()).or_insert_with(|| present.clone());
                self.inside.insert(interface.clone());
            }
            LinkChange::Set(interface, settings) => {
                self.need(interface, "changing settings")?;
                let present = self.settings.entry(interface.clone()).or_default();
                self.found.entry(interface.clone()).or_insert_with(|| present.clone());
                overlay(present, settings);
            }
            LinkChange::PutBack(interface) => {
                let safe = LinkSettings {
                    forwarding: Some(false),
                    ..LinkSettings::default()
                };
                let record = self.found.remove(interface).unwrap_or(safe);
                self.inside.remove(interface);
                if let Some(present) = self.settings.get_mut(interface) {
                    overlay(present, &record);
                }
            }
        }
        self.journal.push(Write::Link(change.clone()));
        Ok(())
    }
}

/// Lays the values that `wanted` has over `present`.
fn overlay(present: &mut LinkSettings, wanted: &LinkSettings) {
    present.forwarding = wanted.forwarding.or(present.forwarding);
    present.send_redirects = wanted.send_redirects.or(present.send_redirects);
    present.rp_filter = wanted.rp_filter.or(present.rp_filter);
    present.proxy_delay = wanted.proxy_delay.or(present.proxy_delay);
    present.proxy_delay_ipv6 = wanted.proxy_delay_ipv6.or(present.proxy_delay_ipv6);
}

/// A host in memory. Clones are handles to the same host.
#[derive(Clone)]
pub struct FakeHost {
    state: Arc<Mutex<State>>,
}

impl Default for FakeHost {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeHost {
    /// An nft host without interfaces.
    pub fn new() -> Self {
        let state = State {
            backend: Some(Backend::Nft),
            ..State::default()
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Host for FakeHost {
    fn backend(&self) -> Option<Backend> {
        self.lock().backend
    }

    async fn interfaces(&mut self) -> Result<BTreeMap<String, InterfaceFacts>, HostError> {
        let mut state = self.lock();
        state.enter(Call::Interfaces)?;
        Ok(state.interfaces.clone())
    }

    async fn kernel(&mut self) -> Result<KernelFacts, HostError> {
        let mut state = self.lock();
        state.enter(Call::Kernel)?;
        Ok(state.kernel.clone())
    }

    async fn preflight(&mut self, _needs: &Needs) -> Result<Vec<Finding>, HostError> {
        let mut state = self.lock();
        state.enter(Call::Preflight)?;
        Ok(state.findings.clone())
    }

    async fn read_table(&mut self, family: Family, table: Table, chains: Option<&BTreeSet<ChainName>>) -> Result<ObservedTable, HostError> {
        let mut state = self.lock();
        state.enter(Call::ReadTable)?;
        let table = state.tables.get(&(family, table));
        Ok(table.map(|table| table.observe(chains)).unwrap_or_default())
    }

    async fn wake(&mut self, family: Family, table: Table) -> Result<(), HostError> {
        let mut state = self.lock();
        state.enter(Call::Wake)?;
        if let Some(table) = state.tables.get_mut(&(family, table)) {
            table.dormant = false;
        }
        state.journal.push(Write::Woke(family, table));
        Ok(())
    }

    async fn restore(&mut self, family: Family, text: &str) -> Result<(), HostError> {
        let mut guard = self.lock();
        let state = &mut *guard;
        state.enter(Call::Restore)?;
        if let Some(holder) = &state.lock_holder {
            return Err(HostError::LockHeld {
                action: "restoring".to_owned(),
                holder: Some(holder.clone()),
            });
        }
        let refused = &state.refused;
        let objection = |line: &str| refused.iter().find(|refusal| line.contains(&refusal.part));
        tables::restore(&mut state.tables, family, text, objection)?;
        state.journal.push(Write::Restore {
            family,
            text: text.to_owned(),
        });
        Ok(())
    }

    async fn read_links(&mut self) -> Result<ObservedLinks, HostError> {
        let mut state = self.lock();
        state.enter(Call::ReadLinks)?;
        Ok(ObservedLinks {
            routes: state.routes.clone(),
            policy_rules: state.policy_rules.clone(),
            proxies: state.proxies.clone(),
            addresses: state.addresses.clone(),
            links: state.settings.clone(),
            touched: state.found.keys().cloned().collect(),
            inside: state.inside.clone(),
            renamed: BTreeSet::new(),
        })
    }

    async fn change_links(&mut self, changes: &[LinkChange]) -> Result<(), Vec<HostError>> {
        let mut state = self.lock();
        state.enter(Call::ChangeLinks).map_err(|error| vec![error])?;
        let errors: Vec<_> = changes.iter().filter_map(|change| state.change(change).err()).collect();
        if errors.is_empty() { Ok(()) } else { Err(errors) }
    }

    async fn sweep_flows(&mut self, policy: &Arc<FlowPolicy>, sweep: Sweep) -> Result<u64, HostError> {
        let mut state = self.lock();
        state.enter(Call::SweepFlows)?;
        let (kept, gone): (BTreeSet<_>, BTreeSet<_>) = state.flows.iter().cloned().partition(|flow| policy.agrees(flow, &sweep));
        state.flows = kept;
        let count = gone.len() as u64;
        if count > 0 {
            state.journal.push(Write::Swept(gone));
        }
        Ok(count)
    }

    async fn connections(&mut self) -> Option<Connections> {
        let state = self.lock();
        let entries = state.flows.len() as u64;
        state.flow_limit.map(|limit| Connections { entries, limit })
    }

    async fn probe(&mut self, addresses: &BTreeMap<IfName, BTreeSet<IpAddr>>) -> Result<BTreeMap<ProxyNeighbour, String>, HostError> {
        let mut state = self.lock();
        state.enter(Call::Probe)?;
        let asked = addresses
            .iter()
            .flat_map(|(name, all)| all.iter().map(move |address| (name.clone(), *address)));
        let answered = asked.filter_map(|(interface, address)| {
            let there = state.answers.get(&(Some(interface.clone()), address));
            let mac = there.or_else(|| state.answers.get(&(None, address)))?.clone();
            Some((ProxyNeighbour { interface, address }, mac))
        });
        Ok(answered.collect())
    }

    async fn announce(&mut self, addresses: &BTreeMap<IfName, BTreeSet<IpAddr>>) -> Result<(), HostError> {
        let mut state = self.lock();
        state.enter(Call::Announce)?;
        for (interface, addresses) in addresses {
            let announced = addresses.iter().map(|address| Write::Announced(interface.clone(), *address));
            state.journal.extend(announced);
        }
        Ok(())
    }

    async fn counters(
        &mut self,
        family: Family,
        table: Table,
        chains: &BTreeSet<ChainName>,
    ) -> Result<BTreeMap<ChainName, Vec<RuleCount>>, HostError> {
        let mut state = self.lock();
        state.enter(Call::Counters)?;
        let counted = state
            .tables
            .get(&(family, table))
            .map(|table| table.counters(chains))
            .unwrap_or_default();
        let wanted = chains
            .iter()
            .filter_map(|chain| Some((chain.clone(), counted.get(chain.as_str())?.clone())));
        Ok(wanted.collect())
    }

    fn events(&mut self) -> mpsc::Receiver<HostEvent> {
        let (sender, receiver) = mpsc::channel(EVENT_ROOM);
        self.lock().events = Some(sender);
        receiver
    }
}
