//! Answers of the kernel that are cut, damaged or lie about their lengths: whatever comes is read without a panic, and nothing is taken for ours that does
//! not bear our protocol number. The answers in `tests/fixtures/netlink` are what a 6.x kernel gave for a node with objects of ours and of others.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use netlink_packet_core::{NLMSG_DONE, NLMSG_ERROR, NetlinkMessage};
use netlink_packet_netfilter::NetfilterMessage;
use proptest::prelude::*;
use proptest::sample::select;

use super::arp::Arp;
use super::events::{self, Transaction};
use super::nd::Nd;
use super::netlink::{Answer, acknowledgements, attributes, messages, text, u16_at, u32_at};
use super::{conntrack, counters, generation, observe, policy, routes, wire};
use crate::host::PROTOCOL;
use crate::netfilter::IfName;
use crate::plan::FlowPolicy;

const REAL: [&[u8]; 9] = [
    include_bytes!("../../../tests/fixtures/netlink/links.bin"),
    include_bytes!("../../../tests/fixtures/netlink/addresses.bin"),
    include_bytes!("../../../tests/fixtures/netlink/routes.bin"),
    include_bytes!("../../../tests/fixtures/netlink/rules.bin"),
    include_bytes!("../../../tests/fixtures/netlink/neighbours.bin"),
    include_bytes!("../../../tests/fixtures/netlink/tables.bin"),
    include_bytes!("../../../tests/fixtures/netlink/flows.bin"),
    include_bytes!("../../../tests/fixtures/netlink/tables-changed.bin"),
    include_bytes!("../../../tests/fixtures/netlink/routes-changed.bin"),
];

/// Attribute types: `IFA_PROTO`, `FRA_PROTOCOL`, `NDA_PROTOCOL`, `CTA_TUPLE_ORIG`.
const IFA_PROTO: u16 = 11;
const FRA_PROTOCOL: u16 = 21;
const NDA_PROTOCOL: u16 = 12;
const CTA_TUPLE_ORIG: u16 = 1;

fn names() -> BTreeMap<u32, IfName> {
    (1..20)
        .filter_map(|index| Some((index, IfName::new(&format!("if{index}"))?)))
        .collect()
}

/// What was read from a datagram.
#[derive(Debug, Default, PartialEq, Eq)]
struct Read {
    messages: usize,
    links: Vec<String>,
    addresses: usize,
    our_addresses: usize,
    routes: usize,
    rules: usize,
    proxies: usize,
    our_proxies: usize,
    delays: usize,
    flows: usize,
    chains: Vec<String>,
    routes_gone: usize,
    generations: usize,
}

/// Whether the answer says itself, in an attribute of its own, that it is ours.
fn marked(answer: &Answer<'_>, header: usize, attribute: u16) -> bool {
    answer
        .attributes(header)
        .any(|(kind, value)| kind == attribute && value == [PROTOCOL])
}

/// Shows every message to every parser that there is, whatever it says that it is, and looks at what they make of it.
fn read(datagram: &[u8]) -> Result<Read, TestCaseError> {
    let (names, mut read, mut length) = (names(), Read::default(), 0);
    let (mut transaction, mut confused) = (Transaction::default(), Transaction::default());
    for (kind, _, _, body) in messages(datagram) {
        read.messages += 1;
        length += 16 + body.len();
        prop_assert!(length <= datagram.len() && read.messages <= datagram.len() / 16);
        let answer = Answer { body };
        for header in [0, 4, 8, 12, 16] {
            let values: usize = answer.attributes(header).map(|(_, value)| value.len() + 4).sum();
            prop_assert!(values <= body.len().saturating_sub(header));
        }
        if kind == NLMSG_DONE || kind == NLMSG_ERROR {
            continue;
        }
        if let Some((name, link)) = observe::link(&answer) {
            prop_assert!(observe::mac(&link.mac).len() <= link.mac.len() * 3);
            read.links.push(name);
        }
        if let Some(address) = observe::one_address(&answer) {
            prop_assert!(!address.ours || marked(&answer, 8, IFA_PROTO));
            read.addresses += 1;
            read.our_addresses += usize::from(address.ours);
        }
        if let Some(route) = routes::parse(&answer, &names) {
            prop_assert_eq!(body[5], PROTOCOL, "{:?}", route);
            read.routes += 1;
        }
        if let Some(rule) = policy::parse(&answer) {
            prop_assert!(marked(&answer, 12, FRA_PROTOCOL), "{rule:?}");
            read.rules += 1;
        }
        if let Some((_, ours)) = observe::proxy(&answer) {
            prop_assert!(!ours || marked(&answer, 12, NDA_PROTOCOL));
            read.proxies += 1;
            read.our_proxies += usize::from(ours);
        }
        if let Some(count) = counters::rule(&answer) {
            prop_assert!(count.hash.0.len() == 12, "{count:?}");
        }
        read.delays += usize::from(observe::proxy_delay(&answer).is_some());
        if let Some(flow) = conntrack::flow(&answer) {
            let _ = FlowPolicy::default().agrees(&flow, &crate::plan::Sweep::default());
            deletes_one(&answer)?;
            read.flows += 1;
        }
        read.routes_gone += usize::from(events::route_gone(&answer).is_some());
        read.generations += usize::from(generation::id(&answer).is_some());
        for any_kind in 0..=16 {
            confused.take(any_kind, &answer);
        }
        let [low, _] = kind.to_le_bytes();
        transaction.take(low, &answer);
    }
    let built_in = ["PREROUTING", "INPUT", "FORWARD", "POSTROUTING", "*"];
    for name in transaction.chains.union(&confused.chains) {
        let (_, chain) = name.split_once('/').unwrap();
        prop_assert!(chain.starts_with("SNET-") || built_in.contains(&chain), "{name}");
    }
    read.chains = transaction.chains.into_iter().collect();
    for (_, outcome) in acknowledgements(datagram, 1) {
        let _ = outcome.map_err(|error| error.to_string());
    }
    Ok(read)
}

/// A deletion without the tuple of its entry would empty the whole connection table (`ctnetlink_del_conntrack` in `net/netfilter/nf_conntrack_netlink.c`).
fn deletes_one(answer: &Answer<'_>) -> Result<(), TestCaseError> {
    let request: NetfilterMessage = conntrack::deletion(answer);
    let mut message = NetlinkMessage::from(request);
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let tuples = attributes(&bytes[20..]).filter(|(kind, value)| *kind == CTA_TUPLE_ORIG && !value.is_empty());
    prop_assert!(tuples.count() >= 1);
    Ok(())
}

fn found(number: usize) -> Read {
    read(REAL[number]).unwrap()
}

#[test]
fn real_answers_are_understood() {
    let links = found(0);
    assert!(
        ["lo", "eth0", "eth1", "br0"]
            .iter()
            .all(|name| links.links.iter().any(|l| l == name)),
        "{links:?}"
    );
    assert_eq!(found(1).our_addresses, 2);
    assert!(found(1).addresses > 6);
    assert_eq!(found(2).routes, 6);
    assert_eq!(found(3).rules, 6);
    assert_eq!((found(4).proxies, found(4).our_proxies), (3, 2));
    assert!(found(5).delays >= 5);
    assert!(found(6).flows >= 3, "{:?}", found(6));
    assert_eq!(found(7).chains, ["mangle/FORWARD", "mangle/SNET-FWD"]);
    assert!(found(7).generations > 0);
    assert!(found(8).routes_gone > 0);
}

/// Numbers that a length field should not have, and some that it may.
const LENGTHS: [u32; 14] = [0, 1, 3, 4, 5, 8, 15, 16, 17, 0x7fff, 0x8000, 0xffff, 0x7fff_ffff, 0xffff_ffff];

#[derive(Clone, Debug)]
enum Damage {
    Cut(usize),
    Byte(usize, u8),
    /// A 16-bit field on a 4-byte boundary: the length of an attribute.
    Short(usize, u32),
    /// A 32-bit field: the length of a message.
    Long(usize, u32),
    Delete(usize, usize),
    Repeat(usize, usize),
    Splice(usize, Vec<u8>),
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<usize>;
    prop_oneof![
        1 => at().prop_map(Damage::Cut),
        3 => (at(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        4 => (at(), select(&LENGTHS[..])).prop_map(|(at, length)| Damage::Short(at, length)),
        2 => (at(), select(&LENGTHS[..])).prop_map(|(at, length)| Damage::Long(at, length)),
        1 => (at(), 1_usize..40).prop_map(|(at, length)| Damage::Delete(at, length)),
        1 => (at(), 1_usize..40).prop_map(|(at, length)| Damage::Repeat(at, length)),
        1 => (at(), prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(at, bytes)| Damage::Splice(at, bytes)),
    ]
}

fn damaged(real: &[u8], all: &[Damage]) -> Vec<u8> {
    let mut bytes = real.to_vec();
    for one in all {
        let len = bytes.len();
        let within = |at: &usize| at % (len + 1);
        let aligned = |at: &usize| within(at) & !3;
        let mut put = |at: usize, value: &[u8]| {
            for (slot, byte) in bytes.iter_mut().skip(at).zip(value) {
                *slot = *byte;
            }
        };
        match one {
            Damage::Byte(at, byte) => put(within(at), &[*byte]),
            Damage::Short(at, length) => put(aligned(at), &length.to_ne_bytes()[..2]),
            Damage::Long(at, length) => put(aligned(at), &length.to_ne_bytes()),
            Damage::Cut(at) => bytes.truncate(within(at)),
            Damage::Delete(at, length) => drop(bytes.drain(within(at)..(within(at) + length).min(len))),
            Damage::Repeat(at, length) => {
                let again = bytes[within(at)..(within(at) + length).min(len)].to_vec();
                drop(bytes.splice(within(at)..within(at), again));
            }
            Damage::Splice(at, more) => drop(bytes.splice(within(at)..within(at), more.iter().copied())),
        }
    }
    bytes
}

/// One message of a real answer, so that the damage meets it.
fn one_message() -> impl Strategy<Value = Vec<u8>> {
    (select(&REAL[..]), any::<prop::sample::Index>()).prop_map(|(real, at)| {
        let mut starts = vec![0];
        while let Some(length) = u32_at(real, *starts.last().unwrap()).filter(|length| *length >= 16) {
            starts.push(starts.last().unwrap() + usize::try_from(length).unwrap().next_multiple_of(4));
        }
        let at = at.index(starts.len() - 1);
        real[starts[at]..starts[at + 1]].to_vec()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_answer_is_read_for_what_it_is(message in one_message(), damage in prop::collection::vec(damage(), 1..6)) {
        read(&damaged(&message, &damage))?;
    }

    #[test]
    fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..200), length in select(&LENGTHS[..])) {
        read(&bytes)?;
        let total: usize = attributes(&bytes).map(|(_, value)| value.len() + 4).sum();
        prop_assert!(total <= bytes.len());
        let _ = (text(&bytes), u16_at(&bytes, bytes.len().saturating_sub(1)));
        let _ = (wire::heard::<Arp>(&bytes), wire::heard::<Nd>(&bytes));
        // The same under a header that promises more, or less, than there is.
        let mut message = length.to_ne_bytes().to_vec();
        message.extend([0; 12]);
        message.extend(&bytes);
        read(&message)?;
        let honest = u32::try_from(message.len()).unwrap().to_ne_bytes();
        message[..4].copy_from_slice(&honest);
        read(&message)?;
    }

    /// An acknowledgement of something else is nobody's, and a repeated one changes no count.
    #[test]
    fn acknowledgements_have_the_places_of_their_requests(first in any::<u32>(), sequences in prop::collection::vec((any::<u32>(), any::<i32>()), 0..8)) {
        let mut datagram = Vec::new();
        for (sequence, code) in &sequences {
            datagram.extend(20_u32.to_ne_bytes());
            datagram.extend([NLMSG_ERROR, 0].iter().flat_map(|n| n.to_ne_bytes()));
            datagram.extend(sequence.to_ne_bytes());
            datagram.extend([0; 4]);
            datagram.extend(code.to_ne_bytes());
        }
        let found: Vec<_> = acknowledgements(&datagram, first).collect();
        prop_assert_eq!(found.len(), sequences.len());
        for ((place, outcome), (sequence, code)) in found.iter().zip(&sequences) {
            prop_assert_eq!(*place, usize::try_from(sequence.wrapping_sub(first)).unwrap());
            prop_assert_eq!(outcome.is_ok(), *code == 0);
        }
    }
}
