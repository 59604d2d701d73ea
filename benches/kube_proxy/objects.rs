//! Services with an external address and one endpoint each, and mappings that lead to the same places.

use std::time::Instant;

use futures::stream::{self, StreamExt};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::json;
use stagenet::api::NatMapping;

use super::probe::PORT;
use super::subject::Kind;
use crate::packet::world::{target, virtual_address};

/// Requests under way at the same time while many objects are made.
const AT_ONCE: usize = 16;
const NETWORK: &str = "apiVersion: stagenet.dev/v1alpha1\nkind: StagingNetwork\nmetadata: {name: bench}\nspec:\n  gateway: {nodeSelector: {}}\n  \
     outside: {interface: out0, addresses: [10.64.0.0/17], announce: false}\n  inside: {interface: in0, addresses: [10.128.0.0/16]}\n";

/// What is on the API server.
pub struct Objects {
    services: Api<Service>,
    slices: Api<EndpointSlice>,
    mappings: Api<NatMapping>,
    size: usize,
}

impl Objects {
    /// A network, and nothing in it yet.
    pub async fn new(api: &crate::lab::Api) -> Self {
        api.apply(NETWORK);
        let kubeconfig = Kubeconfig::read_from("/run/lab/admin.kubeconfig").unwrap();
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .unwrap();
        let client = Client::try_from(config).unwrap();
        Self {
            services: Api::namespaced(client.clone(), "default"),
            slices: Api::namespaced(client.clone(), "default"),
            mappings: Api::namespaced(client, "default"),
            size: 0,
        }
    }

    /// Makes more of all kinds, up to `size` of each.
    pub async fn grow(&mut self, size: usize) {
        let this = &*self;
        stream::iter(self.size..size)
            .for_each_concurrent(AT_ONCE, |i| async move {
                this.service(i).await;
                this.slice(i).await;
                this.mapping(i).await;
            })
            .await;
        self.size = size;
    }

    /// Makes number `i` of what `kind` looks at, as a controller would: the endpoint follows its Service. Returns when the last request was sent.
    pub async fn add(&self, kind: Kind, i: usize) -> Instant {
        if let Kind::KubeProxy { .. } = kind {
            self.service(i).await;
            let asked = Instant::now();
            self.slice(i).await;
            return asked;
        }
        let asked = Instant::now();
        self.mapping(i).await;
        asked
    }

    /// Deletes number `i` of what `kind` looks at.
    pub async fn remove(&self, kind: Kind, i: usize) {
        let (name, how) = (name(i), DeleteParams::default());
        if let Kind::KubeProxy { .. } = kind {
            self.services.delete(&name, &how).await.unwrap();
            self.slices.delete(&name, &how).await.unwrap();
        } else {
            self.mappings.delete(&name, &how).await.unwrap();
        }
    }

    async fn service(&self, i: usize) {
        let object = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name(i)},
            "spec": {"externalIPs": [virtual_address(0, i)], "ports": [{"port": PORT, "protocol": "UDP"}]},
        });
        self.services
            .create(&PostParams::default(), &serde_json::from_value(object).unwrap())
            .await
            .unwrap();
    }

    async fn slice(&self, i: usize) {
        let object = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": name(i), "labels": {"kubernetes.io/service-name": name(i)}},
            "ports": [{"name": "", "port": PORT, "protocol": "UDP"}],
            "endpoints": [{"addresses": [target(128, i)], "conditions": {"ready": true}}],
        });
        self.slices
            .create(&PostParams::default(), &serde_json::from_value(object).unwrap())
            .await
            .unwrap();
    }

    async fn mapping(&self, i: usize) {
        let object = json!({
            "apiVersion": "stagenet.dev/v1alpha1", "kind": "NatMapping", "metadata": {"name": name(i)},
            "spec": {"networkRef": {"name": "bench"}, "virtual": {"address": virtual_address(0, i)}, "target": {"address": target(128, i)}},
        });
        self.mappings
            .create(&PostParams::default(), &serde_json::from_value(object).unwrap())
            .await
            .unwrap();
    }
}

fn name(i: usize) -> String {
    format!("n{i:05}")
}
