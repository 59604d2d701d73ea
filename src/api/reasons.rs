//! Every reason and condition type, as fixed strings.
