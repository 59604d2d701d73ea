//! Whatever is wrong is named where it is wrong, and everything else keeps working.

#![allow(clippy::unwrap_used, clippy::panic, clippy::format_collect)]

#[macro_use]
#[path = "../lab/mod.rs"]
mod lab;
mod host;
mod manifests;
