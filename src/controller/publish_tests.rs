#![allow(clippy::unwrap_used)]
use super::*;

fn about(name: &str) -> ObjectReference {
    ObjectReference {
        kind: Some("NatMapping".into()),
        namespace: Some("default".into()),
        name: Some(name.into()),
        uid: Some(format!("uid-of-{name}")),
        ..ObjectReference::default()
    }
}

fn notice(note: &str) -> Notice {
    Notice {
        warning: true,
        reason: "Conflict".into(),
        action: "Accept",
        note: note.into(),
    }
}

/// Takes a notice in at a second of the clock.
fn take(book: &mut Book, name: &str, note: &str, start: Instant, second: u64) {
    let time = Timestamp::from_second(i64::try_from(second).unwrap()).unwrap();
    book.take((notice(note), about(name)), start + Duration::from_secs(second), time);
}

fn at(start: Instant, second: u64) -> Instant {
    start + Duration::from_secs(second)
}

/// Writes everything that is due: name of the object, note, count, and whether it makes a new Event.
fn write(book: &mut Book, now: Instant) -> Vec<(String, String, i32, bool)> {
    let mut written = Vec::new();
    while let Some(write) = book.next(now) {
        let name = write.name.clone().unwrap_or_else(|| write.event_name());
        written.push((
            write.said.1.name.clone().unwrap(),
            write.said.0.note.clone(),
            write.count,
            write.name.is_none(),
        ));
        book.written(&write, name, now);
    }
    written
}

#[test]
fn what_happens_again_is_counted_and_what_is_something_else_is_not() {
    let (mut book, start) = (Book::default(), Instant::now());
    take(&mut book, "a", "taken", start, 0);
    assert_eq!(write(&mut book, start), [("a".into(), "taken".into(), 1, true)]);
    take(&mut book, "a", "taken", start, 1);
    take(&mut book, "a", "taken by another", start, 1);
    take(&mut book, "b", "taken", start, 1);
    let mut written = write(&mut book, at(start, 1));
    written.sort();
    assert_eq!(
        written,
        [
            ("a".into(), "taken".into(), 2, false),
            ("a".into(), "taken by another".into(), 1, true),
            ("b".into(), "taken".into(), 1, true)
        ]
    );
    assert_eq!(write(&mut book, at(start, 2)), [], "nothing is written twice");
}

/// Two programs that undo each other's work once a second cost a write in half a minute, and no time is lost from the count.
#[test]
fn a_fight_is_counted_and_seldom_written() {
    let (mut book, start) = (Book::default(), Instant::now());
    let mut written = Vec::new();
    for second in 0..600 {
        take(&mut book, "a", "the chain was emptied", start, second);
        written.extend(write(&mut book, at(start, second)));
    }
    assert!(written.len() < 30, "{} writes", written.len());
    assert_eq!(written.iter().filter(|(.., new)| *new).count(), 1);
    let last = write(&mut book, at(start, 700));
    assert_eq!(last, [("a".into(), "the chain was emptied".into(), 600, false)]);
}

/// While the API server is away nothing is written, and afterwards the count is right at once.
#[test]
fn what_could_not_be_written_is_written_later_with_its_count() {
    let (mut book, start) = (Book::default(), Instant::now());
    for second in 0..3 {
        take(&mut book, "a", "put back", start, second);
        assert!(book.next(at(start, second)).is_some(), "and nobody takes it");
    }
    let write = book.next(at(start, 9)).unwrap();
    let reporter = Reporter {
        program: "stagenet-agent".into(),
        instance: "vm02".into(),
    };
    let event = write.event("default", &reporter);
    let series = event.series.unwrap();
    assert_eq!((series.count, series.last_observed_time.0.as_second()), (3, 2));
    assert_eq!(event.event_time.unwrap().0.as_second(), 0);
    assert_eq!(
        event.regarding.unwrap().uid.as_deref(),
        Some("uid-of-a"),
        "kubectl describe asks for it"
    );
}

#[test]
fn an_event_that_somebody_deleted_is_made_anew_and_one_that_is_there_already_is_counted() {
    let (mut book, start) = (Book::default(), Instant::now());
    take(&mut book, "a", "taken", start, 0);
    write(&mut book, start);
    take(&mut book, "a", "taken", start, 1);
    let again = book.next(at(start, 1)).unwrap();
    book.lost(&again);
    assert_eq!(write(&mut book, at(start, 1)), [("a".into(), "taken".into(), 2, true)]);

    take(&mut book, "b", "taken", start, 2);
    let first = book.next(at(start, 2)).unwrap();
    take(&mut book, "b", "taken", start, 3);
    book.named(&first);
    assert_eq!(write(&mut book, at(start, 3)), [("b".into(), "taken".into(), 2, false)]);
}

#[test]
fn memory_is_bounded_and_what_is_long_ago_is_no_series() {
    let (mut book, start) = (Book::default(), Instant::now());
    for n in 0..2 * QUEUE {
        take(&mut book, &n.to_string(), "taken", start, 0);
    }
    assert_eq!(book.open.len(), QUEUE, "nobody writes: the rest is dropped");
    for n in 0..2 * REMEMBERED {
        take(&mut book, &n.to_string(), "taken", start, 1);
        write(&mut book, at(start, 1));
    }
    assert!(book.known.len() <= REMEMBERED, "{}", book.known.len());
    take(&mut book, "a", "taken", start, 2);
    write(&mut book, at(start, 2));
    book.forget(at(start, 2) + FORGET);
    assert_eq!(book.known.len(), 0);
    take(&mut book, "a", "taken", start, 900);
    assert_eq!(write(&mut book, at(start, 900)), [("a".into(), "taken".into(), 1, true)]);
}

#[test]
fn notes_are_cut_between_characters() {
    assert_eq!(cut("short".into()), "short");
    let long = cut("ä".repeat(600));
    assert_eq!(long.len(), NOTE_MAX);
    assert_eq!(cut(format!("x{}", "ä".repeat(600))).len(), NOTE_MAX - 1);
}
