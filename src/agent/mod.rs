//! The agent: one task that owns the kernel.
