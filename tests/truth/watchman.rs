//! Compares all the while what status says with what packets find.
//!
//! Every virtual address is dialled again and again. A lie is one of: a mapping says Ready=True and its target does not answer; it says
//! neither True nor Unknown and the target answers; an address that no mapping claims answers. One that lasts longer than [`LIMIT`] is a failure.
//!
//! Time is counted in dials: from one answer to the next, at most [`STRIDE`], so that a machine that stands still accuses nobody. A dial during which status
//! changed proves nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::desk::{Sight, ready};
use crate::lab::Ns;
use crate::model::server;

/// How long a lie may last.
const LIMIT: Duration = Duration::from_secs(2);
/// What one dial can add at most.
const STRIDE: Duration = Duration::from_millis(500);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_millis(300);
/// Between two dials of one address.
const PACE: Duration = Duration::from_millis(120);

/// What nobody can be blamed for at the moment.
#[derive(Clone, Debug, Default)]
pub struct Excuse {
    /// Status cannot follow: the API server, the agent or the controller does not do its work. What stood goes on to work all the same.
    pub deaf: bool,
    /// Mappings that were edited while nobody could follow.
    pub edited: BTreeSet<String>,
    /// Machines that are switched off, which no gateway can know.
    pub gone: BTreeSet<String>,
    /// A gateway on which nobody can act (its agent is dead) was tampered with.
    pub everything: bool,
}

#[derive(Clone, Debug)]
struct Dial {
    number: u64,
    begun: Instant,
    ended: Instant,
    answer: Option<String>,
}

#[derive(Default)]
struct Book {
    dials: BTreeMap<String, Dial>,
    lies: BTreeMap<String, Lie>,
    proven: Vec<String>,
}

struct Lie {
    lasted: Duration,
    since: Instant,
}

/// Dials and judges until the world ends.
pub struct Watchman {
    book: Arc<Mutex<Book>>,
    pub excuse: Arc<Mutex<Excuse>>,
    start: Instant,
}

impl Watchman {
    pub fn post(client: &Ns, addresses: &[String], sight: &Arc<Mutex<Sight>>) -> Self {
        let watchman = Self {
            book: Arc::default(),
            excuse: Arc::default(),
            start: Instant::now(),
        };
        for address in addresses {
            let (client, address) = (client.clone(), address.clone());
            let (book, excuse, sight, start) = (watchman.book.clone(), watchman.excuse.clone(), sight.clone(), watchman.start);
            std::thread::spawn(move || {
                client.enter(|| {
                    for number in 0.. {
                        let dial = dial(&address, number);
                        let sight = sight.lock().unwrap().clone();
                        let excuse = excuse.lock().unwrap().clone();
                        book.lock().unwrap().enter(&address, &dial, &sight, &excuse, start);
                        std::thread::sleep(PACE);
                    }
                });
            });
        }
        watchman
    }

    /// From now on only machines that are switched off are nobody's fault.
    pub fn excuse_ends(&self) {
        let mut excuse = self.excuse.lock().unwrap();
        *excuse = Excuse {
            gone: std::mem::take(&mut excuse.gone),
            ..Excuse::default()
        };
    }

    /// The lies that were proven so far.
    pub fn proven(&self) -> Vec<String> {
        self.book.lock().unwrap().proven.clone()
    }

    /// Waits for a dial of every address that began after now, and returns who answers.
    pub fn answers(&self) -> BTreeMap<String, Option<String>> {
        let now = Instant::now();
        crate::lab::wait_for(crate::lab::seconds(30), "dials of every address", || {
            let book = self.book.lock().unwrap();
            let fresh = book.dials.values().all(|dial| dial.begun > now);
            fresh.then(|| book.dials.iter().map(|(a, d)| (a.clone(), d.answer.clone())).collect())
        })
    }

    /// Seconds since the watch began.
    pub fn clock(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }
}

fn dial(address: &str, number: u64) -> Dial {
    let to: SocketAddr = format!("{address}:80").parse().unwrap();
    let begun = Instant::now();
    let answer = TcpStream::connect_timeout(&to, PATIENCE).ok().and_then(|stream| {
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        let mut greeting = String::new();
        BufReader::new(stream).read_line(&mut greeting).ok()?;
        greeting.split_once(' ').map(|(name, _)| name.to_owned())
    });
    Dial {
        number,
        begun,
        ended: Instant::now(),
        answer,
    }
}

impl Book {
    fn enter(&mut self, address: &str, dial: &Dial, sight: &Sight, excuse: &Excuse, start: Instant) {
        let before = self.dials.insert(address.to_owned(), dial.clone());
        if sight.mappings.blind || before.is_none() {
            return;
        }
        let lasted = before.map_or(Duration::ZERO, |b| dial.ended.duration_since(b.ended).min(STRIDE));
        let mut told: Vec<(String, Option<String>)> = Vec::new();
        let claims: Vec<_> = sight
            .mappings
            .objects
            .iter()
            .filter(|(_, m)| m.object["spec"]["virtual"]["address"] == address)
            .collect();
        if claims.iter().any(|(_, m)| m.changed > dial.begun) {
            return;
        }
        let target = |object: &serde_json::Value| server(object["spec"]["target"]["address"].as_str().unwrap_or_default());
        for (name, mapping) in &claims {
            let (said, target) = (ready(&mapping.object), target(&mapping.object));
            let answers = dial.answer.as_deref() == Some(target);
            let answered_for =
                |(other, m): &&(&String, &crate::desk::Told)| other != name && ["True", "Unknown"].contains(&ready(&m.object));
            let excused = excuse.everything || excuse.edited.contains(*name);
            let lie = match said {
                "True" if !answers && !excused && !excuse.gone.contains(target) => {
                    Some(format!("Ready=True, but {target} does not answer (answered: {:?})", dial.answer))
                }
                "True" | "Unknown" => None,
                _ if answers && !excused && !excuse.deaf && !claims.iter().any(|c| answered_for(&c)) => {
                    Some(format!("Ready={said:?}, but {target} answers"))
                }
                _ => None,
            };
            told.push((
                format!("natmapping/{name} at {address}"),
                lie.map(|l| format!("{l}; it says {}", mapping.object)),
            ));
        }
        let unclaimed = claims.is_empty() && dial.answer.is_some() && !excuse.deaf && !excuse.everything;
        told.push((
            format!("nobody's {address}"),
            unclaimed.then(|| format!("no mapping claims the address, but {:?} answers", dial.answer)),
        ));
        for (whose, lie) in told {
            let Some(lie) = lie else {
                self.lies.remove(&whose);
                continue;
            };
            let known = self.lies.entry(whose.clone()).or_insert(Lie {
                lasted: Duration::ZERO,
                since: dial.begun,
            });
            known.lasted += lasted;
            if known.lasted > LIMIT {
                let since = known.since.duration_since(start).as_secs_f64();
                let until = dial.ended.duration_since(start).as_secs_f64();
                self.proven
                    .push(format!("{since:.1} s to {until:.1} s (dial {}): {whose}: {lie}", dial.number));
                self.lies.remove(&whose);
            }
        }
    }
}
