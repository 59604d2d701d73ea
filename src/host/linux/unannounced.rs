//! What changes without the kernel telling anybody: proxy neighbours that go, and the settings `send_redirects`, `proxy_delay` and
//! `fwmark_reflect`.
//!
//! `pneigh_delete` and the handlers of those settings send no notification (`net/core/neighbour.c`, `net/ipv4/devinet.c`,
//! `net/ipv4/sysctl_net_ipv4.c`), so they are looked at, which costs a few dumps a second.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex as Lock, PoisonError};
use std::time::Duration;

use netlink_sys::protocols::NETLINK_ROUTE;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use super::events::Sender;
use super::facts;
use super::netlink::Netlink;
use super::observe;
use super::state::Found;
use crate::host::HostEvent;

/// Least time between two looks at what the kernel does not tell.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Time between two looks for each proxy neighbour of ours, so that ten thousand of them do not cost more than a fraction of a thousandth of a processor.
const LOOK_EACH: Duration = Duration::from_millis(2);
/// However many there are.
const LOOK_LATEST: Duration = Duration::from_secs(30);

/// `send_redirects`, and `proxy_delay` of IPv4 and IPv6.
type Watched = (Option<bool>, Option<u64>, Option<u64>);

/// What the kernel holds without telling anybody of a change.
#[derive(Debug, Default, PartialEq, Eq)]
struct Unannounced {
    /// Of ours, by interface index, as the kernel tells them: always in the same order while none comes or goes.
    proxies: Vec<(u32, IpAddr)>,
    /// By interface index: `send_redirects` and `proxy_delay` of both families. Looked at only while settings of ours stand.
    settings: BTreeMap<u32, Watched>,
    /// `fwmark_reflect` of both families.
    reflect: [Option<u8>; 2],
}

impl Unannounced {
    fn look(found: &Lock<Found>) -> io::Result<Self> {
        let mut netlink = Netlink::open(NETLINK_ROUTE)?;
        let changed = !found.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        let links = if changed { observe::links(&mut netlink)? } else { BTreeMap::new() };
        let setting = |link: observe::Link| {
            let settings = link.settings;
            let watched = (settings.send_redirects, settings.proxy_delay, settings.proxy_delay_ipv6);
            (link.index, watched)
        };
        Ok(Self {
            proxies: observe::our_proxies(&mut netlink)?,
            settings: links.into_values().map(setting).collect(),
            reflect: reflect(),
        })
    }

    /// What has changed from `before`. Interfaces that came or went are told by the kernel.
    fn since(&self, before: &Self) -> Vec<HostEvent> {
        let mut events = Vec::new();
        if before.proxies != self.proxies {
            let now: BTreeSet<_> = self.proxies.iter().collect();
            let gone = before.proxies.iter().filter(|proxy| !now.contains(proxy));
            events.extend(gone.map(|(_, address)| HostEvent::ProxyGone(*address)));
        }
        let set = |(index, now): (&u32, _)| before.settings.get(index).is_some_and(|then| then != now);
        let reflect = before.reflect != self.reflect && before.reflect != Self::default().reflect;
        if reflect || self.settings.iter().any(set) {
            events.push(HostEvent::Links);
        }
        events
    }
}

fn reflect() -> [Option<u8>; 2] {
    facts::FWMARK_REFLECT.map(|(_, setting)| observe::sysctl(setting))
}

/// Looks until the receiver is gone. At `fwmark_reflect` always at the least interval: without it, what the node answers to isolated networks goes by its own routes, which the fence has to know.
pub(super) async fn watch(sender: Sender, found: Arc<Lock<Found>>) -> io::Result<()> {
    let mut before = Unannounced::default();
    loop {
        let found = found.clone();
        let now = spawn_blocking(move || Unannounced::look(&found))
            .await
            .map_err(io::Error::other)??;
        for event in now.since(&before) {
            if sender.send(event).await.is_err() {
                return Ok(());
            }
        }
        let proxies = u32::try_from(now.proxies.len()).unwrap_or(u32::MAX);
        let pause = LOOK_EACH.saturating_mul(proxies).clamp(LOOK_INTERVAL, LOOK_LATEST);
        before = now;
        let due = Instant::now() + pause;
        while Instant::now() < due {
            sleep(LOOK_INTERVAL.min(due - Instant::now())).await;
            let reflect = reflect();
            if before.reflect != reflect {
                before.reflect = reflect;
                if sender.send(HostEvent::Links).await.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_and_what_was_set_is_told_and_what_came_is_not() {
        let look = |proxies: &[u8], settings: &[(u32, bool)]| Unannounced {
            proxies: proxies.iter().map(|last| (2, IpAddr::from([192, 0, 2, *last]))).collect(),
            settings: settings
                .iter()
                .map(|(index, redirects)| (*index, (Some(*redirects), Some(0), Some(0))))
                .collect(),
            reflect: [Some(0); 2],
        };
        let before = look(&[3, 4], &[(2, false)]);
        assert_eq!(look(&[3, 4, 5], &[(2, false), (3, true)]).since(&before), []);
        assert_eq!(look(&[4], &[]).since(&before), [HostEvent::ProxyGone(IpAddr::from([192, 0, 2, 3]))]);
        assert_eq!(look(&[4, 3], &[]).since(&before), [], "in another order");
        assert_eq!(look(&[3, 4], &[(2, true)]).since(&before), [HostEvent::Links]);
        let mut reflecting = look(&[3, 4], &[(2, false)]);
        reflecting.reflect[1] = Some(1);
        assert_eq!(reflecting.since(&before), [HostEvent::Links]);
        assert_eq!(reflecting.since(&Unannounced::default()), [], "the first look tells nothing");
    }
}
