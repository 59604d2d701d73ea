//! Worlds with everything in them: both families, prefixes, both directions, helpers, egress rules, clones, marks, and names that want to break a rule.
//!
//! Each is a world of [`crate::worlds`] with more in it, so that the objects still meet.

use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};
use stagenet::netfilter::{Family, Helper};
use stagenet::plan::World;

use crate::{FITTING, object, worlds};

/// Per network: its own IPv6 prefix inside.
const INSIDES_V6: [&str; 4] = ["2001:db8:b::/64", "2001:db8:c::/64", "2001:db8:d::/64", "2001:db8:e::/64"];
const POOL_V6: &str = "2001:db8:a::/64";

const PREFIXES: [(&str, &str, &str); 12] = [
    ("alpha", "192.168.100.64/28", "192.168.200.64/28"),
    ("alpha", "192.168.100.16/29", "192.168.200.200/29"),
    ("alpha", "2001:db8:a::100/120", "2001:db8:b::100/120"),
    ("alpha", "2001:db8:a:0:1::/80", "2001:db8:b:0:1::/80"),
    ("beta", "192.168.100.128/26", "192.168.201.128/26"),
    ("beta", "2001:db8:a::200/124", "2001:db8:c::200/124"),
    ("gamma", "172.16.4.0/22", "10.1.4.0/22"),
    ("alpha", "192.168.100.0/24", "192.168.200.0/24"),
    ("alpha", "192.168.100.64/28", "192.168.200.64/27"),
    ("alpha", "192.168.100.65/28", "192.168.200.64/28"),
    ("alpha", "0.0.0.0/0", "0.0.0.0/0"),
    ("beta", "192.168.100.32/28", "2001:db8:c::20/124"),
];

const SINGLES_V6: [(&str, &str, &str); 7] = [
    ("alpha", "2001:db8:a::3", "2001:db8:b::3"),
    ("alpha", "2001:db8:a::4", "2001:db8:b::4"),
    ("beta", "2001:db8:a::5", "2001:db8:c::5"),
    ("gamma", "2001:db8:a::6", "2001:db8:d::6"),
    ("alpha", "2001:db8:a::3", "192.168.200.3"),
    ("alpha", "::ffff:192.168.100.3", "2001:db8:b::3"),
    ("alpha", "fe80::3", "ff02::1"),
];

/// What machines inside may be given: an address of theirs or of nobody, and where it leads outside.
const OUTWARD: [(&str, &str, &str); 9] = [
    ("alpha", "192.168.200.240", "203.0.113.5"),
    ("alpha", "10.99.0.1", "203.0.113.6"),
    ("beta", "192.168.201.240", "203.0.113.5"),
    ("gamma", "10.3.3.3", "198.51.100.7"),
    ("alpha", "2001:db8:b::f0", "2001:db8:ffff::5"),
    ("beta", "10.99.0.2", "192.168.100.77"),
    ("alpha", "192.168.200.3", "192.168.200.4"),
    ("alpha", "127.0.0.1", "0.0.0.0"),
    ("beta", "192.168.201.241", "172.16.0.9"),
];

const HELPERS: [(&str, u16); 11] = [
    ("ftp", 21),
    ("ftp", 2121),
    ("tftp", 69),
    ("sip", 5060),
    ("h323", 1720),
    ("pptp", 1723),
    ("snmp", 161),
    ("amanda", 10080),
    ("irc", 6667),
    ("ftp", 80),
    ("sip", 0),
];

/// Names that no API server takes, but a file may say.
pub(crate) const HOSTILE: [&str; 18] = [
    "x\" -j ACCEPT",
    "x' -j ACCEPT '",
    "a\n-A FORWARD -j ACCEPT",
    "a\r\nCOMMIT\n*filter",
    "$(reboot)",
    "`id`",
    "a;b|c&d>e",
    "back\\slash",
    "nul\0byte",
    "ümläut",
    "-j",
    "--comment",
    "eth+",
    "+",
    " leading",
    "",
    "../../etc/passwd",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
];

fn patched<T: serde::Serialize + serde::de::DeserializeOwned>(object: &T, patch: impl FnOnce(&mut Value)) -> T {
    let mut value = serde_json::to_value(object).unwrap();
    patch(&mut value);
    serde_json::from_value(value).unwrap()
}

fn push(list: &mut Value, more: &str) {
    match list {
        Value::Array(list) => list.push(json!(more)),
        other => *other = json!([more]),
    }
}

/// Mostly one of `good`.
fn mostly<T: Clone + std::fmt::Debug + 'static>(good: &'static [T], odd: &'static [T]) -> impl Strategy<Value = T> {
    prop_oneof![24 => select(good), 1 => select(odd)]
}

/// A protocol, its first port, and the last one of a range.
type PortsOf = (&'static str, (u16, Option<u16>));

fn allowed() -> impl Strategy<Value = Value> {
    let to = mostly(
        &["203.0.113.0/24", "198.51.100.7/32", "0.0.0.0/0", "2001:db8:ffff::/48", "::/0"],
        &["192.168.201.0/24", "8.8.8.8/24", "junk"],
    );
    let range = mostly(
        &[(53, None), (443, None), (53, Some(500)), (443, Some(65535)), (65535, Some(65535))],
        &[(0, None), (443, Some(53))],
    );
    let port = (select(&["TCP", "UDP", "SCTP"][..]), range);
    (to, prop::collection::vec(port, 0..3)).prop_map(|(to, ports): (&str, Vec<PortsOf>)| {
        let ports: Vec<Value> = ports
            .into_iter()
            .map(|(protocol, (port, end))| {
                let mut entry = json!({"protocol": protocol, "port": port});
                if let Some(end) = end {
                    entry["endPort"] = json!(end);
                }
                entry
            })
            .collect();
        json!({"to": to, "ports": ports})
    })
}

/// What a network gets. The identifier is its place, so that no two share one.
#[derive(Clone, Debug)]
struct MoreNetwork {
    v6: bool,
    clone: bool,
    /// Whether it was there first, if it was told apart from others.
    isolated: Option<bool>,
    source: Option<&'static str>,
    source_v6: Option<&'static str>,
    allow: Vec<Value>,
    helpers: Vec<&'static str>,
    clamp: Option<bool>,
    hostile: Option<(usize, &'static str)>,
}

fn more_network() -> impl Strategy<Value = MoreNetwork> {
    let names = vec!["amanda", "ftp", "h323", "irc", "pptp", "sip", "snmp", "tftp"];
    let clone = (prop::bool::weighted(0.25), any::<bool>(), 0_u8..8).prop_map(|(clone, first, pending)| {
        // A clone mostly has what tells it apart from others.
        (clone, (pending > 0 && (clone || first)).then_some(first))
    });
    (
        (prop::bool::weighted(0.7), clone),
        prop::option::of(mostly(
            &["192.168.100.9", "192.168.100.250"],
            &["172.16.0.9", "2001:db8:a::9", "192.168.200.9", "junk"],
        )),
        prop::option::weighted(0.3, mostly(&["2001:db8:a::9"], &["192.168.100.9"])),
        prop::collection::vec(allowed(), 0..3),
        prop_oneof![2 => Just(names.clone()), 1 => prop::sample::subsequence(names, 0..=8)],
        prop::option::of(any::<bool>()),
        prop::option::weighted(0.03, (0_usize..6, select(&HOSTILE[..]))),
    )
        .prop_map(
            |((v6, (clone, isolated)), source, source_v6, allow, helpers, clamp, hostile)| MoreNetwork {
                v6,
                clone,
                isolated,
                source,
                // Beside one of IPv4 only.
                source_v6: source_v6.filter(|_| v6 && source.is_some_and(|s| !s.contains(':'))),
                allow,
                helpers,
                clamp,
                hostile,
            },
        )
}

impl MoreNetwork {
    fn put(self, place: usize, network: &mut Value) {
        let spec = &mut network["spec"];
        if self.clone {
            let (interface, _) = FITTING[place];
            spec["inside"] = json!({"interface": interface, "addresses": [FITTING[0].1]});
        }
        if self.v6 {
            push(&mut spec["outside"]["addresses"], POOL_V6);
            let inside = if self.clone { INSIDES_V6[0] } else { INSIDES_V6[place] };
            push(&mut spec["inside"]["addresses"], inside);
        }
        for (field, address) in [("sourceAddress", self.source), ("sourceAddressIPv6", self.source_v6)] {
            if let Some(address) = address {
                spec["outside"][field] = json!(address);
            }
        }
        spec["egress"]["allow"] = json!(self.allow);
        spec["allowedHelpers"] = json!(self.helpers);
        if let Some(clamp) = self.clamp {
            spec["clampMSS"] = json!(clamp);
        }
        if let Some((field, text)) = self.hostile {
            match field {
                0 => spec["outside"]["interface"] = json!(text),
                1 => spec["inside"]["interface"] = json!(text),
                2 => push(&mut spec["outside"]["addresses"], text),
                3 => push(&mut spec["inside"]["addresses"], text),
                4 => spec["outside"]["sourceAddress"] = json!(text),
                _ => network["metadata"]["name"] = json!(text),
            }
        }
        if let Some(first) = self.isolated {
            // The first keeps zone 0; others have one of their own.
            let zone = if first && place == 0 { 0 } else { place + 1 };
            network["status"] = json!({"isolation": {"identifier": place + 1, "zone": zone}});
        }
    }
}

#[derive(Clone, Debug)]
enum Kind {
    AsItIs,
    Single(&'static str, &'static str, &'static str),
    Prefix(&'static str, &'static str, &'static str),
    Outward(&'static str, &'static str, &'static str),
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        3 => Just(Kind::AsItIs),
        3 => prop_oneof![16 => select(&SINGLES_V6[..4]), 1 => select(&SINGLES_V6[4..])].prop_map(|(n, v, t)| Kind::Single(n, v, t)),
        2 => prop_oneof![24 => select(&PREFIXES[..7]), 1 => select(&PREFIXES[7..])].prop_map(|(n, v, t)| Kind::Prefix(n, v, t)),
        2 => prop_oneof![12 => select(&OUTWARD[..5]), 1 => select(&OUTWARD[5..])].prop_map(|(n, v, t)| Kind::Outward(n, v, t)),
    ]
}

#[derive(Clone, Debug)]
struct MoreMapping {
    kind: Kind,
    helpers: Vec<(&'static str, u16)>,
    without_ports: bool,
    hostile: Option<(usize, &'static str)>,
}

fn more_mapping() -> impl Strategy<Value = MoreMapping> {
    (
        kind(),
        prop_oneof![3 => Just(vec![]), 1 => prop::collection::vec(prop_oneof![24 => select(&HELPERS[..9]), 1 => select(&HELPERS[9..])], 1..4)],
        prop::bool::weighted(0.6),
        prop::option::weighted(0.05, (0_usize..6, select(&HOSTILE[..]))),
    )
        .prop_map(|(kind, helpers, without_ports, hostile)| MoreMapping {
            kind,
            helpers,
            without_ports,
            hostile,
        })
}

impl MoreMapping {
    fn put(self, mapping: &mut Value) {
        let spec = &mut mapping["spec"];
        if self.without_ports || !self.helpers.is_empty() {
            spec["ports"] = json!([]);
        }
        let (network, field, from, to) = match self.kind {
            Kind::AsItIs => ("", "", "", ""),
            Kind::Single(network, from, to) => (network, "address", from, to),
            Kind::Prefix(network, from, to) => (network, "prefix", from, to),
            Kind::Outward(network, from, to) => {
                spec["side"] = json!("Inside");
                if let Some(spec) = spec.as_object_mut() {
                    spec.remove("sourceTranslation");
                }
                (network, "address", from, to)
            }
        };
        if !field.is_empty() {
            spec["networkRef"]["name"] = json!(network);
            spec["virtual"] = json!({ field: from });
            spec["target"] = json!({ field: to });
        }
        let helpers: Vec<Value> = self
            .helpers
            .iter()
            .map(|(name, port)| json!({"name": name, "port": port}))
            .collect();
        if !helpers.is_empty() {
            spec["helpers"] = json!(helpers);
        }
        if let Some((field, text)) = self.hostile {
            match field {
                0 => spec["networkRef"]["name"] = json!(text),
                1 => spec["virtual"] = json!({"address": text}),
                2 => spec["target"] = json!({"address": text}),
                3 => spec["virtual"] = json!({"prefix": text}),
                4 => mapping["metadata"]["namespace"] = json!(text),
                _ => mapping["metadata"]["name"] = json!(text),
            }
        }
    }
}

fn kernel_helpers(all: u8) -> Option<std::collections::BTreeSet<Helper>> {
    match all {
        0 => None,
        1 => Some([Helper::Ftp].into()),
        _ => Some(Helper::ALL.into()),
    }
}

prop_compose! {
    /// A world with more in it.
    pub(crate) fn wide_worlds()(
        world in worlds(), networks in prop::collection::vec(more_network(), 4), mappings in prop::collection::vec(more_mapping(), 14),
        allowed in prop::collection::vec(0_u8..16, 4), labels in prop::collection::vec(prop::option::weighted(0.9, any::<bool>()), 4),
        helpers in 0_u8..8, reflect in prop::bool::weighted(0.8), own in prop::bool::weighted(0.05),
    ) -> World {
        let mut world = world;
        for (place, (network, more)) in world.networks.iter_mut().zip(networks).enumerate() {
            *network = patched(network, |value| more.put(place, value));
        }
        for (mapping, more) in world.mappings.iter_mut().zip(mappings) {
            *mapping = patched(mapping, |value| more.put(value));
        }
        for (network, allowed) in world.networks.iter_mut().zip(allowed) {
            *network = patched(network, |value| value["spec"]["allowedNamespaces"] = match allowed {
                0 => json!({"from": "Selector", "selector": {"matchLabels": {"team": "true"}}}),
                1 => json!({"from": "Selector", "selector": {"matchExpressions": [{"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["a"]}]}}),
                2 => json!({"from": "All"}),
                _ => Value::Null,
            });
        }
        let known = ["a", "b", "c", "default"].into_iter().zip(labels);
        let of = |team: bool| [("team".to_owned(), team.to_string())].into();
        world.namespaces = std::sync::Arc::new(known.filter_map(|(name, team)| Some((name.to_owned(), of(team?)))).collect());
        let node = &mut world.nodes[0];
        node.kernel.ipv6_forwarding = true;
        node.kernel.fwmark_reflect = if reflect { Family::ALL.into() } else { [].into() };
        node.kernel.helpers = kernel_helpers(helpers);
        for (name, address) in [("eth0", "2001:db8:a::2/64"), ("eth1", "2001:db8:b::2/64"), ("eth2", "2001:db8:c::2/64"), ("eth3", "2001:db8:d::2/64")] {
            if let Some(interface) = node.interfaces.get_mut(name) {
                interface.addresses.insert(address.parse().unwrap());
                interface.proxy_ndp = true;
                if own {
                    interface.addresses.insert("2001:db8:a::3/128".parse().unwrap());
                }
            }
        }
        world
    }
}

/// A world whose names are all hostile, and one mapping that is as it should be.
pub(crate) fn hostile_worlds() -> impl Strategy<Value = World> {
    let text = prop_oneof![3 => select(&HOSTILE[..]).prop_map(str::to_owned), 1 => prop::collection::vec(any::<char>(), 0..20).prop_map(|c| c.into_iter().collect())];
    (wide_worlds(), prop::collection::vec(text, 6)).prop_map(|(mut world, names)| {
        for (network, name) in world.networks.iter_mut().zip(&names) {
            network.metadata.name = Some(name.clone());
        }
        for (at, mapping) in world.mappings.iter_mut().enumerate() {
            mapping.spec.network_ref.name.clone_from(&names[at % 3]);
            if at % 4 == 0 {
                mapping.metadata.name = Some(names[3 + at % 3].clone());
                mapping.metadata.namespace = Some(names[(4 + at) % 6].clone());
            }
        }
        let spec =
            json!({"networkRef": {"name": names[0]}, "virtual": {"address": "192.168.100.3"}, "target": {"address": "192.168.200.3"}});
        world.mappings.push(object(
            "NatMapping",
            json!({"namespace": names[1], "name": names[2]}),
            Some(0),
            &spec,
        ));
        world
    })
}
