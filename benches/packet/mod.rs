//! Gateways side by side, and packets through them.

pub mod flow;
pub mod opening;
pub mod rounds;
pub mod stream;
pub mod world;
