//! Kernel labs: each test runs in a world of its own, on the real kernel, and leaves nothing behind.
//!
//! [`isolated`] starts the test binary once more, for that one test, inside fresh network, mount and process namespaces. What the
//! test makes there (namespaces, interfaces, rules, processes, files below /run and /tmp) ends with it, however it ends. So labs can run
//! side by side, and twice.
//!
//! Labs speak in packets: [`Ns::tcp`] and [`Ns::ping`] are what people do, and snapshots compare what an administrator would see.
#![allow(dead_code, unreachable_pub, unused_imports, unused_macros)] // every test binary uses its own part of this
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, clippy::format_collect)] // a lab that cannot be built has to end there, saying so
#![allow(missing_docs)]

/// A test `NAME::nft` and a test `NAME::legacy` out of a function that is given the seed's hosts.
#[allow(unused_macros)]
macro_rules! labs {
    ($($(#[$about:meta])* fn $name:ident($seed:ident) $body:block)*) => {$(
        mod $name {
            use crate::lab::{Backend, Seed, in_binary, isolated};

            #[test]
            fn nft() {
                isolated(in_binary(concat!(module_path!(), "::nft")), || super::$name(&Seed::new(Backend::Nft)));
            }

            #[test]
            fn legacy() {
                isolated(in_binary(concat!(module_path!(), "::legacy")), || super::$name(&Seed::new(Backend::Legacy)));
            }
        }

        $(#[$about])*
        fn $name($seed: &crate::lab::Seed) $body
    )*};
}

mod agent;
mod api;
pub mod bridge;
pub mod clones;
mod crowded;
pub mod dual;
mod escapes;
mod frames;
mod frames6;
mod killer;
mod net;
mod prober;
mod probers;
mod seed;
pub mod services;
mod snapshot;
mod steady;
mod talk;
mod world;

pub use agent::{Agent, BINARY, stagenet};
pub use api::{Api, isolated_with_api, without_api};
pub use clones::{Clones, Inside, Pool, Shape};
pub use crowded::{crowd, heard, last_heard};
pub use dual::{Dual, Wiring};
pub use escapes::Escapes;
pub use frames::{hopeless, packets};
pub use frames6::Frames6;
pub use killer::{End, killed_at};
pub use net::{Ns, Ran, bridge, command, veth};
pub use prober::{Prober, Witness, fall_silent, frames6, marked};
pub use probers::{INSIDE_MAC, OUTSIDE_MAC, Probers};
pub use seed::{Backend, Manifests, Seed, VIP, VIP_80, VIP6, VIP6_80, mapping, network};
pub use snapshot::Snapshot;
pub use steady::{Dialler, Steady};
pub use talk::{Conversation, Server};
pub use world::{isolated, skipped};

use std::time::{Duration, Instant};

/// Waits until `found` gives something, asking every 20 ms; after `bound` the test fails with `what`.
pub fn wait_for<T>(bound: Duration, what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(it) = found() {
            return it;
        }
        assert!(start.elapsed() < bound, "waited {bound:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until `holds`; after `bound` the test fails with `what`.
pub fn wait_until(bound: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    wait_for(bound, what, || holds().then_some(()));
}

/// What libtest calls the test at a path that `module_path!` gave: the same without the name of the test binary.
pub fn in_binary(path: &str) -> &str {
    path.split_once("::").map_or(path, |(_, rest)| rest)
}

/// Seconds, for bounds.
pub const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}
