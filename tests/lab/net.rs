//! Network namespaces and what connects them.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, setns};

/// A host: a named network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ns(String);

/// What a command did.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Exit status, or 128 + signal.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Both outputs, for searching and for failure messages.
    pub fn said(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl Ns {
    /// A new host with nothing but its loopback, which does not forward and filters nothing by source.
    pub fn new(name: &str) -> Self {
        assert!(Command::new("ip").args(["netns", "add", name]).status().unwrap().success());
        let ns = Self(name.to_owned());
        ns.sh("ip link set lo up");
        ns.set("ipv4/ip_forward", "0");
        for interface in ["all", "default"] {
            ns.set(&format!("ipv4/conf/{interface}/rp_filter"), "0");
            ns.set(&format!("ipv4/conf/{interface}/send_redirects"), "1");
            ns.set(&format!("ipv4/conf/{interface}/accept_redirects"), "0");
        }
        ns
    }

    /// A host that was made before.
    pub fn existing(name: &str) -> Self {
        Self(name.to_owned())
    }

    pub fn name(&self) -> &str {
        &self.0
    }

    /// Runs `f` on a thread that has joined the namespace. Sockets and processes made there stay in it.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.0);
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(File::open(&path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
                f()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs `program` and reports whatever came of it.
    pub fn exec(&self, program: impl AsRef<Path>, args: &[&str]) -> Ran {
        let program = program.as_ref();
        let output = self
            .enter(|| command(program).args(args).output())
            .unwrap_or_else(|e| panic!("running {}: {e}; run `make deps`", program.display()));
        Ran {
            code: code(output.status),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs a line of shell, which must succeed, and returns what it printed.
    pub fn sh(&self, line: &str) -> String {
        let ran = self.try_sh(line);
        assert!(ran.code == 0, "{}: {line}: exit {}\n{}", self.0, ran.code, ran.said());
        ran.stdout
    }

    /// Runs a line of shell and reports whatever came of it.
    pub fn try_sh(&self, line: &str) -> Ran {
        self.exec("sh", &["-c", line])
    }

    /// Sets a value below /proc/sys/net.
    pub fn set(&self, path: &str, value: &str) {
        let file = format!("/proc/sys/net/{path}");
        self.enter(|| fs::write(&file, value))
            .unwrap_or_else(|e| panic!("{}: writing {file}: {e}", self.0));
    }

    /// Reads a value below /proc/sys/net.
    pub fn get(&self, path: &str) -> String {
        let file = format!("/proc/sys/net/{path}");
        self.enter(|| fs::read_to_string(&file))
            .unwrap_or_else(|e| panic!("{}: reading {file}: {e}", self.0))
            .trim()
            .to_owned()
    }

    /// Deletes entries of the connection table, all of them.
    pub fn forget_flows(&self) {
        self.try_sh("conntrack -F");
    }

    /// Entries of the connection table that name `address`.
    pub fn flows(&self, address: &str) -> Vec<String> {
        let word = format!("={address} ");
        self.try_sh("conntrack -L")
            .stdout
            .lines()
            .filter(|l| l.contains(&word))
            .map(str::to_owned)
            .collect()
    }
}

/// A command without input, to be started within [`Ns::enter`].
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    command
}

fn code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(-1)
}

/// A cable between two hosts; both ends up.
pub fn veth(a: &Ns, a_name: &str, b: &Ns, b_name: &str) {
    a.sh(&format!("ip link add {a_name} type veth peer name {b_name} netns {}", b.name()));
    for (ns, name) in [(a, a_name), (b, b_name)] {
        ns.sh(&format!("ip link set {name} up"));
    }
}

/// A segment: the hosts' interfaces on one switch, which is a namespace of its own. Addresses as `a.b.c.d/len`.
pub fn bridge(name: &str, ports: &[(&Ns, &str, &str)]) -> Ns {
    let switch = Ns::new(name);
    switch.set("ipv6/conf/default/disable_ipv6", "1");
    switch.sh("ip link add br0 type bridge forward_delay 0 && ip link set br0 up");
    for (n, (ns, interface, address)) in ports.iter().enumerate() {
        plug(&switch, &format!("p{n}"), ns, interface);
        if !address.is_empty() {
            ns.sh(&format!("ip addr add {address} dev {interface}"));
        }
    }
    switch
}

/// Connects one more interface to a switch.
pub fn plug(switch: &Ns, port: &str, ns: &Ns, interface: &str) {
    super::bridge::attach(switch, "br0", port, ns, interface);
}
