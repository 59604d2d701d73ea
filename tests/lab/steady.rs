//! Rightful traffic that goes on all the while: connections that stay, and ever new ones.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Ns, seconds, wait_until};

/// Longer than any interruption that TCP is expected to bridge.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two lines of a connection that stays.
const PACE: Duration = Duration::from_millis(5);

/// How long a datagram may take before another is sent.
const ANSWER: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    done: AtomicU64,
    slowest: Mutex<Duration>,
    failures: Mutex<Vec<String>>,
}

impl Shared {
    fn took(&self, time: Duration) {
        let mut slowest = self.slowest.lock().unwrap();
        *slowest = time.max(*slowest);
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    fn failed(&self, why: String) {
        self.failures.lock().unwrap().push(why);
    }
}

/// Somebody who works until it is dropped.
#[derive(Debug)]
struct Worker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn start(ns: &Ns, work: impl FnOnce(&Shared) + Send + 'static) -> Self {
        let (ns, shared) = (ns.clone(), Arc::<Shared>::default());
        let theirs = shared.clone();
        let thread = std::thread::spawn(move || ns.enter(|| work(&theirs)));
        Self {
            shared,
            thread: Some(thread),
        }
    }

    fn done(&self) -> u64 {
        self.shared.done.load(Ordering::Relaxed)
    }

    fn slowest(&self) -> Duration {
        *self.shared.slowest.lock().unwrap()
    }

    fn assert_well(&self, what: &str) {
        let failures = self.shared.failures.lock().unwrap();
        assert!(
            failures.is_empty(),
            "{what}: {} failed of {}, such as {:?}",
            failures.len(),
            self.done(),
            &failures[..failures.len().min(5)]
        );
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
    }
}

/// A TCP connection on which a line is said and repeated all the time. It may falter and must not break.
#[derive(Debug)]
pub struct Steady {
    worker: Worker,
    to: String,
}

impl Steady {
    /// Connects from `client` to a [`super::Server`] at `to`.
    pub fn connect(client: &Ns, to: &str) -> Self {
        let address: SocketAddr = to.parse().unwrap();
        let stream = client.enter(|| TcpStream::connect_timeout(&address, PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let worker = Worker::start(client, move |shared| {
            if let Err(error) = converse(stream, shared) {
                shared.failed(error.to_string());
            }
        });
        let steady = Self { worker, to: to.to_owned() };
        steady.goes_on("at first");
        steady
    }

    /// Asks a [`super::Server`] at `to` by datagrams from one port. Those that are lost are asked again; only silence breaks it.
    pub fn datagrams(client: &Ns, to: &str) -> Self {
        let any = if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
        let socket = client.enter(|| UdpSocket::bind(any)).unwrap();
        socket.connect(to).unwrap();
        let worker = Worker::start(client, move |shared| {
            if let Err(error) = ask(&socket, shared) {
                shared.failed(error.to_string());
            }
        });
        let steady = Self { worker, to: to.to_owned() };
        steady.goes_on("at first");
        steady
    }

    /// Waits until lines that are said from now on have come back; fails if the connection has broken.
    pub fn goes_on(&self, after: &str) {
        let before = self.worker.done();
        wait_until(PATIENCE, &format!("the connection to {} to go on {after}", self.to), || {
            self.assert_whole(after);
            self.worker.done() >= before + 2
        });
    }

    /// Fails if the connection has broken.
    pub fn assert_whole(&self, after: &str) {
        self.worker.assert_well(&format!("the connection to {} {after}", self.to));
    }

    /// Lines repeated, and the longest time that one took.
    pub fn account(&self) -> (u64, Duration) {
        (self.worker.done(), self.worker.slowest())
    }
}

fn converse(stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut stream = BufReader::new(stream);
    let mut answer = String::new();
    stream.read_line(&mut answer)?;
    for number in 0u64.. {
        if shared.stop.load(Ordering::Relaxed) {
            break;
        }
        let start = Instant::now();
        writeln!(stream.get_mut(), "{number}")?;
        answer.clear();
        stream.read_line(&mut answer)?;
        if answer.trim_end() != number.to_string() {
            return Err(std::io::Error::other(format!("said {number}, heard {answer:?}")));
        }
        shared.took(start.elapsed());
        std::thread::sleep(PACE);
    }
    Ok(())
}

fn ask(socket: &UdpSocket, shared: &Shared) -> std::io::Result<()> {
    socket.set_read_timeout(Some(ANSWER))?;
    let mut buffer = [0; 1500];
    for number in 0u64.. {
        let start = Instant::now();
        loop {
            if shared.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                return Err(ErrorKind::TimedOut.into());
            }
            // Refusals of earlier ones are no answers.
            let answer = socket.send(number.to_string().as_bytes()).and_then(|_| socket.recv(&mut buffer));
            let text = answer.map(|n| String::from_utf8_lossy(&buffer[..n]).into_owned());
            if text.is_ok_and(|t| t.split(' ').nth(2) == Some(&number.to_string())) {
                break;
            }
        }
        shared.took(start.elapsed());
        std::thread::sleep(PACE);
    }
    Ok(())
}

/// New connections, one after the other, to some places in turn; each has to be greeted by the right server.
#[derive(Debug)]
pub struct Dialler {
    worker: Worker,
}

impl Dialler {
    /// Dials `places` (address and port, name of the server) from `client`, `pause` apart, as often as `most`.
    pub fn start(client: &Ns, places: &[(&str, &str)], pause: Duration, most: u64) -> Self {
        let places: Vec<(SocketAddr, String)> = places.iter().map(|(to, who)| (to.parse().unwrap(), (*who).to_owned())).collect();
        let worker = Worker::start(client, move |shared| {
            for (to, server) in places.iter().cycle().take(usize::try_from(most).unwrap()) {
                if shared.stop.load(Ordering::Relaxed) {
                    break;
                }
                let start = Instant::now();
                match dial(*to) {
                    Ok(greeting) if greeting.split(' ').next() == Some(server) => shared.took(start.elapsed()),
                    Ok(greeting) => shared.failed(format!("{to}: {greeting:?} instead of {server}")),
                    Err(error) => shared.failed(format!("{to}: {error}")),
                }
                if !pause.is_zero() {
                    std::thread::sleep(pause);
                }
            }
        });
        Self { worker }
    }

    /// Connections made and greeted, and the longest time that one took.
    pub fn account(&self) -> (u64, Duration) {
        (self.worker.done(), self.worker.slowest())
    }

    /// Whether all were dialled.
    pub fn is_finished(&self) -> bool {
        self.worker.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Fails if a connection ever failed.
    pub fn none_failed(&self, when: &str) {
        self.worker.assert_well(&format!("new connections {when}"));
    }

    /// Waits until more have been made.
    pub fn goes_on(&self, when: &str) {
        let before = self.worker.done();
        wait_until(seconds(20), &format!("new connections {when}"), || {
            self.none_failed(when);
            self.worker.done() > before
        });
    }
}

fn dial(to: SocketAddr) -> std::io::Result<String> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut greeting = String::new();
    match BufReader::new(stream).read_line(&mut greeting) {
        Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
        Ok(_) => Ok(greeting),
        Err(error) => Err(error),
    }
}
