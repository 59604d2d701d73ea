//! FTP with a real server and real clients: every way to make the data connection.

use crate::lab::dual::{DB, DNS, MAIL, PRODUCTION, VIRTUAL_DB, VIRTUAL_WEB, WEB, at, mapping};
use crate::lab::services::FtpMode;
use crate::lab::{Dual, Ns, seconds, wait_until};
use crate::twin;

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

/// A transfer that would take minutes.
struct Transfer {
    how: String,
    file: String,
}

impl Transfer {
    /// What the server sends of it in a second, and in all.
    const RATE: u32 = 256 << 10;
    const SIZE: u64 = 1 << 30;

    /// Begins it by curl, `how` being its option for the data connection.
    fn begin(dual: &Dual, n: usize, host: &str, how: &str) -> Self {
        let file = format!("/run/lab/transfer-{n}");
        let args = format!("-q -sS --noproxy '*' {how} -o {file} ftp://{host}/big");
        dual.client.sh(&format!("curl {args} >/dev/null 2>&1 &"));
        let transfer = Self { how: args, file };
        wait_until(seconds(20), &format!("curl {} to begin", transfer.how), || transfer.got() > 0);
        transfer
    }

    fn got(&self) -> u64 {
        std::fs::metadata(&self.file).map_or(0, |file| file.len())
    }
}

/// Waits until more has come of each than can have been on its way.
fn go_on(transfers: &[Transfer], after: &str) {
    let enough: Vec<_> = transfers.iter().map(|t| t.got() + u64::from(Transfer::RATE)).collect();
    for (transfer, enough) in transfers.iter().zip(enough) {
        wait_until(seconds(20), &format!("curl {} to go on {after}", transfer.how), || {
            transfer.got() >= enough
        });
    }
}

/// Waits until nothing more comes of any.
fn stop(transfers: &[Transfer], after: &str) {
    let got = || transfers.iter().map(Transfer::got).collect::<Vec<_>>();
    let mut last = got();
    wait_until(seconds(30), &format!("all transfers to stop {after}"), || {
        // Six blocks' time.
        std::thread::sleep(seconds(3) / 2);
        let now = got();
        std::mem::replace(&mut last, now.clone()) == now
    });
}

ways! {
    /// Transfers under way go on whatever else changes, their own mapping included as long as its control connection may stay, and end with the mapping.
    fn transfers_under_way_go_on_until_their_mapping_ends(dual) {
        let _server = dual.web.slow_ftp_server(Transfer::RATE);
        dual.web.sh(&format!("truncate -s {} /run/lab/files-web/big", Transfer::SIZE));
        dual.network("", "", ALLOWED);
        dual.mappings("web", VIRTUAL_WEB, WEB, HELPED);
        dual.mappings("db", VIRTUAL_DB, DB, UNHELPED);
        dual.converge();
        let [four, six] = [VIRTUAL_WEB[0].to_owned(), format!("[{}]", VIRTUAL_WEB[1])];
        let transfers: Vec<_> = [(&four, "--ftp-pasv"), (&four, "--ftp-port -"), (&six, "--ftp-pasv"), (&six, "--ftp-port -")]
            .iter()
            .enumerate()
            .map(|(n, (host, how))| Transfer::begin(dual, n, host, how))
            .collect();

        dual.manifests.remove("db4.yaml");
        dual.mapping("db6", VIRTUAL_DB[1], WEB[1], UNHELPED);
        dual.converge();
        go_on(&transfers, "after the change of another mapping");
        for (n, name) in ["web4", "web6"].iter().enumerate() {
            let text = mapping("default", name, "closed", VIRTUAL_WEB[n], WEB[n], HELPED);
            let labelled = text.replace(", namespace: default}", ", namespace: default, labels: {team: blue}, annotations: {note: \"restored; see #7\"}}");
            assert_ne!(text, labelled);
            dual.manifests.write(&format!("{name}.yaml"), &labelled);
        }
        dual.converge();
        go_on(&transfers, "with a label on their own mapping");
        dual.mappings("web", VIRTUAL_WEB, WEB, &HELPED.replace("port: 21}]\n", "port: 21}, {protocol: TCP, port: 80}]\n"));
        dual.converge();
        assert!(dual.client.tcp(&at(VIRTUAL_WEB[0], 80)).is_some(), "the new port");
        go_on(&transfers, "with another port on their own mapping");

        dual.manifests.remove("web4.yaml");
        dual.converge();
        stop(&transfers[..2], "after the end of their mapping");
        go_on(&transfers[2..], "after the end of the other family's");
        dual.manifests.remove("web6.yaml");
        dual.converge();
        stop(&transfers[2..], "after the end of their mapping");
    }

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
        let twin = twin::add(dual, ALLOWED);
        let _servers = [dual.web.ftp_server(), twin.ftp_server()];
        dual.mappings("web", VIRTUAL_WEB, WEB, HELPED);
        for n in [0, 1] {
            twin::map(dual, n, HELPED);
        }
        dual.converge();
        for n in [0, 1] {
            all_are(&dual.client, VIRTUAL_WEB[n], Some("web"), dual);
            all_are(&dual.client, twin::VIRTUAL[n], Some("twin"), dual);
        }
    }
}
