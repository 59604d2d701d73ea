//! The real host: processes and kernel sockets of the network namespace that the agent runs in.
//!
//! Needs `NET_ADMIN` and `NET_RAW` there, and nothing else: no writable /proc/sys, no other namespace. Blocking work (netlink, packet
//! sockets) runs off the async threads. Nothing here decides what should be; it does what it is told, and says what is.

mod addresses;
mod announcing;
mod arp;
mod conntrack;
mod counters;
mod dormant;
mod events;
mod facts;
mod generation;
#[cfg(test)]
mod hostile_tests;
mod links;
mod listing;
mod nd;
mod netlink;
mod observe;
mod policy;
mod preflight;
mod privileges;
mod routes;
mod settings;
mod snapshot;
mod state;
mod tables;
mod tools;
mod unannounced;
mod unchanged;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex as Lock, PoisonError};

use async_trait::async_trait;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use pnet_datalink::MacAddr;
use tokio::sync::{Mutex, mpsc};
use tokio::task::spawn_blocking;

use self::announcing::{Announcing, Burst};
use super::{Backend, Connections, Finding, Host, HostError, HostEvent, LinkChange, Needs, ObservedLinks, reread};
use crate::netfilter::dump::{ObservedTable, RuleCount};
use crate::netfilter::{ChainName, Family, IfName, Table};
use crate::plan::{FlowPolicy, InterfaceFacts, KernelFacts, ProxyNeighbour, Sweep};
use addresses::Addresses;
use generation::Own;
use listing::Listing;
use netlink::Netlink;
use state::Found;
use tools::Tools;
use unchanged::Texts;
use wire::Port;

/// Events that wait for the agent; what does not fit waits in the kernel.
const EVENT_ROOM: usize = 256;

/// Which iptables tools to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BackendChoice {
    /// What stagenet or kubelet uses already; else what the node's rules are in; else nft.
    #[default]
    Auto,
    /// `iptables-nft`
    Nft,
    /// `iptables-legacy`
    Legacy,
}

/// How the host is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinuxOptions {
    /// Which iptables tools to use.
    pub backend: BackendChoice,
    /// Directory of what was found before settings were changed; made when needed. It should not outlive a boot.
    pub state_dir: PathBuf,
}

/// The host that this process runs on.
pub struct LinuxHost {
    options: LinuxOptions,
    tools: Option<Tools>,
    found: Arc<Lock<Found>>,
    own: Arc<Mutex<Own>>,
    announcing: Announcing,
    listing: Listing,
    texts: Texts,
}

/// Runs blocking kernel work off the async threads.
async fn kernel<T: Send + 'static>(action: &str, work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, HostError> {
    let outcome = spawn_blocking(work).await.map_err(io::Error::other).flatten();
    outcome.map_err(|error| links::failed(action.to_owned(), &error))
}

impl LinuxHost {
    /// Reads the state directory, and touches nothing.
    pub fn new(options: LinuxOptions) -> Self {
        facts::read_ahead();
        Self {
            found: Arc::new(Lock::new(Found::load(&options.state_dir))),
            options,
            tools: None,
            own: Arc::default(),
            announcing: Announcing::default(),
            listing: Listing::default(),
            texts: Texts::default(),
        }
    }

    /// The tools in use; chosen now if there were none.
    async fn tools(&mut self) -> Result<Tools, HostError> {
        if let Some(tools) = self.tools {
            return Ok(tools);
        }
        let (tools, why) = tools::choose(self.options.backend, self.tools).await?;
        tracing::info!(backend = ?tools.backend, "using {why}");
        self.tools = Some(tools);
        Ok(tools)
    }

    /// A tool that has gone is looked for anew by the next call.
    fn gone<T>(&mut self, outcome: Result<T, HostError>) -> Result<T, HostError> {
        if matches!(outcome, Err(HostError::ToolMissing { .. })) {
            self.tools = None;
        }
        outcome
    }

    /// Interfaces that can speak ARP, by name.
    async fn ports(&self) -> Result<BTreeMap<String, Port>, HostError> {
        let links = kernel("reading interfaces", || observe::links(&mut Netlink::open(NETLINK_ROUTE)?)).await?;
        let port = |link: observe::Link| {
            let mac = <[u8; 6]>::try_from(link.mac.as_slice()).ok()?;
            Some(Port {
                index: link.index,
                mac: MacAddr::from(mac),
            })
        };
        Ok(links.into_iter().filter_map(|(name, link)| Some((name, port(link)?))).collect())
    }
}

fn port_of(ports: &BTreeMap<String, Port>, name: &IfName, action: &str) -> Result<Port, HostError> {
    ports.get(name.as_str()).copied().ok_or_else(|| HostError::Netlink {
        action: format!("{action} on {name}"),
        said: "there is no such Ethernet interface".to_owned(),
    })
}

#[async_trait]
impl Host for LinuxHost {
    fn backend(&self) -> Option<Backend> {
        self.tools.map(|tools| tools.backend)
    }

    async fn interfaces(&mut self) -> Result<BTreeMap<String, InterfaceFacts>, HostError> {
        kernel("reading interfaces", || observe::interfaces(&mut Netlink::open(NETLINK_ROUTE)?)).await
    }

    async fn kernel(&mut self) -> Result<KernelFacts, HostError> {
        kernel("reading settings of the kernel", || Ok(facts::read())).await
    }

    async fn preflight(&mut self, needs: &Needs) -> Result<Vec<Finding>, HostError> {
        let (interfaces, facts) = (self.interfaces().await?, self.kernel().await?);
        let tools = tools::choose(self.options.backend, self.tools).await;
        self.tools = tools.as_ref().ok().map(|(tools, _)| *tools);
        let listed = self.listing.look(self.tools).await;
        let look = preflight::Look {
            tools: &tools,
            listed: &listed,
            interfaces: &interfaces,
            kernel: &facts,
            needs,
        };
        Ok(preflight::findings(look).await)
    }

    async fn read_table(&mut self, family: Family, table: Table, chains: Option<&BTreeSet<ChainName>>) -> Result<ObservedTable, HostError> {
        let tools = self.tools().await?;
        // Starting a tool takes longer than all the rest of a small change.
        if let Some(chains) = chains.filter(|_| tools.backend == Backend::Nft) {
            let chains = chains.clone();
            let work = move || counters::chains(&mut Netlink::open(NETLINK_NETFILTER)?, family, table, &chains);
            if let Ok(Some(seen)) = kernel("reading rules", work).await {
                return Ok(seen);
            }
        }
        // What the agent is about to know may be another thing.
        self.texts.forget(family);
        let begun = self.own.lock().await.begun();
        let seen = tables::read_table(tools, family, table, chains).await;
        let mut seen = self.gone(seen)?;
        if tools.backend == Backend::Nft {
            let asleep = move || dormant::is(&mut Netlink::open(NETLINK_NETFILTER)?, family, table);
            seen.dormant = kernel("reading the flags of tables", asleep).await?;
            if chains.is_none() {
                self.own.lock().await.read((family, table), begun);
            }
        }
        Ok(seen)
    }

    async fn changed_tables(&mut self, known: &BTreeMap<(Family, Table), &ObservedTable>) -> Result<BTreeSet<(Family, Table)>, HostError> {
        let tools = self.tools().await?;
        if tools.backend == Backend::Legacy {
            let changed = self.texts.changed(tools, known).await;
            return self.gone(changed);
        }
        reread(self, known).await
    }

    async fn wake(&mut self, family: Family, table: Table) -> Result<(), HostError> {
        // As for a restore.
        let own = self.own.clone();
        let mut own = own.lock().await;
        let work = move || {
            let mut netlink = Netlink::open(NETLINK_NETFILTER)?;
            let before = generation::read(&mut netlink)?;
            dormant::wake(&mut netlink, family, table)?;
            Ok((before, generation::read(&mut netlink)?))
        };
        let tool = if family == Family::V6 { "ip6" } else { "ip" };
        let action = format!(
            "switching on table {0}, which somebody has switched off (`nft add table {tool} {0}` does it by hand)",
            table.as_str()
        );
        let (before, after) = kernel(&action, work).await?;
        own.note(before, after, 1);
        Ok(())
    }

    async fn restore(&mut self, family: Family, text: &str) -> Result<(), HostError> {
        let tools = self.tools().await?;
        if tools.backend == Backend::Legacy {
            // What the agent knows of them is about to be another thing.
            self.texts.forget(family);
            let outcome = tables::restore(tools, family, text).await;
            return self.gone(outcome);
        }
        // Held until it is known which generations were ours; the listener asks after that.
        let own = self.own.clone();
        let mut own = own.lock().await;
        let generation = || {
            kernel("reading the nftables generation", || {
                generation::read(&mut Netlink::open(NETLINK_NETFILTER)?)
            })
        };
        let before = generation().await;
        let outcome = tables::restore(tools, family, text).await;
        if let (Ok(before), Ok(after)) = (before, generation().await) {
            own.note(before, after, generation::expected(text, outcome.is_ok()));
        }
        self.gone(outcome)
    }

    async fn read_links(&mut self) -> Result<ObservedLinks, HostError> {
        let found = self.found.clone();
        let read = move || {
            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
            links::read(&mut Netlink::open(NETLINK_ROUTE)?, &mut found)
        };
        kernel("reading routes, neighbours and interfaces", read).await
    }

    async fn links_stand(&mut self, known: &Arc<ObservedLinks>) -> Result<bool, HostError> {
        let (found, known) = (self.found.clone(), known.clone());
        let look = move || {
            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
            links::stand(&mut Netlink::open(NETLINK_ROUTE)?, &mut found, &known)
        };
        kernel("reading routes, neighbours and interfaces", look).await
    }

    async fn change_links(&mut self, changes: &[LinkChange]) -> Result<(), Vec<HostError>> {
        if changes.is_empty() {
            return Ok(());
        }
        self.announcing.give_up(changes);
        let (found, changes) = (self.found.clone(), changes.to_vec());
        let work = move || {
            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(links::change(&mut Netlink::open(NETLINK_ROUTE)?, &mut found, &changes))
        };
        match kernel("changing routes, neighbours and interfaces", work).await {
            Ok(errors) if errors.is_empty() => Ok(()),
            Ok(errors) => Err(errors),
            Err(error) => Err(vec![error]),
        }
    }

    async fn sweep_flows(&mut self, policy: &Arc<FlowPolicy>, sweep: Sweep) -> Result<u64, HostError> {
        let policy = policy.clone();
        let work = move || conntrack::sweep(&mut Netlink::open(NETLINK_NETFILTER)?, &policy, &sweep);
        kernel("deleting entries of the connection table", work).await
    }

    async fn connections(&mut self) -> Option<Connections> {
        conntrack::connections()
    }

    async fn probe(&mut self, addresses: &BTreeMap<IfName, BTreeSet<IpAddr>>) -> Result<BTreeMap<ProxyNeighbour, String>, HostError> {
        let ports = self.ports().await?;
        let own: BTreeSet<_> = ports.values().map(|port| port.mac).collect();
        let mut probes = Vec::new();
        for (name, all) in addresses {
            let port = port_of(&ports, name, "asking for addresses")?;
            for part in Addresses::of(all, &BTreeSet::new()).split() {
                let (action, own) = (format!("asking for addresses on {name}"), own.clone());
                probes.push(async move {
                    let found = kernel(&action, move || part.probe(port, &own)).await?;
                    let there = found.into_iter().map(|(address, mac)| {
                        let interface = name.clone();
                        (ProxyNeighbour { interface, address }, mac.to_string())
                    });
                    Ok::<_, HostError>(there.collect::<Vec<_>>())
                });
            }
        }
        let found = futures::future::try_join_all(probes).await?;
        Ok(found.into_iter().flatten().collect())
    }

    async fn announce(&mut self, addresses: &BTreeMap<IfName, BTreeSet<IpAddr>>) -> Result<(), HostError> {
        let ports = self.ports().await?;
        let own = kernel("reading addresses", || observe::addresses(&mut Netlink::open(NETLINK_ROUTE)?)).await?;
        let own: BTreeSet<IpAddr> = own.into_iter().map(|address| address.net.addr()).collect();
        let mut bursts = Vec::new();
        for (name, all) in addresses {
            bursts.push(Burst {
                interface: name.clone(),
                port: port_of(&ports, name, "announcing addresses")?,
                addresses: all.clone(),
                own: own.intersection(all).copied().collect(),
            });
        }
        self.announcing.begin(bursts).await
    }

    async fn counters(
        &mut self,
        family: Family,
        table: Table,
        chains: &BTreeSet<ChainName>,
    ) -> Result<BTreeMap<ChainName, Vec<RuleCount>>, HostError> {
        let tools = self.tools().await?;
        if tools.backend == Backend::Legacy {
            let counted = tables::counters(tools, family, table, chains).await;
            return self.gone(counted);
        }
        let chains = chains.clone();
        let work = move || counters::read(&mut Netlink::open(NETLINK_NETFILTER)?, family, table, &chains);
        kernel("reading counters of rules", work).await
    }

    async fn tables_told(&mut self) -> Result<bool, HostError> {
        if self.tools().await?.backend != Backend::Nft {
            return Ok(false);
        }
        let read = || generation::read(&mut Netlink::open(NETLINK_NETFILTER)?);
        let now = kernel("reading the nftables generation", read).await?;
        Ok(self.own.lock().await.told(now))
    }

    fn events(&mut self) -> mpsc::Receiver<HostEvent> {
        let (sender, receiver) = mpsc::channel(EVENT_ROOM);
        events::start(&sender, &self.own, &self.found);
        receiver
    }
}
