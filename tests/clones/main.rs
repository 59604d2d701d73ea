//! Closed networks with identical prefixes, machines and gateway addresses, on one gateway at the same time: each is reached, each leaves, under addresses
//! of its own, and none hears of another.

#![allow(clippy::needless_for_each, clippy::duplicated_attributes)]
#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)] // a lab that cannot go on has to end there, saying so

#[path = "../lab/mod.rs"]
#[macro_use]
mod lab;

/// A test `NAME::VARIANT` for each of the variants, which are shapes of the gateway in [`shapes`].
macro_rules! clones {
    ($($(#[$about:meta])* fn $name:ident($shape:ident) in [$($variant:ident),+] $body:block)*) => {$(
        mod $name {
            $(
                #[test]
                fn $variant() {
                    let path = concat!(module_path!(), "::", stringify!($variant));
                    $crate::lab::isolated($crate::lab::in_binary(path), || super::$name($crate::shapes::$variant()));
                }
            )+
        }

        $(#[$about])*
        fn $name($shape: $crate::lab::Shape) $body
    )*};
}

mod apart;
mod life;
mod many;
mod marks;
mod traffic;
mod ways;

/// Gateways. Each setting meets each other one with either tool in some of them.
mod shapes {
    use crate::lab::{Backend, Inside, Pool, Shape};

    pub(crate) fn nft_node() -> Shape {
        Shape::node(Backend::Nft)
    }

    pub(crate) fn legacy_node() -> Shape {
        Shape {
            strict: true,
            connected: true,
            ..Shape::node(Backend::Legacy)
        }
    }

    pub(crate) fn nft_router() -> Shape {
        Shape::router(Backend::Nft)
    }

    pub(crate) fn legacy_router() -> Shape {
        Shape {
            connected: false,
            ..Shape::router(Backend::Legacy)
        }
    }

    /// A node whose clones share a pool, with netfilter on its bridges, and which does not reflect marks.
    pub(crate) fn nft_shared() -> Shape {
        Shape {
            pool: Pool::Shared,
            strict: true,
            reflect: false,
            default_route: false,
            ..Shape::node(Backend::Nft)
        }
    }

    pub(crate) fn legacy_cables() -> Shape {
        Shape {
            inside: Inside::Cables,
            pool: Pool::Own,
            ..Shape::router(Backend::Legacy)
        }
    }
}
