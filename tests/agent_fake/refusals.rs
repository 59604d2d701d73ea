//! What the kernel or a tool refuses: the culprit is found and left out, all else stays as it was.

use std::sync::Arc;

use stagenet::agent::kept::Kept;
use stagenet::agent::outcome::Outcome;
use stagenet::agent::runner::Report;
use stagenet::agent::source::Snapshot;
use stagenet::api::reasons;
use stagenet::host::fake::{Call, Write};
use stagenet::plan::MappingState;

use crate::{NETWORK, assert_never_open, boom, converged, facts, host, interface, mapping, one, pass, snapshot, state, two};

#[tokio::test]
async fn a_refused_mapping_is_left_out_and_harms_nobody() {
    let (host, mut kept) = (host(), Kept::default());
    host.refuse("192.168.200.4", "No such file or directory");
    let outcome = pass(&host, &mut kept, &two()).await;
    assert!(outcome.complete && outcome.troubles.is_empty(), "{:?}", outcome.troubles);
    let states: Vec<_> = outcome.mappings.values().collect();
    assert!(matches!(states[0], MappingState::Planned { .. }));
    let MappingState::Failed(why) = states[1] else {
        panic!("{states:?}")
    };
    assert_eq!(why.reason, reasons::RESTORE_REJECTED);
    assert!(
        why.message.contains("line") && why.message.contains("192.168.200.4"),
        "the line is named: {}",
        why.message
    );
    assert_eq!(state(&host), converged(&[one()]).await);

    let writes = host.writes();
    pass(&host, &mut kept, &two()).await;
    assert_eq!(host.writes(), writes, "it is not tried again and again");
    host.mend();
    kept.doubt_all();
    pass(&host, &mut kept, &two()).await;
    assert_eq!(state(&host), converged(&[two()]).await, "the slow check tries it again");
}

/// Mappings of 192.168.100.10 and the following addresses, all to the same last octet inside.
fn many(count: u8) -> Arc<Snapshot> {
    let mappings: String = (10..10 + count).map(|n| mapping(&format!("vm{n}"), n, n)).collect();
    snapshot(&format!("{NETWORK}{}{mappings}", mapping("vm03", 3, 3)))
}

fn failed(outcome: &Outcome) -> Vec<(&str, &str)> {
    let failed = outcome.mappings.iter().filter_map(|(key, state)| match state {
        MappingState::Failed(why) => Some((&*key.name, why.message.as_str())),
        MappingState::Planned { .. } => None,
    });
    failed.collect()
}

/// The legacy tools say that a table was refused, and not for which rule.
#[tokio::test]
async fn a_mapping_that_the_kernel_refuses_without_naming_it_is_found() {
    let (host, mut kept) = (host(), Kept::default());
    pass(&host, &mut kept, &one()).await;
    host.refuse_table("192.168.200.37", "Invalid argument");
    let (restores, writes) = (host.count(Call::Restore), host.writes());
    let outcome = pass(&host, &mut kept, &many(40)).await;
    assert!(outcome.complete && outcome.troubles.is_empty(), "{:?}", outcome.troubles);
    let [("vm37", why)] = failed(&outcome)[..] else {
        panic!("{:?}", failed(&outcome))
    };
    assert!(
        why.contains("-A SNET-") && why.contains("--to-destination 192.168.200.37") && why.contains("Invalid argument"),
        "the rule is named: {why}"
    );
    let spent = host.count(Call::Restore) - restores;
    assert!(
        spent <= 2 * 6 + 2 + 2,
        "{spent} restores: a refused one, 13 trials at most, the clearing up, and one that is taken"
    );
    assert_eq!(outcome.mappings.len(), 41);
    assert!(!host.dump().contains("SNET-TRY") && !host.dump().contains("192.168.200.37"));
    assert_never_open(&host);
    for write in host.journal().into_iter().skip(writes) {
        let Write::Restore { text, .. } = write else { continue };
        let live = text.lines().filter(|l| l.starts_with(':')).any(|l| !l.starts_with(":SNET-TRY"));
        assert!(
            !live || text.contains("--to-destination 192.168.200.3\n"),
            "what is in force is not touched by a trial:\n{text}"
        );
    }

    host.mend();
    kept.doubt_all();
    pass(&host, &mut kept, &many(40)).await;
    assert_eq!(state(&host), converged(&[many(40)]).await);
}

#[tokio::test]
async fn several_unnamed_culprits_are_found_in_a_few_bounded_passes() {
    let (host, mut kept) = (host(), Kept::default());
    for culprit in [11, 12, 29, 45] {
        host.refuse_table(&format!("-to-destination 192.168.200.{culprit}"), "Invalid argument");
    }
    for number in 1.. {
        let restores = host.count(Call::Restore);
        let outcome = pass(&host, &mut kept, &many(40)).await;
        assert!(host.count(Call::Restore) - restores <= 40, "the work of one pass is bounded");
        assert_never_open(&host);
        if !outcome.failed() {
            let names: Vec<_> = failed(&outcome).into_iter().map(|(name, _)| name.to_owned()).collect();
            assert_eq!(names, ["vm11", "vm12", "vm29", "vm45"]);
            break;
        }
        assert!(number < 5, "{:?}", outcome.troubles);
    }
}

#[tokio::test]
async fn an_unnamed_refusal_that_is_no_mappings_fault_keeps_the_last_good_state() {
    let (host, mut kept) = (host(), Kept::default());
    pass(&host, &mut kept, &one()).await;
    let good = state(&host);
    host.refuse_table(":SNET-DNAT", "Cannot allocate memory");
    let outcome = pass(&host, &mut kept, &two()).await;
    assert!(outcome.failed() && outcome.quarantined.is_empty());
    let trouble = &outcome.troubles[0].message;
    assert!(
        trouble.contains("Cannot allocate memory") && trouble.contains("no rule of a mapping"),
        "{trouble}"
    );
    assert_eq!(state(&host), good);
}

/// A kernel out of memory names the rule at which it had none left. If that rule stands already, its mapping has done nothing and keeps what it has.
#[tokio::test]
async fn a_refusal_that_names_a_rule_that_stands_takes_nothing_away() {
    let (host, mut kept) = (host(), Kept::default());
    pass(&host, &mut kept, &one()).await;
    let good = state(&host);
    host.refuse("-to-destination 192.168.200.3", "Cannot allocate memory");
    let outcome = pass(&host, &mut kept, &two()).await;
    assert!(outcome.failed() && outcome.quarantined.is_empty(), "{:?}", outcome.quarantined);
    assert!(
        outcome.troubles[0].message.contains("Cannot allocate memory"),
        "{:?}",
        outcome.troubles
    );
    assert_eq!(state(&host), good);
    host.mend();
    assert!(pass(&host, &mut kept, &two()).await.complete);
    assert_eq!(state(&host), converged(&[two()]).await);
}

/// The agent dies or the kernel fails in another way in the midst of looking for a culprit.
#[tokio::test]
async fn a_search_for_a_culprit_that_is_cut_short_leaves_nothing() {
    let wanted = converged(&[many(3)]).await;
    for number in 1..=40 {
        let (host, mut kept) = (host(), Kept::default());
        pass(&host, &mut kept, &one()).await;
        host.refuse_table("192.168.200.11", "Invalid argument");
        host.fail_at(number, boom());
        pass(&host, &mut kept, &many(3)).await;
        assert_never_open(&host);
        host.mend();
        let healed = pass(&host, &mut Kept::default(), &many(3)).await;
        assert!(!healed.failed(), "call {number}: {:?}", healed.troubles);
        assert_eq!(state(&host), wanted, "call {number}");
    }
}

#[tokio::test]
async fn a_refused_rule_of_the_product_keeps_the_last_good_state() {
    let (host, mut kept) = (host(), Kept::default());
    pass(&host, &mut kept, &one()).await;
    let good = state(&host);
    host.refuse(":SNET-DNAT", "Operation not supported");
    let outcome = pass(&host, &mut kept, &two()).await;
    assert!(outcome.failed() && !outcome.complete);
    assert_eq!(outcome.troubles[0].reason, reasons::RESTORE_REJECTED);
    assert!(outcome.troubles[0].message.contains("line"), "{}", outcome.troubles[0].message);
    assert_eq!(state(&host), good);
}

#[tokio::test]
async fn a_held_lock_is_waited_for_and_named() {
    let (host, mut kept) = (host(), Kept::default());
    host.hold_lock("firewalld (pid 7)");
    let outcome = pass(&host, &mut kept, &one()).await;
    assert!(!outcome.complete);
    assert_eq!(outcome.troubles[0].reason, reasons::LOCK_HELD);
    assert!(outcome.troubles[0].message.contains("firewalld (pid 7)"));
    assert_eq!(
        host.settings(&interface("eth1")).unwrap().forwarding,
        Some(false),
        "no fence, no forwarding"
    );
    host.mend();
    assert!(pass(&host, &mut kept, &one()).await.complete);
}

/// The node has more addresses than it reports: what it refuses for one of them the controller cannot know, unless it is told.
#[tokio::test]
async fn what_a_node_refuses_by_what_only_it_knows_is_reported() {
    let (host, mut kept) = (host(), Kept::default());
    let mut many = facts(7, "10.77.0.1/24");
    many.addresses = (1..=20).map(|n| format!("192.168.100.{}/32", 100 + n).parse().unwrap()).collect();
    host.add_interface("kube-ipvs0", many);
    let own = mapping("own", 120, 9);
    let objects = snapshot(&format!("{NETWORK}{}{own}", mapping("vm03", 3, 3)));
    let report = Report {
        outcome: pass(&host, &mut kept, &objects).await,
        snapshot: objects,
        by: None,
        contended: false,
    };
    let status = stagenet::agent::report::status::node(&report, 1, None, k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
    let listed = &status.interfaces.iter().find(|i| i.name == "kube-ipvs0").unwrap().addresses;
    assert!(!listed.contains(&"192.168.100.120/32".to_owned()), "the list is cut");
    let refused: Vec<_> = status.refused.iter().map(|r| (&*r.name, &*r.reason)).collect();
    assert_eq!(
        (refused.as_slice(), status.refused_count),
        (&[("own", reasons::ADDRESS_OWNED)][..], 1)
    );
    assert_eq!(status.failure_count, 0);
}
