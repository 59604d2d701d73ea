//! Legacy tables tell nothing of a change. So the text of all of a family is compared with what it was when those of ours were as the agent knows them: taking ten thousand rules to
//! pieces costs several times what a look at their text does, and one process for all tables is cheaper than one for each.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hasher as _};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};

use super::tables::{OUTPUT_MAX, run, run_to, save};
use super::tools::Tools;
use crate::host::HostError;
use crate::netfilter::dump::{self, ObservedTable};
use crate::netfilter::{Family, Table};

/// What failed where a tool did.
const ACTION: &str = "reading all tables";

/// The texts that are remembered, by their marks.
#[derive(Debug, Default)]
pub(super) struct Texts(BTreeMap<Family, Mark>);

impl Texts {
    /// What the agent knows of the tables of a family is about to be another thing.
    pub(super) fn forget(&mut self, family: Family) {
        self.0.remove(&family);
    }

    /// Those tables that do not hold what is known of them.
    pub(super) async fn changed(
        &mut self,
        tools: Tools,
        known: &BTreeMap<(Family, Table), &ObservedTable>,
    ) -> Result<BTreeSet<(Family, Table)>, HostError> {
        let mut changed = BTreeSet::new();
        for family in Family::ALL {
            let known: Vec<_> = known
                .iter()
                .filter(|(at, _)| at.0 == family)
                .map(|(at, known)| (*at, *known))
                .collect();
            if known.is_empty() {
                continue;
            }
            if let Some(mark) = self.0.get(&family)
                && said(tools, family).await.is_ok_and(|now| now == *mark)
            {
                continue;
            }
            self.forget(family);
            let text = run(&tools.save(family), &[], "").await?.output(tools, ACTION);
            if let Err(error) = &text {
                // One rule of somebody's that the tools cannot print, in a table that is none of ours, fails all of it.
                tracing::debug!(%error, "tables are read one by one");
            }
            let before = changed.len();
            for (at, known) in known {
                let now = match &text {
                    Ok(text) => dump::parse(section(text, at.1)),
                    Err(_) => dump::parse(&save(tools, family, at.1, false).await?),
                };
                if now != *known {
                    changed.insert(at);
                }
            }
            if let (Ok(text), true) = (text, changed.len() == before) {
                self.0.insert(family, mark(&text));
            }
        }
        Ok(changed)
    }
}

/// The mark of what all registered tables of a family hold now. The text is not kept for that: with ten thousand rules it is megabytes.
async fn said(tools: Tools, family: Family) -> Result<Mark, HostError> {
    let tool = tools.save(family);
    let said = run_to(&tool, &[], "", |output| async move {
        let mut mark = Marker::default();
        if let Some(output) = output {
            let (mut lines, mut line) = (BufReader::new(output.take(OUTPUT_MAX)), Vec::new());
            while lines.read_until(b'\n', &mut line).await? > 0 {
                mark.take(line.strip_suffix(b"\n").unwrap_or(&line));
                line.clear();
            }
        }
        Ok(mark.end())
    });
    said.await?.output(tools, ACTION)
}

/// The part of a text of several tables that is about one of them.
fn section(text: &str, table: Table) -> &str {
    let head = format!("*{}\n", table.as_str());
    let from = if text.starts_with(&head) {
        Some(0)
    } else {
        text.find(&format!("\n{head}")).map(|at| at + 1)
    };
    let Some(rest) = from.and_then(|at| text.get(at..)) else {
        return "";
    };
    rest.find("\nCOMMIT\n").and_then(|end| rest.get(..=end)).unwrap_or(rest)
}

/// What tells the text of tables from another one: all of it but the lines in which the tools say when they wrote it, and what the policies of built-in chains have
/// counted, which changes with every packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark(u64);

#[derive(Default)]
struct Marker(DefaultHasher);

impl Marker {
    fn take(&mut self, line: &[u8]) {
        let counted = line
            .starts_with(b":")
            .then(|| line.iter().rposition(|byte| *byte == b'['))
            .flatten();
        if !line.starts_with(b"#") {
            self.0.write(&line[..counted.unwrap_or(line.len())]);
            self.0.write_u8(b'\n');
        }
    }

    fn end(self) -> Mark {
        Mark(self.0.finish())
    }
}

/// The mark of a text.
fn mark(text: &str) -> Mark {
    let mut mark = Marker::default();
    text.split_terminator('\n').for_each(|line| mark.take(line.as_bytes()));
    mark.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_and_time_leave_the_mark_of_a_text_as_it_is_and_rules_do_not() {
        let text = "# Generated on Mon\n*nat\n:PREROUTING ACCEPT [1:60]\n:SNET-A - [0:0]\n-A SNET-A -m set --x [1:2]\nCOMMIT\n";
        let same = text.replace("[1:60]", "[27:99]").replace("Mon", "Tue");
        assert_eq!(mark(text), mark(&same));
        for other in ["[1:2]", "ACCEPT", "*nat"].map(|part| text.replace(part, "")) {
            assert_ne!(mark(text), mark(&other), "{other}");
        }
    }

    #[test]
    fn a_table_is_found_among_others() {
        let text = "# x\n*mangle\n:IN - [0:0]\n-A IN -m comment --comment \"*nat\"\nCOMMIT\n# x\n*nat\n-A SNET-A -j DROP\nCOMMIT\n";
        assert_eq!(section(text, Table::Nat), "*nat\n-A SNET-A -j DROP\n");
        assert_eq!(
            section(text, Table::Mangle),
            "*mangle\n:IN - [0:0]\n-A IN -m comment --comment \"*nat\"\n"
        );
        assert_eq!(section("*nat\nCOMMIT\n", Table::Nat), "*nat\n");
        assert_eq!(section(text, Table::Raw), "");
    }
}
