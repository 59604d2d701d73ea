//! One leader among the controller's replicas, by a Lease.
//!
//! The decision is pure ([`decide`]); [`Elector`] reads, writes and waits. What this promises:
//!
//! - Every write carries the resource version that was read, so of two replicas that try at once one gets a conflict.
//! - A Lease is taken from another holder only after it has not changed for its own duration by *this* process' clock. Clocks of
//!   different machines are never compared.
//! - A leader that could not renew for `renew_deadline`, measured from the start of its last successful renewal, stops being one by its own
//!   clock, whether or not the API server answers. `renew_deadline` is less than `duration`, so it stops before anybody may take over.
//!
//! What it does not promise: that no request of an old leader is still on its way when the new one starts. All that the
//! controller writes is status, computed from the same objects and guarded by resource versions, so such a request does no harm.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tracing::{debug, info, warn};

use crate::telemetry::object_key;

/// Name of the Lease.
pub const LEASE: &str = "stagenet-controller";

/// Times of the election. `retry < renew_deadline < duration`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long the Lease counts after its last change, whole seconds.
    pub duration: Duration,
    /// How long the leader goes on without a successful renewal.
    pub renew_deadline: Duration,
    /// Between two attempts, to renew or to acquire.
    pub retry: Duration,
}

impl Default for Timing {
    /// What Kubernetes' own controllers use.
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// Why this process does not lead any more.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Lost {
    /// Someone else holds the Lease.
    #[error("lost the leader lease to {0:?}")]
    To(String),
    /// It could not be renewed in time.
    #[error("could not renew the leader lease for {0:?}; whoever renews it next leads")]
    Expired(Duration),
}

/// The Lease as last seen to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    version: String,
    since: Instant,
}

/// What to do about the Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is none: create it.
    Create,
    /// It is free or has expired: take it.
    Take,
    /// It is ours: renew it.
    Renew,
    /// Someone else holds it.
    Follow,
}

/// Decides by the Lease, when it was last seen to change, and the clock.
pub fn decide(me: &str, lease: Option<&Lease>, changed: Instant, now: Instant) -> Step {
    let Some(lease) = lease else { return Step::Create };
    let spec = lease.spec.clone().unwrap_or_default();
    match spec.holder_identity.as_deref() {
        None | Some("") => Step::Take,
        Some(holder) if holder == me => Step::Renew,
        Some(_) if now.saturating_duration_since(changed) >= declared_duration(&spec) => Step::Take,
        Some(_) => Step::Follow,
    }
}

/// How long the holder says that its Lease counts. Without a usable number: the default.
fn declared_duration(spec: &LeaseSpec) -> Duration {
    let seconds = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0);
    seconds.map_or(Timing::default().duration, Duration::from_secs)
}

/// The Lease to write for `step`.
fn written(me: &str, namespace: &str, lease: Option<Lease>, step: Step, duration: Duration, now: Timestamp) -> Lease {
    let mut lease = lease.unwrap_or_else(|| Lease {
        metadata: ObjectMeta {
            name: Some(LEASE.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        spec: None,
    });
    let spec = lease.spec.get_or_insert_default();
    if step != Step::Renew {
        spec.acquire_time = Some(MicroTime(now));
        let taken = i32::from(step == Step::Take);
        spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(taken));
    }
    spec.holder_identity = Some(me.to_owned());
    spec.renew_time = Some(MicroTime(now));
    spec.lease_duration_seconds = Some(i32::try_from(duration.as_secs()).unwrap_or(i32::MAX).max(1));
    lease
}

/// What an attempt found.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Attempt {
    Leading,
    Following(String),
}

/// Takes part in the election.
pub struct Elector {
    leases: Api<Lease>,
    namespace: String,
    identity: String,
    timing: Timing,
    sighting: Option<Sighting>,
}

impl Elector {
    /// `identity` must differ between the replicas and should outlive a restart of the same one (a pod's name does both).
    pub fn new(client: Client, namespace: &str, identity: &str, timing: Timing) -> Self {
        Self {
            leases: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            identity: identity.to_owned(),
            timing,
            sighting: None,
        }
    }

    /// What logs call the Lease.
    fn object(&self) -> String {
        object_key("Lease", Some(&self.namespace), LEASE)
    }

    /// Returns once this process leads, with the moment from which `renew_deadline` counts.
    pub async fn acquire(&mut self) -> Instant {
        let mut leader = None;
        loop {
            let begun = Instant::now();
            match self.bounded_attempt().await {
                Ok(Attempt::Leading) => {
                    info!(object = self.object(), identity = self.identity, "leading");
                    return begun;
                }
                Ok(Attempt::Following(holder)) => {
                    if leader.as_ref() != Some(&holder) {
                        info!(object = self.object(), holder, "following: ready to take over");
                        leader = Some(holder);
                    }
                }
                Err(error) => warn!(object = self.object(), %error, "could not reach for the leader lease; trying again"),
            }
            tokio::time::sleep(self.timing.retry).await;
        }
    }

    /// Renews from `acquired` on until that fails for good.
    pub async fn hold(&mut self, acquired: Instant) -> Lost {
        let mut renewed = acquired;
        loop {
            let deadline = renewed + self.timing.renew_deadline;
            let next = (Instant::now() + self.timing.retry).min(deadline);
            tokio::time::sleep_until(next.into()).await;
            let begun = Instant::now();
            if begun >= deadline {
                return Lost::Expired(self.timing.renew_deadline);
            }
            match tokio::time::timeout_at(deadline.into(), self.bounded_attempt()).await {
                Ok(Ok(Attempt::Leading)) => renewed = begun,
                Ok(Ok(Attempt::Following(holder))) => return Lost::To(holder),
                Ok(Err(error)) => warn!(object = self.object(), %error, "could not renew the leader lease; trying again"),
                Err(_) => return Lost::Expired(self.timing.renew_deadline),
            }
        }
    }

    /// Gives the Lease away, so that the next leader need not wait for it to expire. Best effort: on failure it expires.
    pub async fn release(&mut self) {
        let give_away = async {
            let Some(mut lease) = self.leases.get_opt(LEASE).await? else {
                return Ok(());
            };
            if let Some(spec) = lease
                .spec
                .as_mut()
                .filter(|spec| spec.holder_identity.as_deref() == Some(self.identity.as_str()))
            {
                spec.holder_identity = None;
                spec.lease_duration_seconds = Some(1);
                self.leases.replace(LEASE, &PostParams::default(), &lease).await?;
                info!(object = self.object(), "released");
            }
            Ok::<(), kube::Error>(())
        };
        if !matches!(tokio::time::timeout(self.timing.retry, give_away).await, Ok(Ok(()))) {
            debug!(object = self.object(), "could not release the leader lease; it expires by itself");
        }
    }

    /// One attempt that a connection without answer cannot hold up for more than half of the deadline.
    async fn bounded_attempt(&mut self) -> Result<Attempt, AttemptError> {
        let limit = self.timing.renew_deadline / 2;
        tokio::time::timeout(limit, self.attempt())
            .await
            .map_err(|_| AttemptError::NoAnswer(limit))?
    }

    /// Reads, decides, writes. A conflict is no error: it means that somebody else was faster, and is read again next time.
    async fn attempt(&mut self) -> Result<Attempt, AttemptError> {
        let lease = self.leases.get_opt(LEASE).await?;
        let now = Instant::now();
        let version = lease.as_ref().and_then(|l| l.metadata.resource_version.clone()).unwrap_or_default();
        if self.sighting.as_ref().is_none_or(|seen| seen.version != version) {
            self.sighting = Some(Sighting { version, since: now });
        }
        let changed = self.sighting.as_ref().map_or(now, |seen| seen.since);
        let step = decide(&self.identity, lease.as_ref(), changed, now);
        let holder = lease.as_ref().and_then(|l| l.spec.as_ref()?.holder_identity.clone());
        if step == Step::Follow {
            return Ok(Attempt::Following(holder.unwrap_or_default()));
        }
        let wanted = written(&self.identity, &self.namespace, lease, step, self.timing.duration, Timestamp::now());
        match step {
            Step::Create => self.leases.create(&PostParams::default(), &wanted).await,
            _ => self.leases.replace(LEASE, &PostParams::default(), &wanted).await,
        }?;
        Ok(Attempt::Leading)
    }
}

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
enum AttemptError {
    #[error("no answer from the API server within {0:?}")]
    NoAnswer(Duration),
    #[error("{0}")]
    Api(#[from] kube::Error),
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn lease(holder: Option<&str>, seconds: Option<i32>) -> Lease {
        Lease {
            spec: Some(LeaseSpec {
                holder_identity: holder.map(Into::into),
                lease_duration_seconds: seconds,
                lease_transitions: Some(3),
                ..LeaseSpec::default()
            }),
            ..Lease::default()
        }
    }

    #[test]
    fn every_row_of_the_decision() {
        let changed = Instant::now();
        let after = |seconds| changed + Duration::from_secs(seconds);
        let decide = |lease: Option<&Lease>, now| decide("me", lease, changed, now);
        assert_eq!(decide(None, changed), Step::Create);
        assert_eq!(decide(Some(&Lease::default()), changed), Step::Take);
        assert_eq!(decide(Some(&lease(None, None)), changed), Step::Take);
        assert_eq!(decide(Some(&lease(Some(""), Some(15))), changed), Step::Take);
        assert_eq!(decide(Some(&lease(Some("me"), Some(15))), after(1000)), Step::Renew);
        assert_eq!(decide(Some(&lease(Some("other"), Some(30))), after(29)), Step::Follow);
        assert_eq!(decide(Some(&lease(Some("other"), Some(30))), after(30)), Step::Take);
        // No number, or no usable one: the default of 15 s, never at once.
        for seconds in [None, Some(0), Some(-5)] {
            assert_eq!(decide(Some(&lease(Some("other"), seconds)), after(14)), Step::Follow);
            assert_eq!(decide(Some(&lease(Some("other"), seconds)), after(15)), Step::Take);
        }
        // A clock that reads earlier than the sighting expires nothing.
        assert_eq!(
            super::decide("me", Some(&lease(Some("other"), Some(1))), after(60), changed),
            Step::Follow
        );
    }

    #[test]
    fn what_is_written() {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let spec = |lease, step| written("me", "ns", lease, step, Duration::from_secs(15), now).spec.unwrap();
        let created = spec(None, Step::Create);
        assert_eq!(created.lease_transitions, Some(0));
        assert_eq!(created.lease_duration_seconds, Some(15));
        let taken = spec(Some(lease(Some("other"), Some(30))), Step::Take);
        assert_eq!((taken.holder_identity.as_deref(), taken.lease_transitions), (Some("me"), Some(4)));
        assert_eq!(taken.acquire_time, Some(MicroTime(now)));
        let renewed = spec(Some(lease(Some("me"), Some(30))), Step::Renew);
        assert_eq!((renewed.acquire_time, renewed.lease_transitions), (None, Some(3)));
        assert_eq!(renewed.renew_time, Some(MicroTime(now)));
    }

    #[test]
    fn the_leader_stops_before_anybody_may_take_over() {
        let timing = Timing::default();
        assert!(timing.retry < timing.renew_deadline && timing.renew_deadline < timing.duration);
    }
}
