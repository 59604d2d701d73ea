//! Somebody who tries every way through the fence, all the while, and a witness who sees whatever came through.
//!
//! A [`Prober`] sends hand-made frames to the gateway's hardware address: true and borrowed sources; hosts, routers, empty addresses and
//! the rest of the world as destinations; every protocol that a packet filter might treat in its own way. Its packets bear a mark in a field
//! that no translation changes. A [`Witness`] captures on the other segment, with a filter that runs in the kernel, so that busy rightful traffic hides
//! nothing. [`Probers::start`] first proves on the gateway as it is without a fence, forwarding, that the witnesses see.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pnet_datalink::{Channel, Config, NetworkInterface, channel};

use super::frames::{hopeless, packets};
use super::net::{command, plug};
use super::{Ns, Seed, seconds, wait_until};

/// The marks of who probes from inside, from outside and from a second closed network: types of service. No translation changes them, and ICMP errors repeat them.
const FROM_INSIDE: u8 = 0xb4;
const FROM_OUTSIDE: u8 = 0x74;
const FROM_SECOND: u8 = 0x34;
/// Hardware addresses of the seed's gateway while it is probed, also of interfaces that are made anew.
pub const OUTSIDE_MAC: &str = "02:00:00:00:00:02";
pub const INSIDE_MAC: &str = "02:00:00:00:01:02";
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

/// The seed's closed network probed from inside, and from outside for what nobody mapped.
#[derive(Debug)]
pub struct Probers {
    probers: Vec<Prober>,
    witnesses: Vec<(&'static str, Witness)>,
}

/// Nobody may ever hear of these.
const HOST: &str = "192.168.100.1";
const ROUTER: &str = "192.168.100.254";
const NOBODY: &str = "192.168.100.77";
const BORROWED: &str = "192.168.100.88";
const STRANGER: &str = "198.51.100.7";
const UNUSED: &str = "192.168.100.200";
/// Words of tcpdump for what a prober sends.
const KINDS: [&str; 6] = ["UDP", "Flags [S]", "Flags [.]", "ICMP echo request", "unreachable", "GREv0"];

impl Probers {
    /// Places and proves them. To be called before anything of ours is there. `virtual_addresses` are probed from inside as well.
    pub fn start(seed: &Seed, virtual_addresses: &[&str]) -> Self {
        let mut probers = Self::place(seed, virtual_addresses);
        probers.prove(seed);
        probers
    }

    /// Gives the gateway known hardware addresses and a default route, and begins to probe.
    pub fn place(seed: &Seed, virtual_addresses: &[&str]) -> Self {
        let gateway = &seed.vm02;
        gateway.sh(&format!(
            "ip link set eth0 address {OUTSIDE_MAC} && ip link set eth1 address {INSIDE_MAC}"
        ));
        gateway.sh(&format!("ip route add default via {ROUTER}"));
        for ns in [&seed.vm01, &seed.vm03, &seed.vm04, &seed.gw_a, &seed.gw_b] {
            ns.sh("ip neigh flush all");
        }
        // Rightful traffic goes to the client, and unmarked.
        let strange = format!("ip and not dst host {HOST} and not multicast and not broadcast");
        let asked = [ROUTER, NOBODY, BORROWED, UNUSED].map(|a| format!("arp dst host {a}")).join(" or ");
        let escape = format!(
            "{} or ({strange}) or (arp[6:2] = 1 and ({asked}))",
            marked(&[FROM_INSIDE, FROM_SECOND])
        );
        let intrusion = marked(&[FROM_OUTSIDE, FROM_SECOND]);
        let own = ["192.168.200.66", "192.168.200.3", "192.168.200.4"];
        let from_inside = everything(FROM_INSIDE, &own, &destinations(virtual_addresses));
        let from_outside = packets(
            FROM_OUTSIDE,
            &["192.168.100.66", BORROWED, STRANGER],
            &["192.168.200.3", "192.168.200.4", "192.168.200.66", "192.168.200.254"],
        );
        Self {
            witnesses: vec![
                ("out of", Witness::start(&seed.segment_a, OUTSIDE_MAC, &escape)),
                ("into", Witness::start(&seed.segment_b, INSIDE_MAC, &intrusion)),
            ],
            probers: vec![
                Prober::start("probe-in", &seed.segment_b, INSIDE_MAC, &from_inside),
                Prober::start("probe-out", &seed.segment_a, OUTSIDE_MAC, &from_outside),
            ],
        }
    }

    /// Probes a second closed network as well, which is behind `mac` on `switch`: the way out, to the first one, and from both others into it.
    pub fn second(&mut self, switch: &Ns, mac: &str, sources: &[&str], virtual_addresses: &[&str]) {
        let mut to = destinations(virtual_addresses);
        to.extend(["192.168.200.3", "192.168.200.4"]);
        let intrusion = marked(&[FROM_INSIDE, FROM_OUTSIDE]);
        self.witnesses
            .push(("into the second network through", Witness::start(switch, mac, &intrusion)));
        self.probers
            .push(Prober::start("probe-second", switch, mac, &everything(FROM_SECOND, sources, &to)));
    }

    /// Proves on the gateway as it is without a fence, forwarding, that everything gets through and is seen. What is seen from then on counts.
    pub fn prove(&mut self, seed: &Seed) {
        let gateway = &seed.vm02;
        // Who answers nobody's question is given up after three tries; then the kernel tells every source, and asks for routers to do so.
        let patience = "ipv4/neigh/eth0/retrans_time_ms";
        let found = gateway.get(patience);
        gateway.set(patience, "50");
        gateway.set("ipv4/ip_forward", "1");
        wait_until(seconds(20), "the witnesses to see what gets through an open router", || {
            let ways: Vec<_> = self.witnesses.iter().map(|(_, witness)| witness.seen().join("\n")).collect();
            let all = |way: &str, words: &[&str]| words.iter().all(|word| way.contains(word));
            all(&ways[0], &KINDS)
                && all(&ways[0], &[HOST, NOBODY, UNUSED, "> 10.1.2.3"])
                && all(&ways[1], &KINDS)
                && all(&ways[1], &["> 192.168.200.3", "> 192.168.200.4"])
        });
        gateway.set("ipv4/ip_forward", "0");
        gateway.forget_flows();
        self.round();
        fall_silent(gateway, &self.witnesses.iter().map(|(_, witness)| witness).collect::<Vec<_>>());
        gateway.set(patience, &found);
        self.witnesses.iter_mut().for_each(|(_, witness)| witness.forget());
    }

    /// Waits until all have tried everything once more.
    pub fn round(&self) {
        self.probers.iter().for_each(Prober::full_round);
    }

    /// What got through, without what the gateway then asked and said by itself, and how long that went on. Nothing of it counts any more.
    pub fn forgive(&mut self, gateway: &Ns) -> (usize, Duration) {
        fall_silent(gateway, &self.witnesses.iter().map(|(_, witness)| witness).collect::<Vec<_>>());
        let passed = self
            .passed()
            .into_iter()
            .filter(|line| !line.contains("unreachable") && !line.contains("ARP"));
        let times: Vec<_> = passed.filter_map(|line| time_of_day(&line)).collect();
        self.witnesses.iter_mut().for_each(|(_, witness)| witness.forget());
        let ends = times.iter().min().zip(times.iter().max());
        (
            times.len(),
            ends.map_or(Duration::ZERO, |(first, last)| last.saturating_sub(*first)),
        )
    }

    /// What got through, a line a packet.
    pub fn passed(&self) -> Vec<String> {
        self.witnesses.iter().flat_map(|(_, witness)| witness.seen()).collect()
    }

    /// Fails if anything ever got through.
    pub fn none_passed(&self, when: &str) {
        for (way, witness) in &self.witnesses {
            witness.saw_nothing(&format!("{way} the fence, {when}"));
        }
    }

    /// Fails if anything ever got through, or if the witnesses cannot know. Returns how often everything was tried.
    pub fn end(mut self) -> u64 {
        self.round();
        self.none_passed("by the end");
        self.witnesses.iter_mut().for_each(|(_, witness)| witness.end());
        self.none_passed("by the end");
        self.probers.iter().map(Prober::rounds).min().unwrap_or_default()
    }
}

/// When tcpdump saw what it prints in a line that begins as in `12:34:56.789012 `.
fn time_of_day(line: &str) -> Option<Duration> {
    let mut fields = line.split(' ').next()?.split(':');
    let [hours, minutes] = [fields.next()?.parse::<u64>().ok()?, fields.next()?.parse().ok()?];
    let seconds = Duration::try_from_secs_f64(fields.next()?.parse().ok()?).ok()?;
    Some(seconds + Duration::from_secs(hours * 3600 + minutes * 60))
}

/// Where a restored VM may turn to.
fn destinations<'a>(virtual_addresses: &[&'a str]) -> Vec<&'a str> {
    [&[HOST, ROUTER, NOBODY, UNUSED, "10.1.2.3"], virtual_addresses].concat()
}

/// Everything from inside, under the sources there and under borrowed ones; of the latter also what the gateway would answer by itself.
fn everything(mark: u8, sources: &[&str], destinations: &[&str]) -> Vec<Vec<u8>> {
    let borrowed = [HOST, BORROWED, STRANGER];
    let all = packets(mark, &[sources, &borrowed].concat(), destinations);
    [all, hopeless(mark, &borrowed, destinations)].concat()
}

/// Packets with one of `marks`, and ICMP errors about such.
fn marked(marks: &[u8]) -> String {
    let one = |mark: &u8| format!("ip[1] = {mark} or (icmp and ip[29] = {mark})");
    marks.iter().map(one).collect::<Vec<_>>().join(" or ")
}
