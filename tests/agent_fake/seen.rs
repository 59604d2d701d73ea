//! What people see of an agent: news, none of which is passed over, and metrics that say what is.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use stagenet::agent::report::news::News;
use stagenet::agent::runner::{Reports, Runner, RunnerOptions};
use stagenet::api::reasons::{self, types};
use stagenet::host::Finding;
use stagenet::host::fake::FakeHost;
use stagenet::netfilter::{Family, Table};
use stagenet::telemetry::{Health, Metrics, Program};
use tokio::sync::mpsc;

use crate::{host, one, settings, two};

const MAC: &str = "02:aa:00:00:00:01";

fn runner(host: &FakeHost) -> (Runner<FakeHost>, Reports, mpsc::Receiver<News>, Arc<Metrics>) {
    let options = RunnerOptions {
        mapping_series: 0,
        settings: settings(),
        resync: Duration::from_hours(1),
        min_interval: Duration::from_millis(1),
    };
    let metrics = Arc::new(Metrics::new(Program::Agent));
    let health = Arc::new(Health::new("a pass", Duration::from_mins(1)));
    let mut runner = Runner::new(host.clone(), options, metrics.clone(), health);
    let (reports, news) = (runner.reports(), runner.news());
    (runner, reports, news, metrics)
}

fn value(metrics: &Metrics, series: &str) -> f64 {
    let page = metrics.page().unwrap();
    let line = page
        .lines()
        .find(|line| line.rsplit_once(' ').is_some_and(|(name, _)| name == series));
    let line = line.unwrap_or_else(|| panic!("no {series} in\n{page}"));
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

/// Reports tell the latest only; news tell each repair, however fast one follows the other, and by whom it was needed.
#[tokio::test]
async fn every_repair_is_told() {
    let host = host();
    let (runner, mut reports, mut news, metrics) = runner(&host);
    let (objects, source) = tokio::sync::watch::channel(Some(one()));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let task = tokio::spawn(runner.run(source, async move { drop(stopped.await) }));
    reports
        .wait_for(|report| report.as_ref().is_some_and(|r| r.outcome.complete))
        .await
        .unwrap();
    for _ in 0..3 {
        host.flush(Family::V4, Table::Nat);
        let told = tokio::time::timeout(Duration::from_secs(20), news.recv()).await.unwrap().unwrap();
        assert_eq!((told.reason, &told.mapping), (reasons::DRIFT_REPAIRED, &None));
        assert!(
            told.message.contains("table nat") && told.message.contains("iptables (pid 4711)"),
            "{told:?}"
        );
        assert!(told.notice().note.ends_with(", by iptables; put back"), "{:?}", told.notice());
        // The first of each flush is enough here; what else was in the table comes with it.
        while news.try_recv().is_ok() {}
    }
    let repairs = value(&metrics, "stagenet_agent_drift_repairs_total{table=\"nat\"}");
    assert!(repairs >= 3.0, "{repairs}");
    stop.send(()).unwrap();
    assert_eq!(task.await.unwrap(), Ok(()));
    drop(objects);
}

#[tokio::test]
async fn metrics_say_what_is() {
    let host = host();
    let (mut runner, _reports, mut news, metrics) = runner(&host);
    host.answer(IpAddr::from([192, 168, 100, 4]), Some(MAC));
    host.limit_flows(4096);
    host.set_findings(vec![
        Finding {
            condition: types::LOCK,
            ok: false,
            reason: reasons::LOCK_HELD,
            message: "The xtables lock is held by somebody.".to_owned(),
        },
        Finding {
            condition: types::BACKEND,
            ok: true,
            reason: reasons::AS_NEEDED,
            message: "Using nft.".to_owned(),
        },
    ]);
    runner.once(&two()).await;
    let condition = |name: &str, status: &str| {
        let series = format!("stagenet_agent_condition{{condition=\"{name}\",status=\"{status}\"}}");
        value(&metrics, &series) > 0.5
    };
    assert!(condition(types::LOCK, "false") && !condition(types::LOCK, "true"));
    assert!(condition(types::BACKEND, "true") && condition(types::FENCE, "true"));
    assert!(condition(types::READY, "false"), "a mapping failed");
    assert!(
        !condition(types::DRIFTED, "true") && !condition(types::DRIFTED, "false"),
        "it is not there"
    );
    for (series, wanted) in [
        ("stagenet_agent_mappings{state=\"programmed\"}", 1.0),
        ("stagenet_agent_mappings{state=\"failed\"}", 1.0),
        ("stagenet_agent_mappings{state=\"refused\"}", 0.0),
        ("stagenet_agent_conntrack_entries", 0.0),
        ("stagenet_agent_conntrack_entries_limit", 4096.0),
        ("stagenet_agent_fenced_networks", 1.0),
        ("stagenet_agent_applies_total{result=\"changed\"}", 1.0),
        ("stagenet_agent_apply_duration_seconds_count", 1.0),
    ] {
        let is = value(&metrics, series);
        assert!((is - wanted).abs() < 0.01, "{series}: {is}");
    }
    let told = news.try_recv().unwrap();
    assert_eq!(told.reason, reasons::ADDRESS_IN_USE);
    assert!(
        told.notice().note.starts_with("NatMapping default/vm04: ") && told.message.contains(MAC),
        "{told:?}"
    );
    assert!(news.try_recv().is_err(), "and nothing else");
}
