//! In which pages metrics are documented.

/// Metrics that belong together: one page of the documentation, `docs/metrics/NAME.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// Name of the page.
    pub name: &'static str,
    /// What they tell, for the index.
    pub tells: &'static str,
}

/// Passes over the kernel.
pub const KERNEL: Group = Group {
    name: "kernel",
    tells: "whether the node's kernel is as planned, since when, how long it takes, and who undoes it",
};
/// What of the objects is in force.
pub const MAPPINGS: Group = Group {
    name: "mappings",
    tells: "how many mappings and networks a node serves, and how many it does not",
};
/// Packets and connections.
pub const TRAFFIC: Group = Group {
    name: "traffic",
    tells: "what was denied, what flows, how full the connection table is, and the page `/counters`",
};
/// Conditions of the node.
pub const CONDITIONS: Group = Group {
    name: "conditions",
    tells: "what preflight found on the node: the conditions of its GatewayNode",
};
/// The way to the API server.
pub const CLUSTER: Group = Group {
    name: "cluster",
    tells: "whether the agent reaches the API server and can read what it is told",
};
/// The controller.
pub const CONTROLLER: Group = Group {
    name: "controller",
    tells: "what is Ready in the whole cluster, by reason, and whether the controller works",
};

/// All groups, in the order in which they are documented.
pub const GROUPS: &[&Group] = &[&KERNEL, &MAPPINGS, &TRAFFIC, &CONDITIONS, &CLUSTER, &CONTROLLER];
