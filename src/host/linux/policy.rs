//! Policy routing rules of ours (`ip rule`): read back by protocol number, and asked for.

use std::collections::BTreeSet;
use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::rule::{RuleAction as Action, RuleAttribute, RuleMessage};

use super::netlink::{Answer, Netlink, text, u32_at};
use super::observe::{both, family, number};
use crate::host::PROTOCOL;
use crate::netfilter::{IfName, Mark};
use crate::plan::{PolicyRule, RuleAction};

// linux/fib_rules.h
const FIB_RULE_HDR: usize = 12;
const FRA_IIFNAME: u16 = 3;
const FRA_GOTO: u16 = 4;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_PROTOCOL: u16 = 21;
const FR_ACT_TO_TBL: u8 = 1;
const FR_ACT_GOTO: u8 = 2;
const FR_ACT_NOP: u8 = 3;
const FR_ACT_BLACKHOLE: u8 = 6;

/// The rule of one `RTM_NEWRULE` or `RTM_DELRULE`, if it is one of ours.
pub(super) fn parse(answer: &Answer<'_>) -> Option<PolicyRule> {
    let [_, _, _, _, header_table, _, _, action, ..] = *answer.body else {
        return None;
    };
    let (mut ours, mut preference, mut table, mut target) = (false, 0, u32::from(header_table), 0);
    let (mut input, mut value_of_mark, mut mask_of_mark) = (None, 0, None);
    for (kind, value) in answer.attributes(FIB_RULE_HDR) {
        match kind {
            FRA_PROTOCOL => ours = value == [PROTOCOL],
            FRA_PRIORITY => preference = u32_at(value, 0)?,
            FRA_TABLE => table = u32_at(value, 0)?,
            FRA_GOTO => target = u32_at(value, 0)?,
            FRA_IIFNAME => input = Some(IfName::new(&text(value))?),
            FRA_FWMARK => value_of_mark = u32_at(value, 0)?,
            // The kernel leaves a mark of 0 out, and says the mask.
            FRA_FWMASK => mask_of_mark = u32_at(value, 0).filter(|bits| *bits != 0),
            _ => {}
        }
    }
    let action = match action {
        FR_ACT_TO_TBL => RuleAction::Lookup(table),
        FR_ACT_GOTO => RuleAction::Goto(target),
        FR_ACT_NOP => RuleAction::Nop,
        FR_ACT_BLACKHOLE => RuleAction::Blackhole,
        _ => return None,
    };
    ours.then_some(PolicyRule {
        family: family(answer)?,
        preference,
        mark: mask_of_mark.map(|mask| Mark {
            value: value_of_mark,
            mask,
        }),
        input,
        action,
    })
}

/// Rules of ours. A node has few rules, so that they are all read.
pub(super) fn read(netlink: &mut Netlink) -> io::Result<BTreeSet<PolicyRule>> {
    let request = |family| {
        let mut request = RuleMessage::default();
        request.header.family = number(family);
        RouteNetlinkMessage::GetRule(request)
    };
    both(netlink, request, parse)
}

/// The message that adds or removes `wanted`. Removing finds a rule by all that is in it, the protocol number included.
pub(super) fn message(wanted: &PolicyRule) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = number(wanted.family);
    message.attributes.push(RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)));
    message.attributes.push(RuleAttribute::Priority(wanted.preference));
    if let Some(mark) = wanted.mark {
        message.attributes.push(RuleAttribute::FwMark(mark.value));
        message.attributes.push(RuleAttribute::FwMask(mark.mask));
    }
    let input = wanted.input.as_ref().map(|name| RuleAttribute::Iifname(name.to_string()));
    message.attributes.extend(input);
    match wanted.action {
        RuleAction::Lookup(table) => {
            message.header.action = Action::ToTable;
            message.header.table = u8::try_from(table).unwrap_or_default();
            message.attributes.push(RuleAttribute::Table(table));
        }
        RuleAction::Goto(preference) => {
            message.header.action = Action::Goto;
            message.attributes.push(RuleAttribute::Goto(preference));
        }
        RuleAction::Blackhole => message.header.action = Action::Blackhole,
        RuleAction::Nop => message.header.action = Action::Nop,
    }
    message
}
