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
use crate::telemetry::metrics::unix_now;
use crate::telemetry::{Health, Metrics, chain, object_key};

/// In how many parts the Lease's duration is cut by renewals: three may fail.
const RENEWALS: u32 = 4;

/// Name of a node's Lease.
pub fn name(node: &str) -> String {
    format!("stagenet-agent-{node}")
}

/// Renews until it is dropped. `seconds`: after how long without renewal the node counts as silent.
pub async fn keep(client: Client, namespace: String, node: String, seconds: u16, (metrics, health): (Arc<Metrics>, Arc<Health>)) {
    let pause = Duration::from_secs(seconds.into()) / RENEWALS;
    let api: Api<Lease> = Api::namespaced(client, &namespace);
    let name = name(&node);
    let object = object_key("Lease", Some(&namespace), &name);
    let mut failing = false;
    loop {
        match health.live() {
            Ok(()) => match renew(&api, &name, &node, seconds).await {
                Ok(()) => {
                    failing = false;
                    metrics.api_last_success.set(unix_now());
                }
                Err(error) if failing => tracing::debug!(object, error = chain(&error), "renewing the heartbeat"),
                Err(error) => {
                    failing = true;
                    tracing::warn!(object, error = chain(&error), "renewing the heartbeat; it is tried every {pause:?}");
                }
            },
            Err(why) => tracing::error!(object, "no heartbeat: {why}"),
        }
        tokio::time::sleep(pause).await;
    }
}

async fn renew(api: &Api<Lease>, name: &str, node: &str, seconds: u16) -> kube::Result<()> {
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(node.to_owned()),
            lease_duration_seconds: Some(seconds.into()),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        }),
    };
    api.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&lease)).await?;
    Ok(())
}
