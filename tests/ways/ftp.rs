//! FTP with a real server and real clients: every way to make the data connection.

use crate::lab::dual::{DB, DNS, MAIL, PRODUCTION, VIRTUAL_DB, VIRTUAL_WEB, WEB, address, mapping, network};
use crate::lab::services::FtpMode;
use crate::lab::{Dual, Ns, bridge};

/// Only the control connection's port is mapped: the data connection passes by the helper or not at all.
const HELPED: &str = "ports: [{protocol: TCP, port: 21}]\nhelpers: [{name: ftp, port: 21}]";
const UNHELPED: &str = "ports: [{protocol: TCP, port: 21}]";
const ALLOWED: &str = "allowedHelpers: [ftp]\n";

/// How a client fetches from `host` by each way there is in its family, and what it gets.
fn fetched(client: &Ns, host: &str) -> Vec<(String, Option<String>)> {
    let modes: &[FtpMode] = if host.contains(':') { &FtpMode::IPV6 } else { &FtpMode::ALL };
    let curl = modes.iter().map(|mode| (format!("curl {mode:?} {host}"), client.ftp(host, *mode)));
    let lftp = [true, false].map(|passive| (format!("lftp {host}, passive: {passive}"), client.lftp(host, passive)));
    curl.chain(lftp).collect()
}

fn all_are(client: &Ns, host: &str, expected: Option<&str>, dual: &Dual) {
    for (how, got) in fetched(client, host) {
        assert_eq!(
            got.as_deref(),
            expected,
            "{how}\n{}\n{}",
            dual.rules(),
            dual.gateway.sh("conntrack -L; cat /proc/net/nf_conntrack_expect")
        );
    }
}

ways! {
    /// With the helper every way works in both families, whatever is done with sources; without it none does.
    fn data_connections_follow_where_the_helper_is_and_nowhere_else(dual) {
        let _servers = [dual.web.ftp_server(), dual.db.ftp_server()];
        dual.mappings("web", VIRTUAL_WEB, WEB, HELPED);
        dual.mappings("db", VIRTUAL_DB, DB, UNHELPED);
        for source in ["Masquerade", "Preserve"] {
            dual.network("", "", &format!("{ALLOWED}sourceTranslation: {source}"));
            dual.converge();
            for virtual_at in VIRTUAL_WEB {
                all_are(&dual.client, virtual_at, Some("web"), dual);
            }
        }
        for virtual_at in VIRTUAL_DB {
            // One client a way is enough to show that nothing comes through by accident.
            assert_eq!(dual.client.ftp(virtual_at, FtpMode::Epsv), None, "the client dials");
            assert_eq!(dual.client.ftp(virtual_at, FtpMode::Eprt), None, "the server dials");
        }
        assert_eq!(dual.client.ftp(VIRTUAL_DB[0], FtpMode::Pasv), None);
    }

    /// A whole address and a whole prefix: the address in the server's answer is the virtual one.
    fn whole_addresses_and_prefixes_have_helpers_too(dual) {
        let _servers = [dual.web.ftp_server(), dual.mail.ftp_server()];
        dual.network("", "", ALLOWED);
        dual.mappings("block", ["192.168.100.64/27", "fd00:100::40/123"], ["192.168.200.32/27", "fd00:200::20/123"], "helpers: [{name: ftp, port: 21}]");
        dual.mappings("mail", ["192.168.100.200", "fd00:100::c8"], MAIL, "helpers: [{name: ftp, port: 21}]");
        dual.converge();
        for n in [0, 1] {
            all_are(&dual.client, VIRTUAL_WEB[n], Some("web"), dual);
            all_are(&dual.client, ["192.168.100.200", "fd00:100::c8"][n], Some("mail"), dual);
        }
    }

    /// A server at another port has its helper there; what the network does not allow is refused.
    fn a_helper_has_to_be_allowed(dual) {
        let _servers = [dual.web.ftp_server(), dual.db.ftp_server()];
        dual.network("", "", "");
        dual.mappings("web", VIRTUAL_WEB, WEB, HELPED);
        dual.mappings("db", VIRTUAL_DB, DB, UNHELPED);
        let status = dual.half();
        for n in [4, 6] {
            status.assert_not_ready(&format!("web{n}"), &["allowedHelpers", "ftp"]);
            assert!(status.is_ready(&format!("db{n}")));
        }
        dual.network("", "", ALLOWED);
        dual.mappings("web", VIRTUAL_WEB, WEB, &HELPED.replace("port: 21}]\n", "port: 2121, targetPort: 21}]\n").replace("name: ftp, port: 21", "name: ftp, port: 2121"));
        dual.converge();
        for virtual_at in VIRTUAL_WEB {
            let host = if virtual_at.contains(':') { format!("[{virtual_at}]:2121") } else { format!("{virtual_at}:2121") };
            for mode in [FtpMode::Epsv, FtpMode::Eprt] {
                assert_eq!(dual.client.ftp(&host, mode).as_deref(), Some("web"), "{mode:?} at {host}");
            }
        }
    }

    /// Machines inside fetch from a server outside, which side Inside leads to.
    fn machines_inside_are_clients(dual) {
        let _server = dual.internet.ftp_server();
        dual.network(", sourceAddress: 192.168.100.250, sourceAddressIPv6: \"fd00:100::fa\"", "", ALLOWED);
        dual.mappings("web", VIRTUAL_WEB, WEB, "");
        dual.mappings("files", PRODUCTION, DNS, &format!("side: Inside\n{HELPED}"));
        dual.converge();
        for host in PRODUCTION {
            for ns in [&dual.web, &dual.db] {
                all_are(ns, host, Some("internet"), dual);
            }
        }
    }

    /// Two networks with the same prefixes and the same machine: each one's data connections are its own.
    fn clones_have_their_own_data_connections(dual) {
        let twin = Ns::new("twin");
        bridge::add(&dual.gateway, "eth2");
        bridge::attach(&dual.gateway, "eth2", "to-twin", &twin, "eth0");
        dual.gateway.set("ipv6/conf/eth2/proxy_ndp", "1");
        dual.gateway.set("ipv4/fwmark_reflect", "1");
        dual.gateway.set("ipv6/fwmark_reflect", "1");
        dual.gateway.sh("ip addr flush dev eth1");
        address(&twin, "eth0", WEB);
        for ns in [&dual.web, &twin] {
            ns.sh("ip route replace default via 192.168.200.254 && ip route replace default via fd00:200::fe");
        }
        let _servers = [dual.web.ftp_server(), twin.ftp_server()];
        let (inside, gateways) = ("192.168.200.0/24, \"fd00:200::/64\"", ", gatewayAddresses: [192.168.200.254, \"fd00:200::fe\"]");
        dual.network_of("192.168.100.64/26, \"fd00:100::/112\"", inside, ", sourceAddress: 192.168.100.100, sourceAddressIPv6: \"fd00:100::fa\"", gateways, ALLOWED);
        let outside = ["eth0", "192.168.100.128/25, \"fd00:100::1:0/112\"", ", sourceAddress: 192.168.100.250, sourceAddressIPv6: \"fd00:100::1:fa\""];
        dual.manifests.write("twin.yaml", &network("twin", outside, ["eth2", inside, gateways], ALLOWED));
        dual.mappings("web", VIRTUAL_WEB, WEB, HELPED);
        let twins = ["192.168.100.165", "fd00:100::1:41"];
        for (n, virtual_at) in twins.iter().enumerate() {
            let name = format!("twin{n}");
            dual.manifests.write(&format!("map-{name}.yaml"), &mapping("default", &format!("map-{name}"), "twin", virtual_at, WEB[n], HELPED));
        }
        dual.converge();
        for n in [0, 1] {
            all_are(&dual.client, VIRTUAL_WEB[n], Some("web"), dual);
            all_are(&dual.client, twins[n], Some("twin"), dual);
        }
    }
}
