//! A netlink client: many requests in one send, dumps walked attribute by attribute.
//!
//! Requests are built with the types of the netlink-packet crates. Answers are walked attribute by attribute and what is not known is
//! passed over, so that a kernel newer than those crates cannot make a whole dump unreadable.
//!
//! The kernel answers a netlink request before `send` returns, and continues a dump while it is read. The socket is therefore
//! non-blocking: an answer that is not there will not come, and nothing here can hang. All calls block for as long as the kernel
//! works, so callers use them off the async threads.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable, NlasIterator,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};

/// Room for answers: a dump fills at most 32 KiB a datagram (`NLMSG_GOODSIZE` and `max_recvmsg_len` in `net/netlink/af_netlink.c`).
const RECEIVE: usize = 64 * 1024;
/// Requests a send. Each one's acknowledgement takes about 800 bytes of the receive queue, whose default is 208 KiB.
const BATCH: usize = 64;
/// How often a dump is repeated that was disturbed by a change.
const DUMP_TRIES: usize = 5;
/// linux/netfilter/nfnetlink.h
const NFNL_SUBSYS_NFTABLES: u16 = 10;
/// `sizeof(struct nlmsghdr)`
const HEADER: usize = 16;

/// One message of an answer: what follows the netlink header.
pub(super) struct Answer<'a> {
    pub(super) body: &'a [u8],
}

impl<'a> Answer<'a> {
    /// The attributes after a fixed header of `header` bytes.
    pub(super) fn attributes(&self, header: usize) -> impl Iterator<Item = (u16, &'a [u8])> + use<'a> {
        attributes(self.body.get(header..).unwrap_or_default())
    }
}

/// Attributes in `bytes`, flags taken off their types. Ends at the first malformed one.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(Result::ok).filter_map(|attribute| {
        let (kind, length) = (attribute.kind(), usize::from(attribute.length()));
        Some((kind, attribute.into_inner().get(4..length)?))
    })
}

/// Splits a datagram into messages.
pub(super) fn messages(datagram: &[u8]) -> impl Iterator<Item = (u16, u16, u32, &[u8])> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(rest, 0)?).ok()?;
        let body = rest.get(HEADER..length)?;
        let (kind, flags, sequence) = (u16_at(rest, 4)?, u16_at(rest, 6)?, u32_at(rest, 8)?);
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, flags, sequence, body))
    })
}

/// The 16-bit number in host order at `at`.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

/// The 32-bit number in host order at `at`.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

/// A string with or without an end mark.
pub(super) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// What an error message's first field says: 0 is success.
fn outcome(body: &[u8]) -> io::Result<()> {
    let code = body.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
    if code == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(code.saturating_neg()))
    }
}

/// What a datagram says of requests whose first has the number `first`: the place of each, counted from there, and its outcome.
pub(super) fn acknowledgements(datagram: &[u8], first: u32) -> impl Iterator<Item = (usize, io::Result<()>)> {
    messages(datagram)
        .filter(|(kind, ..)| *kind == NLMSG_ERROR)
        .map(move |(_, _, sequence, body)| {
            let place = usize::try_from(sequence.wrapping_sub(first)).unwrap_or(usize::MAX);
            (place, outcome(body))
        })
}

/// A connection to one of the kernel's netlink families.
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket of `protocol` (`NETLINK_ROUTE`, `NETLINK_NETFILTER`).
    pub(super) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_non_blocking(true)?;
        // Both only make things shorter: acknowledgements without the request, dumps filtered by the kernel.
        let _ = socket.set_cap_ack(true);
        let _ = socket.set_netlink_get_strict_chk(true);
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &(1 << 20));
        Ok(Self {
            socket,
            sequence: 0,
            buffer: Vec::with_capacity(RECEIVE),
        })
    }

    fn append<M: NetlinkSerializable>(&mut self, out: &mut Vec<u8>, flags: u16, request: M) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(request));
        message.header.flags = flags | NLM_F_REQUEST;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let start = out.len();
        out.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut out[start..start + message.buffer_len()]);
    }

    fn receive(&mut self) -> io::Result<()> {
        self.buffer.clear();
        self.socket
            .recv(&mut self.buffer, 0)
            .map(|_| ())
            .map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::UnexpectedEof, "the kernel gave no answer"),
                _ => error,
            })
    }

    /// Sends requests in order and returns what became of each.
    pub(super) fn batch<M: NetlinkSerializable>(&mut self, requests: Vec<(u16, M)>) -> io::Result<Vec<io::Result<()>>> {
        let mut outcomes: Vec<io::Result<()>> = Vec::with_capacity(requests.len());
        let mut requests = requests.into_iter().peekable();
        while requests.peek().is_some() {
            let first = self.sequence.wrapping_add(1);
            let mut out = Vec::new();
            let mut open = 0;
            for (flags, request) in requests.by_ref().take(BATCH) {
                self.append(&mut out, flags | NLM_F_ACK, request);
                open += 1;
            }
            let mut answers: Vec<Option<io::Result<()>>> = (0..open).map(|_| None).collect();
            self.socket.send(&out, 0)?;
            while answers.iter().any(Option::is_none) {
                self.receive()?;
                for (at, outcome) in acknowledgements(&self.buffer, first) {
                    if let Some(slot) = answers.get_mut(at) {
                        *slot = Some(outcome);
                    }
                }
            }
            outcomes.extend(answers.into_iter().flatten());
        }
        Ok(outcomes)
    }

    /// Makes one change of nftables, which takes none but within a transaction.
    pub(super) fn transact(&mut self, change: NetfilterMessage) -> io::Result<()> {
        let bracket = |inner| NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, NFNL_SUBSYS_NFTABLES), inner);
        let mut out = Vec::new();
        self.append(&mut out, 0, bracket(NetfilterMessageInner::None(ControlMessage::BatchBegin)));
        self.append(&mut out, NLM_F_ACK, change);
        let asked = self.sequence;
        self.append(&mut out, 0, bracket(NetfilterMessageInner::None(ControlMessage::BatchEnd)));
        self.socket.send(&out, 0)?;
        loop {
            self.receive()?;
            for (place, outcome) in acknowledgements(&self.buffer, asked) {
                // Of the brackets only a refusal is told.
                if place == 0 || outcome.is_err() {
                    return outcome;
                }
            }
        }
    }

    /// Sends a dump request and shows each message of the answer to `each`. Returns whether the dump was consistent.
    pub(super) fn walk<M: NetlinkSerializable>(&mut self, request: M, mut each: impl FnMut(&Answer<'_>)) -> io::Result<bool> {
        let mut out = Vec::new();
        self.append(&mut out, NLM_F_DUMP, request);
        self.socket.send(&out, 0)?;
        let mut consistent = true;
        loop {
            self.receive()?;
            for (kind, flags, sequence, body) in messages(&self.buffer) {
                if sequence != self.sequence {
                    continue;
                }
                consistent &= flags & NLM_F_DUMP_INTR == 0;
                match kind {
                    NLMSG_DONE => return outcome(body).map(|()| consistent),
                    NLMSG_ERROR => return outcome(body).map(|()| consistent),
                    NLMSG_NOOP | NLMSG_OVERRUN => {}
                    _ => each(&Answer { body }),
                }
            }
        }
    }

    /// Dumps what `pick` makes of each message, again if a change disturbed the dump.
    pub(super) fn dump<M: NetlinkSerializable + Clone, T>(
        &mut self,
        request: &M,
        mut pick: impl FnMut(&Answer<'_>) -> Option<T>,
    ) -> io::Result<Vec<T>> {
        for _ in 1..DUMP_TRIES {
            let mut found = Vec::new();
            match self.walk(request.clone(), |answer| found.extend(pick(answer))) {
                Ok(true) => return Ok(found),
                Ok(false) => {}
                Err(error) if error.raw_os_error() == Some(nix::libc::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
        let mut found = Vec::new();
        self.walk(request.clone(), |answer| found.extend(pick(answer)))?;
        Ok(found)
    }

    /// Asks one question that has one answer.
    pub(super) fn ask<M: NetlinkSerializable, T>(&mut self, request: M, pick: impl Fn(&Answer<'_>) -> Option<T>) -> io::Result<T> {
        let mut out = Vec::new();
        self.append(&mut out, 0, request);
        self.socket.send(&out, 0)?;
        self.receive()?;
        for (kind, _, _, body) in messages(&self.buffer).filter(|m| m.2 == self.sequence) {
            if kind == NLMSG_ERROR {
                outcome(body)?;
            } else if let Some(value) = pick(&Answer { body }) {
                return Ok(value);
            }
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the kernel's answer has not what was asked for",
        ))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn malformed_messages_and_attributes_end_the_walk() {
        assert_eq!(messages(&[]).count(), 0);
        assert_eq!(messages(&[255; 15]).count(), 0);
        let mut short = vec![0; 16];
        short[0] = 4;
        assert_eq!(messages(&short).count(), 0);
        let mut good = vec![0; 20];
        good[0] = 20;
        good[4] = 24;
        good.extend_from_slice(&[200, 0, 0, 0, 1]);
        let found: Vec<_> = messages(&good).map(|(kind, _, _, body)| (kind, body.len())).collect();
        assert_eq!(found, [(24, 4)]);
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0);
        assert_eq!(
            attributes(&[8, 0, 1, 128, 9, 0, 0, 0, 99, 0, 1, 0]).collect::<Vec<_>>(),
            [(1, &[9u8, 0, 0, 0][..])]
        );
    }

    #[test]
    fn outcomes_and_texts() {
        assert!(outcome(&0i32.to_ne_bytes()).is_ok());
        assert_eq!(outcome(&(-17i32).to_ne_bytes()).unwrap_err().raw_os_error(), Some(17));
        assert_eq!(text(b"eth0\0\0"), "eth0");
        assert_eq!(text(b"eth0"), "eth0");
    }
}
