//! What every condition of an object must say beside its Ready, as `docs/status.md` has it.

use serde_json::Value;

use crate::desk::condition;
use crate::model::Verdict;

/// Type, status and reason.
type Word<'a> = (&'a str, &'a str, &'a str);

/// The conditions of a mapping: these and no others.
pub fn mapping((status, reason): Verdict) -> Vec<Word<'static>> {
    let stands = [("Accepted", "True", "Accepted"), ("ResolvedRefs", "True", "Resolved")];
    let held = ("Programmed", "True", "Programmed");
    let mut words = match (status, reason) {
        ("True", _) => [&stands[..], &[held]].concat(),
        ("Unknown", "GatewaySilent") => [&stands[..], &[("Programmed", status, reason)]].concat(),
        ("Unknown", _) => ["Accepted", "ResolvedRefs", "Programmed"].map(|kind| (kind, status, reason)).into(),
        (_, "Pending") => [&stands[..], &[("Programmed", status, reason), ("Reconciling", "True", reason)]].concat(),
        (_, "LinkDown") => [&stands[..], &[held, ("Reconciling", "True", reason)]].concat(),
        (_, "NetworkNotFound") => vec![
            ("Accepted", status, reason),
            ("ResolvedRefs", status, reason),
            ("Programmed", status, "NotAccepted"),
            ("Reconciling", "True", reason),
        ],
        _ => vec![
            ("Accepted", status, reason),
            stands[1],
            ("Programmed", status, "NotAccepted"),
            ("Stalled", "True", reason),
        ],
    };
    if reason == "Conflict" {
        words.push(("Conflicted", "True", reason));
    }
    words.push(("Ready", status, reason));
    words
}

/// The conditions of a network.
pub fn network((status, reason): Verdict) -> Vec<Word<'static>> {
    let stands = ("Accepted", "True", "Accepted");
    let held = ("Programmed", "True", "Programmed");
    let ready = ("Ready", status, reason);
    match status {
        "True" => vec![stands, held, ready],
        "Unknown" if reason == "Unreadable" => vec![("Accepted", status, reason), ("Programmed", status, reason), ready],
        "Unknown" => vec![stands, ("Programmed", status, reason), ready],
        _ => vec![stands, held, ("Reconciling", "True", reason), ready],
    }
}

/// How an object's conditions differ from these. None: they do not, and all are about the object as it is.
pub fn differ(object: &Value, mut words: Vec<Word<'_>>) -> Option<String> {
    let conditions = object["status"]["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    let text = |condition: &Value, field: &str| condition[field].as_str().unwrap_or_default().to_owned();
    let mut told: Vec<[String; 3]> = conditions
        .iter()
        .map(|c| ["type", "status", "reason"].map(|field| text(c, field)))
        .collect();
    told.sort();
    words.sort_unstable();
    if !told
        .iter()
        .map(|[kind, status, reason]| (kind.as_str(), status.as_str(), reason.as_str()))
        .eq(words.iter().copied())
    {
        let messages: Vec<String> = conditions.iter().map(|c| text(c, "message")).collect();
        return Some(format!("should say {words:?}, says {told:?} ({messages:?})"));
    }
    outdated(object)
}

/// What of an object's status is not about the object as it is, or says nothing.
fn outdated(object: &Value) -> Option<String> {
    let (generation, status) = (&object["metadata"]["generation"], &object["status"]);
    let conditions = status["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    let all = conditions
        .iter()
        .map(|c| &c["observedGeneration"])
        .chain([&status["observedGeneration"]]);
    let late: Vec<_> = all.filter(|observed| *observed != generation).collect();
    if !late.is_empty() {
        return Some(format!("is of generation {generation}, and conditions speak of {late:?}"));
    }
    conditions
        .iter()
        .any(|c| c["message"].as_str().unwrap_or_default().is_empty())
        .then(|| format!("has a condition that says nothing: {status}"))
}

/// How a gateway's report differs from what it must say. `unread`: there is an object that it cannot read; `fought`: somebody else changed its kernel lately.
pub fn gateway(object: &Value, unread: bool, fought: bool) -> Option<String> {
    for kind in ["Permissions", "Backend", "Interfaces", "Fence"] {
        if condition(object, kind)[0] != "True" {
            return Some(format!("should say {kind}=True, says {:?}", condition(object, kind)));
        }
    }
    let [status, reason, message] = condition(object, "Ready");
    let drifted = condition(object, "Drifted");
    let (holds, cannot) = (message.contains("--mass-removal-guard"), message.contains("cannot be decoded"));
    let right = match (status, reason) {
        ("True", "AsPlanned") => !unread && drifted[0].is_empty(),
        // One word for both, and the rest behind it.
        ("False", _) if !drifted[0].is_empty() => fought && drifted == ["True", reason, message] && (cannot || !unread),
        // What was deleted while nobody could follow may be held for a while.
        ("False", "Degraded") => holds || unread && cannot,
        _ => false,
    };
    if right {
        outdated(object)
    } else {
        Some(format!("says Ready={status} {reason} ({message}), Drifted {drifted:?}"))
    }
}
