//! Every way through a gateway, standalone, with real servers and clients over both families: prefixes, from inside to chosen servers, hairpin, IPv6,
//! protocols that need a helper, and paths of different MTU. Each also shows what must not pass.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::format_collect,
    clippy::unnecessary_wraps,
    clippy::duplicated_attributes
)]

/// A test a variant of a lab.
macro_rules! lab_variants {
    ($name:ident, $($variant:ident: $backend:ident, $wiring:ident);+) => {
        mod $name {
            use crate::lab::{Backend, Dual, Wiring, in_binary, isolated};
            $(
                #[test]
                fn $variant() {
                    isolated(in_binary(concat!(module_path!(), "::", stringify!($variant))), || {
                        super::$name(&Dual::new(Backend::$backend, Wiring::$wiring));
                    });
                }
            )+
        }
    };
}

/// Tests `NAME::nft` (a bridge inside that passes iptables) and `NAME::legacy` (a cable inside) out of a function that is given the hosts.
macro_rules! ways {
    ($($(#[$about:meta])* fn $name:ident($dual:ident) $body:block)*) => {$(
        lab_variants!($name, nft: Nft, Filtered; legacy: Legacy, Cable);
        $(#[$about])*
        fn $name($dual: &crate::lab::Dual) $body
    )*};
}

/// The same with a bridge inside, in both tools, whether or not what is bridged passes iptables.
macro_rules! bridges {
    ($($(#[$about:meta])* fn $name:ident($dual:ident) $body:block)*) => {$(
        lab_variants!(
            $name,
            nft_filtered: Nft, Filtered;
            nft_unfiltered: Nft, Unfiltered;
            legacy_filtered: Legacy, Filtered;
            legacy_unfiltered: Legacy, Unfiltered
        );
        $(#[$about])*
        fn $name($dual: &crate::lab::Dual) $body
    )*};
}

#[allow(unused_macros)]
#[macro_use]
#[path = "../lab/mod.rs"]
mod lab;
mod by_hand;
mod calls;
mod egress;
mod fence6;
mod ftp;
mod hairpin;
mod helpers;
mod inside;
mod ipv6;
mod mtu;
mod payloads;
mod prefixes;
mod twin;
