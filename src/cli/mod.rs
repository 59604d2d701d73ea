//! What people type.

pub mod crd;
