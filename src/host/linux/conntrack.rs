//! The connection table over ctnetlink: one walk, one batch of deletions.

use std::fs;
use std::io;
use std::net::IpAddr;

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::conntrack::{ConntrackAttribute, ConntrackMessage};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use nix::libc;

use super::netlink::{Answer, Netlink, attributes};
use super::observe::address;
use crate::host::Connections;
use crate::plan::{Dialled, FlowPolicy, FlowTuple, Sweep};

// linux/netfilter/nfnetlink_conntrack.h
const NFGENMSG: usize = 4;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_MARK: u16 = 8;
const CTA_ID: u16 = 12;
const CTA_TUPLE_MASTER: u16 = 14;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_TUPLE_ZONE: u16 = 3;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

fn message(family: NetfilterProtoFamily, inner: ConntrackMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), inner)
}

#[derive(Default)]
struct Tuple {
    source: Option<IpAddr>,
    destination: Option<IpAddr>,
    protocol: u8,
    source_port: u16,
    destination_port: u16,
    /// The zone of this direction, if the other's is another.
    zone: Option<u16>,
}

fn tuple(bytes: &[u8]) -> Tuple {
    let port = |value: &[u8]| <[u8; 2]>::try_from(value).map_or(0, u16::from_be_bytes);
    let mut tuple = Tuple::default();
    for (group, nested) in attributes(bytes) {
        if group == CTA_TUPLE_ZONE {
            tuple.zone = Some(port(nested));
            continue;
        }
        for (kind, value) in attributes(nested) {
            match (group, kind) {
                (CTA_TUPLE_IP, CTA_IP_V4_SRC | CTA_IP_V6_SRC) => tuple.source = address(value),
                (CTA_TUPLE_IP, CTA_IP_V4_DST | CTA_IP_V6_DST) => tuple.destination = address(value),
                (CTA_TUPLE_PROTO, CTA_PROTO_NUM) => tuple.protocol = value.first().copied().unwrap_or_default(),
                (CTA_TUPLE_PROTO, CTA_PROTO_SRC_PORT) => tuple.source_port = port(value),
                (CTA_TUPLE_PROTO, CTA_PROTO_DST_PORT) => tuple.destination_port = port(value),
                _ => {}
            }
        }
    }
    tuple
}

/// The flow of one entry.
pub(super) fn flow(answer: &Answer<'_>) -> Option<FlowTuple> {
    let (mut original, mut reply, mut mark, mut zone) = (Tuple::default(), Tuple::default(), 0, 0);
    let mut master = None;
    for (kind, value) in answer.attributes(NFGENMSG) {
        match kind {
            CTA_TUPLE_ORIG => original = tuple(value),
            CTA_TUPLE_REPLY => reply = tuple(value),
            // Its first direction (ctnetlink_dump_master in net/netfilter/nf_conntrack_netlink.c).
            CTA_TUPLE_MASTER => {
                let opened = tuple(value);
                master = opened.source.zip(opened.destination).map(|(source, destination)| Dialled {
                    protocol: opened.protocol,
                    source,
                    destination,
                    destination_port: opened.destination_port,
                });
            }
            CTA_ZONE => zone = <[u8; 2]>::try_from(value).map_or(0, u16::from_be_bytes),
            CTA_MARK => mark = <[u8; 4]>::try_from(value).map_or(0, u32::from_be_bytes),
            _ => {}
        }
    }
    Some(FlowTuple {
        zone: original.zone.unwrap_or(zone),
        protocol: original.protocol,
        source: original.source?,
        destination: original.destination?,
        destination_port: original.destination_port,
        reply_source: reply.source?,
        reply_source_port: reply.source_port,
        reply_destination: reply.destination?,
        mark,
        master,
    })
}

/// The request that deletes this very entry: tuple and zone find it, and the id keeps a successor with the same tuple alive.
pub(super) fn deletion(answer: &Answer<'_>) -> NetfilterMessage {
    let family = answer.body.first().copied().unwrap_or_default().into();
    let keys = answer
        .attributes(NFGENMSG)
        .filter(|(kind, _)| [CTA_TUPLE_ORIG, CTA_ID, CTA_ZONE].contains(kind));
    let keys = keys.map(|(kind, value)| ConntrackAttribute::Other(DefaultNla::new(kind, value.to_vec())));
    message(family, ConntrackMessage::Delete(keys.collect()))
}

fn number(name: &str) -> Option<u64> {
    fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_{name}"))
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// See [`crate::host::Host::connections`].
pub(super) fn connections() -> Option<Connections> {
    let (entries, limit) = (number("count")?, number("max")?);
    Some(Connections { entries, limit })
}

/// Whether this network namespace has no entry at all. The table is one for all namespaces, and a walk takes the lock of each of its buckets, of which there are
/// 262 144 on a machine of a few gigabytes: ten milliseconds, whatever is in them (`ctnetlink_dump_table` in `net/netfilter/nf_conntrack_netlink.c`). Where it cannot be told, there may be some.
fn is_empty() -> bool {
    number("count") == Some(0)
}

/// Deletes the entries of both families that `policy` does not agree with, in one walk. Returns how many went.
pub(super) fn sweep(netlink: &mut Netlink, policy: &FlowPolicy, sweep: &Sweep) -> io::Result<u64> {
    if is_empty() {
        return Ok(0);
    }
    let mut doomed = Vec::new();
    // A walk that a change disturbed may have missed entries that were moved; such a table is walked again by the next sweep.
    netlink.walk(message(NetfilterProtoFamily::Unspec, ConntrackMessage::Get(Vec::new())), |answer| {
        if flow(answer).is_some_and(|flow| !policy.agrees(&flow, sweep)) {
            doomed.push((0, deletion(answer)));
        }
    })?;
    let mut gone = 0;
    for outcome in netlink.batch(doomed)? {
        match outcome {
            Ok(()) => gone += 1,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(gone)
}
