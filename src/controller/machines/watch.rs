//! Watches one of `KubeVirt`'s kinds while a mapping names a machine and the cluster has the kind.
//!
//! Whether it has is told by the definition: that object alone is watched, by its name and its metadata only. A definition that is deleted and made again is another one, and the
//! kind is listed anew. A cluster without `KubeVirt`, or where nothing names a machine, pays nothing but that.

use std::pin::pin;
use std::time::{Duration, Instant};

use futures::stream::{self, BoxStream, StreamExt};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DynamicObject};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Error, Event, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch::Receiver;
use tracing::{info, warn};

use super::kinds::{GROUP, Instance, Kind, Machine, VERSION};
use super::store::{Key, Objects, Shelf};
use super::{Known, Machines};
use crate::controller::backoff::WatchBackoff;
use crate::controller::doubt::{Believed, Doubt};
use crate::telemetry::chain;

/// A kind that has a place in [`Known`].
pub(super) trait Kept: Kind {
    fn shelf(known: &mut Known) -> &mut Shelf<Self>;
}

impl Kept for Machine {
    fn shelf(known: &mut Known) -> &mut Shelf<Self> {
        &mut known.machines
    }
}

impl Kept for Instance {
    fn shelf(known: &mut Known) -> &mut Shelf<Self> {
        &mut known.instances
    }
}

/// How often it is tried whether a right that was missing has been given.
const RETRY: Duration = Duration::from_secs(10);

/// Watches whenever a mapping names a machine. Never ends by itself. `guard`: how long what a list lacks is held when it lacks more than half.
pub(super) async fn follow<T: Kept>(machines: Machines, client: Client, guard: Duration) {
    let mut wanted = machines.wanted.subscribe();
    while wanted.wait_for(|wanted| *wanted).await.is_ok() {
        let watching = async {
            Follower::<T>::new(&machines, &client, guard).run().await;
            tokio::time::sleep(RETRY).await;
        };
        tokio::select! {
            () = unwanted(&mut wanted) => *T::shelf(&mut machines.known()) = Shelf::Empty,
            // What cannot be read is said until it can.
            () = watching => {}
        }
    }
}

async fn unwanted(wanted: &mut Receiver<bool>) {
    // An error says that nobody will ever want anything again.
    let _ = wanted.wait_for(|wanted| !*wanted).await;
}

type Definition = PartialObjectMeta<CustomResourceDefinition>;

struct Follower<'a, T> {
    machines: &'a Machines,
    client: &'a Client,
    /// Uid of the definition whose objects are watched.
    definition: Option<String>,
    /// Whether a list of definitions has brought the one that is looked for.
    found: bool,
    objects: BoxStream<'static, Result<Event<DynamicObject>, Error>>,
    listing: Objects<T>,
    guard: Duration,
    doubt: Doubt<Key>,
}

impl<'a, T: Kept> Follower<'a, T> {
    fn new(machines: &'a Machines, client: &'a Client, guard: Duration) -> Self {
        Self {
            machines,
            client,
            definition: None,
            found: false,
            objects: stream::pending().boxed(),
            listing: Objects::new(),
            guard,
            doubt: Doubt::new(guard, Believed::Half),
        }
    }

    /// Returns when something may not be watched: a watch that was refused once tells of nothing that happened meanwhile, so both begin anew.
    async fn run(mut self) {
        let name = format!("{}.{GROUP}", T::PLURAL);
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut definitions = pin!(watcher(Api::<Definition>::all(self.client.clone()), config).backoff(WatchBackoff::default()));
        loop {
            let due = self.doubt.due().unwrap_or_else(|| Instant::now() + Duration::from_hours(1));
            let refused = tokio::select! {
                () = tokio::time::sleep_until(due.into()) => self.over(),
                Some(event) = definitions.next() => self.definition(event),
                Some(event) = self.objects.next() => self.object(event),
                else => return,
            };
            if refused {
                return;
            }
        }
    }

    /// Returns whether the watch was refused, as [`Self::object`] does.
    fn definition(&mut self, event: Result<Event<Definition>, Error>) -> bool {
        match event {
            Ok(Event::Init) => self.found = false,
            Ok(Event::InitApply(definition) | Event::Apply(definition)) => {
                self.found = true;
                let uid = definition.uid();
                if self.definition != uid {
                    info!(kind = T::KIND, "watching machines that mappings name");
                    self.definition = uid;
                    self.listing.clear();
                    self.doubt = Doubt::new(self.guard, Believed::Half);
                    let mut known = self.machines.known();
                    let present = T::shelf(&mut known);
                    if !matches!(present, Shelf::Unreadable(_)) {
                        *present = Shelf::Empty;
                    }
                    drop(known);
                    self.objects = objects::<T>(self.client);
                }
            }
            Ok(Event::InitDone) if self.found => {}
            Ok(Event::InitDone | Event::Delete(_)) => {
                self.definition = None;
                self.doubt = Doubt::new(self.guard, Believed::Half);
                self.objects = stream::pending().boxed();
                self.becomes(Shelf::Absent(format!("The cluster has no kind {}.{GROUP}", T::PLURAL)));
            }
            Err(error) => return self.trouble(&error, "customresourcedefinitions.apiextensions.k8s.io"),
        }
        false
    }

    fn object(&mut self, event: Result<Event<DynamicObject>, Error>) -> bool {
        match event {
            Ok(event) => {
                let mut known = self.machines.known();
                let mut objects = std::mem::take(T::shelf(&mut known));
                objects.doubt(&event, &mut self.listing, &mut self.doubt, Instant::now());
                if let (Event::InitDone, Some(message)) = (&event, self.doubt.message(T::KIND, |(space, name)| format!("{space}/{name}"))) {
                    warn!(kind = T::KIND, count = self.doubt.held().len(), "{message}");
                }
                let news = objects.take(event, &mut self.listing, |key| known.named.contains(key));
                *T::shelf(&mut known) = objects;
                drop(known);
                if news {
                    self.machines.bell.notify_one();
                }
            }
            Err(error) => return self.trouble(&error, &format!("{}.{GROUP}", T::PLURAL)),
        }
        false
    }

    /// Takes for gone what a list lacked for long enough. Returns that nothing was refused.
    fn over(&mut self) -> bool {
        let gone = self.doubt.over(Instant::now());
        let mut known = self.machines.known();
        let mut objects = std::mem::take(T::shelf(&mut known));
        let news = objects.over(&gone, |key| known.named.contains(key));
        *T::shelf(&mut known) = objects;
        drop(known);
        if !gone.is_empty() {
            warn!(
                kind = T::KIND,
                count = gone.len(),
                "nobody has told of what the list lacks: taken for deleted"
            );
        }
        if news {
            self.machines.bell.notify_one();
        }
        false
    }

    /// A watch that failed is tried again by itself, and what is known stays; but a right that is missing does not come by waiting. Returns whether it is that.
    fn trouble(&self, error: &Error, what: &str) -> bool {
        let refused = forbidden(error);
        if refused {
            self.becomes(Shelf::Unreadable(format!("The controller may not list and watch {what}")));
        } else {
            warn!(kind = T::KIND, error = %chain(error), "watching failed; trying again");
        }
        refused
    }

    /// There is nothing to be known of machines any more.
    fn becomes(&self, now: Shelf<T>) {
        let why = match &now {
            Shelf::Absent(why) | Shelf::Unreadable(why) => why.clone(),
            _ => String::new(),
        };
        if T::shelf(&mut self.machines.known()).becomes(now) {
            warn!(kind = T::KIND, why, "machines that mappings name cannot be looked at");
            self.machines.bell.notify_one();
        }
    }
}

fn objects<T: Kept>(client: &Client) -> BoxStream<'static, Result<Event<DynamicObject>, Error>> {
    let resource = ApiResource {
        group: GROUP.to_owned(),
        version: VERSION.to_owned(),
        api_version: format!("{GROUP}/{VERSION}"),
        kind: T::KIND.to_owned(),
        plural: T::PLURAL.to_owned(),
    };
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    watcher(api, watcher::Config::default()).backoff(WatchBackoff::default()).boxed()
}

fn forbidden(error: &Error) -> bool {
    match error {
        Error::InitialListFailed(kube::Error::Api(status)) | Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 403,
        _ => false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};
    use tokio::sync::Notify;

    use super::*;

    fn list(items: &Value) -> (u16, Value) {
        let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "7"}, "items": items});
        (200, list)
    }

    /// A cluster with the kind, whose API server refuses the first lists of machines.
    fn refusing(times: usize) -> Client {
        let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        let refused = AtomicUsize::new(0);
        tokio::spawn(async move {
            let mut watches = Vec::new();
            while let Some((request, send)) = handle.next_request().await {
                if request.uri().query().is_some_and(|query| query.contains("watch=true")) {
                    watches.push(send);
                    continue;
                }
                let (code, body) = if request.uri().path().contains("customresourcedefinitions") {
                    list(&json!([{
                        "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
                        "metadata": {"name": "virtualmachines.kubevirt.io", "uid": "u"},
                    }]))
                } else if refused.fetch_add(1, Ordering::Relaxed) < times {
                    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403, "reason": "Forbidden", "message": "no"});
                    (403, status)
                } else {
                    list(&json!([]))
                };
                let response = Response::builder()
                    .status(code)
                    .body(Body::from(serde_json::to_vec(&body).unwrap()));
                send.send_response(response.unwrap());
            }
        });
        Client::new(service, "default")
    }

    /// A right that comes back is noticed without a restart, and until then it is said all the while.
    #[tokio::test(start_paused = true)]
    async fn a_right_that_is_given_back_is_taken_into_use() {
        let machines = Machines::new(Arc::new(Notify::new()));
        machines.wanted.send_replace(true);
        let watching = tokio::spawn(follow::<Machine>(machines.clone(), refusing(2), Duration::ZERO));
        let mut said = Vec::new();
        while said.last() != Some(&"complete") {
            let now = match &machines.known().machines {
                Shelf::Empty => "empty",
                Shelf::Absent(_) => "absent",
                Shelf::Unreadable(_) => "unreadable",
                Shelf::Complete(_) => "complete",
            };
            if said.last() != Some(&now) {
                said.push(now);
            }
            assert!(!watching.is_finished());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(said, ["empty", "unreadable", "complete"]);
    }
}
