//! What is watched of the API server: each topic is a stream of its own, opened and closed as it begins and ceases to concern the node.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Debug, Display, Formatter};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::stream::{AbortHandle, BoxStream, SelectAll, Stream, StreamExt, abortable};
use k8s_openapi::api::core::v1::{Namespace, Node};
use k8s_openapi::jiff::Timestamp;
use kube::api::ObjectMeta;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;

use crate::api::{GatewayNode, NatMapping, StagingNetwork};
use crate::controller::backoff::WatchBackoff;
use crate::telemetry::chain;

/// Something that is watched.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Topic {
    /// All networks.
    Networks,
    /// The own Node, its metadata only.
    OwnNode,
    /// The own report.
    OwnGateway,
    /// All reports.
    Gateways,
    /// All namespaces, their metadata only.
    Namespaces,
    /// The mappings of one network (a selectable field).
    Mappings(String),
}

/// What a stream says.
#[allow(clippy::large_enum_variant)] // mappings are the large ones, and almost all that come
pub(super) enum News {
    // Boxed: large and rare.
    Network(Box<Event<DeserializeGuard<StagingNetwork>>>),
    /// Of the network with this name.
    Mapping(Arc<str>, Event<DeserializeGuard<NatMapping>>),
    Gateway(Event<DeserializeGuard<GatewayNode>>),
    Node(Event<PartialObjectMeta<Node>>),
    Namespace(Event<PartialObjectMeta<Namespace>>),
    /// That watch failed; it is tried again by itself.
    Away(Topic, String),
}

/// A kind of our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Network,
    Mapping,
    Gateway,
}

impl Display for Topic {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Networks => "StagingNetwork",
            Self::OwnNode => "Node",
            Self::OwnGateway | Self::Gateways => "GatewayNode",
            Self::Namespaces => "Namespace",
            Self::Mappings(_) => "NatMapping",
        })
    }
}

impl News {
    /// When an object was created that is told to be deleted, and which of the kinds it is that have definitions which people replace.
    pub(super) fn deleted(&self) -> Option<(Kind, Option<Timestamp>)> {
        let created = |meta: &ObjectMeta| meta.creation_timestamp.as_ref().map(|time| time.0);
        match self {
            Self::Network(event) => match &**event {
                Event::Delete(object) => Some((Kind::Network, created(object.meta()))),
                _ => None,
            },
            Self::Mapping(_, Event::Delete(object)) => Some((Kind::Mapping, created(object.meta()))),
            Self::Gateway(Event::Delete(object)) => Some((Kind::Gateway, created(object.meta()))),
            _ => None,
        }
    }
}

/// The open streams, as one.
pub(super) struct Subscriptions {
    client: Client,
    node: String,
    open: BTreeMap<Topic, AbortHandle>,
    streams: SelectAll<BoxStream<'static, News>>,
}

impl Subscriptions {
    /// None yet.
    pub(super) fn new(client: &Client, node: &str) -> Self {
        Self {
            client: client.clone(),
            node: node.to_owned(),
            open: BTreeMap::new(),
            streams: SelectAll::new(),
        }
    }

    /// Opens and closes streams, so that those of `topics` are open. What a closed one has said before is still delivered.
    pub(super) fn follow(&mut self, topics: &BTreeSet<Topic>) {
        self.open.retain(|topic, stream| {
            let stays = topics.contains(topic);
            if !stays {
                stream.abort();
            }
            stays
        });
        for topic in topics {
            if !self.open.contains_key(topic) {
                let (stream, handle) = abortable(self.stream(topic));
                self.streams.push(stream.boxed());
                self.open.insert(topic.clone(), handle);
            }
        }
    }

    fn stream(&self, topic: &Topic) -> BoxStream<'static, News> {
        let own = || format!("metadata.name={}", self.node);
        match topic {
            Topic::Networks => self.watch(topic, None, |event| News::Network(Box::new(event))),
            Topic::OwnNode => self.watch(topic, Some(own()), News::Node),
            Topic::Namespaces => self.watch(topic, None, News::Namespace),
            Topic::OwnGateway => self.watch(topic, Some(own()), News::Gateway),
            Topic::Gateways => self.watch(topic, None, News::Gateway),
            Topic::Mappings(network) => {
                let name: Arc<str> = network.as_str().into();
                let fields = format!("spec.networkRef.name={network}");
                self.watch(topic, Some(fields), move |event| News::Mapping(name.clone(), event))
            }
        }
    }

    fn watch<K>(&self, topic: &Topic, fields: Option<String>, news: impl Fn(Event<K>) -> News + Send + 'static) -> BoxStream<'static, News>
    where
        K: Resource + DeserializeOwned + Clone + Debug + Send + 'static,
        K::DynamicType: Default,
    {
        let config = watcher::Config {
            field_selector: fields,
            ..watcher::Config::default()
        };
        let topic = topic.clone();
        watcher(Api::<K>::all(self.client.clone()), config)
            .backoff(WatchBackoff::default())
            .map(move |event| event.map_or_else(|e| News::Away(topic.clone(), chain(&e)), &news))
            .boxed()
    }
}

impl Stream for Subscriptions {
    type Item = News;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<News>> {
        self.streams.poll_next_unpin(context)
    }
}
