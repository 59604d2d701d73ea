//! TFTP and SIP with real servers and clients: what follows the first packet passes by the helper, or not at all.

use std::fs;
use std::net::UdpSocket;
use std::time::Duration;

use crate::lab::dual::{CLIENT, DB, GATEWAY_INSIDE, VIRTUAL_DB, VIRTUAL_WEB, WEB, at};
use crate::lab::{Dual, seconds, wait_for};

/// Where the called party wants its media.
const MEDIA: u16 = 30_000;

/// What a call came to.
#[derive(Debug, PartialEq, Eq)]
struct Call {
    /// Whether it was answered and ended as it should.
    made: bool,
    /// Where the calling party was told to send media.
    told: String,
    /// Whether media sent there came back.
    heard: bool,
}

/// Calls the machine at `virtual_at` by sipp(1) and, in the call, sends a datagram to where the other side wants media, which sends it back.
fn call(dual: &Dual, n: usize, virtual_at: &str) -> Call {
    let messages = format!("/run/lab/sip-call-{n}.messages");
    let _ = fs::remove_file(&messages);
    let (to, local, scenario) = (at(virtual_at, 5060), CLIENT[n], dual.client.sip_scenario("uac"));
    let args = [
        "-sf",
        &scenario,
        &to,
        "-i",
        local,
        "-p",
        "5061",
        "-mi",
        local,
        "-mp",
        "40000",
        "-m",
        "1",
        "-d",
        "1500",
        "-nostdin",
        "-timeout",
        "8",
        "-trace_msg",
        "-message_file",
        &messages,
    ];
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| dual.client.sipp(&args));
        let told = wait_for(seconds(15), "the answer to the call", || {
            let text = fs::read_to_string(&messages).ok()?;
            // It is logged whole, headers first.
            let answer = text.split_once("SIP/2.0 200 OK")?.1;
            let line = |kind: &str| answer.lines().find_map(|l| l.strip_prefix(kind)).map(str::trim);
            let (address, media) = (line("c=IN IP")?.split_once(' ')?.1, line("m=audio ")?);
            let port = media.split_once(' ')?.0.parse().ok()?;
            Some(at(address.trim_matches(['[', ']']), port))
        });
        let socket = dual.client.enter(|| UdpSocket::bind(at(local, 40_010))).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let heard = dual.client.enter(|| socket.send_to(b"hello", &told)).is_ok() && socket.recv_from(&mut [0; 100]).is_ok();
        let made = caller.join().unwrap().code == 0;
        Call { made, told, heard }
    })
}

/// The address that the called party was told to send media to.
fn media_to(server: &str) -> String {
    let text = fs::read_to_string(format!("/run/lab/sip-{server}.messages")).unwrap();
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix("c=IN IP"))
        .unwrap_or_else(|| panic!("{text}"));
    line.split_once(' ').unwrap().1.trim().trim_matches(['[', ']']).to_owned()
}

ways! {
    /// The server answers from another port than it was asked at: with the helper the file comes, without it it does not.
    fn tftp_follows_to_the_servers_new_port(dual) {
        let _servers = [dual.web.tftp_server(), dual.db.tftp_server()];
        dual.mappings("web", VIRTUAL_WEB, WEB, "ports: [{protocol: UDP, port: 69}]\nhelpers: [{name: tftp, port: 69}]");
        dual.mappings("db", VIRTUAL_DB, DB, "ports: [{protocol: UDP, port: 69}]");
        for source in ["Masquerade", "Preserve"] {
            dual.network("", "", &format!("allowedHelpers: [tftp]\nsourceTranslation: {source}"));
            dual.converge();
            for n in [0, 1] {
                assert_eq!(dual.client.tftp(VIRTUAL_WEB[n]).as_deref(), Some("web"), "{source}\n{}", dual.rules());
                assert_eq!(dual.client.tftp(VIRTUAL_DB[n]), None, "{source}");
            }
        }
    }

    /// A call by SIP: with the helper each side is told an address that is its way to the other, and media pass; without it they do not.
    fn sip_calls_have_media(dual) {
        dual.mappings("web", VIRTUAL_WEB, WEB, "ports: [{protocol: UDP, port: 5060}]\nhelpers: [{name: sip, port: 5060}]");
        dual.mappings("db", VIRTUAL_DB, DB, "ports: [{protocol: UDP, port: 5060}]");
        dual.network("", "", "allowedHelpers: [sip]");
        dual.converge();
        for n in [0, 1] {
            let servers = [dual.web.sip_server(WEB[n], MEDIA), dual.db.sip_server(DB[n], MEDIA)];
            let told = at(VIRTUAL_WEB[n], MEDIA);
            assert_eq!(call(dual, n, VIRTUAL_WEB[n]), Call { made: true, told, heard: true }, "{}\n{}", dual.rules(), servers[0].said());
            assert_eq!(media_to("web"), GATEWAY_INSIDE[n], "the machine sends its media to the gateway");
            let told = at(DB[n], MEDIA);
            assert_eq!(call(dual, n, VIRTUAL_DB[n]), Call { made: true, told, heard: false }, "without the helper");
        }
    }
}
