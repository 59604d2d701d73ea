//! How many objects there are, by what their Ready says: counted from the stores whenever the metrics are asked for, so that it costs nothing in between.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::watch::{Guarded, Stores};
use crate::api::conditions::find;
use crate::api::reasons::types;
use crate::telemetry::metrics::ObjectLabels;

/// Objects by kind, Ready and reason.
pub(super) fn objects(stores: &Stores) -> BTreeMap<ObjectLabels, i64> {
    let mut counts = BTreeMap::new();
    count(&mut counts, "NatMapping", &stores.mappings, |object| {
        object.status.as_ref().map(|status| &*status.conditions)
    });
    count(&mut counts, "StagingNetwork", &stores.networks, |object| {
        object.status.as_ref().map(|status| &*status.conditions)
    });
    count(&mut counts, "GatewayNode", &stores.gateways, |object| {
        object.status.as_ref().map(|status| &*status.conditions)
    });
    counts
}

fn count<K>(
    counts: &mut BTreeMap<ObjectLabels, i64>,
    kind: &'static str,
    store: &Guarded<K>,
    conditions: impl Fn(&K) -> Option<&[Condition]>,
) where
    K: kube::Resource<DynamicType = ()> + Clone + 'static,
{
    for stored in store.state() {
        let conditions = stored.object.as_deref().and_then(&conditions).unwrap_or_default();
        let labels = match find(conditions, types::READY) {
            Some(ready) => ObjectLabels {
                kind,
                ready: ready.status.clone(),
                reason: ready.reason.clone(),
            },
            None => ObjectLabels {
                kind,
                ready: "Unknown".to_owned(),
                reason: String::new(),
            },
        };
        *counts.entry(labels).or_default() += 1;
    }
}
