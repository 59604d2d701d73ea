//! Makes the `GatewayNode` of each node that has something to say: agents may write the status of their own and nothing else. Which are missing is pure.
//!
//! Each is owned by its Node, so that the cluster's garbage collector takes it away with the Node; nothing here deletes one. One that is there and belongs to nobody, because an agent of an
//! earlier version made it, or to a Node that is no more, because it comes from a backup, is given to the Node that has its name. Where there is none, nothing is done.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt as _;
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

/// In memory only: the report is that of the object that was there before.
const KEPT: &str = "stagenet.dev/report-of-former-object";

/// One that was made anew for the same Node, because its definition went and came back, has no report yet: the last one counts until the agent reports.
pub fn keep_report(new: &mut GatewayNode, old: &GatewayNode) {
    let anew = new.uid() != old.uid() || old.annotations().contains_key(KEPT);
    if anew && new.status.is_none() && old.status.is_some() && new.metadata.owner_references == old.metadata.owner_references {
        new.status.clone_from(&old.status);
        new.annotations_mut().insert(KEPT.to_owned(), String::new());
    }
}

/// Creates them. What is not there now is to be tried again.
pub async fn create(client: &Client, objects: Vec<GatewayNode>) -> Done {
    let api: Api<GatewayNode> = Api::all(client.clone());
    let params = PostParams {
        field_manager: Some(REPORTER.to_owned()),
        ..PostParams::default()
    };
    let api = &api;
    let params = &params;
    let all = objects.into_iter().map(|object| async move {
        let answer = tokio::time::timeout(TIMEOUT, api.create(params, &object)).await;
        // 409: the watch has not told yet.
        (object.name_any(), outcome(answer, &[409]))
    });
    each(all, "created", "creating; it is tried again").await
}

/// Gives objects to their Nodes. What has not been given is to be tried again. An object that has changed meanwhile comes again by its watch.
pub async fn adopt(client: &Client, adoptions: Vec<Adoption>) -> Done {
    let api: Api<GatewayNode> = Api::all(client.clone());
    let params = PatchParams {
        field_manager: Some(REPORTER.to_owned()),
        ..PatchParams::default()
    };
    let api = &api;
    let params = &params;
    let all = adoptions.into_iter().map(|adoption| async move {
        let meta = json!({"uid": adoption.uid, "resourceVersion": adoption.resource_version, "ownerReferences": adoption.owners});
        let patch = Patch::Merge(json!({"metadata": meta}));
        let answer = tokio::time::timeout(TIMEOUT, api.patch_metadata(&adoption.name, params, &patch)).await;
        // 404, 409: gone or changed meanwhile.
        (adoption.name, outcome(answer, &[404, 409]))
    });
    each(
        all,
        "belongs to its Node now, and goes with it",
        "giving it to its Node; it is tried again",
    )
    .await
}

/// What came of it, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// Of these it is as it should be, or the watch is about to tell otherwise.
    pub settled: BTreeSet<String>,
    /// Whether that is so of all.
    pub complete: bool,
}

/// Whether it was done just now, or why it is not as it should be.
fn outcome<T>(answer: Result<kube::Result<T>, tokio::time::error::Elapsed>, settled: &[u16]) -> Result<bool, String> {
    match answer {
        Ok(Ok(_)) => Ok(true),
        Ok(Err(kube::Error::Api(status))) if settled.contains(&status.code) => Ok(false),
        Ok(Err(error)) => Err(chain(&error)),
        Err(_) => Err(format!("no answer within {TIMEOUT:?}")),
    }
}

/// Does all of them: one that is refused again and again holds up no other. What fails often fails for all, and is told in one line.
async fn each<F>(all: impl Iterator<Item = F>, done: &str, failed: &str) -> Done
where
    F: Future<Output = (String, Result<bool, String>)>,
{
    let outcomes: Vec<_> = futures::stream::iter(all).buffer_unordered(CONCURRENCY).collect().await;
    let mut settled = BTreeSet::new();
    let mut failures = BTreeMap::new();
    for (name, outcome) in outcomes {
        let object = object_key("GatewayNode", None, &name);
        match outcome {
            Ok(now) => {
                if now {
                    info!(object, "{done}");
                }
                settled.insert(name);
            }
            Err(error) => drop(failures.insert(object, error)),
        }
    }
    if let Some((object, error)) = failures.first_key_value() {
        warn!(object, error, count = failures.len(), "{failed}");
    }
    Done {
        settled,
        complete: failures.is_empty(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::api::gatewaynode::GatewayNodeStatus;

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
    fn a_report_outlives_its_object_until_the_next_one() {
        let object = |uid: &str, failures: Option<u32>| {
            let mut object = GatewayNode::new("a", GatewayNodeSpec {});
            object.metadata.uid = Some(uid.into());
            object.status = failures.map(|failure_count| GatewayNodeStatus {
                failure_count,
                ..GatewayNodeStatus::default()
            });
            object
        };
        let kept = |mut new: GatewayNode, old: &GatewayNode| {
            keep_report(&mut new, old);
            new
        };
        let said = |object: &GatewayNode| object.status.as_ref().map(|status| status.failure_count);
        let first = object("1", Some(7));
        assert_eq!(said(&kept(object("1", None), &first)), None, "somebody took the report away");
        let anew = kept(object("2", None), &first);
        assert_eq!(said(&anew), Some(7));
        let still = kept(object("2", None), &anew);
        assert_eq!(said(&still), Some(7), "somebody changed it otherwise");
        let own = kept(object("2", Some(8)), &still);
        assert_eq!(said(&own), Some(8));
        assert_eq!(said(&kept(object("2", None), &own)), None);
        let mut other = object("3", None);
        other.metadata.owner_references = Some(Vec::new());
        assert_eq!(said(&kept(other, &own)), None, "of another Node");
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
