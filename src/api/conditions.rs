//! Condition arithmetic: pure, in one place.
