//! The parts of the comparison with kube-proxy.

pub mod objects;
pub mod probe;
pub mod subject;
