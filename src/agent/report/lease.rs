//! The heartbeat: a Lease a node, renewed by a task of its own, so that a long pass does not look like silence. It stops when the runner is stuck,
//! because then nobody vouches for the node.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ObjectMeta, Patch, PatchParams};

use super::MANAGER;
use crate::telemetry::{Health, chain};

/// How often the Lease is renewed.
const RENEW: Duration = Duration::from_secs(10);
/// After how long without renewal the node counts as silent, in seconds: three renewals may fail.
const DURATION_SECONDS: i32 = 40;

/// Name of a node's Lease.
pub fn name(node: &str) -> String {
    format!("stagenet-agent-{node}")
}

/// Renews until it is dropped.
pub async fn keep(client: Client, namespace: String, node: String, health: Arc<Health>) {
    let api: Api<Lease> = Api::namespaced(client, &namespace);
    let name = name(&node);
    let mut failing = false;
    loop {
        match health.live() {
            Ok(()) => match renew(&api, &name, &node).await {
                Ok(()) => failing = false,
                Err(error) if failing => tracing::debug!(error = chain(&error), lease = name, "renewing the heartbeat"),
                Err(error) => {
                    failing = true;
                    tracing::warn!(
                        error = chain(&error),
                        lease = name,
                        namespace,
                        "renewing the heartbeat; it is tried every {} s",
                        RENEW.as_secs()
                    );
                }
            },
            Err(why) => tracing::error!("no heartbeat: {why}"),
        }
        tokio::time::sleep(RENEW).await;
    }
}

async fn renew(api: &Api<Lease>, name: &str, node: &str) -> kube::Result<()> {
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(node.to_owned()),
            lease_duration_seconds: Some(DURATION_SECONDS),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        }),
    };
    api.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&lease)).await?;
    Ok(())
}
