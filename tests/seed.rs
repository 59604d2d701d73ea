//! The seed experiment with traffic: what a mapping lets through, and that nothing else passes.

mod lab;

use lab::{Backend, Seed, Snapshot, isolated};

/// What the experiment began with: nobody answers for the address, and the segments do not reach each other.
#[test]
fn before_anything_the_virtual_address_is_silent() {
    isolated("before_anything_the_virtual_address_is_silent", || {
        let seed = Seed::new(Backend::Nft).with_foreign_rules();
        assert!(seed.vm01.ping("192.168.100.2"), "neighbours in segment A");
        assert!(seed.vm03.ping("192.168.200.2"), "neighbours in segment B");
        assert_eq!(seed.vm02.tcp("192.168.200.3:80").unwrap().server, "vm03");
        assert!(!seed.vm01.ping("192.168.100.3"));
        assert!(!seed.vm01.ping("192.168.200.3"));
        let before = Snapshot::of(&seed.vm02);
        before.assert_same(&Snapshot::of(&seed.vm02));
        seed.vm02.sh("ip route add 203.0.113.0/24 dev eth0");
        assert_ne!(before, Snapshot::of(&seed.vm02));
    });
}
