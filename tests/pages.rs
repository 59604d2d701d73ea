//! The pages that people read when something is wrong: one for each reason, one for each group of metrics, and indexes made from the code.
//! `UPDATE=1 cargo test --test pages` writes what is generated anew; the pages themselves are written by hand, and held to what the code has.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use stagenet::api::reasons::{self, types};
use stagenet::telemetry::describe::{self, Kind};
use stagenet::telemetry::groups::GROUPS;

/// Where the table of a group of metrics is in its page.
const BEGIN: &str = "<!-- begin: made from src/telemetry/describe.rs by UPDATE=1 cargo test --test pages -->\n";
const END: &str = "<!-- end -->\n";
const KINDS: [&str; 3] = ["NatMapping", "StagingNetwork", "GatewayNode"];
/// What a page of a reason has, in this order.
const SECTIONS: [&str; 4] = ["## What it means", "## Why it happens", "## See more", "## Mend it"];

fn docs(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(path)
}

fn update() -> bool {
    std::env::var_os("UPDATE").is_some()
}

/// Compares a page with what it must be, or writes it.
fn fresh(path: &str, wanted: &str) {
    if update() {
        fs::write(docs(path), wanted).unwrap();
    }
    let found = fs::read_to_string(docs(path)).unwrap_or_default();
    assert!(found == wanted, "docs/{path} is stale: run UPDATE=1 cargo test --test pages");
}

/// The pages of a folder by name.
fn pages(folder: &str) -> BTreeMap<String, String> {
    let entries = fs::read_dir(docs(folder)).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|path| {
            assert_eq!(path.extension().unwrap(), "md", "{}", path.display());
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, fs::read_to_string(&path).unwrap())
        })
        .collect()
}

#[test]
fn indexes_are_fresh() {
    fresh("reasons.md", &reasons::markdown());
    fresh("metrics.md", &describe::index());
}

#[test]
fn every_reason_has_a_page_and_every_page_a_reason() {
    let pages = pages("reasons");
    let names: BTreeSet<&str> = pages.keys().map(String::as_str).collect();
    let wanted: BTreeSet<&str> = reasons::ALL.iter().map(|doc| doc.reason).collect();
    let missing: Vec<_> = wanted.difference(&names).collect();
    let left: Vec<_> = names.difference(&wanted).collect();
    assert!(
        missing.is_empty() && left.is_empty(),
        "docs/reasons/ lacks {missing:?} and has {left:?}, which no reason is called; see the other pages for what one has"
    );
}

/// A page says where the reason is found, and has its four parts with something in each.
#[test]
fn a_page_says_where_why_and_what_to_do() {
    let known: BTreeMap<&str, &str> = types::ALL.iter().map(|doc| (doc.name, doc.on)).collect();
    let mut wrong = Vec::new();
    for (name, page) in pages("reasons") {
        let mut lines = page.lines();
        let mut must = |holds: bool, what: String| {
            if !holds {
                wrong.push(format!("docs/reasons/{name}.md: {what}"));
            }
        };
        must(lines.next() == Some(&format!("# {name}")), "begins with its name".to_owned());
        let found: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("- Found in: ")).collect();
        must(!found.is_empty(), "a line `- Found in: …`".to_owned());
        // `Type` of KIND, or an event of KIND.
        for line in &found {
            let kinds: Vec<&&str> = KINDS.iter().filter(|kind| line.contains(**kind)).collect();
            must(!kinds.is_empty(), format!("a kind in {line:?}"));
            let words: Vec<&str> = line.split('`').skip(1).step_by(2).collect();
            let conditions: Vec<&&str> = words.iter().filter(|word| known.contains_key(**word)).collect();
            let other = words
                .iter()
                .find(|word| !known.contains_key(**word) && !word.contains('.') && !word.contains("[]"));
            must(other.is_none(), format!("{other:?} is no condition type"));
            let elsewhere = line.contains("event") || line.contains('.');
            must(!conditions.is_empty() || elsewhere, format!("a condition type in {line:?}"));
            for condition in conditions {
                must(
                    kinds.iter().any(|kind| known[*condition].contains(**kind)),
                    format!("{condition} is a condition of {}: {line:?}", known[*condition]),
                );
            }
        }
        let mut rest = page.as_str();
        for section in SECTIONS {
            let Some((_, after)) = rest.split_once(&format!("\n{section}\n")) else {
                must(false, format!("has no {section:?} after what comes before it"));
                break;
            };
            let body = after.split("\n## ").next().unwrap().trim();
            must(body.len() > 30, format!("{section:?} says nothing"));
            rest = after;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// No page is a copy of another with the word replaced.
#[test]
fn pages_say_different_things() {
    let mut said: BTreeMap<String, String> = BTreeMap::new();
    for (name, page) in pages("reasons") {
        let means = page.split("## What it means\n").nth(1).unwrap().split("\n## ").next().unwrap();
        let text = means.replace(&name, "").trim().to_owned();
        assert!(!said.contains_key(&text), "{name} says what {} says", said[&text]);
        said.insert(text, name);
    }
}

#[test]
fn every_metric_is_in_the_page_of_its_group_and_in_no_other() {
    let names: BTreeSet<String> = GROUPS.iter().map(|group| group.name.to_owned()).collect();
    assert_eq!(pages("metrics").into_keys().collect::<BTreeSet<_>>(), names);
    for group in GROUPS {
        assert!(describe::ALL.iter().any(|d| d.group == *group), "{} has no metric", group.name);
        let path = format!("metrics/{}.md", group.name);
        let page = fs::read_to_string(docs(&path)).unwrap();
        let (before, rest) = page.split_once(BEGIN).unwrap_or_else(|| panic!("{path} has no line {BEGIN}"));
        let (_, after) = rest.split_once(END).unwrap();
        fresh(&path, &format!("{before}{BEGIN}{}{END}{after}", describe::table(group)));
    }
    for d in describe::ALL {
        let row = format!("\n| `{}` |", d.scraped_name());
        let found: Vec<String> = pages("metrics")
            .into_iter()
            .filter(|(_, page)| page.contains(&row))
            .map(|(name, _)| name)
            .collect();
        assert_eq!(found, [d.group.name], "{}", d.scraped_name());
    }
}

/// Whatever is written of a metric anywhere, it exists, with the labels that are asked for.
#[test]
fn expressions_name_what_there_is() {
    let mut series: BTreeMap<String, &[&str]> = BTreeMap::new();
    for d in describe::ALL {
        let name = d.scraped_name();
        if d.kind == Kind::Histogram {
            for suffix in ["_bucket", "_sum", "_count"] {
                series.insert(format!("{name}{suffix}"), &["le"]);
            }
        }
        series.insert(name, d.labels);
    }
    let mut all: Vec<(String, String)> = Vec::new();
    for folder in ["", "metrics", "reasons"] {
        for entry in fs::read_dir(docs(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                all.push((path.display().to_string(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let mut wrong = Vec::new();
    let mut used = BTreeSet::new();
    for (path, text) in &all {
        for (at, _) in text.match_indices("stagenet_") {
            let name: String = text[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            // `stagenet_agent_` alone is how all of them begin.
            if name.ends_with('_') {
                continue;
            }
            let Some(labels) = series.get(&name) else {
                wrong.push(format!("{path}: there is no {name}"));
                continue;
            };
            used.insert(name.clone());
            let selector = text[at + name.len()..].strip_prefix('{').and_then(|rest| rest.split('}').next());
            for pair in selector.unwrap_or_default().split(',').filter(|pair| !pair.is_empty()) {
                let label = pair.trim().split(['=', '!']).next().unwrap();
                if !labels.contains(&label) {
                    wrong.push(format!("{path}: {name} has no label {label}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(used.len() >= describe::ALL.len(), "each is spoken of somewhere");
}

/// Each page of metrics has expressions worth an alert with what to do, and each expression is in one of its own metrics.
#[test]
fn every_group_has_alerts_with_what_to_do() {
    for (name, page) in pages("metrics") {
        let alerts = page.split("\n## Worth an alert\n").nth(1).unwrap_or_else(|| panic!("{name}"));
        let parts: Vec<&str> = alerts.split("\n### ").skip(1).collect();
        assert!(!parts.is_empty(), "{name} has no alert");
        for part in parts {
            let title = part.lines().next().unwrap();
            let expression = part.split("```promql\n").nth(1).and_then(|rest| rest.split("```").next());
            let expression = expression.unwrap_or_else(|| panic!("{name}, {title}: no expression"));
            let (open, close) = (expression.matches('(').count(), expression.matches(')').count());
            assert_eq!(open, close, "{name}, {title}: {expression}");
            let own = describe::ALL.iter().filter(|d| d.group.name == name);
            assert!(
                own.into_iter().any(|d| expression.contains(&d.scraped_name())),
                "{name}, {title}: {expression}"
            );
            let says = part.split("```").nth(2).unwrap_or_default().trim();
            assert!(says.len() > 60, "{name}, {title}: what to do");
        }
    }
}

/// Every link between pages leads somewhere.
#[test]
fn links_lead_somewhere() {
    let mut wrong = Vec::new();
    for folder in ["", "metrics", "reasons"] {
        for entry in fs::read_dir(docs(folder)).unwrap() {
            let path = entry.unwrap().path();
            if !path.is_file() {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            for rest in text.split("](").skip(1) {
                let link = rest.split(')').next().unwrap();
                let file = link.split('#').next().unwrap();
                if !file.is_empty() && !link.contains("://") && !path.parent().unwrap().join(file).exists() {
                    wrong.push(format!("{}: {link}", path.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
