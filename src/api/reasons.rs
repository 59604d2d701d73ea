//! Condition types and reasons: every fixed word that status, events, metric labels and command-line output share.
//!
//! One word means one thing everywhere. `docs/reasons.md` is generated from these tables, each reason has a page in `docs/reasons/`, and tests/pages.rs holds both to what is here. Words are
//! `CamelCase` as Kubernetes wants them (`^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$`); they are never renamed within an API version, because people alert on them.

// The texts are shown to people as they are.
#![allow(clippy::doc_markdown)]

/// One reason, as documented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReasonDoc {
    /// The word.
    pub reason: &'static str,
    /// What is, and why.
    pub what: &'static str,
    /// What a person does next.
    pub next: &'static str,
}

/// One condition type, as documented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TypeDoc {
    /// The word.
    pub name: &'static str,
    /// The kinds that carry it.
    pub on: &'static str,
    /// What it is that True says.
    pub polarity: Polarity,
    /// What True means, and when it is there.
    pub what: &'static str,
}

/// What it is that a condition says by being True.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polarity {
    /// All is well (positive polarity).
    Good,
    /// Something is wrong, or not done yet (negative polarity): there only while True, and never beside Ready=True.
    Bad,
    /// Something worth knowing that is no fault: it says nothing about Ready, either way.
    Notice,
}

macro_rules! reasons {
    ($($name:ident = $reason:literal, $what:literal, $next:literal;)*) => {
        $(#[doc = $what] #[doc = ""] #[doc = $next] pub const $name: &str = $reason;)*
        /// Every reason, in the order of the documentation.
        pub const ALL: &[ReasonDoc] = &[$(ReasonDoc { reason: $reason, what: $what, next: $next }),*];
    };
}

/// Condition types.
pub mod types {
    use super::Polarity::{Bad, Good, Notice};
    use super::TypeDoc;

    macro_rules! condition_types {
        ($($name:ident = $word:literal, $polarity:ident, $on:literal, $what:literal;)*) => {
            $(#[doc = $what] pub const $name: &str = $word;)*
            /// Every condition type, in the order in which `status.conditions` lists them: of several that are bad the first says what Ready says.
            pub const ALL: &[TypeDoc] = &[$(TypeDoc { name: $word, on: $on, polarity: $polarity, what: $what }),*];
        };
    }

    condition_types! {
        ACCEPTED = "Accepted", Good, "StagingNetwork, NatMapping",
            "The object is valid and stands: for a mapping, the claim is its own. Always present.";
        RESOLVED_REFS = "ResolvedRefs", Good, "NatMapping",
            "What the object refers to exists: the network, the virtual machine and an address of it that may be used, and on the gateway the kernel's helpers. Always present.";
        PROGRAMMED = "Programmed", Good, "StagingNetwork, NatMapping",
            "Every gateway that should serve it has read it back from its kernel. Always present. Unknown while a gateway is silent.";
        READY = "Ready", Good, "StagingNetwork, NatMapping, GatewayNode",
            "Summary: all of the above. On a GatewayNode: the node holds all that it was asked to hold, and nobody takes it away again. Always present.";
        CONFLICTED = "Conflicted", Bad, "NatMapping",
            "An older claim to the same virtual address and ports won. Present only while true.";
        TARGET_ON_OTHER_NETWORK = "TargetOnOtherNetwork", Bad, "NatMapping",
            "The interface of the running virtual machine that the mapping names is attached to another network than the closed one, so nothing leads there. Present only while true.";
        EGRESS_LIMITED = "EgressLimited", Notice, "StagingNetwork",
            "Something may leave the network, but only machines with a 1:1 mapping (one of all protocols) have an address to leave under, in the families that the message names; all others are denied. Nothing is broken, so Ready may be True beside it. Present only while true.";
        DRIFTED = "Drifted", Bad, "GatewayNode",
            "Somebody else changed what stagenet holds in the kernel and it could not be put back yet. Present only while true.";
        RECONCILING = "Reconciling", Bad, "StagingNetwork, NatMapping",
            "Work is under way or waits for something that is expected to come by itself (kstatus). Present only while true, never beside Stalled.";
        STALLED = "Stalled", Bad, "StagingNetwork, NatMapping",
            "Nothing will come of it until a person changes an object or a node (kstatus). Present only while true, never beside Reconciling.";
        PERMISSIONS = "Permissions", Good, "GatewayNode",
            "The agent may change netfilter, routes, addresses and interface settings (NET_ADMIN), and send ARP (NET_RAW).";
        BACKEND = "Backend", Good, "GatewayNode",
            "The iptables tools are there, and the variant (nft or legacy) is known. False: no tool. The message says which one was chosen and why.";
        LOCK = "Lock", Good, "GatewayNode",
            "The xtables lock was to be had. False: somebody holds it, the message says who if that is known.";
        INTERFACES = "Interfaces", Good, "GatewayNode",
            "Every interface that a network of this node needs is there, once.";
        REVERSE_PATH_FILTER = "ReversePathFilter", Good, "GatewayNode",
            "The reverse path filter lets answers through: it is off or loose on the interfaces in use, or strict where that does no harm.";
        FOREIGN_FORWARD = "ForeignForwardDrop", Notice, "GatewayNode",
            "A finding, not a fault. True: another program drops forwarded packets by policy or rule (docker, firewalld, ...); stagenet's accepts stand ahead of it.";
        BRIDGE_NETFILTER = "BridgeNetfilter", Notice, "GatewayNode",
            "A finding, not a fault. True: bridged packets pass iptables too (net.bridge.bridge-nf-call-iptables=1, as Kubernetes sets it); stagenet's rules allow for it.";
        CONNTRACK_ROOM = "ConntrackRoom", Good, "GatewayNode",
            "The connection table has room: less than nine tenths of nf_conntrack_max are in use.";
        IPV6_FENCE = "Ipv6Fence", Good, "GatewayNode",
            "IPv6 of the closed networks is fenced off, or the kernel has no IPv6.";
        IPV6_FORWARDING = "Ipv6Forwarding", Good, "GatewayNode",
            "IPv6 forwarding is on, or no network of this node has IPv6 addresses.";
        PROXY_NDP = "ProxyNdp", Good, "GatewayNode",
            "The kernel answers neighbour discovery for proxied addresses on the interfaces that have IPv6 virtual addresses.";
        FWMARK_REFLECT = "FwmarkReflect", Good, "GatewayNode",
            "What the node answers into isolated networks bears their mark, or there is no isolated network on this node.";
        HELPERS = "Helpers", Notice, "GatewayNode",
            "A finding, not a fault. True: the kernel has every connection tracking helper that stagenet knows, with its part in NAT. False: it lacks some; the message says which it has and what to load.";
        FENCE = "Fence", Good, "GatewayNode",
            "The fence of every closed network of this node was read back from the kernel.";
    }
}

reasons! {
    ACCEPTED = "Accepted", "The object is valid and stands.", "Nothing.";
    RESOLVED = "Resolved", "Everything that the object refers to exists.", "Nothing.";
    PROGRAMMED = "Programmed", "Every gateway that should serve it has read it back from its kernel.", "Nothing.";
    READY = "Ready", "All is as asked for.", "Nothing.";

    INVALID = "Invalid", "A field has a value that cannot be used; the message names the field and says what it must be.",
        "Correct the field and apply the object again.";
    POOL = "OutsidePool", "The virtual address is not in the network's pool (`spec.outside.addresses`).",
        "Choose an address of the pool, or ask the administrator to widen it.";
    PROTECTED = "Protected", "The address lies in a range that the network declares to be production (`spec.protected`), or a mapping of side Inside leads to the cluster's API server.",
        "Choose another address. What is protected cannot be claimed, whatever else is said.";
    TARGET_OUTSIDE = "TargetOutside", "The target is not in the network's inside prefixes (`spec.inside.addresses`). With `spec.target.virtualMachineRef`: the machine reports no address in them, and nothing leads to where else it may be.",
        "Correct the target, the machine's own address, or the network's inside prefixes.";
    TARGET_IS_GATEWAY = "TargetIsGateway", "The target is an address that the gateway itself answers for inside (`spec.inside.gatewayAddresses`).",
        "Choose the address of a VM as the target.";
    ADDRESS_OWNED = "AddressOwnedByNode", "The virtual address belongs to an interface of a node, to a network or to the cluster's API server; claiming it would cut that off.",
        "Choose an address that no host owns.";
    CONFLICT = "Conflict", "An older claim has the same virtual address and overlapping ports. The older `creationTimestamp` wins, then the first by namespace/name.",
        "Choose another address or other ports, or delete the claim that the message names.";
    PREFIX_OVERLAP = "PrefixOverlap", "A prefix of the network overlaps one of another network where the two cannot be told apart.",
        "Give one of the two networks other prefixes, or other gateway nodes.";
    TARGET_INSIDE = "TargetInside", "The target of a mapping with `side: Inside` lies in the inside prefixes of a closed network. Such a mapping leads out of the closed network, not from one VM to another.",
        "Name a target outside. For a way in, leave `side` out.";
    SOURCE_ADDRESS_MISSING = "SourceAddressMissing", "The network has no `spec.outside.sourceAddress` of the family that is needed, so what comes from inside could not be answered outside. Mappings of side Inside are refused for it; of what `egress` allows, only machines with a 1:1 mapping make use (condition `EgressLimited` of the network).",
        "Give the network an `outside.sourceAddress` that no host owns (`outside.sourceAddressIPv6` for the second family of a network with both).";
    SOURCE_ADDRESS_UNUSABLE = "SourceAddressUnusable", "The network's `outside.sourceAddress` cannot be taken: a node owns it, a mapping claims it, or another network uses it. The message says which.",
        "Choose another address for `outside.sourceAddress`.";
    NAMESPACE_NOT_ALLOWED = "NamespaceNotAllowed", "The network's `spec.allowedNamespaces` does not select the mapping's namespace. The message has the labels that it would need.",
        "Ask an administrator to label the namespace, or to widen the network's `allowedNamespaces`; or claim from another network. It is judged again by itself when labels change.";
    NAMESPACE_UNKNOWN = "NamespaceUnknown", "The network says by labels which namespaces may claim, and those of the mapping's namespace are not known yet.",
        "Wait some seconds. If it stays, see the log of controller and agents: they must be allowed to list and watch namespaces.";
    HELPER_NOT_ALLOWED = "HelperNotAllowed", "The mapping asks for a helper that the network's `spec.allowedHelpers` does not list.",
        "Ask the network's administrator to allow the helper, or leave it out of the mapping.";
    ISOLATION_EXHAUSTED = "IsolationExhausted", "The network overlaps another one and there is no identifier left to tell them apart by; there are as many as the firewall mark has values.",
        "Delete closed networks that are no longer used, give this one other inside prefixes, or start agents and controller with a wider `--fwmark-mask`.";
    UNREADABLE = "Unreadable", "The object, or the network that a mapping is in, cannot be read by this version of stagenet: a newer version wrote it, or it was stored before a rule existed. Gateways keep the last version that they could read, if there was one.",
        "Correct the object as the message says, or upgrade stagenet.";
    NETWORK_NOT_FOUND = "NetworkNotFound", "There is no StagingNetwork of the name in `spec.networkRef`.",
        "Create the network, or correct the name. The mapping takes effect by itself when the network appears.";
    NETWORK_NOT_ACCEPTED = "NetworkNotAccepted", "The network that the mapping names is not accepted itself.",
        "Look at the network: `kubectl describe stagingnetwork NAME`.";
    KUBEVIRT_MISSING = "KubeVirtMissing", "The mapping names a virtual machine, and the cluster has not KubeVirt's kinds VirtualMachine and VirtualMachineInstance (kubevirt.io/v1); the message says which. The virtual address is kept for the mapping.",
        "Install KubeVirt, or write the machine's address in `spec.target.address`. The mapping takes effect by itself when the machine has an address.";
    MACHINES_UNREADABLE = "MachinesUnreadable", "The controller may not read KubeVirt's kinds, so it cannot tell where the virtual machine is that the mapping names. An address that was known before is held, and traffic goes on.",
        "Give the controller the rights that the message names; they are in the ClusterRole stagenet-controller.";
    VIRTUAL_MACHINE_NOT_FOUND = "VirtualMachineNotFound", "There is no VirtualMachine of the name in `spec.target.virtualMachineRef` in the mapping's namespace.",
        "Create the machine, or correct the name. The mapping takes effect by itself when the machine has an address.";
    MACHINE_INTERFACE_MISSING = "MachineInterfaceMissing", "The virtual machine has no network of the name in `spec.target.virtualMachineRef.interface`, or its interface there is unplugged.",
        "Write the name of one of the networks that the message lists (`spec.template.spec.networks` of the VirtualMachine), or plug the interface in.";
    WAITING_FOR_ADDRESS = "WaitingForAddress", "No address of the virtual machine is known yet: it has never run since it was named, or reports none of the family of `spec.virtual.address`. The virtual address is kept for the mapping meanwhile.",
        "Start the machine. If it runs: see `status.interfaces` of its VirtualMachineInstance; without a guest agent KubeVirt knows no addresses of interfaces that are not on the pod network. Or write the address in `spec.target.address`.";
    TARGET_ON_OTHER_NETWORK = "TargetOnOtherNetwork", "The interface of the running virtual machine is attached to another network than the closed one, so the address that it reports is not a place in the closed network. Nothing leads there, and the virtual address is kept for the mapping.",
        "Attach the interface to the closed network again. If the attachment that the message names leads into it too, list it in the network's `spec.inside.networkAttachments`.";
    NOT_ACCEPTED = "NotAccepted", "Nothing is programmed because the object is not accepted.",
        "See its condition Accepted.";

    PENDING = "Pending", "Gateways have not reported yet that their kernels hold it.",
        "Wait some seconds. If it stays: `kubectl get gatewaynodes` and the agent's log on the node that the message names.";
    WAITING_FOR_AGENT = "WaitingForAgent", "A node is selected as a gateway, but its agent has never reported.",
        "See whether the agent's pod runs on that node.";
    NO_GATEWAY = "NoGateway", "No node carries the labels of the network's `spec.gateway.nodeSelector`, or none of those is fit to serve.",
        "Label a node, or correct the selector. If nodes match, see their `kubectl describe gatewaynode`.";
    GATEWAY_SILENT = "GatewaySilent", "The gateway's agent has stopped reporting. What its kernel holds goes on working, but nobody can vouch for it.",
        "See whether the node and its agent are up. The state is Unknown, not False: traffic may well flow.";
    INTERFACE_MISSING = "InterfaceMissing", "The node has no interface of the given name, or none whose subnet covers the network's addresses.",
        "Create the interface or correct its name. It is taken into use by itself when it appears.";
    INTERFACE_AMBIGUOUS = "InterfaceAmbiguous", "Several interfaces of the node have a subnet that covers the network's addresses.",
        "Name the interface in the network's spec.";
    SAME_INTERFACE = "SameInterface", "Outside and inside are the same interface: there would be no fence between them.",
        "Give the closed network an interface of its own.";
    INTERFACE_SHARED = "InterfaceShared", "The inside interface serves another network as well.",
        "Give each closed network an inside interface of its own.";
    INTERFACE_ENSLAVED = "InterfaceEnslaved", "The interface is a port of a bridge, a bond or a VRF: routed packets carry the name of that, which a fence of the port does not see.",
        "Name the bridge in the network's spec, or release the interface from it.";
    LINK_DOWN = "LinkDown", "An interface of the gateway that the network needs is down or has no carrier: the kernel holds all that is planned, but no packet gets through.",
        "See the interface named in the message (`ip link show`). Everything works again by itself when it is up; nothing was removed.";
    ISOLATION_PENDING = "IsolationPending", "The network's inside prefixes overlap those of another network on the gateway, and it has no identifier yet by which the two are told apart. It is fenced and not served until then.",
        "Wait some seconds. If it stays, see whether the controller runs.";
    HELPER_MISSING = "HelperMissing", "The gateway's kernel has no connection tracking helper of that name. The mapping works without it: connections to its ports are translated, but not those that the protocol negotiates in band.",
        "Load the module on the gateway (`modprobe nf_nat_NAME`, which brings its part in connection tracking along), then it is taken into use by itself; or remove the helper from the mapping.";
    ADDRESS_IN_USE = "AddressInUse", "Somebody on the outside segment answers ARP for the virtual address; the message has the hardware address. It was not taken, because that somebody may be production.",
        "Find the owner of the hardware address, or choose another virtual address. It is asked again from time to time.";
    PROBE_FAILED = "ProbeFailed", "The outside segment could not be asked whether anybody has the virtual address, so it was not taken.",
        "See the message; usually the interface is down or NET_RAW is missing.";

    TOOL_MISSING = "ToolMissing", "An iptables tool is not on the node.",
        "Install the iptables package, or use the image of the Dockerfile. Nothing was changed.";
    NOT_PERMITTED = "NotPermitted", "The kernel refused the agent what it needs.",
        "Give the agent NET_ADMIN and NET_RAW in the node's network namespace.";
    LOCK_HELD = "LockHeld", "Another program holds the xtables lock.",
        "Nothing was changed; it is tried again by itself. If it stays, end the program that the message names.";
    RESTORE_REJECTED = "RestoreRejected", "The kernel refused a rule; the message has the line and what the tool said. The last good state goes on serving.",
        "Usually a kernel module is missing on the node. Report it with the line if that is not so.";
    APPLY_FAILED = "ApplyFailed", "The kernel could not be brought to the planned state.",
        "See the message. It is tried again by itself, ever more slowly.";
    OBSERVE_FAILED = "ObserveFailed", "The agent could not read the kernel's state.",
        "See the message. Nothing is changed before it can be read.";

    AS_PLANNED = "AsPlanned", "The node's kernel holds exactly what is planned.", "Nothing.";
    DEGRADED = "Degraded", "The node serves, but some mappings or networks could not be programmed.",
        "See `status.failures` and `status.networks` of the GatewayNode.";
    NOTHING_TO_DO = "NothingToDo", "No network concerns this node.",
        "Nothing, or label the node if it should be a gateway.";
    DRIFT_FOUND = "DriftFound", "Somebody else changed what stagenet holds in the kernel.",
        "It is put back by itself. If it stays, see the message for who did it.";
    DRIFT_REPAIRED = "DriftRepaired", "Somebody else changed what stagenet holds in the kernel, and it was put back. The event says what and, where the kernel tells, by whom.",
        "Keep the other program from touching chains named SNET-.";
    FENCE_RAISED = "FenceRaised", "The fence of a closed network stands.", "Nothing.";
    FENCE_MISSING = "FenceMissing", "The fence of a closed network could not be raised. Nothing is forwarded for it.",
        "See the message and the node's other conditions.";
    GATEWAY_MOVED = "GatewayMoved", "Another node attracts the network's traffic now.",
        "Nothing. Connections that hide the client's address break on a move and have to be made anew.";
    GATEWAY_ELECTED = "GatewayElected", "A node attracts the network's traffic.", "Nothing.";
    ISOLATED = "Isolated", "The network may share a gateway with another one that has the same inside addresses. From now on its packets bear a mark, and its connections are tracked in a zone of their own; see `status.isolation`.",
        "Nothing. Open connections of the network that was there first go on.";
    LINK_UP = "LinkUp", "The interface that was down is up again, and everything works as before.", "Nothing.";

    AS_NEEDED = "AsNeeded", "The node is as stagenet needs it.", "Nothing.";
    NOT_CHECKED = "NotChecked", "This could not be found out; the message says why.", "See the message.";
    BOTH_BACKENDS = "BothBackendsInUse", "Rules of both iptables variants are on the node; packets pass both.",
        "Works, but is hard to read. Move the other programs to one variant, or choose with `--backend`.";
    IPV6_FORWARDING_OFF = "IPv6ForwardingOff", "IPv6 forwarding is off on the node and only the node's administrator can switch it on, because in IPv6 one switch serves all interfaces.",
        "Set net.ipv6.conf.all.forwarding=1 on the node (and net.ipv6.conf.INTERFACE.accept_ra=2 where the node learns its own route by router advertisements).";
    PROXY_NDP_OFF = "ProxyNdpOff", "The node does not answer neighbour discovery for addresses that are not its own, so clients outside do not find IPv6 virtual addresses.",
        "Set net.ipv6.conf.INTERFACE.proxy_ndp=1 on the interface that the message names.";
    FWMARK_REFLECT_OFF = "FwmarkReflectOff", "What the node itself answers into an isolated network does not bear that network's mark, so it could go to production and is dropped: its VMs cannot ping the gateway, and do not learn of packets that are too big.",
        "Set net.ipv4.fwmark_reflect=1 (and net.ipv6.fwmark_reflect=1) on the node.";
    STRICT_REVERSE_PATH = "StrictReversePath", "The reverse path filter is strict and would drop translated packets.",
        "Set net.ipv4.conf.INTERFACE.rp_filter=2 (the greater of `all` and the interface's own counts).";
    FOREIGN_DROP = "ForeignDrop", "Another program drops forwarded packets.",
        "Nothing: stagenet accepts what it admits ahead of that.";
    NO_FOREIGN_DROP = "NoForeignDrop", "No other program drops all forwarded packets.", "Nothing.";
    BRIDGED_FILTERED = "BridgedPacketsFiltered", "Bridged packets pass iptables.", "Nothing: stagenet's rules allow for it.";
    BRIDGED_NOT_FILTERED = "BridgedPacketsNotFiltered", "Bridged packets do not pass iptables, or no bridge is in use.", "Nothing.";
    CONNTRACK_FULL = "ConntrackNearlyFull", "More than nine tenths of the connection table are in use; soon new connections fail.",
        "Raise net.netfilter.nf_conntrack_max.";
    IPV6_UNFENCED = "Ipv6Unfenced", "IPv6 of a closed network could not be fenced off.",
        "Install ip6tables, or switch IPv6 off on the inside interface.";

}

/// The condition types that say something bad by being True, the most telling first.
pub fn negative() -> impl Iterator<Item = &'static str> {
    types::ALL.iter().filter(|doc| doc.polarity == Polarity::Bad).map(|doc| doc.name)
}

/// The page of a reason.
pub fn describe(reason: &str) -> Option<&'static ReasonDoc> {
    ALL.iter().find(|doc| doc.reason == reason)
}

/// `docs/reasons.md`.
pub fn markdown() -> String {
    use std::fmt::Write as _;
    let mut out = String::from(concat!(
        "# Conditions and reasons\n\n",
        "Generated from `src/api/reasons.rs`; `UPDATE=1 cargo test --test pages` writes it anew.\n\n",
        "The same words stand in `status.conditions`, in events, in metric labels and in what the command line prints.\n\n",
        "## Condition types\n\n| type | on | meaning of True |\n|---|---|---|\n",
    ));
    for doc in types::ALL {
        let _ = writeln!(out, "| `{}` | {} | {} |", doc.name, doc.on, doc.what);
    }
    out.push_str("\n## Reasons\n\nEach has a page: where it is found, why it happens, how to see more, how to mend it.\n\n| reason | what it says | what to do |\n|---|---|---|\n");
    for doc in ALL {
        let _ = writeln!(out, "| [`{0}`](reasons/{0}.md) | {1} | {2} |", doc.reason, doc.what, doc.next);
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn camel_case(word: &str) -> bool {
        word.starts_with(|c: char| c.is_ascii_uppercase()) && word.chars().all(|c| c.is_ascii_alphanumeric()) && word.len() <= 64
    }

    #[test]
    fn words_are_camel_case_and_said_once() {
        let mut seen = BTreeSet::new();
        for doc in ALL {
            assert!(camel_case(doc.reason), "{}", doc.reason);
            assert!(seen.insert(doc.reason), "{} twice", doc.reason);
        }
        let mut seen = BTreeSet::new();
        for doc in types::ALL {
            assert!(camel_case(doc.name), "{}", doc.name);
            assert!(seen.insert(doc.name), "{} twice", doc.name);
        }
    }

    /// What is there only while true is not something good, and what is bad is there only while true.
    #[test]
    fn what_is_bad_is_there_only_while_true() {
        for doc in types::ALL {
            let fleeting = doc.what.contains("Present only while true");
            assert!(!fleeting || doc.polarity != Polarity::Good, "{}", doc.name);
            assert!(fleeting || doc.polarity != Polarity::Bad, "{}", doc.name);
            let told = doc.what.contains("not a fault") || doc.what.contains("Ready may be True beside it");
            assert_eq!(told, doc.polarity == Polarity::Notice, "{}", doc.name);
        }
        assert_eq!(negative().last(), Some(types::STALLED), "kstatus' own come last");
    }

    #[test]
    fn every_reason_says_what_and_what_next_in_a_table_cell() {
        for doc in ALL {
            for text in [doc.what, doc.next] {
                assert!(
                    text.ends_with('.') && !text.contains('|') && !text.contains('\n'),
                    "{}: {text}",
                    doc.reason
                );
            }
            assert_eq!(describe(doc.reason), Some(doc));
        }
        assert_eq!(describe("NoSuchReason"), None);
    }
}
