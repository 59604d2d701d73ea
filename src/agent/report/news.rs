//! What of a pass a person should be told: drift that was repaired, what could not be done, addresses that somebody else has. Pure.

use crate::agent::runner::Report;
use crate::api::{conditions, reasons};
use crate::controller::publish::Notice;
use crate::plan::{MappingKey, MappingState};

/// Repairs of one pass that are told; with a whole table gone the first say enough.
const REPAIRS_MAX: usize = 8;
/// Troubles and failures of one pass that are told.
const LASTING_MAX: usize = 16;

/// Something to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// The mapping that it is about; None: the node.
    pub mapping: Option<MappingKey>,
    /// A constant of [`reasons`].
    pub reason: &'static str,
    /// What is, why, what next.
    pub message: String,
}

impl News {
    /// As it is said of the node's `GatewayNode`.
    pub fn notice(&self) -> Notice {
        let message = without_processes(&self.message);
        let note = match &self.mapping {
            Some(key) => format!("NatMapping {key}: {message}"),
            None => message,
        };
        Notice {
            warning: true,
            reason: self.reason.to_owned(),
            action: "Programming",
            note: conditions::shorten(&note),
        }
    }
}

/// What has been told and still holds.
#[derive(Debug, Default)]
pub struct Told(Vec<News>);

impl Told {
    /// The news of a pass. A repair is told each time; what lasts is told when it begins.
    pub fn news(&mut self, report: &Report) -> Vec<News> {
        let outcome = &report.outcome;
        let by = report.by.as_ref().map(|by| format!(", by {by}")).unwrap_or_default();
        let repaired = outcome
            .drift
            .iter()
            .filter(|_| outcome.complete)
            .take(REPAIRS_MAX)
            .map(|drift| News {
                mapping: None,
                reason: reasons::DRIFT_REPAIRED,
                message: format!("{}{by}; put back", drift.what),
            });
        let troubles = outcome.troubles.iter().map(|trouble| News {
            mapping: None,
            reason: trouble.reason,
            message: trouble.message.clone(),
        });
        let failures = outcome.mappings.iter().filter_map(|(key, state)| match state {
            MappingState::Failed(why) if [reasons::ADDRESS_IN_USE, reasons::RESTORE_REJECTED].contains(&why.reason) => Some(News {
                mapping: Some(key.clone()),
                reason: why.reason,
                message: why.message.clone(),
            }),
            _ => None,
        });
        let lasting: Vec<News> = troubles.chain(failures).take(LASTING_MAX).collect();
        let fresh = lasting.iter().filter(|news| !self.0.contains(news)).cloned();
        let news = repaired.chain(fresh).collect();
        self.0 = lasting;
        news
    }
}

/// A sentence without its process numbers, `iptables (pid 99)`: the same thing done by the same program is the same, whichever process it was. The log has the number.
fn without_processes(sentence: &str) -> String {
    let mut parts = sentence.split(" (pid ");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once(')') {
            Some((number, rest)) if number.chars().all(|c| c.is_ascii_digit()) => text.push_str(rest),
            _ => {
                text.push_str(" (pid ");
                text.push_str(part);
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::agent::outcome::{Drift, Outcome, Trouble};
    use crate::agent::source::Snapshot;
    use crate::plan::Refusal;

    fn report(drift: &[&str], trouble: &[&str], taken: &[&str]) -> Report {
        let outcome = Outcome {
            complete: true,
            drift: drift
                .iter()
                .map(|what| Drift {
                    place: "mangle",
                    what: (*what).to_owned(),
                })
                .collect(),
            troubles: trouble
                .iter()
                .map(|said| Trouble {
                    reason: reasons::APPLY_FAILED,
                    message: (*said).to_owned(),
                })
                .collect(),
            mappings: taken
                .iter()
                .map(|name| {
                    let key = MappingKey {
                        namespace: "default".into(),
                        name: (*name).into(),
                    };
                    let refusal = Refusal {
                        reason: reasons::ADDRESS_IN_USE,
                        message: "02:00:00:00:00:07 answers".to_owned(),
                    };
                    (key, MappingState::Failed(refusal))
                })
                .collect(),
            ..Outcome::default()
        };
        Report {
            snapshot: Arc::new(Snapshot::default()),
            outcome,
            by: Some("iptables (pid 99)".to_owned()),
            contended: false,
        }
    }

    fn reasons_of(news: &[News]) -> Vec<&'static str> {
        news.iter().map(|news| news.reason).collect()
    }

    #[test]
    fn a_repair_is_told_each_time_and_what_lasts_when_it_begins() {
        let mut told = Told::default();
        let first = report(&["a chain is gone"], &["no"], &["a"]);
        assert_eq!(
            reasons_of(&told.news(&first)),
            [reasons::DRIFT_REPAIRED, reasons::APPLY_FAILED, reasons::ADDRESS_IN_USE]
        );
        assert_eq!(
            reasons_of(&told.news(&first)),
            [reasons::DRIFT_REPAIRED],
            "undone and repaired anew"
        );
        assert_eq!(told.news(&report(&[], &[], &[])), []);
        assert_eq!(
            reasons_of(&told.news(&report(&[], &["no"], &[]))),
            [reasons::APPLY_FAILED],
            "it failed anew"
        );
        let more = told.news(&report(&[], &["no"], &["a", "b"]));
        let names: Vec<String> = more.iter().map(|news| news.notice().note).collect();
        assert_eq!(
            names,
            [
                "NatMapping default/a: 02:00:00:00:00:07 answers",
                "NatMapping default/b: 02:00:00:00:00:07 answers"
            ]
        );
    }

    #[test]
    fn the_same_program_is_the_same_whichever_process_it_was() {
        let news = Told::default().news(&report(&["a chain is gone"], &[], &[]));
        assert_eq!(news[0].message, "a chain is gone, by iptables (pid 99); put back");
        assert_eq!(news[0].notice().note, "a chain is gone, by iptables; put back");
        assert_eq!(without_processes("by a (pid 1), b (pid 22)"), "by a, b");
        assert_eq!(without_processes("the word (pid x) stays (pid "), "the word (pid x) stays (pid ");
    }
}
