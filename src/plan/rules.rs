//! From networks and claims to typed netfilter rules.
