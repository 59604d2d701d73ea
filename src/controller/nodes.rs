//! Makes the `GatewayNode` of each node that has something to say: agents may write the status of their own and nothing else. Which are missing is pure.
//!
//! Each is owned by its Node, so that the cluster's garbage collector takes it away with the Node; nothing here deletes one.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{ObjectMeta, PostParams};
use kube::core::PartialObjectMeta;
use kube::{Api, Client, ResourceExt};
use tracing::{info, warn};

use super::events::REPORTER;
use crate::api::{GatewayNode, GatewayNodeSpec};
use crate::telemetry::chain;

/// How long a creation may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Objects that one pass makes.
const BATCH: usize = 256;
/// Creations under way at a time.
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

/// None for a node without identity: such an object would belong to nobody.
fn object(node: &PartialObjectMeta<Node>) -> Option<GatewayNode> {
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: node.name_any(),
        uid: node.uid()?,
        ..OwnerReference::default()
    };
    let metadata = ObjectMeta {
        name: Some(node.name_any()),
        owner_references: Some(vec![owner]),
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
            let node = object.name_any();
            match tokio::time::timeout(TIMEOUT, api.create(params, &object)).await {
                Ok(Ok(_)) => info!(node, "created its GatewayNode"),
                // The watch has not told yet.
                Ok(Err(kube::Error::Api(status))) if status.code == 409 => {}
                Ok(Err(error)) => {
                    warn!(node, error = %chain(&error), "creating its GatewayNode; it is tried again");
                    return false;
                }
                Err(_) => {
                    warn!(node, "creating its GatewayNode: no answer within {TIMEOUT:?}; it is tried again");
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
}
