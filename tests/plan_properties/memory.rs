//! A judgement from memory is the judgement from nothing, whatever came and went before it.

use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::Index;
use stagenet::api::{NatMapping, StagingNetwork};
use stagenet::plan::{Borrowed, HostOptions, Memory, Namespaces, NodeFacts, Verdicts, View, World, host_plan, judge, judge_again};

use crate::wide::wide_worlds;
use crate::{NODE, worlds};

/// What an agent has in its hands: objects that outlive a change of others.
#[derive(Default)]
struct Hands {
    networks: Vec<StagingNetwork>,
    nodes: Vec<NodeFacts>,
    mappings: Vec<Arc<NatMapping>>,
    namespaces: Arc<Namespaces>,
}

impl Hands {
    fn view(&self) -> View<'_> {
        View {
            networks: Borrowed::Owned(&self.networks),
            mappings: Borrowed::Shared(&self.mappings),
            nodes: Borrowed::Owned(&self.nodes),
            namespaces: &self.namespaces,
        }
    }

    /// Takes over parts of another world: of the mappings on either side those whose bit is set, or a single one in the place of a single one.
    fn change(&mut self, to: World, step: Step) {
        if let (Some(place), false) = (step.single, self.nodes.is_empty()) {
            let at = place.index(self.mappings.len() + 1);
            let gone = at..(at + usize::from(step.stay & 1 == 1)).min(self.mappings.len());
            let come = to.mappings.into_iter().take(usize::from(step.come & 1 == 1)).map(Arc::new);
            self.mappings.splice(gone, come);
            return;
        }
        if step.networks || self.nodes.is_empty() {
            self.networks = to.networks;
        }
        if step.nodes || self.nodes.is_empty() {
            self.nodes = to.nodes;
        }
        if step.namespaces {
            self.namespaces = to.namespaces;
        }
        let mut bits = 0..;
        let mut chosen = |set: u32| set >> (bits.next().unwrap_or(0_u32) % 32) & 1 == 1;
        self.mappings.retain(|_| chosen(step.stay));
        self.mappings
            .extend(to.mappings.into_iter().filter(|_| chosen(step.come)).map(Arc::new));
        if step.reverse {
            self.mappings.reverse();
        }
    }
}

#[derive(Clone, Copy, Debug)]
#[allow(clippy::struct_excessive_bools)] // each is a part that changes by itself
struct Step {
    networks: bool,
    nodes: bool,
    namespaces: bool,
    reverse: bool,
    single: Option<Index>,
    stay: u32,
    come: u32,
}

fn steps(of: impl Strategy<Value = World>) -> impl Strategy<Value = Vec<(World, Step)>> {
    let stay = prop_oneof![3 => Just(u32::MAX), 2 => any::<u32>(), 1 => Just(0)];
    let come = prop_oneof![1 => Just(u32::MAX), 2 => any::<u32>(), 2 => Just(0)];
    let rarely = || prop::bool::weighted(0.2);
    let single = prop::option::of(any::<Index>());
    let flags = (rarely(), rarely(), rarely(), rarely());
    let step = (flags, single, stay, come).prop_map(|((networks, nodes, namespaces, reverse), single, stay, come)| Step {
        networks,
        nodes,
        namespaces,
        reverse,
        single,
        stay,
        come,
    });
    prop::collection::vec((of, step), 1..10)
}

fn same_all_along(steps: Vec<(World, Step)>) -> Result<(), TestCaseError> {
    let (mut hands, mut memory) = (Hands::default(), Memory::default());
    for (world, step) in steps {
        hands.change(world, step);
        let (anew, again) = (judge(hands.view()), judge_again(hands.view(), &mut memory));
        prop_assert_eq!(&anew, &again);
        let planned = |verdicts: &Verdicts| host_plan(hands.view(), verdicts, NODE, &HostOptions::default());
        prop_assert_eq!(planned(&anew), planned(&again));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_memory_changes_no_verdict(steps in steps(worlds())) {
        same_all_along(steps)?;
    }

    #[test]
    fn a_memory_changes_no_verdict_with_everything(steps in steps(wide_worlds())) {
        same_all_along(steps)?;
    }

    /// What did not change is not judged again.
    #[test]
    fn verdicts_are_remembered(world in worlds()) {
        let (mut hands, mut memory) = (Hands::default(), Memory::default());
        let all = Step { networks: true, nodes: true, namespaces: true, reverse: false, single: None, stay: 0, come: u32::MAX };
        hands.change(world, all);
        let before = judge_again(hands.view(), &mut memory);
        hands.mappings.reverse();
        let after = judge_again(hands.view(), &mut memory);
        for (key, verdict) in before.mappings.iter().filter(|(_, verdict)| verdict.accepted.is_ok()) {
            prop_assert!(Arc::ptr_eq(verdict, &after.mappings[key]), "{key}");
        }
    }
}
