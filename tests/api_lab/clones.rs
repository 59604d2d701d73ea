//! Networks with the same inside, through Kubernetes.

use crate::lab::{self, Api, Backend, Ns, VIP, bridge, isolated_with_api, seconds, wait_until};
use crate::{Cluster, controller};

/// A network with the inside that all clones have, behind that interface of the gateways.
pub(crate) fn network(name: &str, interface: &str) -> String {
    lab::network(name, "192.168.100.0/24", "192.168.200.0/24", "")
        .replace("nodeSelector: {}", "nodeSelector: {matchLabels: {stagenet.dev/gateway: \"true\"}}")
        .replace(
            "interface: eth1\n",
            &format!("interface: {interface}\n    gatewayAddresses: [192.168.200.9]\n"),
        )
}

/// Two networks with the same inside: the controller gives each an identifier, which it keeps; both serve, and one comes and goes beside the other.
#[test]
fn clones_are_told_apart_for_their_lives() {
    isolated_with_api("clones::clones_are_told_apart_for_their_lives", |bin| {
        let mut c = Cluster::start(bin, Backend::Nft);
        let twin = Ns::new("twin");
        bridge::add(&c.seed.vm02, "eth2");
        bridge::attach(&c.seed.vm02, "eth2", "to-twin", &twin, "eth0");
        twin.sh("ip addr add 192.168.200.3/24 dev eth0 && ip route add default via 192.168.200.9");
        let _server = twin.serve(80);
        let make = |api: &Api, network: &str, name: &str, virtual_at: &str| {
            api.apply(network);
            api.apply(&lab::mapping(
                name,
                if name == "vm03" { "segment-b" } else { "segment-c" },
                virtual_at,
                "192.168.200.3",
                "",
            ));
            api.wait_ready_mapping(name);
        };
        let isolation = |api: &Api, network: &str| {
            ["identifier", "zone"].map(|field| api.field(&format!("snet/{network}"), &format!(".status.isolation.{field}")))
        };
        let call = |at: &str, server: &str| {
            let call = c.seed.vm01.tcp(&format!("{at}:80")).expect("Ready means that traffic flows");
            assert_eq!(call.server, server, "{at}");
            call
        };
        make(&c.api, &network("segment-b", "eth1"), "vm03", VIP);
        assert_eq!(isolation(&c.api, "segment-b"), ["", ""], "nobody shares its addresses yet");
        let mut first = call(VIP, "vm03");
        make(&c.api, &network("segment-c", "eth2"), "twin", "192.168.100.4");
        let given = ["segment-b", "segment-c"].map(|name| isolation(&c.api, name));
        let [[one, zero], [two, zone]] = &given;
        assert!(
            !one.is_empty() && one != two && two == zone && zero == "0",
            "who was there first keeps zone 0: {given:?}"
        );
        c.api.wait_ready_mapping("vm03");
        let mut second = call("192.168.100.4", "twin");
        assert!(
            first.works() && call(VIP, "vm03").works(),
            "the flow that was there before the clone"
        );
        assert!(twin.tcp_is_dropped("192.168.100.1:80"));

        c.controller.stop("TERM");
        c.controller = controller(&c.api, &c.kubeconfigs[0]);
        c.api
            .kubectl("patch natmapping/twin --type=merge -p '{\"spec\":{\"ports\":[{\"protocol\":\"TCP\",\"port\":80}]}}'");
        c.api.wait_ready_mapping("twin");
        assert_eq!(
            ["segment-b", "segment-c"].map(|name| isolation(&c.api, name)),
            given,
            "after the controller's restart"
        );
        assert!(first.works() && second.works());

        c.api.kubectl("delete natmapping/twin snet/segment-c");
        wait_until(seconds(20), "the rules of the clone to go", || {
            !c.seed.rules().contains("segment-c")
        });
        assert!(second.is_cut() && first.works(), "one goes, and the other stays");
        make(&c.api, &network("segment-c", "eth2"), "twin", "192.168.100.4");
        assert_eq!(call("192.168.100.4", "twin").server, "twin");
        assert_eq!(isolation(&c.api, "segment-b"), given[0]);
        assert!(first.works());
    });
}
