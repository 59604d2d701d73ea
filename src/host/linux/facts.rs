//! What the kernel has and is set to, and the agent may not change. Found by reading, never by trying: nothing is loaded or registered.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::OnceLock;
use std::thread;

use super::observe::sysctl;
use crate::netfilter::{Family, Helper};
use crate::plan::KernelFacts;

/// Whether what the kernel itself answers bears the mark of what it answers (Documentation/networking/ip-sysctl.rst).
pub(super) const FWMARK_REFLECT: [(Family, &str); 2] = [(Family::V4, "ipv4/fwmark_reflect"), (Family::V6, "ipv6/fwmark_reflect")];

/// A helper's part in NAT: its module, and the function that starts it where it is built in.
///
/// The part in NAT is what is asked for, because it needs the part in connection tracking and not the other way round (its Kconfig, and the
/// symbols that it uses), and because the kernel loads the part in connection tracking by itself when a rule names it, and this one never.
struct Nat {
    module: &'static str,
    start: &'static str,
    helpers: &'static [Helper],
}

/// How the names of all those functions begin.
const START: &str = "nf_nat_";

// net/netfilter/nf_nat_*.c, net/ipv4/netfilter/nf_nat_*.c
const NAT: [Nat; 8] = [
    nat("nf_nat_amanda", "nf_nat_amanda_init", &[Helper::Amanda]),
    nat("nf_nat_ftp", "nf_nat_ftp_init", &[Helper::Ftp]),
    nat("nf_nat_h323", "nf_nat_h323_init", &[Helper::H323Signalling, Helper::H323Ras]),
    nat("nf_nat_irc", "nf_nat_irc_init", &[Helper::Irc]),
    nat("nf_nat_pptp", "nf_nat_helper_pptp_init", &[Helper::Pptp]),
    nat("nf_nat_sip", "nf_nat_sip_init", &[Helper::Sip]),
    nat("nf_nat_snmp_basic", "nf_nat_snmp_basic_init", &[Helper::Snmp]),
    nat("nf_nat_tftp", "nf_nat_tftp_init", &[Helper::Tftp]),
];

const fn nat(module: &'static str, start: &'static str, helpers: &'static [Helper]) -> Nat {
    Nat { module, start, helpers }
}

/// The module that has a helper's part in NAT.
pub(super) fn module(helper: Helper) -> Option<&'static str> {
    NAT.iter().find(|nat| nat.helpers.contains(&helper)).map(|nat| nat.module)
}

/// Reads them.
pub(super) fn read() -> KernelFacts {
    let on = |setting: &str| sysctl(setting).is_some_and(|value| value != 0);
    let reflecting = FWMARK_REFLECT.iter().filter(|(_, setting)| on(setting));
    KernelFacts {
        ipv6_forwarding: on("ipv6/conf/all/forwarding"),
        fwmark_reflect: reflecting.map(|(family, _)| *family).collect(),
        helpers: helpers(),
    }
}

/// Functions of [`NAT`] that are built in. Fixed for as long as the kernel runs, and some megabytes long.
static BUILT_IN: OnceLock<Option<BTreeSet<&'static str>>> = OnceLock::new();

fn built_in() -> Option<&'static BTreeSet<&'static str>> {
    let built_in = BUILT_IN.get_or_init(|| starts(BufReader::new(File::open("/proc/kallsyms").ok()?)));
    built_in.as_ref()
}

/// Begins to read what is built in: the kernel takes some fifty milliseconds to print its symbols, and an agent that starts has other things to wait for.
pub(super) fn read_ahead() {
    if BUILT_IN.get().is_none() {
        // Whoever asks first reads it, if there is no room for a thread.
        let _ = thread::Builder::new().name("symbols".to_owned()).spawn(built_in);
    }
}

/// Helpers that are built in, or loaded at the moment. None: the kernel does not say what is built in, and none is loaded.
fn helpers() -> Option<BTreeSet<Helper>> {
    let built_in = built_in();
    let modules = fs::read_to_string("/proc/modules").unwrap_or_default();
    let loaded = |module: &str| {
        let listed = modules.lines().any(|line| line.split(' ').next() == Some(module));
        listed || Path::new("/sys/module").join(module).exists()
    };
    let has = |nat: &&Nat| built_in.is_some_and(|starts| starts.contains(nat.start)) || loaded(nat.module);
    let found: BTreeSet<Helper> = NAT.iter().filter(has).flat_map(|nat| nat.helpers).copied().collect();
    (built_in.is_some() || !found.is_empty()).then_some(found)
}

/// Those functions of [`NAT`] that a list of the kernel's symbols has: `ffffffff837e7ae0 t nf_nat_ftp_init`, in modules followed by `[MODULE]`.
/// None for a list without functions, as a kernel without `CONFIG_KALLSYMS` has it.
fn starts(mut symbols: impl BufRead) -> Option<BTreeSet<&'static str>> {
    let (mut found, mut names_at, mut line) = (BTreeSet::new(), None, Vec::new());
    // A hundred thousand lines: of nearly all no more is looked at than how the name begins. Addresses are all of one length, a type is one letter.
    while symbols.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
        let at = *names_at.get_or_insert_with(|| line.iter().position(|byte| *byte == b' ').unwrap_or_default() + 3);
        if let Some(symbol) = line.get(at..).filter(|symbol| symbol.starts_with(START.as_bytes())) {
            let symbol = String::from_utf8_lossy(symbol);
            // Compilers append to names: `nf_nat_ftp_init.llvm.4711`.
            let name = symbol.split(['.', '\t', ' ', '\n']).next().unwrap_or_default();
            let starts = NAT.iter().map(|nat| nat.start).filter(|start| *start == name);
            found.extend(starts.filter(|_| !symbol.contains('[')));
        }
        line.clear();
    }
    names_at.map(|_| found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_in_is_read_from_the_symbols() {
        let symbols = |text: &str| starts(text.as_bytes());
        let listed = "ffffffff81000000 T _stext\n0000000000000000 t __pfx_nf_nat_ftp_init\n0000000000000000 t nf_nat_ftp_init\n\
                      0000000000000000 t nf_nat_sip_init.llvm.123\n0000000000000000 t nf_nat_irc_init\t[nf_nat_irc]\n0000 t";
        assert_eq!(symbols(listed), Some(BTreeSet::from(["nf_nat_ftp_init", "nf_nat_sip_init"])));
        assert_eq!(symbols("ffffffff81000000 T _stext"), Some(BTreeSet::new()));
        assert_eq!(symbols(""), None);
    }

    #[test]
    fn every_helper_has_a_module() {
        let names: BTreeSet<_> = NAT.iter().flat_map(|nat| nat.helpers).map(|helper| helper.as_str()).collect();
        assert_eq!(names.len(), 9);
        assert_eq!(module(Helper::H323Ras), Some("nf_nat_h323"));
    }
}
