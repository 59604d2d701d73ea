//! Paths with a narrow part: what is too big is answered with an error that means something to whom it reaches, and bulk goes through.

use crate::lab::dual::{CLIENT, DB, DNS, GATEWAY_INSIDE, MAIL, VIRTUAL_DB, VIRTUAL_MAIL, VIRTUAL_WEB, WEB, at};
use crate::lab::{Dual, seconds};

const BULK: u64 = 1 << 20;
const NARROW: u32 = 1400;

/// Makes the closed network narrow. The machine goes on telling its peers that it takes segments as on a wide one, so that only errors tell them.
fn narrow_inside(dual: &Dual) {
    dual.gateway.sh("ip link set eth1 mtu 1400");
    for (ns, [address, _]) in [(&dual.web, WEB), (&dual.db, DB)] {
        ns.sh(&format!(
            "ip link set eth0 mtu 1400 && ip route replace default via 192.168.200.2 advmss 1460 && ip route replace default via fd00:200::2 advmss 1440 && \
             ip route change 192.168.200.0/24 dev eth0 proto kernel scope link src {address} advmss 1460 && \
             ip -6 route replace fd00:200::/64 dev eth0 proto kernel metric 256 advmss 1440"
        ));
    }
}

/// The same between the router and the internet.
fn narrow_outside(dual: &Dual) {
    dual.router.sh("ip link set eth1 mtu 1400");
    dual.internet.sh(
        "ip link set eth0 mtu 1400 && ip route replace default via 203.0.113.1 advmss 1460 && \
         ip route replace default via 2001:db8:113::1 advmss 1440",
    );
}

fn bulk(dual: &Dual, from: &crate::lab::Ns, to: &str) {
    assert!(
        from.bulk(&at(to, 9000), BULK, seconds(10)),
        "bulk from {} to {to}\n{}",
        from.name(),
        dual.rules()
    );
}

/// The MSS in the SYN that the machine gets and in the answer that the client gets.
fn segment_sizes(dual: &Dual, n: usize) -> [String; 2] {
    let filter = ["tcp[13] & 2 != 0", "ip6[6] = 6 and ip6[53] & 2 != 0"][n];
    let mut answer = Vec::new();
    let asked = dual.web.watch("eth0", filter, || {
        answer = dual
            .client
            .watch("eth0", filter, || assert!(dual.client.tcp(&at(VIRTUAL_WEB[n], 80)).is_some()));
    });
    let size = |packets: &[String], flags: &str| {
        let packet = packets
            .iter()
            .find(|p| p.contains(flags))
            .unwrap_or_else(|| panic!("no {flags} in {packets:#?}"));
        packet.split_once("mss ").unwrap().1.split([',', ']']).next().unwrap().to_owned()
    };
    [size(&asked, "Flags [S],"), size(&answer, "Flags [S.],")]
}

ways! {
    /// A closed network narrower than outside: the client learns it from errors about the virtual address.
    fn a_narrow_inside_is_found_out(dual) {
        narrow_inside(dual);
        for ns in [&dual.web, &dual.db] {
            ns.bulk_server(9000);
        }
        dual.network("", "", "");
        dual.mappings("web", VIRTUAL_WEB, WEB, "sourceTranslation: Masquerade");
        dual.mappings("db", VIRTUAL_DB, DB, "sourceTranslation: Preserve");
        dual.converge();
        for (virtual_at, target) in [VIRTUAL_WEB, VIRTUAL_DB].concat().iter().zip([WEB, DB].concat()) {
            assert_eq!(dual.client.path_mtu(virtual_at), None, "nothing is known yet");
            let errors = dual.client.watch("eth0", "(icmp[0] = 3 and icmp[1] = 4) or (icmp6 and ip6[40] = 2)", || bulk(dual, &dual.client, virtual_at));
            let told = errors.iter().all(|e| e.contains("mtu 1400") && !e.contains(target));
            // What is quoted is printed for IPv4 only; that the client believes it says the same.
            let quoted = virtual_at.contains(':') || errors.iter().all(|e| e.contains(&format!("> {virtual_at}.9000")));
            assert!(!errors.is_empty() && told && quoted, "{virtual_at}: {errors:#?}");
            assert_eq!(dual.client.path_mtu(virtual_at), Some(NARROW));
            let whole = dual.client.ping_whole(virtual_at, 1500);
            assert!(whole.code != 0 && whole.said().contains("1400"), "{}", whole.said());
            assert_eq!(dual.client.ping_whole(virtual_at, 1400).code, 0, "what fits arrives");
        }
    }

    /// Outside narrower than the closed network: errors of the router there reach the machine, translated, for what it answers and for its own calls.
    fn a_narrow_outside_is_found_out(dual) {
        narrow_outside(dual);
        for ns in [&dual.web, &dual.mail, &dual.internet] {
            ns.bulk_server(9000);
        }
        dual.mappings("web", VIRTUAL_WEB, WEB, "");
        dual.mappings("mail", VIRTUAL_MAIL, MAIL, "sourceTranslation: Preserve");
        dual.network(", sourceAddress: 192.168.100.250, sourceAddressIPv6: \"fd00:100::fa\"", "", "egress: {default: Allow}");
        dual.converge();
        for n in [0, 1] {
            bulk(dual, &dual.internet, VIRTUAL_WEB[n]);
            assert_eq!(dual.web.path_mtu(GATEWAY_INSIDE[n]), Some(NARROW), "of answers");
            bulk(dual, &dual.internet, VIRTUAL_MAIL[n]);
            assert_eq!(dual.mail.path_mtu(DNS[n]), Some(NARROW), "of answers to the internet itself");
            for ns in [&dual.web, &dual.db] {
                bulk(dual, ns, DNS[n]);
                assert_eq!(ns.path_mtu(DNS[n]), Some(NARROW), "of {}'s own calls", ns.name());
            }
        }
    }

    /// Other errors come back as well: a port of the machine that nobody serves is refused in the name of the virtual address.
    fn refusals_come_from_the_virtual_address(dual) {
        dual.network("", "", "");
        dual.mappings("web", VIRTUAL_WEB, WEB, "");
        dual.converge();
        for (n, filter) in ["icmp[0] = 3", "icmp6 and ip6[40] = 1"].iter().enumerate() {
            let errors = dual.client.watch("eth0", filter, || assert!(dual.client.udp(&at(VIRTUAL_WEB[n], 7777)).is_none()));
            let from = format!("{} > {}: ", VIRTUAL_WEB[n], CLIENT[n]);
            assert!(!errors.is_empty() && errors.iter().all(|e| e.contains(&from) && !e.contains(WEB[n])), "{errors:#?}");
        }
    }

    /// Where such errors get lost, lower segment sizes help, if the network asks for it; nobody else's are touched.
    fn segment_sizes_are_lowered_where_asked_for(dual) {
        narrow_inside(dual);
        dual.web.bulk_server(9000);
        dual.mappings("web", VIRTUAL_WEB, WEB, "");
        dual.client.sh("iptables-nft -A INPUT -p icmp --icmp-type fragmentation-needed -j DROP");
        dual.client.sh("ip6tables-nft -A INPUT -p icmpv6 --icmpv6-type packet-too-big -j DROP");
        for (clamp, sizes) in [(false, [["1460", "1460"], ["1440", "1440"]]), (true, [["1360", "1360"], ["1340", "1340"]])] {
            dual.network("", "", &format!("clampMSS: {clamp}"));
            dual.converge();
            for n in [0, 1] {
                assert_eq!(segment_sizes(dual, n), sizes[n], "clampMSS: {clamp}\n{}", dual.rules());
                assert_eq!(dual.client.bulk(&at(VIRTUAL_WEB[n], 9000), BULK, seconds(3)), clamp, "clampMSS: {clamp}");
            }
        }
    }
}
