//! What this process may do, from `/proc/self/status`: surer than the words in which the tools say "not permitted".

use std::fs;

// linux/capability.h
const NET_ADMIN: u32 = 12;
const NET_RAW: u32 = 13;

fn effective(status: &str) -> Option<u64> {
    let value = status.lines().find_map(|l| l.strip_prefix("CapEff:"))?;
    u64::from_str_radix(value.trim(), 16).ok()
}

fn has(capability: u32) -> bool {
    // Where /proc does not say, the kernel's own answer to the call has to do.
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    effective(&status).is_none_or(|set| set & (1 << capability) != 0)
}

/// `NET_ADMIN`, and for the legacy tools `NET_RAW` too: they ask the kernel through a raw socket.
pub(super) fn may_filter(legacy: bool) -> bool {
    has(NET_ADMIN) && (!legacy || has(NET_RAW))
}

/// Names of the capabilities that are needed and not there.
pub(super) fn missing() -> Vec<&'static str> {
    [(NET_ADMIN, "NET_ADMIN"), (NET_RAW, "NET_RAW")]
        .into_iter()
        .filter(|(c, _)| !has(*c))
        .map(|(_, name)| name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_set_is_read() {
        assert_eq!(effective("Name:\tx\nCapPrm:\t0\nCapEff:\t0000000000003000\n"), Some(0x3000));
        assert_eq!(effective("Name:\tx\n"), None);
    }
}
