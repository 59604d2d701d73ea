//! What is asked for and announced of a set of addresses, each by its family's protocol.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use pnet_datalink::MacAddr;

use super::arp::Arp;
use super::nd::{Nd, Role};
use super::wire::{self, Port, Protocol, Wire};

/// Addresses by the protocol that asks for them and announces them.
#[derive(Clone, Debug, Default)]
pub(super) struct Addresses {
    arp: BTreeSet<Ipv4Addr>,
    nd: BTreeSet<(Ipv6Addr, Role)>,
}

impl Addresses {
    pub(super) fn of(all: &BTreeSet<IpAddr>, own: &BTreeSet<IpAddr>) -> Self {
        let mut of = Self::default();
        for address in all {
            let role = if own.contains(address) { Role::Own } else { Role::Proxied };
            match *address {
                IpAddr::V4(address) => of.arp.insert(address),
                IpAddr::V6(address) => of.nd.insert((address, role)),
            };
        }
        of
    }

    /// One for each protocol that there is something for.
    pub(super) fn split(self) -> impl Iterator<Item = Self> {
        let Self { arp, nd } = self;
        let parts = [Self { arp, nd: BTreeSet::new() }, Self { arp: BTreeSet::new(), nd }];
        parts.into_iter().filter(|part| !part.arp.is_empty() || !part.nd.is_empty())
    }

    pub(super) fn probe(&self, port: Port, own: &BTreeSet<MacAddr>) -> io::Result<BTreeMap<IpAddr, MacAddr>> {
        let mut found = BTreeMap::new();
        if !self.arp.is_empty() {
            let answers = wire::probe::<Arp>(port, &self.arp, own)?;
            found.extend(answers.into_iter().map(|(address, mac)| (IpAddr::V4(address), mac)));
        }
        if !self.nd.is_empty() {
            let answers = wire::probe::<Nd>(port, &self.nd, own)?;
            found.extend(answers.into_iter().map(|((address, _), mac)| (IpAddr::V6(address), mac)));
        }
        Ok(found)
    }
}

/// One interface, by which addresses are announced: a socket for each protocol, opened when first needed.
pub(super) struct Speaker {
    port: Port,
    arp: Option<Wire>,
    nd: Option<Wire>,
}

impl Speaker {
    pub(super) fn on(port: Port) -> Self {
        Self { port, arp: None, nd: None }
    }

    /// Announces a few addresses at once.
    pub(super) fn announce(&mut self, some: &BTreeSet<IpAddr>, own: &BTreeSet<IpAddr>) -> io::Result<()> {
        let Addresses { arp, nd } = Addresses::of(some, own);
        say::<Arp>(self.port, &mut self.arp, arp)?;
        say::<Nd>(self.port, &mut self.nd, nd)
    }
}

fn say<P: Protocol>(port: Port, wire: &mut Option<Wire>, addresses: BTreeSet<P::Address>) -> io::Result<()> {
    for address in addresses {
        let open = match wire {
            Some(open) => open,
            None => wire.insert(Wire::open::<P>(port)?),
        };
        open.announce::<P>(address)?;
    }
    Ok(())
}
