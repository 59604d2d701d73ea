//! A world of its own for one test.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Set in the inner run. Its value is the name of the test.
const INNER: &str = "STAGENET_LAB";
/// Set to skip labs where namespaces cannot be had. Every skip is printed.
const SKIP: &str = "STAGENET_SKIP_KERNEL_LABS";
/// The longest that a lab may take, many times what it needs on a quiet machine.
const BOUND: Duration = Duration::from_mins(10);

/// Runs `body` in new network, mount and process namespaces, as the test `name` (its path inside the test binary).
pub fn isolated(name: &str, body: impl FnOnce()) {
    if std::env::var(INNER).is_ok_and(|inner| inner == name) {
        furnish();
        body();
        return;
    }
    if std::env::var_os(SKIP).is_some() {
        // Straight to the process's own output: libtest would keep a passing test's words to itself.
        let _ = writeln!(std::io::stderr(), "SKIPPED {name}: {SKIP} is set; nothing of it was tested");
        return;
    }
    assert!(
        nix::unistd::geteuid().is_root(),
        "{name} needs root, to make namespaces. Run the tests as root, or set {SKIP}=1 to leave the kernel labs out."
    );

    let mut output = tempfile::tempfile().unwrap();
    // `setpriv` ends the world with this process even when that is killed; `--kill-child` ends what is in it.
    let mut outer = Command::new("setpriv")
        .args([
            "--pdeathsig",
            "KILL",
            "unshare",
            "--net",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--",
        ])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1", "--include-ignored"])
        .env(INNER, name)
        .env("RUST_BACKTRACE", "0")
        .env_remove("STAGENET_LOG")
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output.try_clone().unwrap())
        .spawn()
        .unwrap_or_else(|e| panic!("starting setpriv (package util-linux): {e}; run `make deps`"));
    let start = Instant::now();
    let status = loop {
        if let Some(status) = outer.try_wait().unwrap() {
            break Some(status);
        }
        if start.elapsed() > BOUND {
            outer.kill().unwrap();
            outer.wait().unwrap();
            break None;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let said = text(&mut output);
    let Some(status) = status else {
        panic!("{name} did not end within {BOUND:?}; it said:\n{said}")
    };
    assert!(status.success(), "{name} ended with {status}; it said:\n{said}");
    // What a lab did not test is said, as above.
    for line in said.lines().filter_map(|l| l.find("SKIPPED ").map(|at| &l[at..])) {
        let _ = writeln!(std::io::stderr(), "{line}");
    }
    // What a lab measured is shown with --nocapture.
    said.lines()
        .filter_map(|l| l.find("measured: ").map(|at| &l[at..]))
        .for_each(|l| println!("{name} {l}"));
    assert!(
        said.contains("1 passed"),
        "{name} is not the path of a test, so nothing ran:\n{said}"
    );
}

/// To be said by a lab that does not test what it is for, because of what this machine lacks.
pub fn skipped(why: &str) {
    let name = std::env::var(INNER).unwrap_or_default();
    eprintln!("\nSKIPPED {name}: {why}");
}

fn text(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Makes the fresh namespaces habitable.
fn furnish() {
    let run = |command: &str, args: &[&str]| {
        let status = Command::new(command)
            .args(args)
            .status()
            .unwrap_or_else(|e| panic!("running {command}: {e}; run `make deps`"));
        assert!(status.success(), "{command} {args:?}: {status}");
    };
    // A tmpfs on /run gives the world its own `ip netns` names, xtables lock and state directory.
    run("mount", &["--make-rprivate", "/"]);
    run("mount", &["-t", "tmpfs", "-o", "mode=755", "lab", "/run"]);
    fs::create_dir("/run/lock").unwrap();
    fs::create_dir("/run/lab").unwrap();
    // A new namespace starts with the machine's own settings, so what the lab relies on is said.
    fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
    run("ip", &["link", "set", "lo", "up"]);
}
