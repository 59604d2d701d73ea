//! What changes without the kernel telling anybody: proxy neighbours that go, and the settings `send_redirects`, `proxy_delay` and
//! `fwmark_reflect`.
//!
//! `pneigh_delete` and the handlers of those settings send no notification (`net/core/neighbour.c`, `net/ipv4/devinet.c`,
//! `net/ipv4/sysctl_net_ipv4.c`), so they are looked at, which costs a few dumps a second.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex as Lock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_ROUTE;
use tokio::sync::oneshot;

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
    fn look(netlink: &mut Netlink, found: &Lock<Found>, reflect: [Option<u8>; 2]) -> io::Result<Self> {
        let changed = !found.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        let links = if changed { observe::links(netlink)? } else { BTreeMap::new() };
        let setting = |link: observe::Link| {
            let settings = link.settings;
            let watched = (settings.send_redirects, settings.proxy_delay, settings.proxy_delay_ipv6);
            (link.index, watched)
        };
        Ok(Self {
            proxies: observe::our_proxies(netlink)?,
            settings: links.into_values().map(setting).collect(),
            reflect,
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

/// `fwmark_reflect` of both families, whose files stay open: it is read more often than anything else.
#[derive(Debug, Default)]
struct Reflect([Option<File>; 2]);

impl Reflect {
    fn read(&mut self) -> [Option<u8>; 2] {
        let mut now = [None; 2];
        for ((value, file), (_, setting)) in now.iter_mut().zip(&mut self.0).zip(facts::FWMARK_REFLECT) {
            if file.is_none() {
                // A module that is not loaded yet may bring it.
                *file = File::open(format!("/proc/sys/net/{setting}")).ok();
            }
            *value = file.as_ref().and_then(small);
            if value.is_none() {
                *file = None;
            }
        }
        now
    }
}

/// The small number that a file under /proc/sys holds at the moment.
fn small(file: &File) -> Option<u8> {
    let mut text = [0; 8];
    let length = file.read_at(&mut text, 0).ok()?;
    str::from_utf8(text.get(..length)?).ok()?.trim().parse().ok()
}

/// Looks until the receiver is gone, on a thread of its own: one that sleeps costs less than a timer among others.
pub(super) async fn watch(sender: Sender, found: Arc<Lock<Found>>) -> io::Result<()> {
    let (end, ended) = oneshot::channel();
    thread::Builder::new().name("unannounced".to_owned()).spawn(move || {
        let _ = end.send(look_on(&sender, &found));
    })?;
    ended.await.map_err(io::Error::other)?
}

/// At `fwmark_reflect` always at the least interval: without it, what the node answers to isolated networks goes by its own routes, which the fence has to know.
fn look_on(sender: &Sender, found: &Lock<Found>) -> io::Result<()> {
    let mut netlink = Netlink::open(NETLINK_ROUTE)?;
    let mut reflect = Reflect::default();
    let mut before = Unannounced::default();
    loop {
        let now = Unannounced::look(&mut netlink, found, reflect.read())?;
        for event in now.since(&before) {
            if sender.blocking_send(event).is_err() {
                return Ok(());
            }
        }
        let proxies = u32::try_from(now.proxies.len()).unwrap_or(u32::MAX);
        let pause = LOOK_EACH.saturating_mul(proxies).clamp(LOOK_INTERVAL, LOOK_LATEST);
        before = now;
        let due = Instant::now() + pause;
        loop {
            thread::sleep(LOOK_INTERVAL.min(due.saturating_duration_since(Instant::now())));
            if sender.is_closed() {
                return Ok(());
            }
            if Instant::now() >= due {
                break;
            }
            let reflect = reflect.read();
            if before.reflect != reflect {
                before.reflect = reflect;
                if sender.blocking_send(HostEvent::Links).is_err() {
                    return Ok(());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn settings_are_read_anew_from_a_file_that_stays_open() {
        let path = std::env::temp_dir().join(format!("stagenet-unannounced-{}", std::process::id()));
        let read = |text: &str, file: Option<&File>| {
            std::fs::write(&path, text).unwrap();
            file.map_or_else(|| small(&File::open(&path).unwrap()), small)
        };
        assert_eq!(
            [read("0\n", None), read("1\n", None), read("", None), read("x", None)],
            [Some(0), Some(1), None, None]
        );
        let open = File::open(&path).unwrap();
        assert_eq!([read("1\n", Some(&open)), read("0\n", Some(&open))], [Some(1), Some(0)]);
        std::fs::remove_file(path).unwrap();
    }

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
