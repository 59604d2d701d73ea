//! Writes one status: the patch, and what its answer means. Thin; what to write is decided elsewhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kube::api::{PartialObjectMeta, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::events::{self, Notice, REPORTER};
use crate::api::{NatMapping, NatMappingStatus, StagingNetwork, StagingNetworkStatus};
use crate::telemetry::chain;

/// How long a write may take. A connection without answer must not hold up all other work.
const TIMEOUT: Duration = Duration::from_secs(10);

/// An object whose status the controller writes.
pub trait Reported: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static {
    /// Its status.
    type Status: Clone + std::fmt::Debug + PartialEq + Serialize + Send + Sync;
    /// Its kind, for metrics and logs.
    const KIND: &'static str;
    /// The fields of its status.
    const FIELDS: &'static [&'static str];
    /// The stored status.
    fn status(&self) -> Option<&Self::Status>;
    /// The generation that a status is about.
    fn observed(status: &Self::Status) -> Option<i64>;
    /// What a change of status says to a person.
    fn notices(before: Option<&Self::Status>, after: &Self::Status) -> Vec<Notice>;
    /// Where such objects are. Of the answer to a write only metadata are looked at: an object that cannot be read gets a status, too.
    fn api(client: &Client, namespace: Option<&str>) -> Api<PartialObjectMeta<Self>>;
    /// The object with that status.
    #[must_use]
    fn reported(self, status: Self::Status) -> Self;
    /// An object that says nothing, to be given the metadata and the status of one that cannot be read.
    fn blank() -> Option<Self>;
}

impl Reported for NatMapping {
    type Status = NatMappingStatus;
    const KIND: &'static str = "NatMapping";
    const FIELDS: &'static [&'static str] = &["observedGeneration", "gateway", "announcement", "target", "conditions"];
    fn status(&self) -> Option<&Self::Status> {
        self.status.as_ref()
    }
    fn observed(status: &Self::Status) -> Option<i64> {
        status.observed_generation
    }
    fn notices(before: Option<&Self::Status>, after: &Self::Status) -> Vec<Notice> {
        events::of_mapping(before, after)
    }
    fn api(client: &Client, namespace: Option<&str>) -> Api<PartialObjectMeta<Self>> {
        Api::namespaced(client.clone(), namespace.unwrap_or_default())
    }
    fn reported(mut self, status: Self::Status) -> Self {
        self.status = Some(status);
        self
    }
    fn blank() -> Option<Self> {
        let spec = json!({"networkRef": {"name": ""}, "virtual": {}, "target": {}});
        Some(Self::new("", serde_json::from_value(spec).ok()?))
    }
}

impl Reported for StagingNetwork {
    type Status = StagingNetworkStatus;
    const KIND: &'static str = "StagingNetwork";
    const FIELDS: &'static [&'static str] = &[
        "observedGeneration",
        "activeGateway",
        "isolation",
        "apiServerAddresses",
        "conditions",
    ];
    fn status(&self) -> Option<&Self::Status> {
        self.status.as_ref()
    }
    fn observed(status: &Self::Status) -> Option<i64> {
        status.observed_generation
    }
    fn notices(before: Option<&Self::Status>, after: &Self::Status) -> Vec<Notice> {
        events::of_network(before, after)
    }
    fn api(client: &Client, _: Option<&str>) -> Api<PartialObjectMeta<Self>> {
        Api::all(client.clone())
    }
    fn reported(mut self, status: Self::Status) -> Self {
        self.status = Some(status);
        self
    }
    fn blank() -> Option<Self> {
        let spec = json!({"gateway": {"nodeSelector": {}}, "outside": {"addresses": []}, "inside": {"addresses": []}});
        Some(Self::new("", serde_json::from_value(spec).ok()?))
    }
}

/// A status to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Change<K: Reported> {
    /// The object as last known: what the write is conditional on.
    pub object: Arc<K>,
    /// What its status is to be.
    pub status: K::Status,
}

/// What came of a write.
#[derive(Debug)]
pub enum Outcome<K> {
    /// Written; the object as it is now.
    Written(Box<K>),
    /// The object is gone.
    Gone,
    /// It has changed meanwhile; what was judged is out of date.
    Conflict,
    /// The API server does not want it: the right is missing, or the definitions are of another version.
    Refused(String),
    /// The API server cannot be reached or has too much to do.
    Unavailable(String),
    /// Not tried, because an earlier write found the API server unavailable.
    Skipped,
}

/// Writes one status. Sets `unavailable` when there is no point in trying others, and does nothing if it is set.
pub async fn write<K: Reported>(client: &Client, change: &Change<K>, unavailable: &AtomicBool) -> Outcome<K> {
    if unavailable.load(Ordering::Relaxed) {
        return Outcome::Skipped;
    }
    let patch = match merge_patch(change) {
        Ok(patch) => Patch::Merge(patch),
        Err(error) => return Outcome::Refused(error.to_string()),
    };
    let params = PatchParams {
        field_manager: Some(REPORTER.to_owned()),
        ..PatchParams::default()
    };
    let api = K::api(client, change.object.namespace().as_deref());
    let name = change.object.name_any();
    let outcome = match tokio::time::timeout(TIMEOUT, api.patch_status(&name, &params, &patch)).await {
        Ok(Ok(answer)) => {
            // The write was conditional on the version that was judged: the rest is as it was. So is the generation, which a status does not change: of an object that
            // cannot be read the one that is known is that of its last spec that could be.
            let mut object = K::clone(&change.object).reported(change.status.clone());
            let generation = object.meta().generation;
            *object.meta_mut() = answer.metadata;
            object.meta_mut().generation = generation;
            Outcome::Written(Box::new(object))
        }
        Ok(Err(error)) => classify(&error),
        Err(_) => Outcome::Unavailable(format!("no answer within {TIMEOUT:?}")),
    };
    if matches!(outcome, Outcome::Unavailable(_)) {
        unavailable.store(true, Ordering::Relaxed);
    }
    outcome
}

fn classify<K>(error: &kube::Error) -> Outcome<K> {
    match error {
        kube::Error::Api(status) => match status.code {
            404 => Outcome::Gone,
            409 => Outcome::Conflict,
            429 | 500.. => Outcome::Unavailable(status.to_string()),
            _ => Outcome::Refused(status.to_string()),
        },
        kube::Error::SerdeError(_) | kube::Error::BuildRequest(_) => Outcome::Refused(chain(error)),
        _ => Outcome::Unavailable(chain(error)),
    }
}

/// The merge patch (RFC 7386) that makes the status what it should be: conditional on the version that was judged, and with an explicit null for
/// what is there no more, because a merge patch leaves alone what it does not name.
pub fn merge_patch<K: Reported>(change: &Change<K>) -> serde_json::Result<Value> {
    let mut status = serde_json::to_value(&change.status)?;
    if let Some(stored) = change.object.status() {
        null_what_is_gone(&serde_json::to_value(stored)?, &mut status);
    } else {
        // There is none, or one that cannot be read: whatever it has goes.
        let all: Map<String, Value> = K::FIELDS.iter().map(|field| ((*field).to_owned(), Value::Null)).collect();
        null_what_is_gone(&Value::Object(all), &mut status);
    }
    let mut metadata = Map::new();
    if let Some(version) = change.object.resource_version() {
        metadata.insert("resourceVersion".into(), Value::String(version));
    }
    Ok(json!({ "metadata": metadata, "status": status }))
}

fn null_what_is_gone(old: &Value, new: &mut Value) {
    let (Value::Object(old), Value::Object(new)) = (old, new) else {
        return;
    };
    for (field, value) in old {
        match new.get_mut(field) {
            Some(kept) => null_what_is_gone(value, kept),
            None => {
                new.insert(field.clone(), Value::Null);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use axum::http::{Request, Response};
    use kube::client::Body;

    use super::*;

    #[test]
    fn the_fields_of_a_status_are_those_of_its_definition() {
        fn fields<K: Reported + kube::CustomResourceExt>() -> Vec<String> {
            let definition = serde_json::to_value(K::crd()).unwrap_or_default();
            let status = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"];
            status.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect()
        }
        for (mut known, mut said) in [
            (NatMapping::FIELDS.to_vec(), fields::<NatMapping>()),
            (StagingNetwork::FIELDS.to_vec(), fields::<StagingNetwork>()),
        ] {
            known.sort_unstable();
            said.sort_unstable();
            assert_eq!(known, said);
        }
    }

    #[test]
    fn there_is_a_blank_of_each_kind() {
        assert!(NatMapping::blank().is_some() && StagingNetwork::blank().is_some());
    }

    /// Of an object that cannot be read the generation that is known is that of its last spec that could be.
    #[tokio::test]
    async fn a_status_changes_no_generation() {
        let (service, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
        tokio::spawn(async move {
            while let Some((_, answer)) = handle.next_request().await {
                let said = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": {"name": "a", "generation": 9, "resourceVersion": "8"}});
                answer.send_response(Response::new(said.to_string().into_bytes().into()));
            }
        });
        let mut object = StagingNetwork::blank().unwrap();
        object.metadata.name = Some("a".into());
        object.metadata.generation = Some(3);
        let change = Change {
            object: Arc::new(object),
            status: StagingNetworkStatus::default(),
        };
        let outcome = write(&Client::new(service, "default"), &change, &AtomicBool::new(false)).await;
        let Outcome::Written(written) = outcome else {
            panic!("{outcome:?}");
        };
        assert_eq!(
            (written.metadata.generation, written.metadata.resource_version.as_deref()),
            (Some(3), Some("8"))
        );
    }
}
