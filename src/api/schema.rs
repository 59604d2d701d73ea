//! Schemas of the values that several fields share: addresses, prefixes, interface names, ports, label selectors.
//!
//! Every string, list and number is bounded, so that CEL rules stay within the API server's cost budget. A form that means the same as another one is
//! refused and never rewritten: what is stored is what was written. Messages of rules say what the value must be, and each rule holds where an earlier one
//! fails, so that one mistake is told once. Every function used in a rule is known to kube-apiserver since 1.31 and to kube's client-side validator.

use super::helper::HelperName;
use schemars::generate::SchemaGenerator;
use schemars::{JsonSchema, Schema, json_schema};

/// Longest name of a network or mapping: it has to fit into the comment of a netfilter rule beside a namespace (`xt_comment`: 255 bytes).
pub const NAME_MAX: usize = 63;
/// Most prefixes in a pool or inside.
pub const PREFIXES_MAX: usize = 64;
/// Most protected prefixes.
pub const PROTECTED_MAX: usize = 256;
/// Most addresses that a gateway answers for inside.
pub const GATEWAY_ADDRESSES_MAX: usize = 16;
/// Most entries in `ports`.
pub const PORTS_MAX: usize = 64;
/// Entries of `egress.allow`.
pub const EGRESS_MAX: usize = 64;
/// Helpers of a mapping.
pub const HELPER_USES_MAX: usize = 16;
/// Most helpers that a network allows: all there are.
pub const HELPERS_MAX: usize = HelperName::ALL.len();
/// Longest name of a `VirtualMachine`.
pub const MACHINE_NAME_MAX: usize = 253;
/// Longest name of a network in the spec of a `VirtualMachine`.
pub const MACHINE_INTERFACE_MAX: usize = 63;
/// Most network attachments that lead into one closed network.
pub const ATTACHMENTS_MAX: usize = 64;
/// Longest `NAMESPACE/NAME` of a network attachment.
pub const ATTACHMENT_MAX: usize = 317;
/// Most addresses of an API server that are kept.
pub const API_SERVER_MAX: usize = 32;
/// Highest number of an isolated network.
pub const ISOLATION_MAX: u32 = 16383;

/// The schema of `T` itself, for an optional field: it may be left out, but not be null.
pub(super) fn present<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    T::json_schema(generator)
}

/// An address of either family that a host can have.
pub(super) fn address(_: &mut SchemaGenerator) -> Schema {
    address_schema(&[])
}

/// An IPv6 address that a host can have.
pub(super) fn ipv6_address(_: &mut SchemaGenerator) -> Schema {
    address_schema(&[(
        "!isIP(self) || ip(self).family() == 6",
        "must be an IPv6 address, such as 2001:db8::3",
    )])
}

/// A set of addresses.
pub(super) fn gateway_addresses(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "maxItems": GATEWAY_ADDRESSES_MAX, "x-kubernetes-list-type": "set",
        "items": address_schema(&[]),
    })
}

/// A set of prefixes that hosts live in, at least one.
pub(super) fn host_prefixes(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "minItems": 1, "maxItems": PREFIXES_MAX, "x-kubernetes-list-type": "set",
        "items": host_prefix_schema(&[]),
    })
}

/// A prefix that a mapping claims or leads to: more than one address, so that there is one way to write a single one.
pub(super) fn claimed_prefix(_: &mut SchemaGenerator) -> Schema {
    host_prefix_schema(&[(
        "!isCIDR(self) || cidr(self).prefixLength() < (cidr(self).ip().family() == 4 ? 32 : 128)",
        "must have more than one address: write a single one as address",
    )])
}

/// A prefix of any kind.
pub(super) fn any_prefix(_: &mut SchemaGenerator) -> Schema {
    prefix_schema(&[])
}

/// A set of helpers.
pub(super) fn helper_names(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "maxItems": HELPERS_MAX, "x-kubernetes-list-type": "set",
        "items": HelperName::json_schema(generator),
    })
}

/// Number of an isolated network: 14 bits, so that a zone (16 bits) and a routing table can be made of it.
pub(super) fn isolation_identifier(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "format": "int32", "minimum": 1, "maximum": ISOLATION_MAX })
}

/// Zone of an isolated network.
pub(super) fn isolation_zone(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "format": "int32", "minimum": 0, "maximum": ISOLATION_MAX })
}

/// A set of prefixes of any kind.
pub(super) fn any_prefixes(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "maxItems": PROTECTED_MAX, "x-kubernetes-list-type": "set",
        "items": prefix_schema(&[]),
    })
}

/// Name of a network interface: the kernel's limit is 15 bytes (IFNAMSIZ), and no character may have a meaning for iptables (`+`, `!`).
pub(super) fn interface(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string", "minLength": 1, "maxLength": 15,
        "x-kubernetes-validations": [
            {
                "rule": "self.matches('^[A-Za-z0-9_][A-Za-z0-9_.@-]*$')",
                "message": "must be the name of an interface: letters, digits, '_', '.', '@' and '-', the first a letter, a digit or '_'",
            },
            { "rule": "self != 'lo'", "message": "must be an interface that leads somewhere, not lo" },
        ],
    })
}

/// Name of a `StagingNetwork`.
pub(super) fn network_name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string", "minLength": 1, "maxLength": NAME_MAX,
        "x-kubernetes-validations": [{
            "rule": "!format.dns1123Subdomain().validate(self).hasValue()",
            "message": "must be the name of a StagingNetwork: lower-case letters, digits, '-' and '.', the first and last a letter or digit",
        }],
    })
}

/// Name of a `VirtualMachine`.
pub(super) fn machine_name(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string", "minLength": 1, "maxLength": MACHINE_NAME_MAX,
        "x-kubernetes-validations": [{
            "rule": "!format.dns1123Subdomain().validate(self).hasValue()",
            "message": "must be the name of a VirtualMachine: lower-case letters, digits, '-' and '.', the first and last a letter or digit",
        }],
    })
}

/// Name of a network in the spec of a `VirtualMachine`, as `KubeVirt`'s own admission has it.
pub(super) fn machine_interface(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string", "minLength": 1, "maxLength": MACHINE_INTERFACE_MAX,
        "x-kubernetes-validations": [{
            "rule": "self.matches('^[A-Za-z0-9_-]+$')",
            "message": "must be the name of a network of the VirtualMachine: letters, digits, '-' and '_'",
        }],
    })
}

/// A set of network attachments.
pub(super) fn network_attachments(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "maxItems": ATTACHMENTS_MAX, "x-kubernetes-list-type": "set",
        "items": {
            "type": "string", "minLength": 3, "maxLength": ATTACHMENT_MAX,
            "x-kubernetes-validations": [{
                "rule": "self.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?/[a-z0-9]([a-z0-9.-]*[a-z0-9])?$')",
                "message": "must be NAMESPACE/NAME of a NetworkAttachmentDefinition, such as default/closed-b",
            }],
        },
    })
}

/// A port number of a transport protocol. 0 cannot be dialled.
pub(super) fn port(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "format": "int32", "minimum": 1, "maximum": 65535 })
}

/// Addresses that the operator itself wrote.
pub(super) fn plain_addresses(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array", "maxItems": API_SERVER_MAX, "x-kubernetes-list-type": "set",
        "items": { "type": "string", "maxLength": 45 },
    })
}

/// A label selector as Kubernetes has it, bounded, for nodes.
pub(super) fn label_selector(_: &mut SchemaGenerator) -> Schema {
    selector("node")
}

/// The same for namespaces.
pub(super) fn namespace_selector(_: &mut SchemaGenerator) -> Schema {
    selector("namespace")
}

fn selector(of: &str) -> Schema {
    json_schema!({
        "type": "object",
        "x-kubernetes-map-type": "atomic",
        "properties": {
            "matchLabels": {
                "description": format!("Labels that a {of} must have, with exactly these values. All of them."),
                "type": "object", "maxProperties": 32,
                "additionalProperties": { "type": "string", "maxLength": 63 },
                "x-kubernetes-validations": [{
                    "rule": "self.all(key, size(key) > 0 && size(key) <= 317)",
                    "message": "must have label names of 1 to 317 characters",
                }],
            },
            "matchExpressions": {
                "description": format!("Conditions on the labels of a {of}. All of them."),
                "type": "array", "maxItems": 32, "x-kubernetes-list-type": "atomic",
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "properties": {
                        "key": { "description": "Name of the label.", "type": "string", "minLength": 1, "maxLength": 317 },
                        "operator": {
                            "description": "In: the label has one of `values`. NotIn: it has none of them, or is absent. Exists, DoesNotExist: whatever its value.",
                            "type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist"],
                        },
                        "values": {
                            "description": "Values for In and NotIn.",
                            "type": "array", "maxItems": 64, "x-kubernetes-list-type": "atomic",
                            "items": { "type": "string", "maxLength": 63 },
                        },
                    },
                    "x-kubernetes-validations": [{
                        "rule": "(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)",
                        "message": "values must be given with In and NotIn, and only with these",
                    }],
                },
            },
        },
    })
}

fn address_schema(more: &[Rule]) -> Schema {
    // 49 is the longest prefix: such a value gets the rule's answer instead of a complaint about its length.
    let rules = rules(
        &[
            (
                "isIP(self)",
                "must be an IPv4 or IPv6 address, such as 192.168.100.3 or 2001:db8::3",
            ),
            (
                "!isIP(self) || ip.isCanonical(self)",
                "must be written in its one short form (RFC 5952), such as 2001:db8::3",
            ),
            (
                "!isIP(self) || (ip(self).isGlobalUnicast() && !self.startsWith('0.') && !self.startsWith('::'))",
                "must be an address that a host can have: not unspecified, loopback, link-local, multicast or broadcast",
            ),
        ],
        more,
    );
    json_schema!({ "type": "string", "minLength": 1, "maxLength": 49, "x-kubernetes-validations": rules })
}

fn host_prefix_schema(more: &[Rule]) -> Schema {
    let mut all = vec![
        (
            "!isCIDR(self) || cidr(self).prefixLength() >= (cidr(self).ip().family() == 4 ? 8 : 32)",
            "must be no wider than /8 (IPv4) or /32 (IPv6)",
        ),
        (
            "!isCIDR(self) || (cidr(self).ip().isGlobalUnicast() && !self.startsWith('0.') && !self.startsWith('::'))",
            "must be a prefix that hosts can live in: not unspecified, loopback, link-local, multicast or broadcast",
        ),
    ];
    all.extend_from_slice(more);
    prefix_schema(&all)
}

fn prefix_schema(more: &[Rule]) -> Schema {
    let rules = rules(
        &[
            (
                "isCIDR(self)",
                "must be an IPv4 or IPv6 prefix, such as 192.168.100.0/24 or 2001:db8::/64",
            ),
            (
                "!isCIDR(self) || string(cidr(self).masked()) == self",
                "must have no host bits set and be written in its one short form: the first address of the prefix as RFC 5952 has it, \
                 the length without leading zeros",
            ),
        ],
        more,
    );
    json_schema!({ "type": "string", "minLength": 1, "maxLength": 49, "x-kubernetes-validations": rules })
}

/// A CEL rule and what it says of a value that breaks it.
type Rule = (&'static str, &'static str);

fn rules(first: &[Rule], more: &[Rule]) -> Vec<serde_json::Value> {
    let all = first.iter().chain(more);
    all.map(|(rule, message)| serde_json::json!({ "rule": rule, "message": message }))
        .collect()
}
