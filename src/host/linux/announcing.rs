//! Announcements that are repeated, as long as what they say is so.
//!
//! Whoever gives an address up must not announce it once more: hosts on the segment would turn to a gateway that does not serve it, and away from the one that has just
//! taken over, until their caches expire.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;

use super::addresses::Speaker;
use super::kernel;
use super::wire::{PACE, Port};
use crate::host::LinkChange;
use crate::host::error::HostError;
use crate::netfilter::IfName;

/// When an announcement is repeated: a host that was busy or asleep gets another chance (RFC 5227 announces twice, two seconds apart).
const REPEATS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(2)];

/// Addresses announced in one go; with [`PACE`] between them, no more than 5000 frames a second, which is 3.5 Mbit/s.
const CHUNK: usize = 12;

/// Addresses that one interface announces, and which of them are the node's own.
#[derive(Debug)]
pub(super) struct Burst {
    pub(super) interface: IfName,
    pub(super) port: Port,
    pub(super) addresses: BTreeSet<IpAddr>,
    pub(super) own: BTreeSet<IpAddr>,
}

type Bursts = Mutex<Vec<Burst>>;

/// What is still to be repeated.
#[derive(Debug, Default)]
pub(super) struct Announcing {
    under_way: Vec<Weak<Bursts>>,
    // Dropped with the host, which ends them.
    repeats: JoinSet<()>,
}

impl Announcing {
    /// Announces now, and again a few times.
    pub(super) async fn begin(&mut self, bursts: Vec<Burst>) -> Result<(), HostError> {
        let bursts = Arc::new(Mutex::new(bursts));
        self.under_way.retain(|others| others.strong_count() > 0);
        while self.repeats.try_join_next().is_some() {}
        self.under_way.push(Arc::downgrade(&bursts));
        let first = bursts.clone();
        kernel("announcing addresses", move || send(&first)).await?;
        self.repeats.spawn(async move {
            for pause in REPEATS {
                sleep(pause).await;
                let again = bursts.clone();
                if let Err(error) = kernel("announcing addresses again", move || send(&again)).await {
                    tracing::debug!(%error, "an announcement was not repeated");
                }
            }
        });
        Ok(())
    }

    /// What is to be forgotten before `changes` are made: once this returns, nothing that they give up is announced any more.
    pub(super) fn give_up(&self, changes: &[LinkChange]) {
        let gone: BTreeSet<(&IfName, IpAddr)> = changes
            .iter()
            .filter_map(|change| match change {
                LinkChange::RemoveProxy(proxy) => Some((&proxy.interface, proxy.address)),
                LinkChange::RemoveAddress(own) => Some((&own.interface, own.address)),
                _ => None,
            })
            .collect();
        if gone.is_empty() {
            return;
        }
        for bursts in self.under_way.iter().filter_map(Weak::upgrade) {
            for burst in &mut *lock(&bursts) {
                let interface = &burst.interface;
                burst.addresses.retain(|address| !gone.contains(&(interface, *address)));
            }
        }
    }
}

/// Announces what is left. Each few addresses under the lock, so that nothing is given up in between; the pauses are not, so that who gives up never waits for ten thousand others.
fn send(bursts: &Bursts) -> io::Result<()> {
    let ports: Vec<Port> = lock(bursts).iter().map(|burst| burst.port).collect();
    for (number, port) in ports.into_iter().enumerate() {
        let mut speaker = Speaker::on(port);
        let mut last = None;
        loop {
            let bursts = lock(bursts);
            let Some(burst) = bursts.get(number) else { break };
            let rest = burst
                .addresses
                .range((last.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded));
            let some: BTreeSet<IpAddr> = rest.take(CHUNK).copied().collect();
            let Some(end) = some.last() else { break };
            last = Some(*end);
            speaker.announce(&some, &burst.own)?;
            drop(bursts);
            std::thread::sleep(PACE);
        }
    }
    Ok(())
}

fn lock(bursts: &Bursts) -> MutexGuard<'_, Vec<Burst>> {
    bursts.lock().unwrap_or_else(PoisonError::into_inner)
}
