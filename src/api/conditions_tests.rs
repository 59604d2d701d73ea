#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn facts(programmed: Programmed) -> MappingFacts {
    MappingFacts {
        generation: 3,
        accepted: Ok(()),
        resolved_refs: Ok(()),
        found: None,
        conflicted: false,
        programmed,
        impaired: None,
    }
}

fn refused(reason: &str) -> MappingFacts {
    MappingFacts {
        accepted: Err(Finding::new(reason, "why")),
        ..facts(Programmed::Yes("must not be looked at".into()))
    }
}

/// `Type=Status/Reason` of each condition, in order.
fn words(conditions: &[Condition]) -> Vec<String> {
    conditions
        .iter()
        .map(|c| format!("{}={}/{}", c.type_, c.status, c.reason))
        .collect()
}

#[test]
fn a_mapping_in_every_kernel_is_ready_and_nothing_else() {
    let got = mapping(&facts(Programmed::Yes("in the kernel of vm02".into())), &[], at(100));
    assert_eq!(
        words(&got),
        [
            "Accepted=True/Accepted",
            "ResolvedRefs=True/Resolved",
            "Programmed=True/Programmed",
            "Ready=True/Ready"
        ]
    );
    assert!(
        got.iter()
            .all(|c| c.observed_generation == Some(3) && c.last_transition_time == Time(at(100)))
    );
}

#[test]
fn refused_for_good_is_stalled_and_programs_nothing() {
    for reason in [
        reasons::INVALID,
        reasons::POOL,
        reasons::PROTECTED,
        reasons::TARGET_OUTSIDE,
        reasons::ADDRESS_OWNED,
        reasons::NETWORK_NOT_ACCEPTED,
    ] {
        assert_eq!(
            words(&mapping(&refused(reason), &[], at(0))),
            [
                format!("Accepted=False/{reason}"),
                "ResolvedRefs=True/Resolved".into(),
                "Programmed=False/NotAccepted".into(),
                format!("Ready=False/{reason}"),
                format!("Stalled=True/{reason}"),
            ]
        );
    }
}

#[test]
fn the_loser_of_a_conflict_is_conflicted_and_stalled() {
    let loser = MappingFacts {
        conflicted: true,
        ..refused(reasons::CONFLICT)
    };
    let got = words(&mapping(&loser, &[], at(0)));
    assert!(
        got.contains(&"Conflicted=True/Conflict".into()) && got.contains(&"Stalled=True/Conflict".into()),
        "{got:?}"
    );
    let won = mapping(&facts(Programmed::Yes(String::new())), &mapping(&loser, &[], at(0)), at(9));
    assert!(find(&won, types::CONFLICTED).is_none() && find(&won, types::STALLED).is_none());
}

#[test]
fn a_missing_network_is_waited_for() {
    let why = Finding::new(reasons::NETWORK_NOT_FOUND, "there is no StagingNetwork segment-b");
    let waiting = MappingFacts {
        resolved_refs: Err(why.clone()),
        found: None,
        accepted: Err(why),
        ..facts(Programmed::Yes(String::new()))
    };
    assert_eq!(
        words(&mapping(&waiting, &[], at(0))),
        [
            "Accepted=False/NetworkNotFound",
            "ResolvedRefs=False/NetworkNotFound",
            "Programmed=False/NotAccepted",
            "Ready=False/NetworkNotFound",
            "Reconciling=True/NetworkNotFound",
        ]
    );
}

#[test]
fn waiting_is_reconciling_and_a_broken_node_is_stalled() {
    for (reason, kind) in [
        (reasons::PENDING, types::RECONCILING),
        (reasons::NO_GATEWAY, types::RECONCILING),
        (reasons::ADDRESS_IN_USE, types::RECONCILING),
        (reasons::INTERFACE_MISSING, types::RECONCILING),
        (reasons::LOCK_HELD, types::RECONCILING),
        ("SomethingNewer", types::RECONCILING),
        (reasons::TOOL_MISSING, types::STALLED),
        (reasons::RESTORE_REJECTED, types::STALLED),
    ] {
        let got = mapping(&facts(Programmed::No(Finding::new(reason, "why"))), &[], at(0));
        assert!(is_true(&got, kind), "{reason}");
        assert_eq!(find(&got, types::READY).unwrap().status, "False");
        assert_ne!(is_true(&got, types::RECONCILING), is_true(&got, types::STALLED));
    }
}

#[test]
fn a_silent_gateway_makes_ready_unknown_without_reconciling() {
    let got = mapping(
        &facts(Programmed::Unknown(Finding::new(reasons::GATEWAY_SILENT, "since 12:00"))),
        &[],
        at(0),
    );
    assert_eq!(
        words(&got),
        [
            "Accepted=True/Accepted",
            "ResolvedRefs=True/Resolved",
            "Programmed=Unknown/GatewaySilent",
            "Ready=Unknown/GatewaySilent"
        ]
    );
}

#[test]
fn networks_follow_the_same_rules_without_refs() {
    let facts = NetworkFacts {
        generation: 1,
        accepted: Ok(()),
        programmed: Programmed::No(Finding::new(reasons::NO_GATEWAY, "no node")),
        impaired: None,
        limited: None,
    };
    assert_eq!(
        words(&network(&facts, &[], at(0))),
        [
            "Accepted=True/Accepted",
            "Programmed=False/NoGateway",
            "Ready=False/NoGateway",
            "Reconciling=True/NoGateway"
        ]
    );
}

/// What the spec leaves out is no fault: the network is Ready, and says whom it does not let out.
#[test]
fn a_limited_egress_is_said_beside_ready() {
    let facts = NetworkFacts {
        generation: 1,
        accepted: Ok(()),
        programmed: Programmed::Yes("1/1".into()),
        impaired: None,
        limited: Some(Finding::new(reasons::SOURCE_ADDRESS_MISSING, "over IPv6 only")),
    };
    let got = network(&facts, &[], at(0));
    assert_eq!(
        words(&got),
        [
            "Accepted=True/Accepted",
            "Programmed=True/Programmed",
            "Ready=True/Ready",
            "EgressLimited=True/SourceAddressMissing"
        ]
    );
    assert_eq!(find(&got, types::EGRESS_LIMITED).unwrap().message, "over IPv6 only");
}

#[test]
fn time_moves_only_with_the_status() {
    let first = mapping(&facts(Programmed::No(Finding::new(reasons::PENDING, "a"))), &[], at(10));
    let same = mapping(&facts(Programmed::No(Finding::new(reasons::PENDING, "a"))), &first, at(20));
    assert_eq!(first, same, "an unchanged status must be an equal value");

    let said_otherwise = mapping(&facts(Programmed::No(Finding::new(reasons::LOCK_HELD, "b"))), &first, at(20));
    let ready = find(&said_otherwise, types::READY).unwrap();
    assert_eq!((ready.reason.as_str(), &ready.last_transition_time), ("LockHeld", &Time(at(10))));

    let done = mapping(&facts(Programmed::Yes("c".into())), &first, at(20));
    assert_eq!(find(&done, types::READY).unwrap().last_transition_time, Time(at(20)));
    assert_eq!(find(&done, types::ACCEPTED).unwrap().last_transition_time, Time(at(10)));
}

#[test]
fn times_are_whole_seconds_so_that_what_is_read_back_is_equal() {
    let got = mapping(
        &facts(Programmed::Yes(String::new())),
        &[],
        Timestamp::from_millisecond(1_500).unwrap(),
    );
    let back: Vec<Condition> = serde_json::from_str(&serde_json::to_string(&got).unwrap()).unwrap();
    assert_eq!(got, back);
    assert_eq!(got[0].last_transition_time, Time(at(1)));
}

#[test]
fn node_findings_come_in_the_order_of_the_documentation_once_each() {
    let finding = |kind, status| NodeFinding {
        kind,
        status,
        reason: reasons::AS_NEEDED,
        message: String::new(),
    };
    let got = node(
        &[
            finding(types::FENCE, Some(true)),
            finding(types::BACKEND, None),
            finding(types::FENCE, Some(false)),
            finding(types::READY, Some(true)),
        ],
        1,
        &[],
        at(0),
    );
    assert_eq!(
        words(&got),
        ["Ready=True/AsNeeded", "Backend=Unknown/AsNeeded", "Fence=False/AsNeeded"]
    );
}

#[test]
fn long_messages_end_where_a_character_ends() {
    let long = "ü".repeat(MESSAGE_MAX + 1);
    let got = shorten(&long);
    assert_eq!(got.chars().count(), MESSAGE_MAX);
    assert!(got.ends_with("ü…"));
    assert_eq!(shorten(&"x".repeat(MESSAGE_MAX)).len(), MESSAGE_MAX);
    assert_eq!(shorten("two\nlines\u{7}"), "two lines ");
}

#[test]
fn every_final_reason_is_documented() {
    for reason in FINAL {
        assert!(reasons::describe(reason).is_some(), "{reason}");
    }
}

#[test]
fn what_is_programmed_but_lacks_something_is_not_ready() {
    let missing = Finding::new(reasons::HELPER_MISSING, "no ftp");
    let without = MappingFacts {
        resolved_refs: Err(missing.clone()),
        found: None,
        impaired: Some(missing),
        ..facts(Programmed::Yes("in the kernel".into()))
    };
    assert_eq!(
        words(&mapping(&without, &[], at(0))),
        [
            "Accepted=True/Accepted",
            "ResolvedRefs=False/HelperMissing",
            "Programmed=True/Programmed",
            "Ready=False/HelperMissing",
            "Stalled=True/HelperMissing"
        ]
    );
    let down = MappingFacts {
        impaired: Some(Finding::new(reasons::LINK_DOWN, "eth1")),
        ..facts(Programmed::Yes("in the kernel".into()))
    };
    assert_eq!(
        words(&mapping(&down, &[], at(0)))[2..],
        ["Programmed=True/Programmed", "Ready=False/LinkDown", "Reconciling=True/LinkDown"]
    );
}
