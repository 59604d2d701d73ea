//! Whether an object was deleted by somebody who meant it, or went with the definition of its kind.
//!
//! When a `CustomResourceDefinition` is deleted the API server deletes all its objects, and tells of each as of any other that is deleted. Whoever deletes a definition to put
//! another one in its place (`kubectl replace --force`, a chart that is removed and installed anew) means no machine and no fence. So whoever is told of a deletion asks for the definition: while it is
//! being deleted, is gone, or is younger than what was deleted, the API is not whole, and what it says of that kind does not count.

use std::time::{Duration, Instant};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::jiff::Timestamp;
use kube::api::ObjectMeta;
use kube::{Api, Client, Resource};
use tracing::warn;

use crate::telemetry::chain;

/// How often an API server that does not answer is asked before the deletion is doubted, the pause in between, and how long one answer may take.
const ATTEMPTS: usize = 3;
const PAUSE: Duration = Duration::from_millis(300);
const TIMEOUT: Duration = Duration::from_secs(2);
/// For how long an answer counts: thousands of objects may be deleted one by one. A definition may be deleted the moment after it was asked for; one that cannot be asked for
/// will not be at once.
const FRESH: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));
/// How often a definition is asked for while something is held for its sake.
pub const ASK: Duration = Duration::from_secs(5);

/// How a definition stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is there, and was so when the object was.
    Whole,
    /// It is being deleted, or gone, or younger than the object.
    Broken,
    /// It cannot be asked for.
    Unknown,
}

/// Asks for the definition of one kind.
pub struct Definition {
    api: Api<CustomResourceDefinition>,
    name: String,
    /// When it was last answered for, and how.
    last: Option<(Instant, Found)>,
}

/// What the API server says.
enum Found {
    There(Box<ObjectMeta>),
    Nowhere,
    NoAnswer,
}

impl Definition {
    /// The definition of `K`.
    pub fn of<K: Resource>(client: &Client) -> Self
    where
        K::DynamicType: Default,
    {
        let of = K::DynamicType::default();
        Self {
            api: Api::all(client.clone()),
            name: format!("{}.{}", K::plural(&of), K::group(&of)),
            last: None,
        }
    }

    /// How the definition stands for an object that was created at `created`. Who may not ask takes it for whole.
    pub async fn standing(&mut self, created: Option<Timestamp>) -> Standing {
        let fresh = self.last.take_if(|(answered, found)| {
            let fresh = if matches!(found, Found::NoAnswer) { FRESH.1 } else { FRESH.0 };
            answered.elapsed() < fresh
        });
        let known = if let Some(known) = fresh {
            known
        } else {
            let found = self.ask().await;
            (Instant::now(), found)
        };
        let standing = match &known.1 {
            Found::There(definition) if is_of(definition, created) => Standing::Whole,
            Found::There(_) | Found::Nowhere => Standing::Broken,
            Found::NoAnswer => Standing::Unknown,
        };
        self.last = Some(known);
        standing
    }

    async fn ask(&self) -> Found {
        let object = format!("CustomResourceDefinition {}", self.name);
        for attempt in 1..=ATTEMPTS {
            let error = match tokio::time::timeout(TIMEOUT, self.api.get_metadata(&self.name)).await {
                Ok(Ok(found)) => return Found::There(Box::new(found.metadata)),
                Ok(Err(kube::Error::Api(answer))) if answer.is_not_found() => return Found::Nowhere,
                Ok(Err(kube::Error::Api(answer))) if answer.is_forbidden() => {
                    warn!(object, error = %answer.message, "may not be asked for; deletions are taken as they are told");
                    return Found::There(Box::default());
                }
                Ok(Err(error)) => chain(&error),
                Err(_) => format!("no answer within {TIMEOUT:?}"),
            };
            if attempt == ATTEMPTS {
                warn!(object, error, "cannot be asked for; deletions are doubted until it can");
            } else {
                tokio::time::sleep(PAUSE).await;
            }
        }
        Found::NoAnswer
    }
}

/// Whether an object that was created then may be one of this definition as it stands.
fn is_of(definition: &ObjectMeta, created: Option<Timestamp>) -> bool {
    let defined = definition.creation_timestamp.as_ref().map(|time| time.0);
    let older = defined.zip(created).is_some_and(|(defined, created)| created < defined);
    definition.deletion_timestamp.is_none() && !older
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    #[test]
    fn a_definition_that_goes_or_is_younger_than_the_object_is_not_the_objects() {
        let at = |second| Timestamp::from_second(second).ok();
        let mut definition = ObjectMeta {
            creation_timestamp: at(100).map(Time),
            ..ObjectMeta::default()
        };
        assert!(is_of(&definition, at(100)) && is_of(&definition, at(200)) && is_of(&definition, None));
        assert!(!is_of(&definition, at(99)), "it has been made anew since");
        definition.deletion_timestamp = at(300).map(Time);
        assert!(!is_of(&definition, at(200)));
    }
}
