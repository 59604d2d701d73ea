//! A host that notes how long the waits on the segment took: probing and announcing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use stagenet::host::linux::LinuxHost;
use stagenet::host::{Backend, Finding, Host, HostError, HostEvent, LinkChange, Needs, ObservedLinks};
use stagenet::netfilter::dump::{ObservedTable, RuleCount};
use stagenet::netfilter::{ChainName, Family, IfName, Table};
use stagenet::plan::{FlowPolicy, InterfaceFacts, KernelFacts, ProxyNeighbour, Sweep};

/// The real host and the time it has waited.
pub struct Timed {
    pub host: LinuxHost,
    pub waits: Duration,
}

#[async_trait]
impl Host for Timed {
    fn backend(&self) -> Option<Backend> {
        self.host.backend()
    }
    async fn interfaces(&mut self) -> Result<BTreeMap<String, InterfaceFacts>, HostError> {
        self.host.interfaces().await
    }
    async fn preflight(&mut self, needs: &Needs) -> Result<Vec<Finding>, HostError> {
        self.host.preflight(needs).await
    }
    async fn read_table(&mut self, family: Family, table: Table, chains: Option<&BTreeSet<ChainName>>) -> Result<ObservedTable, HostError> {
        self.host.read_table(family, table, chains).await
    }
    async fn restore(&mut self, family: Family, text: &str) -> Result<(), HostError> {
        self.host.restore(family, text).await
    }
    async fn wake(&mut self, family: Family, table: Table) -> Result<(), HostError> {
        self.host.wake(family, table).await
    }
    async fn read_links(&mut self) -> Result<ObservedLinks, HostError> {
        self.host.read_links().await
    }
    async fn links_stand(&mut self, known: &Arc<ObservedLinks>) -> Result<bool, HostError> {
        self.host.links_stand(known).await
    }
    async fn changed_tables(&mut self, known: &BTreeMap<(Family, Table), &ObservedTable>) -> Result<BTreeSet<(Family, Table)>, HostError> {
        self.host.changed_tables(known).await
    }
    async fn change_links(&mut self, changes: &[LinkChange]) -> Result<(), Vec<HostError>> {
        self.host.change_links(changes).await
    }
    async fn sweep_flows(&mut self, policy: &Arc<FlowPolicy>, sweep: Sweep) -> Result<u64, HostError> {
        self.host.sweep_flows(policy, sweep).await
    }
    async fn kernel(&mut self) -> Result<KernelFacts, HostError> {
        self.host.kernel().await
    }

    async fn probe(&mut self, addresses: &BTreeMap<IfName, BTreeSet<IpAddr>>) -> Result<BTreeMap<ProxyNeighbour, String>, HostError> {
        let start = Instant::now();
        let answered = self.host.probe(addresses).await;
        self.waits += start.elapsed();
        answered
    }
    async fn announce(&mut self, addresses: &BTreeMap<IfName, BTreeSet<IpAddr>>) -> Result<(), HostError> {
        let start = Instant::now();
        let announced = self.host.announce(addresses).await;
        self.waits += start.elapsed();
        announced
    }
    async fn counters(
        &mut self,
        family: Family,
        table: Table,
        chains: &BTreeSet<ChainName>,
    ) -> Result<BTreeMap<ChainName, Vec<RuleCount>>, HostError> {
        self.host.counters(family, table, chains).await
    }
    async fn tables_told(&mut self) -> Result<bool, HostError> {
        self.host.tables_told().await
    }
    fn events(&mut self) -> tokio::sync::mpsc::Receiver<HostEvent> {
        self.host.events()
    }
}
