//! The only module that spawns processes or opens kernel sockets.
//!
//! [`Host`] is everything that the agent may do to a node. [`linux`] does it; [`fake`] remembers it, for tests, and can be told to fail.
//!
//! # How a freshly started agent knows what is its own
//!
//! It has no memory but the kernel's and one small file. Whatever bears none of these marks is never changed, removed or depended on.
//!
//! | state | mark | lost or forged mark |
//! |---|---|---|
//! | chains | name starts with `SNET-` | a foreign chain of that name counts as ours |
//! | rules in our chains | comment `stagenet:HASH…` | a rule without it is foreign, and the chain is rewritten as a whole |
//! | tables | none, but for the flag `dormant` of one that has chains of ours: it is taken away | |
//! | jumps in built-in chains | comment `stagenet`, no condition, to an `SNET-` chain | a jump without it stays, and is reported |
//! | routes | `rtm_protocol` 211, unicast or blackhole, any table | not ours: a wanted route to the same destination is refused, the present one left alone |
//! | policy routing rules | `FRA_PROTOCOL` 211 | not ours |
//! | proxy neighbours | `NDA_PROTOCOL` 211, `NTF_PROXY` | not ours: adding the same is refused, as the kernel would overwrite the mark |
//! | addresses | `IFA_PROTO` 211 (Linux 5.18 and later; older kernels drop the mark, and the address is then read back as foreign) | not ours: adding the same is refused |
//! | interface settings | entry in `found.json` of the state directory, by name and index | the setting stays as it is; putting back then means `forwarding=0` on that interface |
//! | connection table | none: entries are judged by the plan ([`crate::plan::FlowPolicy`]) | |
//! | announcements | none: they leave no state on this node | |

pub mod error;
pub mod event;
pub mod fake;
#[allow(clippy::disallowed_methods)] // the one place that starts processes
pub mod linux;
pub mod needs;

pub use error::HostError;
pub use event::HostEvent;
pub use needs::Needs;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;

use crate::netfilter::dump::{ObservedTable, RuleCount};
use crate::netfilter::{ChainName, Family, IfName, Table};
use crate::plan::{FlowPolicy, GatewayAddress, InterfaceFacts, KernelFacts, LinkSettings, PolicyRule, ProxyNeighbour, Route, Sweep};

/// Routing protocol number (`rtm_protocol`, `ifa_proto`, `nda_protocol`) that marks routes, addresses and proxy neighbours as ours.
/// Not in `/etc/iproute2/rt_protos` and above `RTPROT_STATIC`, so the kernel leaves it to user space (linux/rtnetlink.h).
pub const PROTOCOL: u8 = 211;

/// Which iptables tool is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backend {
    /// `iptables-nft`: rules live in nftables.
    Nft,
    /// `iptables-legacy`: rules live in `x_tables`.
    Legacy,
}

/// Something found before or while working that an operator should know. Reasons are constants of [`crate::api::reasons`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Condition type on the `GatewayNode`.
    pub condition: &'static str,
    /// Whether all is well in this respect.
    pub ok: bool,
    /// A fixed reason.
    pub reason: &'static str,
    /// What is, why, what next.
    pub message: String,
}

/// Ours, as found with rtnetlink.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedLinks {
    /// Routes with our protocol number, whatever the table.
    pub routes: BTreeSet<Route>,
    /// Policy routing rules with our protocol number.
    pub policy_rules: BTreeSet<PolicyRule>,
    /// Proxy neighbours with our protocol number.
    pub proxies: BTreeSet<ProxyNeighbour>,
    /// Addresses with our protocol number.
    pub addresses: BTreeSet<GatewayAddress>,
    /// Present settings of every interface.
    pub links: BTreeMap<IfName, LinkSettings>,
    /// Interfaces whose settings we changed, as recorded in the state directory.
    pub touched: BTreeSet<IfName>,
    /// Those of `touched` that were recorded as inside interfaces.
    pub inside: BTreeSet<IfName>,
    /// Those of `touched` that had another name when they were recorded.
    pub renamed: BTreeSet<IfName>,
}

/// One change over rtnetlink.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkChange {
    /// Removes a proxy neighbour of ours.
    RemoveProxy(ProxyNeighbour),
    /// Removes a route of ours.
    RemoveRoute(Route),
    /// Removes an address of ours.
    RemoveAddress(GatewayAddress),
    /// Removes a policy routing rule of ours.
    RemoveRule(PolicyRule),
    /// Adds a policy routing rule.
    AddRule(PolicyRule),
    /// Adds an address.
    AddAddress(GatewayAddress),
    /// Adds a route. A foreign route to the same destination is left alone and reported as an error.
    AddRoute(Route),
    /// Adds a proxy neighbour.
    AddProxy(ProxyNeighbour),
    /// Records that an interface leads into a closed network, and what is found on it. Changes nothing on it.
    Inside(IfName),
    /// Changes settings of an interface, recording first what was found.
    Set(IfName, LinkSettings),
    /// Puts back the recorded settings of an interface and forgets the record.
    PutBack(IfName),
}

/// How full the connection table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connections {
    /// Entries of this network namespace.
    pub entries: u64,
    /// `net.netfilter.nf_conntrack_max`: of all of them together.
    pub limit: u64,
}

/// Everything that the agent may do to a node. Each call either does the whole of what it says or reports why not;
/// [`Host::restore`] is atomic per table, [`Host::change_links`] says how far it came.
#[async_trait]
pub trait Host: Send {
    /// The backend in use, or why there is none (yet).
    fn backend(&self) -> Option<Backend>;

    /// Interfaces as they are now, ours left out of the addresses.
    async fn interfaces(&mut self) -> Result<BTreeMap<String, InterfaceFacts>, HostError>;

    /// What the kernel has and is set to.
    async fn kernel(&mut self) -> Result<KernelFacts, HostError>;

    /// Preflight: what the node lacks or has that an operator should know. Chooses the backend anew if there was none.
    async fn preflight(&mut self, needs: &Needs) -> Result<Vec<Finding>, HostError>;

    /// Reads a table. With `chains`: only these chains of it, and no hooks, which is far cheaper in a large table.
    async fn read_table(&mut self, family: Family, table: Table, chains: Option<&BTreeSet<ChainName>>) -> Result<ObservedTable, HostError>;

    /// Those of these tables that do not hold just what is known of them. May be cheaper than reading them.
    async fn changed_tables(&mut self, known: &BTreeMap<(Family, Table), &ObservedTable>) -> Result<BTreeSet<(Family, Table)>, HostError> {
        reread(self, known).await
    }

    /// Runs one `restore --noflush`. `text` is complete `iptables-restore` input; one transaction a table, in the order of the text.
    async fn restore(&mut self, family: Family, text: &str) -> Result<(), HostError>;

    /// Switches a table on that is [`ObservedTable::dormant`]: its chains see packets again, as they are.
    async fn wake(&mut self, family: Family, table: Table) -> Result<(), HostError>;

    /// Reads what of ours rtnetlink holds.
    async fn read_links(&mut self) -> Result<ObservedLinks, HostError>;

    /// Whether rtnetlink holds of ours just what is `known`.
    async fn links_stand(&mut self, known: &Arc<ObservedLinks>) -> Result<bool, HostError> {
        Ok(self.read_links().await? == **known)
    }

    /// Makes changes in the given order. Stops at nothing: every change is tried, and all errors are reported.
    async fn change_links(&mut self, changes: &[LinkChange]) -> Result<(), Vec<HostError>>;

    /// Walks the connection table once and deletes what `policy` does not agree with. Returns how many entries went.
    async fn sweep_flows(&mut self, policy: &Arc<FlowPolicy>, sweep: Sweep) -> Result<u64, HostError>;

    /// How full the connection table is. None: connection tracking is not in use, or it cannot be told. Cheap.
    async fn connections(&mut self) -> Option<Connections> {
        None
    }

    /// Asks on each interface whether somebody has these addresses there (probes of RFC 5227 and RFC 4862). Returns those that somebody has, with the hardware address.
    async fn probe(&mut self, addresses: &BTreeMap<IfName, BTreeSet<IpAddr>>) -> Result<BTreeMap<ProxyNeighbour, String>, HostError>;

    /// Announces addresses (gratuitous ARP, request and reply form; unsolicited neighbour advertisements): one burst now, repeats in the background.
    async fn announce(&mut self, addresses: &BTreeMap<IfName, BTreeSet<IpAddr>>) -> Result<(), HostError>;

    /// What the rules of these chains have counted since they were written: by chain, in order. Chains that are not there and rules without our
    /// mark are left out. Cheap with nft, whatever the size of the table; with legacy tools the whole table is read.
    async fn counters(
        &mut self,
        family: Family,
        table: Table,
        chains: &BTreeSet<ChainName>,
    ) -> Result<BTreeMap<ChainName, Vec<RuleCount>>, HostError>;

    /// Whether every change up to now to the tables that were read since events began has been told by [`Host::events`], or was made by this host. False where nobody can tell, as with legacy
    /// tools: then the tables have to be read.
    async fn tables_told(&mut self) -> Result<bool, HostError> {
        Ok(false)
    }

    /// The stream of kernel events. Called once.
    fn events(&mut self) -> tokio::sync::mpsc::Receiver<HostEvent>;
}

/// Reads these tables. Returns those that do not hold just what is known of them.
async fn reread<H: Host + ?Sized>(
    host: &mut H,
    known: &BTreeMap<(Family, Table), &ObservedTable>,
) -> Result<BTreeSet<(Family, Table)>, HostError> {
    let mut changed = BTreeSet::new();
    for (at, known) in known {
        if host.read_table(at.0, at.1, None).await? != **known {
            changed.insert(*at);
        }
    }
    Ok(changed)
}
