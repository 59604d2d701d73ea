//! What the netfilter labs need: random rule sets, the real tools, a gateway with three segments and hand-made packets.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

pub mod gateway;
pub mod random;
pub mod tool;
pub mod wire;
