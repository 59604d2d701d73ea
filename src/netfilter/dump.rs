//! What of `iptables-save` output is ours: hook positions and, rule by rule, the hashes in our chains. Never a full rule parser.
//!
//! Takes any text: what it cannot make sense of is somebody else's, and is passed over.

use std::collections::{BTreeMap, BTreeSet};

use super::render::{HASH_DIGITS, HOOK_COMMENT, RULE_COMMENT};
use super::rules::CHAIN_PREFIX;
use super::{ChainName, Hook};

/// One table as found in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedTable {
    /// For each built-in chain with a jump of ours: what is in it.
    pub hooks: BTreeMap<Hook, ObservedHook>,
    /// Each chain whose name starts with `SNET-`, valid or not: one entry a rule, the hash that its comment carries, or None for a rule without our mark.
    pub chains: BTreeMap<String, Vec<Option<RuleHash>>>,
    /// Those of `chains` that a foreign rule leads to: the kernel does not delete them.
    pub referenced: BTreeSet<String>,
}

/// Our jumps in one built-in chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedHook {
    /// Chains that our jumps lead to, with the position of each (1 = first rule), in order.
    pub jumps: Vec<(u32, ChainName)>,
}

/// Enough of a SHA-256 over a rule's rendered text to compare by: 12 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleHash(pub String);

/// Reads the output for one table of `iptables-save -t TABLE` (with or without `-c`) or of `iptables -t TABLE -S`.
///
/// A jump is ours if it has no conditions and the comment is `stagenet`: the one form that the renderer writes and can take away again.
pub fn parse(text: &str) -> ObservedTable {
    let mut table = ObservedTable::default();
    let mut positions: BTreeMap<&str, u32> = BTreeMap::new();
    for line in text.lines() {
        if let Some(name) = declared_chain(line) {
            if is_ours(name) {
                table.chains.entry(name.to_owned()).or_default();
            }
            continue;
        }
        let Some((chain, rest)) = appended_rule(line) else {
            continue;
        };
        let words = words(rest);
        if is_ours(chain) {
            table.chains.entry(chain.to_owned()).or_default().push(rule_hash(&words));
            continue;
        }
        let position = positions.entry(chain).or_default();
        *position += 1;
        let (Some(target), hook) = (target(&words).filter(|name| is_ours(name)), builtin(chain)) else {
            continue;
        };
        match (hook, hook_target(&words)) {
            (Some(hook), Some(to)) => table.hooks.entry(hook).or_default().jumps.push((*position, to)),
            _ => {
                table.referenced.insert(target.to_owned());
            }
        }
    }
    table
}

/// Packets that our DROP rules have counted, by chain, from `iptables-save -c -t mangle`. Chains without a DROP rule of ours are absent.
pub fn dropped_packets(text: &str) -> BTreeMap<String, u64> {
    let mut dropped = BTreeMap::new();
    for line in text.lines() {
        let Some((chain, rest)) = appended_rule(line).filter(|(chain, _)| is_ours(chain)) else {
            continue;
        };
        let words = words(rest);
        if target(&words) != Some("DROP") || rule_hash(&words).is_none() {
            continue;
        }
        let packets: u64 = line
            .strip_prefix('[')
            .and_then(|l| l.split_once(':'))
            .and_then(|(n, _)| n.parse().ok())
            .unwrap_or_default();
        let sum: &mut u64 = dropped.entry(chain.to_owned()).or_default();
        *sum = sum.saturating_add(packets);
    }
    dropped
}

fn is_ours(chain: &str) -> bool {
    chain.starts_with(CHAIN_PREFIX)
}

fn builtin(chain: &str) -> Option<Hook> {
    [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Postrouting]
        .into_iter()
        .find(|hook| hook.as_str() == chain)
}

/// `:CHAIN POLICY [0:0]` of save, `-N CHAIN` of list.
fn declared_chain(line: &str) -> Option<&str> {
    let rest = line.strip_prefix(':').or_else(|| line.strip_prefix("-N "))?;
    rest.split_ascii_whitespace().next()
}

/// `[0:0] -A CHAIN …`: the chain and what follows.
fn appended_rule(line: &str) -> Option<(&str, &str)> {
    let line = match line.strip_prefix('[') {
        Some(counted) => counted.split_once("] ")?.1,
        None => line,
    };
    let rest = line.strip_prefix("-A ")?;
    Some(rest.split_once(' ').unwrap_or((rest, "")))
}

/// Words as the tools print them: separated by blanks, quoted with `"` if need be, `\` before a quote or backslash inside quotes.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            '\\' if quoted => word.get_or_insert_default().extend(chars.next()),
            c if c.is_ascii_whitespace() && !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// The word behind the last `option` that is an option itself: not negated, not the value of another.
fn value<'a>(words: &'a [String], option: &str) -> Option<&'a str> {
    words.windows(2).rev().find_map(|pair| match pair {
        [name, value] if name == option => Some(value.as_str()),
        _ => None,
    })
}

fn target(words: &[String]) -> Option<&str> {
    value(words, "-j").or_else(|| value(words, "-g"))
}

fn rule_hash(words: &[String]) -> Option<RuleHash> {
    let marked = value(words, "--comment")?.strip_prefix(RULE_COMMENT)?;
    let digits = marked.split(':').next()?;
    let valid = digits.len() == HASH_DIGITS && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    valid.then(|| RuleHash(digits.to_owned()))
}

fn hook_target(words: &[String]) -> Option<ChainName> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["-m", "comment", "--comment", HOOK_COMMENT, "-j", chain, rest @ ..] if rest.is_empty() || rest.first() == Some(&"-c") => {
            ChainName::new(chain.strip_prefix(CHAIN_PREFIX)?)
        }
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SAVED: &str = r#"# Warning: iptables-legacy tables present, use iptables-legacy-save to see them
# Generated by iptables-nft-save v1.8.9 (nf_tables) on Mon Nov 23 05:40:48 2026
*mangle
:PREROUTING ACCEPT [0:0]
:FORWARD ACCEPT [12:3456]
:SNET-FWD - [0:0]
:SNET-N-0123ABCD - [0:0]
:SNET-odd_one - [0:0]
:cali-FORWARD - [0:0]
[0:0] -A FORWARD -m comment --comment "say \"no\" -j SNET-FWD" -j cali-FORWARD
[7:420] -A FORWARD -m comment --comment stagenet -j SNET-FWD
[0:0] -A FORWARD -s 10.0.0.0/8 -m comment --comment stagenet -j SNET-odd_one
[5:300] -A SNET-FWD -m conntrack --ctstate RELATED,ESTABLISHED -m comment --comment "stagenet:0123456789ab" -j RETURN
[0:0] -A SNET-FWD -i eth1 -m comment --comment "stagenet:ffffffffffff:a/b" -g SNET-N-0123ABCD
[0:0] -A SNET-FWD -j ACCEPT
[2:120] -A SNET-N-0123ABCD -m comment --comment "stagenet:0000000000ff:segment-b" -j DROP
[3:180] -A SNET-N-0123ABCD -m comment --comment "stagenet:0000000000fe:segment-b" -j DROP
[9:999] -A SNET-N-0123ABCD -j DROP
COMMIT
# Table `security' is incompatible, use 'nft' tool.
"#;

    fn hash(digits: &str) -> RuleHash {
        RuleHash(digits.to_owned())
    }

    #[test]
    fn ours_is_found_among_the_others() {
        let table = parse(SAVED);
        let jumps = &table.hooks[&Hook::Forward].jumps;
        assert_eq!(
            jumps,
            &[(2, ChainName::new("FWD").unwrap())],
            "a jump with conditions is not the one we place"
        );
        assert_eq!(
            table.chains.keys().collect::<Vec<_>>(),
            ["SNET-FWD", "SNET-N-0123ABCD", "SNET-odd_one"]
        );
        assert_eq!(
            table.chains["SNET-FWD"],
            [Some(hash("0123456789ab")), Some(hash("ffffffffffff")), None]
        );
        assert_eq!(table.referenced, BTreeSet::from(["SNET-odd_one".to_owned()]));
    }

    #[test]
    fn list_output_reads_like_save_output() {
        let list = "-P FORWARD ACCEPT\n-N SNET-FWD\n-A FORWARD -m comment --comment stagenet -c 7 420 -j SNET-FWD\n\
                    -A FORWARD -m comment --comment stagenet -j SNET-FWD\n\
                    -A SNET-FWD -m comment --comment \"stagenet:0123456789ab\" -j DROP\n";
        let table = parse(list);
        assert_eq!(table.chains["SNET-FWD"], [Some(hash("0123456789ab"))]);
        assert_eq!(table.hooks[&Hook::Forward].jumps.last(), Some(&(2, ChainName::new("FWD").unwrap())));
    }

    #[test]
    fn only_our_drops_are_counted() {
        assert_eq!(dropped_packets(SAVED), BTreeMap::from([("SNET-N-0123ABCD".to_owned(), 5)]));
    }

    #[test]
    fn a_mark_that_is_not_quite_ours_is_no_mark() {
        for comment in [
            "stagenet",
            "stagenet:",
            "stagenet:0123",
            "stagenet:0123456789AB",
            "stagenet:0123456789abc",
            "xstagenet:0123456789ab",
        ] {
            let table = parse(&format!("-A SNET-FWD -m comment --comment \"{comment}\" -j DROP"));
            assert_eq!(table.chains["SNET-FWD"], [None], "{comment}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "\\PC*", lines in prop::collection::vec("(\\[[0-9:]{0,20}\\] ?)?(:|-A |-N )(SNET-|FORWARD)[ -~]{0,60}", 0..20)) {
            let _ = parse(&text);
            let lines = lines.join("\n");
            let rules: usize = parse(&lines).chains.values().map(Vec::len).sum();
            prop_assert!(rules <= lines.lines().count());
            let _ = dropped_packets(&lines);
        }
    }
}
