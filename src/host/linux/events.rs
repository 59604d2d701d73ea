//! Kernel events, told only where they may concern us.
//!
//! Three listeners: nftables (legacy tables have no events), rtnetlink, and, because the kernel tells nobody when a proxy neighbour goes or
//! `send_redirects` or `proxy_delay` change, a cheap look at those twice a second. A listener that fails says [`HostEvent::Overrun`] and starts anew, ever more slowly. All end when the
//! receiver is dropped. When the agent is slow, the kernel's queue fills and the kernel says so: nothing is lost silently.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex as Lock};
use std::time::{Duration, Instant};

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{AsyncSocket, AsyncSocketExt as _, TokioSocket};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::sync::{Mutex, mpsc};
use tokio::time::sleep;

use super::dormant::{self, NFT_MSG_NEWTABLE};
use super::generation::{self, NFGENMSG, NFT_MSG_NEWGEN, Own};
use super::netlink::{Answer, Netlink, messages, text, u32_at};
use super::state::Found;
use super::{policy, routes, unannounced};
use crate::host::HostEvent;
use crate::netfilter::IfName;
use crate::netfilter::rules::CHAIN_PREFIX;

/// Bytes that the kernel queues for each listener: some ten thousand rule events, which is a flush of a large table.
const QUEUE: usize = 8 << 20;
/// Bytes read at once: more than the largest datagram of events (`NLMSG_GOODSIZE`, one page, or one large rule).
const RECEIVE: usize = 128 << 10;
/// Where rules of ours may be, and the built-in chains that may have jumps of ours.
const TABLES: [&str; 4] = ["mangle", "raw", "nat", "filter"];
const BUILT_IN: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));

// linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h, linux/rtnetlink.h
const NFNLGRP_NFTABLES: u32 = 7;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_DELTABLE: u8 = 2;
const NFT_MSG_NEWCHAIN: u8 = 3;
const NFT_MSG_DELCHAIN: u8 = 5;
const NFT_MSG_NEWRULE: u8 = 6;
const NFT_MSG_DELRULE: u8 = 8;
const NFTA_NAME: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_GEN_PROC_PID: u16 = 2;
const NFTA_GEN_PROC_NAME: u16 = 3;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV4_RULE: u32 = 8;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
const RTNLGRP_IPV6_ROUTE: u32 = 11;
const RTNLGRP_IPV6_RULE: u32 = 19;
const RTNLGRP_IPV4_NETCONF: u32 = 24;
const RTNLGRP_IPV6_NETCONF: u32 = 25;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_DELROUTE: u16 = 25;
const RTM_DELRULE: u16 = 33;
const RTM_NEWNETCONF: u16 = 80;
const RTM_DELNETCONF: u16 = 81;

pub(super) type Sender = mpsc::Sender<HostEvent>;

/// Starts the listeners. From now on nothing happens to a table of nftables that is not told.
pub(super) fn start(sender: &Sender, own: &Arc<Mutex<Own>>, found: &Arc<Lock<Found>>) {
    // Should it fail, or a restore hold the lock, the listener tries again.
    let mut first = own.try_lock().ok().and_then(|mut own| begin_nft(&mut own).ok());
    let (nft, own) = (sender.clone(), own.clone());
    keep(sender.clone(), "nftables", move || {
        listen_nft(nft.clone(), own.clone(), first.take())
    });
    let route = sender.clone();
    keep(sender.clone(), "rtnetlink", move || listen_route(route.clone()));
    let (look, found) = (sender.clone(), found.clone());
    keep(sender.clone(), "unannounced", move || {
        unannounced::watch(look.clone(), found.clone())
    });
}

/// Runs a listener until the receiver is gone, anew when it fails.
fn keep<F: Future<Output = io::Result<()>> + Send + 'static>(
    sender: Sender,
    what: &'static str,
    mut listen: impl FnMut() -> F + Send + 'static,
) {
    tokio::spawn(async move {
        let mut pause = BACKOFF.0;
        loop {
            let started = Instant::now();
            let outcome = tokio::select! {
                () = sender.closed() => return,
                outcome = listen() => outcome,
            };
            match outcome {
                // Events were lost, the listener is well: check everything, and go on at once.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => pause = Duration::ZERO,
                Err(error) => tracing::warn!(%error, "listening for {what} events failed; it is tried again"),
                Ok(()) => return,
            }
            if sender.send(HostEvent::Overrun).await.is_err() {
                return;
            }
            if started.elapsed() > BACKOFF.1 {
                pause = BACKOFF.0;
            }
            tokio::select! {
                () = sender.closed() => return,
                () = sleep(pause) => {}
            }
            pause = (pause * 2).clamp(BACKOFF.0, BACKOFF.1);
        }
    });
}

fn open(protocol: isize, groups: &[u32]) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocol)?;
    socket.socket_mut().bind_auto()?;
    // Without the privilege the queue stays at the system's limit, and overruns are told earlier.
    if setsockopt(socket.socket_ref(), sockopt::RcvBufForce, &QUEUE).is_err() {
        let _ = setsockopt(socket.socket_ref(), sockopt::RcvBuf, &QUEUE);
    }
    for group in groups {
        socket.socket_mut().add_membership(*group)?;
    }
    Ok(socket)
}

/// Chains of a transaction that concern us, until the kernel tells the generation.
#[derive(Debug, Default)]
pub(super) struct Transaction {
    pub(super) chains: BTreeSet<String>,
}

impl Transaction {
    /// Takes a message in. Returns the generation, and who made it, when the transaction ends.
    pub(super) fn take(&mut self, kind: u8, answer: &Answer<'_>) -> Option<(u32, Option<String>)> {
        if kind == NFT_MSG_NEWGEN {
            return Some((generation::id(answer)?, maker(answer)));
        }
        if !matches!(answer.body.first(), Some(&(NFPROTO_IPV4 | NFPROTO_IPV6))) {
            return None;
        }
        let whole = matches!(kind, NFT_MSG_NEWTABLE | NFT_MSG_DELTABLE);
        let name = match kind {
            NFT_MSG_NEWRULE | NFT_MSG_DELRULE => NFTA_RULE_CHAIN,
            NFT_MSG_NEWCHAIN | NFT_MSG_DELCHAIN => NFTA_CHAIN_NAME,
            NFT_MSG_DELTABLE => NFTA_NAME,
            // Told of a new table, and of one whose flags change.
            NFT_MSG_NEWTABLE if dormant::told(answer) => NFTA_NAME,
            _ => return None,
        };
        let (mut table, mut chain) = (String::new(), String::new());
        for (attribute, value) in answer.attributes(NFGENMSG) {
            match attribute {
                NFTA_NAME => table = text(value),
                a if a == name => chain = text(value),
                _ => {}
            }
        }
        let ours = whole || chain.starts_with(CHAIN_PREFIX) || BUILT_IN.contains(&chain.as_str());
        if ours && TABLES.contains(&table.as_str()) {
            self.chains
                .insert(if whole { format!("{table}/*") } else { format!("{table}/{chain}") });
        }
        None
    }
}

/// `COMMAND (pid N)`
fn maker(answer: &Answer<'_>) -> Option<String> {
    let (mut pid, mut name) = (None, None);
    for (kind, value) in answer.attributes(NFGENMSG) {
        match kind {
            NFTA_GEN_PROC_PID => pid = value.try_into().ok().map(u32::from_be_bytes),
            NFTA_GEN_PROC_NAME => name = Some(text(value)),
            _ => {}
        }
    }
    Some(format!("{} (pid {})", name.filter(|n| !n.is_empty())?, pid?))
}

/// Begins to listen. The kernel says its generation without waiting for anybody.
fn begin_nft(own: &mut Own) -> io::Result<TokioSocket> {
    let socket = open(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES])?;
    let present = Netlink::open(NETLINK_NETFILTER).and_then(|mut netlink| generation::read(&mut netlink));
    own.begin(present.ok());
    Ok(socket)
}

/// Listens at a socket that has begun already, if there is one.
async fn listen_nft(sender: Sender, own: Arc<Mutex<Own>>, begun: Option<TokioSocket>) -> io::Result<()> {
    let socket = match begun {
        Some(socket) => socket,
        None => begin_nft(&mut *own.lock().await)?,
    };
    let mut buffer = Vec::with_capacity(RECEIVE);
    let mut transaction = Transaction::default();
    loop {
        buffer.clear();
        socket.recv(&mut buffer).await?;
        for (kind, _, _, body) in messages(&buffer) {
            let [kind, subsystem] = kind.to_le_bytes();
            if u16::from(subsystem) != NFNL_SUBSYS_NFTABLES {
                continue;
            }
            let Some((generation, by)) = transaction.take(kind, &Answer { body }) else {
                continue;
            };
            let chains: Vec<_> = std::mem::take(&mut transaction.chains).into_iter().collect();
            // While a restore of ours runs it holds the lock, so the question is asked when the answer is known.
            let ours = own.lock().await.made(generation);
            if !chains.is_empty() && !ours && sender.send(HostEvent::Tables { by, chains }).await.is_err() {
                return Ok(());
            }
            own.lock().await.hear(generation);
        }
    }
}

async fn listen_route(sender: Sender) -> io::Result<()> {
    let groups = [
        RTNLGRP_LINK,
        RTNLGRP_IPV4_IFADDR,
        RTNLGRP_IPV4_ROUTE,
        RTNLGRP_IPV4_RULE,
        RTNLGRP_IPV4_NETCONF,
        RTNLGRP_IPV6_IFADDR,
        RTNLGRP_IPV6_ROUTE,
        RTNLGRP_IPV6_RULE,
        RTNLGRP_IPV6_NETCONF,
    ];
    let socket = open(NETLINK_ROUTE, &groups)?;
    let mut buffer = Vec::with_capacity(RECEIVE);
    loop {
        buffer.clear();
        socket.recv(&mut buffer).await?;
        let mut events = Vec::new();
        for (kind, _, _, body) in messages(&buffer) {
            let event = match kind {
                RTM_NEWLINK | RTM_DELLINK | RTM_NEWADDR | RTM_DELADDR | RTM_NEWNETCONF | RTM_DELNETCONF => HostEvent::Links,
                RTM_DELROUTE => match route_gone(&Answer { body }) {
                    Some(event) => event,
                    None => continue,
                },
                RTM_DELRULE => match policy::parse(&Answer { body }) {
                    Some(rule) => HostEvent::RuleGone(rule),
                    None => continue,
                },
                _ => continue,
            };
            if events.last() != Some(&event) {
                events.push(event);
            }
        }
        for event in events {
            if sender.send(event).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// Our route that is gone. Which interface it led to does not matter, and the interface may be gone too.
pub(super) fn route_gone(answer: &Answer<'_>) -> Option<HostEvent> {
    let out = answer.attributes(routes::RTMSG).find(|(kind, _)| *kind == routes::RTA_OIF);
    let out = out.and_then(|(_, index)| u32_at(index, 0)).zip(IfName::new("any"));
    let route = routes::parse(answer, &out.into_iter().collect())?;
    Some(HostEvent::RouteGone(route.table, route.destination))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = u16::try_from(value.len() + 4).unwrap().to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn event(family: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![family, 0, 0, 0];
        for (kind, value) in attributes {
            body.extend(attribute(*kind, value));
        }
        body
    }

    #[test]
    fn a_transaction_gathers_what_concerns_us_and_ends_with_its_maker() {
        let mut transaction = Transaction::default();
        let mut take = |kind, body: Vec<u8>| transaction.take(kind, &Answer { body: &body });
        assert!(take(NFT_MSG_DELRULE, event(2, &[(1, b"mangle\0"), (2, b"SNET-FWD\0")])).is_none());
        assert!(take(NFT_MSG_NEWRULE, event(2, &[(1, b"nat\0"), (2, b"POSTROUTING\0")])).is_none());
        assert!(take(NFT_MSG_NEWRULE, event(2, &[(1, b"filter\0"), (2, b"DOCKER\0")])).is_none());
        assert!(take(NFT_MSG_NEWRULE, event(1, &[(1, b"filter\0"), (2, b"FORWARD\0")])).is_none());
        assert!(take(NFT_MSG_NEWCHAIN, event(10, &[(1, b"mangle\0"), (3, b"SNET-IN\0")])).is_none());
        assert!(take(NFT_MSG_DELTABLE, event(2, &[(1, b"filter\0")])).is_none());
        assert!(take(NFT_MSG_NEWTABLE, event(10, &[(1, b"raw\0"), (2, &1u32.to_be_bytes())])).is_none());
        assert!(take(NFT_MSG_NEWTABLE, event(2, &[(1, b"nat\0"), (2, &0u32.to_be_bytes())])).is_none());
        let end = take(
            NFT_MSG_NEWGEN,
            event(0, &[(1, &7u32.to_be_bytes()), (2, &99u32.to_be_bytes()), (3, b"iptables\0")]),
        );
        assert_eq!(end, Some((7, Some("iptables (pid 99)".to_owned()))));
        assert_eq!(
            transaction.chains.into_iter().collect::<Vec<_>>(),
            ["filter/*", "mangle/SNET-FWD", "mangle/SNET-IN", "nat/POSTROUTING", "raw/*"]
        );
    }
}
