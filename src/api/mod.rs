//! The three kinds of group `stagenet.dev`, version `v1alpha1`, and the arithmetic of their conditions.
//!
//! Types here mirror the objects as they are stored: strings stay strings. What a string means is decided once, in
//! [`crate::plan::validate`]. No IO here.

pub mod conditions;
pub mod decode;
pub mod gatewaynode;
pub mod helper;
pub mod mapping;
mod namespace;
pub mod network;
pub mod reasons;
pub mod schema;
pub mod strict;

pub use gatewaynode::{GatewayNode, GatewayNodeSpec, GatewayNodeStatus};
pub use helper::{HelperName, HelperUse};
pub use mapping::{NatMapping, NatMappingSpec, NatMappingStatus};
pub use network::{StagingNetwork, StagingNetworkSpec, StagingNetworkStatus};

/// The API group of all kinds.
pub const GROUP: &str = "stagenet.dev";
/// The one served version.
pub const VERSION: &str = "v1alpha1";
