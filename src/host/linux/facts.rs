//! What the kernel has and is set to, and the agent may not change.

use super::observe::sysctl;
use crate::netfilter::Family;
use crate::plan::KernelFacts;

/// Whether what the kernel itself answers bears the mark of what it answers (Documentation/networking/ip-sysctl.rst).
pub(super) const FWMARK_REFLECT: [(Family, &str); 2] = [(Family::V4, "ipv4/fwmark_reflect"), (Family::V6, "ipv6/fwmark_reflect")];

/// Reads them.
pub(super) fn read() -> KernelFacts {
    let on = |setting: &str| sysctl(setting).is_some_and(|value| value != 0);
    let reflecting = FWMARK_REFLECT.iter().filter(|(_, setting)| on(setting));
    KernelFacts {
        ipv6_forwarding: on("ipv6/conf/all/forwarding"),
        fwmark_reflect: reflecting.map(|(family, _)| *family).collect(),
        helpers: None,
    }
}
