//! The one task that owns the kernel: waits for a reason, runs a pass, hands on what came of it.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, watch};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep_until};

use super::kept::Kept;
use super::outcome::Outcome;
use super::pass::{self, Settings};
use super::report::news::{News, Told};
use super::schedule::Schedule;
use super::source::{Problem, Snapshot, Snapshots};
use super::{check, counting};
use crate::host::{Backend, Connections, Host, HostEvent};
use crate::netfilter::Table;
use crate::telemetry::{Desk, Health, Metrics, Questions, object_key};

/// The first look at everything comes soon: what changed between the first pass and the beginning of the events on links is not known.
const FIRST_LOOK: Duration = Duration::from_secs(5);
/// How often counters are read for metrics.
const COUNT_POLL: Duration = Duration::from_secs(15);
/// How old the page `/counters` may be: many who ask at once cost one reading.
const PAGE_AGE: Duration = Duration::from_secs(1);
/// Longest wait after failures.
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// News that wait to be told.
const NEWS: usize = 256;
/// Events taken at once: a foreign flush of 10 000 routes is one reason, not 10 000.
const EVENT_BATCH: usize = 256;

/// How the runner behaves.
#[derive(Clone, Debug)]
pub struct RunnerOptions {
    /// What passes are run with.
    pub settings: Settings,
    /// Interval of the slow full check.
    pub resync: Duration,
    /// Least time between passes.
    pub min_interval: Duration,
    /// How many mappings have metrics of their own, the first by name.
    pub mapping_series: usize,
}

/// What one pass leaves for those that report.
#[derive(Debug)]
pub struct Report {
    /// What it worked on.
    pub snapshot: Arc<Snapshot>,
    /// What it did.
    pub outcome: Outcome,
    /// Who changed what was repaired, if the kernel told.
    pub by: Option<String>,
    /// Whether somebody keeps undoing repairs.
    pub contended: bool,
}

/// The latest report.
pub type Reports = watch::Receiver<Option<Arc<Report>>>;

/// Runs passes until `stop` resolves. Rules stay as they are then.
#[derive(Debug)]
pub struct Runner<H> {
    host: H,
    kept: Kept,
    options: RunnerOptions,
    schedule: Schedule,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    reports: watch::Sender<Option<Arc<Report>>>,
    blamed: BTreeSet<String>,
    problems: Vec<Problem>,
    told: Told,
    news: Option<mpsc::Sender<News>>,
    desk: Desk,
    questions: Questions,
    page: Option<(Instant, String)>,
}

impl<H: Host> Runner<H> {
    /// Nothing is read or written yet.
    pub fn new(host: H, options: RunnerOptions, metrics: Arc<Metrics>, health: Arc<Health>) -> Self {
        let (desk, questions) = Desk::open();
        Self {
            desk,
            questions,
            page: None,
            host,
            kept: Kept::default(),
            schedule: Schedule::new(options.min_interval, MAX_BACKOFF),
            options,
            metrics,
            health,
            reports: watch::channel(None).0,
            blamed: BTreeSet::new(),
            problems: Vec::new(),
            told: Told::default(),
            news: None,
        }
    }

    /// Where reports can be had.
    pub fn reports(&self) -> Reports {
        self.reports.subscribe()
    }

    /// What people should be told, from now on. Unlike reports none is passed over, but for those that nobody takes for long.
    pub fn news(&mut self) -> mpsc::Receiver<News> {
        let (sender, news) = mpsc::channel(NEWS);
        self.news = Some(sender);
        news
    }

    /// Where the page `/counters` can be asked for.
    pub fn desk(&self) -> Desk {
        self.desk.clone()
    }

    /// One pass now.
    pub async fn once(&mut self, snapshot: &Arc<Snapshot>) -> Arc<Report> {
        self.pass(snapshot).await
    }

    /// Works until `stop` resolves (Ok) or the source or the host's event stream ends (Err says which).
    pub async fn run(mut self, mut source: Snapshots, stop: impl Future<Output = ()>) -> Result<(), String> {
        let mut events = self.host.events();
        let mut look = after(FIRST_LOOK.min(self.options.resync));
        let mut poll = after(check::poll_interval(0));
        let mut count = ticker(COUNT_POLL);
        let mut batch = Vec::new();
        tokio::pin!(stop);
        if source.borrow_and_update().is_some() {
            self.schedule.want_fresh();
        }
        loop {
            self.health.beat();
            let snapshot = source.borrow().clone();
            let due = snapshot.as_ref().and_then(|_| self.schedule.due(Instant::now()));
            tokio::select! {
                () = &mut stop => {
                    tracing::info!("stopping; rules stay in force, `stagenet cleanup` removes them");
                    return Ok(());
                }
                changed = source.changed() => {
                    changed.map_err(|_| "the task that watches objects".to_owned())?;
                    self.schedule.want_fresh();
                }
                count = events.recv_many(&mut batch, EVENT_BATCH) => {
                    if count == 0 {
                        return Err("the stream of kernel events".to_owned());
                    }
                    batch.drain(..).for_each(|event| self.note(event));
                }
                () = sleep_until(look) => look = after(self.look().await),
                () = sleep_until(poll), if self.host.backend() == Some(Backend::Legacy) => {
                    if !self.kept.tables_stand(&mut self.host).await {
                        self.schedule.want();
                    }
                    poll = after(check::poll_interval(self.kept.rules()));
                }
                // Without a condition: it is also what tells that the runner lives while there is nothing to do.
                _ = count.tick() => {
                    self.see_fight_end();
                    self.count().await;
                }
                Some(reply) = self.questions.recv() => {
                    // Whoever asked may have given up.
                    let _ = reply.send(self.page().await);
                }
                () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {
                    if let Some(snapshot) = snapshot {
                        self.pass(&snapshot).await;
                    }
                }
            }
        }
    }

    /// What an event puts in doubt. An event that agrees with what is known is none of our business.
    fn note(&mut self, event: HostEvent) {
        match event {
            HostEvent::Tables { by, chains } => {
                for table in [Table::Mangle, Table::Raw, Table::Nat, Table::Filter] {
                    let prefix = format!("{}/", table.as_str());
                    if chains.is_empty() || chains.iter().any(|c| c.starts_with(&prefix)) {
                        self.kept.doubt_table(table);
                    }
                }
                self.blamed.extend(by);
            }
            HostEvent::RouteGone(table, destination) if self.kept.has_route(table, &destination) => self.kept.doubt_links(),
            HostEvent::RuleGone(rule) if self.kept.has_rule(&rule) => self.kept.doubt_links(),
            HostEvent::ProxyGone(address) if self.kept.has_proxy(address) => self.kept.doubt_links(),
            HostEvent::RouteGone(..) | HostEvent::RuleGone(_) | HostEvent::ProxyGone(_) => return,
            HostEvent::Links => self.kept.doubt_interfaces(),
            HostEvent::Overrun => {
                tracing::debug!("kernel events were lost; everything is checked");
                self.kept.doubt_all();
            }
        }
        self.schedule.want();
    }

    /// Only a pass reports that a fight has ended.
    fn see_fight_end(&mut self) {
        let contended = self.reports.borrow().as_ref().is_some_and(|report| report.contended);
        if contended && !self.schedule.contended(Instant::now()) {
            self.schedule.want();
        }
    }

    /// Looks whether anything has changed that no event told of. Returns the time until it is looked again.
    async fn look(&mut self) -> Duration {
        let started = Instant::now();
        // Legacy tables are read for their own sake, mostly more often than this.
        let polled = self.host.backend() == Some(Backend::Legacy) && check::poll_interval(self.kept.rules()) <= self.options.resync;
        if self.kept.stands(&mut self.host, polled).await {
            super::report::succeeded(&self.metrics);
        } else {
            self.schedule.want();
        }
        check::look_interval(self.options.resync, started.elapsed())
    }

    async fn pass(&mut self, snapshot: &Arc<Snapshot>) -> Arc<Report> {
        self.schedule.begin();
        let started = Instant::now();
        let outcome = pass::run(&mut self.host, &mut self.kept, snapshot, &self.options.settings).await;
        let ended = Instant::now();
        self.schedule.end(ended, outcome.failed(), !outcome.drift.is_empty());
        let blamed = std::mem::take(&mut self.blamed);
        let mut report = Report {
            snapshot: snapshot.clone(),
            by: (!outcome.drift.is_empty() && !blamed.is_empty()).then(|| blamed.into_iter().collect::<Vec<_>>().join(", ")),
            contended: self.schedule.contended(ended),
            outcome,
        };
        self.tell(&report, ended - started);
        report.outcome.settle();
        // What did not go well is left: thousands of mappings that are as planned need not be looked at for these.
        super::report::measure_conditions(&self.metrics, &report);
        self.tell_news(&report);
        self.measure_connections().await;
        let report = Arc::new(report);
        self.reports.send_replace(Some(report.clone()));
        report
    }

    /// Log and metrics.
    fn tell(&mut self, report: &Report, took: Duration) {
        let outcome = &report.outcome;
        super::report::measure(&self.metrics, report, took);
        if self.problems != report.snapshot.problems {
            self.problems.clone_from(&report.snapshot.problems);
            // In a cluster a place is an object, in a directory a file.
            let cluster = report.snapshot.labels.is_some();
            for Problem { place, message } in &self.problems {
                if cluster {
                    tracing::warn!(object = place, "{message}");
                } else {
                    tracing::warn!(file = place, "{message}");
                }
            }
        }
        for drift in &outcome.drift {
            let by = report.by.as_deref().unwrap_or("not known");
            tracing::warn!(place = drift.place, by, "repaired what another program changed: {}", drift.what);
        }
        for trouble in &outcome.troubles {
            tracing::error!(reason = trouble.reason, "{}", trouble.message);
        }
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        if outcome.writes > 0 || outcome.failed() {
            tracing::info!(
                result = outcome.label(),
                writes = outcome.writes,
                flows_deleted = outcome.flows_deleted,
                ms,
                "pass"
            );
        } else {
            tracing::debug!(result = outcome.label(), ms, "pass");
        }
        if outcome.complete {
            self.health.ready();
        }
    }

    /// What a person should be told.
    fn tell_news(&mut self, report: &Report) {
        for news in self.told.news(report) {
            if let Some(key) = &news.mapping {
                let object = object_key("NatMapping", Some(&key.namespace), &key.name);
                tracing::error!(object, reason = news.reason, "{}", news.message);
            }
            if let Some(sender) = &self.news {
                // The log has it. Nobody takes news while there is no object to say them of.
                let _ = sender.try_send(news);
            }
        }
    }

    /// What the metrics tell of what flows.
    async fn count(&mut self) {
        self.measure_connections().await;
        if self.metrics.take_asked() {
            self.kept.scraped.shown();
        }
        // The legacy tools have to save whole tables for it.
        let cheap = self.host.backend() == Some(Backend::Nft);
        if self.reports.borrow().is_none() || !(cheap || self.kept.scraped.lasts()) {
            return;
        }
        let mut tables = vec![Table::Mangle];
        if self.options.mapping_series > 0 {
            tables.push(Table::Nat);
            self.kept.interest.shown();
        }
        if let Err(error) = counting::read_tables(&mut self.host, &mut self.kept, &tables).await {
            tracing::debug!(%error, "reading counters");
            return;
        }
        self.metrics.set_denied(&self.kept.counts.denied());
        if self.options.mapping_series > 0 {
            super::report::measure_mappings(&self.metrics, &self.kept.counts, self.options.mapping_series);
        }
    }

    async fn measure_connections(&mut self) {
        if let Some(Connections { entries, limit }) = self.host.connections().await {
            let gauge = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
            self.metrics.conntrack_entries.set(gauge(entries));
            self.metrics.conntrack_limit.set(gauge(limit));
        }
    }

    /// The page `/counters`, as of now or of a moment ago.
    async fn page(&mut self) -> Result<String, String> {
        if let Some((_, page)) = self.page.as_ref().filter(|(made, _)| made.elapsed() < PAGE_AGE) {
            return Ok(page.clone());
        }
        if self.reports.borrow().is_none() {
            return Err("the agent has not completed its first pass".to_owned());
        }
        self.kept.interest.shown();
        let read = counting::read_tables(&mut self.host, &mut self.kept, &Table::ALL).await;
        read.map_err(|error| format!("reading counters: {error}"))?;
        let page = format!("{:#}\n", self.kept.counts.page(&self.options.settings.node, SystemTime::now()));
        self.page = Some((Instant::now(), page.clone()));
        Ok(page)
    }
}

fn after(pause: Duration) -> tokio::time::Instant {
    tokio::time::Instant::now() + pause.max(Duration::from_millis(10))
}

/// Ticks from one period on, never in bursts.
fn ticker(period: Duration) -> Interval {
    let period = period.max(Duration::from_millis(10));
    let mut ticker = interval(period);
    ticker.reset();
    ticker.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticker
}

/// A channel for whoever stops the runner: SIGTERM or SIGINT.
pub fn stop_signal() -> Result<impl Future<Output = ()>, super::AgentError> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).map_err(super::AgentError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(super::AgentError::Signals)?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
