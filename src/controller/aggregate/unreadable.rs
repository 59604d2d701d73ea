//! The status of objects that this version cannot read: nobody knows.

use k8s_openapi::jiff::Timestamp;

use crate::api::conditions::{self, Finding};
use crate::api::reasons::{self, types};
use crate::api::{NatMappingStatus, StagingNetworkStatus};

/// What was said of a mapping stays, but for its conditions. `what`: the object, or the network that it is in.
pub fn mapping(before: Option<&NatMappingStatus>, generation: i64, what: &str, error: &str, now: Timestamp) -> NatMappingStatus {
    let before = before.cloned().unwrap_or_default();
    let kinds = [types::ACCEPTED, types::RESOLVED_REFS, types::PROGRAMMED, types::READY];
    NatMappingStatus {
        observed_generation: Some(generation),
        conditions: conditions::unknown(&kinds, generation, &finding(what, error), &before.conditions, now),
        ..before
    }
}

/// What was said of a network stays, but for its conditions.
pub fn network(before: Option<&StagingNetworkStatus>, generation: i64, error: &str, now: Timestamp) -> StagingNetworkStatus {
    let before = before.cloned().unwrap_or_default();
    let kinds = [types::ACCEPTED, types::PROGRAMMED, types::READY];
    StagingNetworkStatus {
        observed_generation: Some(generation),
        conditions: conditions::unknown(&kinds, generation, &finding("the object", error), &before.conditions, now),
        ..before
    }
}

fn finding(what: &str, error: &str) -> Finding {
    Finding::new(
        reasons::UNREADABLE,
        format!(
            "This version of stagenet ({}) cannot read {what}: {error}. Gateways keep the last version that they could read, if there was one, and nobody can vouch for it. \
             Correct it, or upgrade stagenet.",
            env!("CARGO_PKG_VERSION")
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::conditions::find;

    #[test]
    fn nobody_knows_and_what_was_said_besides_stays() {
        let before = NatMappingStatus {
            gateway: Some("a".into()),
            ..NatMappingStatus::default()
        };
        let status = mapping(Some(&before), 3, "the object", "invalid type: map", Timestamp::UNIX_EPOCH);
        assert_eq!((status.gateway.as_deref(), status.observed_generation), (Some("a"), Some(3)));
        assert_eq!(status.conditions.len(), 4);
        let said = |kind| find(&status.conditions, kind).map(|c| (c.status.as_str(), c.reason.as_str()));
        assert_eq!(said(types::READY), Some(("Unknown", reasons::UNREADABLE)));
        assert_eq!(
            mapping(Some(&status), 3, "the object", "invalid type: map", Timestamp::MAX),
            status,
            "once"
        );
    }
}
