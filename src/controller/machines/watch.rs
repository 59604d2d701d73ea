//! Watches one of `KubeVirt`'s kinds while a mapping names a machine and the cluster has the kind.
//!
//! Whether it has is told by the definition: that object alone is watched, by its name and its metadata only. A definition that is deleted and made again is another one, and the
//! kind is listed anew. A cluster without `KubeVirt`, or where nothing names a machine, pays nothing but that.

use std::pin::pin;

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
use super::store::{Objects, Shelf};
use super::{Known, Machines};
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

/// Watches whenever a mapping names a machine. Never ends by itself.
pub(super) async fn follow<T: Kept>(machines: Machines, client: Client) {
    let mut wanted = machines.wanted.subscribe();
    while wanted.wait_for(|wanted| *wanted).await.is_ok() {
        tokio::select! {
            () = unwanted(&mut wanted) => {}
            () = Follower::<T>::new(&machines, &client).run() => {}
        }
        *T::shelf(&mut machines.known()) = Shelf::Empty;
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
}

impl<'a, T: Kept> Follower<'a, T> {
    fn new(machines: &'a Machines, client: &'a Client) -> Self {
        Self {
            machines,
            client,
            definition: None,
            found: false,
            objects: stream::pending().boxed(),
            listing: Objects::new(),
        }
    }

    async fn run(mut self) {
        let name = format!("{}.{GROUP}", T::PLURAL);
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut definitions = pin!(watcher(Api::<Definition>::all(self.client.clone()), config).default_backoff());
        loop {
            tokio::select! {
                Some(event) = definitions.next() => self.definition(event),
                Some(event) = self.objects.next() => self.object(event),
                else => return,
            }
        }
    }

    fn definition(&mut self, event: Result<Event<Definition>, Error>) {
        match event {
            Ok(Event::Init) => self.found = false,
            Ok(Event::InitApply(definition) | Event::Apply(definition)) => {
                self.found = true;
                let uid = definition.uid();
                if self.definition != uid {
                    info!(kind = T::KIND, "watching machines that mappings name");
                    self.definition = uid;
                    self.listing.clear();
                    *T::shelf(&mut self.machines.known()) = Shelf::Empty;
                    self.objects = objects::<T>(self.client);
                }
            }
            Ok(Event::InitDone) if self.found => {}
            Ok(Event::InitDone | Event::Delete(_)) => {
                self.definition = None;
                self.objects = stream::pending().boxed();
                self.becomes(Shelf::Absent(format!("The cluster has no kind {}.{GROUP}", T::PLURAL)));
            }
            Err(error) => self.trouble(&error, "customresourcedefinitions.apiextensions.k8s.io"),
        }
    }

    fn object(&mut self, event: Result<Event<DynamicObject>, Error>) {
        match event {
            Ok(event) => {
                let mut known = self.machines.known();
                let mut objects = std::mem::take(T::shelf(&mut known));
                let news = objects.take(event, &mut self.listing, |key| known.named.contains(key));
                *T::shelf(&mut known) = objects;
                drop(known);
                if news {
                    self.machines.bell.notify_one();
                }
            }
            Err(error) => self.trouble(&error, &format!("{}.{GROUP}", T::PLURAL)),
        }
    }

    /// A watch that failed is tried again by itself, and what is known stays; but a right that is missing does not come by waiting.
    fn trouble(&self, error: &Error, what: &str) {
        if forbidden(error) {
            self.becomes(Shelf::Unreadable(format!("The controller may not list and watch {what}")));
        } else {
            warn!(kind = T::KIND, error = %chain(error), "watching failed; trying again");
        }
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
    watcher(api, watcher::Config::default()).default_backoff().boxed()
}

fn forbidden(error: &Error) -> bool {
    match error {
        Error::InitialListFailed(kube::Error::Api(status)) | Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 403,
        _ => false,
    }
}
