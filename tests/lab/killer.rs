//! Kills the real `stagenet` at a chosen point between two of its effects on the world.
//!
//! The program runs under ptrace(2), unchanged. Counted are, in all its threads together, the system calls by which it has an effect: netlink requests
//! that change something, what it writes to a tool's input, and changes of its state directory. It is killed before the chosen one is executed. After input to a
//! tool there is one more point, right after the write: the tool then goes on by itself. The tools are not traced.

#![allow(clippy::doc_markdown, clippy::unused_self, clippy::zombie_processes)] // names of programs; steps that read as sentences; victims that are killed and reaped by their namespace

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::Stdio;

use nix::errno::Errno;
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::net::command;
use super::{BINARY, Ns};

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It was killed; before or after what.
    Killed(String),
    /// It ended by itself: with what exit status, and its effects.
    Exited(i32, Vec<String>),
}

/// Runs `stagenet ARGS` and kills it at point `at`, counted from 0.
pub fn killed_at(ns: &Ns, args: &[&str], at: usize) -> End {
    // All requests to a traced thread have to come from the thread that traces it.
    ns.enter(|| Tracer::start(args).run(at))
}

struct Tracer {
    leader: Pid,
    /// The point of a write that is being executed, by thread.
    writing: BTreeMap<Pid, String>,
    points: Vec<String>,
    /// The program itself runs, no more the shell that waits for us.
    begun: bool,
}

impl Tracer {
    fn start(args: &[&str]) -> Self {
        let log = || File::options().create(true).append(true).open("/run/lab/killed.log").unwrap();
        // It waits until it is traced.
        let mut child = command("sh")
            .args(["-c", "read -r go && exec \"$@\"", "sh", BINARY])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(log())
            .stderr(log())
            .spawn()
            .unwrap();
        let leader = Pid::from_raw(child.id().try_into().unwrap());
        let options =
            Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACEEXEC | Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL;
        ptrace::seize(leader, options).unwrap_or_else(|e| panic!("tracing stagenet: {e}; the lab needs ptrace(2)"));
        ptrace::interrupt(leader).unwrap();
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        Self {
            leader,
            writing: BTreeMap::new(),
            points: Vec::new(),
            begun: false,
        }
    }

    fn run(mut self, at: usize) -> End {
        loop {
            // Threads of the program belong to the thread that traces them; other children of this process to others.
            let status = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD)) {
                Err(Errno::EINTR) => continue,
                status => status.unwrap(),
            };
            let (thread, signal) = match status {
                WaitStatus::Exited(pid, code) if pid == self.leader => return End::Exited(code, self.points),
                WaitStatus::Signaled(pid, signal, _) if pid == self.leader => {
                    assert!(signal == Signal::SIGKILL && self.points.len() > at, "ended by {signal}");
                    return End::Killed(self.points[at].clone());
                }
                WaitStatus::PtraceEvent(pid, _, event) => {
                    self.begun |= event == libc::PTRACE_EVENT_EXEC;
                    (pid, None)
                }
                WaitStatus::PtraceSyscall(pid) => {
                    if self.begun {
                        self.syscall(pid);
                    }
                    (pid, None)
                }
                WaitStatus::Stopped(pid, signal) => (pid, Some(signal)),
                _ => continue,
            };
            if self.points.len() > at {
                let _ = kill(self.leader, Signal::SIGKILL);
            } else {
                // A thread that has just ended cannot be resumed, and need not be.
                let _ = ptrace::syscall(thread, signal);
            }
        }
    }

    fn syscall(&mut self, thread: Pid) {
        if let Some(what) = self.writing.remove(&thread) {
            self.points.push(format!("after {what}"));
            return;
        }
        if ptrace::syscall_info(thread).is_ok_and(|info| info.op == libc::PTRACE_SYSCALL_INFO_ENTRY)
            && let Some((what, is_input)) = effect(thread)
        {
            if is_input {
                self.writing.insert(thread, what.clone());
            }
            self.points.push(format!("before {what}"));
        }
    }
}

/// What a thread is about to do, if that has an effect, and whether it is a tool's input.
fn effect(thread: Pid) -> Option<(String, bool)> {
    let text = fs::read_to_string(format!("/proc/{thread}/syscall")).ok()?;
    let words: Vec<u64> = text
        .split_whitespace()
        .map(|w| w.strip_prefix("0x").map_or_else(|| w.parse(), |hex| u64::from_str_radix(hex, 16)))
        .collect::<Result<_, _>>()
        .ok()?;
    let (number, args) = (libc::c_long::try_from(*words.first()?).ok()?, words.get(1..4)?);
    let link = || fs::read_link(format!("/proc/{thread}/fd/{}", args[0])).ok();
    match number {
        libc::SYS_write if args[0] > 2 && link()?.to_str()?.starts_with("pipe:") => {
            let input = String::from_utf8_lossy(&memory(thread, args[1], 4096)?).into_owned();
            let table = input.lines().next().unwrap_or_default().to_owned();
            Some((format!("{} bytes of input that begin with {table:?}", args[2]), true))
        }
        libc::SYS_sendto if link()?.to_str()?.starts_with("socket:") => {
            let header = memory(thread, args[1], 16)?;
            let inode = link()?.to_str()?.trim_matches(|c: char| !c.is_ascii_digit()).to_owned();
            let kind = u16::from_ne_bytes([*header.get(4)?, *header.get(5)?]);
            // Columns: address, protocol, ..., inode. 0 is rtnetlink, 12 nfnetlink.
            let sockets = fs::read_to_string(format!("/proc/{thread}/net/netlink")).ok()?;
            let socket = sockets.lines().find(|l| l.split_whitespace().last() == Some(&inode))?;
            let changes = match socket.split_whitespace().nth(1)? {
                // RTM_NEW, RTM_DEL, RTM_GET, RTM_SET, from 16 on.
                "0" => kind % 4 != 2,
                // IPCTNL_MSG_CT_NEW and IPCTNL_MSG_CT_DELETE of ctnetlink, subsystem 1.
                "12" => kind == 0x100 || kind == 0x102,
                _ => false,
            };
            changes.then(|| (format!("a netlink request of type {kind:#x}"), false))
        }
        _ if FILES.contains(&number) => Some((format!("system call {number}, which renames or removes a file"), false)),
        _ => None,
    }
}

#[cfg(target_arch = "x86_64")]
const FILES: [libc::c_long; 5] = [
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
];
#[cfg(not(target_arch = "x86_64"))]
const FILES: [libc::c_long; 3] = [libc::SYS_renameat, libc::SYS_renameat2, libc::SYS_unlinkat];

fn memory(thread: Pid, address: u64, length: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; length];
    let read = File::open(format!("/proc/{thread}/mem")).ok()?.read_at(&mut bytes, address).ok()?;
    bytes.truncate(read);
    Some(bytes)
}
