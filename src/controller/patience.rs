//! How long a judgement waits for what it would be better with. Pure: the clock comes from outside.
//!
//! After a start everything is read within a second, and judging before that would unsay what was said. But what cannot be read, because somebody took a right away or one kind
//! does not answer, must not keep all the rest from being judged: after the first judgement nothing waits but what depends on it.

use std::time::{Duration, Instant};

/// How long a judgement waits at most.
const PATIENCE: Duration = Duration::from_secs(10);

/// Something that is read apart from the objects that are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lacking {
    /// Labels of namespaces, where a network asks for them.
    pub namespaces: bool,
    /// The API server's addresses, all or some of them.
    pub api_server: bool,
}

impl Lacking {
    const LABELS: &str = "labels of namespaces, which networks ask for, cannot be read: mappings of these networks stay as they were said to be, and new ones wait";
    const ADDRESSES: &str = "the API server's addresses (Service and EndpointSlice default/kubernetes) cannot be read: claims to those that are not known from before are not refused";

    /// What is unread and what that means, for people. None: nothing.
    pub fn said(self) -> Option<String> {
        let parts = [(self.namespaces, Self::LABELS), (self.api_server, Self::ADDRESSES)];
        let parts: Vec<&str> = parts.iter().filter(|(unread, _)| *unread).map(|(_, said)| *said).collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

/// Since when something has been unread.
#[derive(Debug, Default)]
pub struct Patience {
    namespaces: Option<Instant>,
    api_server: Option<Instant>,
}

impl Patience {
    /// Until when to wait for what is unread. None: judge now, without what is unread still.
    pub fn until(&mut self, unread: Lacking, now: Instant) -> Option<Instant> {
        let ends = [(&mut self.namespaces, unread.namespaces), (&mut self.api_server, unread.api_server)].map(|(since, unread)| {
            *since = unread.then(|| since.unwrap_or(now));
            since.map(|since| since + PATIENCE).filter(|end| *end > now)
        });
        ends.into_iter().flatten().max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unread_is_waited_for_a_while_and_anew_when_it_was_read() {
        let (mut patience, start) = (Patience::default(), Instant::now());
        let unread = |namespaces, api_server| Lacking { namespaces, api_server };
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(patience.until(unread(false, false), start), None);
        assert_eq!(patience.until(unread(false, true), after(1)), Some(after(11)));
        assert_eq!(
            patience.until(unread(true, true), after(5)),
            Some(after(15)),
            "as long as either needs"
        );
        assert_eq!(patience.until(unread(true, true), after(11)), Some(after(15)));
        assert_eq!(patience.until(unread(true, true), after(15)), None);
        assert_eq!(patience.until(unread(true, false), after(99)), None);
        assert_eq!(patience.until(unread(false, false), after(100)), None);
        assert_eq!(patience.until(unread(true, false), after(101)), Some(after(111)));
    }

    #[test]
    fn what_is_unread_is_said() {
        let said = |namespaces, api_server| Lacking { namespaces, api_server }.said().unwrap_or_default();
        assert_eq!(said(false, false), "");
        assert!(said(true, false).contains("labels of namespaces") && !said(true, false).contains("default/kubernetes"));
        assert!(said(true, true).contains("labels of namespaces") && said(true, true).contains("default/kubernetes"));
    }
}
