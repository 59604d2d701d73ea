//! Compares all the while what status says with what packets find.
//!
//! Every door (an address and a port) is dialled again and again. A lie is one of: a mapping says Ready=True and its target does not answer; it says
//! neither True nor Unknown and the target answers; a door that no mapping claims answers. One that lasts longer than [`LIMIT`] is a failure.
//!
//! Time is counted in dials: from one answer to the next, at most [`STRIDE`], so that a machine that stands still accuses nobody. A dial during which status
//! changed proves nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::claims::Claim;
use crate::desk::{Sight, condition, ready};
use crate::lab::Ns;

/// How long a lie may last.
const LIMIT: Duration = Duration::from_secs(2);
/// What one dial can add at most.
const STRIDE: Duration = Duration::from_millis(500);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_millis(300);
/// Between two dials of one address.
const PACE: Duration = Duration::from_millis(120);

/// What nobody can be blamed for at the moment, because nobody could know. Whatever is not named here is held to its word, also while the API server is away,
/// requests fail and controllers change: what nobody touched goes on to work, and its status goes on to say so.
#[derive(Clone, Debug, Default)]
pub struct Excuse {
    /// What mappings claimed that were edited, created or deleted while controllers or gateways could not hear of it, before and after. From the edit until all has
    /// settled, nothing is expected at these addresses: also a rival's fate may hang on it.
    pub unheard: Vec<Claim>,
    /// Gateways cannot hear that they were elected (their tokens were revoked): until their own Leases have run out, too, a mapping that was moved to one
    /// of them says `Pending`, while the gateway from which it was moved cannot hear that it serves no more.
    pub deaf_gateways: bool,
    /// A gateway of which somebody emptied legacy tables. These tell nobody; the agent reads them every two seconds at most (`agent/check`), so until then it
    /// cannot know. That it finds out is looked at before a step ends.
    pub unread_tables: Option<String>,
    /// Machines that are switched off, which no gateway can know.
    pub gone: BTreeSet<String>,
}

impl Excuse {
    fn nothing_expected(&self, door: SocketAddr) -> bool {
        self.unheard.iter().any(|claim| claim.covers(door.ip()))
    }
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
    dials: BTreeMap<SocketAddr, Dial>,
    lies: BTreeMap<String, Lie>,
    proven: Vec<String>,
    /// Dials by which somebody was held to his word, and those at whose doors nothing was expected.
    judged: u64,
    excused: u64,
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
    pub fn post(client: &Ns, doors: &[SocketAddr], sight: &Arc<Mutex<Sight>>) -> Self {
        let watchman = Self {
            book: Arc::default(),
            excuse: Arc::default(),
            start: Instant::now(),
        };
        for door in doors {
            let (client, door) = (client.clone(), *door);
            let (book, excuse, sight, start) = (watchman.book.clone(), watchman.excuse.clone(), sight.clone(), watchman.start);
            std::thread::spawn(move || {
                client.enter(|| {
                    for number in 0.. {
                        let dial = dial(door, number);
                        let (sight, excuse) = (sight.lock().unwrap(), excuse.lock().unwrap());
                        book.lock().unwrap().enter(door, &dial, &sight, &excuse, start);
                        drop((sight, excuse));
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

    /// How many dials were judged, and how many were excused.
    pub fn tally(&self) -> (u64, u64) {
        let book = self.book.lock().unwrap();
        (book.judged, book.excused)
    }

    /// Waits for a dial of every door that began after now, and returns who answers.
    pub fn answers(&self) -> BTreeMap<SocketAddr, Option<String>> {
        let now = Instant::now();
        crate::lab::wait_for(crate::lab::seconds(30), "dials of every door", || {
            let book = self.book.lock().unwrap();
            let fresh = book.dials.values().all(|dial| dial.begun > now);
            fresh.then(|| book.dials.iter().map(|(door, d)| (*door, d.answer.clone())).collect())
        })
    }

    /// Seconds since the watch began.
    pub fn clock(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }
}

fn dial(to: SocketAddr, number: u64) -> Dial {
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
    fn enter(&mut self, door: SocketAddr, dial: &Dial, sight: &Sight, excuse: &Excuse, start: Instant) {
        let before = self.dials.insert(door, dial.clone());
        if sight.mappings.blind || before.is_none() {
            return;
        }
        let lasted = before.map_or(Duration::ZERO, |b| dial.ended.duration_since(b.ended).min(STRIDE));
        *(if excuse.nothing_expected(door) {
            &mut self.excused
        } else {
            &mut self.judged
        }) += 1;
        let lies = lies(door, dial, sight, excuse);
        // A dial during which status changed proves nothing.
        let Some(told) = lies else { return };
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

/// What is said at a door, by whom, and what of it the dial shows to be untrue. None: something else was said while it was dialled.
fn lies(door: SocketAddr, dial: &Dial, sight: &Sight, excuse: &Excuse) -> Option<Vec<(String, Option<String>)>> {
    let objects = &sight.mappings.objects;
    let claims = objects.iter().filter_map(|(name, told)| {
        let claim = told.claim.as_ref()?;
        let server = claim.server_at(door)?;
        Some((name, told, server, claim.net().prefix_len()))
    });
    let claims: Vec<_> = claims.collect();
    if claims.iter().any(|(_, told, ..)| told.changed > dial.begun) {
        return None;
    }
    let nothing_expected = excuse.nothing_expected(door);
    let moved = |object: &Value| excuse.deaf_gateways && condition(object, "Ready")[1] == "Pending";
    let may_answer = |object: &Value| ["True", "Unknown"].contains(&ready(object)) || moved(object);
    let mut said = Vec::new();
    for (name, told, server, length) in &claims {
        let status = ready(&told.object);
        let answers = dial.answer.as_deref() == Some(server);
        // What is more specific counts; whoever else has the door may have the same machine.
        let overruled = claims
            .iter()
            .any(|(_, other, _, longer)| longer > length && may_answer(&other.object));
        let answered_for = claims.iter().any(|(other, told, ..)| other != name && may_answer(&told.object));
        let unread = excuse.unread_tables.is_some() && told.object["status"]["gateway"].as_str() == excuse.unread_tables.as_deref();
        let lie = match status {
            _ if nothing_expected => None,
            "True" if unread => None,
            "True" if !answers && !overruled && !excuse.gone.contains(*server) => {
                Some(format!("Ready=True, but {server} does not answer (answered: {:?})", dial.answer))
            }
            "True" | "Unknown" => None,
            _ if answers && !moved(&told.object) && !answered_for => Some(format!("Ready={status:?}, but {server} answers")),
            _ => None,
        };
        said.push((
            format!("natmapping/{name} at {door}"),
            lie.map(|lie| format!("{lie}; it says {}", told.object)),
        ));
    }
    let answered = claims.is_empty() && dial.answer.is_some() && !nothing_expected;
    said.push((
        format!("nobody's {door}"),
        answered.then(|| format!("no mapping claims it, but {:?} answers", dial.answer)),
    ));
    Some(said)
}
