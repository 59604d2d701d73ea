//! Which namespaces may claim from a network.
//!
//! What is not known is not allowed: a namespace whose labels nobody has told of yet claims nothing from a network that asks for labels.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::selector::Selector;
use super::validate::ValidNetwork;
use super::verdict::Refusal;
use crate::api::{NatMapping, reasons};

/// Labels of namespaces by name. Needed only where some network says `from: Selector`.
pub type Namespaces = BTreeMap<String, BTreeMap<String, String>>;

/// Where there is no cluster: what was declared, and no labels but its name for each other namespace of the mappings.
pub fn declared<'a>(labels: Namespaces, mappings: impl IntoIterator<Item = &'a NatMapping>) -> Arc<Namespaces> {
    let mut all = labels;
    for mapping in mappings {
        let namespace = mapping.metadata.namespace.as_deref().unwrap_or(DEFAULT);
        if !all.contains_key(namespace) {
            all.insert(namespace.to_owned(), BTreeMap::new());
        }
    }
    Arc::new(all)
}

/// Namespace of mappings that name none.
const DEFAULT: &str = "default";
/// The label that every namespace has, whoever writes what (`NamespaceDefaultLabelName` of Kubernetes).
const NAME: &str = "kubernetes.io/metadata.name";

/// Why mappings of `namespace` may not claim from `network`. None: they may.
pub(super) fn refusal(namespace: &str, network: &ValidNetwork, namespaces: &Namespaces) -> Option<Refusal> {
    let selector = network.allowed_namespaces.as_ref()?;
    let Some(labels) = namespaces.get(namespace) else {
        return Some(Refusal {
            reason: reasons::NAMESPACE_UNKNOWN,
            message: format!(
                "network {} asks for labels of the namespace, and those of {namespace} are not known; the mapping is judged again as soon as they are",
                network.name
            ),
        });
    };
    (!allows(selector, namespace, labels)).then(|| Refusal {
        reason: reasons::NAMESPACE_NOT_ALLOWED,
        message: format!(
            "metadata.namespace must be one that allowedNamespaces of network {} selects, those with labels {selector}: {namespace} is not; \
             ask an administrator of the cluster to label the namespace, or of the network to allow it",
            network.name
        ),
    })
}

fn allows(selector: &Selector, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
    // Borrowed unless the one label is missing or false, which only a file can say.
    if labels.get(NAME).is_some_and(|name| name == namespace) {
        return selector.matches(labels);
    }
    let mut labels = labels.clone();
    labels.insert(NAME.to_owned(), namespace.to_owned());
    selector.matches(&labels)
}
