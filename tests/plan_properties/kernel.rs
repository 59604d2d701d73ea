//! What is rendered is taken: by the parsers of all four tools in ten thousand worlds, and by the kernel, both ways, in some of them.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use stagenet::netfilter::{Family, Ruleset, render};
use stagenet::plan::World;

use crate::decide;
use crate::lab::{Backend, Ns, isolated};
use crate::lines::{check, rendered};
use crate::netfilter::tool::Tool;
use crate::wide::{hostile_worlds, wide_worlds};

/// Worlds of one test. There are five tests, so that they run side by side.
const WORLDS: usize = 2000;
/// Worlds whose rules a tool is given at once: a process each would take an hour.
const BATCH: usize = 250;

/// The same worlds every time: a failure can be looked at again.
fn runner(part: u8) -> TestRunner {
    TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &[part; 32]))
}

fn tried() -> impl Strategy<Value = World> {
    prop_oneof![4 => wide_worlds(), 1 => hostile_worlds()]
}

/// Rules of many worlds for the tools of one family, in one transaction a table: a chain that is declared again is emptied, and each transaction costs a
/// tool as much as a hundred rules.
#[derive(Default)]
struct Batch {
    /// By its first line, such as `*nat`: the lines of the table, each with the place of the world that it comes from.
    tables: BTreeMap<String, Vec<(usize, String)>>,
    worlds: Vec<World>,
}

impl Batch {
    fn add(&mut self, world: &World, text: &str) {
        let mut table = &mut Vec::new();
        for line in text.lines().filter(|line| *line != "COMMIT") {
            if line.starts_with('*') {
                table = self.tables.entry(line.to_owned()).or_default();
            } else {
                table.push((self.worlds.len(), line.to_owned()));
            }
        }
        self.worlds.push(world.clone());
    }

    /// Shows everything to the tools of `family`, which do all but commit.
    fn show(self, family: Family) {
        for (table, lines) in &self.tables {
            let rules: String = lines.iter().flat_map(|(_, line)| [line, "\n"]).collect();
            fs::write("/run/lab/batch", format!("{table}\n{rules}COMMIT\n")).unwrap();
            for backend in [Backend::Nft, Backend::Legacy] {
                let v6 = if family == Family::V6 { "6" } else { "" };
                let tool = format!("ip{v6}tables-{}-restore", backend.name());
                let ran = Command::new(&tool)
                    .args(["--test", "--noflush", "/run/lab/batch"])
                    .output()
                    .unwrap_or_else(|e| panic!("{tool}: {e}; run `make deps`"));
                let said = String::from_utf8_lossy(&ran.stderr);
                // The first line names the table.
                let culprit = render::error_line(&said).and_then(|number| lines.get(number.checked_sub(2)?));
                let world = culprit.map(|(world, _)| &self.worlds[*world]);
                assert!(ran.status.success(), "{tool} refused: {said}\nwhich is {culprit:?} of\n{world:#?}");
            }
        }
    }
}

/// What has to be among the rules, or the worlds are poor: words, and in how many worlds of a thousand at least.
const VARIETY: [(Family, &str, usize); 14] = [
    (Family::V4, "-j DNAT", 150),
    (Family::V4, "-j NETMAP", 50),
    (Family::V4, "-j SNAT", 100),
    (Family::V4, "--helper", 40),
    (Family::V4, "--zone", 100),
    (Family::V4, "-m mark", 100),
    (Family::V4, "TCPMSS", 100),
    (Family::V4, "sctp", 30),
    (Family::V6, "-j DNAT", 100),
    (Family::V6, "-j NETMAP", 40),
    (Family::V6, "-j SNAT", 80),
    (Family::V6, "--helper", 12),
    (Family::V6, "--zone", 80),
    (Family::V6, "TCPMSS", 100),
];

fn tools_take_everything(part: u8) {
    let (mut runner, tried) = (runner(part), tried());
    let mut seen = VARIETY.map(|_| 0);
    for _ in 0..WORLDS / BATCH {
        let (mut v4, mut v6) = (Batch::default(), Batch::default());
        for _ in 0..BATCH {
            let world = tried.new_tree(&mut runner).unwrap().current();
            for (family, text) in rendered(&decide(&world).1) {
                check(&text).unwrap_or_else(|error| panic!("{error}\n{world:#?}"));
                for ((_, words, _), seen) in VARIETY.iter().zip(&mut seen).filter(|((f, ..), _)| *f == family) {
                    *seen += usize::from(text.contains(words));
                }
                match family {
                    Family::V4 => v4.add(&world, &text),
                    Family::V6 => v6.add(&world, &text),
                }
            }
        }
        v4.show(Family::V4);
        v6.show(Family::V6);
    }
    println!(
        "of {WORLDS} worlds: {:?}",
        VARIETY.iter().zip(seen).map(|((f, w, _), n)| (f, w, n)).collect::<Vec<_>>()
    );
    for ((family, words, wanted), seen) in VARIETY.iter().zip(seen) {
        assert!(seen >= wanted * WORLDS / 1000, "{family} {words}: in {seen} of {WORLDS} worlds");
    }
}

macro_rules! parts {
    ($($name:ident: $part:literal),*) => {$(
        #[test]
        fn $name() {
            isolated(concat!("kernel::", stringify!($name)), || tools_take_everything($part));
        }
    )*};
}

parts! {
    tools_take_everything_1: 1,
    tools_take_everything_2: 2,
    tools_take_everything_3: 3,
    tools_take_everything_4: 4,
    tools_take_everything_5: 5
}

/// From one world to the next, as after an edit of everything: taken by the kernel, read back as it was meant, and at the end nothing is left.
fn kernel_holds_everything(backend: Backend) {
    let ns = Ns::new("node");
    let tool = Tool { ns: &ns, backend };
    let before = tool.state();
    let (mut runner, tried) = (runner(0), tried());
    for _ in 0..25 {
        let world = tried.new_tree(&mut runner).unwrap().current();
        let rules = decide(&world).1.ruleset;
        tool.apply(&rules);
        assert_eq!(tool.changes(&rules), vec![], "a second pass writes nothing\n{world:#?}");
    }
    tool.apply(&Ruleset::default());
    assert_eq!(tool.state(), before);
}

#[test]
fn a_kernel_holds_everything_with_nft() {
    isolated("kernel::a_kernel_holds_everything_with_nft", || {
        kernel_holds_everything(Backend::Nft);
    });
}

#[test]
fn a_kernel_holds_everything_with_legacy() {
    isolated("kernel::a_kernel_holds_everything_with_legacy", || {
        kernel_holds_everything(Backend::Legacy);
    });
}
