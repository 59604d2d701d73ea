//! What the agent may do with two capabilities, and what it says with none.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::process::Command;

use stagenet::host::linux::BackendChoice;
use stagenet::host::{Host as _, HostError, HostEvent, Needs};
use stagenet::netfilter::{Family, Table};
use std::sync::Arc;

use stagenet::plan::{FlowPolicy, Sweep};

use crate::lab::isolated;
use crate::{FENCE, UNFENCE, World, chain, families, host, look, name, next, sh, undone, wanted};

/// Runs the named test once more with fewer privileges, in the world as it is.
fn again(test: &str, capabilities: &str) -> String {
    let program = std::env::current_exe().unwrap();
    let ran = Command::new("setpriv")
        .args(["--bounding-set", capabilities, "--inh-caps", capabilities, "--no-new-privs", "--"])
        .arg(program)
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env("STAGENET_HOST_AGAIN", capabilities)
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{said}");
    said
}

#[test]
fn two_capabilities_and_a_read_only_proc_sys_are_enough() {
    const NAME: &str = "privileges::two_capabilities_and_a_read_only_proc_sys_are_enough";
    if std::env::var_os("STAGENET_HOST_AGAIN").is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        assert!(
            fs::write("/proc/sys/net/ipv4/conf/eth1/forwarding", "1").is_err(),
            "/proc/sys is read-only"
        );
        return runtime.block_on(all_effects());
    }
    isolated(NAME, || {
        let world = World::new();
        // Not only for this test's sake: a container's directory for state and lock belongs to it.
        sh("mkdir -p /run/stagenet && mount -o bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys");
        again(NAME, "-all,+net_admin,+net_raw");
        drop(world);
    });
}

/// Every effect once, and every undoing.
async fn all_effects() {
    for backend in [BackendChoice::Nft, BackendChoice::Legacy] {
        let mut host = host(backend);
        let needs = Needs {
            outside: BTreeSet::from([name("eth0")]),
            inside: BTreeSet::from([name("eth1")]),
            ..Needs::default()
        };
        let findings = host.preflight(&needs).await.unwrap();
        assert!(
            findings
                .iter()
                .filter(|f| f.condition == "Permissions" || f.condition == "Backend")
                .all(|f| f.ok),
            "{findings:?}"
        );
        let mut events = host.events();
        host.restore(Family::V4, FENCE).await.unwrap();
        assert_eq!(host.read_table(Family::V4, Table::Mangle, None).await.unwrap().chains.len(), 2);
        host.change_links(&wanted()).await.unwrap();
        assert_eq!(host.read_links().await.unwrap().proxies.len(), 6);
        let eth0 = BTreeMap::from([(name("eth0"), BTreeSet::from([IpAddr::from([192, 168, 100, 9])]))]);
        assert_eq!(host.probe(&eth0).await.unwrap().len(), 1);
        host.announce(&BTreeMap::from([(
            name("eth0"),
            BTreeSet::from([IpAddr::from([192, 168, 100, 3])]),
        )]))
        .await
        .unwrap();
        host.sweep_flows(&Arc::new(FlowPolicy::default()), Sweep::default()).await.unwrap();
        let fence = BTreeSet::from([chain("FO-AABBCCDD")]);
        let counted = host.counters(Family::V4, Table::Mangle, &fence).await.unwrap();
        assert_eq!(counted[&chain("FO-AABBCCDD")].len(), 1);
        assert!(next(&mut events, 10_000, |e| *e == HostEvent::Links).await.is_some());
        host.change_links(&families::wanted()).await.unwrap();
        assert_eq!(host.read_links().await.unwrap().policy_rules.len(), 12);
        host.change_links(&undone(&families::wanted())).await.unwrap();
        host.change_links(&undone(&wanted())).await.unwrap();
        host.restore(Family::V4, UNFENCE).await.unwrap();
    }
}

#[test]
fn without_privileges_every_change_says_so() {
    const NAME: &str = "privileges::without_privileges_every_change_says_so";
    if std::env::var_os("STAGENET_HOST_AGAIN").is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(all_denied());
    }
    isolated(NAME, || {
        let world = World::new();
        sh("mkdir -p /run/stagenet");
        // Without an entry there is nothing that a sweep would have to be allowed.
        sh(
            "conntrack -I -p udp -t 300 -s 192.168.100.9 -d 192.168.100.3 --sport 5 --dport 53 -r 192.168.200.3 -q 192.168.100.9 \
            --reply-port-src 53 --reply-port-dst 5",
        );
        let before = look();
        again(NAME, "-all");
        assert_eq!(look(), before);
        drop(world);
    });
}

async fn all_denied() {
    let denied = |error: &HostError| matches!(error, HostError::Denied { .. });
    for backend in [BackendChoice::Nft, BackendChoice::Legacy] {
        let mut host = host(backend);
        let error = host.restore(Family::V4, FENCE).await.unwrap_err();
        assert!(denied(&error), "{error:?}");
        let errors = host.change_links(&wanted()).await.unwrap_err();
        assert!(errors.len() == wanted().len() + 1 && errors.iter().all(denied), "{errors:?}");
        let error = host
            .sweep_flows(&Arc::new(FlowPolicy::default()), Sweep::default())
            .await
            .unwrap_err();
        assert!(denied(&error), "{error:?}");
        let eth0 = BTreeMap::from([(name("eth0"), BTreeSet::from([IpAddr::from([192, 168, 100, 9])]))]);
        let error = host.probe(&eth0).await.unwrap_err();
        assert!(denied(&error), "{error:?}");
        let findings = host.preflight(&Needs::default()).await.unwrap();
        assert!(
            findings
                .iter()
                .any(|f| f.reason == "NotPermitted" && f.message.contains("NET_ADMIN and NET_RAW")),
            "{findings:?}"
        );
    }
}
