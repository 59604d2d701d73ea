//! The iptables tools: which there are, and which variant is used.
//!
//! The `iptables` crate starts them here, for questions only, and only through its `execute`, the one call that shows status and words
//! (the others take any failure for "no"). Nothing is remembered about a tool that was missing: it may be installed the next moment. The version of one that is there is
//! remembered as long as its file stays the same.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::Output;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use iptables::IPTables;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::BackendChoice;
use super::tables::classify;
use crate::host::{Backend, HostError};
use crate::netfilter::Family;

/// Seconds that a tool waits for the xtables lock.
pub(super) const LOCK_WAIT: &str = "5";
/// How long a tool may take in all: more than the wait for the lock, and than a restore of 10 000 rules takes on a busy node.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// Chain that kubelet makes in mangle with the variant that it uses, so that others use the same (KEP-3178).
const KUBELET_HINT: &str = "KUBE-IPTABLES-HINT";
/// The chain of ours that always stands when anything of ours does.
const OURS: &str = "SNET-FWD";

/// The commands of one variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tools {
    pub(super) backend: Backend,
    /// Without a variant in their names, where only those exist.
    plain: bool,
}

impl Tools {
    /// The command that lists and changes.
    pub(super) fn command(self, family: Family) -> &'static str {
        match (family, self.backend, self.plain) {
            (Family::V4, _, true) => "iptables",
            (Family::V6, _, true) => "ip6tables",
            (Family::V4, Backend::Nft, false) => "iptables-nft",
            (Family::V6, Backend::Nft, false) => "ip6tables-nft",
            (Family::V4, Backend::Legacy, false) => "iptables-legacy",
            (Family::V6, Backend::Legacy, false) => "ip6tables-legacy",
        }
    }

    /// The command that restores.
    pub(super) fn restore(self, family: Family) -> String {
        format!("{}-restore", self.command(family))
    }

    /// The command that saves.
    pub(super) fn save(self, family: Family) -> String {
        format!("{}-save", self.command(family))
    }

    /// Whether a legacy table of this family is registered. Asking the tool would register it.
    pub(super) fn registered(self, family: Family, table: &str) -> bool {
        self.backend == Backend::Nft || legacy_tables(family).iter().any(|t| t == table)
    }

    /// Whether there is such a chain. Fails where that cannot be found out because somebody holds the lock.
    async fn has_chain(self, table: &str, chain: &str) -> Result<bool, HostError> {
        if !self.registered(Family::V4, table) {
            return Ok(false);
        }
        let command = self.command(Family::V4);
        let output = execute(command, table, &format!("-w {LOCK_WAIT} -S {chain}")).await?;
        if output.status.success() {
            return Ok(true);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        match classify(self, &format!("looking for chain {chain} with {command}"), output.status, &said) {
            held @ HostError::LockHeld { .. } => Err(held),
            _ => Ok(false),
        }
    }
}

/// Legacy tables that are registered in this network namespace.
pub(super) fn legacy_tables(family: Family) -> Vec<String> {
    let path = match family {
        Family::V4 => "/proc/net/ip_tables_names",
        Family::V6 => "/proc/net/ip6_tables_names",
    };
    let names = fs::read_to_string(path).unwrap_or_default();
    names.lines().map(str::to_owned).collect()
}

/// Runs `COMMAND -t TABLE WORDS`.
pub(super) async fn execute(command: &'static str, table: &str, words: &str) -> Result<Output, HostError> {
    let action = format!("running {command} -t {table} {words}");
    let (table, words) = (table.to_owned(), words.to_owned());
    let run = spawn_blocking(move || {
        let tool = IPTables {
            cmd: command,
            has_check: true,
            // The crate's own --wait waits without an end.
            has_wait: false,
            is_numeric: false,
        };
        tool.execute(&table, &words).map_err(|error| {
            let missing = error
                .downcast_ref::<std::io::Error>()
                .is_some_and(|e| e.kind() == std::io::ErrorKind::NotFound);
            (missing, error.to_string())
        })
    });
    let failed = |said: String| HostError::Failed { action, said };
    match timeout(PATIENCE, run).await {
        Err(_) => Err(failed(format!("it did not end within {} seconds", PATIENCE.as_secs()))),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Ok(Ok(Err((true, _)))) => Err(HostError::ToolMissing { tool: command.to_owned() }),
        Ok(Ok(Err((false, said)))) => Err(failed(said)),
        Ok(Ok(Ok(output))) => Ok(output),
    }
}

/// The variant of a tool, from its version line: `iptables v1.8.9 (nf_tables)`. Before 1.8 there was only legacy, and no word for it.
fn variant(version: &str) -> Option<Backend> {
    version.contains(" v").then(|| {
        if version.contains("nf_tables") {
            Backend::Nft
        } else {
            Backend::Legacy
        }
    })
}

/// What a program's file looks like: another one if it was replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    path: PathBuf,
    inode: (u64, u64),
    changed: (i64, i64),
    length: u64,
}

impl Stamp {
    /// Of the program that `command` starts. None: there is none, or it is a script, which may say another thing each time.
    pub(super) fn of(command: &str) -> Option<Self> {
        let path = env::split_paths(&env::var_os("PATH")?)
            .map(|folder| folder.join(command))
            .find(|path| path.is_file())?;
        let mut magic = [0; 4];
        let mut file = File::open(&path).ok()?;
        file.read_exact(&mut magic).ok()?;
        let meta = file.metadata().ok()?;
        (magic == *b"\x7fELF").then(|| Self {
            path,
            inode: (meta.dev(), meta.ino()),
            changed: (meta.ctime(), meta.ctime_nsec()),
            length: meta.len(),
        })
    }
}

/// What a command says of its version. It is asked again only when its file is another one: the agent looks once a minute, and starting a process is most of a look.
async fn version(command: &'static str) -> Option<String> {
    static SAID: Mutex<BTreeMap<&str, (Stamp, String)>> = Mutex::new(BTreeMap::new());
    let said = || SAID.lock().unwrap_or_else(PoisonError::into_inner);
    let stamp = Stamp::of(command);
    if let Some((known, version)) = said().get(command)
        && stamp.as_ref() == Some(known)
    {
        return Some(version.clone());
    }
    // The table is not looked at: --version ends the tool first.
    let output = execute(command, "filter", "--version").await.ok()?;
    let version = output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())?;
    if let Some(stamp) = stamp {
        said().insert(command, (stamp, version.clone()));
    }
    Some(version)
}

/// The tools of a variant, with their version, if they are installed.
pub(super) async fn find(backend: Backend) -> Option<(Tools, String)> {
    for plain in [false, true] {
        let tools = Tools { backend, plain };
        if let Some(version) = version(tools.command(Family::V4)).await
            && variant(&version) == Some(backend)
        {
            return Some((tools, version));
        }
    }
    None
}

/// The tools to use, with the reason for people. Those in use, `present`, stay in use while somebody holds the lock: what is not seen then may be there all the same.
///
/// # Errors
/// There are none, or which ones hold our rules cannot be found out.
pub(super) async fn choose(choice: BackendChoice, present: Option<Tools>) -> Result<(Tools, String), HostError> {
    let (nft, legacy) = (find(Backend::Nft).await, find(Backend::Legacy).await);
    let missing = |tool: &str| HostError::ToolMissing { tool: tool.to_owned() };
    let (nft, legacy) = match (choice, nft, legacy) {
        (BackendChoice::Nft, nft, _) => {
            let (tools, version) = nft.ok_or_else(|| missing("iptables-nft"))?;
            return Ok((tools, format!("{version}, as asked for")));
        }
        (BackendChoice::Legacy, _, legacy) => {
            let (tools, version) = legacy.ok_or_else(|| missing("iptables-legacy"))?;
            return Ok((tools, format!("{version}, as asked for")));
        }
        (BackendChoice::Auto, None, None) => return Err(missing("iptables")),
        (BackendChoice::Auto, Some((tools, version)), None) | (BackendChoice::Auto, None, Some((tools, version))) => {
            return Ok((tools, format!("{version}, the only variant installed")));
        }
        (BackendChoice::Auto, Some(nft), Some(legacy)) => (nft, legacy),
    };
    // What stands already is kept, so that a restart does not leave two sets of rules behind.
    for (chain, why) in [(OURS, "stagenet's rules are there already"), (KUBELET_HINT, "kubelet uses it")] {
        for (tools, version) in [&nft, &legacy] {
            match tools.has_chain("mangle", chain).await {
                Ok(true) => return Ok((*tools, format!("{version}, because {why}"))),
                Ok(false) => {}
                Err(error) => {
                    let kept = [&nft, &legacy].into_iter().find(|(tools, _)| Some(*tools) == present);
                    let (tools, version) = kept.ok_or_else(|| error.clone())?;
                    return Ok((*tools, format!("{version}, as before, because {error}")));
                }
            }
        }
    }
    if legacy_tables(Family::V4).is_empty() {
        return Ok((nft.0, format!("{}, because no legacy table is registered", nft.1)));
    }
    if has_rules(nft.0).await || !has_rules(legacy.0).await {
        return Ok((nft.0, format!("{}, because legacy tables alone are not in use", nft.1)));
    }
    Ok((
        legacy.0,
        format!("{}, because the node's rules are in legacy tables only", legacy.1),
    ))
}

/// Whether a variant holds any IPv4 rule or chain in a table that is registered.
pub(super) async fn has_rules(tools: Tools) -> bool {
    for table in ["filter", "nat", "mangle", "raw"] {
        if !tools.registered(Family::V4, table) {
            continue;
        }
        if let Ok(output) = execute(tools.command(Family::V4), table, &format!("-w {LOCK_WAIT} -S")).await
            && output
                .stdout
                .split(|b| *b == b'\n')
                .any(|line| line.starts_with(b"-A") || line.starts_with(b"-N"))
        {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_are_read_from_the_version() {
        assert_eq!(variant("iptables v1.8.9 (nf_tables)"), Some(Backend::Nft));
        assert_eq!(variant("iptables v1.8.9 (legacy)"), Some(Backend::Legacy));
        assert_eq!(variant("iptables v1.6.1"), Some(Backend::Legacy));
        assert_eq!(variant("sh: not found"), None);
    }

    #[test]
    fn commands_carry_the_variant_unless_only_plain_ones_exist() {
        let tools = |backend, plain| Tools { backend, plain };
        assert_eq!(tools(Backend::Nft, false).restore(Family::V6), "ip6tables-nft-restore");
        assert_eq!(tools(Backend::Legacy, false).save(Family::V4), "iptables-legacy-save");
        assert_eq!(tools(Backend::Legacy, true).restore(Family::V4), "iptables-restore");
    }
}
