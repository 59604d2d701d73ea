//! What somebody who cannot make up his mind wishes of the seed's gateway: mappings of every kind, and two closed networks of which one is at times a clone of the other.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::lab::{Manifests, VIP, VIP6, network};
use crate::second::{Inside, SECOND_VIP, Second};

/// Set to a number that a failed run printed, to walk the same way again.
pub(crate) const SEED: &str = "STAGENET_STEPS_SEED";
/// Mappings that come, change and go: the first of each kind, and how many there are.
const NAMES: u8 = 41;
const ADDRESSES6: u8 = 24;
const PREFIXES: u8 = 32;
const PREFIXES6: u8 = 34;
const INSIDE: u8 = 36;
const INSIDE6: u8 = 39;
/// Where mapped prefixes begin: the first one is around mapped addresses, and none around those that nobody may ask for.
const BLOCKS: [u8; 4] = [64, 96, 104, 112];
/// The first network without the hosts of its own segment: machines inside may be led to those.
const POOL: &str =
    "192.168.100.3/32, 192.168.100.4/30, 192.168.100.8/29, 192.168.100.16/28, 192.168.100.32/27, 192.168.100.64/26, \"fd00:100::/119\"";
/// What the first network says besides, in turns. Of the last wish nothing may be refused, so it is none of the first.
const FIRM: usize = 1;
const SETTINGS: [&str; 6] = [
    "",
    "allowedHelpers: [ftp]",
    "allowedHelpers: [ftp]\negress: {default: Deny, log: true}",
    "allowedHelpers: [ftp]\nprotected: [10.0.0.0/8, \"fd00:10::/64\"]",
    // Nobody tries that port.
    "allowedHelpers: [ftp]\negress: {default: Deny, allow: [{to: 192.168.100.1/32, ports: [{protocol: TCP, port: 4711}]}, {to: \"fd00:100::1/128\", ports: [{protocol: TCP, port: 4711}]}]}",
    "allowedHelpers: [ftp]\nclampMSS: true",
];

/// Steele, Lea, Flood: Fast splittable pseudorandom number generators (OOPSLA 2014).
pub(crate) struct Random(u64);

impl Random {
    /// With the number that it begins with.
    pub(crate) fn new() -> (Self, u64) {
        let seed = std::env::var(SEED).ok().and_then(|s| s.parse().ok());
        let seed = seed.unwrap_or_else(|| RandomState::new().build_hasher().finish());
        (Self(seed), seed)
    }

    pub(crate) fn below(&mut self, bound: u8) -> u8 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        u8::try_from((z ^ (z >> 31)) % u64::from(bound)).unwrap()
    }

    fn one<'t>(&mut self, of: &[&'t str]) -> &'t str {
        of[usize::from(self.below(of.len().try_into().unwrap()))]
    }
}

/// What is declared at present: by mapping, what is dialled and what that leads to.
#[derive(Default)]
pub(crate) struct Wishes {
    mappings: BTreeMap<u8, (IpNet, IpNet)>,
    second: Option<Inside>,
    broken: BTreeSet<u8>,
}

impl Wishes {
    /// Changes, adds or removes one thing.
    pub(crate) fn step(&mut self, random: &mut Random, manifests: &Manifests) {
        match random.below(20) {
            0 => first_network(random, manifests, 0),
            1 => {
                self.second = [None, Some(Inside::Own), Some(Inside::Same)][usize::from(random.below(3))];
                match self.second {
                    Some(inside) => Second::declare(manifests, inside),
                    None => Second::withdraw(manifests),
                }
            }
            2..=6 => {
                let name = random.below(NAMES);
                if self.mappings.remove(&name).is_some() {
                    self.broken.remove(&name);
                    manifests.remove(&file(name));
                }
            }
            // A file that cannot be read: what it said before stays in force.
            7 => {
                let name = random.below(NAMES);
                if self.mappings.contains_key(&name) {
                    self.broken.insert(name);
                    manifests.write(&file(name), "kind: NatMapping\n  spec: : :\n");
                }
            }
            _ => {
                let name = random.below(NAMES);
                self.declare(name, random, manifests);
            }
        }
    }

    /// Mends what cannot be read or is refused.
    pub(crate) fn settle(&mut self, random: &mut Random, manifests: &Manifests) {
        for name in self.broken.clone() {
            self.declare(name, random, manifests);
        }
        first_network(random, manifests, FIRM);
    }

    fn declare(&mut self, name: u8, random: &mut Random, manifests: &Manifests) {
        self.broken.remove(&name);
        let place = random.below(2);
        let v4 = |network: u8, host: u8, length: u8| IpNet::new(Ipv4Addr::new(192, 168, network, host).into(), length).unwrap();
        let v6 = |network: u16, host: u8, length: u8| {
            let address = Ipv6Addr::new(0xfd00, network, 0, 0, 0, 0, 0, host.into());
            IpNet::new(address.into(), length).unwrap()
        };
        let target = 3 + random.below(2);
        let (virtual_at, to) = match name {
            ..ADDRESSES6 => (v4(100, 10 + name + 40 * place, 32), v4(200, target, 32)),
            ADDRESSES6..PREFIXES => (v6(0x100, 10 + name + 40 * place, 128), v6(0x200, target, 128)),
            PREFIXES..PREFIXES6 => {
                let block = BLOCKS[usize::from(2 * (name - PREFIXES) + place)];
                (v4(100, block, 29), v4(200, 8 * (target - 3), 29))
            }
            PREFIXES6..INSIDE => (
                v6(0x100, 0x80 + 8 * (name - PREFIXES6) + 16 * place, 125),
                v6(0x200, 8 * (target - 3), 125),
            ),
            INSIDE..INSIDE6 => (v4(200, 240 + (name - INSIDE) + 3 * place, 32), v4(100, 1, 32)),
            INSIDE6.. => (v6(0x200, 0xf0 + (name - INSIDE6) + 2 * place, 128), v6(0x100, 1, 128)),
        };
        let ports = [
            "",
            "ports:\n- {protocol: TCP, port: 80}",
            "ports:\n- {protocol: TCP, port: 80}\n- {protocol: UDP, port: 1000, endPort: 1009, targetPort: 2000}",
        ];
        let helped = [
            "sourceTranslation: Preserve",
            "ports:\n- {protocol: TCP, port: 21}\nhelpers: [{name: ftp, port: 21}]",
        ];
        let more = match name {
            ..PREFIXES => random.one(&[&ports[..], &helped].concat()).to_owned(),
            PREFIXES..INSIDE => String::new(),
            INSIDE.. => format!("side: Inside\n{}", random.one(&ports)),
        };
        self.mappings.insert(name, (virtual_at, to));
        let text = if (PREFIXES..INSIDE).contains(&name) {
            prefixes(name, virtual_at, to)
        } else {
            let (from, to) = (format!("\"{}\"", virtual_at.addr()), format!("\"{}\"", to.addr()));
            crate::lab::mapping(&format!("m{name}"), "segment-b", &from, &to, &more)
        };
        manifests.write(&file(name), &text);
    }

    /// An address that some mapping leads on from, and whether it is dialled from inside.
    pub(crate) fn dialled(&self, random: &mut Random) -> Option<(IpAddr, bool)> {
        let name = random.below(NAMES);
        let (virtual_at, _) = self.mappings.get(&name)?;
        Some((virtual_at.hosts().nth(2).unwrap_or(virtual_at.addr()), name >= INSIDE))
    }

    /// How many mappings there are.
    pub(crate) fn mappings(&self) -> usize {
        self.mappings.len()
    }

    /// Whether a mapping leads from `dialled` to `answers`.
    pub(crate) fn lead(&self, dialled: IpAddr, answers: IpAddr) -> bool {
        let second = self
            .second
            .map(|inside| (SECOND_VIP.parse().unwrap(), inside.target().parse().unwrap()));
        let steady = [
            (VIP, "192.168.200.3"),
            (VIP6, "fd00:200::3"),
            (crate::crowd::OTHER, "192.168.200.4"),
        ];
        let steady = steady.map(|(from, to)| (from.parse().unwrap(), to.parse().unwrap()));
        let alone = |(from, to): (IpAddr, IpAddr)| (from.into(), to.into());
        let mut all = self.mappings.values().copied().chain(steady.into_iter().chain(second).map(alone));
        all.any(|(from, to)| {
            let place = |net: IpNet, address: IpAddr| number(address).wrapping_sub(number(net.network()));
            from.contains(&dialled) && to.contains(&answers) && place(from, dialled) == place(to, answers)
        })
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

fn file(name: u8) -> String {
    format!("m{name}.yaml")
}

/// The first network, with some of [`SETTINGS`] from `firm` on, and before that perhaps without an address that machines leave under.
pub(crate) fn first_network(random: &mut Random, manifests: &Manifests, firm: usize) {
    let settings = random.one(&SETTINGS[firm..]);
    let text = network("segment-b", POOL, "192.168.200.0/24, \"fd00:200::/64\"", settings);
    let (outside, inside) = ("    interface: eth0\n", "    interface: eth1\n");
    let source = ["    sourceAddress: 192.168.100.9\n    sourceAddressIPv6: \"fd00:100::9\"\n", ""];
    let source = if firm > 0 { source[0] } else { random.one(&source) };
    let gateway = random.one(&["", "    gatewayAddresses: [192.168.200.250]\n"]);
    let text = text.replace(outside, &format!("{outside}{source}"));
    manifests.write("network.yaml", &text.replace(inside, &format!("{inside}{gateway}")));
}

fn prefixes(name: u8, from: IpNet, to: IpNet) -> String {
    format!(
        "apiVersion: stagenet.dev/v1alpha1\nkind: NatMapping\nmetadata: {{name: m{name}, namespace: default}}\nspec:\n  \
         networkRef: {{name: segment-b}}\n  virtual: {{prefix: \"{from}\"}}\n  target: {{prefix: \"{to}\"}}\n"
    )
}
