//! Whether tables are still as they were read: what spares an idle agent to read them again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use stagenet::host::linux::BackendChoice;
use stagenet::host::{Host as _, HostEvent};
use stagenet::netfilter::{Family, Table};

use crate::lab::isolated;
use crate::{FENCE, World, both, host, next, sh};

const AT: (Family, Table) = (Family::V4, Table::Mangle);

#[test]
fn a_table_that_was_read_since_the_listener_began_is_read_no_more_until_somebody_changes_one() {
    isolated(
        "unchanged::a_table_that_was_read_since_the_listener_began_is_read_no_more_until_somebody_changes_one",
        || {
            let world = World::new();
            world.run(async {
                let mut deaf = host(BackendChoice::Nft);
                deaf.restore(AT.0, FENCE).await.unwrap();
                deaf.read_table(AT.0, AT.1, None).await.unwrap();
                assert!(!deaf.tables_told().await.unwrap(), "nobody listens");
                let _late = deaf.events();
                assert!(!deaf.tables_told().await.unwrap(), "it was read before the listener began");

                let mut host = host(BackendChoice::Nft);
                let mut events = host.events();
                host.read_table(AT.0, AT.1, None).await.unwrap();
                assert!(host.tables_told().await.unwrap(), "nothing has happened since");
                sh("iptables-nft -t mangle -F SNET-FWD");
                let told = next(&mut events, 10_000, |e| matches!(e, HostEvent::Tables { .. })).await;
                assert!(told.is_some());
                // The listener tells first and takes note then.
                for _ in 0..100 {
                    if host.tables_told().await.unwrap() {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                panic!("what was told counts as unheard of");
            });
        },
    );
}

#[test]
fn a_change_of_ours_is_found_and_what_others_do_elsewhere_is_none() {
    isolated("unchanged::a_change_of_ours_is_found_and_what_others_do_elsewhere_is_none", || {
        both(|world, backend| {
            let tool = if backend == BackendChoice::Nft {
                "iptables-nft"
            } else {
                "iptables-legacy"
            };
            let mut host = host(backend);
            world.run(async {
                host.restore(AT.0, FENCE).await.unwrap();
                let seen = host.read_table(AT.0, AT.1, None).await.unwrap();
                let known = BTreeMap::from([(AT, &seen)]);
                let none = BTreeSet::new();
                assert_eq!(host.changed_tables(&known).await.unwrap(), none);
                sh("ip link set lo up; ping -c 1 127.0.0.1");
                assert_eq!(host.changed_tables(&known).await.unwrap(), none, "policies have counted packets");
                sh(&format!(
                    "{tool} -t filter -A INPUT -j RETURN; {tool} -t mangle -A FORWARD -j RETURN"
                ));
                assert_eq!(host.changed_tables(&known).await.unwrap(), none, "others' rules");
                for _ in 0..2 {
                    sh(&format!("{tool} -t mangle -I SNET-FWD -j RETURN"));
                    for _ in 0..2 {
                        assert_eq!(host.changed_tables(&known).await.unwrap(), BTreeSet::from([AT]));
                    }
                    sh(&format!("{tool} -t mangle -D SNET-FWD 1"));
                    assert_eq!(host.changed_tables(&known).await.unwrap(), none, "as it was");
                }
            });
            sh(&format!("{tool} -t mangle -F; {tool} -t mangle -X; {tool} -t filter -F"));
        });
    });
}
