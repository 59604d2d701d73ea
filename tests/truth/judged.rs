//! Whatever the arithmetic of conditions can say is in order for the judges that are not ours, also what the scenario does not come to.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use stagenet::api::conditions::{self, Finding, MappingFacts, NetworkFacts, Programmed};
use stagenet::api::reasons::{self, Polarity, types};

use crate::lab;
use crate::model;
use crate::tools::{self, Judges};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;
const GENERATION: i64 = 3;

fn object(kind: &str, conditions: &[Condition]) -> Value {
    json!({
        "apiVersion": "stagenet.dev/v1alpha1", "kind": kind, "metadata": {"name": "a", "generation": GENERATION},
        "status": {"observedGeneration": GENERATION, "conditions": conditions},
    })
}

/// Whether it is programmed, with all that may be the matter besides.
fn ways(why: Finding) -> impl Iterator<Item = (Programmed, [bool; 3])> {
    let programmed = [
        Programmed::Yes("in all".to_owned()),
        Programmed::No(why.clone()),
        Programmed::Unknown(why),
    ];
    let all = |programmed: Programmed| (0..8).map(move |bits| (programmed.clone(), [1, 2, 4].map(|bit| bits & bit != 0)));
    programmed.into_iter().flat_map(all)
}

/// Everything that can be said of mappings with one reason.
fn mappings(reason: &str) -> Vec<Vec<Condition>> {
    let why = || Finding::new(reason, format!("why {reason}"));
    let found = |refused: bool| if refused { Err(why()) } else { Ok(()) };
    let mut all = vec![conditions::undecided(GENERATION, &why(), &[], NOW)];
    all.extend(ways(why()).map(|(programmed, [refused, lacks, impaired])| {
        let facts = MappingFacts {
            generation: GENERATION,
            accepted: found(refused),
            resolved_refs: found(lacks),
            found: None,
            conflicted: refused && reason == reasons::CONFLICT,
            programmed,
            impaired: impaired.then(why),
        };
        conditions::mapping(&facts, &[], NOW)
    }));
    all
}

/// The same of networks.
fn networks(reason: &str) -> Vec<Vec<Condition>> {
    let why = || Finding::new(reason, format!("why {reason}"));
    let all = ways(why()).map(|(programmed, [refused, limited, impaired])| {
        let facts = NetworkFacts {
            generation: GENERATION,
            accepted: if refused { Err(why()) } else { Ok(()) },
            programmed,
            impaired: impaired.then(why),
            limited: limited.then(why),
        };
        conditions::network(&facts, &[], NOW)
    });
    all.collect()
}

#[test]
fn judges_find_no_fault_with_what_can_be_said() {
    if lab::without_api() {
        eprintln!(
            "SKIPPED judges_find_no_fault_with_what_can_be_said: labs on a real API server are skipped, and their tools are not built"
        );
        return;
    }
    let mut judges = Judges::seated(&tools::built());
    let mut heard = std::collections::BTreeSet::new();
    for doc in reasons::ALL {
        let said = mappings(doc.reason).into_iter().map(|said| ("NatMapping", said));
        for (kind, said) in said.chain(networks(doc.reason).into_iter().map(|said| ("StagingNetwork", said))) {
            heard.extend(said.iter().map(|condition| condition.type_.clone()));
            let object = object(kind, &said);
            assert_eq!(judges.kstatus(&object).as_deref(), Ok(model::kstatus(&object)), "{object}");
        }
    }
    for doc in types::ALL {
        let ours = doc.on.contains("NatMapping") || doc.on.contains("StagingNetwork");
        assert!(!ours || heard.contains(doc.name), "nobody said {}", doc.name);
    }
}

/// Every type that is bad by being True is known to the judges as such.
#[test]
fn judges_know_what_is_bad() {
    if lab::without_api() {
        eprintln!("SKIPPED judges_know_what_is_bad: labs on a real API server are skipped, and their tools are not built");
        return;
    }
    let mut judges = Judges::seated(&tools::built());
    for doc in types::ALL.iter().filter(|doc| doc.name != types::READY) {
        let say = |kind: &str| Condition {
            type_: kind.to_owned(),
            status: "True".to_owned(),
            reason: "Because".to_owned(),
            message: "because".to_owned(),
            observed_generation: Some(GENERATION),
            last_transition_time: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(NOW),
        };
        let verdict = judges.kstatus(&object("NatMapping", &[say(doc.name), say(types::READY)]));
        assert_eq!(verdict.is_err(), doc.polarity == Polarity::Bad, "{}: {verdict:?}", doc.name);
    }
}
