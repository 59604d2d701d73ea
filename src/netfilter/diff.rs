//! The difference between a desired and an observed table, as whole chains to replace.
