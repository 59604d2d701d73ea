//! Ethernet frames by hand: who has an address is asked before it is taken, and that it is here is said after.
//!
//! What [`super::arp`] and [`super::nd`] have in common: one packet socket an interface, bound to one protocol, so that as little other
//! traffic as possible is copied to us; the pace; and waits that are all bounded.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::IntoRawFd as _;
use std::thread::sleep;
use std::time::{Duration, Instant};

use pnet_datalink::{Channel, ChannelType, Config, DataLinkReceiver, DataLinkSender, MacAddr, NetworkInterface, channel};
use pnet_packet::ethernet::EtherType;
use socket2::{Domain, SockFilter, Socket, Type};

/// Probes an address. RFC 5227 has 3 (`PROBE_NUM`), spread over seconds for hosts that boot; a claim must not take that long.
const PROBES: usize = 3;
/// Between two probes of an address, at least.
const PROBE_GAP: Duration = Duration::from_millis(20);
/// How long answers to the last probe are awaited: far more than a segment's round trip.
const PROBE_WAIT: Duration = Duration::from_millis(80);
/// Frames sent in one go; with [`PACE`] between them, 5000 a second, which is 3.5 Mbit/s.
const CHUNK: usize = 25;
pub(super) const PACE: Duration = Duration::from_millis(5);
/// Granularity of waiting.
const TICK: Duration = Duration::from_millis(2);
/// Bytes of an Ethernet header: destination, source, type.
pub(super) const HEADER: usize = 14;

/// An Ethernet interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) index: u32,
    pub(super) mac: MacAddr,
}

/// A protocol that tells who has an address.
pub(super) trait Protocol {
    /// An address that it is about.
    type Address: Copy + Ord;
    /// Its Ethernet type.
    const TYPE: EtherType;

    /// What of that type the kernel is to pass on. Empty: everything.
    fn filter() -> Vec<SockFilter>;

    /// Asks who has `address`, so that nobody learns anything from the question. Destination and payload.
    fn question(mac: MacAddr, address: Self::Address) -> (MacAddr, Vec<u8>);

    /// Says that `address` is at `mac`, in all forms that hosts learn from.
    fn announcement(mac: MacAddr, address: Self::Address) -> Vec<(MacAddr, Vec<u8>)>;

    /// The address that the sender of a frame says is his, and where. `source` is the frame's.
    fn claimed(source: MacAddr, payload: &[u8]) -> Option<(Self::Address, MacAddr)>;
}

/// An open socket.
pub(super) struct Wire {
    sender: Box<dyn DataLinkSender>,
    receiver: Box<dyn DataLinkReceiver>,
    mac: MacAddr,
}

impl Wire {
    pub(super) fn open<P: Protocol>(port: Port) -> io::Result<Self> {
        let interface = NetworkInterface {
            name: String::new(),
            description: String::new(),
            index: port.index,
            mac: Some(port.mac),
            ips: Vec::new(),
            flags: 0,
        };
        // Without a protocol nothing is received before the library binds it to one, so that nothing passes ahead of the filter.
        let socket = Socket::new_raw(Domain::PACKET, Type::RAW, None)?;
        let filter = P::filter();
        if !filter.is_empty() {
            socket.attach_filter(&filter)?;
        }
        let config = Config {
            channel_type: ChannelType::Layer3(P::TYPE.0),
            read_timeout: Some(TICK),
            write_timeout: Some(PROBE_GAP),
            promiscuous: false,
            socket_fd: Some(socket.into_raw_fd()),
            ..Config::default()
        };
        match channel(&interface, config)? {
            Channel::Ethernet(sender, receiver) => Ok(Self {
                sender,
                receiver,
                mac: port.mac,
            }),
            _ => Err(io::Error::other("the library gave another kind of channel")),
        }
    }

    fn send<P: Protocol>(&mut self, (to, payload): (MacAddr, Vec<u8>)) -> io::Result<()> {
        let mut frame = [to.octets(), self.mac.octets()].concat();
        frame.extend(P::TYPE.0.to_be_bytes());
        frame.extend(payload);
        self.sender
            .send_to(&frame, None)
            .unwrap_or_else(|| Err(io::Error::other("the frame was not taken")))
    }

    /// Says that an address is here.
    pub(super) fn announce<P: Protocol>(&mut self, address: P::Address) -> io::Result<()> {
        let frames = P::announcement(self.mac, address);
        frames.into_iter().try_for_each(|frame| self.send::<P>(frame))
    }

    /// Listens until `end` and notes who says that one of `addresses` is his.
    fn listen<P: Protocol>(
        &mut self,
        end: Instant,
        addresses: &BTreeSet<P::Address>,
        own: &BTreeSet<MacAddr>,
        found: &mut BTreeMap<P::Address, MacAddr>,
    ) {
        while Instant::now() < end {
            let Ok(frame) = self.receiver.next() else {
                // A timeout. After another error (the interface went down) the socket may answer at once for ever.
                sleep(TICK.min(end.saturating_duration_since(Instant::now())));
                continue;
            };
            if let Some((address, mac)) = heard::<P>(frame)
                && addresses.contains(&address)
                && !own.contains(&mac)
            {
                found.entry(address).or_insert(mac);
            }
        }
    }
}

/// What the sender of a frame says is his.
pub(super) fn heard<P: Protocol>(frame: &[u8]) -> Option<(P::Address, MacAddr)> {
    let source = <[u8; 6]>::try_from(frame.get(6..12)?).ok()?;
    P::claimed(MacAddr::from(source), frame.get(HEADER..)?)
}

/// Asks on `port` who has `addresses`. Answers from `own` hardware addresses do not count.
pub(super) fn probe<P: Protocol>(
    port: Port,
    addresses: &BTreeSet<P::Address>,
    own: &BTreeSet<MacAddr>,
) -> io::Result<BTreeMap<P::Address, MacAddr>> {
    let mut wire = Wire::open::<P>(port)?;
    let mut found = BTreeMap::new();
    let all: Vec<_> = addresses.iter().copied().collect();
    for _ in 0..PROBES {
        let round = Instant::now() + PROBE_GAP;
        for chunk in all.chunks(CHUNK) {
            for address in chunk {
                wire.send::<P>(P::question(port.mac, *address))?;
            }
            wire.listen::<P>(Instant::now() + PACE, addresses, own, &mut found);
        }
        wire.listen::<P>(round, addresses, own, &mut found);
    }
    wire.listen::<P>(Instant::now() + PROBE_WAIT, addresses, own, &mut found);
    Ok(found)
}
