//! What the API server was asked for, and what processes took.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use super::objects::Objects;

/// Counts of requests by verb and resource, and of watch events by kind.
pub struct Requests(BTreeMap<(String, String), f64>);

impl Requests {
    pub async fn read(objects: &Objects) -> Self {
        let page = objects.page("/metrics").await;
        let mut counts = BTreeMap::new();
        for line in page.lines() {
            let label = |name: &str| line.split(&format!("{name}=\"")).nth(1).and_then(|rest| rest.split('"').next());
            let Some(value) = line.rsplit(' ').next().and_then(|v| v.parse::<f64>().ok()) else {
                continue;
            };
            let key = if line.starts_with("apiserver_request_total{") {
                let sub = label("subresource")
                    .filter(|s| !s.is_empty())
                    .map(|s| format!("/{s}"))
                    .unwrap_or_default();
                (
                    label("verb").unwrap_or_default().to_owned(),
                    format!("{}{sub}", label("resource").unwrap_or_default()),
                )
            } else if line.starts_with("apiserver_watch_events_total{") {
                (
                    "events".to_owned(),
                    label("resource").or(label("kind")).unwrap_or_default().to_lowercase(),
                )
            } else {
                continue;
            };
            *counts.entry(key).or_insert(0.0) += value;
        }
        Self(counts)
    }

    /// Prints what has been added since, divided by `share`. Returns how many of these were writes of anything but Leases.
    pub async fn since(&self, objects: &Objects, what: &str, share: f64) -> f64 {
        let mut written = 0.0;
        let now = Self::read(objects).await;
        println!("\n| {what}: verb, or watch events sent | resource | count |\n|---|---|---:|");
        for ((verb, resource), count) in &now.0 {
            let added = count - self.0.get(&(verb.clone(), resource.clone())).unwrap_or(&0.0);
            let ours = ["natmappings", "stagingnetworks", "gatewaynodes", "nodes", "leases", "events"];
            if added > 0.0 && ours.iter().any(|o| resource.starts_with(o)) {
                println!("| {verb} | {resource} | {:.2} |", added / share);
                if ["POST", "PUT", "PATCH", "APPLY", "DELETE"].contains(&verb.as_str()) && resource != "leases" {
                    written += added / share;
                }
            }
        }
        println!();
        written
    }
}

/// What a process takes.
pub struct Usage {
    pub resident: u64,
    /// The most that ever was.
    pub peak: u64,
    pub processor: Duration,
}

/// Of a process, the tools that it has started and waited for included.
pub fn usage(process: u32) -> Usage {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let bytes = |field: &str| {
        let kilobytes = status.lines().find_map(|l| l.strip_prefix(field)).unwrap();
        kilobytes.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    };
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    // utime, stime, cutime, cstime: fields 14 to 17 of proc(5), in hundredths of a second.
    let ticks: u64 = fields[11..15].iter().map(|f| f.parse::<u64>().unwrap()).sum();
    Usage {
        resident: bytes("VmRSS:"),
        peak: bytes("VmHWM:"),
        processor: Duration::from_millis(ticks * 10),
    }
}
