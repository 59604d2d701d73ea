//! Publishes Events: a happening makes one object, and the same happening again raises its `series.count` instead of making a second one.
//!
//! Two happenings are the same if they are said of the same object in the same words. The API server never lets the note of an Event change, so another note is
//! another Event; a recorder that counts by reason alone would say of the second what was said of the first.
//!
//! [`Book`] is pure: what is known, what is to be written next and when. An API server that is away loses nothing of it but what does not fit: it is written when
//! it is back, with the count that it has come to.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use kube::core::Status;
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use crate::telemetry::{chain, object_key};

/// Events that wait to be published. When ten thousand mappings change at once, most of what could be said says the same: what does not fit is dropped.
const QUEUE: usize = 256;
/// Happenings that are remembered, published ones among them.
const REMEMBERED: usize = 2048;
/// After how long without another one a happening is forgotten: the next makes a new object (as with client-go).
const FORGET: Duration = Duration::from_mins(6);
/// Longest time between two writes of one series.
const PAUSE_MAX: u32 = 30;
/// First wait after the API server could not be reached; doubled up to [`RETRY_MAX`].
const RETRY: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// For how long an API server that forbids is asked again: one that has just started does not know yet who may do what.
const FORBIDDEN: Duration = Duration::from_mins(1);
/// How long a write may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest note of an Event, in bytes (`events.k8s.io/v1`).
const NOTE_MAX: usize = 1024;
/// Most of an object's name that goes into an Event's: both may have 253 characters.
const NAME_MAX: usize = 200;

/// Something to say.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Notice {
    /// Whether somebody should act.
    pub warning: bool,
    /// A constant of [`crate::api::reasons`].
    pub reason: String,
    /// What was done or tried (the machine-readable `action` of an Event).
    pub action: &'static str,
    /// For people.
    pub note: String,
}

/// A notice and the object that it is about.
type Said = (Notice, ObjectReference);

/// Takes notices and publishes them behind the scenes: an Event that cannot be written never holds up a status.
#[derive(Clone, Debug)]
pub struct Announcer(mpsc::Sender<Said>);

impl Announcer {
    /// The announcer, and the work that publishes until all its clones are gone. `reporter`: which program; `instance`: which one of them.
    pub fn new(client: Client, reporter: &str, instance: &str) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let reporter = Reporter {
            program: reporter.to_owned(),
            instance: instance.to_owned(),
        };
        (Self(sender), publish(client, reporter, receiver))
    }

    /// Says something of an object: to the log at once, as an Event as soon as may be.
    pub fn say(&self, notices: Vec<Notice>, regarding: &ObjectReference) {
        for notice in notices {
            let object = key_of(regarding);
            if notice.warning {
                warn!(object, reason = notice.reason, "{}", notice.note);
            } else {
                info!(object, reason = notice.reason, "{}", notice.note);
            }
            self.publish(notice, regarding);
        }
    }

    /// As an Event alone, where the log has it already.
    pub fn publish(&self, notice: Notice, regarding: &ObjectReference) {
        if self.0.try_send((notice, regarding.clone())).is_err() {
            debug!(object = key_of(regarding), "more events than can be published; dropped one");
        }
    }
}

fn key_of(regarding: &ObjectReference) -> String {
    let kind = regarding.kind.as_deref().unwrap_or_default();
    object_key(kind, regarding.namespace.as_deref(), regarding.name.as_deref().unwrap_or_default())
}

struct Reporter {
    program: String,
    instance: String,
}

async fn publish(client: Client, reporter: Reporter, mut said: mpsc::Receiver<Said>) {
    let mut book = Book::default();
    let (mut wait, mut not_before) = (RETRY, Instant::now());
    let mut forbidden: Option<Instant> = None;
    loop {
        let now = Instant::now();
        let due = book.next_due().map(|due| due.max(not_before));
        if due.is_none_or(|due| due > now) {
            let until = due.unwrap_or(now + FORGET);
            tokio::select! {
                heard = said.recv() => match heard {
                    Some(heard) => book.take(heard, Instant::now(), Timestamp::now()),
                    None => return,
                },
                () = tokio::time::sleep_until(until.into()) => book.forget(Instant::now()),
            }
            continue;
        }
        // What has happened meanwhile is counted before it is written.
        while let Ok(heard) = said.try_recv() {
            book.take(heard, now, Timestamp::now());
        }
        let Some(write) = book.next(now) else { continue };
        let answer = tokio::time::timeout(TIMEOUT, write.send(&client, &reporter)).await;
        let now = Instant::now();
        match answer {
            Ok(Ok(name)) => {
                (wait, forbidden) = (RETRY, None);
                book.written(&write, name, now);
            }
            // Somebody deleted it, or its time was over: the next write makes a new one.
            Ok(Err(kube::Error::Api(status))) if status.code == 404 && write.name.is_some() => book.lost(&write),
            // Made by an earlier try whose answer got lost: counted from now on.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 && write.name.is_none() => book.named(&write),
            // Not permitted, a namespace that is about to go, not what the API server takes: trying again helps nobody.
            Ok(Err(error @ kube::Error::Api(_)))
                if refused(&error) && !(forbids(&error) && forbidden.get_or_insert(now).elapsed() < FORBIDDEN) =>
            {
                warn!(object = write.object(), reason = write.said.0.reason, error = %chain(&error), "could not publish an event");
                book.abandon(&write);
            }
            Ok(Err(error)) => {
                debug!(object = write.object(), error = %chain(&error), "publishing an event; it is tried again");
                (not_before, wait) = (now + wait, (wait * 2).min(RETRY_MAX));
            }
            Err(_) => (not_before, wait) = (now + wait, (wait * 2).min(RETRY_MAX)),
        }
    }
}

/// Whether whoever says it may know better soon: not of a namespace that is about to go.
fn forbids(error: &kube::Error) -> bool {
    let goes = |status: &Status| {
        let causes = status.details.iter().flat_map(|details| &details.causes);
        causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
    };
    matches!(error, kube::Error::Api(status) if [401, 403].contains(&status.code) && !goes(status))
}

fn refused(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if (400..500).contains(&status.code) && status.code != 429)
}

/// What is known of a happening.
#[derive(Clone, Debug)]
struct Happening {
    /// Name of its Event, once there is one.
    name: Option<String>,
    first: Timestamp,
    last: Timestamp,
    count: i32,
    /// The count that the API server has.
    told: i32,
    /// Not to be written before.
    due: Instant,
    /// When it last happened.
    heard: Instant,
}

/// One write.
#[derive(Clone, Debug)]
struct Write {
    key: Key,
    said: Said,
    name: Option<String>,
    first: Timestamp,
    last: Timestamp,
    count: i32,
}

/// What makes two happenings the same: kind, namespace, name and identity of the object, and the notice.
type Key = ([String; 4], Notice);

fn key((notice, regarding): &Said) -> Key {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let object = [
        text(&regarding.kind),
        text(&regarding.namespace),
        text(&regarding.name),
        text(&regarding.uid),
    ];
    (object, notice.clone())
}

/// Everything that has happened of late.
#[derive(Debug, Default)]
struct Book {
    known: BTreeMap<Key, (Said, Happening)>,
    /// Those of which the API server does not know all.
    open: BTreeSet<Key>,
}

impl Book {
    fn take(&mut self, mut said: Said, now: Instant, time: Timestamp) {
        said.0.note = cut(said.0.note);
        let key = key(&said);
        if let Some((_, happening)) = self.known.get_mut(&key) {
            happening.count = happening.count.saturating_add(1);
            (happening.last, happening.heard) = (time, now);
            self.open.insert(key);
            return;
        }
        if self.known.len() >= REMEMBERED {
            self.forget(now);
            self.forget_oldest();
        }
        if self.open.len() >= QUEUE {
            return;
        }
        let happening = Happening {
            name: None,
            first: time,
            last: time,
            count: 1,
            told: 0,
            due: now,
            heard: now,
        };
        self.open.insert(key.clone());
        self.known.insert(key, (said, happening));
    }

    fn happening(&self, key: &Key) -> Option<&Happening> {
        self.known.get(key).map(|(_, happening)| happening)
    }

    fn next_due(&self) -> Option<Instant> {
        self.open.iter().filter_map(|key| self.happening(key)).map(|h| h.due).min()
    }

    /// What is due longest.
    fn next(&self, now: Instant) -> Option<Write> {
        let due = self.open.iter().filter_map(|key| Some((key, self.known.get(key)?)));
        let due = due.filter(|(_, (_, happening))| happening.due <= now);
        let (key, (said, happening)) = due.min_by_key(|(_, (_, happening))| happening.due)?;
        Some(Write {
            key: key.clone(),
            said: said.clone(),
            name: happening.name.clone(),
            first: happening.first,
            last: happening.last,
            count: happening.count,
        })
    }

    /// The more often something has happened, the longer its next write may wait: the second at once, and a fight of programs twice a minute.
    fn written(&mut self, write: &Write, name: String, now: Instant) {
        if let Some((_, happening)) = self.known.get_mut(&write.key) {
            happening.name = Some(name);
            happening.told = write.count;
            let pause = u32::try_from(write.count).unwrap_or(PAUSE_MAX).saturating_sub(1).min(PAUSE_MAX);
            happening.due = now + Duration::from_secs(pause.into());
            if happening.told >= happening.count {
                self.open.remove(&write.key);
            }
        }
    }

    fn lost(&mut self, write: &Write) {
        if let Some((_, happening)) = self.known.get_mut(&write.key) {
            happening.name = None;
        }
    }

    fn named(&mut self, write: &Write) {
        if let Some((_, happening)) = self.known.get_mut(&write.key) {
            (happening.name, happening.told) = (Some(write.event_name()), 1);
            if happening.count == 1 {
                self.open.remove(&write.key);
            }
        }
    }

    fn abandon(&mut self, write: &Write) {
        self.open.remove(&write.key);
        self.known.remove(&write.key);
    }

    fn forget(&mut self, now: Instant) {
        let open = &self.open;
        self.known
            .retain(|key, (_, happening)| open.contains(key) || now.duration_since(happening.heard) < FORGET);
    }

    fn forget_oldest(&mut self) {
        if self.known.len() < REMEMBERED {
            return;
        }
        let published = self.known.iter().filter(|(key, _)| !self.open.contains(*key));
        let oldest = published
            .min_by_key(|(_, (_, happening))| happening.heard)
            .map(|(key, _)| key.clone());
        if let Some(oldest) = oldest {
            self.known.remove(&oldest);
        }
    }
}

impl Write {
    fn object(&self) -> String {
        key_of(&self.said.1)
    }

    /// The same for every try.
    fn event_name(&self) -> String {
        let about = self.said.1.name.as_deref().unwrap_or_default();
        let about: String = about.chars().take(NAME_MAX).collect();
        format!("{}.{:x}", about.trim_end_matches(['.', '-']), self.first.as_nanosecond())
    }

    fn series(&self) -> Option<EventSeries> {
        (self.count > 1).then_some(EventSeries {
            count: self.count,
            last_observed_time: MicroTime(self.last),
        })
    }

    /// Returns the name of the Event.
    async fn send(&self, client: &Client, reporter: &Reporter) -> kube::Result<String> {
        let (_, regarding) = &self.said;
        // Those about cluster-wide objects are in "default", where kubectl looks for them.
        let namespace = regarding.namespace.as_deref().unwrap_or("default");
        let events: Api<Event> = Api::namespaced(client.clone(), namespace);
        match &self.name {
            Some(name) => {
                let patch = json!({ "series": self.series() });
                events.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
                Ok(name.clone())
            }
            None => Ok(events
                .create(&PostParams::default(), &self.event(namespace, reporter))
                .await?
                .name_any()),
        }
    }

    fn event(&self, namespace: &str, reporter: &Reporter) -> Event {
        let (notice, regarding) = &self.said;
        Event {
            metadata: ObjectMeta {
                namespace: Some(namespace.to_owned()),
                name: Some(self.event_name()),
                ..ObjectMeta::default()
            },
            action: Some(notice.action.to_owned()),
            reason: Some(notice.reason.clone()),
            note: Some(notice.note.clone()),
            type_: Some(if notice.warning { "Warning" } else { "Normal" }.to_owned()),
            event_time: Some(MicroTime(self.first)),
            series: self.series(),
            regarding: Some(regarding.clone()),
            reporting_controller: Some(reporter.program.clone()),
            reporting_instance: Some(reporter.instance.chars().take(128).collect()),
            ..Event::default()
        }
    }
}

/// At most [`NOTE_MAX`] bytes, cut where a character ends.
fn cut(mut note: String) -> String {
    let end = (0..=NOTE_MAX.min(note.len()))
        .rev()
        .find(|end| note.is_char_boundary(*end))
        .unwrap_or(0);
    note.truncate(end);
    note
}

#[cfg(test)]
#[path = "publish_tests.rs"]
mod tests;
