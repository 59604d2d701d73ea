//! A host in memory, with failure injection.
