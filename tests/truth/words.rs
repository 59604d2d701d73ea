//! What every condition of an object must say beside its Ready, as `docs/status.md` has it.

use serde_json::Value;

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
    let generation = &object["metadata"]["generation"];
    let status = &object["status"];
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
        .any(|c| text(c, "message").is_empty())
        .then(|| format!("has a condition that says nothing: {status}"))
}
