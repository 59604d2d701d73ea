//! What the parts do together, told in objects and packets.

mod elect;
mod fields;
mod flows;
mod golden;
mod host;
mod isolation;
mod machines;
mod nobody;
mod packets;
mod ports;
mod tenancy;
mod verdicts;
