//! Labels of namespaces, watched by the controller only while some network says by labels who may claim. Agents have a watch of their own, and [`Heard`] in common.
//!
//! Nothing is known before the first list is complete, and nothing any more as soon as nobody needs it: who asks must tell "not known" from "no labels".
//! While the API server is away, what was last known stays.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Namespace;
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch;
use tracing::{info, warn};

use super::backoff::WatchBackoff;
use crate::plan::Namespaces;
use crate::telemetry::chain;

/// What is known, and whether it is wanted.
#[derive(Clone, Debug)]
pub struct Labels {
    wanted: watch::Sender<bool>,
    known: watch::Receiver<Option<Arc<Namespaces>>>,
}

impl Labels {
    /// Nothing is wanted yet. The future does the work and ends when the last [`Labels`] is dropped.
    pub fn new(client: Client) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (wanted, asked) = watch::channel(false);
        let (tell, known) = watch::channel(None);
        (Self { wanted, known }, keep(client, asked, tell))
    }

    /// Labels that never come: for those who ask for none.
    pub fn none() -> Self {
        Self {
            wanted: watch::Sender::new(false),
            known: watch::Sender::new(None).subscribe(),
        }
    }

    /// Says whether labels are needed. The answer is what is known then: None while they are needed and the first list is not complete.
    pub fn ask(&self, needed: bool) -> Option<Arc<Namespaces>> {
        self.wanted.send_if_modified(|wanted| std::mem::replace(wanted, needed) != needed);
        if needed {
            self.known.borrow().clone()
        } else {
            Some(Arc::default())
        }
    }

    /// Returns when something else is known than at the last call. Never, once the work has ended.
    pub async fn changed(&mut self) {
        if self.known.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

async fn keep(client: Client, mut wanted: watch::Receiver<bool>, tell: watch::Sender<Option<Arc<Namespaces>>>) {
    while wanted.wait_for(|wanted| *wanted).await.is_ok() {
        tokio::select! {
            () = follow(&client, &tell) => {}
            ended = unwanted(&mut wanted) => if ended { return },
        }
        tell.send_replace(None);
    }
}

/// Returns when nobody wants labels any more; true if nobody ever will.
async fn unwanted(wanted: &mut watch::Receiver<bool>) -> bool {
    wanted.wait_for(|wanted| !*wanted).await.is_err()
}

/// Tells of all labels, first when the list is complete and then whenever one differs.
async fn follow(client: &Client, tell: &watch::Sender<Option<Arc<Namespaces>>>) {
    let api: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
    let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).backoff(WatchBackoff::default()));
    let mut heard = Heard::default();
    let mut away = false;
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                if !matches!(event, Event::Init) && std::mem::take(&mut away) {
                    info!(kind = "Namespace", "watching again");
                }
                if heard.take(event) {
                    tell.send_replace(heard.labels().cloned());
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut away, true) {
                    warn!(
                        kind = "Namespace",
                        error = %chain(&error),
                        "watching failed; what was last known of namespaces stays in force, it is tried again"
                    );
                }
            }
        }
    }
}

/// All namespaces as the API server last told. Pure.
#[derive(Debug, Default)]
pub struct Heard {
    labels: Arc<Namespaces>,
    listing: Namespaces,
    complete: bool,
}

impl Heard {
    /// The labels. None before the first list is complete.
    pub fn labels(&self) -> Option<&Arc<Namespaces>> {
        self.complete.then_some(&self.labels)
    }

    /// Takes in one event and tells whether labels are other than before.
    pub fn take(&mut self, event: Event<PartialObjectMeta<Namespace>>) -> bool {
        match event {
            Event::Init => {
                self.listing.clear();
                false
            }
            Event::InitApply(namespace) => {
                self.listing.insert(namespace.name_any(), labels(&namespace));
                false
            }
            Event::InitDone => {
                let mut listed = std::mem::take(&mut self.listing);
                // A namespace that is gone has no mappings any more, so its labels say nothing; one that the list merely lacks, because the API server has forgotten it for now, must not
                // take the permission of all that is in it away.
                for (name, labels) in &*self.labels {
                    listed.entry(name.clone()).or_insert_with(|| labels.clone());
                }
                let changed = !std::mem::replace(&mut self.complete, true) || *self.labels != listed;
                *Arc::make_mut(&mut self.labels) = listed;
                changed
            }
            Event::Apply(namespace) => {
                let (name, labels) = (namespace.name_any(), labels(&namespace));
                let changed = self.labels.get(&name) != Some(&labels);
                if changed {
                    Arc::make_mut(&mut self.labels).insert(name, labels);
                }
                changed
            }
            Event::Delete(namespace) => {
                let name = namespace.name_any();
                self.labels.contains_key(&name) && Arc::make_mut(&mut self.labels).remove(&name).is_some()
            }
        }
    }
}

fn labels(namespace: &PartialObjectMeta<Namespace>) -> BTreeMap<String, String> {
    namespace.labels().clone()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn namespace(name: &str, label: &str) -> PartialObjectMeta<Namespace> {
        let mut object = PartialObjectMeta::<Namespace>::default();
        object.metadata.name = Some(name.into());
        object.metadata.labels = Some(BTreeMap::from([("team".to_owned(), label.to_owned())]));
        object
    }

    #[test]
    fn labels_are_told_when_the_list_is_complete_and_then_whenever_one_differs() {
        let mut heard = Heard::default();
        assert!(!heard.take(Event::Init));
        assert!(!heard.take(Event::InitApply(namespace("a", "x"))));
        assert_eq!(heard.labels(), None);
        assert!(heard.take(Event::InitDone));
        assert_eq!(heard.labels["a"]["team"], "x");
        assert!(!heard.take(Event::Apply(namespace("a", "x"))), "another version of the same labels");
        assert!(heard.take(Event::Apply(namespace("a", "y"))));
        assert!(heard.take(Event::Apply(namespace("b", "y"))));
        // A list after an outage says what differs, and nothing if nothing does. What it lacks keeps its labels.
        for (label, news) in [("z", true), ("z", false)] {
            heard.take(Event::Init);
            heard.take(Event::InitApply(namespace("b", label)));
            assert_eq!(
                heard.labels["b"]["team"] == "y",
                news,
                "the old state stays until the list is complete"
            );
            assert_eq!(heard.take(Event::InitDone), news);
        }
        heard.take(Event::Init);
        assert!(!heard.take(Event::InitDone));
        assert_eq!((&*heard.labels["a"]["team"], &*heard.labels["b"]["team"]), ("y", "z"));
        assert!(heard.take(Event::Delete(namespace("b", "y"))));
        assert!(!heard.take(Event::Delete(namespace("b", "y"))));
        let mut empty = Heard::default();
        empty.take(Event::Init);
        assert!(empty.take(Event::InitDone), "an empty first list is news");
    }

    #[tokio::test]
    async fn what_nobody_needs_is_known_to_be_nothing() {
        let labels = Labels::none();
        assert_eq!(labels.ask(false), Some(Arc::default()));
        assert_eq!(labels.ask(true), None);
    }
}
