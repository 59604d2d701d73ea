//! The real `stagenet` binary inside a lab.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::net::command;
use super::{Ns, Ran, wait_for, wait_until};

pub const BINARY: &str = env!("CARGO_BIN_EXE_stagenet");
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Runs `stagenet` to its end, which must come within 30 s.
pub fn stagenet(ns: &Ns, args: &[&str]) -> Ran {
    let mut all = vec!["-k", "5", "30", BINARY];
    all.extend(args);
    ns.exec("timeout", &all)
}

/// A running `stagenet agent`. Killed when dropped; its rules stay.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    log: PathBuf,
    status: PathBuf,
}

impl Agent {
    /// Starts `stagenet agent ARGS --status-file F` with its output in a file.
    pub fn start(ns: &Ns, args: &[&str]) -> Self {
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let log = PathBuf::from(format!("/run/lab/agent-{n}.log"));
        let status = PathBuf::from(format!("/run/lab/agent-{n}.status"));
        let out = File::create(&log).unwrap();
        let child = ns.enter(|| {
            command(BINARY)
                .arg("agent")
                .args(args)
                .arg("--status-file")
                .arg(&status)
                .stdout(out.try_clone().unwrap())
                .stderr(Stdio::from(out))
                .spawn()
                .unwrap()
        });
        Self { child, log, status }
    }

    /// Starts `stagenet PART ARGS` with a kubeconfig.
    pub fn run(ns: &Ns, part: &str, kubeconfig: &str, args: &[&str]) -> Self {
        Self::run_in(ns, part, kubeconfig, args, &[])
    }

    /// The same with further variables of the environment.
    pub fn run_in(ns: &Ns, part: &str, kubeconfig: &str, args: &[&str], environment: &[(&str, &str)]) -> Self {
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let log = PathBuf::from(format!("/run/lab/{part}-{n}.log"));
        let out = File::create(&log).unwrap();
        let child = ns.enter(|| {
            command(BINARY)
                .arg(part)
                .args(args)
                .env("KUBECONFIG", kubeconfig)
                .envs(environment.iter().copied())
                .stdout(out.try_clone().unwrap())
                .stderr(Stdio::from(out))
                .spawn()
                .unwrap()
        });
        Self {
            child,
            log,
            status: PathBuf::from("/nonexistent"),
        }
    }

    /// Everything it has said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// The status file as it is now, empty while there is none.
    pub fn status(&self) -> String {
        fs::read_to_string(&self.status).unwrap_or_default()
    }

    /// Waits until the log holds all of `words` in one line, and returns that line.
    pub fn wait_log(&mut self, bound: Duration, words: &[&str]) -> String {
        let found = |log: &str| log.lines().find(|l| words.iter().all(|w| l.contains(w))).map(str::to_owned);
        let start = std::time::Instant::now();
        while start.elapsed() < bound {
            if let Some(line) = found(&self.log()) {
                return line;
            }
            self.assert_alive();
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!(
            "waited {bound:?} for a line with {words:?}; the agent said:\n{}\nstatus:\n{}",
            self.log(),
            self.status()
        )
    }

    /// Waits until the status file holds all of `words`.
    pub fn wait_status(&mut self, bound: Duration, words: &[&str]) {
        let start = std::time::Instant::now();
        while start.elapsed() < bound {
            let status = self.status();
            if words.iter().all(|w| status.contains(w)) {
                return;
            }
            self.assert_alive();
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!(
            "waited {bound:?} for {words:?} in the status:\n{}\nthe agent said:\n{}",
            self.status(),
            self.log()
        )
    }

    /// Fails if the process has ended.
    pub fn assert_alive(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("the agent ended with {status}; it said:\n{}", self.log());
        }
    }

    /// Whether the process has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Sends a signal by name.
    pub fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(
            std::process::Command::new("kill")
                .args(["-s", signal, &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Sends a signal by name and waits for the end, which must come within 10 s. Returns the exit status if it exited.
    pub fn stop(mut self, signal: &str) -> Option<i32> {
        self.signal(signal);
        let status = wait_for(Duration::from_secs(10), "the agent to end", || self.child.try_wait().unwrap());
        if status.code().is_some_and(|code| code != 0) {
            eprintln!("---- agent log\n{}", self.log());
        }
        status.code()
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("---- agent log\n{}\n---- agent status\n{}", self.log(), self.status());
        }
    }
}

/// Waits until `holds`, and on failure prints what the agent said.
pub fn wait_with(agent: &Agent, bound: Duration, what: &str, holds: impl FnMut() -> bool) {
    let what = format!("{what}\n(see the agent's log at {})", agent.log.display());
    wait_until(bound, &what, holds);
}
