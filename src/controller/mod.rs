//! Writes the status of networks and mappings, and nothing else.

pub mod aggregate;
pub mod gather;
pub mod heartbeat;
pub mod leader;
pub mod seen;
#[cfg(test)]
pub(crate) mod testing;
pub mod version;
