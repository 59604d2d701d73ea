//! Objects as they are stored, also those that this version cannot read.
//!
//! An object that a newer version wrote, or that was stored before a rule existed, may not decode. Its last version that did stays in force here as it does on the gateways,
//! so that the claim of somebody else does not take its place, and everybody is told that nobody knows what it says now.

use std::sync::Arc;

use kube::core::ObjectMeta;
use kube::core::object::HasStatus;
use kube::{Resource, ResourceExt};
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// An object, read as far as possible.
#[derive(Clone, Debug)]
pub struct Stored<K> {
    /// The object; if `error` says why it cannot be read, then with the last spec that could be, if there was one.
    pub object: Option<Arc<K>>,
    /// Why it cannot be read.
    pub error: Option<String>,
    /// Why its status, of an object that can be read otherwise, cannot: it is told as none then.
    pub unread_status: Option<String>,
    metadata: ObjectMeta,
    status: Value,
}

impl<K> Stored<K>
where
    K: Resource<DynamicType = ()> + HasStatus + Clone,
    K::Status: DeserializeOwned,
{
    /// Keeps the last spec of `old`, the same object before, if the new one cannot be read. The generation stays that of the spec: gateways, which keep it too, say by that
    /// what they hold.
    pub fn keep(&mut self, old: &Self) {
        let Some(known) = old.object.as_ref().filter(|_| self.object.is_none()) else {
            return;
        };
        if known.uid() == self.metadata.uid {
            let mut kept = self.dressed(K::clone(known));
            kept.meta_mut().generation = known.meta().generation;
            self.object = Some(Arc::new(kept));
        }
    }

    /// The generation that cannot be read.
    pub fn unread_generation(&self) -> i64 {
        self.metadata.generation.unwrap_or_default()
    }

    /// `blank` with the metadata and the status that are stored.
    pub fn dressed(&self, mut blank: K) -> K {
        *blank.meta_mut() = self.metadata.clone();
        *blank.status_mut() = serde_json::from_value(self.status.clone()).ok();
        blank
    }
}

impl<'de, K: Resource + DeserializeOwned> Deserialize<'de> for Stored<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        match K::deserialize(&value) {
            Ok(object) => Ok(Self {
                object: Some(Arc::new(object)),
                error: None,
                unread_status: None,
                metadata: ObjectMeta::default(),
                status: Value::Null,
            }),
            // A status that another version wrote: the controller's own is written anew, an agent's tells nothing.
            Err(error) if let Some(object) = without_status(&value) => Ok(Self {
                object: Some(Arc::new(object)),
                error: None,
                unread_status: Some(error.to_string()),
                metadata: ObjectMeta::default(),
                status: Value::Null,
            }),
            Err(error) => Ok(Self {
                object: None,
                error: Some(error.to_string()),
                unread_status: None,
                metadata: ObjectMeta::deserialize(&value["metadata"]).map_err(D::Error::custom)?,
                status: value["status"].take(),
            }),
        }
    }
}

fn without_status<K: DeserializeOwned>(value: &Value) -> Option<K> {
    let mut value = value.clone();
    value.as_object_mut()?.remove("status")?;
    serde_json::from_value(value).ok()
}

impl<K: Resource + Clone> Resource for Stored<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(of: &K::DynamicType) -> std::borrow::Cow<'_, str> {
        K::kind(of)
    }

    fn group(of: &K::DynamicType) -> std::borrow::Cow<'_, str> {
        K::group(of)
    }

    fn version(of: &K::DynamicType) -> std::borrow::Cow<'_, str> {
        K::version(of)
    }

    fn plural(of: &K::DynamicType) -> std::borrow::Cow<'_, str> {
        K::plural(of)
    }

    fn meta(&self) -> &ObjectMeta {
        self.object.as_ref().map_or(&self.metadata, |object| object.meta())
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match &mut self.object {
            Some(object) => Arc::make_mut(object).meta_mut(),
            None => &mut self.metadata,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::NatMapping;

    fn stored(version: &str, address: &Value) -> Stored<NatMapping> {
        serde_json::from_value(json!({
            "apiVersion": "stagenet.dev/v1alpha1", "kind": "NatMapping",
            "metadata": {"name": "a", "namespace": "b", "uid": "1", "resourceVersion": version, "generation": version.parse::<i64>().unwrap()},
            "spec": {"networkRef": {"name": "n"}, "virtual": {"address": address}, "target": {"address": "192.168.200.3"}},
            "status": {"observedGeneration": 7, "conditions": []},
        }))
        .unwrap()
    }

    #[test]
    fn a_status_that_cannot_be_read_is_none() {
        let strange: Stored<NatMapping> = serde_json::from_value(json!({
            "apiVersion": "stagenet.dev/v1alpha1", "kind": "NatMapping", "metadata": {"name": "a", "namespace": "b"},
            "spec": {"networkRef": {"name": "n"}, "virtual": {"address": "192.168.100.3"}, "target": {"address": "192.168.200.3"}},
            "status": {"announcement": "OfANewerVersion"},
        }))
        .unwrap();
        let object = strange.object.unwrap();
        assert_eq!((strange.error, &object.status), (None, &None));
        assert!(strange.unread_status.unwrap().contains("OfANewerVersion"), "there is one, though");
        assert_eq!(object.spec.r#virtual.address.as_deref(), Some("192.168.100.3"));
    }

    #[test]
    fn what_cannot_be_read_keeps_its_last_spec_and_its_own_status() {
        let good = stored("1", &json!("192.168.100.3"));
        assert_eq!((&good.error, &good.unread_status), (&None, &None));
        let mut bad = stored("2", &json!({"from": "a newer version"}));
        assert!(bad.object.is_none() && bad.error.is_some());
        assert_eq!((bad.name_any(), bad.resource_version()), ("a".into(), Some("2".into())));
        bad.keep(&good);
        let kept = bad.object.as_deref().unwrap();
        assert_eq!(kept.spec, good.object.as_ref().unwrap().spec);
        assert_eq!(
            (kept.resource_version(), kept.status.as_ref().unwrap().observed_generation),
            (Some("2".into()), Some(7))
        );
        assert_eq!((kept.metadata.generation, bad.unread_generation()), (Some(1), 2));
        // Once more, and one that was deleted and made anew.
        let mut again = stored("3", &json!(["newer still"]));
        again.keep(&bad);
        let kept = again.object.as_deref().unwrap();
        assert_eq!((kept.resource_version(), kept.metadata.generation), (Some("3".into()), Some(1)));
        let mut other = stored("4", &json!(1));
        other.metadata.uid = Some("2".into());
        other.keep(&good);
        assert!(other.object.is_none());
    }
}
