//! The lab measures right: with rules written by hand everything comes through, and without them each in its way does not.

use std::fs;

use crate::lab::dual::{DNS, GATEWAY, SOURCE, VIRTUAL_WEB, WEB, at};
use crate::lab::services::FtpMode;
use crate::lab::{Dual, seconds, wait_until};

/// FTP, TFTP and SIP with helpers or without, whole-address translation with its mirror, and a fence that knows nothing but states.
fn rules(dual: &Dual, helpers: bool) {
    for (tool, n) in [("iptables", 0), ("ip6tables", 1)] {
        let (dialled, target) = (VIRTUAL_WEB[n], WEB[n]);
        let helpers = [("tcp", 21, "ftp"), ("udp", 69, "tftp")]
            .iter()
            .filter(|_| helpers)
            .map(|(p, port, name)| format!("-A PREROUTING -d {dialled} -p {p} -m {p} --dport {port} -j CT --helper {name}\n"));
        let text = format!(
            "*raw\n{}COMMIT\n*nat\n-A PREROUTING -d {dialled} -p tcp -m tcp --dport 21 -j DNAT --to-destination {target}\n\
             -A PREROUTING -d {dialled} -p udp -m udp --dport 69 -j DNAT --to-destination {target}\n\
             -A PREROUTING -d {dialled} -p tcp -m tcp --dport 80 -j DNAT --to-destination {target}\n\
             -A POSTROUTING -o eth1 -m conntrack --ctstate DNAT -j MASQUERADE\nCOMMIT\n\
             *mangle\n-A FORWARD -i eth1 -m conntrack --ctstate NEW -j DROP\n-A FORWARD -o eth1 -m conntrack --ctstate NEW ! --ctstate DNAT -j DROP\nCOMMIT\n",
            helpers.collect::<String>()
        );
        fs::write(
            "/run/lab/by-hand",
            text.replace("--ctstate NEW ! --ctstate DNAT", "--ctstate NEW -m conntrack ! --ctstate DNAT"),
        )
        .unwrap();
        dual.gateway
            .sh(&format!("{tool}-{}-restore </run/lab/by-hand", dual.backend.name()));
    }
}

ways! {
    /// Neighbours answer each other in both families; what is behind routers is reached by routes; nobody has the virtual address.
    fn the_lab_is_what_it_says(dual) {
        for n in [0, 1] {
            assert!(dual.client.echoes(GATEWAY[n]) && dual.client.echoes(DNS[n]), "outside, family {n}");
            assert_eq!(dual.gateway.tcp(&at(WEB[n], 80)).expect("inside").server, "web");
            assert_eq!(dual.gateway.udp(&at(WEB[n], 80)).expect("inside").0, "web");
            assert_eq!(dual.client.tcp(&at(DNS[n], 53)).expect("the internet").server, "dns");
            assert!(!dual.client.ping(VIRTUAL_WEB[n]) && !dual.client.ping(SOURCE[n]), "virtual");
        }
        dual.gateway.set("ipv4/ip_forward", "1");
        dual.client.sh("ip route add 192.168.200.0/24 via 192.168.100.2 && ip route add fd00:200::/64 via fd00:100::2");
        for n in [0, 1] {
            wait_until(seconds(10), "plain routing, which a fence has to stop", || dual.client.tcp(&at(WEB[n], 80)).is_some());
        }
    }

    /// Each of the real clients gets through where the kernel helps, and does not where it does not.
    fn real_clients_tell_whether_a_helper_is_at_work(dual) {
        let _servers = [dual.web.ftp_server(), dual.web.tftp_server()];
        for address in WEB {
            assert_eq!(dual.gateway.ftp(address, FtpMode::Epsv).expect("FTP without anything between"), "web");
            assert_eq!(dual.gateway.tftp(address).expect("TFTP without anything between"), "web");
        }
        dual.gateway.set("ipv4/ip_forward", "1");
        for virtual_at in VIRTUAL_WEB {
            dual.gateway.sh(&format!("ip neigh add proxy {virtual_at} dev eth0"));
        }
        dual.gateway.sh(&format!("ip route add {}/32 dev lo", VIRTUAL_WEB[0]));
        for helpers in [false, true] {
            rules(dual, helpers);
            let expected = helpers.then(|| "web".to_owned());
            let [v4, v6] = VIRTUAL_WEB;
            for virtual_at in VIRTUAL_WEB {
                assert_eq!(dual.client.tcp(&at(virtual_at, 80)).expect("needs no helper").server, "web");
                assert_eq!(dual.client.tftp(virtual_at), expected, "{virtual_at}");
                for passive in [true, false] {
                    assert_eq!(dual.client.lftp(virtual_at, passive), expected, "lftp, passive: {passive}");
                }
            }
            for mode in FtpMode::ALL {
                assert_eq!(dual.client.ftp(v4, mode), expected, "{mode:?}");
            }
            for mode in FtpMode::IPV6 {
                assert_eq!(dual.client.ftp(v6, mode), expected, "{mode:?}");
            }
            dual.gateway.forget_flows();
            for tool in ["iptables", "ip6tables"] {
                for table in ["raw", "nat", "mangle"] {
                    dual.gateway.sh(&format!("{tool}-{} -t {table} -F", dual.backend.name()));
                }
            }
        }
    }
}
