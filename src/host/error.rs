//! What can go wrong with a host, classified: callers never look at texts.

use thiserror::Error;

/// A failed call.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum HostError {
    /// No tool, or not the variant asked for.
    #[error("finding {tool}: not on PATH; install the iptables package (both variants) or set PATH for the agent")]
    ToolMissing {
        /// Name of the tool.
        tool: String,
    },
    /// The kernel said EPERM or EACCES.
    #[error("{action}: not permitted; the agent needs NET_ADMIN and NET_RAW in the node's network namespace")]
    Denied {
        /// What was tried.
        action: String,
    },
    /// The xtables lock was not to be had in time.
    #[error("{action}: the xtables lock is held{}; nothing was changed, it is tried again", holder.as_ref().map(|h| format!(" by {h}")).unwrap_or_default())]
    LockHeld {
        /// What was tried.
        action: String,
        /// "COMMAND (pid N)" if it is known.
        holder: Option<String>,
    },
    /// The kernel or the tool refused a restore. Nothing of that table was changed.
    #[error("restoring {table}: line {line} was refused: {text}: {said}")]
    RestoreRejected {
        /// Table.
        table: String,
        /// Line of the restore input, from 1; 0 if the tool did not say.
        line: usize,
        /// That line.
        text: String,
        /// What the tool said.
        said: String,
    },
    /// A netlink request failed.
    #[error("{action}: {said}")]
    Netlink {
        /// What was tried, on what.
        action: String,
        /// The kernel's answer.
        said: String,
    },
    /// Anything else: a process that could not be run, did not end in time, or a file that could not be read.
    #[error("{action}: {said}")]
    Failed {
        /// What was tried, on what.
        action: String,
        /// What happened.
        said: String,
    },
}
