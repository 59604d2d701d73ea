//! Keeps a report small: every gateway reads every other one's, and the API server keeps them all. Pure.
//!
//! What is cut is what the node's log says as well. What the controller and other nodes decide by is never cut: roles, versions and reasons of networks, and addresses.

use crate::api::gatewaynode::GatewayNodeStatus;

/// Bytes of a status as JSON. With metadata and managed fields (a kilobyte, since lists are atomic) an object stays under 16 KiB.
const BUDGET: usize = 14 * 1024;
/// Characters that messages are cut to, step by step.
const STEPS: [usize; 3] = [256, 128, 64];

/// Cuts what is too much: messages first, then failures and refusals from the end of their lists (`failure_count` and `refused_count` count them still), then what is nice to know of interfaces.
pub(super) fn fit(status: &mut GatewayNodeStatus) {
    for length in STEPS {
        if fits(status) {
            return;
        }
        let failures = status.failures.iter_mut().map(|f| &mut f.message);
        let networks = status.networks.iter_mut().map(|n| &mut n.message);
        failures.chain(networks).for_each(|message| clip(message, length));
        if !fits(status) {
            status
                .conditions
                .iter_mut()
                .for_each(|condition| clip(&mut condition.message, length));
        }
    }
    while !fits(status) && !status.failures.is_empty() {
        let half = status.failures.len() / 2;
        status.failures.truncate(half);
    }
    while !fits(status) && !status.refused.is_empty() {
        let half = status.refused.len() / 2;
        status.refused.truncate(half);
    }
    if !fits(status) {
        for interface in &mut status.interfaces {
            interface.mac.clear();
        }
    }
    if !fits(status) {
        status.interfaces.retain(|interface| !interface.addresses.is_empty());
    }
}

fn fits(status: &GatewayNodeStatus) -> bool {
    // A status that is no JSON cannot be written either.
    serde_json::to_vec(status).map_or(0, |json| json.len()) <= BUDGET
}

/// Cuts a text to so many characters, and shows that it was.
fn clip(text: &mut String, length: usize) {
    if let Some((end, _)) = text.char_indices().nth(length) {
        text.truncate(end);
        text.pop();
        text.push('…');
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::api::conditions::{NodeFinding, node};
    use crate::api::gatewaynode::{FailureReport, InterfaceStatus, NetworkReport, Role};
    use crate::api::reasons::{self, types};

    /// A gateway of `networks` networks, each with an inside interface of its own, and so many failures with messages of that length.
    fn gateway(networks: u32, failures: u32, length: usize) -> GatewayNodeStatus {
        let kinds = [
            types::PERMISSIONS,
            types::BACKEND,
            types::LOCK,
            types::INTERFACES,
            types::REVERSE_PATH_FILTER,
            types::CONNTRACK_ROOM,
            types::FENCE,
            types::READY,
        ];
        let finding = |kind| NodeFinding {
            kind,
            status: Some(true),
            reason: reasons::AS_NEEDED,
            message: "x".repeat(length),
        };
        let findings: Vec<NodeFinding> = kinds.into_iter().map(finding).collect();
        GatewayNodeStatus {
            conditions: node(&findings, 0, &[], jiff::Timestamp::UNIX_EPOCH),
            interfaces: (0..=networks)
                .map(|n| InterfaceStatus {
                    name: format!("snbr{n}"),
                    index: n + 2,
                    mtu: 1500,
                    up: true,
                    mac: "02:00:00:00:00:01".into(),
                    addresses: vec![format!("10.{n}.0.1/16")],
                })
                .collect(),
            networks: (0..networks)
                .map(|n| NetworkReport {
                    name: format!("restore-of-tenant-{n}"),
                    role: Role::Standby,
                    observed_generation: 3,
                    fenced: true,
                    programmed: 200,
                    synced_resource_version: "123456789".into(),
                    reason: String::new(),
                    message: String::new(),
                })
                .collect(),
            failures: (0..failures)
                .map(|n| FailureReport {
                    namespace: "default".into(),
                    name: format!("vm{n}"),
                    reason: reasons::ADDRESS_IN_USE.into(),
                    message: "ä".repeat(length),
                })
                .collect(),
            failure_count: failures,
            ..GatewayNodeStatus::default()
        }
    }

    fn fitted(mut status: GatewayNodeStatus) -> GatewayNodeStatus {
        fit(&mut status);
        status
    }

    #[test]
    fn what_fits_is_left_as_it_is() {
        for status in [GatewayNodeStatus::default(), gateway(3, 4, 200), gateway(50, 0, 80)] {
            assert_eq!(fitted(status.clone()), status);
        }
    }

    #[test]
    fn fifty_networks_and_as_many_failures_as_there_can_be_fit() {
        let before = gateway(50, 32, 1024);
        let after = fitted(before.clone());
        assert!(fits(&after), "{}", serde_json::to_vec(&after).unwrap().len());
        assert_eq!(after.networks, before.networks);
        assert_eq!(after.interfaces.len(), before.interfaces.len());
        assert_eq!(after.failure_count, 32);
        assert!(!after.failures.is_empty() && after.failures.iter().zip(&before.failures).all(|(a, b)| a.name == b.name));
        assert!(after.failures.iter().all(|f| f.message.ends_with('…')));
    }

    #[test]
    fn what_others_decide_by_is_never_cut() {
        let before = gateway(200, 32, 1024);
        let after = fitted(before.clone());
        assert_eq!(after.networks, before.networks);
        let addresses = |status: &GatewayNodeStatus| status.interfaces.iter().map(|i| i.addresses.clone()).collect::<Vec<_>>();
        assert_eq!(addresses(&after), addresses(&before));
        assert!(
            after
                .conditions
                .iter()
                .zip(&before.conditions)
                .all(|(a, b)| (&a.type_, &a.status, &a.reason) == (&b.type_, &b.status, &b.reason))
        );
    }

    /// Cut again, nothing changes: a status that is written is compared with the next one.
    #[test]
    fn cutting_twice_is_cutting_once() {
        let once = fitted(gateway(50, 32, 1024));
        assert_eq!(fitted(once.clone()), once);
    }
}
