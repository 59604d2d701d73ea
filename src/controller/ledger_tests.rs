#![allow(clippy::unwrap_used)]
use super::*;
use crate::api::{NatMapping, NatMappingStatus};
use crate::controller::testing::mapping;

fn status(generation: i64) -> NatMappingStatus {
    NatMappingStatus {
        observed_generation: Some(generation),
        ..NatMappingStatus::default()
    }
}

fn at(version: &str, stored: Option<i64>) -> Arc<NatMapping> {
    let mut object = mapping("default", "vm03");
    object.metadata.resource_version = Some(version.into());
    object.status = stored.map(status);
    object.into()
}

#[test]
fn what_was_written_is_not_written_again_before_the_watch_echoes_it() {
    let now = Instant::now();
    let mut ledger = Ledger::<NatMapping>::default();
    let todo = ledger.changes(vec![(at("5", None), status(1))], 10, now);
    assert_eq!(todo.changes.len(), 1);
    ledger.wrote(NatMapping::clone(&at("6", Some(1))));
    // The store still has version 5.
    let mut objects = [at("5", None)];
    ledger.overlay([&mut objects, &mut []]);
    assert_eq!(objects[0], at("6", Some(1)));
    assert_eq!(ledger.changes(vec![(objects[0].clone(), status(1))], 10, now).changes, []);
    // The store has caught up, then somebody wiped the status: that is written again.
    for stored in [at("6", Some(1)), at("7", None)] {
        let mut objects = [stored.clone()];
        ledger.overlay([&mut objects, &mut []]);
        assert_eq!(objects[0], stored);
    }
    assert_eq!(ledger.changes(vec![(at("7", None), status(1))], 10, now).changes.len(), 1);
}

#[test]
fn an_object_made_anew_is_not_taken_for_the_old_one() {
    let mut ledger = Ledger::<NatMapping>::default();
    ledger.wrote(NatMapping::clone(&at("600", Some(1))));
    let mut anew = at("5", None);
    Arc::make_mut(&mut anew).metadata.uid = Some("another".into());
    let mut objects = [anew.clone()];
    ledger.overlay([&mut objects, &mut []]);
    assert_eq!(objects[0], anew);
}

#[test]
fn failures_hold_an_object_back_for_longer_and_longer() {
    let now = Instant::now();
    let mut ledger = Ledger::<NatMapping>::default();
    let first = ledger.failed(&*at("5", None), Failure::Refused, now);
    let second = ledger.failed(&*at("5", None), Failure::Refused, now);
    assert_eq!((first - now, second - now), (BACKOFF.0, 2 * BACKOFF.0));
    let todo = ledger.changes(vec![(at("9", None), status(1))], 10, now);
    assert_eq!((todo.changes.len(), todo.next), (0, Some(second)));
    assert_eq!(ledger.changes(vec![(at("9", None), status(1))], 10, second).changes.len(), 1);
    assert_eq!(backoff(1000), BACKOFF.1);
}

/// Else a controller that runs for a year remembers every object that ever failed, and an object made anew waits for its predecessor's sake.
#[test]
fn failures_are_forgotten_with_their_object() {
    let now = Instant::now();
    let mut ledger = Ledger::<NatMapping>::default();
    let mut other = at("5", None);
    Arc::make_mut(&mut other).metadata.name = Some("vm04".into());
    for _ in 0..9 {
        ledger.failed(&*at("5", None), Failure::Refused, now);
        ledger.failed(&*other, Failure::Refused, now);
    }
    ledger.overlay([&mut [other.clone()], &mut []]);
    assert_eq!(
        ledger.changes(vec![(at("9", None), status(1))], 10, now).changes.len(),
        1,
        "gone, and made anew"
    );
    assert_eq!(ledger.changes(vec![(other, status(1))], 10, now).changes, [], "still there");
    assert_eq!(ledger.failed(&*at("9", None), Failure::Refused, now) - now, BACKOFF.0);
}

#[test]
fn a_conflict_is_over_when_the_newer_object_is_here() {
    let now = Instant::now();
    let mut ledger = Ledger::<NatMapping>::default();
    ledger.failed(&*at("5", None), Failure::Conflict, now);
    assert_eq!(ledger.changes(vec![(at("5", None), status(1))], 10, now).changes, []);
    assert_eq!(ledger.changes(vec![(at("6", None), status(1))], 10, now).changes.len(), 1);
}

#[test]
fn a_user_who_waits_is_served_before_a_big_job() {
    let ledger = Ledger::<NatMapping>::default();
    let mut stale = at("5", Some(2));
    Arc::make_mut(&mut stale).metadata.name = Some("big-job".into());
    let mut changed = status(2);
    changed.gateway = Some("node-b".into());
    let mut jobs: Vec<_> = std::iter::repeat_n((stale, changed), 5).collect();
    jobs.push((at("5", Some(1)), status(2)));
    let now = Instant::now();
    let todo = ledger.changes(jobs, 2, now);
    assert_eq!(todo.changes[0].object.metadata.name.as_deref(), Some("vm03"));
    assert_eq!((todo.changes.len(), todo.next), (2, Some(now)));
}
