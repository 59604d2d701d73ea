//! The running agent: when it acts, how it repairs and says what it found.

use std::sync::Arc;
use std::time::{Duration, Instant};

use stagenet::agent::kept::Kept;
use stagenet::agent::report::file::{Memory, Standing, standing};
use stagenet::agent::runner::{Report, Reports, Runner, RunnerOptions};
use stagenet::agent::source::Snapshot;
use stagenet::api::network::Isolation;
use stagenet::api::reasons::types;
use stagenet::api::{conditions, reasons};
use stagenet::host::HostError;
use stagenet::host::fake::{Call, FakeHost};
use stagenet::netfilter::{Family, Table};
use stagenet::plan::LinkSettings;
use stagenet::telemetry::{Desk, Health, Metrics, Program};

use crate::{NETWORK, converged, facts, host, interface, one, pass, settings, snapshot, state, two};

/// A runner at work, with its host and its reports.
struct Running {
    host: FakeHost,
    reports: Reports,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<Result<(), String>>,
    objects: tokio::sync::watch::Sender<Option<Arc<Snapshot>>>,
    desk: Desk,
}

impl Running {
    fn start(host: FakeHost, snapshot: Option<Arc<Snapshot>>) -> Self {
        let options = RunnerOptions {
            mapping_series: 1,
            settings: settings(),
            resync: Duration::from_hours(1),
            min_interval: Duration::from_millis(10),
        };
        let health = Arc::new(Health::new("a pass", Duration::from_mins(1)));
        let runner = Runner::new(host.clone(), options, Arc::new(Metrics::new(Program::Agent)), health);
        let (objects, source) = tokio::sync::watch::channel(snapshot);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let (reports, desk) = (runner.reports(), runner.desk());
        let task = tokio::spawn(runner.run(source, async move { drop(stopped.await) }));
        Self {
            host,
            reports,
            stop: Some(stop),
            task,
            objects,
            desk,
        }
    }

    /// The first report that `wanted` is true of; a generous limit, for a loaded machine.
    async fn until(&mut self, wanted: impl Fn(&Report) -> bool) -> Arc<Report> {
        let found = tokio::time::timeout(Duration::from_secs(20), async {
            loop {
                let latest = self.reports.borrow_and_update().clone();
                if let Some(report) = latest.filter(|r| wanted(r)) {
                    return report;
                }
                self.reports.changed().await.unwrap();
            }
        });
        found.await.unwrap()
    }

    async fn end(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        assert_eq!(self.task.await.unwrap(), Ok(()));
    }
}

/// Two networks with the same prefix inside, told apart by marks.
fn clones() -> Arc<Snapshot> {
    let network = |name: &str, pool: u8, inside: &str| {
        NETWORK
            .replace("segment-b", name)
            .replace("192.168.100.0/24", &format!("172.16.{pool}.0/24"))
            .replace("eth1", inside)
    };
    let text = format!("{}---\n{}", network("one", 1, "eth1"), network("two", 2, "eth2"));
    let mut clones = (*snapshot(&text)).clone();
    for (network, (identifier, zone)) in clones.networks.iter_mut().zip([(1, 0), (2, 2)]) {
        Arc::make_mut(network).status.get_or_insert_default().isolation = Some(Isolation { identifier, zone });
    }
    Arc::new(clones)
}

#[tokio::test]
async fn a_policy_rule_that_was_removed_comes_back_and_is_named() {
    let host = host();
    host.add_interface("eth2", facts(4, "192.168.200.2/24"));
    let mut running = Running::start(host.clone(), Some(clones()));
    running.until(|r| r.outcome.complete).await;
    let rules = host.policy_rules();
    assert!(!rules.is_empty());
    // Not all of them: who undoes repairs again and again waits ever longer for the next.
    for rule in rules.iter().step_by(2) {
        host.remove_rule(rule);
        let said = format!("the {} policy routing rule {rule} was removed", rule.family);
        running
            .until(|r| r.outcome.complete && matches!(&r.outcome.drift[..], [drift] if drift.place == "rule" && drift.what == said))
            .await;
        assert_eq!(host.policy_rules(), rules);
    }
    running.end().await;
}

/// What was counted before a chain was written anew is not lost, and what is asked for twice in a moment is read once.
#[tokio::test]
async fn counters_are_read_when_asked_for_and_outlive_the_chains_they_are_in() {
    let mut running = Running::start(host(), None);
    assert!(running.desk.ask().await.unwrap_err().contains("first pass"));
    running.objects.send(Some(one())).unwrap();
    running.until(|r| r.outcome.complete).await;
    let page = |text: String| serde_json::from_str::<serde_json::Value>(&text).unwrap();
    running
        .host
        .hit(Family::V4, Table::Nat, "-j DNAT --to-destination 192.168.200.3", 3, 180);
    running.host.hit(Family::V4, Table::Mangle, ":segment-b -j DROP", 0, 0);
    running.objects.send(Some(two())).unwrap();
    let both = |r: &Report| r.outcome.tallies.values().any(|tally| tally.programmed == 2);
    running.until(|r| r.outcome.complete && both(r)).await;
    let first = page(running.desk.ask().await.unwrap());
    let mappings = first["mappings"].as_array().unwrap();
    assert_eq!(mappings.len(), 2, "{first}");
    assert_eq!(mappings[0]["dialled"]["packets"], 3, "{first}");
    assert_eq!(mappings[1]["dialled"]["packets"], 0, "{first}");
    assert!(
        first["denied"].as_array().unwrap().iter().any(|d| d["direction"] == "out"),
        "{first}"
    );
    let reads = running.host.count(Call::Counters);
    running
        .host
        .hit(Family::V4, Table::Nat, "-j DNAT --to-destination 192.168.200.3", 1, 60);
    assert_eq!(page(running.desk.ask().await.unwrap()), first);
    assert_eq!(running.host.count(Call::Counters), reads);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let later = page(running.desk.ask().await.unwrap());
    assert_eq!(later["mappings"][0]["dialled"]["packets"], 4, "{later}");
    assert!(later["mappings"][0]["dialled"]["lastHit"].is_string(), "{later}");
    running.end().await;
}

#[tokio::test]
async fn nothing_is_touched_before_the_first_list_and_nothing_removed_at_the_end() {
    let mut running = Running::start(host(), None);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(running.host.writes(), 0);
    running.objects.send(Some(one())).unwrap();
    running.until(|r| r.outcome.complete).await;
    let host = running.host.clone();
    let standing = state(&host);
    running.end().await;
    assert_eq!(state(&host), standing);
}

#[tokio::test]
async fn every_kind_of_drift_is_repaired_and_told() {
    let wanted = converged(&[one()]).await;
    let eth1_off = LinkSettings {
        forwarding: Some(false),
        ..LinkSettings::default()
    };
    type Meddle = Box<dyn Fn(&FakeHost)>;
    let kinds: Vec<(&str, Meddle)> = vec![
        ("mangle", Box::new(|h| h.flush(Family::V4, Table::Mangle))),
        ("nat", Box::new(|h| h.flush(Family::V4, Table::Nat))),
        (
            "filter",
            Box::new(|h| h.edit_chain(Family::V4, Table::Filter, "FORWARD", |r| r.retain(|r| !r.contains("stagenet")))),
        ),
        (
            "mangle",
            Box::new(|h| h.edit_chain(Family::V4, Table::Mangle, "SNET-FWD", |r| r.insert(0, "-j ACCEPT".to_owned()))),
        ),
        (
            "mangle",
            Box::new(|h| h.edit_chain(Family::V4, Table::Mangle, "SNET-FWD", |r| r.reverse())),
        ),
        (
            "mangle",
            Box::new(|h| h.edit_chain(Family::V4, Table::Mangle, "FORWARD", |r| r.insert(0, "-j ACCEPT".to_owned()))),
        ),
        ("mangle", Box::new(|h| h.flush(Family::V6, Table::Mangle))),
        ("route", Box::new(|h| h.remove_route(&h.routes().into_iter().next().unwrap()))),
        ("proxy", Box::new(|h| h.remove_proxy(&h.proxies().into_iter().next().unwrap()))),
        ("link", Box::new(move |h| h.meddle_settings(&interface("eth1"), &eth1_off))),
    ];
    for (number, (place, meddle)) in kinds.into_iter().enumerate() {
        let mut running = Running::start(host(), Some(one()));
        running.until(|r| r.outcome.complete).await;
        meddle(&running.host);
        let report = running.until(|r| r.outcome.complete && !r.outcome.drift.is_empty()).await;
        assert_eq!(report.outcome.drift[0].place, place, "{number}: {:?}", report.outcome.drift);
        if ["mangle", "nat", "filter"].contains(&place) {
            assert_eq!(report.by.as_deref(), Some("iptables (pid 4711)"));
        }
        let mut now = state(&running.host);
        // The stranger's own rule stays where it is.
        now = now
            .lines()
            .filter(|l| *l != "V4 mangle -A FORWARD -j ACCEPT")
            .map(|l| format!("{l}\n"))
            .collect();
        let mut expected: String = wanted.lines().map(|l| format!("{l}\n")).collect();
        if number == 0 || number == 1 || number == 6 {
            // A flush takes foreign rules with it, which are not ours to put back.
            expected = expected.lines().filter(|l| !l.contains("eth9")).map(|l| format!("{l}\n")).collect();
            now = now.lines().filter(|l| !l.contains("eth9")).map(|l| format!("{l}\n")).collect();
        }
        assert_eq!(now, expected, "{number}");
        running.end().await;
    }
}

#[tokio::test]
async fn a_fight_is_bounded_and_reported() {
    let mut running = Running::start(host(), Some(one()));
    running.until(|r| r.outcome.complete).await;
    let begin = Instant::now();
    let mut repairs = 0_u32;
    while begin.elapsed() < Duration::from_secs(3) {
        if !running.host.rules(Family::V4, Table::Nat, "SNET-DNAT").unwrap().is_empty() {
            running.host.flush(Family::V4, Table::Nat);
            repairs += 1;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(
        (5..=12).contains(&repairs),
        "{repairs} repairs in 3 s: five at once, then one a second"
    );
    let report = running.until(|r| r.contended).await;
    let standing = standing(&report, &Standing::default(), k8s_openapi::jiff::Timestamp::now());
    let drifted = conditions::find(&standing.node.conditions, types::DRIFTED).unwrap();
    assert!(drifted.message.contains("iptables (pid 4711)"), "{}", drifted.message);
    let ready = conditions::find(&standing.node.conditions, types::READY).unwrap();
    assert_eq!((ready.status.as_str(), &ready.reason), ("False", &drifted.reason));
    assert_eq!(ready.message, drifted.message);
    running.end().await;
}

#[tokio::test]
async fn a_lost_tool_or_permission_is_reported_and_healed() {
    for (error, reason) in [
        (
            HostError::ToolMissing {
                tool: "iptables".to_owned(),
            },
            reasons::TOOL_MISSING,
        ),
        (
            HostError::Denied {
                action: "restoring".to_owned(),
            },
            reasons::NOT_PERMITTED,
        ),
    ] {
        let host = host();
        host.break_down(Call::Restore, error);
        let mut running = Running::start(host.clone(), Some(one()));
        let report = running.until(|r| r.outcome.failed()).await;
        let standing = standing(&report, &Standing::default(), k8s_openapi::jiff::Timestamp::now());
        let ready = conditions::find(&standing.node.conditions, types::READY).unwrap();
        assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", reason));
        host.mend();
        running.until(|r| r.outcome.complete).await;
        running.end().await;
    }
}

#[tokio::test]
async fn statuses_say_what_a_cluster_would_show() {
    let (host, mut kept) = (host(), Kept::default());
    let snapshot = one();
    let outcome = pass(&host, &mut kept, &snapshot).await;
    let report = Report {
        snapshot,
        outcome,
        by: None,
        contended: false,
    };
    let now = k8s_openapi::jiff::Timestamp::now();
    let first = standing(&report, &Standing::default(), now);
    let status = first.statuses.mappings.values().next().unwrap();
    assert!(conditions::is_true(&status.conditions, types::READY), "{status:?}");
    assert_eq!(status.gateway.as_deref(), Some("vm02"));
    assert_eq!(first.node.networks[0].programmed, 1);
    let later = k8s_openapi::jiff::Timestamp::from_second(now.as_second() + 100).unwrap();
    assert_eq!(standing(&report, &first, later), first, "time alone changes nothing");
}

/// A change, and its name.
type Meddling = (&'static str, fn(&FakeHost));

#[tokio::test]
async fn a_look_finds_what_no_event_told_of_and_changes_nothing() {
    let (host, mut kept) = (host(), Kept::default());
    assert!(
        !kept.stands(&mut host.clone(), false).await,
        "nothing is known before the first pass"
    );
    assert!(!pass(&host, &mut kept, &one()).await.failed());
    assert!(kept.stands(&mut host.clone(), false).await);
    let meddlings: [Meddling; 8] = [
        ("flush", |host| host.flush(Family::V4, Table::Nat)),
        ("junk", |host| {
            host.edit_chain(Family::V4, Table::Mangle, "SNET-FWD", |rules| rules.push("-j ACCEPT".to_owned()));
        }),
        ("hook", |host| {
            host.edit_chain(Family::V4, Table::Filter, "FORWARD", |rules| {
                rules.insert(0, "-j ACCEPT".to_owned())
            });
        }),
        ("route", |host| host.remove_route(host.routes().first().unwrap())),
        ("proxy", |host| host.remove_proxy(host.proxies().first().unwrap())),
        ("setting", |host| {
            let on = LinkSettings {
                send_redirects: Some(true),
                ..LinkSettings::default()
            };
            host.meddle_settings(&interface("eth0"), &on);
        }),
        ("hook gone", |host| {
            host.edit_chain(Family::V4, Table::Filter, "FORWARD", |rules| {
                rules.remove(0);
            });
        }),
        ("lost", |host| host.fail_next(Call::ReadLinks, crate::boom())),
    ];
    for (name, meddle) in meddlings {
        meddle(&host);
        let writes = host.writes();
        let found = !kept.stands(&mut host.clone(), false).await;
        assert_eq!(host.writes(), writes, "{name}");
        assert!(found, "{name}");
        assert!(!pass(&host, &mut kept, &one()).await.failed(), "{name}");
        assert_eq!(pass(&host, &mut Kept::default(), &one()).await.label(), "unchanged", "{name}");
        assert!(kept.stands(&mut host.clone(), false).await, "{name}");
    }
}

#[tokio::test]
async fn the_status_file_says_what_a_cluster_would_show_and_is_written_when_that_changes() {
    let at = |seconds| k8s_openapi::jiff::Timestamp::from_second(seconds).unwrap();
    let (host, mut kept) = (host(), Kept::default());
    let mut report = async |down: bool| {
        let mut inside = facts(3, "192.168.200.2/24");
        inside.up = !down;
        host.add_interface("eth1", inside);
        kept.doubt_interfaces();
        Report {
            snapshot: two(),
            outcome: pass(&host, &mut kept, &two()).await,
            by: None,
            contended: false,
        }
    };
    let (up, down) = (report(false).await, report(true).await);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("status.json");
    let mut memory = Memory::default();
    let mut before = Standing::default();
    for (report, seconds, news) in [
        (&up, 100, true),
        (&up, 200, false),
        (&down, 300, true),
        (&down, 400, false),
        (&up, 500, true),
    ] {
        before = standing(report, &before, at(seconds));
        assert_eq!(memory.write(&path, report, at(seconds)).unwrap(), news, "{seconds}");
        let list: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let statuses: Vec<_> = list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["status"].clone())
            .collect();
        let mut wanted: Vec<_> = before.statuses.networks.values().map(|status| serde_json::json!(status)).collect();
        wanted.extend(before.statuses.mappings.values().map(|status| serde_json::json!(status)));
        wanted.push(serde_json::json!(before.node));
        assert_eq!(statuses, wanted, "{seconds}");
    }
    let names: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["status.json"], "nothing is left beside it");
    let yaml = dir.path().join("status.yaml");
    assert!(Memory::default().write(&yaml, &up, at(1)).unwrap());
    let text = std::fs::read_to_string(&yaml).unwrap();
    assert!(text.contains("kind: NatMapping") && text.contains("type: Ready"), "{text}");
}
