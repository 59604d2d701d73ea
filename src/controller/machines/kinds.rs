//! What is looked at of `KubeVirt`'s kinds, and how it is read from their objects. Pure.
//!
//! Read by name from untyped objects (`kubevirt.io/api/core/v1`, fields as of v1.8): a machine with something in it that this program does not know is read all the same.

use std::net::IpAddr;

use kube::ResourceExt;
use kube::api::DynamicObject;
use serde_json::Value;

/// Group of the kinds.
pub(super) const GROUP: &str = "kubevirt.io";
/// Their version.
pub(super) const VERSION: &str = "v1";
/// Most networks, or addresses of one, that are looked at: `KubeVirt` allows fewer networks, and what a guest reports is its own word.
const MOST: usize = 256;
/// Longest `infoSource` that is repeated.
const SOURCE_MAX: usize = 128;
/// How the cluster's own network is called where attachments are named.
pub(super) const POD: &str = "pod";

/// A network of a machine, as its spec has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Network {
    /// Its name, which its interface has, too.
    pub(crate) name: String,
    /// NAMESPACE/NAME of the `NetworkAttachmentDefinition`, or [`POD`]. Empty: something else.
    pub(crate) attachment: String,
    /// False: the interface was taken out while the machine ran, and the network is in the spec still.
    pub(crate) plugged: bool,
}

/// A `VirtualMachine`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    /// `metadata.uid`.
    pub(crate) uid: String,
    /// The networks it will have when it starts.
    pub(crate) networks: Vec<Network>,
}

/// A `VirtualMachineInstance`: a machine that is switched on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Instance {
    /// Uid of the `VirtualMachine` that controls it. Empty: none does.
    pub(crate) machine: String,
    /// Whether it has come to its end: it will report nothing any more.
    pub(crate) ended: bool,
    /// The networks it has.
    pub(crate) networks: Vec<Network>,
    /// What is reported of its interfaces, those that belong to a network of the spec. A guest agent reports others as well, such as bridges of containers.
    pub(crate) reports: Vec<Report>,
}

/// What is reported of one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// Name of the network.
    pub(crate) interface: String,
    /// Its addresses, the primary one first.
    pub(crate) addresses: Vec<IpAddr>,
    /// Who says so.
    pub(crate) source: String,
}

/// Something that is read from an object of `KubeVirt`'s.
pub(super) trait Kind: Clone + PartialEq + Send + 'static {
    /// The kind.
    const KIND: &'static str;
    /// Its plural, in lower case.
    const PLURAL: &'static str;
    /// Reads it.
    fn read(object: &DynamicObject) -> Self;
}

impl Kind for Machine {
    const KIND: &'static str = "VirtualMachine";
    const PLURAL: &'static str = "virtualmachines";

    fn read(object: &DynamicObject) -> Self {
        Self {
            uid: object.uid().unwrap_or_default(),
            networks: networks(object, "/spec/template/spec"),
        }
    }
}

impl Kind for Instance {
    const KIND: &'static str = "VirtualMachineInstance";
    const PLURAL: &'static str = "virtualmachineinstances";

    fn read(object: &DynamicObject) -> Self {
        let owner = object.owner_references().iter().find(|owner| owner.kind == Machine::KIND);
        let phase = text(object.data.pointer("/status/phase"));
        Self {
            machine: owner.map(|owner| owner.uid.clone()).unwrap_or_default(),
            ended: ["Succeeded", "Failed"].contains(&phase),
            networks: networks(object, "/spec"),
            reports: list(object.data.pointer("/status/interfaces")).filter_map(report).collect(),
        }
    }
}

fn networks(object: &DynamicObject, spec: &str) -> Vec<Network> {
    let at = |path: &str| object.data.pointer(&format!("{spec}/{path}"));
    let namespace = object.namespace().unwrap_or_default();
    let unplugged = |name: &str| {
        let mut interfaces = list(at("domain/devices/interfaces"));
        interfaces.any(|interface| text(interface.get("name")) == name && text(interface.get("state")) == "absent")
    };
    let one = |network: &Value| {
        let name = text(network.get("name")).to_owned();
        let attachment = match text(network.pointer("/multus/networkName")) {
            "" if network.get("pod").is_some() => POD.to_owned(),
            "" => String::new(),
            // Without a namespace it is the machine's own.
            local if !local.contains('/') => format!("{namespace}/{local}"),
            full => full.to_owned(),
        };
        Network {
            plugged: !unplugged(&name),
            name,
            attachment,
        }
    };
    list(at("networks")).map(one).collect()
}

fn report(interface: &Value) -> Option<Report> {
    let name = text(interface.get("name"));
    let primary = interface.get("ipAddress").into_iter();
    let mut addresses = Vec::new();
    for address in primary
        .chain(list(interface.get("ipAddresses")))
        .filter_map(|value| address(text(Some(value))))
    {
        if !addresses.contains(&address) && addresses.len() < MOST {
            addresses.push(address);
        }
    }
    let source = text(interface.get("infoSource")).chars().filter(|c| !c.is_control());
    (!name.is_empty()).then(|| Report {
        interface: name.to_owned(),
        addresses,
        source: source.take(SOURCE_MAX).collect(),
    })
}

/// An address, with or without the prefix length or zone that some versions add.
fn address(text: &str) -> Option<IpAddr> {
    text.split(['/', '%']).next()?.parse().ok()
}

fn text(value: Option<&Value>) -> &str {
    value.and_then(Value::as_str).unwrap_or_default()
}

fn list(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).into_iter().flatten().take(MOST)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> DynamicObject {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_machine_is_read() {
        let machine = Machine::read(&object(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
            "metadata": {"name": "vm03", "namespace": "shop", "uid": "u1"},
            "spec": {"runStrategy": "Always", "template": {"spec": {
                "domain": {"devices": {"interfaces": [{"name": "default", "masquerade": {}}, {"name": "old", "bridge": {}, "state": "absent"}]}},
                "networks": [
                    {"name": "default", "pod": {}}, {"name": "closed", "multus": {"networkName": "closed-b"}},
                    {"name": "old", "multus": {"networkName": "infra/closed-b"}}, {"name": "later", "something": {}},
                ],
            }}},
        })));
        let networks: Vec<_> = machine
            .networks
            .iter()
            .map(|n| (n.name.as_str(), n.attachment.as_str(), n.plugged))
            .collect();
        assert_eq!(
            networks,
            [
                ("default", "pod", true),
                ("closed", "shop/closed-b", true),
                ("old", "infra/closed-b", false),
                ("later", "", true)
            ]
        );
        assert_eq!(machine.uid, "u1");
    }

    #[test]
    fn an_instance_is_read_whatever_is_in_it() {
        let instance = Instance::read(&object(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
            "metadata": {"name": "vm03", "namespace": "shop", "ownerReferences": [
                {"apiVersion": "v1", "kind": "Other", "name": "x", "uid": "no"},
                {"apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine", "name": "vm03", "uid": "u1"},
            ]},
            "spec": {"networks": "rubbish"},
            "status": {"phase": "Running", "interfaces": [
                {"name": "default", "ipAddress": "10.0.0.7/24", "ipAddresses": ["10.0.0.7", "fe80::1%eth0", "rubbish", 7], "infoSource": "domain, guest-agent"},
                {"interfaceName": "docker0", "ipAddress": "172.17.0.1", "infoSource": "guest-agent"},
                {"name": "bare"}, "rubbish",
            ]},
        })));
        assert_eq!((instance.machine.as_str(), instance.ended), ("u1", false));
        let [first, bare] = instance.reports.as_slice() else {
            panic!("{:?}", instance.reports)
        };
        assert_eq!(first.addresses, ["10.0.0.7".parse::<IpAddr>().unwrap(), "fe80::1".parse().unwrap()]);
        assert_eq!((first.source.as_str(), bare.addresses.len()), ("domain, guest-agent", 0));
        let empty = Instance::read(&object(json!({"metadata": {"name": "x"}, "status": {"phase": "Failed"}})));
        assert!(empty.ended && empty.machine.is_empty() && empty.reports.is_empty());
    }
}
