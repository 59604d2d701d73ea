//! What of preflight takes a listing of tables, remembered as long as nothing of it can have changed: nftables counts its changes, and a tool that is replaced is another file.

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::netlink::Netlink;
use super::preflight::{self, Listed};
use super::tools::{Stamp, Tools};
use super::{generation, kernel};
use crate::host::Backend;
use crate::netfilter::Family;

/// What listing tables told last, and when that was.
#[derive(Debug, Default)]
pub(super) struct Listing {
    last: Option<(Moment, Listed)>,
}

impl Listing {
    /// What listing tables tells.
    pub(super) async fn look(&mut self, tools: Option<Tools>) -> Listed {
        // Read first: what changes while tables are listed makes the next moment another one.
        let now = match tools {
            Some(tools) => Moment::now(tools).await,
            None => None,
        };
        if let (Some(now), Some((then, listed))) = (&now, &self.last)
            && now == then
        {
            return listed.clone();
        }
        let listed = preflight::list(tools).await;
        self.last = now.filter(|_| listed.lasts()).map(|now| (now, listed.clone()));
        listed
    }
}

/// As long as this is the same, tables and tools are.
#[derive(Debug, PartialEq, Eq)]
struct Moment {
    /// Generation of nftables.
    generation: u32,
    tools: Tools,
    files: Vec<Stamp>,
    ipv6: bool,
}

impl Moment {
    /// None where it cannot be told.
    async fn now(tools: Tools) -> Option<Self> {
        if tools.backend != Backend::Nft {
            return None;
        }
        let read = || generation::read(&mut Netlink::open(NETLINK_NETFILTER)?);
        Some(Self {
            generation: kernel("reading the nftables generation", read).await.ok()?,
            tools,
            files: Family::ALL
                .map(|family| Stamp::of(&tools.save(family)))
                .into_iter()
                .collect::<Option<_>>()?,
            ipv6: preflight::has_ipv6(),
        })
    }
}
