//! Bad luck that must not matter: with traffic running all the while, and somebody inside who tries every way out.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)] // a lab that cannot go on has to end there, saying so

#[path = "../lab/mod.rs"]
#[macro_use]
mod lab;
mod clones;
mod crowd;
mod killed;
mod removal;
mod second;
mod steps;
mod wishes;
