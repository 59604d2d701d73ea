//! What was allowed and is no more: the rules go, with everything else that made the claim reachable, and come back with the permission.

use std::sync::Arc;

use stagenet::agent::kept::Kept;
use stagenet::agent::source::Snapshot;
use stagenet::api::reasons;

use crate::{NETWORK, converged, host, mapping, pass, snapshot, state};

/// The seed's network with one more line, and a mapping in namespace default.
fn with(line: &str, more: &str, claim: &str) -> Arc<Snapshot> {
    snapshot(&format!("{NETWORK}  {line}\n{}{claim}{more}", mapping("vm03", 3, 3)))
}

#[tokio::test]
async fn whatever_is_withdrawn_takes_its_rules_away() {
    let team = "allowedNamespaces: {from: Selector, selector: {matchLabels: {team: staging}}}";
    let namespace = |labels: &str| format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: default, labels: {labels}}}\n");
    let helper = "  ports: [{protocol: TCP, port: 21}]\n  helpers: [{name: ftp, port: 21}]\n";
    for (allowed, withdrawn, reason) in [
        (
            with(team, &namespace("{team: staging}"), ""),
            with(team, &namespace("{}"), ""),
            reasons::NAMESPACE_NOT_ALLOWED,
        ),
        (
            with(team, &namespace("{team: staging}"), ""),
            with(team, "", ""),
            reasons::NAMESPACE_NOT_ALLOWED,
        ),
        (with("clampMSS: false", "", ""), with(team, "", ""), reasons::NAMESPACE_NOT_ALLOWED),
        (
            with("protected: [10.0.0.0/8]", "", ""),
            with("protected: [192.168.100.3/32]", "", ""),
            reasons::PROTECTED,
        ),
        (
            with("allowedHelpers: [ftp]", "", helper),
            with("allowedHelpers: [tftp]", "", helper),
            reasons::HELPER_NOT_ALLOWED,
        ),
    ] {
        let (host, mut kept) = (host(), Kept::default());
        let outcome = pass(&host, &mut kept, &allowed).await;
        assert_eq!(outcome.mappings.len(), 1, "{reason}: {:?}", outcome.verdicts.mappings);
        let standing = state(&host);
        assert!(standing.contains("192.168.100.3"), "{standing}");

        let outcome = pass(&host, &mut kept, &withdrawn).await;
        assert!(outcome.complete && outcome.mappings.is_empty(), "{:?}", outcome.troubles);
        let verdict = outcome.verdicts.mappings.values().next().unwrap();
        assert_eq!(verdict.accepted.as_ref().unwrap_err().reason, reason);
        assert!(!state(&host).contains("192.168.100.3"), "{reason}: {}", state(&host));
        // A table that was looked at has its empty built-in chains ever after.
        let held = |state: String| {
            state
                .lines()
                .filter(|l| !l.starts_with("V4 raw :"))
                .map(|l| format!("{l}\n"))
                .collect::<String>()
        };
        assert_eq!(
            held(state(&host)),
            held(converged(&[withdrawn]).await),
            "{reason}: nothing else is left of it"
        );

        pass(&host, &mut kept, &allowed).await;
        assert_eq!(state(&host), standing, "{reason}: it comes back with the permission");
    }
}
