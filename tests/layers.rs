//! The arrows between modules, proven by reading the sources: what is pure stays pure, and only `host` touches the kernel.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// Longest source file, in lines.
const FILE_MAX: usize = 400;

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Files that hold tests only.
fn is_test(path: &Path) -> bool {
    let name = path.file_stem().unwrap().to_string_lossy().into_owned();
    name == "testing" || name.ends_with("tests") || path.parent().is_some_and(|p| p.ends_with("tests"))
}

/// The lines of a file without the tests at its end.
fn without_tests(text: &str) -> impl Iterator<Item = &str> {
    let end = text.rfind("\n#[cfg(test)]\n").filter(|at| text[*at..].contains("mod tests {"));
    text[..end.unwrap_or(text.len())].lines()
}

/// All sources but tests: path below src/, and the lines that are code.
fn all() -> Vec<(String, Vec<String>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&root, &mut found);
    found.sort();
    assert!(found.len() > 40, "only {} sources were found", found.len());
    found
        .iter()
        .filter(|path| !is_test(path))
        .map(|path| {
            let text = fs::read_to_string(path).unwrap();
            let code = without_tests(&text)
                .filter(|l| !l.trim_start().starts_with("//"))
                .map(str::to_owned)
                .collect();
            (path.strip_prefix(&root).unwrap().display().to_string(), code)
        })
        .collect()
}

/// Every line of code in `modules` that contains one of `words`, as `file: line`.
fn uses(modules: &[&str], words: &[&str]) -> Vec<String> {
    let of = |file: &str| {
        modules
            .iter()
            .any(|m| file.starts_with(&format!("{m}/")) || file == format!("{m}.rs"))
    };
    let all = all();
    let files = all.iter().filter(|(file, _)| of(file));
    files
        .flat_map(|(file, code)| {
            code.iter()
                .filter(|l| words.iter().any(|w| l.contains(w)))
                .map(move |l| format!("{file}: {}", l.trim()))
        })
        .collect()
}

const IO: &[&str] = &[
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "std::process",
    "std::thread",
    "tokio",
    "SystemTime",
    "Instant::now",
    "Timestamp::now",
    "rand::",
];
const CLUSTER: &[&str] = &[
    "kube::Client",
    "kube::client",
    "kube::runtime",
    "kube::Api",
    "kube::api::Api",
    "kube::{Api",
    "kube::{Client",
];

#[test]
fn plan_and_netfilter_are_pure() {
    let above = ["crate::host", "crate::agent", "crate::controller", "crate::cli", "crate::telemetry"];
    assert_eq!(uses(&["plan", "netfilter"], &above), Vec::<String>::new());
    assert_eq!(uses(&["plan", "netfilter"], IO), Vec::<String>::new());
    assert_eq!(uses(&["plan", "netfilter"], CLUSTER), Vec::<String>::new());
    assert_eq!(
        uses(&["netfilter"], &["crate::plan", "crate::api", "kube", "k8s_openapi"]),
        Vec::<String>::new()
    );
}

#[test]
fn api_knows_nobody() {
    let others = [
        "crate::host",
        "crate::agent",
        "crate::controller",
        "crate::cli",
        "crate::telemetry",
        "crate::plan",
        "crate::netfilter",
    ];
    assert_eq!(uses(&["api"], &others), Vec::<String>::new());
    assert_eq!(uses(&["api"], CLUSTER), Vec::<String>::new());
}

#[test]
fn only_host_touches_the_kernel() {
    let elsewhere = ["api", "plan", "netfilter", "agent", "controller", "cli", "telemetry", "main", "lib"];
    let kernel = [
        "std::process::Command",
        "process::Command",
        "rtnetlink",
        "netlink_",
        " nix::",
        "pnet_",
        "iptables::",
        "libc::",
    ];
    assert_eq!(uses(&elsewhere, &kernel), Vec::<String>::new());
    assert!(!uses(&["host"], &["netlink_"]).is_empty(), "the words are those that host uses");
}

#[test]
fn host_and_telemetry_know_no_cluster_and_nobody_above() {
    let above = ["crate::agent", "crate::controller", "crate::cli"];
    assert_eq!(uses(&["host", "telemetry"], &above), Vec::<String>::new());
    assert_eq!(uses(&["host", "telemetry"], &["kube::", "k8s_openapi"]), Vec::<String>::new());
    assert_eq!(
        uses(&["telemetry"], &["crate::plan", "crate::api", "crate::host", "crate::netfilter"]),
        Vec::<String>::new()
    );
    assert_eq!(
        uses(&["controller"], &["crate::host", "crate::agent", "crate::cli"]),
        Vec::<String>::new()
    );
}

/// Names of objects are arguments and lines of input for tools. No shell is ever there to read them otherwise.
#[test]
fn nothing_is_given_to_a_shell() {
    let library = [
        "api",
        "plan",
        "netfilter",
        "host",
        "agent",
        "controller",
        "cli",
        "telemetry",
        "lib",
        "main",
    ];
    assert_eq!(
        uses(&library, &["\"sh\"", "\"bash\"", "/bin/sh", "/bin/bash"]),
        Vec::<String>::new()
    );
}

/// Whoever looks for an object in the logs looks for one field, `object`: no line names it under another one.
#[test]
fn logs_name_objects_in_one_field() {
    let mut found = Vec::new();
    let mut lines = 0;
    for (file, code) in all() {
        let text = code.join("\n");
        for level in ["trace!(", "debug!(", "info!(", "warn!(", "error!("] {
            for (at, _) in text.match_indices(level) {
                lines += 1;
                let call = text[at + level.len()..].split(");").next().unwrap();
                // What comes before the message.
                let fields = call.split('"').next().unwrap();
                for field in fields.split(',').map(|field| field.trim().trim_start_matches(['%', '?'])) {
                    let name = field.split([' ', '=', '.']).next().unwrap();
                    if ["node", "mapping", "network", "namespace", "name", "lease", "key", "gateway"].contains(&name) {
                        found.push(format!("{file}: {level}{fields}"));
                    }
                }
            }
        }
    }
    assert!(lines > 50, "only {lines} lines of log were found");
    assert_eq!(found, Vec::<String>::new(), "see telemetry::object_key");
}

/// A word that is documented and that nobody says would send people on a wrong track.
#[test]
fn every_reason_and_condition_is_said_somewhere() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/api/reasons.rs")).unwrap();
    let word = |line: &str| Some(line.trim().split_once(" = \"")?.0.to_owned());
    let constant = |word: &String| !word.is_empty() && word.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
    let words: Vec<String> = text.lines().filter_map(word).filter(constant).collect();
    assert!(words.len() > 80, "{words:?}");
    let code: Vec<String> = all()
        .into_iter()
        .filter(|(file, _)| file != "api/reasons.rs")
        .flat_map(|(_, code)| code)
        .collect();
    let said = |word: &String| {
        let names = [format!("reasons::{word}"), format!("types::{word}")];
        let whole = |line: &String, name: &String| {
            line.match_indices(name.as_str())
                .any(|(at, _)| !line[at + name.len()..].starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_'))
        };
        code.iter().any(|line| names.iter().any(|name| whole(line, name)))
    };
    let silent: Vec<_> = words.into_iter().filter(|word| !said(word)).collect();
    assert_eq!(silent, Vec::<String>::new());
}

#[test]
fn anyhow_is_for_main_only() {
    let library = ["api", "plan", "netfilter", "host", "agent", "controller", "cli", "telemetry", "lib"];
    assert_eq!(uses(&library, &["anyhow"]), Vec::<String>::new());
}

#[test]
fn files_are_short_enough_to_read() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    sources(&root, &mut found);
    let long: Vec<String> = found
        .iter()
        .filter(|p| !is_test(p))
        .map(|p| (p, without_tests(&fs::read_to_string(p).unwrap()).count()))
        .filter(|(_, lines)| *lines > FILE_MAX)
        .map(|(p, lines)| format!("{}: {lines} lines", p.display()))
        .collect();
    assert_eq!(long, Vec::<String>::new());
}
