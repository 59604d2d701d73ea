//! `/livez`, `/readyz`, `/metrics` and, where there is one, `/counters` over HTTP.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::Metrics;

/// The server could not be started, or died.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The address is taken, not ours, or not permitted.
    #[error("listening on {address} for probes and metrics: {source}; choose another with --listen, or --listen none")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The server ended.
    #[error("serving probes and metrics: {0}")]
    Serve(std::io::Error),
}

/// What the probes answer. Shared between the task that works and the server.
#[derive(Debug)]
pub struct Health {
    inner: Mutex<Inner>,
    /// How long the working task may be silent before `/livez` fails.
    patience: Duration,
}

#[derive(Debug)]
struct Inner {
    /// Why not ready; None: ready.
    waiting_for: Option<String>,
    /// What somebody else than the working task waits for.
    held_up: Option<String>,
    beat: Instant,
}

impl Health {
    /// Not ready yet; alive as long as [`Health::beat`] is called more often than every `patience`.
    pub fn new(waiting_for: &str, patience: Duration) -> Self {
        Self {
            inner: Mutex::new(Inner {
                waiting_for: Some(waiting_for.to_owned()),
                held_up: None,
                beat: Instant::now(),
            }),
            patience,
        }
    }

    /// Ready from now on.
    pub fn ready(&self) {
        self.lock().waiting_for = None;
    }

    /// Not ready, and why.
    pub fn not_ready(&self, waiting_for: &str) {
        self.lock().waiting_for = Some(waiting_for.to_owned());
    }

    /// Not ready for a reason of its own, whatever [`Health::ready`] says, until this is called with None. Returns whether that is new.
    pub fn hold_up(&self, by: Option<String>) -> bool {
        let mut inner = self.lock();
        let new = inner.held_up != by;
        inner.held_up = by;
        new
    }

    /// The working task is alive.
    pub fn beat(&self) {
        self.lock().beat = Instant::now();
    }

    /// Err(why) if the working task has been silent for too long.
    pub fn live(&self) -> Result<(), String> {
        let silent = self.lock().beat.elapsed();
        if silent <= self.patience {
            return Ok(());
        }
        Err(format!("the working task has been silent for {} s", silent.as_secs()))
    }

    /// Err(why) while not ready.
    pub fn readiness(&self) -> Result<(), String> {
        let inner = self.lock();
        inner.waiting_for.clone().or_else(|| inner.held_up.clone()).map_or(Ok(()), Err)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Questions for a page of JSON, for the task that can make it.
pub type Questions = mpsc::Receiver<oneshot::Sender<Result<String, String>>>;

/// Where a page of JSON is asked for that another task makes.
#[derive(Clone, Debug)]
pub struct Desk(mpsc::Sender<oneshot::Sender<Result<String, String>>>);

impl Desk {
    /// A desk, and what is asked there.
    pub fn open() -> (Self, Questions) {
        let (sender, questions) = mpsc::channel(WAITING);
        (Self(sender), questions)
    }

    /// Asks, and waits a while for the answer.
    pub async fn ask(&self) -> Result<String, String> {
        let busy = |_| "the working task is busy; ask again in a moment".to_owned();
        let (reply, answer) = oneshot::channel();
        let ask = async {
            self.0.send(reply).await.map_err(|_| ENDED.to_owned())?;
            answer.await.map_err(|_| ENDED.to_owned())?
        };
        timeout(ANSWER, ask).await.map_err(busy)?
    }
}

const ENDED: &str = "the working task has ended";
/// Questions that wait at the same time.
const WAITING: usize = 8;
/// How long an answer may take: longer than a pass.
const ANSWER: Duration = Duration::from_secs(10);

#[derive(Clone)]
struct Shared {
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    counters: Option<Desk>,
}

/// Binds `address` and serves until the task is dropped. The binding is done before the returned future is first polled to completion,
/// so call sites see a taken address as an error of their start.
pub async fn serve(address: SocketAddr, health: Arc<Health>, metrics: Arc<Metrics>, counters: Option<Desk>) -> Result<(), ServeError> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| ServeError::Bind { address, source })?;
    tracing::info!(address = %listener.local_addr().unwrap_or(address), "serving probes, /metrics and, of an agent, /counters");
    axum::serve(listener, router(health, metrics, counters))
        .await
        .map_err(ServeError::Serve)
}

fn router(health: Arc<Health>, metrics: Arc<Metrics>, counters: Option<Desk>) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(page))
        .route("/counters", get(counted))
        .with_state(Shared { health, metrics, counters })
}

async fn livez(State(shared): State<Shared>) -> Response {
    probe(shared.health.live())
}

async fn readyz(State(shared): State<Shared>) -> Response {
    probe(shared.health.readiness())
}

fn probe(answer: Result<(), String>) -> Response {
    match answer {
        Ok(()) => "ok\n".into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

async fn page(State(shared): State<Shared>) -> Response {
    match shared.metrics.page() {
        Ok(page) => (
            [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")],
            page,
        )
            .into_response(),
        Err(e) => (StatusCode::INTERNAL_SERVER_ERROR, format!("encoding metrics: {e}\n")).into_response(),
    }
}

async fn counted(State(shared): State<Shared>) -> Response {
    let Some(desk) = shared.counters else {
        return (StatusCode::NOT_FOUND, "this program counts no packets\n").into_response();
    };
    match desk.ask().await {
        Ok(page) => ([(header::CONTENT_TYPE, "application/json")], page).into_response(),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::Program;
    use super::*;

    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn probes_say_why_not() {
        let health = Arc::new(Health::new("the first list of NatMappings", Duration::ZERO));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (desk, mut questions) = Desk::open();
        let app = router(health.clone(), Arc::new(Metrics::new(Program::Agent)), Some(desk));
        let server = tokio::spawn(async move { axum::serve(listener, app).await });

        let answer = ask(address, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.contains("the first list of NatMappings"), "{answer}");
        health.ready();
        assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        let silent = ask(address, "/livez").await;
        assert!(silent.starts_with("HTTP/1.1 503") && silent.contains("silent"), "{silent}");
        assert!(ask(address, "/metrics").await.contains("stagenet_build_info"));

        let asked = tokio::spawn(async move { ask(address, "/counters").await });
        questions.recv().await.unwrap().send(Ok("{}\n".to_owned())).unwrap();
        let answer = asked.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("{}\n"), "{answer}");
        drop(questions);
        assert!(ask(address, "/counters").await.contains("has ended"));
        server.abort();
    }

    #[tokio::test]
    async fn a_taken_address_is_named_with_the_way_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let health = Arc::new(Health::new("", Duration::from_secs(1)));
        let error = serve(address, health, Arc::new(Metrics::new(Program::Agent)), None)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains(&address.to_string()) && error.contains("--listen"), "{error}");
    }
}
