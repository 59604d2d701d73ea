//! Tables through the tools: restore, save, list. Texts of the tools are looked at only to classify a failure.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::process::{ExitStatus, Stdio};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{ChildStdout, Command};
use tokio::time::timeout;

use super::tools::{LOCK_WAIT, PATIENCE, Tools, execute};
use crate::host::{Backend, HostError};
use crate::netfilter::dump::{self, ObservedTable, RuleCount};
use crate::netfilter::render::error_line;
use crate::netfilter::{ChainName, Family, Table};

/// The most that a tool may say. A table of 100 000 rules is 20 MB.
pub(super) const OUTPUT_MAX: u64 = 256 << 20;
const ERRORS_MAX: u64 = 64 << 10;
/// Up to here chains are listed one by one, above it the whole table is saved: a process takes about as long as saving 300 rules.
const LIST_MAX: usize = 8;
/// Exit status of the legacy tools when the lock could not be had (`RESOURCE_PROBLEM` in iptables' include/xtables.h).
const RESOURCE_PROBLEM: i32 = 4;

pub(super) struct Said<T> {
    status: ExitStatus,
    output: T,
    errors: String,
}

impl<T> Said<T> {
    /// What it said, if it did what it was asked for.
    pub(super) fn output(self, tools: Tools, action: &str) -> Result<T, HostError> {
        if self.status.success() {
            return Ok(self.output);
        }
        Err(classify(tools, action, self.status, &self.errors))
    }
}

async fn read(stream: Option<impl AsyncRead + Unpin>, max: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.take(max).read_to_end(&mut bytes).await?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Runs a tool with `input`, and keeps what it says.
pub(super) async fn run(program: &str, arguments: &[&str], input: &str) -> Result<Said<String>, HostError> {
    run_to(program, arguments, input, |output| read(output, OUTPUT_MAX)).await
}

/// Runs a tool with `input`; what it says goes to `take`. It is killed when it takes too long, or when the caller gives up.
#[allow(clippy::disallowed_methods)] // disallowed everywhere else
pub(super) async fn run_to<T, F: Future<Output = io::Result<T>>>(
    program: &str,
    arguments: &[&str],
    input: &str,
    take: impl FnOnce(Option<ChildStdout>) -> F,
) -> Result<Said<T>, HostError> {
    let action = || format!("running {program} {}", arguments.join(" "));
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => HostError::ToolMissing { tool: program.to_owned() },
        _ => HostError::Failed {
            action: action(),
            said: error.to_string(),
        },
    };
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut stdin) = stdin {
            // A tool that has seen enough closes its end; its status says why.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let all = async {
        let ((), output, errors) = tokio::join!(write, take(stdout), read(stderr, ERRORS_MAX));
        Ok(Said {
            status: child.wait().await?,
            output: output?,
            errors: errors?,
        })
    };
    match timeout(PATIENCE, all).await {
        Ok(said) => said.map_err(failed),
        Err(_) => Err(HostError::Failed {
            action: action(),
            said: format!("it did not end within {} seconds and was killed", PATIENCE.as_secs()),
        }),
    }
}

/// The one line of a failure that says most.
fn gist(errors: &str) -> String {
    let noise = |l: &&str| l.is_empty() || l.starts_with("Try `") || l.starts_with("Error occurred") || l.starts_with("# Warning");
    let lines: Vec<_> = errors
        .lines()
        .map(str::trim)
        .filter(|l| !noise(l) && !l.ends_with("(nf_tables):"))
        .collect();
    if lines.is_empty() {
        "it gave no reason".to_owned()
    } else {
        lines.join("; ")
    }
}

/// Why a tool failed, whatever it was doing.
pub(super) fn classify(tools: Tools, action: &str, status: ExitStatus, errors: &str) -> HostError {
    let action = action.to_owned();
    if !super::privileges::may_filter(tools.backend == Backend::Legacy) {
        return HostError::Denied { action };
    }
    // The nft tools take no lock, and use the same status for other things.
    if tools.backend == Backend::Legacy && status.code() == Some(RESOURCE_PROBLEM) && errors.contains("lock") {
        return HostError::LockHeld {
            action,
            holder: lock_holder(),
        };
    }
    let said = match status.code() {
        Some(code) => format!("{} (exit status {code})", gist(errors)),
        None => "it was killed by a signal".to_owned(),
    };
    HostError::Failed { action, said }
}

/// Who holds the xtables lock: `COMMAND (pid N)`. None if nobody does, or it is a process that is not visible from here.
pub(super) fn lock_holder() -> Option<String> {
    let path = std::env::var("XTABLES_LOCKFILE").unwrap_or_else(|_| "/run/xtables.lock".to_owned());
    let file = fs::metadata(path).ok()?;
    let pid = holder_of((file.dev(), file.ino()), &fs::read_to_string("/proc/locks").ok()?)?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm"));
    Some(match name {
        Ok(name) => format!("{} (pid {pid})", name.trim()),
        Err(_) => "a process outside of this container".to_owned(),
    })
}

/// Process that holds the lock on a file of this device and inode, from /proc/locks: `1: FLOCK  ADVISORY  WRITE 49 fe:00:9977904 0 EOF`; `->` marks waiters. Files of several
/// file systems may have one inode number; some file systems give a device that /proc/locks does not show (btrfs), so without the right device any will do.
fn holder_of((device, inode): (u64, u64), locks: &str) -> Option<i64> {
    let device = format!("{:02x}:{:02x}", nix::libc::major(device), nix::libc::minor(device));
    let held = || {
        locks.lines().filter_map(|line| {
            let words: Vec<_> = line.split_ascii_whitespace().collect();
            let [_, kind, _, _, pid, file, ..] = words[..] else { return None };
            let (at, number) = file.rsplit_once(':')?;
            let there = kind != "->" && number.parse() == Ok(inode);
            there.then(|| Some((at.to_owned(), pid.parse().ok()?))).flatten()
        })
    };
    let exact = held().find(|(at, _)| *at == device);
    exact.or_else(|| held().next()).map(|(_, pid)| pid)
}

/// The line to blame. A tool that objects at COMMIT names that line; where it also names the chain that is missing (nft), the rule is
/// the first one that leads there.
fn blame(text: &str, errors: &str) -> usize {
    let named = error_line(errors).unwrap_or_default();
    let line = |number: usize| number.checked_sub(1).and_then(|at| text.lines().nth(at));
    if line(named).is_some_and(|l| l != "COMMIT") {
        return named;
    }
    let Some(chain) = errors.split('\'').nth(1) else { return named };
    let leads = |l: &str| l.ends_with(&format!(" -j {chain}")) || l.ends_with(&format!(" -g {chain}"));
    text.lines().position(leads).map_or(named, |at| at + 1)
}

/// The table that a line of restore input belongs to.
fn table_at(text: &str, line: usize) -> String {
    let table = text.lines().take(line.max(1)).filter_map(|l| l.strip_prefix('*')).last();
    table.or_else(|| text.strip_prefix('*')?.lines().next()).unwrap_or("?").to_owned()
}

/// Runs one restore.
pub(super) async fn restore(tools: Tools, family: Family, text: &str) -> Result<(), HostError> {
    let said = run(&tools.restore(family), &["--noflush", "-w", LOCK_WAIT], text).await?;
    if said.status.success() {
        return Ok(());
    }
    let line = blame(text, &said.errors);
    let rejected = line > 0 && said.status.code().is_some();
    match classify(tools, &format!("restoring {}", table_at(text, line)), said.status, &said.errors) {
        HostError::Failed { .. } if rejected => Err(HostError::RestoreRejected {
            table: table_at(text, line),
            line,
            text: text.lines().nth(line - 1).unwrap_or_default().to_owned(),
            said: gist(&said.errors),
        }),
        error => Err(error),
    }
}

/// Saves a whole table, with counters if asked for. Empty for a legacy table that is not registered: saving would register it.
pub(super) async fn save(tools: Tools, family: Family, table: Table, counters: bool) -> Result<String, HostError> {
    if !tools.registered(family, table.as_str()) {
        return Ok(String::new());
    }
    let mut arguments = vec!["-t", table.as_str()];
    arguments.extend(counters.then_some("-c"));
    let said = run(&tools.save(family), &arguments, "").await?;
    said.output(tools, &format!("reading {}", table.as_str()))
}

/// Lists one chain: with nft the rules of all others are not even read. The legacy tools take the lock for that, and none for saving the table, which this does then.
pub(super) async fn chain(tools: Tools, family: Family, table: Table, chain: &str) -> Result<String, HostError> {
    if tools.backend == Backend::Legacy {
        return save(tools, family, table, false).await;
    }
    let output = execute(tools.command(family), table.as_str(), &format!("-w {LOCK_WAIT} -S {chain}")).await?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let action = format!("reading {chain} of {}", table.as_str());
    Err(classify(tools, &action, output.status, &String::from_utf8_lossy(&output.stderr)))
}

/// Reads a table, or some chains of it.
pub(super) async fn read_table(
    tools: Tools,
    family: Family,
    table: Table,
    chains: Option<&BTreeSet<ChainName>>,
) -> Result<ObservedTable, HostError> {
    let few = chains.filter(|c| c.len() <= LIST_MAX);
    if let Some(listed) = match few {
        Some(chains) if tools.registered(family, table.as_str()) => list(tools, family, table, chains).await?,
        _ => None,
    } {
        return Ok(dump::parse(&listed));
    }
    let mut seen = dump::parse(&save(tools, family, table, false).await?);
    if let Some(chains) = chains {
        seen.chains.retain(|name, _| chains.iter().any(|c| c.as_str() == name));
        seen.hooks.clear();
    }
    Ok(seen)
}

/// Lists chains one by one. None if one could not be listed: the tools do not tell a missing chain from other failures, the save does.
async fn list(tools: Tools, family: Family, table: Table, chains: &BTreeSet<ChainName>) -> Result<Option<String>, HostError> {
    let mut text = String::new();
    for chain in chains {
        let output = execute(tools.command(family), table.as_str(), &format!("-w {LOCK_WAIT} -S {chain}")).await?;
        if !output.status.success() {
            return Ok(None);
        }
        text.push_str(&String::from_utf8_lossy(&output.stdout));
    }
    Ok(Some(text))
}

/// What the rules of some chains have counted. The tools have no cheaper way than to save the table.
pub(super) async fn counters(
    tools: Tools,
    family: Family,
    table: Table,
    chains: &BTreeSet<ChainName>,
) -> Result<BTreeMap<ChainName, Vec<RuleCount>>, HostError> {
    let counted = dump::counters(&save(tools, family, table, true).await?);
    let wanted = chains
        .iter()
        .filter_map(|chain| Some((chain.clone(), counted.get(chain.as_str())?.clone())));
    Ok(wanted.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "*mangle\n:SNET-A - [0:0]\n-A SNET-A -j SNET-NOPE\nCOMMIT\n*nat\n-A SNET-B -j DROP\nCOMMIT\n";

    #[test]
    fn the_line_to_blame_is_found_in_the_words_of_both_variants() {
        for (said, line) in [
            (
                "iptables-nft-restore v1.8.9 (nf_tables): Chain 'SNET-NOPE' does not exist\nError occurred at line: 4",
                3,
            ),
            (
                "iptables-restore v1.8.9 (legacy): Couldn't load target `SNET-NOPE':No such file\n\nError occurred at line: 3",
                3,
            ),
            (
                "iptables-nft-restore v1.8.9 (nf_tables): \nline 6: RULE_APPEND failed (Invalid argument): rule in chain SNET-B",
                6,
            ),
            ("iptables-restore: line 7 failed", 7),
            ("something else", 0),
        ] {
            assert_eq!(blame(TEXT, said), line, "{said}");
        }
        assert_eq!(
            (table_at(TEXT, 3), table_at(TEXT, 6), table_at(TEXT, 0)),
            ("mangle".into(), "nat".into(), "mangle".into())
        );
    }

    #[test]
    fn what_was_said_is_kept_and_the_noise_is_not() {
        let nft = "iptables-nft-restore v1.8.9 (nf_tables): \nline 3: RULE_APPEND failed (Invalid argument): rule in chain SNET-A\n";
        assert_eq!(gist(nft), "line 3: RULE_APPEND failed (Invalid argument): rule in chain SNET-A");
        assert_eq!(
            gist("# Warning: iptables-legacy tables present, use iptables-legacy to see them\n"),
            "it gave no reason"
        );
    }

    #[test]
    fn the_holder_of_a_lock_is_found_by_its_file_and_waiters_are_not_holders() {
        let locks = "1: FLOCK  ADVISORY  WRITE 49 fe:00:9977904 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 50 fe:00:9977904 0 EOF\n\
                     2: POSIX  ADVISORY  READ 7 00:1a:12 0 EOF\n3: FLOCK  ADVISORY  WRITE 8 00:1b:12 0 EOF\n";
        let device = nix::libc::makedev;
        assert_eq!(holder_of((device(0xfe, 0), 9_977_904), locks), Some(49));
        assert_eq!(
            holder_of((device(0, 0x1b), 12), locks),
            Some(8),
            "another file system has a file of that number"
        );
        assert_eq!(holder_of((device(0, 0x99), 12), locks), Some(7), "a device that is not shown");
        assert_eq!(holder_of((device(0, 0x1b), 13), locks), None);
    }
}
