//! Real servers and clients of protocols that a gateway has to follow, bulk transfers, and what hosts see on the wire meanwhile.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use super::net::command;
use super::{Ns, Ran, seconds, wait_until};

/// A daemon in a host's namespace, killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `program` with its output in a file.
    pub fn start(ns: &Ns, program: &str, args: &[&str]) -> Self {
        let log = PathBuf::from(format!("/run/lab/{program}-{}.log", ns.name()));
        let out = File::create(&log).unwrap();
        let child = ns.enter(|| {
            command(program)
                .args(args)
                .stdout(out.try_clone().unwrap())
                .stderr(Stdio::from(out))
                .spawn()
                .unwrap_or_else(|e| panic!("running {program}: {e}; run `make deps`"))
        });
        Self { child, log }
    }

    /// What it has said so far.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until something listens: `socket` as in `tcp 21`, a transport of ss(8) and a port.
    fn listens(mut self, ns: &Ns, transport: &str, port: u16) -> Self {
        wait_until(seconds(20), &format!("{transport} {port} to be served"), || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("{} ended with {status}: {}", self.log.display(), self.said());
            }
            !ns.sh(&format!("ss -H -l -n --{transport} 'sport = :{port}'")).is_empty()
        });
        self
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How long clients of real services wait for an answer, in seconds. Everything is on one machine.
const WAIT: u32 = 3;
/// The file that servers offer: who they are.
const FILE: &str = "who";

/// How an FTP client has its data connection made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FtpMode {
    /// The client dials (RFC 959). The address in the answer counts.
    Pasv,
    /// The client dials (RFC 2428).
    Epsv,
    /// The server dials (RFC 959).
    Port,
    /// The server dials (RFC 2428).
    Eprt,
}

impl FtpMode {
    pub const ALL: [Self; 4] = [Self::Pasv, Self::Epsv, Self::Port, Self::Eprt];
    /// Those that can say an IPv6 address.
    pub const IPV6: [Self; 2] = [Self::Epsv, Self::Eprt];
}

impl Ns {
    /// The folder that the host's file servers offer.
    fn offer(&self) -> String {
        let folder = format!("/run/lab/files-{}", self.name());
        fs::create_dir_all(&folder).unwrap();
        fs::create_dir_all("/run/lab/empty").unwrap();
        fs::write(format!("{folder}/{FILE}"), self.name()).unwrap();
        folder
    }

    /// vsftpd for anybody, at port 21 of both families.
    pub fn ftp_server(&self) -> Daemon {
        self.ftp_daemon("")
    }

    /// The same, sending `rate` bytes a second in each transfer.
    pub fn slow_ftp_server(&self, rate: u32) -> Daemon {
        self.ftp_daemon(&format!("anon_max_rate={rate}\n"))
    }

    fn ftp_daemon(&self, more: &str) -> Daemon {
        let folder = self.offer();
        let settings = format!("/run/lab/vsftpd-{}.conf", self.name());
        let text = format!(
            "listen=NO\nlisten_ipv6=YES\nbackground=NO\nanonymous_enable=YES\nno_anon_password=YES\nanon_root={folder}\nlocal_enable=NO\n\
             write_enable=NO\nconnect_from_port_20=YES\nsecure_chroot_dir=/run/lab/empty\nftp_username=daemon\nnopriv_user=nobody\n\
             seccomp_sandbox=NO\nisolate=NO\nisolate_network=NO\nxferlog_enable=NO\naccept_timeout={WAIT}\nconnect_timeout={WAIT}\n{more}"
        );
        fs::write(&settings, text).unwrap();
        Daemon::start(self, "vsftpd", &[&settings]).listens(self, "tcp", 21)
    }

    /// Fetches the file by curl; who the server is, or None if it did not come.
    pub fn ftp(&self, host: &str, mode: FtpMode) -> Option<String> {
        // curl would rather not believe the address that a server gives; others do.
        let how: &[&str] = match mode {
            FtpMode::Pasv => &["--disable-epsv", "--no-ftp-skip-pasv-ip"],
            FtpMode::Epsv => &["--ftp-pasv"],
            FtpMode::Port => &["--disable-eprt", "--ftp-port", "-"],
            FtpMode::Eprt => &["--ftp-port", "-"],
        };
        let (wait, url) = (WAIT.to_string(), format!("ftp://{}/{FILE}", bracketed(host)));
        let mut args = vec!["-q", "-sS", "-v", "--noproxy", "*", "--max-time", &wait, &url];
        args.extend(how);
        let ran = self.exec("curl", &args);
        // A client that has fallen back to another way shows nothing about this one.
        let verb = format!("> {}", format!("{mode:?}").to_uppercase());
        if ran.code == 0 {
            let verbs = ["> PASV", "> EPSV", "> PORT", "> EPRT"];
            for other in verbs.iter().filter(|v| **v != verb) {
                assert!(!ran.stderr.contains(other), "curl did not keep to {mode:?}: {}", ran.stderr);
            }
            assert!(ran.stderr.contains(&verb), "curl did not use {mode:?}: {}", ran.stderr);
        }
        (ran.code == 0).then_some(ran.stdout)
    }

    /// Fetches the file by lftp, `passive` or active.
    pub fn lftp(&self, host: &str, passive: bool) -> Option<String> {
        let script = format!(
            "set net:max-retries 1; set net:timeout {WAIT}; set dns:order 'inet6 inet'; set ftp:fix-pasv-address no; set ftp:passive-mode {passive}; \
             set ftp:ssl-allow no; open ftp://{}; cat {FILE}",
            bracketed(host)
        );
        let ran = self.exec("timeout", &["20", "lftp", "--norc", "-c", &script]);
        (ran.code == 0).then_some(ran.stdout)
    }

    /// tftpd-hpa at port 69 of both families.
    pub fn tftp_server(&self) -> Daemon {
        let folder = self.offer();
        Daemon::start(
            self,
            "in.tftpd",
            &["--foreground", "--secure", "--user", "nobody", "--listen", &folder],
        )
        .listens(self, "udp", 69)
    }

    /// Fetches the file by tftp-hpa.
    pub fn tftp(&self, host: &str) -> Option<String> {
        let (wait, got) = (WAIT.to_string(), format!("/run/lab/got-{}", self.name()));
        let _ = fs::remove_file(&got);
        let ran = self.exec("timeout", &[&wait, "tftp", "-m", "octet", host, "-c", "get", FILE, &got]);
        let text = fs::read_to_string(&got).unwrap_or_default();
        (ran.code == 0 && !text.is_empty()).then_some(text)
    }

    /// A server at `port` that takes whatever it is sent and then sends as much back.
    pub fn bulk_server(&self, port: u16) {
        let listener = self.enter(|| TcpListener::bind((std::net::Ipv6Addr::UNSPECIFIED, port)).unwrap());
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                std::thread::spawn(move || {
                    let taken = std::io::copy(&mut stream, &mut std::io::sink())?;
                    std::io::copy(&mut std::io::repeat(7).take(taken), &mut stream)
                });
            }
        });
    }

    /// Sends `amount` bytes to a [`Ns::bulk_server`]; whether as much came back within `patience`.
    pub fn bulk(&self, to: &str, amount: u64, patience: Duration) -> bool {
        let to = to.parse().unwrap();
        let moved = || -> std::io::Result<u64> {
            let mut stream = self.enter(|| TcpStream::connect_timeout(&to, patience))?;
            stream.set_read_timeout(Some(patience))?;
            stream.set_write_timeout(Some(patience))?;
            std::io::copy(&mut std::io::repeat(7).take(amount), &mut stream)?;
            stream.shutdown(Shutdown::Write)?;
            std::io::copy(&mut stream, &mut std::io::sink())
        };
        moved().is_ok_and(|n| n == amount)
    }

    /// What ping(8) says of one echo of `size` bytes, headers included, that must not be fragmented.
    pub fn ping_whole(&self, to: &str, size: usize) -> Ran {
        let headers = if to.contains(':') { 48 } else { 28 };
        let size = (size - headers).to_string();
        self.exec("ping", &["-n", "-c", "1", "-W", "1", "-M", "do", "-s", &size, to])
    }

    /// The MTU of the path to `to` that the host has learned by now.
    pub fn path_mtu(&self, to: &str) -> Option<u32> {
        let route = self.sh(&format!("ip route get {to}"));
        route.split_once(" mtu ")?.1.split_whitespace().next()?.parse().ok()
    }

    /// What passes `interface` and matches `filter` while `call` runs, as tcpdump prints it with all details.
    pub fn watch(&self, interface: &str, filter: &str, call: impl FnOnce()) -> Vec<String> {
        let (seen, said) = (
            format!("/run/lab/watch-{}-seen", self.name()),
            format!("/run/lab/watch-{}-said", self.name()),
        );
        let args = ["-l", "-n", "-v", "--immediate-mode", "-i", interface, filter];
        let mut child = self.enter(|| {
            let (out, err) = (File::create(&seen).unwrap(), File::create(&said).unwrap());
            command("tcpdump").args(args).stdout(out).stderr(Stdio::from(err)).spawn().unwrap()
        });
        wait_until(seconds(20), "tcpdump to listen", || {
            fs::read_to_string(&said).unwrap().contains("listening on")
        });
        call();
        // What has passed is on its way to tcpdump.
        std::thread::sleep(Duration::from_millis(300));
        let interrupt = format!("kill -s INT {}", child.id());
        assert!(command("sh").args(["-c", &interrupt]).status().unwrap().success());
        child.wait().unwrap();
        let text = BufReader::new(File::open(&seen).unwrap());
        // A packet's further lines are indented.
        let mut packets: Vec<String> = Vec::new();
        for line in text.lines().map(Result::unwrap).filter(|l| !l.trim().is_empty()) {
            match packets.last_mut() {
                Some(packet) if line.starts_with(char::is_whitespace) => *packet += &line,
                _ => packets.push(line),
            }
        }
        packets
    }

    /// Runs sipp(1) to its end, which must come within 20 s.
    pub fn sipp(&self, args: &[&str]) -> Ran {
        let mut all = vec!["-k", "2", "20", "sipp"];
        all.extend(args);
        self.exec("timeout", &all)
    }

    /// sipp's own scenario of that name (`uac` calls, `uas` is called), with the origin line of its media description as RFC 4566 has it: sipp puts
    /// an IPv6 address in brackets there, and the kernel does not let such a message pass where it has to be rewritten.
    pub fn sip_scenario(&self, name: &str) -> String {
        let file = format!("/run/lab/{name}.xml");
        let text = self.sipp(&["-sd", name]).stdout;
        let right = text.replace("IN IP[local_ip_type] [local_ip]", "IN IP[media_ip_type] [media_ip]");
        assert_ne!(text, right, "sipp's scenario has no origin line");
        fs::write(&file, right).unwrap();
        file
    }

    /// sipp as the called party at `address`, port 5060 of UDP, with media at `media`; it sends media back to whom it came from.
    pub fn sip_server(&self, address: &str, media: u16) -> Daemon {
        let (port, scenario) = (media.to_string(), self.sip_scenario("uas"));
        let log = format!("/run/lab/sip-{}.messages", self.name());
        let args = [
            "-sf",
            &scenario,
            "-i",
            address,
            "-p",
            "5060",
            "-mi",
            address,
            "-mp",
            &port,
            "-rtp_echo",
            "-nostdin",
            "-trace_msg",
            "-message_file",
            &log,
        ];
        Daemon::start(self, "sipp", &args).listens(self, "udp", 5060)
    }
}

fn bracketed(host: &str) -> String {
    if host.parse::<std::net::Ipv6Addr>().is_ok() {
        format!("[{host}]")
    } else {
        host.to_owned()
    }
}
