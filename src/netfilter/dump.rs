//! What of `iptables-save` output is ours: hook positions and, rule by rule, the hashes in our chains. Never a full rule parser.
//!
//! Takes any text: what it cannot make sense of is somebody else's, and is passed over.

use std::collections::{BTreeMap, BTreeSet};

use super::encode::bare_hash;
use super::render::{HASH_DIGITS, HOOK_COMMENT, RULE_COMMENT};
use super::rules::CHAIN_PREFIX;
use super::{ChainName, Hook, HookRule};

/// One table as found in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedTable {
    /// For each built-in chain with a jump of ours: what is in it.
    pub hooks: BTreeMap<Hook, ObservedHook>,
    /// Each chain whose name starts with `SNET-`, valid or not: one entry a rule: the hash that its comment carries; for a rule without a
    /// comment whose form is that of a bare rule of ours, that of its words; None for any other.
    pub chains: BTreeMap<String, Vec<Option<RuleHash>>>,
    /// Those of `chains` that a foreign rule leads to: the kernel does not delete them.
    pub referenced: BTreeSet<String>,
    /// Whether no packet sees the table: somebody has switched it off. Not in any dump; who reads a table asks the kernel.
    pub dormant: bool,
}

/// Our jumps in one built-in chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedHook {
    /// Our rules, with the position of each (1 = first rule), in order.
    pub jumps: Vec<(u32, HookRule)>,
}

/// Enough of a SHA-256 over a rule's rendered text to compare by: 12 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleHash(pub String);

/// Reads the output for one table of `iptables-save -t TABLE` (with or without `-c`) or of `iptables -t TABLE -S`.
///
/// A rule in a built-in chain is ours if its comment is `stagenet` and it is of one of the forms of [`HookRule`]: what the renderer writes and can take away again.
pub fn parse(text: &str) -> ObservedTable {
    let mut table = ObservedTable::default();
    let mut positions: BTreeMap<&str, u32> = BTreeMap::new();
    for line in lines(text) {
        let Line::Rule { chain, words, .. } = line else {
            if let Line::Chain(name) = line
                && is_ours(name)
            {
                table.chains.entry(name.to_owned()).or_default();
            }
            continue;
        };
        if is_ours(chain) {
            table
                .chains
                .entry(chain.to_owned())
                .or_default()
                .push(rule_hash(&words).or_else(|| bare_rule(&words)));
            continue;
        }
        let position = positions.entry(chain).or_default();
        *position += 1;
        match (builtin(chain), builtin(chain).and_then(|hook| hook_rule(hook, &words))) {
            (Some(hook), Some(rule)) => table.hooks.entry(hook).or_default().jumps.push((*position, rule)),
            _ => table
                .referenced
                .extend(target(&words).filter(|name| is_ours(name)).map(str::to_owned)),
        }
    }
    table
}

/// What one rule of ours has counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleCount {
    /// Which rule.
    pub hash: RuleHash,
    /// Packets that it applied to.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What the rules of our chains have counted, from `iptables-save -c -t TABLE`: by chain, in order, rules without our mark left out.
pub fn counters(text: &str) -> BTreeMap<String, Vec<RuleCount>> {
    let mut counted: BTreeMap<String, Vec<RuleCount>> = BTreeMap::new();
    for line in lines(text) {
        let Line::Rule {
            chain,
            packets,
            bytes,
            words,
        } = line
        else {
            continue;
        };
        if let Some(hash) = rule_hash(&words).filter(|_| is_ours(chain)) {
            counted
                .entry(chain.to_owned())
                .or_default()
                .push(RuleCount { hash, packets, bytes });
        }
    }
    counted
}

/// Packets that our DROP rules have counted, by chain, from `iptables-save -c -t mangle`. Chains without a DROP rule of ours are absent.
pub fn dropped_packets(text: &str) -> BTreeMap<String, u64> {
    let mut dropped = BTreeMap::new();
    for line in lines(text) {
        let Line::Rule { chain, packets, words, .. } = line else { continue };
        if !is_ours(chain) || target(&words) != Some("DROP") || rule_hash(&words).is_none() {
            continue;
        }
        let sum: &mut u64 = dropped.entry(chain.to_owned()).or_default();
        *sum = sum.saturating_add(packets);
    }
    dropped
}

fn is_ours(chain: &str) -> bool {
    chain.starts_with(CHAIN_PREFIX)
}

fn builtin(chain: &str) -> Option<Hook> {
    Hook::ALL.into_iter().find(|hook| hook.as_str() == chain)
}

/// What a line of a dump says, as far as it matters here.
enum Line<'a> {
    /// `:CHAIN POLICY [0:0]` of save, `-N CHAIN` of list.
    Chain(&'a str),
    /// `[PACKETS:BYTES] -A CHAIN WORDS`
    Rule {
        chain: &'a str,
        packets: u64,
        bytes: u64,
        words: Vec<String>,
    },
    /// Anything else.
    Other,
}

/// The lines of a dump. A rule goes on where a line breaks inside a quoted word: a stranger's comment may have line breaks in it, and what looks like
/// a rule there is none.
fn lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = rest.find('\n').unwrap_or(rest.len());
        let (line, end) = line(rest, end);
        rest = rest.get(end + 1..).unwrap_or_default();
        Some(line)
    })
}

/// The line that begins `text`, and where it ends if not at `end`.
fn line(text: &str, end: usize) -> (Line<'_>, usize) {
    let first = &text[..end];
    if let Some(declared) = first.strip_prefix(':').or_else(|| first.strip_prefix("-N ")) {
        return (declared.split_ascii_whitespace().next().map_or(Line::Other, Line::Chain), end);
    }
    let (counters, rule) = match first.strip_prefix('[').and_then(|counted| counted.split_once("] ")) {
        Some((counters, rule)) => (counters, rule),
        None => ("", first),
    };
    let Some(rule) = rule.strip_prefix("-A ") else {
        return (Line::Other, end);
    };
    let chain = rule.split(' ').next().unwrap_or_default();
    let start = end - rule.len() + chain.len();
    let (words, length) = words(&text[start..]);
    let (packets, bytes) = counters.split_once(':').unwrap_or_default();
    let number = |digits: &str| digits.parse().unwrap_or_default();
    let (packets, bytes) = (number(packets), number(bytes));
    let rule = Line::Rule {
        chain,
        packets,
        bytes,
        words,
    };
    (rule, start + length)
}

/// The longest quoted word that is looked for the end of: longer than any comment or prefix can be with each of its bytes escaped
/// (`XT_MAX_COMMENT_LEN` in `linux/netfilter/xt_comment.h` is 256).
const QUOTED_MAX: usize = 1024;

/// Words as the tools print them, up to the end of the line, and where that is. They are separated by blanks, and quoted with `"` if need be, with `\`
/// before a quote or backslash inside (`xtables_save_string`). Names of chains and interfaces are printed as they are: in them a quote is a quote.
fn words(text: &str) -> (Vec<String>, usize) {
    let mut words: Vec<String> = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' if quoted => quoted = false,
            '\\' if quoted => word.get_or_insert_default().extend(chars.next().map(|(_, c)| c)),
            c if quoted => word.get_or_insert_default().push(c),
            '\n' => {
                words.extend(word);
                return (words, at);
            }
            c if c.is_ascii_whitespace() => words.extend(word.take()),
            '"' if word.is_none() && !names_follow(words.last()) && is_quoted(&text[at + 1..]) => {
                quoted = true;
                word = Some(String::new());
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    (words, text.len())
}

fn names_follow(option: Option<&String>) -> bool {
    option.is_some_and(|option| ["-i", "-o", "-j", "-g"].contains(&option.as_str()))
}

/// Whether what follows a quote is the rest of a quoted word: another quote ends it, and a blank or nothing comes then.
fn is_quoted(text: &str) -> bool {
    let mut bytes = text.bytes().take(QUOTED_MAX);
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => {
                bytes.next();
            }
            b'"' => return bytes.next().is_none_or(|next| next.is_ascii_whitespace()),
            _ => {}
        }
    }
    false
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
    marked(value(words, "--comment")?)
}

/// The hash that the comment of a rule of ours carries.
pub fn marked(comment: &str) -> Option<RuleHash> {
    let digits = comment.strip_prefix(RULE_COMMENT)?.split(':').next()?;
    let valid = digits.len() == HASH_DIGITS && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    valid.then(|| RuleHash(digits.to_owned()))
}

/// The hash of a rule without a comment, if it is of a form that `encode::bare` allows.
fn bare_rule(words: &[String]) -> Option<RuleHash> {
    let words = uncounted(words)?;
    let mut rest = words.as_slice();
    for option in ["-s", "-d", "-i", "-o"] {
        if let [name, _, after @ ..] = rest
            && *name == option
        {
            rest = after;
        }
    }
    if let ["-m", "mark" | "connmark", "--mark", _, after @ ..] = rest {
        rest = after;
    }
    let ours = match rest {
        ["-j", "RETURN"] | ["-j", "MARK", "--set-xmark", _] | ["-j", "CT", "--zone", _] => true,
        ["-j" | "-g", to] => is_ours(to),
        _ => false,
    };
    ours.then(|| bare_hash(&words.join(" ")))
}

/// The words of a rule without what `-S -v` puts between them and the target: counters.
fn uncounted(words: &[String]) -> Option<Vec<&str>> {
    let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
    if let Some(at) = words.iter().position(|word| *word == "-c") {
        words.get(at..at + 3)?;
        words.drain(at..at + 3);
    }
    Some(words)
}

fn hook_rule(at: Hook, words: &[String]) -> Option<HookRule> {
    let words = uncounted(words)?;
    if let ["-j", target] = words.as_slice() {
        let ours = HookRule::BARE.contains(&(at, target));
        return ChainName::new(target.strip_prefix(CHAIN_PREFIX)?)
            .filter(|_| ours)
            .map(HookRule::Bare);
    }
    let (condition, rest) = match words.as_slice() {
        ["-m", "connmark", "--mark", mark, rest @ ..] => (Some(bits(mark)?), rest),
        rest => (None, rest),
    };
    let ["-m", "comment", "--comment", HOOK_COMMENT, "-j", target] = rest else {
        return None;
    };
    match condition {
        None => ChainName::new(target.strip_prefix(CHAIN_PREFIX)?).map(HookRule::Jump),
        Some(bits) => (*target == "ACCEPT").then_some(HookRule::AcceptMarked(bits)),
    }
}

/// The bits of a mark that is its own mask.
fn bits(words: &str) -> Option<u32> {
    let hex = |text: &str| u32::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    let (value, mask) = words.split_once('/')?;
    hex(value).filter(|bits| *bits != 0 && hex(mask) == Some(*bits))
}

#[cfg(test)]
#[path = "dump_tests.rs"]
mod tests;
