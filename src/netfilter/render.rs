//! Typed rules to `iptables-restore` input.
