//! From plan to kernel, stage by stage, each read back before the next begins.
//!
//! 1. routing tables and policy rules of isolated networks that come ("separation"), then the labels of raw (conntrack zone, firewall mark, helper)
//!    if none of them goes
//! 2. the fence (mangle, both families); interfaces that leave the plan are closed wholly
//! 3. what attracted traffic and must no longer: proxies, routes, addresses; interfaces that leave the plan no longer forward, because the node answers what it cannot pass on
//!    before the fence sees it, and the labels by which it does not are about to go
//! 4. ways inside that come in table main, and what keeps the reverse path filter content
//! 5. nobody outside answers for the addresses to come (probe)
//! 6. translations and accepts (nat and filter, both families)
//! 7. flows that the plan does not agree with are deleted, also those older than the fence
//! 8. raw as planned, if labels go
//! 9. what attracts traffic: forwarding, addresses, routes, proxies; then they are announced. Reverse path filters of networks that were not served are strict now, so the mark of
//!    packets from nobody inside, which stood in for them, goes
//! 10. policy rules, routing tables and ways inside that nobody needs any more
//! 11. interfaces that left the plan get back what was found, and only then open
//!
//! A stage that fails ends the pass. Only the fence goes up all the same when stage 1 fails: it then asks for marks that nobody sets, which lets less pass, not more.
//!
//! # Why a crash or a failure between any two stages opens nothing
//!
//! *Without isolated networks* stages 1, 8 and 10 are empty but for ways in main. There is never a translation, a way, a route or forwarding without the fence before
//! it. Stage 7 stands before 9, so that a crash in between leaves forwarding off and the next agent sees that flows may be older than the fence.
//!
//! *An isolated network.* The danger is a packet that is translated to an address of the closed network and is not led by that network's routing table: table main may lead
//! to another clone or to production, and a connection that the fence admitted once passes it by its connection mark. So wherever a label can be
//! missing, nothing may be translated that needs it:
//!
//! * **After 1, tables and rules only:** nobody bears the marks that they ask for. What is asked by interface leads packets from a closed network to itself.
//! * **After 1, labels too:** a label alone opens nothing. A new network has no translation and no forwarding yet. One that becomes isolated because its first clone
//!   comes keeps zone 0, so its flows are found again, and its table leads where main led: it does not notice. Were the fence first, its new connections would be dropped
//!   from there to stage 8, because fence and translation of an isolated network ask for the mark.
//! * **After 2 to 6:** translations of a new network come when its labels, table and fence stand. If labels both come and go, they are written in stage 8 as a whole: until then
//!   a new network's translations find no mark and translate nothing.
//! * **Labels that go** go after 7. The connection table translates without any rule in nat. A flow in zone 0 of a network that was deleted would go on being
//!   translated, unmarked, by table main, past the fence. So flows end first; their translations ended in 6; then nothing is left that needs the label.
//! * **Tables and policy rules that go** go after the labels (10), for the same reason; within 10 rules first, blackholes last.
//! * **A table that changes hands** (an identifier used again, an inside interface named anew): the old way goes in 3 and its blackhole stays, so what is still
//!   translated for the old network is dropped, not delivered to the new one; the new way comes in 9.
//! * **Marks that change** (`--fwmark-mask`, `--fwmark-base`): both the rules for the marks of before and those for the new ones stand from 1 to 10. What leads unmarked packets past
//!   them goes in 1 if it is of another mask, and comes in 9. A mark that was one network's and becomes another's is dropped from 1 to 10.
//! * **A network that stops being isolated** gets its way in main and a strict reverse path filter in 4, before its labels go in 8: what comes from nobody inside is dropped by
//!   the one or by the other.
//!
//! The next start compares everything with the plan and goes on; which labels go is then told by what is in the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::pass::{Step, Tables, Work, shared};
use super::{hold, staging};
use crate::host::{LinkChange, ObservedLinks};
use crate::netfilter::{Family, Hook, IfName, Table, TableRules};
use crate::plan::{self, HostPlan, Via};

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

impl Work<'_> {
    /// Plan to kernel, once.
    pub(super) async fn attempt(&mut self, plan: &HostPlan, mut tables: BTreeMap<(Family, Table), TableRules>) -> Step {
        self.preflight(plan).await;
        self.kept.works_with(self.host.backend());
        let netfilter = self.netfilter(tables.is_empty());
        if !self.observe(plan, netfilter).await {
            return Step::Stop;
        }
        let nothing = ObservedLinks::default();
        let links = self.kept.links.clone();
        let links = links.as_deref().unwrap_or(&nothing);
        let mut stages = staging::link_stages(plan, links);
        let closing = if netfilter {
            staging::closing(plan, links)
        } else {
            BTreeSet::new()
        };
        let held = hold::held(&closing, links, plan, self.verdicts, self.unreadable, &self.outcome.facts);
        hold::close(&mut tables, &held);
        stages.removals.extend(staging::shutting(&closing, links));
        let closing: BTreeSet<IfName> = closing.difference(&held).cloned().collect();
        self.outcome.held = held;
        let (open, closed) = if closing.is_empty() {
            let open = shared(tables);
            (open.clone(), open)
        } else {
            let open = shared(tables.clone());
            plan::rules::close_interfaces(&mut tables, &closing);
            (open, shared(tables))
        };

        let separated = self.change_links(&stages.separation).await;
        let labelled = if separated && !self.labels_go(&closed) {
            self.restore_both(&[Table::Raw], &closed).await
        } else {
            Step::Done
        };
        self.note_raised(plan, &closed);
        self.note_left(plan, &closing);
        let filtering = stages.ways.iter().chain(&stages.additions).any(sets_filter);
        let meanwhile = if filtering { self.meanwhile(plan, &closed, &closing) } else { None };
        let fence = self.restore_both(&[Table::Mangle], meanwhile.as_ref().unwrap_or(&closed)).await;
        let removed = self.change_links(&stages.removals).await;
        if !matches!(fence, Step::Done) {
            return fence;
        }
        self.outcome.fenced = true;
        if !matches!(labelled, Step::Done) {
            return labelled;
        }
        if !separated || !self.change_links(&stages.ways).await {
            return Step::Stop;
        }
        if let step @ (Step::Again | Step::Stop) = self.probe(plan, &stages.additions).await {
            return step;
        }
        if let step @ (Step::Again | Step::Stop) = self.restore_both(&[Table::Nat, Table::Filter], &closed).await {
            return step;
        }
        if !self.sweep(plan).await {
            return Step::Stop;
        }
        if let step @ (Step::Again | Step::Stop) = self.restore_both(&[Table::Raw], &closed).await {
            return step;
        }
        let additions: Vec<LinkChange> = stages.additions.into_iter().filter(|c| self.may_attract(c)).collect();
        let added = self.change_links(&additions).await;
        self.announce(&additions).await;
        if meanwhile.is_some() {
            // What drops marked packets is among what leaves.
            if !added {
                return Step::Stop;
            }
            if let step @ (Step::Again | Step::Stop) = self.restore_both(&[Table::Mangle], &closed).await {
                return step;
            }
        }
        let left = self.change_links(&stages.leavings).await;
        let mut reopened = Step::Done;
        if left && !closing.is_empty() {
            let put_back: Vec<_> = closing.into_iter().map(LinkChange::PutBack).collect();
            if self.change_links(&put_back).await {
                reopened = self.restore_both(&[Table::Mangle], &open).await;
            }
        }
        if removed && added && left { reopened } else { Step::Stop }
    }

    /// A node that only has routes needs no iptables.
    fn netfilter(&self, no_rules: bool) -> bool {
        !no_rules || self.host.backend().is_some()
    }

    async fn restore_both(&mut self, names: &[Table], tables: &Tables) -> Step {
        if !self.netfilter(tables.is_empty()) {
            return Step::Done;
        }
        for family in FAMILIES {
            let step = self.restore(family, names, tables).await;
            if !matches!(step, Step::Done) {
                return step;
            }
        }
        Step::Done
    }

    /// `tables` with the mark of what is from nobody inside, on a node that has this mark, as long as no reverse path filter does the same. Where `all` makes every filter loose, none ever will.
    fn meanwhile(&self, plan: &HostPlan, tables: &Tables, closing: &BTreeSet<IfName>) -> Option<Tables> {
        let at = (Family::V4, Table::Mangle);
        let marked = self
            .kept
            .tables
            .get(&at)
            .is_some_and(|kept| kept.seen.hooks.contains_key(&Hook::Prerouting));
        let rules = plan.meanwhile.as_ref().filter(|_| marked)?;
        let mut changed = BTreeMap::from([(at, rules.clone())]);
        hold::close(&mut changed, &self.outcome.held);
        plan::rules::close_interfaces(&mut changed, closing);
        let mut all = tables.clone();
        all.insert(at, Arc::new(changed.remove(&at)?));
        Some(all)
    }

    /// Whether a label that packets get now is not planned any more.
    fn labels_go(&self, tables: &Tables) -> bool {
        FAMILIES.iter().any(|family| {
            let at = (*family, Table::Raw);
            self.kept.labels_go(at, tables.get(&at).map(AsRef::as_ref))
        })
    }

    /// Whether a change attracts no address that could not be asked for.
    fn may_attract(&self, change: &LinkChange) -> bool {
        match change {
            LinkChange::AddProxy(proxy) => !self.unasked.contains_key(proxy),
            // A route names no interface: that of a clone with the same address waits for the next pass.
            LinkChange::AddRoute(route) if route.via == Via::Loopback => {
                !self.unasked.keys().any(|a| route.destination.contains(&a.address))
            }
            _ => true,
        }
    }
}

/// Whether a reverse path filter is about to change.
fn sets_filter(change: &LinkChange) -> bool {
    matches!(change, LinkChange::Set(_, settings) if settings.rp_filter.is_some())
}
