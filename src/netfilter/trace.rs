//! A packet tracer over typed rules: what happens to this packet?
