//! Somebody who tries every way through the fence, all the while, and a witness who sees whatever came through.
//!
//! A [`Prober`] sends hand-made frames to the gateway's hardware address: true and borrowed sources; hosts, routers, empty addresses and
//! the rest of the world as destinations; every protocol that a packet filter might treat in its own way. Its packets bear a mark in a field
//! that no translation changes. A [`Witness`] captures on the other segment, with a filter that runs in the kernel, so that busy rightful traffic hides
//! nothing. Whoever places them first proves on the gateway as it is without a fence, forwarding, that the witnesses see.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pnet_datalink::{Channel, Config, NetworkInterface, channel};

use super::net::{command, plug};
use super::{Frames6, Ns, seconds, wait_until};

/// Between two rounds. A round of some hundred packets takes a few milliseconds.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a gateway that forwards no more has said nothing when it has nothing more to say: many times its patience with neighbours.
const SILENCE: Duration = Duration::from_millis(1500);

/// One who sends the same frames over and over.
#[derive(Debug)]
pub struct Prober {
    rounds: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Prober {
    /// Joins `switch` as a host called `name` and sends `packets` to `gateway` until it is dropped.
    pub fn start(name: &str, switch: &Ns, gateway: &str, packets: &[Vec<u8>]) -> Self {
        let ns = Ns::new(name);
        ns.set("ipv6/conf/default/disable_ipv6", "1");
        plug(switch, &format!("q-{name}"), &ns, "eth0");
        Self::on(&ns, gateway, packets)
    }

    /// Sends `packets` from eth0 of `ns` to `gateway` until it is dropped.
    pub fn on(ns: &Ns, gateway: &str, packets: &[Vec<u8>]) -> Self {
        let index = ns.sh("ip -o link show eth0").split(':').next().unwrap().parse().unwrap();
        let interface = NetworkInterface {
            name: String::new(),
            description: String::new(),
            index,
            mac: None,
            ips: Vec::new(),
            flags: 0,
        };
        let mut header: Vec<_> = gateway.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        header.extend([2, 0, 0, 0, 9, 9]);
        let kind = |packet: &[u8]| if packet[0] >> 4 == 6 { [0x86, 0xdd] } else { [8, 0] };
        let frames: Vec<_> = packets.iter().map(|p| [&header[..], &kind(p), p].concat()).collect();
        let (rounds, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (counter, end) = (rounds.clone(), stop.clone());
        let wire = ns.enter(|| channel(&interface, Config::default()).unwrap());
        let Channel::Ethernet(mut sender, _) = wire else {
            panic!("the library gave another kind of channel")
        };
        let thread = std::thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                for frame in &frames {
                    // A full queue is no reason to stop.
                    let _ = sender.send_to(frame, None);
                }
                counter.fetch_add(1, Ordering::Relaxed);
                std::thread::sleep(PAUSE);
            }
        });
        Self {
            rounds,
            stop,
            thread: Some(thread),
        }
    }

    /// How often every frame was sent.
    pub fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    /// Waits until every frame was sent once more, from first to last.
    pub fn full_round(&self) {
        let now = self.rounds();
        wait_until(seconds(20), "the prober to send", || self.rounds() >= now + 2);
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A capture in the background.
#[derive(Debug)]
pub struct Witness {
    child: Child,
    seen: PathBuf,
    said: PathBuf,
    /// Length of what was seen before it counted.
    from: u64,
}

impl Witness {
    /// Watches what comes from the hardware address `mac` on the switch and matches `filter` (pcap-filter(7)).
    pub fn start(switch: &Ns, mac: &str, filter: &str) -> Self {
        // The switch's own interface: a cable may be pulled.
        Self::on(switch, "br0", &format!("ether src {mac} and ({filter})"))
    }

    /// Watches what passes `interface` of `ns` and matches `filter`.
    pub fn on(ns: &Ns, interface: &str, filter: &str) -> Self {
        let file = |kind| PathBuf::from(format!("/run/lab/witness-{}-{interface}-{kind}", ns.name()));
        let (seen, said) = (file("seen"), file("said"));
        // Each packet at once, not when a block of them is full or a second old. Short ones, or few fit into the buffer.
        let args = [
            "--immediate-mode",
            "-s",
            "256",
            "-l",
            "-n",
            "-e",
            "-B",
            "16384",
            "-i",
            interface,
            filter,
        ];
        let child = ns.enter(|| {
            let (out, err) = (File::create(&seen).unwrap(), File::create(&said).unwrap());
            command("tcpdump").args(args).stdout(out).stderr(Stdio::from(err)).spawn().unwrap()
        });
        let witness = Self {
            child,
            seen,
            said,
            from: 0,
        };
        wait_until(seconds(20), "tcpdump to listen", || witness.said().contains("listening on"));
        witness
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.said).unwrap()
    }

    /// Forgets what was seen up to now.
    pub fn forget(&mut self) {
        self.from = self.length();
    }

    /// Length of what was seen in all.
    fn length(&self) -> u64 {
        fs::metadata(&self.seen).unwrap().len()
    }

    /// What was seen, a line a packet.
    pub fn seen(&self) -> Vec<String> {
        let bytes = fs::read(&self.seen).unwrap();
        let counted = bytes.get(usize::try_from(self.from).unwrap()..).unwrap_or_default();
        let text = String::from_utf8_lossy(counted);
        text.lines().filter(|l| !l.is_empty()).map(str::to_owned).collect()
    }

    /// Fails if anything was seen. `what` says where and when.
    pub fn saw_nothing(&self, what: &str) {
        let seen = self.seen();
        assert!(
            seen.is_empty(),
            "{what}: {} packets, such as {:#?}",
            seen.len(),
            &seen[..seen.len().min(8)]
        );
    }

    /// Ends the capture; fails if the kernel could not hand over every packet.
    pub fn end(&mut self) {
        let interrupt = format!("kill -s INT {}", self.child.id());
        assert!(command("sh").args(["-c", &interrupt]).status().unwrap().success());
        self.child.wait().unwrap();
        let said = self.said();
        assert!(said.contains("\n0 packets dropped by kernel"), "the capture is not whole: {said}");
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until a gateway that forwards nothing of this any more has said the last of what it had to say about what it forwarded: whom it still asks for in vain
/// it gives up, and tells every source so.
pub fn fall_silent(gateway: &Ns, witnesses: &[&Witness]) {
    let (start, mut last) = (Instant::now(), (Instant::now(), u64::MAX));
    while last.0.elapsed() < SILENCE {
        // It may give up where new ones come all the while.
        gateway.try_sh("ip neigh flush all");
        let length = witnesses.iter().map(|witness| witness.length()).sum();
        if length != last.1 {
            last = (Instant::now(), length);
        }
        assert!(
            start.elapsed() < seconds(60),
            "the gateway does not fall silent; the last that was seen: {:#?}",
            witnesses
                .iter()
                .map(|w| w.seen().split_off(w.seen().len().saturating_sub(5)))
                .collect::<Vec<_>>()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// When tcpdump saw what it prints in a line that begins as in `12:34:56.789012 `.
pub(super) fn time_of_day(line: &str) -> Option<Duration> {
    let mut fields = line.split(' ').next()?.split(':');
    let [hours, minutes] = [fields.next()?.parse::<u64>().ok()?, fields.next()?.parse().ok()?];
    let seconds = Duration::try_from_secs_f64(fields.next()?.parse().ok()?).ok()?;
    Some(seconds + Duration::from_secs(hours * 3600 + minutes * 60))
}

/// Packets of either family with one of `marks` as type of service or traffic class, and ICMP errors about such.
pub fn marked(marks: &[u8]) -> String {
    let one = |mark: &u8| {
        let class = u16::from(*mark) << 4;
        format!("ip[1] = {mark} or (icmp and ip[29] = {mark}) or (ip6[0:2] & 0x0ff0 = {class}) or (icmp6 and ip6[48:2] & 0x0ff0 = {class})")
    };
    format!("({})", marks.iter().map(one).collect::<Vec<_>>().join(" or "))
}

/// What bears `mark` as [`marked`] asks for it, of IPv6.
pub fn frames6(mark: u8) -> Frames6 {
    Frames6(u32::from(mark) << 20)
}
