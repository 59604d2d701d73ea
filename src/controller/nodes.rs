//! Makes the `GatewayNode` of each node that has something to say: agents may write the status of their own and nothing else. Which are missing is pure.
//!
//! Each is owned by its Node, so that the cluster's garbage collector takes it away with the Node; nothing here deletes one. One that is there and belongs to nobody, because an agent of an
//! earlier version made it, or to a Node that is no more, because it comes from a backup, is given to the Node that has its name. Where there is none, nothing is done.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::core::PartialObjectMeta;
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tracing::{info, warn};

use super::events::REPORTER;
use crate::api::{GatewayNode, GatewayNodeSpec};
use crate::telemetry::{chain, object_key};

/// How long a creation or an adoption may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Objects that one pass makes, and that it adopts.
const BATCH: usize = 256;
/// Creations or adoptions under way at a time.
const CONCURRENCY: usize = 16;

/// The objects that are not there: of nodes of the cluster that a network selects or whose agent has been heard of.
pub fn missing<'a>(
    nodes: impl IntoIterator<Item = &'a PartialObjectMeta<Node>>,
    wanted: &BTreeSet<String>,
    present: &BTreeSet<String>,
) -> Vec<GatewayNode> {
    let due = |node: &&PartialObjectMeta<Node>| {
        let name = node.name_any();
        wanted.contains(&name) && !present.contains(&name)
    };
    let mut objects: Vec<GatewayNode> = nodes.into_iter().filter(due).filter_map(object).collect();
    objects.sort_by_key(ResourceExt::name_any);
    objects.truncate(BATCH);
    objects
}

/// An object that is to belong to its Node, and all owners that it has then.
#[derive(Clone, Debug, PartialEq)]
pub struct Adoption {
    name: String,
    uid: Option<String>,
    resource_version: Option<String>,
    owners: Vec<OwnerReference>,
}

/// Of the objects that are there, those that their Node does not own. Owners that are no Nodes stay; those that are about to go are left alone.
pub fn strays<'a>(
    nodes: impl IntoIterator<Item = &'a PartialObjectMeta<Node>>,
    present: impl IntoIterator<Item = &'a ObjectMeta>,
) -> Vec<Adoption> {
    let owners: BTreeMap<String, OwnerReference> = nodes.into_iter().filter_map(|node| Some((node.name_any(), owner(node)?))).collect();
    let stray = |meta: &ObjectMeta| {
        let name = meta.name.clone()?;
        let owner = owners.get(&name)?;
        let of_a_node = |other: &&OwnerReference| other.kind == owner.kind && other.api_version == owner.api_version;
        let (own, others): (Vec<_>, Vec<_>) = meta.owner_references.iter().flatten().partition(of_a_node);
        let adopted = matches!(own[..], [only] if (&only.name, &only.uid) == (&owner.name, &owner.uid));
        (!adopted && meta.deletion_timestamp.is_none()).then(|| Adoption {
            name,
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
            owners: others.into_iter().chain([owner]).cloned().collect(),
        })
    };
    let mut strays: Vec<Adoption> = present.into_iter().filter_map(stray).collect();
    strays.sort_by(|a, b| a.name.cmp(&b.name));
    strays.truncate(BATCH);
    strays
}

/// None for a node without identity: what it owned would belong to nobody.
fn owner(node: &PartialObjectMeta<Node>) -> Option<OwnerReference> {
    Some(OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.name_any(),
        uid: node.uid()?,
        ..OwnerReference::default()
    })
}

fn object(node: &PartialObjectMeta<Node>) -> Option<GatewayNode> {
    let metadata = ObjectMeta {
        name: Some(node.name_any()),
        owner_references: Some(vec![owner(node)?]),
        ..ObjectMeta::default()
    };
    Some(GatewayNode {
        metadata,
        ..GatewayNode::new("", GatewayNodeSpec {})
    })
}

/// Creates them. Returns whether all are there now; what is not is to be tried again.
pub async fn create(client: &Client, objects: Vec<GatewayNode>) -> bool {
    let api: Api<GatewayNode> = Api::all(client.clone());
    let params = PostParams {
        field_manager: Some(REPORTER.to_owned()),
        ..PostParams::default()
    };
    let results = futures::stream::iter(objects).map(|object| {
        let (api, params) = (&api, &params);
        async move {
            let node = object_key("GatewayNode", None, &object.name_any());
            match tokio::time::timeout(TIMEOUT, api.create(params, &object)).await {
                Ok(Ok(_)) => info!(object = node, "created"),
                // The watch has not told yet.
                Ok(Err(kube::Error::Api(status))) if status.code == 409 => {}
                Ok(Err(error)) => {
                    warn!(object = node, error = %chain(&error), "creating; it is tried again");
                    return false;
                }
                Err(_) => {
                    warn!(object = node, "creating: no answer within {TIMEOUT:?}; it is tried again");
                    return false;
                }
            }
            true
        }
    });
    // All of them: one that is refused again and again holds up no other.
    let all = results.buffer_unordered(CONCURRENCY);
    all.fold(true, |all, created| std::future::ready(all && created)).await
}

/// Gives objects to their Nodes. Returns whether all have been given; what has not is to be tried again. An object that has changed meanwhile comes again by its watch.
pub async fn adopt(client: &Client, adoptions: Vec<Adoption>) -> bool {
    let api: Api<GatewayNode> = Api::all(client.clone());
    let params = PatchParams {
        field_manager: Some(REPORTER.to_owned()),
        ..PatchParams::default()
    };
    let results = futures::stream::iter(adoptions).map(|adoption| {
        let (api, params) = (&api, &params);
        async move {
            let Adoption {
                name: node,
                uid,
                resource_version,
                owners,
            } = adoption;
            let meta = json!({"uid": uid, "resourceVersion": resource_version, "ownerReferences": owners});
            let patch = Patch::Merge(json!({"metadata": meta}));
            match tokio::time::timeout(TIMEOUT, api.patch_metadata(&node, params, &patch)).await {
                Ok(Ok(_)) => info!(object = object_key("GatewayNode", None, &node), "belongs to its Node now, and goes with it"),
                // Changed or gone meanwhile.
                Ok(Err(kube::Error::Api(status))) if [404, 409].contains(&status.code) => {}
                Ok(Err(error)) => {
                    warn!(object = object_key("GatewayNode", None, &node), error = %chain(&error), "giving it to its Node; it is tried again");
                    return false;
                }
                Err(_) => {
                    warn!(
                        object = object_key("GatewayNode", None, &node),
                        "giving it to its Node: no answer within {TIMEOUT:?}; it is tried again"
                    );
                    return false;
                }
            }
            true
        }
    });
    let all = results.buffer_unordered(CONCURRENCY);
    all.fold(true, |all, adopted| std::future::ready(all && adopted)).await
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn node(name: &str, uid: Option<&str>) -> PartialObjectMeta<Node> {
        let mut node = PartialObjectMeta::<Node>::default();
        node.metadata.name = Some(name.into());
        node.metadata.uid = uid.map(Into::into);
        node
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_object_is_made_for_each_node_that_is_wanted_and_owned_by_it() {
        let nodes = [
            node("b", Some("2")),
            node("a", Some("1")),
            node("c", Some("3")),
            node("nobody", None),
        ];
        let made = missing(&nodes, &names(&["a", "b", "nobody", "left-the-cluster"]), &names(&["b"]));
        assert_eq!(made.len(), 1, "b has one, c is not wanted, one has no identity, one is no node");
        let owner = &made[0].metadata.owner_references.as_ref().unwrap()[0];
        assert_eq!(
            (
                made[0].name_any().as_str(),
                owner.kind.as_str(),
                owner.name.as_str(),
                owner.uid.as_str()
            ),
            ("a", "Node", "a", "1")
        );
        assert_eq!(
            (owner.controller, owner.block_owner_deletion, made[0].status.is_none()),
            (None, None, true)
        );
    }
    #[test]
    fn an_object_that_its_node_does_not_own_is_given_to_it() {
        let nodes = [node("a", Some("1")), node("b", Some("2")), node("nobody", None)];
        let meta = |name: &str, owners: &[(&str, &str)]| ObjectMeta {
            name: Some(name.into()),
            uid: Some(format!("uid-{name}")),
            resource_version: Some("7".into()),
            owner_references: Some(
                owners
                    .iter()
                    .map(|(kind, uid)| OwnerReference {
                        api_version: "v1".into(),
                        kind: (*kind).into(),
                        name: name.into(),
                        uid: (*uid).into(),
                        ..OwnerReference::default()
                    })
                    .collect(),
            ),
            ..ObjectMeta::default()
        };
        let owners = |present: ObjectMeta| {
            let strays = strays(&nodes, [&present]);
            let of = |stray: &Adoption| {
                stray
                    .owners
                    .iter()
                    .map(|o| format!("{}/{}", o.kind, o.uid))
                    .collect::<Vec<_>>()
                    .join(" ")
            };
            strays.first().map(of)
        };
        assert_eq!(owners(meta("a", &[("Node", "1")])), None);
        assert_eq!(owners(meta("a", &[("ConfigMap", "9"), ("Node", "1")])), None);
        assert_eq!(owners(meta("gone", &[("Node", "3")])), None, "the garbage collector's affair");
        assert_eq!(owners(meta("gone", &[])), None);
        assert_eq!(owners(meta("nobody", &[])), None);
        let unowned = ObjectMeta {
            owner_references: None,
            ..meta("b", &[])
        };
        assert_eq!(owners(unowned).unwrap(), "Node/2");
        assert_eq!(
            owners(meta("b", &[("ConfigMap", "9"), ("Node", "dead")])).unwrap(),
            "ConfigMap/9 Node/2"
        );
        let mut going = meta("b", &[]);
        going.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(owners(going), None);
    }
}
