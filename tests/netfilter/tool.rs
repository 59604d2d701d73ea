//! The real `iptables` tools, driven as the product drives them.

use std::collections::BTreeMap;
use std::fs;

use stagenet::netfilter::diff::{TableChange, diff};
use stagenet::netfilter::dump::{self, ObservedTable};
use stagenet::netfilter::render::{self, RestoreText};
use stagenet::netfilter::{Family, Ruleset, Table};

use crate::lab::{Backend, Ns};

fn tables() -> impl Iterator<Item = (Family, Table)> {
    Family::ALL.into_iter().flat_map(|family| Table::ALL.map(|table| (family, table)))
}

/// One tool on one host.
pub struct Tool<'a> {
    pub ns: &'a Ns,
    pub backend: Backend,
}

impl Tool<'_> {
    fn program(&self, family: Family) -> String {
        let v6 = if family == Family::V6 { "6" } else { "" };
        format!("ip{v6}tables-{}", self.backend.name())
    }

    /// Runs `iptables -t TABLE ARGS`.
    pub fn run(&self, table: Table, args: &str) {
        self.ns.sh(&format!("{} -w -t {} {args}", self.program(Family::V4), table.as_str()));
    }

    pub fn observe(&self, family: Family, table: Table) -> ObservedTable {
        dump::parse(&self.save(family, table))
    }

    pub fn save(&self, family: Family, table: Table) -> String {
        self.ns.sh(&format!("{}-save -t {}", self.program(family), table.as_str()))
    }

    /// The other way to read a table.
    pub fn list(&self, family: Family, table: Table) -> String {
        self.ns.sh(&format!("{} -w -t {} -S", self.program(family), table.as_str()))
    }

    /// A table of IPv4 with counters.
    pub fn save_counted(&self, table: Table) -> String {
        self.ns.sh(&format!("{}-save -c -t {}", self.program(Family::V4), table.as_str()))
    }

    /// All tables without times and counters: what has to be equal.
    pub fn state(&self) -> String {
        let mut state = String::new();
        for (family, table) in tables() {
            for line in self.save(family, table).lines().filter(|line| !line.starts_with('#')) {
                let line = match line.split_once(" [") {
                    Some((chain, _)) if line.starts_with(':') => chain,
                    _ => line,
                };
                state += line;
                state.push('\n');
            }
        }
        state
    }

    /// What has to be written for `desired`, by family.
    pub fn changes(&self, desired: &Ruleset) -> Vec<(Family, RestoreText)> {
        let mut families: BTreeMap<Family, BTreeMap<Table, TableChange>> = BTreeMap::new();
        for (family, table) in tables() {
            let rules = desired.tables.get(&(family, table)).cloned().unwrap_or_default();
            let change = diff(&rules, &self.observe(family, table));
            families.entry(family).or_default().insert(table, change);
        }
        let texts = families
            .into_iter()
            .map(|(family, tables)| (family, render::changes(family, &tables).unwrap()));
        texts.filter(|(_, text)| !text.is_empty()).collect()
    }

    /// Makes the kernel hold `desired`. Returns how many lines were written.
    pub fn apply(&self, desired: &Ruleset) -> usize {
        let mut lines = 0;
        for (family, text) in self.changes(desired) {
            lines += text.text.lines().count();
            if let Err(said) = self.restore(family, &text.text) {
                let line = render::error_line(&said).and_then(|number| text.line(number));
                panic!("{} refused: {said}\nwhich is {line:?} in\n{}", self.program(family), text.text);
            }
        }
        lines
    }

    pub fn restore(&self, family: Family, text: &str) -> Result<(), String> {
        fs::write("/run/lab/restore", text).unwrap();
        let ran = self
            .ns
            .try_sh(&format!("{}-restore --noflush -w 5 < /run/lab/restore", self.program(family)));
        if ran.code == 0 { Ok(()) } else { Err(ran.stderr) }
    }
}
