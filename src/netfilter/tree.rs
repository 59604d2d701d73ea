//! Dispatch trees that keep chains short however many addresses there are.
