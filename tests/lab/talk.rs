//! Clients and servers, as plain sockets in the hosts' namespaces.
//!
//! Every server says who it is and whom it sees, so a test reads from an answer both where a packet went and as whom.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::sys::socket::{self, AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, sockopt};
use nix::sys::time::TimeVal;

use super::Ns;

/// How long a client waits for an answer that should come.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a client waits to be sure that no answer comes: the labs' packets take far less than a millisecond.
const SILENCE: Duration = Duration::from_millis(600);

/// A running server. Its threads end with the world.
#[derive(Debug)]
pub struct Server;

/// An open TCP connection to a [`Server`].
#[derive(Debug)]
pub struct Conversation {
    stream: BufReader<TcpStream>,
    /// Which server answered.
    pub server: String,
    /// The address that the server sees the client as.
    pub seen_as: SocketAddr,
}

impl Ns {
    /// Serves TCP and UDP on `port` of every address of both families, under the host's own name.
    pub fn serve(&self, port: u16) -> Server {
        self.serve_as(self.name(), "::", port)
    }

    /// Serves TCP and UDP on `port` of `address`. Greets with "NAME PEER"; repeats every line.
    pub fn serve_as(&self, name: &str, address: &str, port: u16) -> Server {
        let at = (address.parse::<IpAddr>().unwrap(), port);
        let (tcp, udp) = self.enter(|| (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap()));
        let (name, told) = (name.to_owned(), name.to_owned());
        std::thread::spawn(move || {
            for stream in tcp.incoming().map_while(Result::ok) {
                let name = told.clone();
                std::thread::spawn(move || repeat_lines(&name, stream));
            }
        });
        std::thread::spawn(move || {
            let mut buffer = [0; 1500];
            while let Ok((n, peer)) = udp.recv_from(&mut buffer) {
                let text = format!("{name} {} {}", canonical(peer), String::from_utf8_lossy(&buffer[..n]));
                let _ = udp.send_to(text.as_bytes(), peer);
            }
        });
        Server
    }

    /// Connects; None if nobody answers or the connection is refused.
    pub fn tcp(&self, to: &str) -> Option<Conversation> {
        self.connect(to, PATIENCE)
    }

    /// Whether a connection attempt is met with silence (dropped), as opposed to an answer or a refusal.
    pub fn tcp_is_dropped(&self, to: &str) -> bool {
        let to: SocketAddr = to.parse().unwrap();
        match self.enter(|| TcpStream::connect_timeout(&to, SILENCE)) {
            Ok(_) => false,
            Err(e) => matches!(e.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock),
        }
    }

    /// Whether a connection attempt gets nowhere, be it met with silence or with a refusal.
    pub fn tcp_fails(&self, to: &str) -> bool {
        let to: SocketAddr = to.parse().unwrap();
        self.enter(|| TcpStream::connect_timeout(&to, SILENCE)).is_err()
    }

    /// Connects from a chosen local address and port, of which there may be several connections.
    pub fn tcp_from(&self, from: &str, to: &str) -> Option<Conversation> {
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = self.enter(|| socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap());
        socket::setsockopt(&socket, sockopt::ReuseAddr, &true).unwrap();
        // Of connecting as well (socket(7)).
        let patience = TimeVal::new(PATIENCE.as_secs().try_into().unwrap(), 0);
        socket::setsockopt(&socket, sockopt::SendTimeout, &patience).unwrap();
        socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(from)).unwrap();
        socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(to)).ok()?;
        greeted(TcpStream::from(socket))
    }

    fn connect(&self, to: &str, wait: Duration) -> Option<Conversation> {
        let to: SocketAddr = to.parse().unwrap();
        greeted(self.enter(|| TcpStream::connect_timeout(&to, wait)).ok()?)
    }

    /// Sends a datagram and returns (server, address seen); None if nobody answers.
    pub fn udp(&self, to: &str) -> Option<(String, SocketAddr)> {
        self.udp_from(if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" }, to)
    }

    /// The same from a chosen local address and port.
    pub fn udp_from(&self, from: &str, to: &str) -> Option<(String, SocketAddr)> {
        let socket = self.enter(|| UdpSocket::bind(from)).unwrap();
        socket.set_read_timeout(Some(SILENCE)).unwrap();
        // Asked twice: a first datagram may be lost while ARP is under way.
        for _ in 0..2 {
            if self.enter(|| socket.send_to(b"?", to)).is_err() {
                continue;
            }
            let mut buffer = [0; 1500];
            if let Ok((n, peer)) = socket.recv_from(&mut buffer) {
                assert_eq!(peer, to.parse().unwrap(), "the answer has to come from whom was asked");
                let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
                let mut words = text.split(' ');
                return Some((words.next()?.to_owned(), words.next()?.parse().ok()?));
            }
        }
        None
    }

    /// What a web server on the host itself answers, headers included.
    pub fn http(&self, port: u16, page: &str) -> String {
        let mut answer = String::new();
        let stream = self.enter(|| TcpStream::connect((Ipv4Addr::LOCALHOST, port)));
        let read = stream.and_then(|mut stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            write!(stream, "GET /{page} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
            stream.read_to_string(&mut answer)
        });
        read.map_or_else(|e| e.to_string(), |_| answer)
    }

    /// Sends the packet that opens an SCTP association. Made by hand: not every kernel has SCTP sockets, but every gateway passes SCTP on.
    pub fn sctp_init(&self, from: u16, to: SocketAddrV4) {
        let mut sctp = [&from.to_be_bytes()[..], &to.port().to_be_bytes(), &[0; 8]].concat();
        // INIT (RFC 9260, 3.3.2): tag, window, one stream each way, first sequence number.
        sctp.extend([1, 0, 0, 20, 0, 0, 0, 7, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 7]);
        let sum = crc32c(&sctp).to_le_bytes();
        sctp[8..12].copy_from_slice(&sum);
        // The kernel fills in lengths, checksum and source.
        let ip = [&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, 132, 0, 0, 0, 0, 0, 0], &to.ip().octets()[..]].concat();
        self.enter(|| {
            let raw = socket::socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Raw).unwrap();
            // Of UDP it has no more than the way to send: the protocol is in the header.
            let sent = UdpSocket::from(raw).send_to(&[ip, sctp].concat(), to);
            assert_eq!(sent.unwrap(), 52);
        });
    }

    /// Whether one of several ICMP echoes is answered. One may be late on a busy machine; and a kernel answers all its namespaces' echoes by one socket a
    /// processor, so while another lab's answers wait for neighbours that do not exist, none are made.
    pub fn echoes(&self, to: &str) -> bool {
        (0..20).any(|_| self.ping(to))
    }

    /// Whether an ICMP echo is answered within a second: to show that none is.
    pub fn ping(&self, to: &str) -> bool {
        self.exec("ping", &["-n", "-c", "1", "-W", "1", to]).code == 0
    }
}

/// Waits for a server's greeting.
fn greeted(stream: TcpStream) -> Option<Conversation> {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut stream = BufReader::new(stream);
    let mut greeting = String::new();
    stream.read_line(&mut greeting).ok()?;
    let (server, peer) = greeting.trim().split_once(' ')?;
    Some(Conversation {
        server: server.to_owned(),
        seen_as: peer.parse().unwrap(),
        stream,
    })
}

/// An IPv4 peer of a socket for both families, as itself.
fn canonical(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

/// The checksum of SCTP (RFC 9260, appendix A).
fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |crc: u32| if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ 0x82F6_3B78 };
    let byte = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), |crc, _| bit(crc));
    !bytes.iter().fold(!0, byte)
}

impl Conversation {
    /// Says a line and waits for its repetition: whether the connection still works.
    pub fn works(&mut self) -> bool {
        self.says("still here", PATIENCE)
    }

    /// Whether the connection goes silent: rules change before the connection table is swept, which takes a busy machine a while.
    pub fn is_cut(&mut self) -> bool {
        let start = Instant::now();
        while self.says("anybody", SILENCE) {
            if start.elapsed() > 3 * PATIENCE {
                return false;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        true
    }

    fn says(&mut self, line: &str, wait: Duration) -> bool {
        self.stream.get_ref().set_read_timeout(Some(wait)).unwrap();
        if writeln!(self.stream.get_mut(), "{line}").is_err() {
            return false;
        }
        let mut answer = String::new();
        self.stream.read_line(&mut answer).is_ok() && answer.trim_end() == line
    }
}

fn repeat_lines(name: &str, stream: TcpStream) {
    let Ok(peer) = stream.peer_addr().map(canonical) else { return };
    let mut reader = BufReader::new(stream);
    if writeln!(reader.get_mut(), "{name} {peer}").is_err() {
        return;
    }
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|n| n > 0) {
        if reader.get_mut().write_all(line.as_bytes()).is_err() {
            return;
        }
        line.clear();
    }
}
