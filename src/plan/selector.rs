//! Label selectors as the API server evaluates them (`metav1.LabelSelectorAsSelector`), without an API client.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

/// Whether `labels` satisfy all of `selector`. An empty selector selects everything. A requirement that [`problem`] objects to selects nothing.
pub(super) fn matches(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let equal = selector
        .match_labels
        .iter()
        .flatten()
        .all(|(key, value)| labels.get(key) == Some(value));
    equal && selector.match_expressions.iter().flatten().all(|r| holds(r, labels))
}

fn holds(requirement: &LabelSelectorRequirement, labels: &BTreeMap<String, String>) -> bool {
    if problem(requirement).is_some() {
        return false;
    }
    let present = labels.get(&requirement.key);
    let listed = present.is_some_and(|value| requirement.values.iter().flatten().any(|v| v == value));
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => present.is_some(),
        "DoesNotExist" => present.is_none(),
        _ => false,
    }
}

/// What is wrong with a requirement.
pub(super) fn problem(requirement: &LabelSelectorRequirement) -> Option<&'static str> {
    let values = requirement.values.as_ref().is_some_and(|v| !v.is_empty());
    if requirement.key.is_empty() {
        return Some("key must not be empty");
    }
    match (requirement.operator.as_str(), values) {
        ("In" | "NotIn", true) | ("Exists" | "DoesNotExist", false) => None,
        ("In" | "NotIn", false) => Some("values must be given with the operators In and NotIn"),
        ("Exists" | "DoesNotExist", true) => Some("values must not be given with the operators Exists and DoesNotExist"),
        _ => Some("operator must be In, NotIn, Exists or DoesNotExist"),
    }
}

/// A selector that was validated. Displayed as `kubectl get --selector` takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Is,
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

impl Selector {
    /// None if [`problem`] objects to a requirement.
    pub(super) fn new(raw: &LabelSelector) -> Option<Self> {
        let equal = raw.match_labels.iter().flatten().map(|(key, value)| {
            Some(Requirement {
                key: key.clone(),
                operator: Operator::Is,
                values: vec![value.clone()],
            })
        });
        let expressions = raw.match_expressions.iter().flatten().map(|raw| {
            let operator = match raw.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                _ => Operator::DoesNotExist,
            };
            problem(raw).is_none().then(|| Requirement {
                key: raw.key.clone(),
                operator,
                values: raw.values.clone().unwrap_or_default(),
            })
        });
        equal.chain(expressions).collect::<Option<_>>().map(Self)
    }

    /// Whether `labels` satisfy all of it.
    pub(super) fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|requirement| {
            let present = labels.get(&requirement.key);
            let listed = present.is_some_and(|value| requirement.values.contains(value));
            match requirement.operator {
                Operator::Is | Operator::In => listed,
                Operator::NotIn => !listed,
                Operator::Exists => present.is_some(),
                Operator::DoesNotExist => present.is_none(),
            }
        })
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("of any kind");
        }
        for (n, Requirement { key, operator, values }) in self.0.iter().enumerate() {
            f.write_str(if n == 0 { "" } else { "," })?;
            let values = values.join(",");
            match operator {
                Operator::Is => write!(f, "{key}={values}")?,
                Operator::In => write!(f, "{key} in ({values})")?,
                Operator::NotIn => write!(f, "{key} notin ({values})")?,
                Operator::Exists => f.write_str(key)?,
                Operator::DoesNotExist => write!(f, "!{key}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn selector(operator: &str, values: &[&str]) -> LabelSelector {
        LabelSelector {
            match_labels: None,
            match_expressions: Some(vec![LabelSelectorRequirement {
                key: "role".into(),
                operator: operator.into(),
                values: (!values.is_empty()).then(|| values.iter().map(ToString::to_string).collect()),
            }]),
        }
    }

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    #[test]
    fn operators() {
        let gateway = labels(&[("role", "gateway")]);
        let none = labels(&[]);
        for (operator, values, on_gateway, on_none) in [
            ("In", &["gateway", "x"][..], true, false),
            ("In", &["x"][..], false, false),
            ("NotIn", &["gateway"][..], false, true),
            ("NotIn", &["x"][..], true, true),
            ("Exists", &[][..], true, false),
            ("DoesNotExist", &[][..], false, true),
            ("Like", &["gateway"][..], false, false),
            ("In", &[][..], false, false),
            ("NotIn", &[][..], false, false),
            ("Exists", &["gateway"][..], false, false),
        ] {
            let s = selector(operator, values);
            assert_eq!(matches(&s, &gateway), on_gateway, "{operator} {values:?} with the label");
            assert_eq!(matches(&s, &none), on_none, "{operator} {values:?} without the label");
            match Selector::new(&s) {
                None => assert!(!on_gateway && !on_none, "{operator} {values:?} cannot be read"),
                Some(valid) => assert_eq!((valid.matches(&gateway), valid.matches(&none)), (on_gateway, on_none)),
            }
        }
    }

    #[test]
    fn it_is_written_as_kubectl_takes_it() {
        let written = |operator, values: &[&str]| Selector::new(&selector(operator, values)).unwrap().to_string();
        assert_eq!(written("In", &["a", "b"]), "role in (a,b)");
        assert_eq!(written("NotIn", &["a"]), "role notin (a)");
        assert_eq!([written("Exists", &[]), written("DoesNotExist", &[])], ["role", "!role"]);
        let mut both = selector("Exists", &[]);
        both.match_labels = Some(labels(&[("a", "1"), ("b", "2")]));
        assert_eq!(Selector::new(&both).unwrap().to_string(), "a=1,b=2,role");
    }

    #[test]
    fn empty_selects_all_and_labels_must_all_match() {
        assert!(matches(&LabelSelector::default(), &labels(&[])));
        let both = LabelSelector {
            match_labels: Some(labels(&[("a", "1"), ("b", "2")])),
            match_expressions: None,
        };
        assert!(!matches(&both, &labels(&[("a", "1")])));
        assert!(matches(&both, &labels(&[("a", "1"), ("b", "2"), ("c", "3")])));
    }
}
